// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Cells are what the documents and all of these tests take them for, and those of plain
// packets are the same ones.
func TestCells(t *testing.T) {
	want := []int{tcp4, udp4, icmp4, other4, tcp6, udp6, icmp6, other6}
	var got []int
	for _, family := range []int{IPv4, IPv6} {
		for _, protocol := range []int{TCP, UDP, ICMP, Other} {
			got = append(got, Cell(family, protocol))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cells (-want +got):\n%s", diff)
	}
	if NonIP != nonIP || Cells != len(want)+1 || Protocols != 4 {
		t.Errorf("no IP in %d of %d cells, %d protocols", NonIP, Cells, Protocols)
	}
	var row classifierRow
	for i, cell := range []int{tcp4, udp4, tcp6, udp6} {
		row.Plain[i].Bytes, row.Plain[i].Packets = uint64(10*i+10), uint64(i+1)
		if c := plainCell(i); c != cell {
			t.Errorf("plain packets %d are in cell %d, want %d", i, c, cell)
		}
	}
	row.Cells[udp6].Packets, row.Interface.Packets = 100, 100
	wantCounters := Counters{Interface: Volume{100, 110}}
	wantCounters.Cells[tcp4], wantCounters.Cells[udp4] = Volume{10, 1}, Volume{20, 2}
	wantCounters.Cells[tcp6], wantCounters.Cells[udp6] = Volume{30, 3}, Volume{40, 104}
	if diff := cmp.Diff(wantCounters, counters(&row)); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

// Each trouble of the classifiers is told once.
func TestTroubles(t *testing.T) {
	told := slices.Sorted(maps.Values(uncounted))
	told = append(told, slices.Sorted(maps.Values(unclassified))...)
	slices.Sort(told)
	var all []classifierTrouble
	for trouble := classifierTroubleFINE + 1; trouble < classifierTroubleTROUBLES; trouble++ {
		all = append(all, trouble)
	}
	if diff := cmp.Diff(all, told); diff != "" {
		t.Errorf("troubles (-of the classifiers +told):\n%s", diff)
	}
}
