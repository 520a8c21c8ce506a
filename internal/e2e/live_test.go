// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// spectator is what somebody knows who watches a daemon live, over its restarts.
type spectator struct {
	mu      sync.Mutex
	totals  map[string]exporter.StreamTotal
	boot    map[string]int64 // when they were read
	events  []string
	streams int // that have begun
}

// watch watches until the test ends, and begins again when a stream does.
func (d *daemon) watch() *spectator {
	w := &spectator{totals: map[string]exporter.StreamTotal{}, boot: map[string]int64{}}
	client := nettest.Must(exporter.NewClient(exporter.ClientOptions{Socket: d.socket}))(d.t)
	ctx, cancel := context.WithCancel(context.Background())
	var watchers sync.WaitGroup
	watchers.Go(func() {
		for ctx.Err() == nil {
			for event, err := range client.Follow(ctx, time.Second) {
				if err == nil {
					w.take(event)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	d.t.Cleanup(func() {
		cancel()
		watchers.Wait()
		client.Close()
	})
	return w
}

func (w *spectator) take(event exporter.StreamEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := event.(type) {
	case *exporter.StreamContainers:
		if e.Replace {
			w.streams++
		}
		for _, c := range e.Containers {
			w.totals[c.ID], w.boot[c.ID] = exporter.StreamTotal{ID: c.ID, Receive: c.Receive, Transmit: c.Transmit}, e.BootMS
		}
	case *exporter.StreamSample:
		for _, c := range e.Containers {
			w.totals[c.ID], w.boot[c.ID] = c, e.BootMS
		}
	case *exporter.StreamStarted:
		w.events = append(w.events, "started "+e.ID)
	case *exporter.StreamStopped:
		w.events = append(w.events, "stopped "+e.ID)
	case *exporter.Alert:
		w.events = append(w.events, e.State+" "+e.Quota)
	}
}

// of returns what is known of a container, and when it was read.
func (w *spectator) of(id string) (exporter.StreamTotal, int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.totals[id], w.boot[id]
}

func (w *spectator) saw(event string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e == event {
			n++
		}
	}
	return n
}

// agrees waits until who watches knows what the JSON says, to the digit.
func (w *spectator) agrees(d *daemon, id string) {
	d.t.Helper()
	d.poll("the stream agrees", func() error {
		c, err := d.container(id)
		if err != nil {
			return err
		}
		got, _ := w.of(id)
		if got.Receive.Volume != c.Receive.Volume || got.Transmit.Volume != c.Transmit.Volume || got.Receive.TCPSYN != c.Receive.TCPSYN {
			return fmt.Errorf("the stream says %+v, the JSON %+v and %+v", got, c.Receive.Volume, c.Transmit.Volume)
		}
		return nil
	})
}

// Who watches sees traffic, beginnings, ends and alerts of a real container by itself, and after a
// kill -9 goes on: what passed while nobody counted aloud is there, over the time that it took.
func TestWatchLive(t *testing.T) {
	need.Root(t)
	t.Parallel()
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	quotas := "\nquotas: [{name: little, match: {}, per: container, count: transmit_bytes, limit: 5kB, period: {every: day}, alert_at: [100], notify: []}]"
	d := startDaemon(t, on{host}, only(c)+quotas)
	d.counted(c.ID, 1)
	d.keyed("little", c.ID)
	w := d.watch()
	d.exactly(c, peer)
	w.agrees(d, c.ID)
	d.poll("an alert is told", func() error {
		if n := w.saw("firing little"); n != 1 {
			return fmt.Errorf("%d were told, want 1", n)
		}
		return nil
	})

	before, at := w.of(c.ID)
	d.kill()
	sink := nettest.Must(peer.Listen("udp", c.Interfaces[0].HostIPv4))(t)
	const count, size = 200, 1000
	if err := c.Agent.SendUDP(sink.Addr, count, size); err != nil {
		t.Fatal(err)
	}
	nettest.Must(sink.Received(count))(t)
	d.start()
	w.agrees(d, c.ID)
	after, later := w.of(c.ID)
	if grown := after.Transmit.Packets - before.Transmit.Packets; grown < count {
		t.Errorf("%d packets while it was down, want %d at least", grown, count)
	}
	if later <= at {
		t.Errorf("read at %d ms and then at %d ms", at, later)
	}
	w.mu.Lock()
	if w.streams != 2 {
		t.Errorf("%d streams, want one before and one after the kill", w.streams)
	}
	w.mu.Unlock()

	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	d.poll("its end and its new beginning are told", func() error {
		if w.saw("stopped "+c.ID) == 0 || w.saw("started "+c.ID) == 0 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("told %v", w.events)
		}
		return nil
	})
	d.counted(c.ID, 1)
	if err := c.Agent.SendUDP(sink.Addr, count, size); err != nil {
		t.Fatal(err)
	}
	d.poll("its traffic is told", func() error {
		if got, _ := w.of(c.ID); got.Transmit.Packets < after.Transmit.Packets+count {
			return fmt.Errorf("%d packets", got.Transmit.Packets)
		}
		return nil
	})
	w.agrees(d, c.ID)
}

// The last 15 minutes have what a container used while nobody watched.
func TestRecentWithoutViewers(t *testing.T) {
	need.Root(t)
	t.Parallel()
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	d := startDaemon(t, on{host}, only(c))
	d.counted(c.ID, 1)
	client := nettest.Must(exporter.NewClient(exporter.ClientOptions{Socket: d.socket}))(t)
	defer client.Close()
	recent := func() (r exporter.Recent) {
		t.Helper()
		if err := client.Get(t.Context(), "/api/v1/recent", &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	began := recent().EndBootMS
	d.poll("a step has ended", func() error {
		if r := recent(); r.EndBootMS <= began {
			return fmt.Errorf("%d steps", r.Steps)
		}
		return nil
	})
	before := nettest.Must(d.container(c.ID))(t)
	d.exactly(c, peer)
	after := nettest.Must(d.container(c.ID))(t)
	d.poll("the traffic is in a step", func() error {
		var got uint64
		for _, s := range recent().Containers {
			for _, packets := range s.TransmitPackets {
				if s.ID == c.ID && packets != nil {
					got += *packets
				}
			}
		}
		if want := after.Transmit.Packets - before.Transmit.Packets; got < want {
			return fmt.Errorf("%d packets in all steps, want %d at least", got, want)
		}
		return nil
	})
}
