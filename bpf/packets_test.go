// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"slices"
)

// Packets are written from the outside in: join(eth(ipv4Type), ipv4(6, segment)).

const (
	ipv4Type = 0x0800
	ipv6Type = 0x86dd
	ctag     = 0x8100
	stag     = 0x88a8
)

const (
	finFlag = 0x01
	synFlag = 0x02
	rstFlag = 0x04
	ackFlag = 0x10
)

// Numbers of headers behind an IP header.
const (
	hopByHop    = 0
	icmp        = 1
	tcp         = 6
	udp         = 17
	routing     = 43
	fragment    = 44
	gre         = 47
	esp         = 50
	ah          = 51
	icmpv6      = 58
	noNext      = 59
	destination = 60
	sctp        = 132
)

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// patched returns a copy of a packet with some bytes changed.
func patched(packet []byte, at int, b ...byte) []byte {
	packet = slices.Clone(packet)
	copy(packet[at:], b)
	return packet
}

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

// eth returns an Ethernet header.
func eth(etherType int) []byte {
	return join([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, be16(etherType))
}

// tag returns the rest of a VLAN tag whose type stands in the header before it.
func tag(etherType int) []byte { return join(be16(7), be16(etherType)) }

func ipv4(protocol byte, payload []byte) []byte { return ipv4Options(0, protocol, payload) }

// ipv4Options returns an IPv4 packet with some words of options.
func ipv4Options(words int, protocol byte, payload []byte) []byte {
	header := make([]byte, 20+4*words)
	header[0] = 0x45 + byte(words)
	copy(header[2:], be16(len(header)+len(payload)))
	header[8], header[9] = 64, protocol
	copy(header[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	for i := 20; i < len(header); i++ {
		header[i] = 1 // no operation
	}
	return join(header, payload)
}

// ipv4Fragment returns a fragment that starts at some 8-byte unit of its packet.
func ipv4Fragment(offset int, more bool, protocol byte, payload []byte) []byte {
	if more {
		offset |= 0x2000
	}
	return patched(ipv4(protocol, payload), 6, be16(offset)...)
}

func ipv6(next byte, payload []byte) []byte {
	header := make([]byte, 40)
	header[0] = 0x60
	copy(header[4:], be16(len(payload)))
	header[6], header[7] = next, 64
	header[8], header[24] = 0xfd, 0xfd
	header[23], header[39] = 1, 2
	return join(header, payload)
}

// extension returns an IPv6 extension header of 8*(1+more) bytes, filled with
// padding options.
func extension(next byte, more int, payload []byte) []byte {
	header := make([]byte, 8*(1+more))
	header[0], header[1] = next, byte(more)
	return join(header, payload)
}

// jumbo returns a hop-by-hop header with a jumbo payload option (RFC 2675).
func jumbo(next byte, payload []byte) []byte {
	header := []byte{next, 0, 0xc2, 4}
	return join(binary.BigEndian.AppendUint32(header, uint32(8+len(payload))), payload)
}

// authentication returns an AH header of 4*(2+length) bytes (RFC 4302).
func authentication(next byte, length int, payload []byte) []byte {
	header := make([]byte, 4*(2+length))
	header[0], header[1] = next, byte(length)
	return join(header, payload)
}

// ipv6Fragment returns a fragment header and what follows it.
func ipv6Fragment(offset int, more bool, next byte, payload []byte) []byte {
	offset <<= 3
	if more {
		offset |= 1
	}
	return join([]byte{next, 0}, be16(offset), make([]byte, 4), payload)
}

// segment returns a TCP header with some words of options, and a payload.
func segment(flags byte, words, payload int) []byte {
	header := make([]byte, 20+4*words, 20+4*words+payload)
	header[3], header[12], header[13] = 80, byte(5+words)<<4, flags
	return append(header, make([]byte, payload)...)
}

// datagram returns a UDP header and a payload.
func datagram(payload int) []byte {
	return join([]byte{0, 53, 0, 53}, be16(8+payload), make([]byte, 2+payload))
}

// repeat wraps a payload into n extension headers in front of TCP.
func repeat(number byte, n int, payload []byte) []byte {
	next := byte(tcp)
	for range n {
		payload = extension(next, 0, payload)
		next = number
	}
	return payload
}
