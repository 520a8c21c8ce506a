// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// What was noted with a slot for connections is there for the next process, also for one that
// does not load the program. Neither kind of slots takes those of the other.
func TestTCPSlots(t *testing.T) {
	need.Root(t)
	path := filepath.Join(nettest.BPFFS(t), "nettally")
	open := func() *Datapath {
		d, err := Load(Options{PinPath: path, MaxSlots: 2})
		must(t, err)
		return d
	}
	d := open()
	must(t, d.LoadTCP())
	slot, err := d.Take(Target{Cgroup: 7, Sockets: true})
	must(t, err)
	note := TCPNote{Before: 3, BeforeKnown: true, ListenDrops: 4, ListenDropsKnown: true}
	must(t, d.NoteTCP(slot, note))
	must(t, d.Close())

	d = open()
	slots := d.Slots()
	if len(slots) != 1 || slots[0].Target != (Target{Cgroup: 7, Sockets: true}) {
		t.Fatalf("slots %+v", slots)
	}
	got, err := d.ReadTCP(slots[0])
	must(t, err)
	if diff := cmp.Diff(TCPCounters{TCPNote: note}, got); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if err := d.BindCgroup(slots[0]); !errors.Is(err, errors.ErrUnsupported) || d.CgroupBound(slots[0]) {
		t.Errorf("bound without the program: %v", err)
	}
	for _, target := range []Target{{Ifindex: 1}, {Cgroup: 7}, {Cgroup: 8, Sockets: true}} {
		if _, err := d.Take(target); err != nil {
			t.Error(err)
		}
	}
	for _, target := range []Target{{Ifindex: 2}, {Cgroup: 9, Sockets: true}} {
		if _, err := d.Take(target); !errors.Is(err, ErrFull) {
			t.Errorf("a third slot for %s: %v", target, err)
		}
	}
	must(t, d.Release(slots[0]))
	if _, err := d.ReadTCP(slots[0]); !errors.Is(err, ErrReleased) {
		t.Errorf("read of what was released: %v", err)
	}
	if err := d.NoteTCP(slots[0], note); !errors.Is(err, ErrReleased) {
		t.Errorf("note with what was released: %v", err)
	}
	again, err := d.Take(Target{Cgroup: 9, Sockets: true})
	must(t, err)
	if got, err := d.ReadTCP(again); err != nil || got != (TCPCounters{}) {
		t.Errorf("a new slot has %+v, %v", got, err)
	}
	must(t, d.Close())
	must(t, Unpin(path))
}

// The numbers of a network namespace are there for the next process, as is what of them is not
// counted.
func TestTCPSlotOfNamespace(t *testing.T) {
	need.Root(t)
	path := filepath.Join(nettest.BPFFS(t), "nettally")
	target := Target{NetNS: 4026532000, Sockets: true}
	note := TCPNote{
		ListenDropsKnown: true,
		Told:             NamespaceTCP{ConnectAttempts: 11, Accepts: 22, Resets: 33, ListenDrops: 44},
		Passed:           NamespaceTCP{ConnectAttempts: 1, Accepts: 22, Resets: 3, ListenDrops: ^uint64(0)},
	}
	d, err := Load(Options{PinPath: path, MaxSlots: 2})
	must(t, err)
	slot, err := d.Take(target)
	must(t, err)
	if got, err := d.ReadTCP(slot); err != nil || got != (TCPCounters{}) {
		t.Errorf("a new slot has %+v, %v", got, err)
	}
	must(t, d.NoteTCP(slot, note))
	must(t, d.Close())
	d, err = Load(Options{PinPath: path, MaxSlots: 2})
	must(t, err)
	slots := d.Slots()
	if len(slots) != 1 || slots[0].Target != target || slots[0].Target.String() != "connections in net:[4026532000]" {
		t.Fatalf("slots %+v", slots)
	}
	want := TCPCounters{ConnectAttempts: 10, Resets: 30, TCPNote: note}
	want.ListenDrops = 45
	got, err := d.ReadTCP(slots[0])
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	must(t, d.Close())
	must(t, Unpin(path))
}
