// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Containers in a container: their cgroups are below its own, their host veths
// are in it, and what they send outside goes over its host veth as well.
func TestNested(t *testing.T) {
	docker := Start(t, Options{})
	nested := docker.StartNested()
	a, b := nested.Run(Image), nested.Run(Image)
	data := string(nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", nested.PID(a))))(t))
	for line := range strings.Lines(data) {
		if want := docker.CgroupParent + "/" + nested.Outer + "/docker/" + a; !strings.HasSuffix(line, ":"+want+"\n") {
			t.Errorf("in cgroup %q, want %s", line, want)
		}
	}
	from := nested.Agent(a)
	outer := docker.ContainerNamespace(nested.Outer)
	bridge := nettest.StartCapture(t, outer, "docker0")
	host := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(nested.Outer, "eth0"))
	exchange(t, from, nested.Agent(b), nested.IPv4(b), 100)

	other := docker.Run(Image)
	exchange(t, from, docker.Agent(other), docker.IPv4(other, "eth0"), 50)
	if diff := cmp.Diff(nettest.Volume{Packets: 150, Bytes: 15_000}, bridge.Count("udp")); diff != "" {
		t.Errorf("captured in the outer container (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(nettest.Volume{Packets: 50, Bytes: 5000}, host.Count("udp")); diff != "" {
		t.Errorf("captured on the host (-want +got):\n%s", diff)
	}
	if got := nested.NetDev(a)["eth0"].TransmitPackets; got < 150 {
		t.Errorf("the kernel counts %d packets, want 150 and some ARP", got)
	}
	nested.Remove(b)
	docker.Remove(nested.Outer)
	after := nettest.TakeSnapshot(t, nettest.Scope{Cgroups: []string{docker.CgroupParent + "/" + nested.Outer}})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left of the outer container (-want +got):\n%s", diff)
	}
}
