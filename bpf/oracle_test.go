// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// reading is what gopacket's decoders say about a packet. Which header follows
// which, where each ends and what is in it comes from them; the rules added here
// are those of the kernel or an RFC, each named where it stands.
type reading struct {
	cell    int
	headers int // bytes of the headers that could be read
	jumbo   int // bytes of the header that segmentation takes out
	tcp     *layers.TCP
	trouble bool
	divided divided
	next    layers.IPProtocol // of the header behind those of IP, which begins at begins
	begins  int               // 0 if there is none
}

// divided says how the kernel cuts a super-packet up.
type divided int

const (
	never  divided = iota
	bySize         // into payloads of gso_size bytes
	byPart         // SCTP, which may also be cut up into the packets it was made of
)

// doubt is whether a packet is in an error cell.
type doubt int

const (
	none   doubt = iota
	header       // its headers can't be read to the end
	super        // it can't be the super-packet that it is said to be
)

// is says whether an error cell is that of the doubt.
func (d doubt) is(cause string) bool {
	switch cause {
	case "":
		return d == none
	case "implausible_gso":
		return d == super
	}
	return d == header
}

// expect returns what is to be counted of a packet.
func expect(packet []byte, c gso) (Counters, doubt) {
	return readAll(packet, c, 0).counted(len(packet), c)
}

// readAll reads a packet, and what is in it if it is a tunnel's. Some bytes at its beginning are
// no part of what is counted.
func readAll(packet []byte, c gso, uncounted int) *reading {
	r := read(packet, c)
	r.tunnel(packet, c, uncounted)
	r.headers -= uncounted
	return r
}

// counted returns what is to be counted of a packet of some size with such headers.
func (r *reading) counted(size int, c gso) (want Counters, d doubt) {
	segments, d := r.segments(size-r.jumbo-r.headers, c)
	want.Interface.Bytes, want.Interface.Packets = uint64(size), 1
	if segments > 1 {
		size += (segments-1)*r.headers - r.jumbo
	}
	want.Cells[r.cell].Bytes = uint64(size)
	want.Cells[r.cell].Packets = uint64(segments)
	if t := r.tcp; t != nil {
		want.TCPSYN, want.TCPSYNACK = one(t.SYN && !t.ACK), one(t.SYN && t.ACK)
		want.TCPRST, want.TCPFIN = one(t.RST), one(t.FIN)
	}
	return want, d
}

// Bounds of what the kernel makes: include/net/tcp.h (TCP_MIN_GSO_SIZE), include/linux/udp.h
// (UDP_MAX_SEGMENTS), include/linux/skbuff.h (GSO_BY_FRAGS). That of headers is ours.
const (
	leastSize   = 8
	mostTiny    = 128
	mostHeaders = 256
	byFrags     = 0xffff
)

// segments returns how many packets a super-packet is, 1 if it is none or none to believe.
func (r *reading) segments(payload int, c gso) (int, doubt) {
	if r.trouble {
		return 1, header
	}
	size := int(c.GSOSize)
	if size == byFrags && r.divided == byPart && c.GSOSegs != 0 {
		size = leastSize
	}
	if size == 0 || payload <= size {
		return 1, none
	}
	n := (payload-1)/size + 1
	if c.GSOSegs != 0 {
		n = min(n, int(c.GSOSegs))
	}
	switch {
	case n == 1 || size == byFrags && r.divided == byPart:
		return 1, none
	case r.divided == never, r.headers > mostHeaders, size < leastSize && n > mostTiny:
		return 1, super
	}
	return n, none
}

// ethernet is the size of an Ethernet header.
const ethernet = 14

// expectIP returns what is to be counted of a packet whose Ethernet header is no part of
// it: each segment has one less.
func expectIP(packet []byte, c gso) (Counters, doubt) {
	return readAll(packet, c, ethernet).counted(len(packet)-ethernet, c)
}

func one(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func read(packet []byte, c gso) *reading {
	r := &reading{cell: nonIP}
	packet = slices.Clone(packet) // parts are overwritten to keep decoders from what is not theirs
	var ethernet layers.Ethernet
	if !r.step(ethernet.DecodeFromBytes(packet, gopacket.NilDecodeFeedback)) {
		return r
	}
	r.headers += len(ethernet.Contents)
	etherType, payload := ethernet.EthernetType, packet[14:]
	// Two tags are read: more than 802.1ad defines would be non-IP.
	for tags := 0; tags < 2 && (etherType == layers.EthernetTypeDot1Q || etherType == layers.EthernetTypeQinQ); tags++ {
		var tag layers.Dot1Q
		if !r.step(tag.DecodeFromBytes(payload, gopacket.NilDecodeFeedback)) {
			return r
		}
		r.headers += len(tag.Contents)
		etherType, payload = tag.Type, payload[4:]
	}
	switch etherType {
	case layers.EthernetTypeIPv4:
		r.ipv4(payload)
	case layers.EthernetTypeIPv6:
		r.ipv6(payload, c)
	case layers.EthernetTypeMPLSUnicast, layers.EthernetTypeMPLSMulticast: // net/mpls/mpls_gso.c
		r.divided = bySize
		r.next, r.begins = layers.IPProtocolMPLSInIP, r.headers
	}
	return r
}

// step says whether to go on.
func (r *reading) step(err error) bool {
	r.trouble = err != nil
	return err == nil
}

func (r *reading) ipv4(packet []byte) {
	r.cell = other4
	// The fixed part is read by itself, as a header without options and length, so
	// that it is known when those are wrong.
	var fixed, whole layers.IPv4
	if len(packet) >= 20 {
		if !r.version(packet[0]>>4, 4) || packet[0]&15 < 5 {
			r.trouble = true
			return
		}
		alone := patched(packet[:20], 0, 0x45)
		copy(alone[2:], be16(20))
		_ = fixed.DecodeFromBytes(alone, gopacket.NilDecodeFeedback)
		r.cell = r.protocol(fixed.Protocol)
		// What the options say does not move what follows them (RFC 791, 3.1).
		fill(packet[20:min(len(packet), int(packet[0]&15)*4)], 1)
	}
	if !r.step(whole.DecodeFromBytes(packet, gopacket.NilDecodeFeedback)) {
		return
	}
	r.headers += len(whole.Contents)
	if whole.FragOffset == 0 {
		r.transport(whole.Protocol, whole.Payload)
	}
}

func (r *reading) version(got, want byte) bool {
	r.trouble = got != want
	return got == want
}

func (r *reading) protocol(p layers.IPProtocol) int {
	first, icmp := tcp4, layers.IPProtocolICMPv4
	if r.cell >= tcp6 {
		first, icmp = tcp6, layers.IPProtocolICMPv6
	}
	return first + slices.Index([]layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp, p}, p)
}

func (r *reading) ipv6(packet []byte, c gso) {
	r.cell = other6
	var header layers.IPv6
	if len(packet) < 40 {
		r.trouble = true
		return
	}
	if !r.version(packet[0]>>4, 6) {
		return
	}
	// The decoder would read a hop-by-hop header along and insist on its options;
	// here only its length counts (RFC 8200, 4.3). A length of 0 is an error to it
	// without a jumbo option, and "as much as there is" to Linux (BIG TCP).
	next := layers.IPProtocol(packet[6])
	packet[6] = byte(layers.IPProtocolNoNextHeader)
	_ = header.DecodeFromBytes(packet, gopacket.NilDecodeFeedback)
	r.headers += len(header.Contents)
	payload := header.Payload

	for n := 0; ; n++ {
		e, ok := extensionOf(next)
		if !ok {
			break
		}
		if n == 8 { // our limit
			r.trouble = true
			return
		}
		if !r.step(e.decode(payload)) {
			return
		}
		// RFC 2675; only GSO has something that segments do not repeat, as Linux makes it.
		if n == 0 && next == layers.IPProtocolIPv6HopByHop && header.Length == 0 && c.GSOSize != 0 &&
			e.next == layers.IPProtocolTCP && len(e.contents) == 8 {
			r.jumbo = len(e.contents)
		} else {
			r.headers += len(e.contents)
		}
		next, payload = e.next, e.payload
		if e.later {
			r.cell = r.protocol(next)
			return
		}
	}
	r.cell = r.protocol(next)
	r.transport(next, payload)
}

// extensionHeader is what the decoders of IPv6 extension headers have in common.
type extensionHeader struct {
	decode            func([]byte) error
	next              layers.IPProtocol
	contents, payload []byte
	later             bool // a fragment without a transport header
}

// extensionOf returns a decoder. Those listed are what Linux knows
// (ipv6_ext_hdr).
func extensionOf(p layers.IPProtocol) (*extensionHeader, bool) {
	e := &extensionHeader{}
	switch p {
	case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Destination:
		e.decode = func(b []byte) error {
			var h layers.IPv6ExtensionSkipper
			err := h.DecodeFromBytes(b, gopacket.NilDecodeFeedback)
			e.next, e.contents, e.payload = h.NextHeader, h.Contents, h.Payload
			return err
		}
	case layers.IPProtocolIPv6Fragment:
		e.decode = func(b []byte) error {
			var h layers.IPv6Fragment
			err := h.DecodeFromBytes(b, gopacket.NilDecodeFeedback)
			e.next, e.contents, e.payload, e.later = h.NextHeader, h.Contents, h.Payload, h.FragmentOffset != 0
			return err
		}
	case layers.IPProtocolAH:
		e.decode = func(b []byte) error {
			var h layers.IPSecAH
			err := h.DecodeFromBytes(b, gopacket.NilDecodeFeedback)
			e.next, e.contents, e.payload = h.NextHeader, h.Contents, h.Payload
			return err
		}
	default:
		return nil, false
	}
	return e, true
}

func (r *reading) transport(p layers.IPProtocol, packet []byte) {
	r.next, r.begins = p, r.headers
	switch p { // for which Linux has a gso_segment callback
	case layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolGRE, layers.IPProtocolIPv4,
		layers.IPProtocolIPv6, layers.IPProtocolESP:
		r.divided = bySize
	case layers.IPProtocolSCTP:
		r.divided = byPart
	}
	switch p {
	case layers.IPProtocolTCP:
		if len(packet) > 20 {
			fill(packet[20:min(len(packet), 60)], byte(layers.TCPOptionKindNop))
		}
		var segment layers.TCP
		if r.step(segment.DecodeFromBytes(packet, gopacket.NilDecodeFeedback)) {
			r.headers += len(segment.Contents)
			r.tcp = &segment
		}
	case layers.IPProtocolUDP:
		r.headers += 8
	case layers.IPProtocolSCTP:
		r.headers += 12
	}
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// tagged says whether a frame carries a VLAN tag that Linux takes out of it on
// receipt (skb_vlan_untag).
func tagged(packet []byte) bool {
	t := layers.EthernetType(binary.BigEndian.Uint16(packet[12:]))
	return t == layers.EthernetTypeDot1Q || t == layers.EthernetTypeQinQ
}
