// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// tunnel reads on in a super-packet that may be a tunnel's. Where a tunnel's header ends comes
// from gopacket, except for FOU and GUE, which it does not know.
func (r *reading) tunnel(packet []byte, c gso, uncounted int) {
	if c.GSOSize == 0 || r.trouble || r.begins == 0 || r.divided != bySize || r.begins > len(packet) {
		return
	}
	in := inside{packet: packet, gso: c, outer: r, uncounted: uncounted}
	behind := packet[r.begins:]
	switch r.next {
	case layers.IPProtocolUDP:
		in.udp(behind[min(len(behind), 8):])
	case layers.IPProtocolMPLSInIP:
		in.mpls(behind)
	default:
		in.protocol(r.next, behind)
	}
}

// inside looks for the packet in a tunnel's. Its functions are given the rest of the packet,
// and say whether they have found it: then the headers of the outer reading are those of both.
type inside struct {
	packet []byte
	gso
	outer     *reading
	uncounted int // bytes of its headers
}

// frame tries what has an EtherType.
func (in inside) frame(etherType layers.EthernetType, rest []byte) bool {
	frame := join(eth(int(etherType)), rest)
	if etherType == layers.EthernetTypeTransparentEthernetBridging {
		frame = rest
	}
	inner := read(frame, in.gso)
	if inner.trouble || inner.cell == nonIP || !exact(frame) {
		return false
	}
	transports := []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolSCTP}
	if inner.begins == 0 || !slices.Contains(transports, inner.next) {
		return false
	}
	headers := len(in.packet) - len(frame) + inner.headers
	payload, size := len(in.packet)-headers-inner.jumbo, int(in.GSOSize)
	if headers-in.uncounted > mostHeaders || payload <= 0 {
		return false
	}
	if filled := (payload-1)/size + 1; size != byFrags && int(in.GSOSegs) > filled {
		return false
	}
	in.outer.headers, in.outer.jumbo, in.outer.divided = headers, inner.jumbo, inner.divided
	return true
}

// exact says whether the IP header of a frame says just the length that there is.
func exact(frame []byte) bool {
	etherType, packet := layers.EthernetType(binary.BigEndian.Uint16(frame[12:])), frame[14:]
	for etherType == layers.EthernetTypeDot1Q || etherType == layers.EthernetTypeQinQ {
		etherType, packet = layers.EthernetType(binary.BigEndian.Uint16(packet[2:])), packet[4:]
	}
	said, there := binary.BigEndian.Uint16(packet[2:]), len(packet)
	if etherType == layers.EthernetTypeIPv6 {
		said, there = binary.BigEndian.Uint16(packet[4:]), len(packet)-40
	}
	if there > 0xffff {
		there = 0
	}
	return int(said) == there
}

// version tries an IP packet.
func (in inside) version(rest []byte) bool {
	if len(rest) > 0 && rest[0]>>4 == 4 {
		return in.frame(layers.EthernetTypeIPv4, rest)
	}
	return in.frame(layers.EthernetTypeIPv6, rest)
}

// protocol tries what is behind an IP header.
func (in inside) protocol(number layers.IPProtocol, rest []byte) bool {
	switch number {
	case layers.IPProtocolGRE:
		return in.gre(rest)
	case layers.IPProtocolIPv4:
		return in.frame(layers.EthernetTypeIPv4, rest)
	case layers.IPProtocolIPv6:
		return in.frame(layers.EthernetTypeIPv6, rest)
	}
	return false
}

func (in inside) gre(rest []byte) bool {
	var h layers.GRE
	if h.DecodeFromBytes(rest, gopacket.NilDecodeFeedback) != nil || h.Version != 0 || h.RoutingPresent ||
		h.StrictSourceRoute || h.RecursionControl != 0 || h.Flags != 0 {
		return false
	}
	return in.frame(h.Protocol, h.Payload)
}

func (in inside) udp(rest []byte) bool {
	if len(rest) < 4 {
		return false
	}
	if version := rest[0] >> 4; version == 4 || version == 6 { // FOU, GUE of variant 1
		return in.version(rest)
	}
	if in.geneve(rest) || in.gre(rest) {
		return true
	}
	// GUE, draft-ietf-intarea-gue: a version of 0, no control message, words of options.
	if size := 4 + 4*int(rest[0]); rest[0] < 0x20 && size <= len(rest) {
		if in.protocol(layers.IPProtocol(rest[1]), rest[size:]) {
			return true
		}
	}
	return in.vxlan(rest)
}

func (in inside) geneve(rest []byte) bool {
	length := 4 * int(rest[0]&0x3f)
	if length > 240 || rest[1]&0x3f != 0 || len(rest) < 8+length {
		return false // more than all headers may have; reserved bits; cut
	}
	rest = slices.Clone(rest)
	fill(rest[8:8+length], 0) // options without data
	var h layers.Geneve
	if h.DecodeFromBytes(rest, gopacket.NilDecodeFeedback) != nil || h.Version != 0 {
		return false
	}
	return in.frame(h.Protocol, h.Payload)
}

func (in inside) vxlan(rest []byte) bool {
	var h layers.VXLAN
	if h.DecodeFromBytes(rest, gopacket.NilDecodeFeedback) != nil || !h.ValidIDFlag {
		return false
	}
	const gpe, gpeIPv4, gpeIPv6 = 0x04, 1, 2 // draft-ietf-nvo3-vxlan-gpe
	switch {
	case rest[0]&gpe != 0 && rest[3] == gpeIPv4:
		return in.frame(layers.EthernetTypeIPv4, h.Payload)
	case rest[0]&gpe != 0 && rest[3] == gpeIPv6:
		return in.frame(layers.EthernetTypeIPv6, h.Payload)
	}
	return in.frame(layers.EthernetTypeTransparentEthernetBridging, h.Payload)
}

// mpls steps over labels: four at most, which is our limit.
func (in inside) mpls(rest []byte) bool {
	for range 4 {
		p := gopacket.NewPacket(rest, layers.LayerTypeMPLS, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
		label, ok := p.Layer(layers.LayerTypeMPLS).(*layers.MPLS)
		if !ok {
			return false
		}
		rest = label.Payload
		if label.StackBottom {
			return in.version(rest)
		}
	}
	return false
}
