// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet is what a logged packet says.
type packet struct {
	from, to netip.Addr
	tcp      bool
	flags    byte // of TCP
}

// The flags of TCP that tell a request.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

// request reports whether a packet asks for a connection. Of TCP that is a SYN; of others
// the rule has chosen.
func (p packet) request() bool {
	return !p.tcp || p.flags&(flagFIN|flagSYN|flagRST|flagACK) == flagSYN
}

// parse reads a packet from its IP header on. Not ok: it is neither IPv4 nor IPv6, or was cut
// off before its TCP flags.
func parse(b []byte) (_ packet, ok bool) {
	if len(b) == 0 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b)
	case 6:
		return parseIPv6(b)
	}
	return packet{}, false
}

func parseIPv4(b []byte) (p packet, ok bool) {
	const least = 20
	if len(b) < least {
		return p, false
	}
	p.from, p.to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	header := int(b[0]&15) * 4
	if b[9] != unix.IPPROTO_TCP {
		return p, header >= least
	}
	fragment := binary.BigEndian.Uint16(b[6:]) & 0x1fff
	if header < least || fragment != 0 {
		return p, false
	}
	return p.withTCP(b, header)
}

// maxExtensions bounds the extension headers that are looked past; 128 bytes hold fewer.
const maxExtensions = 12

func parseIPv6(b []byte) (p packet, ok bool) {
	const header = 40
	if len(b) < header {
		return p, false
	}
	p.from, p.to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, at := b[6], header
	for range maxExtensions {
		switch next {
		case unix.IPPROTO_TCP:
			return p.withTCP(b, at)
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) < at+8 {
				return p, false
			}
			next, at = b[at], at+8+int(b[at+1])*8
		case unix.IPPROTO_FRAGMENT:
			if len(b) < at+8 || binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return p, false
			}
			next, at = b[at], at+8
		default:
			return p, true
		}
	}
	return p, false
}

func (p packet) withTCP(b []byte, at int) (packet, bool) {
	if len(b) < at+14 {
		return p, false
	}
	p.tcp, p.flags = true, b[at+13]
	return p, true
}
