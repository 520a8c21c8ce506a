// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A veth whose other end is neither in the host nor in the container.
func TestThirdNamespace(t *testing.T) {
	need.Root(t)
	host, overlay := nettest.Host(t), nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{NoInterface: true})
	eth0 := nettest.Must(c.AddInterface(overlay, "eth0"))(t)
	for _, l := range nettest.Must(host.LinkList())(t) {
		if l.Type() == "veth" {
			t.Errorf("the host has %s", l.Attrs().Name)
		}
	}
	inside := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs()
	outside := nettest.Must(overlay.LinkByName(eth0.HostName))(t).Attrs()
	if inside.ParentIndex != outside.Index {
		t.Errorf("the peer of eth0 is %d, want %d", inside.ParentIndex, outside.Index)
	}
	reach(t, c, nettest.Agent(t, overlay), eth0)
}

// A device that was the host's, of two types, without a host veth.
func TestTakeDevice(t *testing.T) {
	need.Root(t)
	address, peer := netip.MustParsePrefix("10.78.0.2/24"), netip.MustParsePrefix("10.78.0.1/24")
	t.Run("macvlan", func(t *testing.T) {
		host, other := nettest.Host(t), nettest.Host(t)
		parent := cable(t, host, other, peer)
		add(t, host, &netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "moving", ParentIndex: parent}, Mode: netlink.MACVLAN_MODE_BRIDGE,
		})
		testDevice(t, host, nettest.Agent(t, other), "macvlan", address, peer.Addr())
	})
	t.Run("vxlan", func(t *testing.T) {
		near, far := netip.MustParsePrefix("10.79.0.1/24"), netip.MustParsePrefix("10.79.0.2/24")
		host, other := nettest.Host(t), nettest.Host(t)
		parent := cable(t, host, other, far)
		give(t, host, "cable", near)
		add(t, host, tunnel(parent, near, far))
		add(t, other, tunnel(nettest.Must(other.LinkByName("cable"))(t).Attrs().Index, far, near))
		give(t, other, "moving", peer)
		// It goes on where the cable is, wherever it is itself.
		capture := nettest.StartCapture(t, host, "cable")
		testDevice(t, host, nettest.Agent(t, other), "vxlan", address, peer.Addr())
		if got := capture.Count("udp port 4789").Packets; got < 100 {
			t.Errorf("%d packets on the cable, want 100 and some ARP", got)
		}
	})
}

// cable joins two namespaces, and returns the index of the first one's end. The
// other one's has an address.
func cable(t *testing.T, host, other *testnet.Namespace, address netip.Prefix) int {
	t.Helper()
	if err := testnet.Veth(host, "cable", other, "cable"); err != nil {
		t.Fatal(err)
	}
	give(t, other, "cable", address)
	return nettest.Must(host.LinkByName("cable"))(t).Attrs().Index
}

func add(t *testing.T, n *testnet.Namespace, link netlink.Link) {
	t.Helper()
	if err := n.LinkAdd(link); err != nil {
		t.Fatalf("add %s: %v", link.Attrs().Name, err)
	}
}

// give gives an interface an address and sets it up.
func give(t *testing.T, n *testnet.Namespace, name string, address netip.Prefix) {
	t.Helper()
	link := nettest.Must(n.LinkByName(name))(t)
	if err := n.AddrAdd(link, nettest.Must(netlink.ParseAddr(address.String()))(t)); err != nil {
		t.Fatal(err)
	}
	if err := n.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

func tunnel(cable int, from, to netip.Prefix) netlink.Link {
	return &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "moving"}, VxlanId: 7, VtepDevIndex: cable, Port: 4789,
		SrcAddr: from.Addr().AsSlice(), Group: to.Addr().AsSlice(),
	}
}

func testDevice(t *testing.T, host *testnet.Namespace, peer *testnet.Agent, kind string, address netip.Prefix, to netip.Addr) {
	t.Helper()
	c := nettest.Container(t, host, testnet.ContainerOptions{NoInterface: true})
	if got := nettest.Must(testnet.InterfaceCounters(c.PID()))(t); len(got) != 1 {
		t.Errorf("interfaces %v, want lo alone", got)
	}
	if err := c.TakeDevice(host, "moving", "eth0", address); err != nil {
		t.Fatal(err)
	}
	if got := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Type(); got != kind {
		t.Errorf("eth0 is a %s, want a %s", got, kind)
	}
	sink := nettest.Must(peer.Listen("udp", to))(t)
	capture := nettest.StartCapture(t, c.Namespace, "eth0")
	if err := c.SendUDP(sink.Addr, 100, 58); err != nil {
		t.Fatal(err)
	}
	nettest.Must(sink.Received(100))(t)
	if diff := cmp.Diff(nettest.Volume{Packets: 100, Bytes: 10_000}, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := host.LinkByName("moving"); err == nil {
		t.Error("the device is back in the host")
	}
}
