// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Each kind of network that a container can have, with traffic over it.
func TestNetworks(t *testing.T) {
	docker := Start(t, Options{})
	t.Run("macvlan", func(t *testing.T) { testMacvlan(t, docker) })
	t.Run("host", func(t *testing.T) { testHostNetwork(t, docker) })
	t.Run("none", func(t *testing.T) { testNoNetwork(t, docker) })
	t.Run("container", func(t *testing.T) { testSharedNetwork(t, docker) })
	t.Run("only IPv6", func(t *testing.T) { testOnlyIPv6(t, docker) })
	t.Run("many", func(t *testing.T) { testMany(t, docker) })
}

// exchange sends datagrams from one container to another.
func exchange(t *testing.T, from, to *testnet.Agent, address netip.Addr, count int) {
	t.Helper()
	sink := nettest.Must(to.Listen("udp", address))(t)
	if err := from.SendUDP(sink.Addr, count, 58); err != nil {
		t.Fatal(err)
	}
	want := testnet.Received{Count: count, Bytes: int64(count) * 58}
	if got := nettest.Must(sink.Received(count))(t); got != want {
		t.Errorf("received %+v, want %+v", got, want)
	}
}

func testMacvlan(t *testing.T, docker *Docker) {
	network := docker.MacvlanNetwork("lan", netip.MustParsePrefix("10.233.0.0/24"))
	a, b := docker.Run("--network", "lan", Image), docker.Run("--network", "lan", Image)
	from := docker.Agent(a)
	cable := nettest.StartCapture(t, network.Peer, "eth0")
	exchange(t, from, docker.Agent(b), docker.IPv4(b, "eth0"), 100)
	exchange(t, from, nettest.Agent(t, network.Peer), network.Address, 50)
	// What goes from one container to the other does not leave the host.
	want := nettest.Volume{Packets: 50, Bytes: 5000}
	if diff := cmp.Diff(want, cable.Count("udp")); diff != "" {
		t.Errorf("captured on the cable (-want +got):\n%s", diff)
	}
	if got := docker.NetDev(a)["eth0"].TransmitPackets; got < 150 {
		t.Errorf("the kernel counts %d packets, want 150 and some ARP", got)
	}
	inside := nettest.Must(docker.ContainerNamespace(a).LinkByName("eth0"))(t)
	if inside.Type() != "macvlan" {
		t.Errorf("eth0 is a %s", inside.Type())
	}
}

func testHostNetwork(t *testing.T, docker *Docker) {
	id, other := docker.Run("--network", "host", Image), docker.Run(Image)
	want := nettest.Must(os.Readlink(docker.Namespace.Path()))(t)
	if got := docker.NetworkNamespace(id); got != want {
		t.Errorf("the container is in %s, the host is %s", got, want)
	}
	exchange(t, docker.Agent(id), docker.Agent(other), docker.IPv4(other, "eth0"), 100)
}

func testNoNetwork(t *testing.T, docker *Docker) {
	id := docker.Run("--network", "none", Image)
	if got := docker.NetDev(id); len(got) != 1 {
		t.Errorf("interfaces %v, want lo alone", got)
	}
	agent := docker.Agent(id)
	exchange(t, agent, agent, netip.MustParseAddr("127.0.0.1"), 100)
	if got, want := docker.NetDev(id)["lo"].TransmitPackets, uint64(100); got != want {
		t.Errorf("%d packets on lo, want %d", got, want)
	}
}

func testSharedNetwork(t *testing.T, docker *Docker) {
	owner, peer := docker.Run("--name", "owner", Image), docker.Run(Image)
	guest := docker.Run("--network", "container:owner", Image)
	if got, want := docker.NetworkNamespace(guest), docker.NetworkNamespace(owner); got != want {
		t.Errorf("the guest is in %s, the owner in %s", got, want)
	}
	address := docker.IPv4(peer, "eth0")
	capture := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(owner, "eth0"))
	exchange(t, docker.Agent(guest), docker.Agent(peer), address, 100)
	exchange(t, docker.Agent(owner), docker.Agent(peer), address, 20)
	if diff := cmp.Diff(nettest.Volume{Packets: 120, Bytes: 12_000}, capture.Count("udp")); diff != "" {
		t.Errorf("captured on the one veth (-want +got):\n%s", diff)
	}
}

func testOnlyIPv6(t *testing.T, docker *Docker) {
	docker.NetworkCreate("six", "--ipv6", "--subnet", "fd77:6::/64", "--subnet", "10.235.0.0/24")
	a, b := docker.Run("--network", "six", Image), docker.Run("--network", "six", Image)
	docker.OnlyIPv6(a)
	docker.OnlyIPv6(b)
	capture := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(a, "eth0"))
	exchange(t, docker.Agent(a), docker.Agent(b), docker.IPv6(b, "eth0"), 100)
	if diff := cmp.Diff(nettest.Volume{Packets: 100, Bytes: 12_000}, capture.Count("ip6 and udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	if got := capture.Count("ip or arp"); got != (nettest.Volume{}) {
		t.Errorf("captured %+v of IPv4", got)
	}
}

// A container with many interfaces: each has a host veth of its own.
func testMany(t *testing.T, docker *Docker) {
	const count = 20
	id := docker.Run(Image)
	added := docker.ConnectMany(id, count)
	if len(added) != count {
		t.Fatalf("added %q, want %d interfaces", added, count)
	}
	inside := docker.ContainerNamespace(id)
	veths := make(map[int]bool)
	for _, name := range added {
		peer := nettest.Must(inside.LinkByName(name))(t).Attrs().ParentIndex
		veths[nettest.Must(docker.Namespace.LinkByIndex(peer))(t).Attrs().Index] = true
	}
	if len(veths) != count {
		t.Errorf("%d host veths, want %d", len(veths), count)
	}
	last := added[count-1]
	capture := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(id, last))
	exchange(t, nettest.Agent(t, docker.Namespace), docker.Agent(id), docker.IPv4(id, last), 100)
	if diff := cmp.Diff(nettest.Volume{Packets: 100, Bytes: 10_000}, capture.Count("udp")); diff != "" {
		t.Errorf("captured on %s (-want +got):\n%s", last, diff)
	}
}
