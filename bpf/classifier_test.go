// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// sample is a packet and what is to be counted of it.
type sample struct {
	name   string
	packet []byte
	gso
	cell    int
	packets uint64 // on the wire, 1 if 0
	bytes   uint64 // on the wire, the packet's length if 0
	flags   string
	trouble string
	headers int // bytes that must be there for the packet to be classified
}

// want is what a sample is to be counted as.
func (s sample) want() outcome {
	size := uint64(len(s.packet))
	o := outcome{Trouble: s.trouble}
	o.Interface.Bytes, o.Interface.Packets = size, 1
	if s.bytes == 0 {
		s.bytes = size
	}
	o.Cells[s.cell].Bytes, o.Cells[s.cell].Packets = s.bytes, max(s.packets, 1)
	switch s.flags {
	case "syn":
		o.TCPSYN = 1
	case "synack":
		o.TCPSYNACK = 1
	case "rst":
		o.TCPRST = 1
	case "fin":
		o.TCPFIN = 1
	case "syn+fin":
		o.TCPSYN, o.TCPFIN = 1, 1
	case "synack+rst+fin":
		o.TCPSYNACK, o.TCPRST, o.TCPFIN = 1, 1, 1
	}
	return o
}

func TestClassify(t *testing.T) {
	l := newLab(t)
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			for _, program := range []*ebpf.Program{l.Ingress, l.Egress, l.TCXIngress, l.TCXEgress} {
				got := l.run(t, program, s.packet, s.gso)
				if diff := cmp.Diff(s.want(), got); diff != "" {
					t.Errorf("%v (-want +got):\n%s", program, diff)
				}
			}
		})
	}
}

// The two programs differ in the direction alone: what enters the host veth is what
// the container transmits.
func TestDirection(t *testing.T) {
	l := newLab(t)
	packet := join(eth(0x0806), make([]byte, 46))
	before := l.counted(l.Egress)
	if got := l.run(t, l.Ingress, packet, gso{}); got.Interface.Packets != 1 {
		t.Errorf("transmit rows after an ingress packet: %+v, want 1 packet", got.Interface)
	}
	if diff := cmp.Diff(before, l.counted(l.Egress)); diff != "" {
		t.Errorf("an ingress packet changed the receive rows (-before +after):\n%s", diff)
	}
}

// A packet cut anywhere is counted, with what is left of it, and is called
// unclassified just when a header is incomplete.
func TestTruncated(t *testing.T) {
	l := newLab(t)
	for _, s := range samples() {
		if s.trouble != "" || s.GSOSize != 0 {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			for size := leastRun(s.packet); size <= min(len(s.packet), s.headers+64); size++ {
				got := l.run(t, l.Ingress, s.packet[:size], gso{})
				if problem := truncated(s, size, got); problem != "" {
					t.Fatalf("cut to %d bytes: %s: %+v", size, problem, got)
				}
			}
		})
	}
}

// leastRun returns the size of the least packet of its type that a test run takes.
// TestLiveSamples has shorter ones.
func leastRun(packet []byte) int {
	switch binary.BigEndian.Uint16(packet[12:]) {
	case ipv4Type:
		return 14 + 20
	case ipv6Type:
		return 14 + 40
	}
	return 14
}

func truncated(s sample, size int, got outcome) string {
	var packets, bytes uint64
	for _, cell := range got.Cells {
		packets += cell.Packets
		bytes += cell.Bytes
	}
	trouble := ""
	if size < s.headers {
		trouble = "truncated"
	}
	switch {
	case got.Interface.Packets != 1 || got.Interface.Bytes != uint64(size):
		return "not counted once in the interface numbers"
	case packets != 1 || bytes != uint64(size):
		return "not counted once in the wire numbers"
	case got.Trouble != trouble:
		return fmt.Sprintf("trouble is not %q", trouble)
	case size >= s.headers && got.Cells[s.cell].Packets != 1:
		return "in the wrong cell"
	}
	return ""
}

// A packet whose slot has no rows passes, and is counted as uncounted.
func TestNoRow(t *testing.T) {
	l := newLab(t)
	must(t, l.maps.Chunks.Delete(uint32(0)))
	packet := join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 0, 0)))
	for want := uint64(1); want <= 2; want++ {
		verdict, err := l.Ingress.Run(&ebpf.RunOptions{Data: packet})
		if err != nil || verdict != unspecified {
			t.Fatalf("verdict %d, %v", int32(verdict), err)
		}
		if diff := cmp.Diff(map[string]uint64{"no_row": want, "no_slot": 0}, l.Uncounted()); diff != "" {
			t.Errorf("uncounted (-want +got):\n%s", diff)
		}
	}
}
