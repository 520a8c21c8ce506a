// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"math"
	"testing"

	"github.com/nettally/nettally/bpf"
)

// web is accounts with a container and an interface of it.
func web(t *testing.T) (*Accounts, *slots) {
	t.Helper()
	a, kernel, _ := newAccounts(t)
	a.Start(Container{ID: "web"})
	open(t, a, 7, "veth7")
	assign(t, a, 7, "web", "eth0")
	return a, kernel
}

// loses says that the kernel has dropped so many packets at the container's end.
func loses(t *testing.T, a *Accounts, target Target, received, transmitted uint64) {
	t.Helper()
	if err := a.Lose(target, Loss{Dropped: received}, Loss{Dropped: transmitted}); err != nil {
		t.Fatal(err)
	}
}

func lostBy(t *testing.T, a *Accounts, id string) Lost {
	t.Helper()
	return find(t, a, id).Lost
}

// What nobody has read is not 0.
func TestLostUnknown(t *testing.T) {
	a, _ := web(t)
	if lost := lostBy(t, a, "web"); lost != (Lost{}) {
		t.Errorf("nothing was read, and %+v", lost)
	}
	loses(t, a, OnHost(7), 0, 0)
	if lost := lostBy(t, a, "web"); lost != (Lost{Known: true}) {
		t.Errorf("nothing was lost, and %+v", lost)
	}
	open(t, a, 8, "veth8")
	assign(t, a, 8, "web", "eth1")
	loses(t, a, OnHost(7), 3, 4)
	if lost := lostBy(t, a, "web"); lost != (Lost{}) {
		t.Errorf("of eth1 nothing is known, and of both %+v", lost)
	}
	if lost := find(t, a, "web").Interfaces[0].Lost; lost != (Lost{Known: true, Receive: Loss{Dropped: 3}, Transmit: Loss{Dropped: 4}}) {
		t.Errorf("of eth0 %+v", lost)
	}
	loses(t, a, OnHost(8), 1, 0)
	if lost := lostBy(t, a, "web"); !lost.Known || lost.Receive.Dropped != 4 {
		t.Errorf("of both %+v", lost)
	}
}

// An interface without an owner may have been counted before, for whoever owns it.
func TestLostUnowned(t *testing.T) {
	a, _ := web(t)
	loses(t, a, OnHost(7), 5, 6)
	closeInterface(t, a, 7) // as by detach
	open(t, a, 7, "veth7")
	loses(t, a, OnHost(7), 8, 6)
	assign(t, a, 7, "web", "eth0")
	loses(t, a, OnHost(7), 8, 6)
	if lost := lostBy(t, a, "web"); lost.Receive.Dropped != 8 || lost.Transmit.Dropped != 6 {
		t.Errorf("lost %+v, want 8 and 6", lost)
	}
}

// Another interface of the same number has counters of its own.
func TestLostOfAnother(t *testing.T) {
	a, _ := web(t)
	loses(t, a, OnHost(7), 5, 6)
	closeInterface(t, a, 7)
	open(t, a, 7, "veth7")
	assign(t, a, 7, "web", "eth0")
	loses(t, a, OnHost(7), 2, 0)
	if lost := lostBy(t, a, "web"); lost.Receive.Dropped != 7 || lost.Transmit.Dropped != 6 {
		t.Errorf("lost %+v, want 7 and 6", lost)
	}
}

// What was said while an interface was counted at the host's end is not said again inside, nor
// by a later process.
func TestLostMoved(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	open(t, a, 7, "veth7")
	assign(t, a, 7, "web", "eth0")
	loses(t, a, OnHost(7), 5, 6)
	said := a.LostMark(OnHost(7))
	closeInterface(t, a, 7)
	inside := Target{NetNS: 4, Ifindex: 2}
	if _, _, err := a.Open(inside, "", "clsact"); err != nil {
		t.Fatal(err)
	}
	if err := a.FollowLost(inside, said); err != nil {
		t.Fatal(err)
	}
	if err := a.Assign(inside, "web", "eth0"); err != nil {
		t.Fatal(err)
	}
	loses(t, a, inside, 15, 6)
	if lost := lostBy(t, a, "web"); lost.Receive.Dropped != 15 || lost.Transmit.Dropped != 6 {
		t.Errorf("lost %+v, want 15 and 6", lost)
	}
	onDisk := disk{}
	onDisk.write(t, a.Pending(true))
	a = kept(t, kernel, clock)
	a.Restore(onDisk.read(t))
	for _, l := range a.Leftovers() {
		if l.Target == inside {
			a.Adopt(l, "", "clsact")
		} else if err := a.Retire(l); err != nil {
			t.Fatal(err)
		}
	}
	loses(t, a, inside, 16, 7)
	if lost := lostBy(t, a, "web"); lost.Receive.Dropped != 16 || lost.Transmit.Dropped != 7 {
		t.Errorf("after a restart lost %+v, want 16 and 7", lost)
	}
}

// What a shaper drops is followed over others that take its place, and from when we came.
func TestUndelivered(t *testing.T) {
	a, _ := web(t)
	for _, step := range []struct {
		now  HostLoss
		want uint64
	}{
		{HostLoss{Qdisc: 1, QdiscDropped: 100, Dropped: 5}, 0},
		{HostLoss{Qdisc: 1, QdiscDropped: 130, Dropped: 7}, 32},
		{HostLoss{Qdisc: 2, QdiscDropped: 200, Dropped: 7}, 232},
		{HostLoss{Qdisc: 2, QdiscDropped: 10, Dropped: 7}, 242}, // another by the same handle
		{HostLoss{}, 242 + math.MaxUint32 - 6},                  // none, and the interface's own number went on from 0
	} {
		if err := a.Undeliver(OnHost(7), step.now, false); err != nil {
			t.Fatal(err)
		}
		if lost := lostBy(t, a, "web"); !lost.Followed || lost.Undelivered != step.want {
			t.Errorf("at %+v %+v, want %d", step.now, lost, step.want)
		}
	}
}

// Whoever has an interface next has lost what is lost from then on.
func TestLostSucceeds(t *testing.T) {
	a, _ := web(t)
	a.Start(Container{ID: "next"})
	loses(t, a, OnHost(7), 5, 6)
	if err := a.Undeliver(OnHost(7), HostLoss{Dropped: 9}, true); err != nil {
		t.Fatal(err)
	}
	succeed(t, a, OnHost(7), "next", "eth0")
	loses(t, a, OnHost(7), 7, 6)
	if err := a.Undeliver(OnHost(7), HostLoss{Dropped: 11}, false); err != nil {
		t.Fatal(err)
	}
	first, next := lostBy(t, a, "web"), lostBy(t, a, "next")
	if first.Receive.Dropped != 5 || first.Undelivered != 9 || next.Receive.Dropped != 2 || next.Transmit.Dropped != 0 || next.Undelivered != 2 {
		t.Errorf("the first %+v, the next %+v", first, next)
	}
}

// A note keeps no numbers that are too large for it; the ledger does.
func TestLostTooLargeForNote(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	slot := open(t, a, 7, "veth7")
	assign(t, a, 7, "web", "eth0")
	const many = math.MaxUint32 + 10
	loses(t, a, OnHost(7), many, 0)
	onDisk := disk{}
	onDisk.write(t, a.Pending(true))
	loses(t, a, OnHost(7), many+5, 0)
	noted := kernel.taken[slot]
	noted.Lost = bpf.Lost{Known: true, ReceiveDropped: 14}
	kernel.taken[slot] = noted
	a = kept(t, kernel, clock)
	a.Restore(onDisk.read(t))
	for _, l := range a.Leftovers() {
		if err := a.Retire(l); err != nil {
			t.Fatal(err)
		}
	}
	if lost := lostBy(t, a, "web"); lost.Receive.Dropped != many+5 {
		t.Errorf("lost %+v, want %d", lost, uint64(many+5))
	}
}
