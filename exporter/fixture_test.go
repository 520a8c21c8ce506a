// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/usage"
)

var (
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	build = BuildInfo{Version: "1.2.3", Revision: "abc", GoVersion: "go1.26"}
)

// counts returns counts whose every number is another one.
func counts(base uint64) usage.Counts {
	c := usage.Counts{
		Interface: usage.Volume{Bytes: base + 1, Packets: base + 2},
		SYN:       base + 3, SYNACK: base + 4, RST: base + 5, FIN: base + 6,
	}
	for f := range c.Cells {
		for p := range c.Cells[f] {
			n := base + 100*uint64(f+1) + 10*uint64(p+1)
			c.Cells[f][p] = usage.Volume{Bytes: n, Packets: n / 10}
		}
	}
	return c
}

func traffic(base uint64) usage.Traffic {
	return usage.Traffic{Receive: counts(base), Transmit: counts(base + 5000)}
}

// connections returns counts of connections whose every number is another one.
func connections(base uint64) *usage.TCP {
	t := &usage.TCP{
		ConnectAttempts: base + 1, Connects: base + 2, Accepts: base + 3, ConnectFailures: base + 4,
		Closes: base + 5, Resets: base + 6, RetransmittedSegments: base + 7, RTTMicroseconds: 1_500_000,
	}
	for i := range t.RTTs {
		t.RTTs[i] = uint64(i + 1)
	}
	return t
}

// snapshot has a counted container, one that is not, one that has stopped, one that is
// counted by its cgroup alone, and an attachment nobody owns.
func snapshot() usage.Snapshot {
	web := usage.Container{
		ID: "aaa111", Name: "web", Runtime: "docker", Image: "nginx:1", Cgroup: "/docker/aaa111",
		Labels: map[string]string{"team": "a"},
		State:  usage.Running, StartedAt: noon.Add(-time.Hour), NetworkMode: "bridge",
		Interfaces: []usage.Interface{{
			Name: "eth0", HostInterface: "veth12ab", Hook: "clsact",
			AttachedAt: noon.Add(-time.Hour), Attached: true, Traffic: traffic(10_000),
		}},
		Traffic: traffic(10_000),
		Logged: &usage.Logged{
			Receive: usage.LoggedRequests{Connections: 8, SYN: 3}, Transmit: usage.LoggedRequests{Connections: 9, SYN: 4}, Since: noon,
		},
	}
	host := usage.Container{
		ID: "aaa222", Name: "agent", Runtime: "containerd", Namespace: "kube-system", Pod: "agent-x",
		Cgroup: "/kubepods/podx/aaa222", State: usage.Running, StartedAt: noon.Add(-time.Minute),
		NetworkMode: "host", Reason: usage.HostNetwork, TCP: connections(50_000), TCPSince: noon.Add(-time.Minute),
	}
	old := usage.Container{
		ID: "bbb333", Name: "web", Runtime: "docker", Image: "nginx:0", Cgroup: "/docker/bbb333",
		State: usage.Stopped, StartedAt: noon.Add(-2 * time.Hour), StoppedAt: noon.Add(-5 * time.Minute), StoppedFor: 5 * time.Minute,
		NetworkMode: "bridge",
		Interfaces:  []usage.Interface{{Name: "eth0", HostInterface: "veth34cd", Hook: "clsact", AttachedAt: noon.Add(-2 * time.Hour)}},
	}
	shared := traffic(30_000)
	shared.Receive.Loopback = usage.Volume{Bytes: 500, Packets: 5}
	vpn := usage.Container{
		ID: "ccc444", ParentID: "aaa111", Name: "vpn", Cgroup: "/docker/aaa111/docker/ccc444", State: usage.Running,
		StartedAt: noon, NetworkMode: "container", Kernel: "gvisor", IP: &shared, IPSince: noon, TCP: connections(60_000), TCPSince: noon,
	}
	established := uint64(17)
	vpn.Established, vpn.TCP.ListenDrops, vpn.TCP.ListenDropsKnown = &established, 60_008, 1
	return usage.Snapshot{
		Cgroups:    1,
		Sockets:    2,
		TakenAt:    noon.In(time.FixedZone("CET", 3600)),
		Containers: []usage.Container{old, web, host, vpn},
		Unowned: []usage.Interface{{
			HostInterface: "veth99", Hook: "clsact", AttachedAt: noon, Attached: true, Traffic: traffic(20_000),
		}},
		Orphaned:     traffic(40_000),
		Log:          &usage.LogState{Group: 5, Bound: true, Logged: 20, Lost: 6, Overruns: 1, Ignored: 2, Unattributed: 3},
		Uncounted:    map[string]uint64{"no_row": 0},
		Unclassified: map[string]uint64{"truncated": 7},
	}
}

// many returns a host of n containers with an interface each.
func many(n int) usage.Snapshot {
	snap := snapshot()
	snap.Containers = make([]usage.Container, n)
	for i := range snap.Containers {
		id := fmt.Sprintf("%064x", uint64(i)*0x9e3779b97f4a7c15)
		snap.Containers[i] = usage.Container{
			ID: id, Name: fmt.Sprintf("k8s-app-%d", i), Runtime: "containerd",
			Image: "registry.example.com/team/app:1.2.3", Namespace: "production", Pod: fmt.Sprintf("app-6d4cf56db6-%05d", i),
			Cgroup: "/kubepods/burstable/pod0/" + id, State: usage.Running, StartedAt: noon, NetworkMode: "bridge",
			Interfaces: []usage.Interface{{
				Name: "eth0", HostInterface: fmt.Sprintf("veth%08x", i), Hook: "clsact",
				AttachedAt: noon, Attached: true, Traffic: traffic(uint64(i) << 30),
			}},
			Traffic: traffic(uint64(i) << 30),
			TCP:     connections(uint64(i) << 20), TCPSince: noon, Established: new(uint64),
		}
	}
	return snap
}

// options show a snapshot with the default settings.
func options(snap usage.Snapshot) Options {
	return Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) {
			s := snap
			s.Containers = append([]usage.Container(nil), snap.Containers...)
			return s, nil
		},
		Settings: func() Settings { return Settings{MetricsRetention: 5 * time.Minute} },
		Build:    build,
		Source:   "bpf",
		Boot:     func() time.Duration { return 1234567 * time.Microsecond },
		Log:      slog.New(slog.DiscardHandler),
	}
}

func newExporter(tb testing.TB, opts Options) *Exporter {
	tb.Helper()
	e, err := New(opts)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// request returns the status, header and body of an answer.
func request(tb testing.TB, h http.Handler, method, target string, header ...string) (int, http.Header, string) {
	tb.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		tb.Fatal(err)
	}
	return w.Code, w.Result().Header, string(body)
}

// everything turns all families on.
func everything() Settings {
	return Settings{
		Families:         []string{FamilyInterface, FamilyProtocol, FamilyFamily, FamilyTCPFlags},
		CompatCAdvisor:   true,
		MetricsRetention: time.Hour,
	}
}

func collectorOf(snap usage.Snapshot, settings Settings) prometheus.Collector {
	return newCollector(func() Settings { return settings }).of(snap, Periods{})
}

// adopting is what nettally says while it does not know yet what an earlier process
// counted.
func adopting(ctx context.Context) (usage.Snapshot, error) {
	<-ctx.Done()
	return usage.Snapshot{}, fmt.Errorf("take over what was counted before: %w", ctx.Err())
}

// midnight is not in UTC, as it is on most hosts.
var midnight = time.Date(2026, 11, 1, 0, 0, 0, 0, time.FixedZone("CET", 3600))

// historyRows are two days, with keys of all kinds.
func historyRows() []HistoryRow {
	rows := []HistoryRow{{
		Key: "web",
		TCP: &HistoryTCP{ConnectAttempts: 7, Connects: new(uint64(8)), Accepts: 9, ConnectFailures: new(uint64(10))}, HTTP: &HistoryHTTP{Receive: 11, Transmit: 12},
	}, {Key: ""}, {Key: "=1+1,\"x\""}}
	for i := range rows {
		n := uint64(100 * i)
		rows[i].Start, rows[i].End = midnight.AddDate(0, 0, i/2), midnight.AddDate(0, 0, i/2+1)
		rows[i].Receive = HistoryCounts{Bytes: n + 1, Packets: n + 2, TCPSYN: n + 3}
		rows[i].Transmit = HistoryCounts{Bytes: n + 4, Packets: n + 5, TCPSYN: n + 6}
	}
	return rows
}

// withHistory adds a history that always has the same rows.
func withHistory(opts Options) Options {
	opts.History = func(context.Context, HistoryQuery) ([]HistoryRow, error) { return historyRows(), nil }
	return opts
}
