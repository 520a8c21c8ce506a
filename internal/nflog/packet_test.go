// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func addrNumber(i int) netip.Addr {
	var b [16]byte
	b[0] = 0xfd
	binary.BigEndian.PutUint32(b[12:], uint32(i))
	return netip.AddrFrom16(b)
}

func bytesOf(tb testing.TB, all ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// seeds are packets of which each says something else.
func seeds(tb testing.TB) map[string][]byte {
	four := func(p layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: p, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
	}
	six := func(p layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: p, SrcIP: addrNumber(1).AsSlice(), DstIP: addrNumber(2).AsSlice()}
	}
	tcp := &layers.TCP{SYN: true, SrcPort: 1, DstPort: 2}
	options := four(layers.IPProtocolTCP)
	options.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}
	fragment := four(layers.IPProtocolTCP)
	fragment.FragOffset = 10
	return map[string][]byte{
		"IPv4 SYN":       bytesOf(tb, four(layers.IPProtocolTCP), tcp),
		"IPv4 options":   bytesOf(tb, options, tcp),
		"IPv4 SYN-ACK":   bytesOf(tb, four(layers.IPProtocolTCP), &layers.TCP{SYN: true, ACK: true}),
		"IPv4 fragment":  bytesOf(tb, fragment, gopacket.Payload(make([]byte, 40))),
		"IPv4 UDP":       bytesOf(tb, four(layers.IPProtocolUDP), &layers.UDP{}),
		"IPv6 SYN":       bytesOf(tb, six(layers.IPProtocolTCP), tcp),
		"IPv6 UDP":       bytesOf(tb, six(layers.IPProtocolUDP), &layers.UDP{}),
		"IPv6 extension": bytesOf(tb, six(layers.IPProtocolIPv6Destination), gopacket.Payload(append([]byte{6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, bytesOf(tb, tcp)...))),
		"ARP":            {0, 1, 8, 0, 6, 4, 0, 1},
		"nothing":        nil,
	}
}

func TestParse(t *testing.T) {
	requests := map[string]bool{"IPv4 SYN": true, "IPv4 options": true, "IPv4 UDP": true, "IPv6 SYN": true, "IPv6 UDP": true, "IPv6 extension": true}
	for name, b := range seeds(t) {
		p, ok := parse(b)
		if got := ok && p.request(); got != requests[name] {
			t.Errorf("%s: request %t, %+v", name, got, p)
		}
		for n := range b {
			if p, ok := parse(b[:n]); ok && p.tcp && n < 34 {
				t.Errorf("%s: TCP flags %#x of %d bytes", name, p.flags, n)
			}
		}
	}
}

// FuzzParse holds the flags and addresses against those of gopacket, where that has some.
func FuzzParse(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := parse(b)
		if !ok || !got.tcp {
			return
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if b[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		theirs := gopacket.NewPacket(b, first, gopacket.Default)
		tcp, found := theirs.TransportLayer().(*layers.TCP)
		if !found || theirs.ErrorLayer() != nil {
			return
		}
		if want := tcp.SYN && !tcp.ACK && !tcp.RST && !tcp.FIN; got.request() != want {
			t.Errorf("request %t, gopacket says %t", got.request(), want)
		}
		if from, _ := netip.AddrFromSlice(theirs.NetworkLayer().NetworkFlow().Src().Raw()); from != got.from {
			t.Errorf("from %s, gopacket says %s", got.from, from)
		}
	})
}
