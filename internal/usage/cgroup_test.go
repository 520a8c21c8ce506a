// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// countCgroup opens a cgroup for a container, which counts packets there.
func countCgroup(t *testing.T, a *Accounts, kernel *slots, id uint64, container string, packets uint64) {
	t.Helper()
	slot, _, err := a.Open(Target{Cgroup: id}, "", "cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Assign(Target{Cgroup: id}, container, ""); err != nil {
		t.Fatal(err)
	}
	kernel.counts[slot] += packets
}

func tell(t *testing.T, a *Accounts, id uint64) {
	t.Helper()
	if err := a.Tell(Target{Cgroup: id}); err != nil {
		t.Fatal(err)
	}
}

func endCgroup(t *testing.T, a *Accounts, id uint64) {
	t.Helper()
	if err := a.EndCgroup(Target{Cgroup: id}); err != nil {
		t.Fatal(err)
	}
}

// byCgroup returns the packets of a container's cgroup, -1 if they are not told.
func byCgroup(t *testing.T, a *Accounts, id string) int {
	t.Helper()
	for _, c := range a.Snapshot().Containers {
		if c.ID == id && c.IP != nil {
			return int(c.IP.Receive.Wire().Packets)
		}
	}
	return -1
}

// While a container starts its cgroup is counted, and nothing is told of it. If it turns
// out to have an interface nothing ever is, and the slot is free again a moment later.
func TestCgroupNotNeeded(t *testing.T) {
	a, kernel, clock := newAccounts(t)
	a.Start(Container{ID: "web"})
	countCgroup(t, a, kernel, 7, "web", 10)
	if got := byCgroup(t, a, "web"); got != -1 {
		t.Errorf("%d packets are told of a container that starts", got)
	}
	endCgroup(t, a, 7)
	a.Explain("web", Accounted)
	if got := byCgroup(t, a, "web"); got != -1 {
		t.Errorf("%d packets are told of a container with an interface", got)
	}
	if len(kernel.taken) != 1 {
		t.Error("the slot was released while a packet may have been on its way to it")
	}
	clock.now = clock.now.Add(settleAfter)
	a.Expire()
	if len(kernel.taken) != 0 {
		t.Errorf("%d slots are taken", len(kernel.taken))
	}
}

// A container that no interface tells apart is accounted by its cgroup. What was told stays
// and grows: after the end of the counting, when it begins again, and over a restart.
func TestCgroupTold(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "vpn"})
	a.Recall("vpn", nil)
	countCgroup(t, a, kernel, 7, "vpn", 10)
	a.Explain("vpn", HostNetwork)
	tell(t, a, 7)
	c := a.Snapshot().Containers[0]
	if c.IP == nil || c.IP.Receive.Wire().Packets != 10 || !c.Accounted() || c.NetworkMode != "host" || c.Receive.Wire().Packets != 0 {
		t.Errorf("%+v", c)
	}
	endCgroup(t, a, 7)
	if c := a.Snapshot().Containers[0]; c.Accounted() || c.Reason != HostNetwork {
		t.Errorf("accounted %v (%s) and not counted any more", c.Accounted(), c.Reason)
	}
	countCgroup(t, a, kernel, 8, "vpn", 5)
	if got := byCgroup(t, a, "vpn"); got != 15 {
		t.Errorf("%d packets, want 15", got)
	}

	onDisk := disk{}
	tell(t, a, 8)
	onDisk.write(t, a.Pending(true))
	again := kept(t, kernel, clock)
	again.Restore(onDisk.read(t))
	for _, left := range again.Leftovers() {
		if left.Cgroup == 8 {
			again.Adopt(left, "", "cgroup")
		} else if err := again.Retire(left); err != nil {
			t.Fatal(err)
		}
	}
	again.Start(Container{ID: "vpn"})
	if got := byCgroup(t, again, "vpn"); got != 15 {
		t.Errorf("%d packets after a restart, before it is known what it is; want 15", got)
	}
}

// A container that is left out says so, whatever it is counted by; its numbers stay.
func TestCgroupExcluded(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "vpn"})
	a.Recall("vpn", nil)
	countCgroup(t, a, kernel, 7, "vpn", 10)
	a.Explain("vpn", HostNetwork)
	tell(t, a, 7)
	a.Stop("vpn")
	a.Explain("vpn", Excluded)
	if c := a.Snapshot().Containers[0]; c.Accounted() || c.Reason != Excluded || byCgroup(t, a, "vpn") != 10 {
		t.Errorf("accounted %v (%q): %+v", c.Accounted(), c.Reason, c.IP)
	}
}

// A container in several namespaces is accounted if its cgroup is counted beside its
// interfaces; packets that pass those unseen are said all the same.
func TestSeveralNetworks(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	a.Start(Container{ID: "web"})
	open(t, a, 7, "veth7")
	if err := a.Assign(OnHost(7), "web", "eth0"); err != nil {
		t.Fatal(err)
	}
	is := func(want Reason) {
		t.Helper()
		if c := a.Snapshot().Containers[0]; c.Reason != want || c.OnHost {
			t.Errorf("it is %q, in the host's network %t; want %q", c.Reason, c.OnHost, want)
		}
	}
	a.Explain("web", SeveralNetworks)
	is(SeveralNetworks)
	countCgroup(t, a, kernel, 8, "web", 10)
	is(SeveralNetworks)
	tell(t, a, 8)
	is(Accounted)
	a.Show(OnHost(7), Shown{HostInterface: "veth7", Hook: "clsact", Shadowed: true})
	is(Shadowed)
}

// What a container of gVisor or Kata sends has no socket in its cgroup. Nothing counted there
// says nothing, unless it is on the host's network, where gVisor uses the host's sockets.
func TestOwnKernel(t *testing.T) {
	for name, row := range map[string]struct {
		kernel  string
		reason  Reason
		counted uint64
		want    Reason
		told    bool
	}{
		"the host's":               {"", SharedNetwork, 0, Accounted, true},
		"its own, in a pod":        {"gvisor", SharedNetwork, 0, SharedNetwork, false},
		"its own, and the pod's":   {"gvisor", Accounted, 0, Accounted, false},
		"its own, seen to send":    {"kata", SharedNetwork, 1, Accounted, true},
		"its own, on the host's":   {"gvisor", HostNetwork, 0, Accounted, true},
		"its own, in several ones": {"kata", SeveralNetworks, 0, SeveralNetworks, false},
	} {
		a, kernel, _ := newAccounts(t)
		a.Start(Container{ID: "web"})
		a.Explain("web", row.reason)
		a.RunsOn("web", row.kernel)
		countCgroup(t, a, kernel, 8, "web", row.counted)
		tell(t, a, 8)
		c := a.Snapshot().Containers[0]
		if c.Reason != row.want || (c.IP != nil) != row.told || c.Kernel != row.kernel {
			t.Errorf("%s: %q, by its cgroup %+v, on %q", name, c.Reason, c.IP, c.Kernel)
		}
	}
}

// A container whose cgroup went while nobody was there: its counts are told if they were, or
// if there is nothing else.
func TestCgroupLeft(t *testing.T) {
	for name, test := range map[string]struct {
		eth0, told bool
		want       int
	}{
		"no interface":                   {want: 10},
		"an interface":                   {eth0: true, want: -1},
		"an interface, shared, so told":  {eth0: true, told: true, want: 10},
		"no interface, and told already": {told: true, want: 10},
	} {
		t.Run(name, func(t *testing.T) {
			_, kernel, clock := newAccounts(t)
			before := kept(t, kernel, clock)
			before.Start(Container{ID: "web"})
			before.Recall("web", nil)
			if test.eth0 {
				open(t, before, 3, "veth3")
				assign(t, before, 3, "web", "eth0")
			}
			countCgroup(t, before, kernel, 7, "web", 10)
			if test.told {
				before.Explain("web", SharedNetwork)
				tell(t, before, 7)
			}

			after := kept(t, kernel, clock)
			after.Restore(nil)
			for _, left := range after.Leftovers() {
				if err := after.Retire(left); err != nil {
					t.Fatal(err)
				}
			}
			after.Stop("web")
			after.Recall("web", nil)
			if got := byCgroup(t, after, "web"); got != test.want {
				t.Errorf("%d packets, want %d", got, test.want)
			}
			clock.now = clock.now.Add(time.Minute)
			after.Written(after.Pending(true))
			after.Written(after.Pending(true))
			after.Expire()
			if len(kernel.taken) != 0 {
				t.Errorf("%d slots are taken", len(kernel.taken))
			}
		})
	}
}

// Loopback is told beside all other numbers.
func TestCgroupLoopback(t *testing.T) {
	var rx Counts
	rx.Cells[FamilyOther][ProtocolOther] = Volume{Bytes: 100, Packets: 1}
	rx.Cells[FamilyIPv4][ProtocolTCP] = Volume{Bytes: 40, Packets: 1}
	got := setLoopbackApart(rx)
	want := Counts{Loopback: Volume{Bytes: 100, Packets: 1}}
	want.Cells[FamilyIPv4][ProtocolTCP] = Volume{Bytes: 40, Packets: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Another's program keeps ours off a container's cgroup: that is the reason where nothing else
// counts the container, until ours is on. What its cgroup had counted before stays.
func TestObstruct(t *testing.T) {
	for reason, want := range map[Reason]Reason{
		HostNetwork: CgroupTaken, SharedNetwork: CgroupTaken, SeveralNetworks: CgroupTaken, NoHostVeth: CgroupTaken,
		Starting: Starting, Accounted: Accounted, AttachFailed: AttachFailed,
	} {
		a, kernel, _ := newAccounts(t)
		a.Start(Container{ID: "web"})
		a.Explain("web", reason)
		a.Obstruct("web", true)
		if c := find(t, a, "web"); c.Reason != want || c.OnHost != (reason == HostNetwork) {
			t.Errorf("%s: %s, on host %v", reason, c.Reason, c.OnHost)
		}
		a.Obstruct("web", false)
		if c := find(t, a, "web"); c.Reason != reason {
			t.Errorf("%s: %s when it has gone", reason, c.Reason)
		}
		if want != CgroupTaken {
			continue
		}
		countCgroup(t, a, kernel, 7, "web", 10)
		if err := a.Tell(Target{Cgroup: 7}); err != nil {
			t.Fatal(err)
		}
		if c := find(t, a, "web"); c.Reason != Accounted {
			t.Errorf("%s: %s while it is counted", reason, c.Reason)
		}
		a.Obstruct("web", true)
		endCgroup(t, a, 7)
		if c := find(t, a, "web"); c.Reason != CgroupTaken || byCgroup(t, a, "web") != 10 {
			t.Errorf("%s: %s, %d packets after it was", reason, c.Reason, byCgroup(t, a, "web"))
		}
	}
	a, _, _ := newAccounts(t)
	a.Obstruct("unknown", true)
}
