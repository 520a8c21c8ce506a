// SPDX-License-Identifier: Apache-2.0

package view

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
)

// direction is one direction of a container in a listing.
func direction(bytes, packets, syn, seeded uint64) exporter.Counts {
	return exporter.Counts{Volume: exporter.Volume{Bytes: bytes, Packets: packets}, TCPSYN: syn, SeededBytes: seeded, SeededPackets: seeded / 10}
}

// A listing gives what a stream would: the numbers that count, and the network in words.
func TestListed(t *testing.T) {
	hex := strings.Repeat("3f", 32)
	ip := &exporter.IP{Receive: exporter.IPCounts{Volume: exporter.Volume{Bytes: 7, Packets: 8}, TCPSYN: 9}}
	found := &exporter.Containers{TakenAt: start, BootMS: 5000, Source: "proc", Containers: []exporter.Container{
		{ID: "a", Name: "web", NetworkMode: "bridge", CountedBy: "interfaces", IP: ip, Receive: direction(100, 10, 1, 50), Transmit: direction(200, 20, 2, 60)},
		{ID: "b", Name: "side", NetworkMode: "container:a", CountedBy: "cgroup", SharesWith: "a", PartOf: "a", IP: ip, Receive: direction(1, 1, 1, 1)},
		{ID: "c", NetworkMode: "container:" + hex},
		{ID: "d", NetworkMode: "mynet", OnHost: true},
		{ID: "e", SharesWith: hex},
		{ID: hex, Name: hex, NetworkMode: "none"},
	}}
	e := Listed(found)
	if !e.Replace || e.Source != "proc" || e.BootMS != 5000 || !e.TakenAt.Equal(start) {
		t.Errorf("got %+v", e)
	}
	var networks []string
	for _, c := range e.Containers {
		networks = append(networks, c.Network)
	}
	want := []string{"bridge", "container:web", "container:3f3f3f3f3f3f", "host", "container:3f3f3f3f3f3f", "none"}
	if diff := cmp.Diff(want, networks); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]exporter.StreamCounts{
		seeded(counts(100, 10, 1), 50, 5), seeded(counts(200, 20, 2), 60, 6), counts(7, 8, 9), counts(0, 0, 0),
	}, []exporter.StreamCounts{e.Containers[0].Receive, e.Containers[0].Transmit, e.Containers[1].Receive, e.Containers[1].Transmit}); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
	if c := e.Containers[1]; c.PartOf != "a" || c.CountedBy != "cgroup" {
		t.Errorf("a part of another: %+v", c)
	}
}

func TestNames(t *testing.T) {
	c := exporter.StreamContainer{ID: "abcdef", Name: "web", Namespace: "prod", Pod: "web-1", State: "running"}
	ended := c
	ended.State = stopped
	for _, test := range []struct {
		word        string
		fits, ended int
	}{
		{"abcdef", 6, 6}, {"web", 5, 4}, {"prod/web-1/web", 3, 3}, {"w*", 2, 2}, {"prod/*", 2, 2}, {"*", 2, 2}, {"abc[d]*", 2, 2}, {"abc", 1, 1},
		{"", 0, 0}, {"we", 0, 0}, {"web-1", 0, 0}, {"bcd", 0, 0}, {"x*", 0, 0}, {"[", 0, 0}, {"abcdefg", 0, 0}, {"WEB", 0, 0},
	} {
		if got, gotEnded := Names(test.word, &c), Names(test.word, &ended); got != test.fits || gotEnded != test.ended {
			t.Errorf("%q: %d, and %d of one that ended, want %d and %d", test.word, got, gotEnded, test.fits, test.ended)
		}
	}
}
