// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// TestLosses says of a container what the kernel does, over an end of the process and over a
// shaper that is replaced.
func TestLosses(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	for name, mode := range map[string]Mode{"clsact": ModeClsact, "tcx": ModeTCX} {
		t.Run(name, func(t *testing.T) { testLosses(t, mode) })
	}
}

// lossy is a container that loses packets.
type lossy struct {
	*testnet.Container
	t     *testing.T
	host  *testnet.Namespace
	local *testnet.Agent
	mac   net.HardwareAddr

	before uint64 // that was refused before we came
}

func newLossy(t *testing.T, host *testnet.Namespace) lossy {
	t.Helper()
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	mac := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs().HardwareAddr
	return lossy{Container: c, t: t, host: host, local: nettest.Agent(t, host), mac: mac}
}

// loses has the container drop so many packets that it receives, and fail to send others,
// since they are too large for the host's end.
func (c lossy) loses(received, transmitted int) {
	c.t.Helper()
	eth0 := c.Interfaces[0]
	nettest.SendUnwanted(c.t, c.local, eth0.HostName, c.mac, received)
	nettest.Must(c.host.Run("ip", "link", "set", eth0.HostName, "mtu", "1000"))(c.t)
	must(c.t, c.Container.SendUDP(nettest.Must(c.local.Listen("udp", eth0.HostIPv4))(c.t).Addr, transmitted, 1200))
	nettest.Must(c.host.Run("ip", "link", "set", eth0.HostName, "mtu", "1500"))(c.t)
}

// shape replaces the root qdisc of the host's end by a shaper, and sends more than it lets pass.
// It returns how many packets it has dropped.
func (c lossy) shape(handle string, count int) uint64 {
	c.t.Helper()
	eth0 := c.Interfaces[0]
	_, _ = c.host.Run("tc", "qdisc", "del", "dev", eth0.HostName, "root") // there may be none
	nettest.Must(c.host.Run("tc", "qdisc", "add", "dev", eth0.HostName, "root", "handle", handle,
		"tbf", "rate", "1mbit", "burst", "4k", "latency", "20ms"))(c.t)
	must(c.t, c.local.SendUDP(nettest.Must(c.Container.Listen("udp", eth0.IPv4))(c.t).Addr, count, 1000))
	return nettest.QdiscDropped(c.t, c.host, eth0.HostName)
}

// refused returns what the host's end itself has dropped: some while its qdisc is changed.
func (c lossy) refused() uint64 {
	c.t.Helper()
	return nettest.Must(testnet.InterfaceLosses(c.local.PID()))(c.t)[c.Interfaces[0].HostName].TransmitDropped
}

// lost waits until what is said of a container's only interface is what the kernel has. shaped
// is what qdiscs have dropped of what we have counted.
func (r *rig) lost(c lossy, shaped uint64) usage.Container {
	r.t.Helper()
	return r.wait(c.ID, "said to have lost what the kernel says", func(u usage.Container) bool {
		kernel := nettest.Must(testnet.InterfaceLosses(c.PID()))(r.t)["eth0"]
		want := usage.Lost{
			Known:    true,
			Receive:  usage.Loss{Dropped: kernel.ReceiveDropped, Errors: kernel.ReceiveErrors},
			Transmit: usage.Loss{Dropped: kernel.TransmitDropped, Errors: kernel.TransmitErrors},
			Followed: true, Undelivered: shaped + c.refused() - c.before,
		}
		return len(u.Interfaces) == 1 && u.Interfaces[0].Lost == want && u.Lost == want
	})
}

func testLosses(t *testing.T, mode Mode) {
	pins := nettest.BPFFS(t) + "/nettally"
	host := nettest.Host(t)
	c := newLossy(t, host)
	c.loses(3, 2)      // before we come, and so of its lifetime
	c.shape("2:", 200) // of which we have seen nothing
	inMode := func(control *Controller) {
		settings := control.Settings
		control.Settings = func() Settings { s := settings(); s.Mode = mode; return s }
	}
	c.before = c.refused()
	r := start(t, host, pins, inMode)
	r.waitCounted(c.ID, 1)
	r.lost(c, 0)
	c.loses(40, 25)
	dropped := c.shape("1:", 300)
	if dropped == 0 {
		t.Fatal("the shaper has dropped nothing: is this a test of anything?")
	}
	u := r.lost(c, dropped)
	if u.Receive.Mended != (usage.Volume{}) {
		t.Errorf("mended %+v", u.Receive.Mended)
	}
	// What was dropped is among what we have counted, and nothing else is missing to the kernel.
	r.wait(c.ID, "counted as the kernel has it, and what was dropped", func(u usage.Container) bool {
		kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(t)["eth0"]
		return u.Receive.Interface.Packets == kernel.ReceivePackets+u.Lost.Undelivered
	})

	r.stop()
	c.loses(7, 5)
	must(t, c.local.SendUDP(nettest.Must(c.Container.Listen("udp", c.Interfaces[0].IPv4))(t).Addr, 300, 1000))
	dropped = nettest.QdiscDropped(t, host, c.Interfaces[0].HostName)
	r = start(t, host, pins, inMode)
	r.waitCounted(c.ID, 1)
	r.lost(c, dropped)
	dropped += c.shape("1:", 100) // another one by the same handle
	c.loses(1, 1)
	r.lost(c, dropped)
}

// detour is a way that packets are dropped on, or go round us, and what is said of it.
type detour struct {
	name string
	do   func(*testing.T, lossy) (undo func())
	in   int // packets that are sent to the container
	out  int // that it sends
	want passed
}

// passed is what happened to them.
type passed struct {
	received, transmitted             uint64 // as we have it
	kernelReceived, kernelTransmitted uint64 // as the container's end has it
	receiveDropped, transmitDropped   uint64 // both say so
	undelivered                       uint64
}

const (
	detourPackets = 500
	// detourNoise is what comes besides: ARP, and what IPv6 does by itself.
	detourNoise = 40
)

// TestDetours holds what docs/decisions/drops.md says of ways on which packets are dropped.
func TestDetours(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc", "iptables")
	const all = detourPackets
	both := passed{received: all, transmitted: all, kernelReceived: all, kernelTransmitted: all}
	for _, d := range []detour{
		{"none", func(*testing.T, lossy) func() { return func() {} }, all, all, both},
		{"larger than the host's end takes", mtuOf(lossy.onHost), 0, all, passed{transmitDropped: all}},
		{"larger than the container's end takes", mtuOf(lossy.inside), all, 0, passed{received: all, receiveDropped: all, undelivered: all}},
		{"firewall in the container", firewall, all, all, both},
		{"XDP in the container", xdpDrop(lossy.inside), all, all, both},
		{"program behind ours, on the way in", tcxDrop(ebpf.AttachTCXEgress), all, 0, passed{received: all}},
		{"program behind ours, on the way out", tcxDrop(ebpf.AttachTCXIngress), 0, all, passed{transmitted: all, kernelTransmitted: all}},
		{"XDP on the host's end", xdpDrop(lossy.onHost), all, all, both},
	} {
		t.Run(d.name, func(t *testing.T) { d.test(t) })
	}
}

// place is one end of a veth.
type place func(lossy) (*testnet.Namespace, string)

func (c lossy) onHost() (*testnet.Namespace, string) { return c.host, c.Interfaces[0].HostName }
func (c lossy) inside() (*testnet.Namespace, string) { return c.Namespace, "eth0" }

func (d detour) test(t *testing.T) {
	host := nettest.Host(t)
	c := newLossy(t, host)
	r := start(t, host, "", func(control *Controller) { // before whoever comes later
		settings := control.Settings
		control.Settings = func() Settings { s := settings(); s.Mode = ModeTCX; return s }
	})
	r.wait(c.ID, "counted", func(u usage.Container) bool {
		return u.Accounted() && len(u.Interfaces) == 1 && u.Interfaces[0].Hook == HookTCX
	})
	c.before = c.refused()
	before := r.passedBy(c, r.lost(c, 0))
	undo := d.do(t, c)
	eth0 := c.Interfaces[0]
	for sent := 0; sent < detourPackets; sent += 100 {
		must(t, c.local.SendUDP(nettest.Must(c.Container.Listen("udp", eth0.IPv4))(t).Addr, min(d.in, 100), 1200))
		must(t, c.Container.SendUDP(nettest.Must(c.local.Listen("udp", eth0.HostIPv4))(t).Addr, min(d.out, 100), 1200))
	}
	defer undo() // a program that drops is there while we look
	r.wait(c.ID, "said to have passed as it has", func(u usage.Container) bool {
		now := r.passedBy(c, u)
		near := func(now, before, want uint64) bool { return now-before >= want && now-before <= want+detourNoise }
		return near(now.received, before.received, d.want.received) && near(now.transmitted, before.transmitted, d.want.transmitted) &&
			near(now.kernelReceived, before.kernelReceived, d.want.kernelReceived) &&
			near(now.kernelTransmitted, before.kernelTransmitted, d.want.kernelTransmitted) &&
			near(now.receiveDropped, before.receiveDropped, d.want.receiveDropped) &&
			near(now.transmitDropped, before.transmitDropped, d.want.transmitDropped) &&
			near(now.undelivered, before.undelivered, d.want.undelivered)
	})
}

// passedBy is what is said of a container by now, by us and by the kernel.
func (r *rig) passedBy(c lossy, u usage.Container) passed {
	r.t.Helper()
	kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(r.t)["eth0"]
	lost := nettest.Must(testnet.InterfaceLosses(c.PID()))(r.t)["eth0"]
	p := passed{
		received: u.Receive.Interface.Packets, transmitted: u.Transmit.Interface.Packets,
		kernelReceived: kernel.ReceivePackets, kernelTransmitted: kernel.TransmitPackets,
		receiveDropped: u.Lost.Receive.Dropped, transmitDropped: u.Lost.Transmit.Dropped, undelivered: u.Lost.Undelivered,
	}
	if lost.ReceiveDropped != p.receiveDropped || lost.TransmitDropped != p.transmitDropped {
		p.receiveDropped, p.transmitDropped = 1<<63, 1<<63 // not what the kernel says
	}
	return p
}

func mtuOf(at place) func(*testing.T, lossy) func() {
	return func(t *testing.T, c lossy) func() {
		n, name := at(c)
		nettest.Must(n.Run("ip", "link", "set", name, "mtu", "1000"))(t)
		return func() {}
	}
}

func firewall(t *testing.T, c lossy) func() {
	nettest.Must(c.Namespace.Run("iptables", "-A", "INPUT", "-p", "udp", "-j", "DROP"))(t)
	return func() {}
}

// returning is a program that returns a number.
func returning(t *testing.T, kind ebpf.ProgramType, number int32) *ebpf.Program {
	t.Helper()
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, number), asm.Return(),
	}}))(t)
	t.Cleanup(func() { _ = program.Close() })
	return program
}

func xdpDrop(at place) func(*testing.T, lossy) func() {
	return func(t *testing.T, c lossy) func() {
		n, name := at(c)
		program := returning(t, ebpf.XDP, 1) // XDP_DROP
		var on link.Link
		must(t, n.Do(func() (err error) {
			on, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: nettest.Must(n.LinkByName(name))(t).Attrs().Index})
			return err
		}))
		return func() { must(t, on.Close()) }
	}
}

func tcxDrop(at ebpf.AttachType) func(*testing.T, lossy) func() {
	return func(t *testing.T, c lossy) func() {
		program := returning(t, ebpf.SchedCLS, 2) // TC_ACT_SHOT
		var on link.Link
		must(t, c.host.Do(func() (err error) {
			on, err = link.AttachTCX(link.TCXOptions{
				Program: program, Interface: nettest.Must(c.host.LinkByName(c.Interfaces[0].HostName))(t).Attrs().Index, Attach: at, Anchor: link.Tail(),
			})
			return err
		}))
		return func() { must(t, on.Close()) }
	}
}
