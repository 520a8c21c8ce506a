// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// BenchmarkAttach attaches to a cgroup and detaches from it.
func BenchmarkAttach(b *testing.B) {
	need.Root(b)
	root := unified(b)
	control := New(Options{Root: root, Pins: filepath.Join(nettest.BPFFS(b), "cgroups")})
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(b)
	defer datapath.Close()
	dir := fmt.Sprintf("/nettally-bench-%d", os.Getpid())
	if err := os.Mkdir(root+dir, 0o755); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(root + dir)
	id := nettest.Must(control.ID(dir))(b)
	b.Run("attach", func(b *testing.B) {
		for b.Loop() {
			if err := control.Attach(dir, id, datapath.CgroupIngress, datapath.CgroupEgress); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := control.Detach(id); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("detach", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if err := control.Attach(dir, id, datapath.CgroupIngress, datapath.CgroupEgress); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := control.Detach(id); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkConnections opens and closes connections to a container's peer, and sends to it, with
// the program for connections and without. The kernel's statistics say what one call costs.
func BenchmarkConnections(b *testing.B) {
	need.Root(b)
	host := nettest.Host(b)
	container, peer := nettest.Container(b, host, testnet.ContainerOptions{}), nettest.Agent(b, host)
	control := New(Options{Root: unified(b), Pins: filepath.Join(nettest.BPFFS(b), "cgroups"), Hooks: Connections})
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(b)
	defer datapath.Close()
	if err := datapath.LoadTCP(); err != nil {
		b.Fatal(err)
	}
	id := nettest.Must(control.ID(container.Cgroup))(b)
	sink := nettest.Must(peer.Listen("tcp", container.Interfaces[0].HostIPv4))(b)
	const connects, sent = 200, 1 << 30
	for _, counted := range []bool{false, true} {
		if counted {
			if err := control.Attach(container.Cgroup, id, datapath.TCP); err != nil {
				b.Fatal(err)
			}
			defer control.Detach(id)
		}
		b.Run(fmt.Sprintf("connect/counted=%v", counted), func(b *testing.B) {
			for b.Loop() {
				nettest.Must(container.Connect(sink.Addr, connects))(b)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*connects), "µs/connection")
		})
		b.Run(fmt.Sprintf("send/counted=%v", counted), func(b *testing.B) {
			for b.Loop() {
				if err := container.SendTCP(sink.Addr, sent, testnet.Write); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(sent)
		})
	}
	calls(b, datapath.TCP, func() {
		nettest.Must(container.Connect(sink.Addr, connects))(b)
		if err := container.SendTCP(sink.Addr, sent, testnet.Write); err != nil {
			b.Fatal(err)
		}
	})
}

// calls logs how often a program runs while something is done, and what a run costs.
func calls(b *testing.B, program *ebpf.Program, do func()) {
	b.Helper()
	enabled := nettest.Must(ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME)))(b)
	defer enabled.Close()
	do()
	stats := nettest.Must(program.Stats())(b)
	b.Logf("%d calls, %d ns each", stats.RunCount, stats.Runtime.Nanoseconds()/int64(max(1, stats.RunCount)))
}
