// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
)

// busy is a kernel that counts a packet more whenever it is asked.
type busy struct{ *slots }

func (b busy) Read(s bpf.Slot) (rx, tx bpf.Counters, err error) {
	b.counts[s.Index]++
	return b.slots.Read(s)
}

// What a record says in all is what its tallies say, though the kernel counts meanwhile.
func TestRecordIsOfOneMoment(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	a.Datapath = busy{kernel}
	a.Start(Container{ID: "web"})
	for target, id := range map[Target]string{OnHost(7): "eth0", {Cgroup: 9}: ""} {
		if _, _, err := a.Open(target, id, "clsact"); err != nil {
			t.Fatal(err)
		}
		if err := a.Assign(target, "web", id); err != nil {
			t.Fatal(err)
		}
		if err := a.Tell(target); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range a.Pending(true) {
		var interfaces, cgroup Traffic
		for _, tally := range r.Tallies {
			if tally.Cgroup {
				cgroup = tally.Sum()
			} else {
				interfaces = interfaces.Plus(tally.Sum())
			}
		}
		if r.IP == nil || r.Traffic != interfaces || *r.IP != cgroup || interfaces == (Traffic{}) || cgroup == (Traffic{}) {
			t.Errorf("interfaces %+v and cgroup %+v, by tallies %+v and %+v", r.Traffic, r.IP, interfaces, cgroup)
		}
	}
}

// Users make directories of the shape of a container's. Those that nothing is counted of are in
// no ledger, and are forgotten when they go.
func TestBlankOfUser(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	a.Kept = true
	for _, id := range []string{"1000~blank", "1000~used", "blank"} {
		a.Start(Container{ID: id})
		a.Recall(id, nil)
	}
	slot, _, err := a.Open(OnHost(7), "veth7", "clsact")
	if err != nil {
		t.Fatal(err)
	}
	kernel.counts[slot] = 1
	assign(t, a, 7, "1000~used", "eth0")
	var pending []string
	for _, r := range a.Pending(true) {
		pending = append(pending, r.ID)
	}
	slices.Sort(pending)
	if diff := cmp.Diff([]string{"1000~used", "blank"}, pending); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
	for _, id := range []string{"1000~blank", "1000~used", "blank"} {
		a.Stop(id)
	}
	if diff := cmp.Diff([]string{"1000~blank"}, a.Expire()); diff != "" {
		t.Errorf("forgotten (-want +got):\n%s", diff)
	}
}
