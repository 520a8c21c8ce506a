// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"slices"
)

// samples are packets of each kind the classifiers tell apart. They are also what
// the random packets start from.
func samples() []sample {
	return slices.Concat(tcpSamples(), protocolSamples(), extensionSamples(), linkSamples(), lengthSamples(), gsoSamples(), forgedSamples(), tunnelSamples(), doubtfulSamples())
}

func tcpSamples() []sample {
	all := []sample{
		{name: "tcp4 data", packet: join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 1448))), cell: tcp4, headers: 66},
		{name: "tcp6 data", packet: join(eth(ipv6Type), ipv6(tcp, segment(ackFlag, 3, 1428))), cell: tcp6, headers: 86},
		{name: "tcp4 padded to the least frame", packet: join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 0, 0)), make([]byte, 6)), cell: tcp4, flags: "syn", headers: 54},
	}
	for _, f := range []struct {
		name  string
		flags byte
	}{
		{"syn", synFlag}, {"synack", synFlag | ackFlag}, {"rst", rstFlag}, {"fin", finFlag | ackFlag},
		{"syn+fin", synFlag | finFlag}, {"synack+rst+fin", synFlag | ackFlag | rstFlag | finFlag},
		{"", 0xff &^ (synFlag | rstFlag | finFlag)},
	} {
		all = append(all,
			sample{name: "tcp4 flags " + f.name, packet: join(eth(ipv4Type), ipv4(tcp, segment(f.flags, 5, 0))), cell: tcp4, flags: f.name, headers: 74},
			sample{name: "tcp6 flags " + f.name, packet: join(eth(ipv6Type), ipv6(tcp, segment(f.flags, 5, 0))), cell: tcp6, flags: f.name, headers: 94})
	}
	for words := 1; words <= 10; words++ {
		all = append(all, sample{
			name:   fmt.Sprintf("ipv4 options ihl %d", 5+words),
			packet: join(eth(ipv4Type), ipv4Options(words, tcp, segment(synFlag, 0, 10))),
			cell:   tcp4, flags: "syn", headers: 54 + 4*words,
		}, sample{
			name:   fmt.Sprintf("tcp options doff %d", 5+words),
			packet: join(eth(ipv6Type), ipv6(tcp, segment(synFlag, words, 10))),
			cell:   tcp6, flags: "syn", headers: 74 + 4*words,
		})
	}
	return all
}

func protocolSamples() []sample {
	var all []sample
	for _, p := range []struct {
		name         string
		number       byte
		cell4, cell6 int
	}{
		{"udp", udp, udp4, udp6}, {"icmp", icmp, icmp4, other6}, {"icmpv6", icmpv6, other4, icmp6},
		{"gre", gre, other4, other6}, {"esp", esp, other4, other6}, {"sctp", sctp, other4, other6},
		{"igmp", 2, other4, other6}, {"no next header", noNext, other4, other6},
	} {
		all = append(all,
			sample{name: p.name + " in ipv4", packet: join(eth(ipv4Type), ipv4(p.number, datagram(40))), cell: p.cell4, headers: 34},
			sample{name: p.name + " in ipv6", packet: join(eth(ipv6Type), ipv6(p.number, datagram(40))), cell: p.cell6, headers: 54})
	}
	return append(all,
		sample{name: "ah in ipv4", packet: join(eth(ipv4Type), ipv4(ah, authentication(tcp, 4, segment(synFlag, 0, 0)))), cell: other4, headers: 34},
		sample{name: "ipv4 first fragment", packet: join(eth(ipv4Type), ipv4Fragment(0, true, tcp, segment(synFlag, 0, 4))), cell: tcp4, flags: "syn", headers: 54},
		sample{name: "ipv4 later fragment", packet: join(eth(ipv4Type), ipv4Fragment(3, true, tcp, segment(synFlag, 0, 4))), cell: tcp4, headers: 34},
		sample{name: "ipv4 last fragment", packet: join(eth(ipv4Type), ipv4Fragment(0x1fff, false, udp, segment(synFlag, 0, 4))), cell: udp4, headers: 34},
		sample{name: "ipv4 first fragment within tcp", packet: join(eth(ipv4Type), ipv4Fragment(0, true, tcp, segment(synFlag, 0, 4)[:16])), cell: tcp4, trouble: "truncated", headers: 54})
}

func extensionSamples() []sample {
	syn := segment(synFlag, 2, 30)
	row := func(name string, next byte, payload []byte, headers int) sample {
		return sample{name: name, packet: join(eth(ipv6Type), ipv6(next, payload)), cell: tcp6, flags: "syn", headers: 54 + headers + 28}
	}
	plain := func(s sample, cell, headers int) sample {
		s.cell, s.flags, s.headers = cell, "", 54+headers
		return s
	}
	tooMany := plain(row("nine extension headers", destination, repeat(destination, 9, syn), 0), other6, 64)
	tooMany.trouble = "too_many_headers"
	shortAH := plain(row("ah shorter than its fixed part", ah, authentication(tcp, 0, syn), 0), other6, 8)
	shortAH.trouble = "malformed"
	return []sample{
		row("hop-by-hop", hopByHop, extension(tcp, 0, syn), 8),
		row("hop-by-hop of 24", hopByHop, extension(tcp, 2, syn), 24),
		row("routing", routing, extension(tcp, 4, syn), 40),
		row("destination options", destination, extension(tcp, 1, syn), 16),
		row("destination options of 2048", destination, extension(tcp, 255, syn), 2048),
		row("ah", ah, authentication(tcp, 4, syn), 24),
		row("ah with an odd length", ah, authentication(tcp, 5, syn), 28),
		row("first fragment", fragment, ipv6Fragment(0, true, tcp, syn), 8),
		row("atomic fragment", fragment, ipv6Fragment(0, false, tcp, syn), 8),
		row("all five in a chain", hopByHop, extension(destination, 0, extension(routing, 0,
			extension(fragment, 2, ipv6Fragment(0, true, ah, authentication(tcp, 2, syn))))), 8+8+24+8+16),
		row("eight extension headers", destination, repeat(destination, 8, syn), 64),
		plain(row("later fragment", fragment, ipv6Fragment(1, true, tcp, syn), 0), tcp6, 8),
		plain(row("last fragment of udp", fragment, ipv6Fragment(0x1fff, false, udp, syn), 0), udp6, 8),
		plain(row("later fragment of a header chain", hopByHop, extension(fragment, 0, ipv6Fragment(9, true, destination, syn)), 0), other6, 16),
		plain(row("udp behind a hop-by-hop", hopByHop, extension(udp, 0, datagram(3)), 0), udp6, 8),
		plain(row("icmpv6 behind a hop-by-hop", hopByHop, extension(icmpv6, 0, datagram(3)), 0), icmp6, 8),
		plain(row("nothing behind a hop-by-hop", hopByHop, extension(noNext, 0, nil), 0), other6, 8),
		tooMany, shortAH,
	}
}

func linkSamples() []sample {
	syn4, syn6 := ipv4(tcp, segment(synFlag, 0, 10)), ipv6(tcp, segment(synFlag, 0, 10))
	return []sample{
		{name: "802.1q", packet: join(eth(ctag), tag(ipv4Type), syn4), cell: tcp4, flags: "syn", headers: 58},
		{name: "802.1ad", packet: join(eth(stag), tag(ipv6Type), syn6), cell: tcp6, flags: "syn", headers: 78},
		{name: "qinq", packet: join(eth(stag), tag(ctag), tag(ipv6Type), syn6), cell: tcp6, flags: "syn", headers: 82},
		{name: "two c-tags", packet: join(eth(ctag), tag(ctag), tag(ipv4Type), syn4), cell: tcp4, flags: "syn", headers: 62},
		{name: "three tags", packet: join(eth(stag), tag(ctag), tag(ctag), tag(ipv4Type), syn4), cell: nonIP, headers: 22},
		{name: "tagged arp", packet: join(eth(ctag), tag(0x0806), make([]byte, 42)), cell: nonIP, headers: 18},
		{name: "tagged llc", packet: join(eth(ctag), tag(42), make([]byte, 42)), cell: nonIP, headers: 18},
		{name: "802.3 llc", packet: join(eth(38), []byte{0x42, 0x42, 3}, make([]byte, 43)), cell: nonIP, headers: 14},
		{name: "802.3 raw", packet: join(eth(38), []byte{0xff, 0xff}, make([]byte, 44)), cell: nonIP, headers: 14},
		{name: "arp", packet: join(eth(0x0806), make([]byte, 46)), cell: nonIP, headers: 14},
		{name: "mpls", packet: join(eth(0x8847), make([]byte, 4), syn4), cell: nonIP, headers: 14},
		{name: "lldp", packet: join(eth(0x88cc), make([]byte, 60)), cell: nonIP, headers: 14},
		{name: "pppoe", packet: join(eth(0x8864), make([]byte, 60)), cell: nonIP, headers: 14},
	}
}

// lengthSamples are headers that lie about lengths.
func lengthSamples() []sample {
	tcp4Packet := join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 2, 40)))
	tcp6Packet := join(eth(ipv6Type), ipv6(tcp, segment(synFlag, 2, 40)))
	ihl := func(b byte) []byte { return patched(tcp4Packet, 14, b) }
	length4 := func(n int) []byte { return patched(tcp4Packet, 16, be16(n)...) }
	length6 := func(n int) []byte { return patched(tcp6Packet, 18, be16(n)...) }
	return []sample{
		{name: "ipv4 total length 0", packet: length4(0), cell: tcp4, flags: "syn", headers: 62},
		{name: "ipv4 total length beyond the frame", packet: length4(2000), cell: tcp4, flags: "syn", headers: 62},
		{name: "ipv4 total length below its header", packet: length4(19), cell: tcp4, trouble: "malformed", headers: 34},
		{name: "ipv4 total length ends within tcp", packet: length4(39), cell: tcp4, trouble: "truncated", headers: 54},
		{name: "ipv4 total length ends within tcp options", packet: length4(47), cell: tcp4, trouble: "truncated", headers: 62},
		{name: "ipv4 ihl 4", packet: ihl(0x44), cell: other4, trouble: "malformed", headers: 34},
		{name: "ipv4 of version 6", packet: ihl(0x65), cell: other4, trouble: "malformed", headers: 34},
		{name: "ipv6 of version 4", packet: patched(tcp6Packet, 14, 0x45), cell: other6, trouble: "malformed", headers: 54},
		{name: "ipv6 payload length 0", packet: length6(0), cell: tcp6, flags: "syn", headers: 82},
		{name: "ipv6 payload length beyond the frame", packet: length6(2000), cell: tcp6, flags: "syn", headers: 82},
		{name: "ipv6 payload length ends within tcp", packet: length6(19), cell: tcp6, trouble: "truncated", headers: 74},
		{name: "ipv6 jumbogram", packet: patched(join(eth(ipv6Type), ipv6(hopByHop, jumbo(tcp, segment(synFlag, 2, 40)))), 18, 0, 0), cell: tcp6, flags: "syn", headers: 90},
		{name: "ipv6 extension beyond the packet", packet: join(eth(ipv6Type), ipv6(hopByHop, patched(extension(tcp, 0, segment(synFlag, 0, 0)), 1, 3))), cell: other6, trouble: "truncated", headers: 62},
		{name: "tcp4 doff 4", packet: patched(tcp4Packet, 46, 0x40), cell: tcp4, trouble: "malformed", headers: 54},
		{name: "tcp4 doff beyond", packet: patched(join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 0, 39))), 46, 0xf0), cell: tcp4, trouble: "truncated", headers: 54},
		{name: "tcp6 doff 0", packet: patched(tcp6Packet, 66, 0), cell: tcp6, trouble: "malformed", headers: 74},
		{name: "tcp6 doff beyond", packet: patched(join(eth(ipv6Type), ipv6(tcp, segment(synFlag, 0, 39))), 66, 0xf0), cell: tcp6, trouble: "truncated", headers: 74},
	}
}

// gsoSamples are super-packets of segmentation offload. A test run takes some 3.5 KB,
// so that those of "BIG TCP" are small; TestLiveTCP has large ones.
func gsoSamples() []sample {
	super := func(name string, packet []byte, size, segs, cell, packets, headers int) sample {
		return sample{
			name: name, packet: packet, gso: gso{GSOSize: uint32(size), GSOSegs: uint32(segs)}, cell: cell,
			packets: uint64(packets), bytes: uint64(len(packet) + (packets-1)*headers), headers: headers,
		}
	}
	tcp4Super := join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 3000)))
	big4 := patched(join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 3000))), 16, 0, 0)
	// On the wire the jumbo payload header is gone.
	big6 := super("big tcp6", patched(join(eth(ipv6Type), ipv6(hopByHop, jumbo(tcp, segment(ackFlag, 3, 3000)))), 18, 0, 0), 100, 30, tcp6, 30, 86)
	big6.bytes -= 8
	big6.headers += 8
	return []sample{
		super("tcp4 super-packet", tcp4Super, 1448, 3, tcp4, 3, 66),
		super("tcp4 super-packet that does not say its segments", tcp4Super, 1448, 0, tcp4, 3, 66),
		super("tcp4 super-packet of whole segments", join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 2896))), 1448, 0, tcp4, 2, 66),
		super("tcp4 super-packet of one segment", join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 1448))), 1448, 0, tcp4, 1, 66),
		super("tcp4 super-packet that is headers alone", join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 0))), 1448, 0, tcp4, 1, 66),
		super("tcp4 super-packet with options", join(eth(ipv4Type), ipv4Options(2, tcp, segment(ackFlag, 3, 3000))), 1440, 3, tcp4, 3, 74),
		super("tcp6 super-packet", join(eth(ipv6Type), ipv6(tcp, segment(ackFlag, 3, 3000))), 1428, 3, tcp6, 3, 86),
		super("tcp6 super-packet that does not say its segments", join(eth(ipv6Type), ipv6(tcp, segment(ackFlag, 3, 2857))), 1428, 0, tcp6, 3, 86),
		super("tcp6 super-packet with an extension", join(eth(ipv6Type), ipv6(destination, extension(tcp, 0, segment(ackFlag, 3, 3000)))), 1420, 0, tcp6, 3, 94),
		super("udp4 super-packet", join(eth(ipv4Type), ipv4(udp, datagram(2500))), 1000, 3, udp4, 3, 42),
		super("udp4 super-packet that does not say its segments", join(eth(ipv4Type), ipv4(udp, datagram(2500))), 1000, 0, udp4, 3, 42),
		super("udp6 super-packet", join(eth(ipv6Type), ipv6(udp, datagram(2500))), 1000, 3, udp6, 3, 62),
		super("sctp super-packet", join(eth(ipv4Type), ipv4(sctp, make([]byte, 2500))), 0xffff, 3, other4, 3, 46),
		super("tagged tcp4 super-packet", join(eth(ctag), tag(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 3000))), 1444, 3, tcp4, 3, 70),
		super("mpls super-packet", join(eth(0x8847), make([]byte, 2514)), 1000, 0, nonIP, 3, 14),
		super("big tcp4", big4, 100, 30, tcp4, 30, 66),
		super("big tcp4 that does not say its segments", big4, 100, 0, tcp4, 30, 66),
		big6,
	}
}
