// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/nettally/nettally/internal/testnet"
)

// BenchmarkClassifier says what the classifiers add to an empty program, per packet.
// The two take turns, so that the machine's moods hit both.
func BenchmarkClassifier(b *testing.B) {
	l := newLab(b)
	empty := newEmpty(b, ebpf.SchedCLS, -1)
	for name, program := range map[string]*ebpf.Program{
		"ingress": l.Ingress, "egress": l.Egress, "tcx ingress": l.TCXIngress, "tcx egress": l.TCXEgress,
	} {
		for _, p := range benchPackets() {
			b.Run(name+"/"+p.name, func(b *testing.B) { overEmpty(b, p.packet, nil, empty, program) })
		}
	}
}

// BenchmarkCgroup says what the programs for cgroups add to an empty one.
func BenchmarkCgroup(b *testing.B) {
	l := newLab(b)
	empty := newEmpty(b, ebpf.CGroupSKB, passes)
	// A device that is not loopback, in the namespace of the run.
	n, err := testnet.NewNamespace()
	if err == nil {
		err = testnet.Veth(n, "veth0", n, "veth1")
	}
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	veth, err := n.LinkByName("veth0")
	if err != nil {
		b.Fatal(err)
	}
	context := gso{}.words()
	context[skbIfindex] = uint32(veth.Attrs().Index)
	for name, program := range map[string]*ebpf.Program{"ingress": l.CgroupIngress, "egress": l.CgroupEgress} {
		for _, p := range benchPackets() {
			if p.name == "arp" {
				continue // no socket has it
			}
			b.Run(name+"/"+p.name, func(b *testing.B) {
				err := n.Do(func() error { overEmpty(b, p.packet, context, empty, program); return nil })
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// newEmpty returns a program that does nothing.
func newEmpty(b *testing.B, kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	b.Helper()
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { empty.Close() })
	return empty
}

type benchPacket struct {
	name   string
	packet []byte
}

func benchPackets() []benchPacket {
	return []benchPacket{
		{"tcp 1500", join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 1448)))},
		{"tcp6 1500", join(eth(ipv6Type), ipv6(tcp, segment(ackFlag, 3, 1428)))},
		{"syn", join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 5, 0)))},
		{"ipv6 hop-by-hop", join(eth(ipv6Type), ipv6(hopByHop, extension(tcp, 0, segment(ackFlag, 3, 1000))))},
		{"udp 64", join(eth(ipv4Type), ipv4(udp, datagram(22)))},
		{"arp", join(eth(0x0806), make([]byte, 46))},
	}
}

// overEmpty reports what a program takes more than an empty one.
func overEmpty(b *testing.B, packet []byte, context []uint32, empty, program *ebpf.Program) {
	b.Helper()
	for range b.N {
		alone, ours := interleave(b, packet, context, empty, program)
		over := make([]float64, len(ours))
		for i := range ours {
			over[i] = ours[i] - alone[i]
		}
		b.ReportMetric(slices.Min(alone), "ns-empty-min")
		b.ReportMetric(median(over), "ns-over-empty")
		b.ReportMetric(slices.Min(ours)-slices.Min(alone), "ns-over-empty-min")
	}
}

// interleave returns what a run of each program takes, in ns, in many short rounds: on a
// machine that others share the least of each is the program, the rest is the others.
func interleave(b *testing.B, packet []byte, context []uint32, first, second *ebpf.Program) ([]float64, []float64) {
	b.Helper()
	const rounds, repeat = 101, 100_000
	options := ebpf.RunOptions{Data: packet, Repeat: repeat}
	if context != nil {
		options.Context = context
	}
	var times [2][]float64
	for range rounds {
		for i, program := range []*ebpf.Program{first, second} {
			start := time.Now()
			// The kernel's own figure is in whole ns, so the clock is ours.
			if verdict, err := program.Run(&options); err != nil || verdict != unspecified && verdict != passes {
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
