// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
)

// mostTimes is how many times its own length a packet may count for, as the comment on wire
// in classifier.c and docs/METRICS.md promise.
const mostTimes = 87

// forgedSamples are super-packets that only somebody with a packet socket makes, and what is
// just still believed.
func forgedSamples() []sample {
	super := func(name string, packet []byte, size, segs, cell, packets, headers int) sample {
		return sample{
			name: "gso: " + name, packet: packet, gso: gso{GSOSize: uint32(size), GSOSegs: uint32(segs)}, cell: cell,
			packets: uint64(packets), bytes: uint64(len(packet) + (packets-1)*headers), headers: headers,
		}
	}
	forged := func(name string, packet []byte, size, segs, cell int, trouble string) sample {
		s := super(name, packet, size, segs, cell, 1, 0)
		s.trouble = trouble
		return s
	}
	const implausible = "implausible_gso"
	udp4Of := func(payload int) []byte { return join(eth(ipv4Type), ipv4(udp, datagram(payload))) }
	udp6Behind := func(more int, payload []byte) []byte {
		return join(eth(ipv6Type), ipv6(destination, extension(udp, more, payload)))
	}
	in4 := func(protocol byte) []byte { return join(eth(ipv4Type), ipv4(protocol, make([]byte, 2500))) }
	in6 := func(protocol byte) []byte { return join(eth(ipv6Type), ipv6(protocol, make([]byte, 2500))) }
	return []sample{
		super("size 1, as many segments as are believed", udp4Of(128), 1, 128, udp4, 128, 42),
		forged("size 1, one segment more", udp4Of(129), 1, 0, udp4, implausible),
		super("size 7, as many segments as are believed", udp4Of(7*128), 7, 0, udp4, 128, 42),
		forged("size 7, one segment more", udp4Of(7*128+1), 7, 0, udp4, implausible),
		super("the least size", udp4Of(2400), 8, 0, udp4, 300, 42),
		super("headers of 254 bytes", udp6Behind(23, datagram(1000)), 10, 0, udp6, 100, 254),
		forged("headers of 262 bytes", udp6Behind(24, datagram(1000)), 10, 0, udp6, implausible),
		forged("2 KB of headers and size 1", udp6Behind(255, datagram(300)), 1, 0, udp6, implausible),
		super("headers of 262 bytes, one segment", udp6Behind(24, datagram(1000)), 1000, 1, udp6, 1, 262),
		super("more segments said than the payload fills", udp4Of(2500), 1000, 65535, udp4, 3, 42),
		super("fewer segments said", udp4Of(2500), 1000, 2, udp4, 2, 42),
		super("size above the payload", udp4Of(2500), 60_000, 9, udp4, 1, 42),
		super("segments without a size", udp4Of(2500), 0, 9, udp4, 1, 34),
		super("sctp in parts whose number is not said", in4(sctp), byFrags, 0, other4, 1, 46),
		super("sctp in parts of 8 bytes", in4(sctp), byFrags, 65535, other4, 311, 46),
		super("sctp by size", in6(sctp), 1000, 0, other6, 3, 66),
		super("gre", in4(gre), 1000, 2, other4, 2, 34),
		super("gre whose segments are not said", in6(gre), 1000, 0, other6, 3, 54),
		super("ipip", in4(4), 1000, 3, other4, 3, 34),
		super("sit", in4(41), 1000, 3, other4, 3, 34),
		super("esp", in6(esp), 1000, 3, other6, 3, 54),
		forged("icmp", in4(icmp), 1000, 3, icmp4, implausible),
		forged("icmpv6", in6(icmpv6), 1000, 3, icmp6, implausible),
		forged("igmp", in4(2), 1000, 0, other4, implausible),
		forged("ah in ipv4", in4(ah), 1000, 0, other4, implausible),
		forged("no next header", in6(noNext), 1, 0, other6, implausible),
		forged("arp", join(eth(0x0806), make([]byte, 2000)), 8, 0, nonIP, implausible),
		forged("three tags", join(eth(stag), tag(ctag), tag(ctag), tag(ipv4Type), ipv4(udp, datagram(2000))), 8, 0, nonIP, implausible),
		forged("later fragment", join(eth(ipv4Type), ipv4Fragment(3, true, tcp, segment(synFlag, 0, 2000))), 1000, 0, tcp4, implausible),
		forged("later fragment in ipv6", join(eth(ipv6Type), ipv6(fragment, ipv6Fragment(3, true, udp, datagram(2000)))), 1, 0, udp6, implausible),
		forged("truncated header", join(eth(ipv6Type), ipv6(hopByHop, patched(extension(tcp, 0, make([]byte, 2000)), 1, 255, 0))), 1, 9, other6, "truncated"),
		forged("malformed header", patched(join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 2, 2000))), 46, 0x40), 1, 9, tcp4, "malformed"),
		forged("too many headers", join(eth(ipv6Type), ipv6(destination, repeat(destination, 9, make([]byte, 2000)))), 1, 9, other6, "too_many_headers"),
		super("jumbo header of 16 bytes", patched(join(eth(ipv6Type), ipv6(hopByHop, extension(tcp, 1, segment(ackFlag, 0, 2000)))), 18, 0, 0), 1000, 0, tcp6, 2, 90),
		super("jumbo header before udp", patched(join(eth(ipv6Type), ipv6(hopByHop, jumbo(udp, datagram(2000)))), 18, 0, 0), 1000, 0, udp6, 2, 70),
		super("jumbo header and one segment", patched(join(eth(ipv6Type), ipv6(hopByHop, jumbo(tcp, segment(ackFlag, 0, 2000)))), 18, 0, 0), 5000, 0, tcp6, 1, 82),
	}
}

// No frame counts for more than the bound, and those that are on it show that it is not just
// a large number.
func TestBound(t *testing.T) {
	l := newLab(t)
	var most float64
	for headers := range 27 {
		for size := range uint32(20) {
			for _, segments := range []int{2, mostTiny - 1, mostTiny, mostTiny + 1, 300} {
				packet := join(eth(ipv6Type), ipv6(destination, extension(udp, headers, datagram(int(size)*segments))))
				if len(packet) > largestRun {
					continue
				}
				got := l.run(t, l.Egress, packet, gso{GSOSize: size, GSOSegs: 65535})
				packets, bytes := whole(got.Counters)
				if bytes < uint64(len(packet)) || bytes > mostTimes*uint64(len(packet)) || packets > bytes/42 {
					t.Errorf("headers of %d bytes, %d segments of %d: counted as %d packets and %d bytes",
						70+8*headers, segments, size, packets, bytes)
				}
				most = max(most, float64(bytes)/float64(len(packet)))
			}
		}
	}
	t.Logf("at most %.2f times", most)
	if most < mostTimes-2 {
		t.Errorf("at most %.2f times, far from the bound of %d", most, mostTimes)
	}
}

// The headers of a tunnel and of what is in it do not move the bound, which they reach, too.
func TestBoundInTunnels(t *testing.T) {
	l := newLab(t)
	var most float64
	for words := range 64 {
		for size := range uint32(12) {
			for _, segments := range []int{2, mostTiny - 1, mostTiny, mostTiny + 1, 300} {
				inner := join(eth(ipv4Type), ipv4(udp, datagram(int(size)*segments)))
				packet := join(eth(ipv4Type), ipv4(udp, udpTo(6081, geneve(words, bridgeType, inner))))
				if len(packet) > largestRun {
					continue
				}
				_, bytes := whole(l.run(t, l.Egress, packet, gso{GSOSize: size}).Counters)
				if bytes < uint64(len(packet)) || bytes > mostTimes*uint64(len(packet)) {
					t.Errorf("%d words of options, %d segments of %d: counted as %d bytes", words, segments, size, bytes)
				}
				most = max(most, float64(bytes)/float64(len(packet)))
			}
		}
	}
	t.Logf("at most %.2f times", most)
	if most < mostTimes-3 {
		t.Errorf("at most %.2f times, far from the bound of %d", most, mostTimes)
	}
}

// Who may only use UDP_SEGMENT, of which the kernel itself says how many segments there are,
// gains less than a factor of two by datagrams that look like a tunnel's.
func TestFeignedTunnels(t *testing.T) {
	l := newLab(t)
	var most float64
	for words := 0; words < 32; words++ {
		for size := 1; size < 300; size++ {
			for _, segments := range []int{2, 3, 50, mostTiny} {
				header := join(eth(ipv4Type), ipv4(udp, nil))
				payload := segments*size - len(geneve(words, bridgeType, header)) - 8
				if payload < 0 {
					continue
				}
				inner := join(eth(ipv4Type), ipv4(udp, datagram(payload)))
				packet := join(eth(ipv4Type), ipv4(udp, udpTo(6081, geneve(words, bridgeType, inner))))
				if len(packet) > largestRun {
					continue
				}
				_, bytes := whole(l.run(t, l.Egress, packet, gso{GSOSize: uint32(size), GSOSegs: uint32(segments)}).Counters)
				most = max(most, float64(bytes)/float64(segments*(42+size)))
			}
		}
	}
	t.Logf("at most %.2f times", most)
	if most >= 2 {
		t.Errorf("at most %.2f times what the kernel's segments are", most)
	}
}
