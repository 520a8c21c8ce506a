// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// BenchmarkClassifier says what the classifiers add to an empty program, per packet.
// The two take turns, so that the machine's moods hit both.
func BenchmarkClassifier(b *testing.B) {
	l := newLab(b)
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	packets := []struct {
		name   string
		packet []byte
	}{
		{"tcp 1500", join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 1448)))},
		{"tcp6 1500", join(eth(ipv6Type), ipv6(tcp, segment(ackFlag, 3, 1428)))},
		{"syn", join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 5, 0)))},
		{"ipv6 hop-by-hop", join(eth(ipv6Type), ipv6(hopByHop, extension(tcp, 0, segment(ackFlag, 3, 1000))))},
		{"udp 64", join(eth(ipv4Type), ipv4(udp, datagram(22)))},
		{"arp", join(eth(0x0806), make([]byte, 46))},
	}
	for name, program := range map[string]*ebpf.Program{"ingress": l.Ingress, "egress": l.Egress} {
		for _, p := range packets {
			b.Run(name+"/"+p.name, func(b *testing.B) {
				for range b.N {
					alone, ours := interleave(b, p.packet, empty, program)
					b.ReportMetric(alone, "ns-empty")
					b.ReportMetric(ours-alone, "ns-over-empty")
				}
			})
		}
	}
}

// interleave returns the medians of what a run of each program takes, in ns.
func interleave(b *testing.B, packet []byte, first, second *ebpf.Program) (float64, float64) {
	b.Helper()
	const rounds, repeat = 9, 1_000_000
	var times [2][]float64
	for range rounds {
		for i, program := range []*ebpf.Program{first, second} {
			start := time.Now()
			verdict, err := program.Run(&ebpf.RunOptions{Data: packet, Repeat: repeat, Reset: func() { start = time.Now() }})
			if err != nil || verdict != unspecified {
				b.Fatalf("verdict %d, %v", int32(verdict), err)
			}
			times[i] = append(times[i], float64(time.Since(start).Nanoseconds())/repeat)
		}
	}
	slices.Sort(times[0])
	slices.Sort(times[1])
	return times[0][rounds/2], times[1][rounds/2]
}
