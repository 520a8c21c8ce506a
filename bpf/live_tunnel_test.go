// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// TestLiveVXLAN moves some MB each way through a tunnel. What is counted is what TCP says it
// has sent, with all headers, wherever its segments are made.
func TestLiveVXLAN(t *testing.T) {
	need.Commands(t, "ethtool")
	both := func(state string, names ...string) func(*testing.T, *cable) {
		return func(t *testing.T, c *cable) {
			for i := range names {
				c.offload(t, []*testnet.Namespace{c.host, c.container}[i], names[i], state)
			}
		}
	}
	gro := func(t *testing.T, c *cable) {
		both("off", "veth0", "eth0")(t, c)
		_, err := c.host.Run("ethtool", "-K", "veth0", "gro", "on")
		must(t, err)
	}
	for _, test := range []struct {
		name         string
		prepare      func(*testing.T, *cable)
		superRx      bool // the hook sees super-packets of what the container receives
		superTx      bool // and of what it sends
		linkSegments bool // the link counts segments, whatever the hook sees
	}{
		{"offload", both("on", "veth0", "eth0"), true, true, false},
		{"no offload in the tunnel", both("off", "vx", "vx"), false, false, false},
		{"no offload below the tunnel", both("off", "veth0", "eth0"), true, false, true},
		{"gro", gro, true, true, true},
	} {
		for _, family := range []string{"ipv4", "ipv6"} {
			t.Run(test.name+" over "+family, func(t *testing.T) {
				c := newCable(t, false)
				header, cell := 14+20+8+8+14+20+32, udp4
				if family == "ipv6" {
					header, cell = header+20, udp6
				}
				c.addresses(t)
				c.vxlan(t, family)
				test.prepare(t, c)
				near, far := c.transferTo(t, "tcp4", tunnel4, 10<<20)
				c.compareTCP(t, cell, header, near, far)
				rx, tx := c.read(t)
				for name, want := range map[string]bool{"received": test.superRx, "sent": test.superTx} {
					r := map[string]Counters{"received": rx, "sent": tx}[name]
					if wire, _ := whole(r); want != (wire > 2*r.Interface.Packets) {
						t.Errorf("%s %d packets in %d, want super-packets: %v", name, wire, r.Interface.Packets, want)
					}
				}
				if !test.linkSegments || !test.superTx { // of GRO the link has seen what was before
					c.compareLink(t, !test.linkSegments)
				}
			})
		}
	}
}

// The container's address in the tunnel; the host's ends in 1.
const tunnel4 = "10.8.0.2"

// vxlan makes a tunnel over the cable, in which nobody asks for anything.
func (c *cable) vxlan(t *testing.T, family string) {
	t.Helper()
	near, far := net.ParseIP("10.9.0.1"), net.ParseIP(address4)
	if family == "ipv6" {
		near, far = net.ParseIP("fd09::1"), net.ParseIP(address6)
	}
	hardware := []net.HardwareAddr{{2, 0, 0, 0, 1, 1}, {2, 0, 0, 0, 1, 2}}
	for i, end := range []struct {
		*testnet.Namespace
		local, remote  net.IP
		below          netlink.Link
		address, other string
	}{
		{c.host, near, far, c.hostEnd, "10.8.0.1", tunnel4},
		{c.container, far, near, c.end, tunnel4, "10.8.0.1"},
	} {
		sysctl(t, end.Namespace, "ipv6/conf/default/disable_ipv6", "1")
		must(t, end.LinkAdd(&netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "vx", MTU: 1400, HardwareAddr: hardware[i]},
			VxlanId:   7, Port: 4789, SrcAddr: end.local, Group: end.remote, VtepDevIndex: end.below.Attrs().Index,
			UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true,
		}))
		vx := link(t, end.Namespace, "vx")
		must(t, end.LinkSetUp(vx))
		address(t, end.Namespace, vx, end.address+"/24")
		must(t, end.NeighAdd(&netlink.Neigh{
			LinkIndex: vx.Attrs().Index, IP: net.ParseIP(end.other), HardwareAddr: hardware[1-i], State: netlink.NUD_PERMANENT,
		}))
	}
}

// TestLiveTunnels puts super-packets into tunnels of all forms as they leave a container, and
// holds what is counted of them to the segments that the kernel makes of them where the
// container's interface takes no super-packets.
func TestLiveTunnels(t *testing.T) {
	need.Commands(t, "ethtool")
	onOneCPU(t)
	super, segmented := newSender(t, "on"), newSender(t, "off")
	forms := append(tunnelForms(),
		tunnelForm{"ip in ip", ipip, func(_ int, p []byte) []byte { return p }},
		tunnelForm{"sit", sit, func(_ int, p []byte) []byte { return p }})
	for _, form := range forms {
		for _, outer := range []int{ipv4Type, ipv6Type} {
			for _, inner := range []int{ipv4Type, ipv6Type} {
				if form.number == ipip && inner != ipv4Type || form.number == sit && inner != ipv6Type {
					continue
				}
				t.Run(fmt.Sprintf("%s over %#x with %#x", form.name, outer, inner), func(t *testing.T) {
					for _, transport := range []func(int) (vnetHeader, []byte){superTCP, superUDP} {
						header, packet := transport(inner)
						compareTunnel(t, super, segmented, header, packet, tunnelPath{form, outer, inner})
					}
				})
			}
		}
	}
}

// tunnelPath is a form, the family that it is over, and that of what is in it.
type tunnelPath struct {
	form         tunnelForm
	outer, inner int
}

// compareTunnel sends a packet through a tunnel from a container that sends super-packets and
// from one that sends segments.
func compareTunnel(t *testing.T, super, segmented *sender, header vnetHeader, packet []byte, p tunnelPath) {
	t.Helper()
	headers := p.form.headers(p.outer, p.inner, packet)
	program := encapsulator(t, headers, p.form.number, p.outer)
	frame := join(eth(p.inner), packet)

	before := linkStatistics(t, segmented.cable)
	segments := segmented.send(t, program, header, frame)
	after := linkStatistics(t, segmented.cable)
	want := fmt.Sprint(after.RxPackets-before.RxPackets, after.RxBytes-before.RxBytes)
	if got := fmt.Sprint(whole(segments)); got != want {
		t.Errorf("segments counted as %s, the link says %s", got, want)
	}
	seen := super.send(t, program, header, frame)
	if got := seen.Interface; got.Packets != 1 || got.Bytes != uint64(len(frame)+len(headers)-2) {
		t.Errorf("the hook saw %+v, which is no super-packet", got)
	}
	if got := fmt.Sprint(whole(seen)); got != want {
		t.Errorf("a super-packet of %d bytes counted as %s, the link says %s of its segments", seen.Interface.Bytes, got, want)
	}
}

// sender is a container that sends forged super-packets.
type sender struct {
	*cable
	fd int
}

// newSender returns a container whose interface takes super-packets, or does not.
func newSender(t *testing.T, offload string) *sender {
	t.Helper()
	c := newCable(t, true)
	c.offload(t, c.container, "eth0", offload)
	return &sender{c, rawSocket(t, c.container, c.end)}
}

// send sends a frame by a program, and returns what is counted of it.
func (s *sender) send(t *testing.T, program *ebpf.Program, header vnetHeader, frame []byte) Counters {
	t.Helper()
	s.filter(t, s.container, s.end, netlink.HANDLE_MIN_EGRESS, 1, program)
	_, before := s.read(t)
	must(t, header.send(s.fd, frame))
	_, now := s.read(t)
	return minus(now, before)
}

// segmentSize is that of the super-packets' segments, and superSegments how many they have.
const segmentSize, superSegments = 1200, 12

func superTCP(family int) (vnetHeader, []byte) {
	h := vnetHeader{Flags: needsChecksum, GSOType: gsoTCPv4, GSOSize: segmentSize, ChecksumStart: 14 + 20, Offset: 16}
	transport := segment(ackFlag, 3, segmentSize*superSegments-7)
	h.HeaderLen = h.ChecksumStart + 32
	if family == ipv6Type {
		h.GSOType, h.ChecksumStart, h.HeaderLen = gsoTCPv6, h.ChecksumStart+20, h.HeaderLen+20
		return h, ipv6(tcp, transport)
	}
	return h, ipv4(tcp, transport)
}

func superUDP(family int) (vnetHeader, []byte) {
	h := vnetHeader{Flags: needsChecksum, GSOType: gsoUDPL4, GSOSize: segmentSize, ChecksumStart: 14 + 20, Offset: 6}
	transport := udpTo(9, make([]byte, segmentSize*superSegments-7))
	h.HeaderLen = h.ChecksumStart + 8
	if family == ipv6Type {
		h.ChecksumStart, h.HeaderLen = h.ChecksumStart+20, h.HeaderLen+20
		return h, ipv6(udp, transport)
	}
	return h, ipv4(udp, transport)
}

// headers returns what the form puts in front of a packet, from the outer EtherType on.
func (f tunnelForm) headers(outer, inner int, packet []byte) []byte {
	wrapped := f.wrap(inner, packet)
	if outer == ipv6Type {
		wrapped = join(be16(outer), ipv6(f.number, wrapped))
	} else {
		wrapped = join(be16(outer), ipv4(f.number, wrapped))
	}
	return wrapped[:len(wrapped)-len(packet)]
}

// encapsulator returns a program that puts headers between a frame's addresses and its packet,
// as a tunnel's device does.
func encapsulator(t *testing.T, headers []byte, number byte, outer int) *ebpf.Program {
	t.Helper()
	// Of bpf_skb_adjust_room, linux/bpf.h.
	const adjoinMAC, fixedGSO, overIPv4, overIPv6, inGRE, inUDP, l2Shift = 1, 1, 2, 4, 8, 16, 56
	added := len(headers) - 2
	flags, within := uint64(fixedGSO|overIPv4), added-20
	if outer == ipv6Type {
		flags, within = fixedGSO|overIPv6, added-40
	}
	switch number {
	case udp:
		flags |= inUDP | uint64(within-8)<<l2Shift
	case gre:
		flags |= inGRE | uint64(within-4)<<l2Shift
	}
	kept, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(headers)), MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: headers}}})
	must(t, err)
	t.Cleanup(func() { must(t, kept.Close()) })
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "encapsulate", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, int32(added)),
		asm.Mov.Imm(asm.R3, adjoinMAC),
		asm.LoadImm(asm.R4, int64(flags), asm.DWord),
		asm.FnSkbAdjustRoom.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, kept.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 12),
		asm.Mov.Reg(asm.R3, asm.R0),
		asm.Mov.Imm(asm.R4, int32(len(headers))),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R0, -1),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("drop"), // TC_ACT_SHOT
		asm.Return(),
	}})
	must(t, err)
	t.Cleanup(func() { must(t, program.Close()) })
	return program
}
