// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	bigendian "encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
)

// synFrames returns the first packets of TCP connections, from many ports, which the kernel
// of the other end takes for good.
func synFrames(mac net.HardwareAddr, from netip.Addr, to netip.AddrPort) [][]byte {
	return tcpFrames(mac, from, to, 256, 0x02, "")
}

// tcpFrames returns a packet of TCP from each of so many ports, with flags and an even number of
// bytes of data.
func tcpFrames(mac net.HardwareAddr, from netip.Addr, to netip.AddrPort, ports uint16, flags byte, data string) (frames [][]byte) {
	for port := range ports {
		frame := ip4(mac, from, to.Addr(), 6, append(make([]byte, 20), data...))
		tcp := frame[34:]
		bigendian.BigEndian.PutUint16(tcp[0:], 20_000+port)
		bigendian.BigEndian.PutUint16(tcp[2:], to.Port())
		tcp[12], tcp[13], tcp[14] = 0x50, flags, 0xff
		pseudo := append(slices.Clone(frame[26:34]), 0, 6, 0, byte(len(tcp)))
		bigendian.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
		frames = append(frames, frame)
	}
	return frames
}

// ip4 returns a frame of IPv4.
func ip4(mac net.HardwareAddr, from, to netip.Addr, protocol byte, payload []byte) []byte {
	frame := append(ethernet(mac, 0x0800), make([]byte, 20)...)
	ip := frame[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocol
	bigendian.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	bigendian.BigEndian.PutUint16(ip[10:], checksum(ip[:20]))
	return append(frame, payload...)
}

// malformedFrames returns frames that no stack sends: cut short at each byte, with lengths and
// types that are wrong, with long chains of headers, and noise.
func malformedFrames(mac net.HardwareAddr, from, to netip.Addr) (frames [][]byte) {
	add := func(frame ...[]byte) { frames = append(frames, frame...) }
	noise := rand.New(rand.NewPCG(1, 2))
	for protocol, header := range map[byte]int{6: 20, 17: 8} {
		whole := ip4(mac, from, to, protocol, make([]byte, header))
		for size := 14; size < len(whole); size += 3 {
			add(whole[:size])
		}
		for _, first := range []byte{0x40, 0x44, 0x4f, 0x65, 0x00} { // lengths and versions of IP
			wrong := slices.Clone(whole)
			wrong[14] = first
			add(wrong)
		}
		for _, length := range []byte{0, 1, 19, 255} {
			wrong := slices.Clone(whole)
			wrong[17] = length
			add(wrong)
		}
		fragment := slices.Clone(whole)
		fragment[20], fragment[21] = 0x3f, 0xff
		add(fragment)
	}
	for _, etherType := range []uint16{0, 1, 0x05dc, 0x0600, 0x0806, 0x8847, 0x8864, 0x88e5, 0xdead, 0xffff} {
		add(ethernet(mac, etherType), append(ethernet(mac, etherType), make([]byte, 46)...))
	}
	add(chains6(mac)...)
	for range 16 {
		frame := ethernet(mac, []uint16{0x0800, 0x86dd}[noise.IntN(2)])
		for range noise.IntN(200) {
			frame = append(frame, byte(noise.Uint32()))
		}
		add(frame)
	}
	return frames
}

// chains6 returns frames of IPv6 with chains of extension headers: short ones and long ones,
// that end early, and whose lengths lead out of the frame.
func chains6(mac net.HardwareAddr) (frames [][]byte) {
	for _, kind := range []byte{0, 43, 44, 51, 60, 135} {
		for _, headers := range []int{1, 3, 8, 20} {
			frame := join6(mac, 0, kind, 54+8*headers+20)
			for n := range headers {
				next := kind
				if n == headers-1 {
					next = 6
				}
				frame = append(frame, next, 0, 0, 0, 0, 0, 0, 0)
			}
			frames = append(frames, frame, append(slices.Clone(frame), make([]byte, 20)...))
			long := slices.Clone(frame)
			long[len(long)-7] = 255 // the last header's length
			frames = append(frames, long)
		}
	}
	whole := join6(mac, 0, 6, 74)
	for size := 14; size <= len(whole); size += 5 {
		frames = append(frames, whole[:size])
	}
	return frames
}
