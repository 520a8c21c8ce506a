// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/usage"
)

func TestDatapath(t *testing.T) {
	d := NewDatapath(2)
	first, err := d.Take(usage.OnHost(7))
	if err != nil {
		t.Fatal(err)
	}
	second, err := d.Take(bpf.Target{NetNS: 5})
	if err != nil || second.Generation <= first.Generation {
		t.Fatalf("%+v after %+v, %v", second, first, err)
	}
	if _, err := d.Take(usage.OnHost(8)); !errors.Is(err, bpf.ErrFull) {
		t.Errorf("a third slot of two: %v", err)
	}
	first.Container = "web"
	if err := d.Keep(first); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(second); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]bpf.Slot{first}, d.Slots()); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}

	again, err := d.Take(usage.OnHost(8))
	if err != nil || again.Index != second.Index {
		t.Fatalf("%+v, %v, want index %d", again, err, second.Index)
	}
	if _, _, err := d.Read(second); !errors.Is(err, bpf.ErrReleased) {
		t.Errorf("a slot of another generation is read: %v", err)
	}
	if err := d.Keep(second); !errors.Is(err, bpf.ErrReleased) {
		t.Errorf("a slot of another generation is kept: %v", err)
	}
	d.count(again.Index, bpf.Counters{TCPSYN: 2}, bpf.Counters{TCPSYN: 3})
	d.count(again.Index, bpf.Counters{TCPSYN: 2}, bpf.Counters{Interface: bpf.Volume{Bytes: 9, Packets: 1}})
	rx, tx, err := d.Read(again)
	if err != nil || rx.TCPSYN != 4 || tx.TCPSYN != 3 || tx.Interface != (bpf.Volume{Bytes: 9, Packets: 1}) {
		t.Errorf("read %+v, %+v, %v", rx, tx, err)
	}
}

// What is told of an interface is always what the kernel says as a whole; what of it is
// IPv6 may come later.
func TestGrowth(t *testing.T) {
	var told, six volume
	var sum bpf.Counters
	for _, step := range []struct{ all, six volume }{
		{volume{Bytes: 1000, Packets: 10}, volume{Bytes: 400, Packets: 4}},
		{volume{Bytes: 1000, Packets: 10}, volume{Bytes: 600, Packets: 6}}, // net/dev was read first
		{volume{Bytes: 900, Packets: 9}, volume{Bytes: 600, Packets: 6}},   // the other end, which counts less
		{volume{Bytes: 1100, Packets: 11}, volume{Bytes: 600, Packets: 6}},
		{volume{Bytes: 2000, Packets: 20}, volume{Bytes: 700, Packets: 7}},
	} {
		add(&sum, growth(&told, step.all, &six, step.six))
		if all := sum.Cells[cellIPv6].Bytes + sum.Cells[cellElse].Bytes; all != sum.Interface.Bytes {
			t.Errorf("%d bytes in cells, %d on the interface", all, sum.Interface.Bytes)
		}
	}
	want := bpf.Counters{Interface: bpf.Volume{Bytes: 2000, Packets: 20}}
	want.Cells[cellIPv6] = bpf.Volume{Bytes: 700, Packets: 7}
	want.Cells[cellElse] = bpf.Volume{Bytes: 1300, Packets: 13}
	if diff := cmp.Diff(want, sum); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
