// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// lan is a network that a host's interface "nic" is in, with an agent at its other end. As
// in testnet, nobody speaks of his own accord.
type lan struct {
	host *testnet.Namespace
	far  *testnet.Namespace
	peer *testnet.Agent
}

var (
	farIP     = netip.MustParseAddr("10.99.0.1")
	farMAC, _ = net.ParseMAC("02:99:00:00:00:01")
)

func newLAN(t *testing.T, host *testnet.Namespace) lan {
	t.Helper()
	l := lan{host: host, far: nettest.Host(t)}
	must(t, host.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "nic"}, PeerName: "far",
		PeerNamespace: netlink.NsFd(l.far.FD()), PeerHardwareAddr: farMAC,
	}))
	far := silent(t, l.far, "far")
	silent(t, host, "nic")
	address(t, l.far, far, farIP)
	l.peer = nettest.Agent(t, l.far)
	return l
}

// silent sets a link up on which the kernel says nothing of its own accord.
func silent(t *testing.T, n *testnet.Namespace, name string) netlink.Link {
	t.Helper()
	l := nettest.Must(n.LinkByName(name))(t)
	must(t, n.LinkSetARPOff(l))
	must(t, n.LinkSetIP6AddrGenMode(l, 1)) // IN6_ADDR_GEN_MODE_NONE: no link-local address
	must(t, n.LinkSetUp(l))
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func address(t *testing.T, n *testnet.Namespace, l netlink.Link, ip netip.Addr) {
	t.Helper()
	must(t, n.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(16, 32)}}))
}

// hardwareAddr is one for an IP address.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{2, 0x99}, ip.AsSlice()...)
}

// macvlan makes a macvlan on the host's nic in a container as Docker does: made in the host,
// moved under another name, renamed, set up.
func (l lan) macvlan(t *testing.T, to *testnet.Namespace, name string, ip netip.Addr) {
	t.Helper()
	nic := nettest.Must(l.host.LinkByName("nic"))(t)
	temporary := "mv" + strconv.Itoa(int(ip.As4()[3]))
	must(t, l.host.LinkAdd(&netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: temporary, ParentIndex: nic.Attrs().Index, HardwareAddr: hardwareAddr(ip)},
		Mode:      netlink.MACVLAN_MODE_BRIDGE,
	}))
	must(t, l.host.LinkSetNsFd(nettest.Must(l.host.LinkByName(temporary))(t), to.FD()))
	l.configure(t, to, temporary, name, ip)
}

// configure names an interface in a container and gives it an address in the network.
func (l lan) configure(t *testing.T, in *testnet.Namespace, from, name string, ip netip.Addr) {
	t.Helper()
	link := nettest.Must(in.LinkByName(from))(t)
	if from != name {
		must(t, in.LinkSetName(link, name))
	}
	silent(t, in, name)
	address(t, in, link, ip)
	l.introduce(t, in, link, farIP, farMAC)
	l.introduce(t, l.far, nettest.Must(l.far.LinkByName("far"))(t), ip, link.Attrs().HardwareAddr)
}

func (l lan) introduce(t *testing.T, n *testnet.Namespace, link netlink.Link, ip netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	must(t, n.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}))
}

// talk sends datagrams from a container into the network and others back.
func (l lan) talk(t *testing.T, c *testnet.Container, ip netip.Addr, out, in int) {
	t.Helper()
	talk(t, c, ip, l.peer, farIP, out, in)
}

func talk(t *testing.T, c *testnet.Container, ip netip.Addr, peer *testnet.Agent, peerIP netip.Addr, out, in int) {
	t.Helper()
	there := nettest.Must(peer.Listen("udp", peerIP))(t)
	here := nettest.Must(c.Listen("udp", ip))(t)
	must(t, c.SendUDP(there.Addr, out, 100))
	must(t, peer.SendUDP(here.Addr, in, 100))
	nettest.Must(there.Received(out))(t)
	nettest.Must(here.Received(in))(t)
}

// bare makes a container without an interface. Its namespace ends with it.
func bare(t *testing.T, host *testnet.Namespace) *testnet.Container {
	t.Helper()
	inner := nettest.Must(testnet.NewNamespace())(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{Join: inner})
	c.Namespace = nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", c.PID())))(t)
	must(t, inner.Close())
	return c
}

// end ends a container and its namespace.
func end(t *testing.T, c *testnet.Container) {
	t.Helper()
	must(t, c.Namespace.Close())
	must(t, c.Close())
}

// datagrams is how many packets of talk make up what was counted.
func datagrams(n int) usage.Volume {
	return usage.Volume{Packets: uint64(n), Bytes: uint64(n) * (14 + 20 + 8 + 100)}
}

// talked waits until a container is seen to have sent and received datagrams and, besides
// what was seeded, nothing else on the wire.
func (r *rig) talked(id string, out, in int) usage.Container {
	r.t.Helper()
	return r.wait(id, fmt.Sprintf("seen to send %d and receive %d", out, in), func(c usage.Container) bool {
		return c.Transmit.Protocol(usage.ProtocolUDP) == datagrams(out) && c.Transmit.Counted() == datagrams(out) &&
			c.Receive.Protocol(usage.ProtocolUDP) == datagrams(in) && c.Receive.Counted() == datagrams(in)
	})
}

// asKernel compares an interface's numbers with what a process in the container sees.
func (r *rig) asKernel(c *testnet.Container, name string) {
	r.t.Helper()
	kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(r.t)[name]
	r.wait(c.ID, fmt.Sprintf("%s as the kernel has it: %+v", name, kernel), func(u usage.Container) bool {
		for _, i := range u.Interfaces {
			if i.Name == name {
				return kernel == testnet.Counters{
					ReceiveBytes: i.Receive.Interface.Bytes, ReceivePackets: i.Receive.Interface.Packets,
					TransmitBytes: i.Transmit.Interface.Bytes, TransmitPackets: i.Transmit.Interface.Packets,
				}
			}
		}
		return false
	})
}

// TestMacvlan counts a macvlan from its first packet to the end of its container, and of
// another one that was there before us.
func TestMacvlan(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	l := newLAN(t, host)
	early := bare(t, host)
	earlyIP, lateIP := netip.MustParseAddr("10.99.0.10"), netip.MustParseAddr("10.99.0.11")
	l.macvlan(t, early.Namespace, "eth0", earlyIP)
	l.talk(t, early, earlyIP, 7, 5)

	r := start(t, host, "")
	r.waitCounted(early.ID, 1)
	r.asKernel(early, "eth0")
	l.talk(t, early, earlyIP, 20, 10)
	r.asKernel(early, "eth0")
	if c := r.talked(early.ID, 20, 10); c.Transmit.Seeded != datagrams(7) || c.Receive.Seeded != datagrams(5) {
		t.Errorf("seeded %+v and %+v", c.Transmit.Seeded, c.Receive.Seeded)
	}

	late := bare(t, host)
	r.waitReason(late.ID, usage.Starting)
	l.macvlan(t, late.Namespace, "eth0", lateIP)
	r.waitCounted(late.ID, 1)
	l.talk(t, late, lateIP, 100, 200)
	r.asKernel(late, "eth0")
	c := r.talked(late.ID, 100, 200)
	if i := c.Interfaces[0]; i.Hook != HookClsact || i.At != usage.AtContainer || i.HostInterface != "" || i.Name != "eth0" {
		t.Errorf("interface %+v", i)
	}

	l.talk(t, late, lateIP, 11, 12)
	end(t, late)
	r.wait(late.ID, "ended", func(c usage.Container) bool {
		return c.State == usage.Stopped && c.Accounted() && !c.Interfaces[0].Attached
	})
	r.talked(late.ID, 111, 212)
	r.talked(early.ID, 20, 10)
	end(t, early)
	r.wait(early.ID, "ended", func(c usage.Container) bool { return !c.Interfaces[0].Attached })
	if left := r.accounts.Leftovers(); len(left) != 0 {
		t.Errorf("slots are still taken: %+v", left)
	}
}

// TestKinds counts a veth to a third namespace and a vxlan that was moved in, beside a host
// veth, as the containers of overlay networks have.
func TestKinds(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	r := start(t, host, "")
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(c.ID, 1)

	overlay := newLAN(t, c.Namespace) // its nic is the container's
	ip := netip.MustParseAddr("10.99.0.10")
	overlay.configure(t, c.Namespace, "nic", "nic", ip)
	r.reload()
	tunnel := newLAN(t, host).tunnel(t, c.Namespace, "vx0", netip.MustParseAddr("10.98.0.10"))
	r.waitCounted(c.ID, 3)
	overlay.talk(t, c, ip, 10, 20)
	tunnel(c, 30, 40)
	r.talked(c.ID, 40, 60)
	got := map[string]string{}
	for _, i := range r.talked(c.ID, 40, 60).Interfaces {
		got[i.Name] = fmt.Sprint(i.At, i.Transmit.Counted().Packets, i.Receive.Counted().Packets)
		if i.Name != "vx0" { // the kernel counts a vxlan's packets without their Ethernet headers
			r.asKernel(c, i.Name)
		}
	}
	want := map[string]string{"eth0": "host0 0", "nic": "container10 20", "vx0": "container30 40"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("where and how many (-want +got):\n%s", diff)
	}
}

// tunnel makes a vxlan over the network, one end of which it moves into a container. It
// returns what talks through it.
func (l lan) tunnel(t *testing.T, to *testnet.Namespace, name string, ip netip.Addr) func(c *testnet.Container, out, in int) {
	t.Helper()
	hostIP := netip.MustParseAddr("10.99.0.2")
	l.configure(t, l.host, "nic", "nic", hostIP)
	for n, remote := range map[*testnet.Namespace]netip.Addr{l.host: farIP, l.far: hostIP} {
		must(t, n.LinkAdd(&netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: name}, VxlanId: 7, Port: 4789, Group: remote.AsSlice(), Learning: false,
		}))
	}
	must(t, l.host.LinkSetNsFd(nettest.Must(l.host.LinkByName(name))(t), to.FD()))
	outer := netip.MustParseAddr("10.98.0.1")
	ends := map[*testnet.Namespace]netip.Addr{to: ip, l.far: outer}
	links := map[*testnet.Namespace]netlink.Link{}
	for n, own := range ends {
		links[n] = silent(t, n, name)
		address(t, n, links[n], own)
	}
	l.introduce(t, to, links[to], outer, links[l.far].Attrs().HardwareAddr)
	l.introduce(t, l.far, links[l.far], ip, links[to].Attrs().HardwareAddr)
	return func(c *testnet.Container, out, in int) {
		t.Helper()
		talk(t, c, ip, l.peer, outer, out, in)
	}
}

// TestRemovedInside has a container remove our filters, twice: the kernel's counters tell
// what it meant to hide.
func TestRemovedInside(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	r := start(t, host, "")
	l.macvlan(t, c.Namespace, "eth0", ip)
	r.waitCounted(c.ID, 1)
	passed := func(out, in int) { // mended or counted: the self-check may come between two packets
		t.Helper()
		r.wait(c.ID, fmt.Sprintf("seen to have sent %d and received %d", out, in), func(u usage.Container) bool {
			return u.Transmit.Timed() == datagrams(out) && u.Receive.Timed() == datagrams(in)
		})
	}
	for round := 1; round <= 2; round++ {
		l.talk(t, c, ip, 10, 20)
		passed(13*round-3, 24*round-4)
		nettest.Must(c.Namespace.Run("tc", "qdisc", "del", "dev", "eth0", "clsact"))(t)
		l.talk(t, c, ip, 3, 4)
		r.reload()
		r.asKernel(c, "eth0")
	}
	l.talk(t, c, ip, 5, 5)
	passed(31, 53)
	r.asKernel(c, "eth0")
	r.mended(c, usage.Volume{}, usage.Volume{})
	end(t, c)
}

// mended expects what was seeded, and that all else is in the history and quotas, also what
// our programs missed both ways.
func (r *rig) mended(c *testnet.Container, out, in usage.Volume) {
	r.t.Helper()
	u := r.wait(c.ID, "mended", func(u usage.Container) bool { return u.Transmit.Mended.Packets > 0 && u.Receive.Mended.Packets > 0 })
	for _, way := range []struct {
		usage.Counts
		seeded usage.Volume
	}{{u.Transmit, out}, {u.Receive, in}} {
		all, timed := way.Wire(), way.Timed()
		if way.Seeded != way.seeded || timed.Bytes != all.Bytes-way.seeded.Bytes || timed.Packets != all.Packets-way.seeded.Packets {
			r.t.Errorf("%+v seeded, want %+v; %+v in all, of which history and quotas have %+v", way.Seeded, way.seeded, all, timed)
		}
	}
}

// TestRemovedInLoop has a container that was there before us remove our filters all the while,
// as packets flow both ways.
func TestRemovedInLoop(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	l.macvlan(t, c.Namespace, "eth0", ip)
	l.talk(t, c, ip, 7, 5)
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 20)
	r.talked(c.ID, 10, 20)

	here, there := netip.AddrPortFrom(ip, 9), netip.AddrPortFrom(farIP, 9)
	var flows errgroup.Group
	var over atomic.Bool
	for agent, to := range map[interface {
		SendUDP(netip.AddrPort, int, int) error
	}]netip.AddrPort{c: there, l.peer: here} {
		flows.Go(func() error {
			for !over.Load() {
				if err := agent.SendUDP(to, 5, 100); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
			return nil
		})
	}
	for round := range uint64(5) {
		r.wait(c.ID, "mended again", func(u usage.Container) bool {
			_, _ = c.Namespace.Run("tc", "qdisc", "del", "dev", "eth0", "clsact") // it may be off still
			r.reload()                                                            // which does not wait as the self-check would
			return u.Receive.Mended.Packets > 10*round && u.Transmit.Mended.Packets > 10*round
		})
	}
	over.Store(true)
	must(t, flows.Wait())
	r.reload()
	r.wait(c.ID, "as the kernel has it", func(u usage.Container) bool {
		// What it drops behind our hook, as it may while a qdisc comes, only we have counted.
		kernel, sent := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs().Statistics, u.Transmit.Wire().Packets
		same := u.Receive.Wire() == usage.Volume{Bytes: kernel.RxBytes, Packets: kernel.RxPackets} &&
			sent >= kernel.TxPackets && sent <= kernel.TxPackets+kernel.TxDropped
		if !same {
			must(t, c.SendUDP(there, 1, 100))
			must(t, l.peer.SendUDP(here, 1, 100))
		}
		return same
	})
	r.mended(c, datagrams(7), datagrams(5))
	end(t, c)
}

// TestRemovedWhileAway has a container remove our filters while nobody runs: what passes then
// is no seed either.
func TestRemovedWhileAway(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	pins := nettest.BPFFS(t) + "/nettally"
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	l.macvlan(t, c.Namespace, "eth0", ip)
	l.talk(t, c, ip, 7, 5)
	r := start(t, host, pins)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 20)
	r.talked(c.ID, 10, 20)
	r.stop()
	nettest.Must(c.Namespace.Run("tc", "qdisc", "del", "dev", "eth0", "clsact"))(t)
	l.talk(t, c, ip, 3, 4)

	r = start(t, host, pins)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 5, 5)
	r.asKernel(c, "eth0")
	r.mended(c, datagrams(7), datagrams(5))
	end(t, c)
}

// TestMendedInside has our filters in a container put back by the self-check, while packets
// flow and long before the look at everything.
func TestMendedInside(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	r := start(t, host, "")
	l.macvlan(t, c.Namespace, "eth0", ip)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 20)
	r.talked(c.ID, 10, 20)

	nettest.Must(c.Namespace.Run("tc", "qdisc", "del", "dev", "eth0", "clsact"))(t)
	r.wait(c.ID, "mended with what was missed", func(u usage.Container) bool {
		// Adding the qdisc anew may have the kernel drop one.
		must(t, c.SendUDP(netip.AddrPortFrom(farIP, 9), 1, 100))
		must(t, l.peer.SendUDP(netip.AddrPortFrom(ip, 9), 1, 100))
		return u.Transmit.Mended.Packets+u.Receive.Mended.Packets > 0
	})
	r.asKernel(c, "eth0")
	l.talk(t, c, ip, 5, 5)
	r.asKernel(c, "eth0")
	u := r.wait(c.ID, "counted", usage.Container.Accounted)
	if u.Transmit.Seeded != (usage.Volume{}) || u.Receive.Seeded != (usage.Volume{}) {
		t.Errorf("something was seeded: %+v", u)
	}
	end(t, c)
}

// TestInsideChanges takes an interface away, puts another in its place, and ends its
// counting by the settings.
func TestInsideChanges(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	first, second := netip.MustParseAddr("10.99.0.10"), netip.MustParseAddr("10.99.0.11")
	r := start(t, host, "")
	l.macvlan(t, c.Namespace, "eth0", first)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, first, 10, 10)
	l.macvlan(t, c.Namespace, "eth1", second)
	r.waitCounted(c.ID, 2)
	l.talk(t, c, second, 5, 5)

	must(t, c.Namespace.LinkDel(nettest.Must(c.Namespace.LinkByName("eth0"))(t)))
	r.reload()
	r.wait(c.ID, "without eth0", func(u usage.Container) bool { return !u.Interfaces[0].Attached && u.Interfaces[1].Attached })
	l.macvlan(t, c.Namespace, "eth0", first)
	r.wait(c.ID, "with eth0 again", func(u usage.Container) bool { return u.Interfaces[0].Attached && u.Interfaces[1].Attached })
	l.talk(t, c, first, 1, 2)
	u := r.talked(c.ID, 10+5+1, 10+5+2)
	if u.Transmit.Wire() != u.Transmit.Counted() || u.Receive.Wire() != u.Receive.Counted() {
		t.Errorf("something was seeded: %+v", u)
	}

	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"inside": c.Namespace}}
	name := "eth1"
	r.excluded.Store(&name)
	r.reload()
	r.wait(c.ID, "excluded", func(u usage.Container) bool { return u.Interfaces[0].Attached && !u.Interfaces[1].Attached })
	r.waitReason(c.ID, usage.InterfaceExcluded)
	if s := nettest.TakeSnapshot(t, scope); strings.Contains(fmt.Sprint(s), "eth1 clsact") || strings.Contains(fmt.Sprint(s.Qdiscs), "dev eth1 parent ffff") {
		t.Errorf("something is left on eth1: %v", s)
	}
	l.talk(t, c, second, 50, 50)
	r.excluded.Store(nil)
	r.reload()
	r.wait(c.ID, "included", func(u usage.Container) bool { return u.Interfaces[1].Attached })
	l.talk(t, c, second, 1, 1)
	r.talked(c.ID, 17, 18)
	r.asKernel(c, "eth1")
	end(t, c)
}

// TestAdoptInside has the kernel count while nobody runs, inside of containers of which one
// lives on.
func TestAdoptInside(t *testing.T) {
	need.Root(t)
	pins := t.TempDir() + "/bpf"
	t.Cleanup(func() {
		if err := bpf.Unpin(pins); err != nil {
			t.Error(err)
		}
	})
	host := nettest.Host(t)
	l := newLAN(t, host)
	stays, goes := bare(t, host), bare(t, host)
	staysIP, goesIP := netip.MustParseAddr("10.99.0.10"), netip.MustParseAddr("10.99.0.11")
	r := start(t, host, pins)
	l.macvlan(t, stays.Namespace, "eth0", staysIP)
	l.macvlan(t, goes.Namespace, "eth0", goesIP)
	r.waitCounted(stays.ID, 1)
	r.waitCounted(goes.ID, 1)
	l.talk(t, stays, staysIP, 10, 5)
	r.stop()
	l.talk(t, stays, staysIP, 20, 10)
	l.talk(t, goes, goesIP, 30, 30)
	end(t, goes)

	r = start(t, host, pins)
	r.waitCounted(stays.ID, 1)
	l.talk(t, stays, staysIP, 30, 15)
	c := r.talked(stays.ID, 60, 30)
	if c.Transmit.Seeded != (usage.Volume{}) || c.Interfaces[0].At != usage.AtContainer {
		t.Errorf("adopted as %+v", c.Interfaces[0])
	}
	r.asKernel(stays, "eth0")
	r.talked(goes.ID, 30, 30)
	if left := r.accounts.Leftovers(); len(left) != 0 {
		t.Errorf("slots of what has gone are still taken: %+v", left)
	}
	end(t, stays)
	r.wait(stays.ID, "ended", func(c usage.Container) bool { return c.State == usage.Stopped && !c.Interfaces[0].Attached })
	r.talked(stays.ID, 60, 30)
}

// TestUpgradeInside has the counts of an older layout, whose programs count on, taken over.
func TestUpgradeInside(t *testing.T) {
	need.Root(t)
	pins := nettest.BPFFS(t) + "/nettally"
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	r := start(t, host, pins)
	l.macvlan(t, c.Namespace, "eth0", ip)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 5)
	r.stop()
	must(t, os.Rename(filepath.Join(pins, bpf.Layout), filepath.Join(pins, "v2")))
	l.talk(t, c, ip, 20, 10)

	r = start(t, host, pins)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 30, 15)
	if u := r.talked(c.ID, 60, 30); u.Transmit.Seeded != (usage.Volume{}) {
		t.Errorf("seeded %+v", u.Transmit.Seeded)
	}
	r.asKernel(c, "eth0")
	end(t, c)
}

// TestIngressQdiscInside can't count beside an `ingress` qdisc, says so, and tries again.
func TestIngressQdiscInside(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	l.macvlan(t, c.Namespace, "eth0", ip)
	nettest.Must(c.Namespace.Run("tc", "qdisc", "add", "dev", "eth0", "ingress"))(t)
	r := start(t, host, "")
	r.waitReason(c.ID, usage.AttachFailed)
	nettest.Must(c.Namespace.Run("tc", "qdisc", "del", "dev", "eth0", "ingress"))(t)
	r.reload()
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 10)
	r.talked(c.ID, 10, 10)
	end(t, c)
}

// TestNestedInside leaves the outer ends of nested containers' pairs alone, and does not
// count a nested one's traffic a second time.
func TestNestedInside(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	r := start(t, host, "")
	outer := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(outer.ID, 1)
	inner := nettest.Host(t)
	id := strings.Repeat("ab", 32)
	nested := nettest.Container(t, host, testnet.ContainerOptions{Join: inner, ID: id, Cgroup: outer.Cgroup + "/docker/" + id})
	must(t, testnet.Veth(outer.Namespace, "vethinner", inner, "eth0"))
	r.reload()
	r.waitReason(nested.ID, usage.NoHostVeth)
	c := r.wait(outer.ID, "counted", func(c usage.Container) bool { return c.Accounted() })
	if len(c.Interfaces) != 1 || c.Interfaces[0].Name != "eth0" {
		t.Errorf("interfaces %+v", c.Interfaces)
	}
}

// TestLingeringNamespace goes on counting for the owner what outlives its processes, until
// the kernel ends it.
func TestLingeringNamespace(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	r := start(t, host, "")
	l.macvlan(t, c.Namespace, "eth0", ip)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 10)
	held := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", c.PID())))(t)
	end(t, c)
	r.wait(c.ID, "stopped", func(u usage.Container) bool { return u.State == usage.Stopped && u.Interfaces[0].Attached })
	r.reload()
	must(t, l.peer.SendUDP(netip.AddrPortFrom(ip, 9), 5, 100))
	r.wait(c.ID, "seen to receive on", func(u usage.Container) bool { return u.Receive.Protocol(usage.ProtocolUDP) == datagrams(15) })
	// Another one that begins there has the interface from then on.
	next := nettest.Container(t, host, testnet.ContainerOptions{Join: held})
	r.waitCounted(next.ID, 1)
	r.wait(c.ID, "at its end", func(u usage.Container) bool { return !u.Interfaces[0].Attached })
	l.talk(t, next, ip, 7, 8)
	r.talked(next.ID, 7, 8)
	r.wait(c.ID, "as it was", func(u usage.Container) bool { return u.Receive.Protocol(usage.ProtocolUDP) == datagrams(15) })
	must(t, next.Close())
	must(t, held.Close())
	r.wait(next.ID, "ended", func(u usage.Container) bool { return !u.Interfaces[0].Attached })
}

// TestSuccessor ends the container that a namespace was made for, and leaves another one in
// it: the interface is counted on, for that one, and each packet once. So it is over a crash.
func TestSuccessor(t *testing.T) {
	need.Root(t)
	for _, mode := range []Mode{ModeClsact, ModeTCX} {
		t.Run(string(mode), func(t *testing.T) { testSuccessor(t, mode) })
	}
}

func testSuccessor(t *testing.T, mode Mode) {
	pins := nettest.BPFFS(t) + "/nettally"
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	begin := func() *rig {
		return start(t, host, pins, func(c *Controller) {
			settings := c.Settings
			c.Settings = func() Settings { s := settings(); s.Mode = mode; return s }
		})
	}
	r := begin()
	first := nettest.Container(t, host, testnet.ContainerOptions{})
	nic := first.Interfaces[0]
	r.wait(first.ID, "counted", func(u usage.Container) bool {
		return u.Accounted() && len(u.Interfaces) == 1 && u.Interfaces[0].Hook == string(mode)
	})
	second := nettest.Container(t, host, testnet.ContainerOptions{Join: first.Namespace})
	r.waitReason(second.ID, usage.SharedNetwork)
	talk(t, first, nic.IPv4, peer, nic.HostIPv4, 10, 20)
	r.talked(first.ID, 10, 20)

	first.Interfaces = nil // which live on, with the namespace
	must(t, first.Close())
	r.wait(first.ID, "stopped", func(u usage.Container) bool { return u.State == usage.Stopped && !u.Interfaces[0].Attached })
	r.waitCounted(second.ID, 1)
	talk(t, second, nic.IPv4, peer, nic.HostIPv4, 30, 40)
	r.talked(second.ID, 30, 40)

	r.stop()
	talk(t, second, nic.IPv4, peer, nic.HostIPv4, 5, 5)
	r = begin()
	r.talked(second.ID, 35, 45)
	talk(t, second, nic.IPv4, peer, nic.HostIPv4, 1, 1)
	r.talked(second.ID, 36, 46)
	r.stop()
	must(t, bpf.Unpin(pins))
}

// pausing is a source of events that stop while a test has others told.
type pausing struct {
	others chan watcher.Event
	resume chan struct{}
}

func (p pausing) events(w *watcher.Watcher, ctx context.Context, to chan<- watcher.Event) error {
	events := make(chan watcher.Event)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, events) }()
	from := events
	for {
		select {
		case err := <-ended:
			return err
		case e := <-from:
			to <- e
		case e := <-p.others:
			from = nil
			to <- e
		case <-p.resume:
			from = events
		}
	}
}

// pause stops the events.
func (p pausing) pause() { p.look(-1) }

// look has whoever is in a namespace looked at, by the host's number for that. The second event
// is taken when the look that the first one caused is over.
func (p pausing) look(nsid int) {
	for range 2 {
		p.others <- watcher.LinkMoved{NetNSID: nsid}
	}
}

// TestHostEndMovesBeforeItsEvent has a container looked at when the host's end of its interface has
// gone, or is back, and no event has said so yet. What passes counts once.
func TestHostEndMovesBeforeItsEvent(t *testing.T) {
	need.Root(t)
	host, other := nettest.Host(t), nettest.Host(t)
	p := pausing{make(chan watcher.Event), make(chan struct{})}
	r := startWith(t, host, "", CgroupOff, p.events)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(c.ID, 1)
	frame := testnet.Frame{Interface: "eth0", Size: 100, Data: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}}
	name := c.Interfaces[0].HostName
	nsid := nettest.Must(host.LinkByName(name))(t).Attrs().NetNsID
	must(t, c.SendFrame(frame, 3))
	r.asKernel(c, "eth0")
	for _, move := range []struct{ from, to *testnet.Namespace }{{host, other}, {other, host}} {
		p.pause()
		must(t, move.from.LinkSetNsFd(nettest.Must(move.from.LinkByName(name))(t), move.to.FD()))
		silent(t, move.to, name)
		must(t, c.SendFrame(frame, 5))
		p.look(nsid)
		must(t, c.SendFrame(frame, 7))
		p.resume <- struct{}{}
		r.asKernel(c, "eth0")
		must(t, c.SendFrame(frame, 11))
		r.asKernel(c, "eth0")
	}
	if u := r.wait(c.ID, "there", func(usage.Container) bool { return true }); u.Transmit.Seeded != (usage.Volume{}) {
		t.Errorf("%+v seeded of what has passed since we came", u.Transmit.Seeded)
	}
}
