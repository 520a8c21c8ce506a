// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/live"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// host is a host that a test makes up, shown by a real exporter. Time passes there when the
// test says so.
type host struct {
	t       testing.TB
	server  *httptest.Server
	streams atomic.Int32 // that are open
	most    atomic.Int32 // streams that were open at once
	begun   atomic.Int32 // streams in all
	down    atomic.Bool  // requests find nobody

	mu       sync.Mutex
	boot     time.Duration
	began    time.Time
	all      []*usage.Container
	quotas   []quota.Status
	alerts   []quota.Alert
	foremost map[string]quota.Foremost
	rows     func(exporter.HistoryQuery) []exporter.HistoryRow
	unready  error
	checks   []exporter.Check
	distrust string

	daemon atomic.Pointer[daemon]
}

// daemon is what a restart makes anew.
type daemon struct {
	handler http.Handler
	tick    chan time.Time
	cancel  context.CancelFunc
	ended   chan error
}

func newHost(t testing.TB) *host {
	t.Helper()
	const boot = 5000 * time.Second
	h := &host{t: t, boot: boot, began: time.Now().Add(-boot).Truncate(time.Second), foremost: map[string]quota.Foremost{}}
	h.start()
	h.server = httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(func() {
		h.kill()
		h.server.Close()
	})
	return h
}

// start runs a daemon, which knows the totals of the one before and nothing else.
func (h *host) start() {
	h.t.Helper()
	ready := make(chan struct{})
	close(ready)
	d := &daemon{tick: make(chan time.Time), ended: make(chan error, 1)}
	hub := live.New(live.Options{
		Read:   func(context.Context, bool, bool) usage.Snapshot { return h.snapshot() },
		Ready:  ready,
		Quotas: h,
		Boot: func() time.Duration {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.boot
		},
		Tick: d.tick,
	})
	e, err := exporter.New(exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return h.snapshot(), nil },
		Live:     hub,
		Quotas:   h,
		History: func(_ context.Context, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
			if h.rows == nil {
				return nil, errors.New("read history: there is no ledger")
			}
			return h.rows(q), nil
		},
		Checks:   func(context.Context) []exporter.Check { h.mu.Lock(); defer h.mu.Unlock(); return h.checks },
		Settings: func() exporter.Settings { return exporter.Settings{MetricsRetention: time.Minute} },
		Source:   "bpf",
		Build:    exporter.BuildInfo{Version: "1.2.3", Revision: "abcdef0123456789", GoVersion: "go1.26"},
		Ready:    func() error { h.mu.Lock(); defer h.mu.Unlock(); return h.unready },
		Distrust: func() string { h.mu.Lock(); defer h.mu.Unlock(); return h.distrust },
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	d.handler = e.Handler()
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() { d.ended <- hub.Run(ctx) }()
	for { // until the hub runs
		if v, err := hub.Join(time.Second, func() {}); err == nil {
			v.Leave()
			break
		}
		time.Sleep(time.Millisecond)
	}
	h.daemon.Store(d)
	h.down.Store(false)
}

// kill ends the daemon as kill -9 does: connections break, and nobody answers.
func (h *host) kill() {
	d := h.daemon.Swap(nil)
	if d == nil {
		return
	}
	h.down.Store(true)
	d.cancel()
	<-d.ended
	if h.server != nil {
		h.server.CloseClientConnections()
	}
}

func (h *host) serve(w http.ResponseWriter, r *http.Request) {
	d := h.daemon.Load()
	if d == nil || h.down.Load() {
		panic(http.ErrAbortHandler)
	}
	if r.URL.Path == "/api/v1/stream" {
		h.begun.Add(1)
		now := h.streams.Add(1)
		defer h.streams.Add(-1)
		for most := h.most.Load(); now > most && !h.most.CompareAndSwap(most, now); most = h.most.Load() {
		}
	}
	d.handler.ServeHTTP(w, r)
}

func (h *host) snapshot() usage.Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	snap := usage.Snapshot{
		TakenAt: h.began.Add(h.boot), Uncounted: map[string]uint64{"no_row": 0}, Unclassified: map[string]uint64{"truncated": 7},
		Log: &usage.LogState{Group: 5, Bound: true, Logged: 20, Lost: 6},
	}
	for _, c := range h.all {
		snap.Containers = append(snap.Containers, *c)
		last := &snap.Containers[len(snap.Containers)-1]
		last.Interfaces = slices.Clone(c.Interfaces)
	}
	return snap
}

// Status, Alerts, Foremost and Set are the quotas of the host.
func (h *host) Status() []quota.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.quotas)
}

func (h *host) Alerts() []quota.Alert {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.alerts)
}

func (h *host) Foremost() map[string]quota.Foremost {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]quota.Foremost{}
	for id, f := range h.foremost {
		all[id] = f
	}
	return all
}

func (h *host) Set(string, string, uint64) error { return errors.New("not here") }

// add adds a container that is counted on one interface.
func (h *host) add(id, name string, change ...func(*usage.Container)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &usage.Container{
		ID: id, Name: name, Runtime: "docker", Image: "registry.example.com/" + id + ":1", Cgroup: "/docker/" + id,
		State: usage.Running, StartedAt: h.began.Add(h.boot - 3*time.Hour), NetworkMode: "bridge",
		Interfaces: []usage.Interface{{Name: "eth0", HostInterface: "veth" + id[:min(4, len(id))], Hook: "tcx", AttachedAt: h.began, Attached: true}},
	}
	for _, f := range change {
		f(c)
	}
	h.all = append(h.all, c)
}

// change changes a container.
func (h *host) change(id string, f func(*usage.Container)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.all {
		if c.ID == id {
			f(c)
		}
	}
}

// pass lets a container receive and transmit so many bytes, in packets of a thousand.
func (h *host) pass(id string, receive, transmit uint64) {
	h.change(id, func(c *usage.Container) { moved(c, receive, transmit) })
}

func moved(c *usage.Container, receive, transmit uint64) {
	all := []*usage.Traffic{&c.Traffic}
	if c.IP != nil {
		all = []*usage.Traffic{c.IP}
	} else if len(c.Interfaces) > 0 {
		all = append(all, &c.Interfaces[0].Traffic)
	}
	for _, t := range all {
		for counts, bytes := range map[*usage.Counts]uint64{&t.Receive: receive, &t.Transmit: transmit} {
			cell := &counts.Cells[usage.FamilyIPv4][usage.ProtocolTCP]
			cell.Bytes += bytes
			cell.Packets += (bytes + 999) / 1000
			counts.Interface.Bytes += bytes
			counts.SYN += bytes / 100_000
		}
	}
}

// second lets time pass, after each second as the hub ticks.
func (h *host) second() {
	h.mu.Lock()
	h.boot += time.Second
	h.mu.Unlock()
	if d := h.daemon.Load(); d != nil {
		d.tick <- time.Time{}
	}
}

// gap lets time pass in which nobody reads.
func (h *host) gap(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.boot += d
}

// thousand adds so many containers of a cluster.
func (h *host) thousand(n int) {
	for i := range n {
		h.add(fmt.Sprintf("%064x", uint64(i+1)*0x9e3779b97f4a7c15), fmt.Sprintf("app-%04d", i), func(c *usage.Container) {
			c.Runtime, c.Namespace, c.Pod = "containerd", fmt.Sprintf("team-%d", i%17), fmt.Sprintf("app-6d4cf56db6-%05d", i)
			c.Labels = map[string]string{"app": fmt.Sprintf("app-%d", i%50), "com.docker.compose.project": fmt.Sprintf("stack-%d", i%9)}
			moved(c, uint64(i)<<20, uint64(i)<<18)
		})
	}
}

// busy lets every container move something in the next second.
func (h *host) busy() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range h.all {
		turn := uint64(h.boot/time.Second) + uint64(i)*7
		moved(c, uint64(i+1)*1000+turn%13*997, uint64(i+1)*400+turn%5*1333)
	}
}
