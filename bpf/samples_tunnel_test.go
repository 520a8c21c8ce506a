// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
)

// Numbers and types of tunnels' headers.
const (
	ipip       = 4
	sit        = 41
	bridgeType = 0x6558
	mplsType   = 0x8847
)

// udpTo returns a datagram to a port.
func udpTo(port int, payload []byte) []byte {
	return join(be16(40000), be16(port), be16((8+len(payload))&0xffff), be16(0), payload)
}

// vxlan returns a VXLAN header with some flags, and a frame behind it.
func vxlan(flags byte, next int, frame []byte) []byte {
	return join([]byte{flags, 0}, be16(next), []byte{0, 0, 7, 0}, frame)
}

// geneve returns a GENEVE header with some words of options.
func geneve(words, etherType int, payload []byte) []byte {
	return join([]byte{byte(words), 0}, be16(etherType), []byte{0, 0, 7, 0}, make([]byte, 4*words), payload)
}

// greOf returns a GRE header with some flags, each of which stands for four bytes.
func greOf(flags, etherType int, payload []byte) []byte {
	var fields []byte
	for _, flag := range []int{0x8000, 0x2000, 0x1000} {
		if flags&flag != 0 {
			fields = append(fields, 0, 0, 0, 7)
		}
	}
	return join(be16(flags), be16(etherType), fields, payload)
}

// gue returns a GUE header with some words of options.
func gue(words int, number byte, payload []byte) []byte {
	return join([]byte{byte(words), number, 0, 0}, make([]byte, 4*words), payload)
}

// labels returns some MPLS labels.
func labels(n int, payload []byte) []byte {
	var all []byte
	for i := range n {
		label := uint32(16+i)<<12 | 64
		if i == n-1 {
			label |= 0x100
		}
		all = binary.BigEndian.AppendUint32(all, label)
	}
	return join(all, payload)
}

// tunnelForm is a kind of tunnel: what it makes of an IP packet.
type tunnelForm struct {
	name   string
	number byte // of the protocol that the outer IP header names
	wrap   func(etherType int, packet []byte) []byte
}

// overUDP is how many of the tunnelForms are over UDP, the first ones.
const overUDP = 15

// tunnelForms are those whose super-packets the kernel makes.
func tunnelForms() []tunnelForm {
	datagrams := func(name string, port int, wrap func(int, []byte) []byte) tunnelForm {
		return tunnelForm{name, udp, func(t int, p []byte) []byte { return udpTo(port, wrap(t, p)) }}
	}
	frame := func(t int, p []byte) []byte { return join(eth(t), p) }
	number := func(t int) byte {
		if t == ipv6Type {
			return sit
		}
		return ipip
	}
	gpe := map[int]int{ipv4Type: 1, ipv6Type: 2}
	return []tunnelForm{
		datagrams("vxlan", 4789, func(t int, p []byte) []byte { return vxlan(8, 0, frame(t, p)) }),
		datagrams("vxlan on another port", 8472, func(t int, p []byte) []byte { return vxlan(8, 0, frame(t, p)) }),
		datagrams("vxlan with a policy", 4789, func(t int, p []byte) []byte { return vxlan(0x88, 0x0800, frame(t, p)) }),
		datagrams("vxlan of a tagged frame", 4789, func(t int, p []byte) []byte { return vxlan(8, 0, join(eth(ctag), tag(t), p)) }),
		datagrams("vxlan gpe", 4790, func(t int, p []byte) []byte { return vxlan(0x0c, gpe[t], p) }),
		datagrams("vxlan gpe of frames", 4790, func(t int, p []byte) []byte { return vxlan(0x0c, 3, frame(t, p)) }),
		datagrams("geneve", 6081, func(t int, p []byte) []byte { return geneve(0, bridgeType, frame(t, p)) }),
		datagrams("geneve with options", 6081, func(t int, p []byte) []byte { return geneve(2, bridgeType, frame(t, p)) }),
		datagrams("geneve with options that look like vxlan", 6081, func(t int, p []byte) []byte { return geneve(8, bridgeType, frame(t, p)) }),
		datagrams("geneve of packets", 6081, func(t int, p []byte) []byte { return geneve(0, t, p) }),
		datagrams("fou of packets", 5555, func(_ int, p []byte) []byte { return p }),
		datagrams("fou of gre", 5555, func(t int, p []byte) []byte { return greOf(0, t, p) }),
		datagrams("fou of gretap with a key", 5555, func(t int, p []byte) []byte { return greOf(0x2000, bridgeType, frame(t, p)) }),
		datagrams("gue of packets", 6080, func(t int, p []byte) []byte { return gue(0, number(t), p) }),
		datagrams("gue of gre with options", 6080, func(t int, p []byte) []byte { return gue(2, gre, greOf(0, t, p)) }),
		{"gre", gre, func(t int, p []byte) []byte { return greOf(0, t, p) }},
		{"gre with a key and a checksum", gre, func(t int, p []byte) []byte { return greOf(0xa000, t, p) }},
		{"gre with a number", gre, func(t int, p []byte) []byte { return greOf(0x1000, t, p) }},
		{"gretap", gre, func(t int, p []byte) []byte { return greOf(0, bridgeType, frame(t, p)) }},
	}
}

// tunnelSamples are super-packets of all tunnels, over and with both families.
func tunnelSamples() []sample {
	var all []sample
	for _, form := range tunnelForms() {
		all = append(all,
			inTunnel(form, ipv4Type, tunnelled(ipv4Type, tcp, 32, segment(ackFlag, 3, 2500))),
			inTunnel(form, ipv6Type, tunnelled(ipv6Type, udp, 8, datagram(2500))))
	}
	family := func(number byte) tunnelForm {
		return tunnelForm{"ip in ip", number, func(_ int, p []byte) []byte { return p }}
	}
	all = append(all,
		inTunnel(family(ipip), ipv4Type, tunnelled(ipv4Type, tcp, 32, segment(ackFlag, 3, 2500))),
		inTunnel(family(ipip), ipv6Type, tunnelled(ipv4Type, tcp, 32, segment(ackFlag, 3, 2500))),
		inTunnel(family(sit), ipv4Type, tunnelled(ipv6Type, tcp, 32, segment(ackFlag, 3, 2500))),
		inTunnel(family(sit), ipv6Type, tunnelled(ipv6Type, tcp, 32, segment(ackFlag, 3, 2500))))
	for n := 1; n <= 4; n++ {
		s := sample{name: fmt.Sprintf("gso: tcp behind %d labels", n), cell: nonIP, packets: 3, gso: gso{GSOSize: 1000, GSOSegs: 3}}
		s.packet = join(eth(mplsType), labels(n, ipv4(tcp, segment(ackFlag, 3, 2500))))
		s.headers = 14 + 4*n + 52
		s.bytes = uint64(len(s.packet) + 2*s.headers)
		all = append(all, s)
	}
	return all
}

// inner is a packet in a tunnel, and how long its headers are.
type inner struct {
	etherType int
	packet    []byte
	headers   int
}

func tunnelled(etherType int, number byte, header int, payload []byte) inner {
	if etherType == ipv6Type {
		return inner{etherType, ipv6(number, payload), 40 + header}
	}
	return inner{etherType, ipv4(number, payload), 20 + header}
}

// inTunnel returns a super-packet of a tunnel over a family.
func inTunnel(form tunnelForm, outer int, in inner) sample {
	wrapped := form.wrap(in.etherType, in.packet)
	s := sample{
		name: fmt.Sprintf("gso: %s over %#x with %#x", form.name, outer, in.etherType),
		gso:  gso{GSOSize: 1000, GSOSegs: 3}, packets: 3,
	}
	if outer == ipv4Type {
		s.packet, s.cell = join(eth(outer), ipv4(form.number, wrapped)), other4
	} else {
		s.packet, s.cell = join(eth(outer), ipv6(form.number, wrapped)), other6
	}
	if form.number == udp {
		s.cell = s.cell - other4 + udp4
	}
	s.headers = len(s.packet) - len(in.packet) + in.headers
	s.bytes = uint64(len(s.packet) + 2*s.headers)
	return s
}

// doubtfulSamples look like tunnels' super-packets and are none: the outer headers alone are
// repeated.
func doubtfulSamples() []sample {
	super := func(name string, packet []byte, size, segs, packets, headers int) sample {
		return sample{
			name: "gso: " + name, packet: packet, gso: gso{GSOSize: uint32(size), GSOSegs: uint32(segs)}, cell: udp4,
			packets: uint64(packets), bytes: uint64(len(packet) + (packets-1)*headers), headers: headers,
		}
	}
	over := func(payload []byte) []byte { return join(eth(ipv4Type), ipv4(udp, udpTo(4789, payload))) }
	in := func(payload []byte) []byte { return vxlan(8, 0, join(eth(ipv4Type), payload)) }
	tcpIn := ipv4(tcp, segment(ackFlag, 3, 2500))
	first := ipv4(tcp, segment(ackFlag, 3, 948-22)) // of datagrams of 1000 bytes
	const outer, both = 42, 42 + 8 + 14 + 52
	deep := geneve(40, bridgeType, join(eth(ipv4Type), tcpIn))
	return []sample{
		super("datagrams that hold packets", over(in(join(first, make([]byte, 2000)))), 1000, 3, 3, outer),
		super("an inner packet longer than the rest", over(in(patched(tcpIn, 2, be16(3000)...))), 1000, 3, 3, outer),
		super("one byte behind the inner packet", over(in(join(tcpIn, []byte{0}))), 1000, 3, 3, outer),
		super("segments that the headers fill", over(in(ipv4(tcp, segment(ackFlag, 3, 1000)))), 10, 108, 108, outer),
		super("segments that the payload fills", over(in(ipv4(tcp, segment(ackFlag, 3, 1000)))), 10, 100, 100, both),
		super("segments that are not said", over(in(ipv4(tcp, segment(ackFlag, 3, 1000)))), 10, 0, 100, both),
		super("headers of more than 256 bytes in all", over(deep), 1000, 3, 3, outer),
		super("a fragment inside", over(in(ipv4Fragment(3, true, tcp, segment(ackFlag, 3, 2500)))), 1000, 3, 3, outer),
		super("icmp inside", over(in(ipv4(icmp, make([]byte, 2500)))), 1000, 3, 3, outer),
		super("arp inside", over(vxlan(8, 0, join(eth(0x0806), make([]byte, 2500)))), 1000, 3, 3, outer),
		super("a malformed header inside", over(in(patched(tcpIn, 32, 0x40))), 1000, 3, 3, outer),
		super("no network's number", over(vxlan(0, 0, join(eth(ipv4Type), tcpIn))), 1000, 3, 3, outer),
		super("a control message", over(join([]byte{0x20, ipip, 0, 0}, tcpIn)), 1000, 3, 3, outer),
		super("gre of another version", over(greOf(1, ipv4Type, tcpIn)), 1000, 3, 3, outer),
		super("a tunnel in a tunnel", over(in(ipv4(ipip, tcpIn))), 1000, 3, 3, outer),
	}
}
