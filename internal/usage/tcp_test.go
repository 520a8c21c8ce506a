// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
)

// countSockets counts the connections of a container's cgroup, of which there were so many.
func countSockets(t *testing.T, a *Accounts, kernel *slots, id uint64, container string, connects uint64) uint16 {
	t.Helper()
	target := Target{Cgroup: id, Sockets: true}
	slot, _, err := a.Open(target, "", "sock_ops")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Assign(target, container, ""); err != nil {
		t.Fatal(err)
	}
	kernel.tcp[slot] = bpf.TCPCounters{Connects: connects, Entered: connects}
	return slot
}

// connectsOf returns what is told of a container's connections, -1 for nothing.
func connectsOf(a *Accounts, id string) (connects int, established *uint64) {
	for _, c := range a.Snapshot().Containers {
		if c.ID == id && c.TCP != nil {
			return int(c.TCP.Connects), c.Established
		}
	}
	return -1, nil
}

// The connections of a container are those of all its lives, over restarts of nettally and of the
// host. Where they are not counted any more they are not told, until it has ended.
func TestConnections(t *testing.T) {
	kernel, now := newSlots(), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	begin := func(boot string) *Accounts {
		return New(Options{
			Datapath: kernel, Boot: boot, Kept: true, Now: func() time.Time { return now }, Retention: func() time.Duration { return time.Hour },
		})
	}
	kept := func(a *Accounts) (records []Record) {
		for _, r := range a.Pending(true) {
			a.Written([]Record{r})
			text, err := json.Marshal(r.Tallies)
			if err != nil {
				t.Fatal(err)
			}
			r.Tallies = nil
			if err := json.Unmarshal(text, &r.Tallies); err != nil {
				t.Fatal(err)
			}
			r.Total()
			records = append(records, r)
		}
		return records
	}
	want := func(a *Accounts, connects int) {
		t.Helper()
		if got, _ := connectsOf(a, "web"); got != connects {
			t.Errorf("%d connections are told, want %d", got, connects)
		}
	}
	a := begin("first")
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	countSockets(t, a, kernel, 9, "web", 5)
	want(a, 5)
	records := kept(a)
	if len(records) != 1 || records[0].TCP == nil || records[0].TCP.Connects != 5 || records[0].IP != nil {
		t.Fatalf("kept %+v", records)
	}

	// nettally is killed, the kernel counts on, and the next one adopts.
	for index, n := range kernel.tcp {
		n.Connects += 3
		kernel.tcp[index] = n
	}
	a = begin("first")
	a.Restore(records)
	for _, left := range a.Leftovers() {
		a.Adopt(left, "", "sock_ops")
	}
	a.Start(Container{ID: "web"})
	want(a, 8)

	// Its cgroup goes, and another comes with its next life.
	if err := a.EndCgroup(Target{Cgroup: 9, Sockets: true}); err != nil {
		t.Fatal(err)
	}
	want(a, -1)
	a.Stop("web")
	want(a, 8)
	now = now.Add(time.Minute)
	kept(a)
	if len(kernel.taken) != 0 {
		t.Errorf("slots %v are in use when all is on disk", kernel.taken)
	}
	a.Start(Container{ID: "web"})
	countSockets(t, a, kernel, 10, "web", 4)
	want(a, 12)

	// The host is started again: what is in no slot any more is in the ledger.
	records = kept(a)
	clear(kernel.taken)
	a = begin("second")
	a.Restore(records)
	a.Start(Container{ID: "web"})
	want(a, -1)
	countSockets(t, a, kernel, 9, "web", 1)
	want(a, 13)
}

// How many are established is what the program saw and what was there before it, once that is
// known.
func TestEstablished(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	a.Start(Container{ID: "web"})
	slot := countSockets(t, a, kernel, 9, "web", 5)
	for _, row := range []struct {
		before, left uint64
		known        bool
		want         int // -1: not told
	}{
		{0, 0, false, -1}, {0, 0, true, 5}, {2, 1, true, 6}, {math.MaxUint64, 0, true, 4}, {math.MaxUint64, 5, true, 0},
	} {
		n := kernel.tcp[slot]
		n.Left, n.Before, n.BeforeKnown = row.left, row.before, row.known
		kernel.tcp[slot] = n
		_, established := connectsOf(a, "web")
		got := -1
		if established != nil {
			got = int(*established)
		}
		if got != row.want {
			t.Errorf("%+v: %d are established", row, got)
		}
	}
}

// What the kernel dropped is counted on from slot to slot of one cgroup, which has one namespace.
func TestListenDropsOfOneCgroup(t *testing.T) {
	a, kernel, clock := newAccounts(t)
	a.Start(Container{ID: "web"})
	target := Target{Cgroup: 9, Sockets: true}
	drops := func(kernels uint64) *TCP {
		t.Helper()
		if err := a.NoteListenDrops(target, kernels, true); err != nil {
			t.Fatal(err)
		}
		return a.Snapshot().Containers[0].TCP
	}
	countSockets(t, a, kernel, 9, "web", 0)
	if got := drops(5); got.ListenDrops != 5 || got.ListenDropsKnown == 0 {
		t.Errorf("%+v", got)
	}
	if err := a.EndCgroup(target); err != nil {
		t.Fatal(err)
	}
	clock.now = clock.now.Add(time.Minute)
	countSockets(t, a, kernel, 9, "web", 0)
	if got := drops(7); got.ListenDrops != 7 {
		t.Errorf("%+v, want 7 drops", got)
	}
}

// Each number is kept as itself, and added to its like.
func TestTCPFields(t *testing.T) {
	var numbers TCP
	for i, field := range numbers.fields() {
		*field = uint64(i + 1)
	}
	text, err := json.Marshal(numbers)
	if err != nil {
		t.Fatal(err)
	}
	var back TCP
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(numbers, back); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	twice := numbers.Plus(numbers)
	for i, field := range twice.fields() {
		if *field != uint64(2*(i+1)) {
			t.Errorf("number %d is %d", i, *field)
		}
	}
	if err := json.Unmarshal([]byte("[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21]"), &back); err == nil {
		t.Error("more numbers than there are can be read")
	}
	if got, _ := json.Marshal(Traffic{}); string(got) != `{"Receive":[],"Transmit":[]}` {
		t.Errorf("traffic without connections is kept as %s", got)
	}
}
