// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"fmt"
	"testing"
	"time"
)

// ids of a snapshot, with what they have received.
func ids(s Snapshot) map[string]uint64 {
	found := map[string]uint64{}
	for _, c := range s.Containers {
		found[c.ID] = c.Receive.Wire().Packets
	}
	return found
}

// A container that has ended is in one more snapshot with its last numbers, whatever comes first:
// its end, the end of its interface, or that the ledger has it. Started again, it is back.
func TestChanging(t *testing.T) {
	a, kernel, clock := newAccounts(t)
	a.Kept = true
	r, seldom := a.Reader(), a.Reader()
	expect := func(when string, want int, packets uint64) {
		t.Helper()
		got := ids(r.Changing(false))
		if len(got) != want || got["a"] != packets {
			t.Errorf("%s: %v, want %d with %d packets", when, got, want, packets)
		}
	}
	a.Start(Container{ID: "a"})
	a.Recall("a", nil)
	slot := open(t, a, 7, "veth")
	assign(t, a, 7, "a", "eth0")
	expect("running", 1, 0)
	a.Stop("a")
	kernel.counts[slot] += 100
	expect("stopped", 1, 100)
	closeInterface(t, a, 7)
	kernel.counts[slot] += 10
	expect("closed", 1, 110)
	kernel.counts[slot] += 1
	clock.now = clock.now.Add(time.Minute)
	a.Written(a.Pending(true))
	expect("written", 1, 111)
	expect("final", 0, 0)
	if got := ids(seldom.Changing(false)); got["a"] != 111 {
		t.Errorf("another reader: %v", got)
	}
	if got := ids(seldom.Changing(false)); len(got) > 0 {
		t.Errorf("another reader once more: %v", got)
	}
	if got := ids(r.Changing(true)); got["a"] != 111 {
		t.Errorf("all: %v", got)
	}
	expect("final", 0, 0)
	if got := ids(a.Snapshot()); got["a"] != 111 {
		t.Errorf("snapshot: %v", got)
	}
	a.Start(Container{ID: "a"})
	expect("started again", 1, 111)
	expect("running again", 1, 111)
	a.Stop("a")
	expect("stopped again", 1, 111)
	expect("final again", 0, 0)
}

// BenchmarkEnded is what a quota's check has to look at on a host with 20 containers that run and
// many that have ended.
func BenchmarkEnded(b *testing.B) {
	for _, ended := range []int{0, 5000} {
		for name, look := range map[string]func(*Accounts, *Reader) Snapshot{
			"snapshot": func(a *Accounts, _ *Reader) Snapshot { return a.Snapshot() },
			"changing": func(_ *Accounts, r *Reader) Snapshot { return r.Changing(false) },
		} {
			b.Run(fmt.Sprintf("%s/ended=%d", name, ended), func(b *testing.B) {
				a := New(Options{Datapath: newSlots(), Retention: func() time.Duration { return time.Hour }})
				for i := range ended + 20 {
					id := fmt.Sprintf("%064x", i)
					a.Start(Container{ID: id, Name: fmt.Sprint("run-", i)})
					a.containers[id].tally("eth0").final.Receive.Interface.Bytes = 1500
					if i >= 20 {
						a.Stop(id)
					}
				}
				r := a.Reader()
				look(a, r)
				b.ReportAllocs()
				for b.Loop() {
					look(a, r)
				}
			})
		}
	}
}
