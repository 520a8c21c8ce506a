// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"fmt"
	"testing"
	"time"
)

// A user makes cgroups of the shape of containers as fast as he can. They are not kept, and
// those that were counted are dropped last.
func TestEndedAreBounded(t *testing.T) {
	a, _, clock := newAccounts(t)
	a.Kept = true
	const maxEnded = 500
	limits := Unlimited
	limits.Ended = maxEnded
	a.Limits = func() Limits { return limits }
	use := func(id string, ifindex int) {
		a.Start(Container{ID: id})
		a.Recall(id, nil)
		open(t, a, ifindex, "veth")
		assign(t, a, ifindex, id, "eth0")
		closeInterface(t, a, ifindex)
		a.Stop(id)
	}
	use("counted first", 7)
	clock.now = clock.now.Add(time.Second)
	use("counted", 8)
	clock.now = clock.now.Add(time.Minute) // the slots have settled
	a.Written(a.Pending(true))
	for i := range maxEnded + 100 {
		id := fmt.Sprintf("made up %d", i)
		a.Start(Container{ID: id})
		if i%2 == 0 {
			a.Recall(id, nil) // of the others the ledger was not asked in time
		}
		a.Stop(id)
	}
	if n := len(a.Pending(false)); n != 0 {
		t.Errorf("%d containers that were never counted are to be written", n)
	}
	if n := len(a.Expire()); n != 102 {
		t.Errorf("%d dropped, want 102", n)
	}
	if n := len(a.containers); n != maxEnded {
		t.Errorf("%d ended containers are kept, want %d", n, maxEnded)
	}
	find(t, a, "counted first")
	for i := range maxEnded {
		use(fmt.Sprintf("run %d", i), 9)
	}
	clock.now = clock.now.Add(time.Minute)
	a.Written(a.Pending(true))
	a.Expire()
	ids := map[string]bool{}
	for _, c := range a.Snapshot().Containers {
		ids[c.ID] = true
	}
	if len(ids) != maxEnded || ids["counted first"] || ids["counted"] || !ids["run 0"] {
		t.Errorf("%d ended containers are kept, of the first ones %v and %v", len(ids), ids["counted first"], ids["counted"])
	}
}
