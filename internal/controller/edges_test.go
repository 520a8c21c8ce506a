// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// An interface that moves between hooks has each packet counted once, by the order in which
// it is done; and if a step fails, by what is left undone.
func TestMoveOrder(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.veth(7, 3)
	k.want("own qdisc 7 true", "attach clsact 7 slot 1")
	k.mode, k.fails["attach tcx 7"] = ModeTCX, errInjected
	k.Relist()
	k.finish()
	k.want("bind 7 slot 1", "handover 7 true", "attach tcx 7", "handover 7 false")
	clear(k.fails)
	k.Relist()
	k.finish()
	k.want("bind 7 slot 1", "handover 7 true", "attach tcx 7", "quiesce", "detach clsact 7 qdisc true", "own qdisc 7 false", "quiesce", "handover 7 false")
	k.mode = ModeClsact
	k.Relist()
	k.finish()
	k.want("handover 7 true", "own qdisc 7 true", "attach clsact 7 slot 1", "quiesce", "detach tcx 7", "quiesce", "handover 7 false")

	k.mode, k.fails["detach clsact 7 qdisc true"] = ModeTCX, errInjected
	k.Relist()
	k.finish()
	k.want("bind 7 slot 1", "handover 7 true", "attach tcx 7", "quiesce", "detach clsact 7 qdisc true")
	if s := k.slots[1]; !s.Handover {
		t.Error("both hooks are on, and each counts")
	}
	clear(k.fails)
	k.Relist()
	k.finish()
	if s := k.slots[1]; s.Handover || k.filters[7] != 0 {
		t.Errorf("hand-over %t, filters %v", s.Handover, k.filters)
	}
}

// A process may be killed right after it made a qdisc: that it is ours has been noted by then,
// and is until the qdisc is removed. Where it is not made in the end, the note is taken back.
func TestQdiscIsNotedFirst(t *testing.T) {
	for name, mode := range map[string]Mode{"first": ModeClsact, "back from tcx": ModeTCX} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			k.Adopt(context.Background())
			k.mode = mode
			if mode == ModeTCX {
				k.veth(7, 3)
				k.finish()
				k.mode = ModeClsact
			}
			k.killed("attach clsact 7 slot 1", func() { k.veth(7, 3); k.Relist(); k.finish() })
			k.restart()
			k.killed("detach clsact 7 qdisc true", func() { k.Adopt(context.Background()) })
			k.restart()
			k.Adopt(context.Background())
			if !slices.Contains(k.calls, "detach clsact 7 qdisc true") {
				t.Errorf("the qdisc stays: %v", k.calls)
			}
		})
	}
	k := newKernel(t)
	k.Adopt(context.Background())
	k.fails["attach clsact 7 slot 1"] = errInjected
	k.veth(7, 3)
	k.want("own qdisc 7 true", "attach clsact 7 slot 1", "own qdisc 7 false")
}

// A container may be gone with its interface right after our programs were put on: what it had
// sent and received before is its own.
func TestGoneBeforeSeeding(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.passes(7, false, 5, 6)
	k.vanishes = true
	k.veth(7, 3)
	k.count(k.container("a", 7, 3))
	k.Link(watcher.HostVethGone{Index: 7})
	if total, seeded := k.total("a"); total != [2]uint64{5, 6} || seeded != total {
		t.Errorf("%v packets, %v of them seeded; the kernel had 5 and 6", total, seeded)
	}
}

// Where it took long to put our programs on, what passed meanwhile is seeded as well, and what they
// have seen by then is not.
func TestGoneAfterWaiting(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.passes(7, false, 5, 6)
	k.slowly = func() {
		k.passes(7, false, 20, 30)
		k.passes(7, true, 3, 4)
		k.glance = new(k.counters[7])
	}
	k.vanishes = true
	k.veth(7, 3)
	k.count(k.container("a", 7, 3))
	k.Link(watcher.HostVethGone{Index: 7})
	if total, seeded := k.total("a"); total != [2]uint64{28, 40} || seeded != [2]uint64{25, 36} {
		t.Errorf("%v packets, %v of them seeded; the kernel had 28 and 40, and we saw 3 and 4 of them", total, seeded)
	}
}

// What passed before the first hook was on is seeded, also where that one fails at first.
func TestFirstHookFails(t *testing.T) {
	for _, mode := range []Mode{ModeClsact, ModeTCX} {
		t.Run(string(mode), func(t *testing.T) {
			k := newKernel(t)
			k.Adopt(context.Background())
			k.mode = mode
			k.fails["attach clsact 7 slot 1"], k.fails["attach tcx 7"] = errInjected, errInjected
			k.passes(7, false, 5, 6)
			k.veth(7, 3)
			k.finish()
			if mode == ModeClsact && len(k.slots) != 0 {
				t.Errorf("slots %v stay taken for nothing", k.slots)
			}
			clear(k.fails)
			k.passes(7, false, 1, 1)
			k.Relist()
			k.finish()
			m := k.container("a", 7, 3)
			if o := k.count(m); o.Counted != 1 {
				t.Errorf("outcome %+v", o)
			}
			if total, seeded := k.total("a"); total != [2]uint64{6, 7} || seeded != total {
				t.Errorf("%v packets, %v of them seeded; the kernel has 6 and 7", total, seeded)
			}
		})
	}
}

// A busy interface goes to tcx without clsact. If that fails, its slot is given back, so that
// the next attempt seeds what has passed.
func TestFirstTCXFails(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.Controller.veths.busy = map[int]bool{7: true}
	k.fails["attach tcx 7"] = errInjected
	k.passes(7, false, 5, 6)
	k.veth(7, 3)
	k.finish()
	if len(k.slots) != 0 {
		t.Errorf("slots %v stay taken", k.slots)
	}
	clear(k.fails)
	k.Relist()
	k.finish()
	k.count(k.container("a", 7, 3))
	if total, seeded := k.total("a"); total != [2]uint64{5, 6} || seeded != total {
		t.Errorf("%v packets, %v of them seeded; the kernel has 5 and 6", total, seeded)
	}
}

// A tcx link outlives its interface by its pin.
func TestGoneFromTCX(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.mode = ModeTCX
	k.veth(7, 3)
	k.finish()
	k.calls = nil
	k.Link(watcher.HostVethGone{Index: 7})
	k.finish()
	k.want("detach tcx 7")
	if len(k.slots) != 0 {
		t.Errorf("slots %v stay taken", k.slots)
	}
}

// A process may have ended while it moved an interface, or after others took its place.
func TestAdoptEdges(t *testing.T) {
	left := func(k *kernel, handover bool) {
		k.counters[7] = watcher.LinkCounters{}
		k.slots[1] = bpf.Slot{Index: 1, Generation: 1, Target: usage.OnHost(7), Note: bpf.Note{Handover: handover, OwnQdisc: true}}
		k.rows[1] = [2]bpf.Counters{{Interface: bpf.Volume{Packets: 9}}, {}}
	}
	t.Run("in mid-move", func(t *testing.T) {
		k := newKernel(t)
		left(k, true)
		k.tcx[7], k.filters[7] = true, 1
		k.Adopt(context.Background())
		k.want("detach clsact 7 qdisc true", "own qdisc 7 false", "quiesce", "handover 7 false")
	})
	t.Run("before tcx was on", func(t *testing.T) {
		k := newKernel(t)
		left(k, true)
		k.filters[7] = 1
		k.Adopt(context.Background())
		k.want("detach tcx 7", "quiesce", "handover 7 false")
	})
	t.Run("nothing was under way", func(t *testing.T) {
		k := newKernel(t)
		left(k, false)
		k.filters[7] = 1
		k.Adopt(context.Background())
		k.want()
		if _, ok := k.Controller.counted(usage.OnHost(7)); !ok {
			t.Error("it is not adopted")
		}
	})
	t.Run("the filters are another slot's", func(t *testing.T) {
		k := newKernel(t)
		left(k, false)
		k.filters[7] = 2
		k.Adopt(context.Background())
		k.want("detach clsact 7 qdisc true", "detach tcx 7")
		if _, ok := k.Controller.counted(usage.OnHost(7)); ok || len(k.slots) != 0 {
			t.Errorf("a slot that nothing counts on is adopted: %v", k.slots)
		}
	})
}

// A cgroup whose programs could not be bound to its slot has neither.
func TestCgroupNotBound(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.fails["bind cgroup 9"] = errInjected
	m := k.container("a", 7, 3) // whose cgroup is number 9
	k.want("bind cgroup 9", "attach cgroup 9", "bind cgroup 9", "detach cgroup 9")
	if g := k.groups.known[m.Key]; g.attached() || k.cgroups[9] {
		t.Errorf("it is counted by its cgroup: %v", k.cgroups)
	}
	clear(k.fails)
	k.Update(m)
	k.want("bind cgroup 9", "attach cgroup 9", "bind cgroup 9")
	if g := k.groups.known[m.Key]; g.Cgroup != 9 || !g.attached() {
		t.Error("it is not counted by its cgroup when that can be done")
	}
	m.Ended = true
	k.Update(m)
	k.want("detach cgroup 9")
	if len(k.members)+len(k.groups.known) != 0 {
		t.Error("it is known still")
	}
}

// A directory that a user makes takes no slot before it has a process; root's has one at once.
func TestEmptyCgroupOfUser(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	m := k.container("1000~a", 7, 3)
	k.container("b", 8, 4)
	k.want("bind cgroup 9", "attach cgroup 9", "bind cgroup 9") // b's
	if len(k.slots) != 1 {
		t.Errorf("slots %v, want root's container's", k.slots)
	}
	k.processes = map[string][]int{"1000~a": {1}}
	k.Update(m)
	k.want("bind cgroup 14", "attach cgroup 14", "bind cgroup 14")

	// What is told of thousands of directories costs little: each is looked into in its turn.
	k.processes["1000~cc"] = []int{2}
	late := k.container("1000~cc", 9, 5)
	k.want()
	k.Update(late)
	k.want("bind cgroup 15", "attach cgroup 15", "bind cgroup 15")
}

// An interface that a list shows before its event is dealt with is one that had to wait, too.
func TestAttachTimeOfHeldUpEvent(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	old := watcher.HostVeth{Index: 7, Name: "veth7", PeerIndex: 2, NetNSID: 3}
	k.veths = append(k.veths, old)
	k.Relist()
	k.Reconcile(nil)
	seen := &recorder{Histogram: k.metrics.attach}
	k.metrics.attach = seen
	held := watcher.HostVeth{Index: 8, Name: "veth8", PeerIndex: 2, NetNSID: 4}
	told := time.Now().Add(-time.Minute)
	k.veths = append(k.veths, held)
	k.Relist()
	for range 2 { // once is enough
		k.Link(watcher.HostVethSeen{HostVeth: held, SeenAt: told})
		k.Link(watcher.HostVethSeen{HostVeth: old, SeenAt: told}) // which was there before us
	}
	if took := seen.sorted(); len(took) != 1 || took[0] < 60 {
		t.Errorf("attaching took %v seconds, want a minute, once", took)
	}
}

// Programs on cgroups of which no container is known are taken off, but not those of a
// container that may be there and can't be seen, and not while that is not known.
func TestStrayCgroups(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.cgroups[50] = true
	k.Reconcile(nil)
	k.want()
	k.Reconcile(func(roster.Key) bool { return false })
	k.want("detach cgroup 50")
	m := k.container("b", 7, 3)
	k.calls = nil
	delete(k.members, m.Key) // as after a restart
	delete(k.groups.known, m.Key)
	k.Reconcile(func(key roster.Key) bool { return key == m.Key })
	k.want()
	k.Reconcile(func(roster.Key) bool { return false })
	k.want("detach cgroup 9")
}

// An interface inside of a namespace has its last counts for the owner, also if its name was
// still to come when the namespace ended.
func TestNamespaceGoneOwns(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	m := k.container("a", 0, 3)
	k.count(m)
	k.insideOn(1003, 3)
	k.Link(watcher.NamespaceGone{NetNSID: 3})
	if total, _ := k.total("a"); total != [2]uint64{4, 0} || len(k.uplinks.known) != 0 {
		t.Errorf("the owner has %v packets of 4, and %d interfaces are counted", total, len(k.uplinks.known))
	}
}

// insideOn makes an interface counted in a namespace that has received 4 packets.
func (k *kernel) insideOn(netns uint64, nsid int) {
	k.t.Helper()
	target := usage.Target{Ifindex: 2, NetNS: netns}
	slot, _, err := k.Accounts.Open(target, "", HookClsact)
	if err != nil {
		k.t.Fatal(err)
	}
	k.rows[slot] = [2]bpf.Counters{{Interface: bpf.Volume{Packets: 4}}, {}}
	k.uplinks.known[target] = &uplink{link: "macvlan", nsid: nsid, attachment: attachment{
		Target: target, state: counting, hook: HookClsact, name: "eth0", slot: slot, since: time.Now(),
	}}
}

// The host gives the number of a namespace that has ended to another one: what was counted in
// the first has ended with it.
func TestReusedNamespaceNumber(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.insideOn(555, 3)
	k.there[3] = true
	k.Reconcile(nil)
	if len(k.uplinks.known) != 1 {
		t.Error("a namespace without a container is taken for gone, though its number is there")
	}
	k.count(k.container("other", 0, 3)) // in namespace 1003
	k.Reconcile(nil)
	if len(k.uplinks.known) != 0 {
		t.Error("its number is another namespace's, and it is counted still")
	}
}

// Whoever comes after an owner that has ended is counted on another slot; the first keeps
// what it has.
func TestSucceed(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.veth(7, 3)
	k.count(k.container("a", 7, 3))
	k.passes(7, true, 10, 20)
	b := k.container("b", 7, 3)
	at, err := k.Locate(b)
	if err != nil || !slices.Contains(at.CountedFor, roster.Key{ID: "a"}) {
		t.Fatalf("counted for %v: %v", at.CountedFor, err)
	}
	if o := k.Count(b, at); o.Others != 1 || o.Counted != 0 {
		t.Errorf("outcome %+v", o)
	}
	k.calls = nil
	if err := k.Succeed(b, []roster.Key{{ID: "x"}}, at); err != nil {
		t.Error(err)
	}
	k.want()
	if err := k.Succeed(b, []roster.Key{{ID: "a"}}, at); err != nil {
		t.Error(err)
	}
	k.want("own qdisc 7 true", "attach clsact 7 slot 3", "quiesce")
	k.passes(7, true, 1, 1)
	if o := k.Count(b, at); o.Counted != 1 {
		t.Errorf("outcome %+v", o)
	}
	for id, want := range map[string][2]uint64{"a": {10, 20}, "b": {1, 1}} {
		if total, _ := k.total(id); total != want {
			t.Errorf("%s has %v, want %v", id, total, want)
		}
	}
	// Not while it is on its way between hooks: its programs count on the old slot.
	k.Controller.veths.known[7].state = moving
	if err := k.Succeed(k.container("c", 7, 3), []roster.Key{{ID: "b"}}, at); err == nil {
		t.Error("an interface that is moving was given another slot")
	}
}

// Packets that pass unseen shadow an interface until some are seen again, and are mended
// then, once.
func TestShadowed(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.mode = ModeTCX
	k.veth(7, 3)
	k.finish()
	k.count(k.container("a", 7, 3))
	k.check()
	k.passes(7, true, 10, 10)
	k.check()
	k.passes(7, false, 3, 4)
	k.check()
	if v := k.Controller.veths.known[7]; !v.unseen() {
		t.Error("packets passed unseen, and it is not shadowed")
	}
	k.check()
	if v := k.Controller.veths.known[7]; !v.unseen() {
		t.Error("nothing was seen since, and it is not shadowed any more")
	}
	k.passes(7, true, 5, 5)
	k.check()
	if v := k.Controller.veths.known[7]; v.unseen() {
		t.Error("packets are seen again, and it is shadowed")
	}
	k.check()
	if total, seeded := k.total("a"); total != [2]uint64{18, 19} || seeded != [2]uint64{} || k.mendedOf("a") != [2]uint64{3, 4} {
		t.Errorf("%v packets, %v of them seeded and %v mended; the kernel has 18 and 19", total, seeded, k.mendedOf("a"))
	}
}

// Packets that go past every hook, as those of a sender with PACKET_QDISC_BYPASS, are in the
// totals while that lasts, and the interface is shadowed until some are seen.
func TestPastEveryHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		k.Adopt(context.Background())
		k.passes(7, false, 5, 6)
		k.veth(7, 3)
		k.count(k.container("a", 7, 3))
		k.check()
		v := k.Controller.veths.known[7]
		for round := range 10 {
			k.passes(7, false, 3, 0)
			time.Sleep(2 * lastMend)
			k.check()
			k.finish()
			k.check()
			if v.state != shadowed {
				t.Fatalf("round %d: it is %v, and no packet was seen", round, v.state)
			}
			kernel := k.counters[7]
			if total, seeded := k.total("a"); round > 0 && (total[0] < kernel.ReceivePackets-3 || seeded != [2]uint64{5, 6}) {
				t.Errorf("round %d: %v packets, %v of them seeded; the kernel has %+v", round, total, seeded, kernel)
			}
		}
		if v.hook != HookTCX {
			t.Errorf("it is on %s", v.hook)
		}
		for range 3 {
			k.passes(7, true, 10, 10)
			k.check()
		}
		kernel := k.counters[7]
		if total, _ := k.total("a"); v.state != counting || total != [2]uint64{kernel.ReceivePackets, kernel.TransmitPackets} {
			t.Errorf("%v, %v packets, %v of them mended; the kernel has %+v", v.state, total, k.mendedOf("a"), kernel)
		}
	})
}

// A sender hides packets that go past our programs among many that do not. They are too few to
// shadow an interface, and are mended all the same.
func TestHiddenAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		k.Adopt(context.Background())
		k.mode = ModeClsact
		k.passes(7, false, 5, 6)
		k.veth(7, 3)
		k.count(k.container("a", 7, 3))
		k.check()
		for range 100 {
			k.passes(7, true, 1000, 1000)
			k.passes(7, false, 90, 0)
			time.Sleep(checkEvery)
			k.check()
		}
		for range 15 { // the last ones
			time.Sleep(checkEvery)
			k.check()
		}
		kernel := k.counters[7]
		total, seeded := k.total("a")
		if want := [2]uint64{kernel.ReceivePackets, kernel.TransmitPackets}; total != want || seeded != [2]uint64{5, 6} || k.mendedOf("a") != [2]uint64{9000, 0} {
			t.Errorf("%v packets, %v of them seeded and %v mended; want %v", total, seeded, k.mendedOf("a"), want)
		}
		if v := k.Controller.veths.known[7]; v.state != counting {
			t.Errorf("it is %v", v.state)
		}
	})
}

// Whoever takes our programs off in a loop changes no total: what passed meanwhile is mended
// each time, and what passed before we came stays seeded.
func TestRemoved(t *testing.T) {
	for _, mode := range []Mode{ModeClsact, ModeTCX} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(t)
				k.Adopt(context.Background())
				k.mode = mode
				k.passes(7, false, 5, 6)
				k.veth(7, 3)
				k.finish()
				m := k.container("a", 7, 3)
				k.count(m)
				k.check()
				for round := range uint64(5) {
					k.passes(7, true, 10, 10)
					k.check()
					delete(k.filters, 7)
					delete(k.tcx, 7)
					k.passes(7, false, 3, 4)
					time.Sleep(2 * lastMend)
					k.check()
					k.finish()
					k.check()
					if _, ok := k.filters[7]; !ok && !k.tcx[7] {
						t.Fatal("our programs are not put back")
					}
					total, seeded := k.total("a")
					if mended := k.mendedOf("a"); total != [2]uint64{5 + 13*(round+1), 6 + 14*(round+1)} ||
						seeded != [2]uint64{5, 6} || mended != [2]uint64{3 * (round + 1), 4 * (round + 1)} {
						t.Errorf("round %d: %v packets, %v of them seeded and %v mended; the kernel has %+v", round, total, seeded, mended, k.counters[7])
					}
				}
				k.restart() // the slot has it
				k.Adopt(context.Background())
				k.count(k.container("a", 7, 3))
				if total, seeded := k.total("a"); total != [2]uint64{70, 76} || seeded != [2]uint64{5, 6} || k.mendedOf("a") != [2]uint64{15, 20} {
					t.Errorf("after a restart %v packets, %v of them seeded and %v mended", total, seeded, k.mendedOf("a"))
				}
			})
		})
	}
}

// Our programs may be off again before a gap is measured: what passes meanwhile is found with
// the next one.
func TestRemovedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		k.Adopt(context.Background())
		k.mode = ModeClsact
		k.passes(7, false, 0, 0)
		k.veth(7, 3)
		k.count(k.container("a", 7, 3))
		k.check()
		for range 3 {
			delete(k.filters, 7)
			k.passes(7, false, 30, 40)
			k.flow = func() { k.passes(7, false, 1, 1) }
			time.Sleep(2 * lastMend)
			k.check()
			k.flow = nil
		}
		k.passes(7, true, 10, 10)
		for range 3 {
			k.check()
		}
		delete(k.filters, 7)
		k.passes(7, false, 30, 40)
		time.Sleep(2 * lastMend)
		k.check()
		kernel := k.counters[7]
		if total, _ := k.total("a"); total != [2]uint64{kernel.ReceivePackets, kernel.TransmitPackets} {
			t.Errorf("%v packets, %v of them mended; the kernel has %+v", total, k.mendedOf("a"), kernel)
		}
	})
}

// What a qdisc behind our hook drops, the kernel's counter never has. That hides nothing of what
// passes unseen later.
func TestDropsHideNoGap(t *testing.T) {
	for _, mode := range []Mode{ModeClsact, ModeTCX} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(t)
				k.Adopt(context.Background())
				k.mode = mode
				k.passes(7, false, 5, 6)
				k.veth(7, 3)
				k.finish()
				k.count(k.container("a", 7, 3))
				k.check()
				dropped := uint64(0)
				for round := range uint64(4) {
					k.passes(7, true, 10, 10)
					k.sees(7, 1000, 0)
					dropped += 1000
					for range 2 { // nothing flows: what is in no counter by then has been dropped
						k.check()
						time.Sleep(checkEvery)
					}
					k.check()
					delete(k.filters, 7)
					delete(k.tcx, 7)
					k.passes(7, false, 300, 400)
					time.Sleep(2 * lastMend)
					k.check()
					k.finish()
					for range 3 {
						k.check()
					}
					kernel := k.counters[7]
					total, seeded := k.total("a")
					if want := [2]uint64{kernel.ReceivePackets + dropped, kernel.TransmitPackets}; total != want || seeded != [2]uint64{5, 6} {
						t.Errorf("round %d: %v packets, %v of them seeded and %v mended; want %v", round, total, seeded, k.mendedOf("a"), want)
					}
				}
			})
		})
	}
}

// What is open of a gap is settled as what the gap is: here three packets were in flight when
// our programs were put back.
func TestMendInFlow(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.mode = ModeTCX
	k.passes(7, false, 100, 0)
	k.veth(7, 3)
	k.finish()
	k.count(k.container("a", 7, 3))
	k.check()
	k.passes(7, true, 10, 0)
	k.check()
	k.passes(7, false, 1000, 0)
	k.check()
	k.sees(7, 3, 0) // before the kernel does
	k.flow = func() { k.passes(7, false, 10, 0); k.sees(7, 10, 0) }
	k.passes(7, true, 10, 0)
	k.check()
	k.flow = nil
	k.passes(7, false, 3, 0)
	for range 3 {
		k.passes(7, true, 1, 0)
		k.check()
	}
	k.check()
	total, seeded := k.total("a")
	if mended := k.mendedOf("a"); total[0] != k.counters[7].ReceivePackets || seeded[0] != 100 || mended[0] != 1000 {
		t.Errorf("%d packets, %d of them seeded and %d mended; the kernel has %d", total[0], seeded[0], mended[0], k.counters[7].ReceivePackets)
	}
}

// Where packets flow all the while, no reading of the kernel's counters is quiet: at an egress
// hook some packets are always counted by us and not yet by the kernel. They are not missed in
// the end, and nothing that passes unseen later is taken for them.
func TestSeedInFlow(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.Controller.veths.busy = map[int]bool{7: true}
	k.passes(7, false, 1000, 0)
	inFlight := func() {
		k.passes(7, false, 8, 0)
		k.sees(7, 10, 0) // two of them the kernel has not yet
	}
	k.veth(7, 3)
	k.flow = func() {
		inFlight()
		k.flow = func() { k.passes(7, false, 10, 0); k.sees(7, 10, 0) }
	}
	k.finish()
	k.count(k.container("a", 7, 3))
	k.check()
	if total, _ := k.total("a"); total[0] >= k.counters[7].ReceivePackets+2 {
		t.Errorf("%d packets, and the kernel has %d and two in flight", total[0], k.counters[7].ReceivePackets)
	}
	k.flow = nil
	k.passes(7, false, 2, 0) // which were in flight
	k.passes(7, true, 20, 0)
	for range 3 {
		k.check()
	}
	if total, _ := k.total("a"); total[0] != k.counters[7].ReceivePackets {
		t.Errorf("%d packets; the kernel has %d", total[0], k.counters[7].ReceivePackets)
	}
	seen := k.counters[7].ReceivePackets
	k.passes(7, true, 10, 0)
	k.passes(7, false, 1, 0)
	k.check()
	k.check()
	if total, _ := k.total("a"); total[0] != seen+10 {
		t.Errorf("%d packets; %d were seen or seeded, and ten of the eleven that passed long after", total[0], seen)
	}
}

// An interface that is excluded by a reload is not counted any more; its owner keeps what it
// has.
func TestExcluded(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.veth(7, 3)
	k.count(k.container("a", 7, 3))
	k.passes(7, true, 10, 10)
	k.calls = nil
	k.excluded = "veth7"
	k.Relist()
	k.finish()
	k.want("detach clsact 7 qdisc true", "detach tcx 7")
	k.passes(7, true, 1, 1)
	if total, _ := k.total("a"); total != [2]uint64{10, 10} || len(k.Controller.veths.known) != 0 {
		t.Errorf("%v packets, and %d interfaces are counted", total, len(k.Controller.veths.known))
	}
}

// Stray programs are taken off once all host veths are known, and then no more: what is new
// is on its way.
func TestStrayPrograms(t *testing.T) {
	k := newKernel(t)
	k.filters[8], k.tcx[9] = 1, true
	k.Adopt(context.Background())
	k.veths = append(k.veths, watcher.HostVeth{Index: 7, Name: "veth7", PeerIndex: 2, NetNSID: 3})
	k.Relist()
	k.want("own qdisc 7 true", "attach clsact 7 slot 1", "detach clsact 8 qdisc false", "detach tcx 8", "detach clsact 9 qdisc false", "detach tcx 9")
	k.Reconcile(nil)
	k.filters[8] = 1
	k.Relist()
	k.want()
}

// On tcx the programs are told the next slot, and stay as they are.
func TestSucceedOnTCX(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.mode = ModeTCX
	k.veth(7, 3)
	k.finish()
	k.count(k.container("a", 7, 3))
	b := k.container("b", 7, 3)
	at, err := k.Locate(b)
	if err != nil {
		t.Fatal(err)
	}
	k.calls = nil
	if err := k.Succeed(b, []roster.Key{{ID: "a"}}, at); err != nil {
		t.Error(err)
	}
	k.want("bind 7 slot 3", "quiesce")
}

// A driver's counters have what others sent, too, and late: what passed a physical interface
// while our programs were off is not known, and nothing is made up. Of others it is.
func TestMendedPhysical(t *testing.T) {
	need.Root(t)
	for link, seeds := range map[string]bool{"": false, "macvlan": true} {
		t.Run(link, func(t *testing.T) {
			k := newKernel(t)
			k.Adopt(context.Background())
			host := nettest.Host(t)
			c := nettest.Container(t, host, testnet.ContainerOptions{})
			watch := nettest.Must(watcher.New(watcher.Options{NetNS: host.FD(), Log: slog.New(slog.DiscardHandler)}))(t)
			t.Cleanup(func() { must(t, watch.Close()) })
			ns := nettest.Must(watch.Hold(watcher.Container{ID: c.ID, Cgroup: c.Cgroup}))(t)
			t.Cleanup(func() { must(t, ns.Close()) })
			index := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs().Index
			u := &uplink{link: link, attachment: attachment{Target: usage.Target{Ifindex: index, NetNS: ns.Inode()}}}
			in := visit{ns, (*fakeHooks)(k)}
			must(t, k.uplinks.keep(in, u, "web"))
			before, _ := k.Accounts.Beside(u.Target)
			sink := nettest.Must(nettest.Agent(t, host).Listen("udp", c.Interfaces[0].HostIPv4))(t)
			must(t, c.SendUDP(sink.Addr, 50, 100))
			nettest.Must(sink.Received(50))(t)
			delete(k.filters, index)
			must(t, k.uplinks.keep(in, u, "web"))
			if _, there := k.filters[index]; !there || u.state != counting {
				t.Errorf("our programs are not back: %v, %s", k.filters, u.state)
			}
			_, sent := k.Accounts.Beside(u.Target)
			if seeded := sent.Packets >= before.Packets+50; seeded != seeds {
				t.Errorf("%d packets seeded that the container sent, %d of them before", sent.Packets, before.Packets)
			}
		})
	}
}
