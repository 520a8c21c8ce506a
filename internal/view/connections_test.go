// SPDX-License-Identifier: Apache-2.0

package view

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
)

func tcp(connects, accepts, failures uint64) *exporter.StreamTCP {
	return &exporter.StreamTCP{Connects: connects, Accepts: accepts, ConnectFailures: failures}
}

func withTCP(t *exporter.StreamTCP) func(*exporter.StreamContainer) {
	return func(c *exporter.StreamContainer) { c.TCP = t }
}

func connected(id string, t *exporter.StreamTCP) exporter.StreamTotal {
	return exporter.StreamTotal{ID: id, TCP: t}
}

func TestConnections(t *testing.T) {
	none := counts(0, 0, 0)
	first := containers(1000, true, container("a", none, none, withTCP(tcp(5, 2, 1))))
	for name, test := range map[string]struct {
		events []any
		want   TCP // but Smooth
	}{
		"not counted": {
			events: []any{containers(1000, true, container("a", none, none)), sample(2000, connected("a", nil))},
		},
		"a new container has a total and no rate": {
			events: []any{first},
			want:   TCP{Counted: true, Total: Connections{7, 1}},
		},
		"a difference over the time between": {
			events: []any{first, sample(3000, connected("a", tcp(9, 4, 2)))},
			want:   TCP{Counted: true, Known: true, Total: Connections{13, 2}, Rate: ConnectionRate{3, 0.5}},
		},
		"what a sample leaves out did not change": {
			events: []any{first, sample(2000, connected("a", tcp(9, 4, 2))), sample(3000)},
			want:   TCP{Counted: true, Known: true, Total: Connections{13, 2}},
		},
		"they are counted from now on": {
			events: []any{containers(1000, true, container("a", none, none)), sample(2000, connected("a", tcp(9, 4, 2)))},
			want:   TCP{Counted: true, Total: Connections{13, 2}},
		},
		"they are counted no more": {
			events: []any{first, sample(2000, connected("a", tcp(9, 4, 2))), sample(3000, connected("a", nil))},
		},
		"they began anew": {
			events: []any{first, sample(2000, connected("a", tcp(0, 1, 0)))},
			want:   TCP{Counted: true, Total: Connections{1, 0}},
		},
		"over a reconnect": {
			events: []any{first, sample(2000, connected("a", tcp(9, 4, 2))), containers(6000, true, container("a", none, none, withTCP(tcp(13, 4, 2))))},
			want:   TCP{Counted: true, Known: true, Total: Connections{17, 2}, Rate: ConnectionRate{1, 0}},
		},
		"over a reboot of the host": {
			events: []any{first, sample(2000, connected("a", tcp(9, 4, 2))), containers(500, true, container("a", none, none, withTCP(tcp(13, 4, 2))))},
			want:   TCP{Counted: true, Total: Connections{17, 2}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBook()
			play(b, test.events...)
			got := mustRow(t, b, "a").TCP
			got.Smooth = ConnectionRate{}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Connections count from now on as bytes do.
func TestConnectionsFromZero(t *testing.T) {
	none := counts(0, 0, 0)
	b := NewBook()
	play(b, containers(1000, true, container("a", none, none, withTCP(tcp(5, 2, 1)))))
	b.Zero()
	later := start.Add(time.Hour)
	play(b, sample(2000, connected("a", tcp(6, 2, 3))),
		containers(3000, false, container("b", none, none, withTCP(tcp(1, 1, 1)), func(c *exporter.StreamContainer) { c.StartedAt = &later })))
	for id, want := range map[string]Connections{"a": {1, 2}, "b": {2, 1}} {
		if got := mustRow(t, b, id).TCP.Total; got != want {
			t.Errorf("%s: %+v, want %+v", id, got, want)
		}
	}
	b.Unzero()
	if got := mustRow(t, b, "a").TCP.Total; got != (Connections{8, 3}) {
		t.Errorf("all: %+v", got)
	}
}

// In a pod the bytes of all are those of the owner of the interface, and the connections are each
// container's own. Those of a nested container are in the ones of the container around it.
func TestSumOfConnections(t *testing.T) {
	none := counts(0, 0, 0)
	partOf := func(id string) func(*exporter.StreamContainer) {
		return func(c *exporter.StreamContainer) { c.PartOf = id }
	}
	nestedIn := func(id string) func(*exporter.StreamContainer) {
		return func(c *exporter.StreamContainer) { c.ParentID = id }
	}
	b := NewBook()
	play(b, containers(1000, true,
		container("sandbox", counts(100, 1, 0), none, withTCP(tcp(0, 0, 0))),
		container("app", none, none, partOf("sandbox"), withTCP(tcp(1, 2, 0))),
		container("outer", none, none, withTCP(tcp(10, 0, 4))),
		container("inner", none, none, nestedIn("outer"), withTCP(tcp(10, 0, 4))),
		container("unknown", none, none),
	))
	play(b, sample(2000, connected("app", tcp(2, 3, 0)), connected("outer", tcp(12, 0, 5)), connected("inner", tcp(12, 0, 5))))
	sum := Sum("all", b.Rows(Filter{}, true))
	sum.TCP.Smooth = ConnectionRate{}
	want := TCP{Counted: true, Known: true, Total: Connections{5 + 12, 5}, Rate: ConnectionRate{2 + 2, 1}}
	if diff := cmp.Diff(want, sum.TCP); diff != "" {
		t.Errorf("connections (-want +got):\n%s", diff)
	}
	if sum.Receive.Total.Bytes != 100 {
		t.Errorf("received %d bytes, want 100", sum.Receive.Total.Bytes)
	}
	inner := mustRow(t, b, "inner")
	if alone := Sum("inner", []Row{inner}); alone.TCP.Total != inner.TCP.Total {
		t.Errorf("alone: %+v", alone.TCP)
	}
}
