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
	for name, program := range map[string]*ebpf.Program{
		"ingress": l.Ingress, "egress": l.Egress, "tcx ingress": l.TCXIngress, "tcx egress": l.TCXEgress,
	} {
		for _, p := range packets {
			b.Run(name+"/"+p.name, func(b *testing.B) {
				for range b.N {
					alone, ours := interleave(b, p.packet, empty, program)
					over := make([]float64, len(ours))
					for i := range ours {
						over[i] = ours[i] - alone[i]
					}
					b.ReportMetric(slices.Min(alone), "ns-empty-min")
					b.ReportMetric(median(over), "ns-over-empty")
					b.ReportMetric(slices.Min(ours)-slices.Min(alone), "ns-over-empty-min")
				}
			})
		}
	}
}

// interleave returns what a run of each program takes, in ns, in many short rounds: on a
// machine that others share the least of each is the program, the rest is the others.
func interleave(b *testing.B, packet []byte, first, second *ebpf.Program) ([]float64, []float64) {
	b.Helper()
	const rounds, repeat = 101, 100_000
	var times [2][]float64
	for range rounds {
		for i, program := range []*ebpf.Program{first, second} {
			start := time.Now()
			// The kernel's own figure is in whole ns, so the clock is ours.
			verdict, err := program.Run(&ebpf.RunOptions{Data: packet, Repeat: repeat})
			if err != nil || verdict != unspecified {
				b.Fatalf("verdict %d, %v", int32(verdict), err)
			}
			times[i] = append(times[i], float64(time.Since(start).Nanoseconds())/repeat)
		}
	}
	return times[0], times[1]
}

func median(values []float64) float64 {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}
