// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

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
	before := nettest.Must(program.Stats())(b)
	do()
	after := nettest.Must(program.Stats())(b)
	runs := after.RunCount - before.RunCount
	b.Logf("%s: %d calls, %d ns each", program, runs, (after.Runtime-before.Runtime).Nanoseconds()/int64(max(1, runs)))
}

// BenchmarkRequests has wrk ask nginx through a container's veth, both in the container's cgroup,
// with the programs for requests and without, by turns. The kernel's statistics say what one run of
// each costs: of requests, and of a connection that is none of HTTP.
func BenchmarkRequests(b *testing.B) {
	need.Root(b)
	need.Commands(b, "nginx", "wrk", "nsenter")
	host := nettest.Host(b)
	container, peer := nettest.Container(b, host, testnet.ContainerOptions{}), nettest.Agent(b, host)
	root := unified(b)
	control := New(Options{Root: root, Pins: filepath.Join(nettest.BPFFS(b), "cgroups"), Hooks: Requests})
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(b)
	defer datapath.Close()
	if err := errors.Join(datapath.LoadTCP(), datapath.LoadRequests(bpf.RequestOptions{HTTP: true, TLS: true, DNS: true})); err != nil {
		b.Fatal(err)
	}
	id := nettest.Must(control.ID(container.Cgroup))(b)
	folder := b.TempDir()
	config := filepath.Join(folder, "nginx.conf")
	text := fmt.Sprintf("daemon off; worker_processes 1; user root; pid %[1]s/pid; error_log %[1]s/log; events {} http { access_log off; keepalive_requests 100000000; server { listen %[2]s:80; location / { return 200 hello; } } }",
		folder, container.Interfaces[0].HostIPv4)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	join := fmt.Sprintf("echo $$ > %s/cgroup.procs; exec ", filepath.Join(root, container.Cgroup))
	nginx := exec.Command("sh", "-c", join+"nginx -c "+config)
	if err := host.Start(nginx); err != nil {
		b.Fatal(err)
	}
	defer nginx.Wait()
	defer nginx.Process.Signal(unix.SIGTERM) // which ends its workers, too
	for try := 0; ; try++ {
		var conn net.Conn
		err := host.Do(func() (err error) {
			conn, err = net.Dial("tcp", netip.AddrPortFrom(container.Interfaces[0].HostIPv4, 80).String())
			return err
		})
		if err == nil {
			conn.Close()
			break
		}
		if time.Sleep(10 * time.Millisecond); try == 1000 {
			b.Fatal(err)
		}
	}
	wrk := func() float64 {
		out, err := exec.Command("sh", "-c", join+fmt.Sprintf("nsenter --net=/proc/%d/ns/net wrk -c 16 -t 1 -d 3s http://%s/", container.PID(), container.Interfaces[0].HostIPv4)).CombinedOutput()
		rate := regexp.MustCompile(`Requests/sec: +([0-9.]+)`).FindSubmatch(out)
		if err != nil || rate == nil {
			b.Fatalf("wrk: %v: %s", err, out)
		}
		return nettest.Must(strconv.ParseFloat(string(rate[1]), 64))(b)
	}
	attach := func() {
		if err := control.Attach(container.Cgroup, id, datapath.RequestsIngress, datapath.RequestsEgress); err != nil {
			b.Fatal(err)
		}
	}
	wrk()
	var rates [2]float64
	const rounds = 6
	for range rounds {
		rates[0] += wrk() / rounds
		attach()
		rates[1] += wrk() / rounds
		if err := control.Detach(id); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(rates[0], "requests/s-without")
	b.ReportMetric(rates[1], "requests/s-with")
	b.ReportMetric(rates[1]/rates[0], "ratio")
	attach()
	defer control.Detach(id)
	for _, program := range []*ebpf.Program{datapath.RequestsIngress, datapath.RequestsEgress} {
		calls(b, program, func() { wrk() })
		sink := nettest.Must(peer.Listen("tcp", container.Interfaces[0].HostIPv4))(b)
		calls(b, program, func() {
			if err := container.SendTCP(sink.Addr, 1<<30, testnet.Write); err != nil {
				b.Fatal(err)
			}
		})
	}
}
