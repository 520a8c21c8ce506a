// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
)

// recorder is a kernel that notes what is done to its slots, and refuses what it is told to.
type recorder struct {
	*slots
	done   []string
	late   map[uint16]uint64 // packets that are still on their way to a slot
	refuse string
}

func (r *recorder) note(what string) error {
	r.done = append(r.done, what)
	if what == r.refuse {
		return errors.New("refused")
	}
	return nil
}

func (r *recorder) Keep(s bpf.Slot) error {
	return errors.Join(r.note(fmt.Sprint("keep ", s.Index)), r.slots.Keep(s))
}

func (r *recorder) Bind(s bpf.Slot) error  { return r.note(fmt.Sprint("bind ", s.Index)) }
func (r *recorder) swap(slot uint16) error { return r.note(fmt.Sprint("swap ", slot)) }

func (r *recorder) Quiesce() error {
	for slot, packets := range r.late {
		r.counts[slot] += packets
	}
	clear(r.late)
	return r.note("quiesce")
}

func (r *recorder) Read(s bpf.Slot) (rx, tx bpf.Counters, err error) {
	_ = r.note(fmt.Sprint("read ", s.Index))
	return r.slots.Read(s)
}

func (r *recorder) Release(s bpf.Slot) error {
	return errors.Join(r.note(fmt.Sprint("release ", s.Index)), r.slots.Release(s))
}

// succession is an interface of a container that has ended, on slot 1, with 10 packets.
func succession(t *testing.T, hook string) (*Accounts, *recorder) {
	t.Helper()
	a, kernel, _ := newAccounts(t)
	r := &recorder{slots: kernel, late: map[uint16]uint64{}}
	a.Datapath = r
	for _, id := range []string{"first", "second"} {
		a.Start(Container{ID: id})
	}
	slot, _, err := a.Open(OnHost(7), "veth7", hook)
	if err != nil {
		t.Fatal(err)
	}
	kernel.counts[slot] = 10
	assign(t, a, 7, "first", "eth0")
	r.done = nil
	return a, r
}

// The old slot is read when no packet is on its way to it any more, and not released before.
func TestSucceedWaits(t *testing.T) {
	for _, test := range []struct {
		hook   string
		swap   bool
		change string
	}{{"clsact", true, "swap 2"}, {"tcx", false, "bind 2"}} {
		t.Run(fmt.Sprint(test.hook, test.swap), func(t *testing.T) {
			a, r := succession(t, test.hook)
			r.late[1] = 3
			shown := Shown{HostInterface: "veth7", Hook: test.hook, Shadowed: true}
			a.Show(OnHost(7), shown)
			swap := r.swap
			if !test.swap {
				swap = nil
			}
			slot, err := a.Succeed(OnHost(7), swap)
			if slot != 2 || err != nil {
				t.Fatalf("slot %d, %v", slot, err)
			}
			want := []string{"keep 2", test.change, "quiesce", "read 1", "read 1", "release 1"}
			if diff := cmp.Diff(want, r.done); diff != "" {
				t.Errorf("done (-want +got):\n%s", diff)
			}
			assign(t, a, 7, "second", "eth0")
			r.counts[2] = 5
			if i := find(t, a, "second").Interfaces[0]; (Shown{i.HostInterface, i.Hook, i.Shadowed}) != shown {
				t.Errorf("shown as %+v, want %+v", i, shown)
			}
			if first, second := received(t, a, "first"), received(t, a, "second"); first != 13 || second != 5 {
				t.Errorf("%d and %d packets, want 13 and 5", first, second)
			}
			if rx, _ := a.Beside(OnHost(7)); rx.Packets != 13 {
				t.Errorf("%d packets before, want 13", rx.Packets)
			}
		})
	}
}

// Where the programs can't be told the new slot, the old one goes on counting and the new
// one is given back.
func TestSucceedFails(t *testing.T) {
	for _, test := range []struct{ hook, refuse string }{{"clsact", "keep 2"}, {"clsact", "swap 2"}, {"tcx", "bind 2"}} {
		t.Run(test.refuse, func(t *testing.T) {
			a, r := succession(t, test.hook)
			r.refuse = test.refuse
			swap := r.swap
			if test.hook == "tcx" {
				swap = nil
			}
			if slot, err := a.Succeed(OnHost(7), swap); slot != 0 || err == nil {
				t.Errorf("slot %d, %v; want an error and none", slot, err)
			}
			if _, old := r.taken[1]; len(r.taken) != 1 || !old {
				t.Errorf("slots %v, want the old one alone", r.taken)
			}
			r.counts[1] = 12
			if got := received(t, a, "first"); a.Owner(OnHost(7)) != "first" || got != 12 {
				t.Errorf("%d packets of %q, want 12 of first", got, a.Owner(OnHost(7)))
			}
			if slot, err := a.Succeed(OnHost(7), swap); slot != 3 || err != nil {
				t.Errorf("again: slot %d, %v", slot, err)
			}
		})
	}
}
