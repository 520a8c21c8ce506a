// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
)

// received is what an interface received: seeded, mended, and counted as UDP.
func received(seeded, mended, counted uint64) usage.Traffic {
	var t usage.Traffic
	t.Receive.Seeded = usage.Volume{Bytes: seeded, Packets: seeded / 100}
	t.Receive.Mended = usage.Volume{Bytes: mended, Packets: mended / 100}
	t.Receive.Cells[usage.FamilyIPv4][usage.ProtocolUDP] = usage.Volume{Bytes: counted, Packets: counted / 100}
	t.Receive.SYN = 3
	return t
}

func listed() usage.Snapshot {
	web := usage.Container{
		ID: "aaa1", Name: "web", Runtime: "docker", Cgroup: "/docker/aaa1", State: usage.Running, Reason: usage.Shadowed,
		Interfaces: []usage.Interface{
			{Name: "eth0", HostInterface: "veth1", Hook: "tcx", Attached: true, Traffic: received(1000, 0, 200)},
			{Name: "eth1", HostInterface: "veth2", Hook: "clsact", Attached: true, Shadowed: true, Traffic: received(0, 100, 200)},
		},
		Traffic: received(1000, 100, 400),
	}
	return usage.Snapshot{
		TakenAt: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Containers: []usage.Container{
			web,
			{ID: "bbb2", Name: "agent", Cgroup: "/docker/bbb2", State: usage.Running, Reason: usage.HostNetwork},
			{ID: "ccc3", Name: "old", Cgroup: "/docker/ccc3", State: usage.Stopped},
		},
		Unowned: []usage.Interface{{HostInterface: "veth9", Hook: "clsact", Shadowed: true, Traffic: received(0, 0, 100)}},
	}
}

func TestList(t *testing.T) {
	flags := daemonWith(t, listed(), nil)
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, `CONTAINER ID  NAME   RECEIVED  PACKETS  SYN  TRANSMITTED  PACKETS  SYN  STATE
aaa1          web    1.465KiB  15       3    0B           0        0    counted in part: shadowed
bbb2          agent  0B        0        0    0B           0        0    not counted: host network`},
		{[]string{"--all"}, `CONTAINER ID  NAME   RECEIVED  PACKETS  SYN  TRANSMITTED  PACKETS  SYN  STATE
aaa1          web    1.465KiB  15       3    0B           0        0    counted in part: shadowed
bbb2          agent  0B        0        0    0B           0        0    not counted: host network
ccc3          old    0B        0        0    0B           0        0    stopped
-             veth9  100B      1        3    0B           0        0    no container known, shadowed`},
		{[]string{"--all", "-o", "wide"}, `CONTAINER ID  NAME   RUNTIME  INTERFACE  HOST INTERFACE  HOOK    RECEIVED BYTES  PACKETS  SYN  TRANSMITTED BYTES  PACKETS  SYN  SEEDED BYTES  MENDED BYTES  STATE                         CGROUP
aaa1          web    docker   eth0       veth1           tcx     1200            12       3    0                  0        0    1000          0             running                       /docker/aaa1
aaa1          web    docker   eth1       veth2           clsact  300             3        3    0                  0        0    0             100           counted in part: shadowed     /docker/aaa1
bbb2          agent  -        -          -               -       0               0        0    0                  0        0    0             0             not counted: host network     /docker/bbb2
ccc3          old    -        -          -               -       0               0        0    0                  0        0    0             0             stopped                       /docker/ccc3
-             -      -        -          veth9           clsact  100             1        3    0                  0        0    0             0             no container known, shadowed  -`},
	} {
		got := trimmed(mustOutput(t, append(append([]string{"list"}, flags...), test.args...)...))
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", test.args, diff)
		}
	}
}

// A name that is an id is told from others by its end, too.
func TestListOfNames(t *testing.T) {
	hex := strings.Repeat("3f", 32)
	ids := []string{"field-production-web-01", "field-production-web-02", hex, "1000~" + hex}
	var snap usage.Snapshot
	for _, id := range ids {
		snap.Containers = append(snap.Containers, usage.Container{ID: id, Name: id, State: usage.Running})
	}
	got := strings.Fields(mustOutput(t, append([]string{"list"}, daemonWith(t, snap, nil)...)...))
	for _, want := range append(ids[:2], "3f3f3f3f3f3f", "1000~3f3f3f3f3f3f") {
		if n := len(slices.DeleteFunc(slices.Clone(got), func(word string) bool { return word != want })); n != 2 {
			t.Errorf("%s: %d times, want it as id and name, in %v", want, n, got)
		}
	}
}

func TestState(t *testing.T) {
	for reason, want := range map[usage.Reason]string{
		usage.Accounted: "running", usage.Excluded: "excluded", usage.InterfaceExcluded: "running, an interface is excluded",
		usage.HostNetwork: "not counted: host network", usage.Shadowed: "counted in part: shadowed",
	} {
		c := exporter.Container{State: "running", Reason: string(reason), Accounted: reason == usage.Accounted}
		if got := state(c); got != want {
			t.Errorf("%q: %s, want %s", reason, got, want)
		}
	}
}

func TestStateOfKernel(t *testing.T) {
	for kernel, want := range map[string]string{"": "running", "gvisor": "running, on gvisor", "kata": "running, on kata"} {
		if got := state(exporter.Container{State: "running", Accounted: true, Kernel: kernel}); got != want {
			t.Errorf("%q: %s, want %s", kernel, got, want)
		}
	}
}

func TestByIP(t *testing.T) {
	eth0, ip := []exporter.Interface{{Name: "eth0"}}, &exporter.IP{}
	for name, row := range map[string]struct {
		c    exporter.Container
		want bool
	}{
		"an interface":                         {exporter.Container{Interfaces: eth0}, false},
		"an interface, shared":                 {exporter.Container{Interfaces: eth0, IP: ip}, false},
		"its cgroup alone":                     {exporter.Container{IP: ip}, true},
		"on the host, with one of its own":     {exporter.Container{Interfaces: eth0, IP: ip, OnHost: true}, true},
		"on the host, and no cgroup's numbers": {exporter.Container{Interfaces: eth0, OnHost: true}, false},
	} {
		if got := byIP(row.c); got != row.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
