// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/live"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// stage is a host whose containers a test moves. It is safe for concurrent use.
type stage struct {
	mu         sync.Mutex
	containers []usage.Container
	moving     func(turn int, c []usage.Container) // changes them at each reading, nil for nothing
	turn       int
}

// put has a container on the stage, in place of the one with its id.
func (s *stage) put(c usage.Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.containers, func(other usage.Container) bool { return other.ID == c.ID })
	if i < 0 {
		s.containers = append(s.containers, c)
		return
	}
	s.containers[i] = c
}

// snapshot is a reading. turn says that the containers are to move.
func (s *stage) snapshot(turn bool) usage.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if turn && s.moving != nil {
		s.turn++
		s.moving(s.turn, s.containers)
	}
	return usage.Snapshot{TakenAt: time.Now(), Containers: slices.Clone(s.containers)}
}

func (s *stage) move(moving func(turn int, c []usage.Container)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moving = moving
}

// at is a container with what it has used by one interface.
func at(id, name string, received, transmitted uint64) usage.Container {
	c := usage.Container{
		ID: id, Name: name, Runtime: "docker", Image: "example/" + name, State: usage.Running, StartedAt: time.Now().Add(-time.Hour),
		NetworkMode: "bridge", Labels: map[string]string{},
		Interfaces: []usage.Interface{{Name: "eth0", HostInterface: "veth" + id, Hook: "tcx"}},
	}
	use(&c, received, transmitted)
	return c
}

// use adds to what a container has used: packets of 1,000 bytes.
func use(c *usage.Container, received, transmitted uint64) {
	add := func(to *usage.Counts, n uint64) {
		v := &to.Cells[usage.FamilyIPv4][usage.ProtocolTCP]
		v.Bytes, v.Packets = v.Bytes+n, v.Packets+n/1000
		to.Interface.Bytes, to.Interface.Packets = to.Interface.Bytes+n, to.Interface.Packets+n/1000
		to.SYN += n / 10_000
	}
	for _, t := range []*usage.Traffic{&c.Traffic, &c.Interfaces[0].Traffic} {
		add(&t.Receive, received)
		add(&t.Transmit, transmitted)
	}
}

// actor is a daemon on a stage.
type actor struct {
	stage  *stage
	socket string
	end    func()
}

// play serves a stage at a socket until end is called.
func play(t *testing.T, s *stage, socket string, quotas *hostileQuotas) *actor {
	t.Helper()
	ready := make(chan struct{})
	close(ready)
	hub := live.New(live.Options{
		Read:  func(context.Context, bool, bool) usage.Snapshot { return s.snapshot(true) },
		Ready: ready,
	})
	e, err := exporter.New(exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return s.snapshot(false), nil },
		History: func(_ context.Context, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
			hour := time.Now().Truncate(time.Hour)
			return []exporter.HistoryRow{
				{Start: hour.Add(-time.Hour), End: hour, Key: q.Container, Receive: exporter.HistoryCounts{Bytes: 5 << 20}, Transmit: exporter.HistoryCounts{Bytes: 1 << 20}},
				{Start: hour, End: hour.Add(time.Hour), Key: q.Container, Receive: exporter.HistoryCounts{Bytes: 2 << 20}},
			}, nil
		},
		Live:     hub,
		Quotas:   quotas,
		Settings: func() exporter.Settings { return exporter.Settings{} },
		Source:   "bpf",
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := exporter.Listen("", socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := hub.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() {
		if err := e.Serve(ctx, listeners); err != nil {
			t.Error(err)
		}
	})
	a := &actor{stage: s, socket: socket, end: sync.OnceFunc(func() { cancel(); all.Wait() })}
	t.Cleanup(a.end)
	return a
}

func (q *hostileQuotas) Foremost() map[string]quota.Foremost { return nil }

func TestDemo(t *testing.T) {
	s := &stage{}
	names := []string{"web", "api", "db-primary", "cache", "mail", "backup", "grafana", "prometheus", "registry", "ci-runner-1", "ci-runner-2", "minecraft"}
	for i, n := range names {
		c := at(fmt.Sprintf("%064x", i+1), n, uint64(i+1)*123456789, uint64(i*i)*98765432)
		if i%3 == 0 {
			c.Labels["com.docker.compose.project"] = "shop"
		}
		s.put(c)
	}
	old := at(fmt.Sprintf("%064x", 99), "old-job", 1<<30, 1<<20)
	old.State, old.StoppedAt = usage.Stopped, time.Now()
	s.put(old)
	bad := at(fmt.Sprintf("%064x", 98), "vpn", 0, 0)
	bad.Reason = usage.Shadowed
	s.put(bad)
	s.move(func(turn int, c []usage.Container) {
		for i := range names {
			if i%4 != 3 {
				use(&c[i], uint64((i*turn*77777)%(1<<(10+i))), uint64((turn*1234567)%(1<<(8+i))))
			}
		}
	})
	play(t, s, "/root/demo/s", nil2())
	time.Sleep(10 * time.Minute)
}

func nil2() *hostileQuotas { return &hostileQuotas{} }
