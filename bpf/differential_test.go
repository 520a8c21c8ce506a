// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// largestRun is the size of the largest packet that test runs of all kernels take.
const largestRun = 3000

// TestDifferential compares the classifiers with gopacket's decoders over random and
// mutated packets.
func TestDifferential(t *testing.T) {
	const seed, rounds = 1, 1_000_000
	l := newLab(t)
	m := newMutator(seed)
	for i := range rounds {
		packet, c := m.next()
		program := l.Ingress
		if i%16 == 0 { // the same code behind another way to the slot
			program = l.TCXIngress
		}
		if problem := l.compare(program, packet, c); problem != "" {
			t.Fatalf("seed %d, packet %d: %s", seed, i, problem)
		}
	}
}

func FuzzClassifier(f *testing.F) {
	l := newLab(f)
	for _, s := range samples() {
		f.Add(s.packet, uint16(s.GSOSize), uint16(s.GSOSegs))
	}
	f.Fuzz(func(t *testing.T, packet []byte, size, segments uint16) {
		if len(packet) < 14 || len(packet) < leastRun(packet) || len(packet) > largestRun {
			return
		}
		if problem := l.compare(l.Ingress, packet, gso{GSOSize: uint32(size), GSOSegs: uint32(segments)}); problem != "" {
			t.Fatal(problem)
		}
	})
}

// compare says where the classifier and the decoders differ.
func (l *lab) compare(program *ebpf.Program, packet []byte, c gso) string {
	got, err := l.try(program, packet, c)
	if err != nil {
		return fmt.Sprintf("%v\n%+v %x", err, c, packet)
	}
	want, d := expect(packet, c)
	if packets, size := whole(got.Counters); size > mostTimes*uint64(len(packet)) || packets > size {
		return fmt.Sprintf("%d bytes count as %d packets and %d bytes\n%+v %x", len(packet), packets, size, c, packet)
	}
	if got.Counters == want && d.is(got.Trouble) {
		return ""
	}
	return fmt.Sprintf("classifier says %q, gopacket that doubt is %v\n%+v %x\n(-gopacket +classifier)\n%s",
		got.Trouble, d, c, packet, cmp.Diff(want, got.Counters))
}

// mutator makes packets: stacks of headers in any order, and samples, both changed
// a little.
type mutator struct {
	*rand.Rand
	samples []sample
}

func newMutator(seed uint64) *mutator {
	m := &mutator{Rand: rand.New(rand.NewPCG(seed, 0))}
	for _, s := range samples() {
		if len(s.packet) <= largestRun {
			m.samples = append(m.samples, s)
		}
	}
	return m
}

func (m *mutator) next() ([]byte, gso) {
	var packet []byte
	var c gso
	if m.IntN(2) == 0 {
		s := m.samples[m.IntN(len(m.samples))]
		packet, c = slices.Clone(s.packet), s.gso
	} else {
		packet = m.stack()
	}
	for range m.IntN(4) {
		packet = m.mutate(packet)
	}
	if m.IntN(3) == 0 {
		c = m.gso(len(packet))
	}
	if len(packet) < 14 {
		packet = append(packet, make([]byte, 14-len(packet))...)
	}
	packet = append(packet, make([]byte, max(0, leastRun(packet)-len(packet)))...)
	return packet[:min(len(packet), largestRun)], c
}

// gso returns what may be said of a packet, or what is on a bound: a size of a few bytes, as
// many segments as fill it or one more, and none.
func (m *mutator) gso(length int) gso {
	c := gso{GSOSize: uint32(m.IntN(1 << m.IntN(17))), GSOSegs: uint32(m.IntN(1 << m.IntN(17)))}
	if m.IntN(3) == 0 {
		c.GSOSize = []uint32{1, 2, 7, 8, 9, byFrags, uint32(length), uint32(max(length/mostTiny, 1))}[m.IntN(8)]
	}
	if m.IntN(3) == 0 && c.GSOSize != 0 {
		c.GSOSegs = []uint32{0, 1, mostTiny, mostTiny + 1, uint32(length)/c.GSOSize + uint32(m.IntN(3))}[m.IntN(5)]
	}
	return c
}

// stack returns a packet of headers that fit together.
func (m *mutator) stack() []byte {
	packet := m.transport()
	number := packet[0]
	packet = packet[1:]
	if m.IntN(2) == 0 {
		packet = join(eth(0), m.ipv4(number, packet))
		copy(packet[12:], be16(ipv4Type))
	} else {
		packet = join(eth(0), m.ipv6(number, packet))
		copy(packet[12:], be16(ipv6Type))
	}
	for range max(0, m.IntN(6)-2) {
		etherType := []int{ctag, stag}[m.IntN(2)]
		packet = slices.Insert(packet, 12, append(be16(etherType), be16(m.IntN(1<<16))...)...)
	}
	return packet
}

// transport returns the number of a transport protocol, its header and a payload.
func (m *mutator) transport() []byte {
	if m.IntN(4) == 0 {
		return m.tunnel(m.plain())
	}
	return m.plain()
}

// tunnel returns the number and the header of a tunnel with a packet of a transport inside.
func (m *mutator) tunnel(transport []byte) []byte {
	forms := tunnelForms()
	form, etherType := forms[m.IntN(len(forms))], ipv4Type
	packet := m.ipv4(transport[0], transport[1:])
	if m.IntN(2) == 0 {
		etherType, packet = ipv6Type, m.ipv6(transport[0], transport[1:])
	}
	if m.IntN(5) == 0 { // without a header of the tunnel's own
		return join([]byte{map[int]byte{ipv4Type: ipip, ipv6Type: sit}[etherType]}, packet)
	}
	return join([]byte{form.number}, form.wrap(etherType, packet))
}

// plain is transport without tunnels.
func (m *mutator) plain() []byte {
	payload := m.IntN(1 << m.IntN(10))
	switch m.IntN(6) {
	case 0:
		return join([]byte{udp}, datagram(payload))
	case 1:
		return join([]byte{byte(m.IntN(256))}, m.bytes(payload))
	default:
		s := segment(byte(m.IntN(256)), m.IntN(11), payload)
		copy(s[20:], m.bytes(len(s)-20))
		return join([]byte{tcp}, s)
	}
}

func (m *mutator) ipv4(number byte, payload []byte) []byte {
	packet := ipv4Options(max(0, m.IntN(15)-4), number, payload)
	if m.IntN(4) == 0 {
		copy(packet[6:], be16(m.IntN(1<<16)))
	}
	return packet
}

func (m *mutator) ipv6(next byte, payload []byte) []byte {
	for range max(0, m.IntN(12)-3) {
		switch m.IntN(6) {
		case 0:
			payload, next = authentication(next, 1+m.IntN(8), payload), ah
		case 1:
			payload, next = ipv6Fragment(m.IntN(8)>>2, m.IntN(2) == 0, next, payload), fragment
		case 2:
			payload, next = jumbo(next, payload), hopByHop
		default:
			payload = extension(next, m.IntN(1<<m.IntN(5)), payload)
			next = []byte{hopByHop, routing, destination}[m.IntN(3)]
		}
	}
	packet := ipv6(next, payload)
	if m.IntN(8) == 0 {
		copy(packet[4:], be16(0))
	}
	return packet
}

func (m *mutator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.Uint32())
	}
	return b
}

// headerBytes is where most headers end: changes beyond would change nothing.
const headerBytes = 120

func (m *mutator) mutate(packet []byte) []byte {
	if len(packet) < 14 {
		return packet
	}
	at := 12 + m.IntN(min(len(packet)-12, headerBytes))
	switch m.IntN(6) {
	case 0: // a bit
		packet[at] ^= 1 << m.IntN(8)
	case 1: // a byte
		packet[at] = byte(m.IntN(256))
	case 2: // truncation
		packet = packet[:at]
	case 3: // a length, or what is taken for one
		copy(packet[at:], be16([]int{0, 1, len(packet), len(packet) - at, m.IntN(200), 0xffff}[m.IntN(6)]))
	case 4: // a header from elsewhere
		from := m.samples[m.IntN(len(m.samples))].packet
		packet = join(packet[:at], from[min(len(from), 12+m.IntN(80)):])
	case 5: // a header twice, or not at all
		end := min(len(packet), at+4*m.IntN(12))
		if m.IntN(2) == 0 {
			packet = slices.Delete(packet, at, end)
		} else {
			packet = slices.Insert(packet, at, slices.Clone(packet[at:end])...)
		}
	}
	return packet
}
