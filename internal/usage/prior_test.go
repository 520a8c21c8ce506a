// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nettally/nettally/bpf"
)

// A later process whose slots are gone knows what was counted of each target of an
// interface, over all slots that it had, and what was passed over.
func TestEarlier(t *testing.T) {
	now := time.Unix(1000, 0)
	kernel := newSlots()
	start := func() *Accounts {
		kernel.taken = map[uint16]bpf.Slot{} // as in memory
		return New(Options{Datapath: kernel, Boot: "b", Kept: true, Now: func() time.Time { return now }, Retention: func() time.Duration { return time.Hour }})
	}
	nic, connections := OnHost(7), Target{NetNS: 5}
	count := func(a *Accounts, target Target, packets uint64) {
		t.Helper()
		slot, _, err := a.Open(target, "veth7", "proc")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Assign(target, "web", "eth0"); err != nil {
			t.Fatal(err)
		}
		kernel.counts[slot] = packets
	}
	restart := func(a *Accounts) *Accounts {
		t.Helper()
		text, err := json.Marshal(a.Pending(true))
		if err != nil {
			t.Fatal(err)
		}
		var records []Record
		if err := json.Unmarshal(text, &records); err != nil {
			t.Fatal(err)
		}
		next := start()
		next.Restore(records)
		return next
	}

	a := start()
	a.Start(Container{ID: "web"})
	a.Recall("web", nil) // the ledger has nothing of it
	count(a, connections, 1)
	a.Pass(connections, Opens{Receive: 3, Transmit: 4})
	count(a, nic, 10)
	if err := a.Close(nic); err != nil {
		t.Fatal(err)
	}
	now = now.Add(settleAfter)
	a.Written(a.Pending(true))
	count(a, nic, 5)
	if err := a.Close(nic); err != nil {
		t.Fatal(err)
	}
	now = now.Add(settleAfter)
	a = restart(a) // which has the second slot as folded
	count(a, nic, 2)
	a = restart(a)

	for target, want := range map[Target]uint64{nic: 17, connections: 1} {
		known, ok := a.Earlier(target)
		if !ok || known.ID != "web" || known.Name != "eth0" || known.Counted.Receive.Interface.Packets != want {
			t.Errorf("%s: %+v, %v, want %d packets of web's eth0", target, known, ok, want)
		}
	}
	if known, _ := a.Earlier(connections); known.Passed != (Opens{Receive: 3, Transmit: 4}) {
		t.Errorf("passed %+v", known.Passed)
	}
	if _, ok := a.Earlier(OnHost(8)); ok {
		t.Error("something is known of an interface that was never counted")
	}
}
