// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
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
	b.Log(calls(b, datapath.TCP, func() {
		nettest.Must(container.Connect(sink.Addr, connects))(b)
		if err := container.SendTCP(sink.Addr, sent, testnet.Write); err != nil {
			b.Fatal(err)
		}
	}))
}

// calls says how often a program runs while something is done, and what a run costs.
func calls(b *testing.B, program *ebpf.Program, do func()) string {
	b.Helper()
	enabled := nettest.Must(ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME)))(b)
	defer enabled.Close()
	before := nettest.Must(program.Stats())(b)
	do()
	after := nettest.Must(program.Stats())(b)
	runs := after.RunCount - before.RunCount
	return fmt.Sprintf("%s: %d calls, %d ns each\n", program, runs, (after.Runtime-before.Runtime).Nanoseconds()/int64(max(1, runs)))
}

// webBench is nginx in a container's cgroup and in the host's network, and wrk in the container.
type webBench struct {
	b         *testing.B
	root      string
	pins      string
	host      *testnet.Namespace
	container *testnet.Container
	id        uint64
	join      string // what a shell does first to be in the cgroup
}

func newWebBench(b *testing.B) *webBench {
	b.Helper()
	need.Root(b)
	need.Commands(b, "nginx", "wrk", "nsenter")
	w := &webBench{b: b, root: unified(b), pins: nettest.BPFFS(b), host: nettest.Host(b)}
	w.container = nettest.Container(b, w.host, testnet.ContainerOptions{})
	w.id = nettest.Must(New(Options{Root: w.root}).ID(w.container.Cgroup))(b)
	w.join = fmt.Sprintf("echo $$ > %s/cgroup.procs; exec ", filepath.Join(w.root, w.container.Cgroup))
	folder, server := b.TempDir(), w.container.Interfaces[0].HostIPv4
	config := filepath.Join(folder, "nginx.conf")
	text := fmt.Sprintf("daemon off; worker_processes 1; user root; pid %[1]s/pid; error_log %[1]s/log; events {} http { access_log off; keepalive_requests 100000000; server { listen %[2]s:80; location / { return 200 hello; } } }",
		folder, server)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	nginx := exec.Command("sh", "-c", w.join+"nginx -c "+config)
	if err := w.host.Start(nginx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = nginx.Process.Signal(unix.SIGTERM) // which ends its workers, too
		_ = nginx.Wait()
	})
	for try := 0; ; try++ {
		var conn net.Conn
		err := w.host.Do(func() (err error) {
			conn, err = net.Dial("tcp", netip.AddrPortFrom(server, 80).String())
			return err
		})
		if err == nil {
			conn.Close()
			return w
		}
		if time.Sleep(10 * time.Millisecond); try == 1000 {
			b.Fatal(err)
		}
	}
}

// wrk asks for 3 s and returns how many requests were answered per second.
func (w *webBench) wrk() float64 {
	w.b.Helper()
	out, err := exec.Command("sh", "-c", w.join+fmt.Sprintf("nsenter --net=/proc/%d/ns/net wrk -c 16 -t 1 -d 3s http://%s/",
		w.container.PID(), w.container.Interfaces[0].HostIPv4)).CombinedOutput()
	rate := regexp.MustCompile(`Requests/sec: +([0-9.]+)`).FindSubmatch(out)
	if err != nil || rate == nil {
		w.b.Fatalf("wrk: %v: %s", err, out)
	}
	return nettest.Must(strconv.ParseFloat(string(rate[1]), 64))(w.b)
}

// part is something that counts at a container's sockets.
type part struct {
	hooks    Hooks
	programs []*ebpf.Program
	bind     func() error // once it is attached; nil for nothing
}

// load returns a datapath with a slot for the container's cgroup, and what binds that.
func (w *webBench) load(target bpf.Target, parts ...func(*bpf.Datapath) error) (*bpf.Datapath, func() error) {
	w.b.Helper()
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(w.b)
	w.b.Cleanup(func() { datapath.Close() })
	for _, load := range parts {
		if err := load(datapath); err != nil {
			w.b.Fatal(err)
		}
	}
	slot := nettest.Must(datapath.Take(target))(w.b)
	return datapath, func() error { return datapath.BindCgroup(slot) }
}

// requests returns what reads some kinds of requests, and the program for connections, on whose slot
// they are counted.
func (w *webBench) requests(o bpf.RequestOptions) []part {
	w.b.Helper()
	d, bind := w.load(bpf.Target{Cgroup: w.id, Sockets: true}, (*bpf.Datapath).LoadTCP, func(d *bpf.Datapath) error { return d.LoadRequests(o) })
	return []part{
		{Connections, []*ebpf.Program{d.TCP}, bind},
		{Requests, []*ebpf.Program{d.RequestsIngress, d.RequestsEgress}, nil},
	}
}

// on attaches parts to the container's cgroup, each with a controller of its own, and returns what
// takes them off.
func (w *webBench) on(parts ...part) (off func()) {
	w.b.Helper()
	var controls []*Controller
	for i, p := range parts {
		control := New(Options{Root: w.root, Pins: filepath.Join(w.pins, fmt.Sprint("part", i)), Hooks: p.hooks})
		if err := control.Attach(w.container.Cgroup, w.id, p.programs...); err != nil {
			w.b.Fatal(err)
		}
		controls = append(controls, control)
		if p.bind == nil {
			continue
		}
		if err := p.bind(); err != nil {
			w.b.Fatal(err)
		}
	}
	return func() {
		w.b.Helper()
		for _, control := range controls {
			if err := control.Detach(w.id); err != nil {
				w.b.Fatal(err)
			}
		}
	}
}

// empty returns a program for cgroups that does nothing.
func empty(b *testing.B) *ebpf.Program {
	b.Helper()
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nettally_empty", Type: ebpf.CGroupSKB, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(b)
	b.Cleanup(func() { program.Close() })
	return program
}

// BenchmarkParts has wrk ask nginx through a container's veth, both in the container's cgroup, with
// nothing on the cgroup, with programs that do nothing, with each part and with all, by turns.
// Beside the requests per second it says how many there are of those with nothing, over all
// rounds.
func BenchmarkParts(b *testing.B) {
	w := newWebBench(b)
	nothing := empty(b)
	counters, bind := w.load(bpf.Target{Cgroup: w.id})
	bytes := part{Packets, []*ebpf.Program{counters.CgroupIngress, counters.CgroupEgress}, bind}
	tcp, bind := w.load(bpf.Target{Cgroup: w.id, Sockets: true}, (*bpf.Datapath).LoadTCP)
	connections := part{Connections, []*ebpf.Program{tcp.TCP}, bind}
	variants := []struct {
		name  string
		parts []part
	}{
		{"nothing", nil},
		{"empty", []part{{Requests, []*ebpf.Program{nothing, nothing}, nil}}},
		{"bytes", []part{bytes}},
		{"tcp", []part{connections}},
		{"tcp+http", w.requests(bpf.RequestOptions{HTTP: true})},
		{"tcp+tls", w.requests(bpf.RequestOptions{TLS: true})},
		{"tcp+dns", w.requests(bpf.RequestOptions{DNS: true})},
		{"all", append(w.requests(bpf.RequestOptions{HTTP: true, TLS: true, DNS: true}), bytes)},
	}
	rates := make([]float64, len(variants))
	w.wrk()
	const rounds = 6
	for range rounds {
		for i, v := range variants {
			off := w.on(v.parts...)
			rates[i] += w.wrk() / rounds
			off()
		}
	}
	for i, v := range variants {
		b.ReportMetric(rates[i]/rates[0], v.name+"-ratio")
	}
	b.ReportMetric(rates[0], "requests/s-nothing")
	var runs strings.Builder // go test shows the first lines that are logged
	for _, v := range variants[1:] {
		fmt.Fprintln(&runs, v.name)
		off := w.on(v.parts...)
		for _, program := range v.parts[len(v.parts)-1].programs {
			runs.WriteString(calls(b, program, func() { w.wrk() }))
		}
		off()
	}
	b.Log(runs.String())
}

// BenchmarkRequests is what the programs for requests cost per run, of requests and of a connection
// that is none of HTTP, by the kernel's statistics.
func BenchmarkRequests(b *testing.B) {
	w := newWebBench(b)
	peer := nettest.Agent(b, w.host)
	parts := w.requests(bpf.RequestOptions{HTTP: true, TLS: true, DNS: true})
	defer w.on(parts...)()
	for _, program := range parts[1].programs {
		b.Log(calls(b, program, func() { w.wrk() }))
		sink := nettest.Must(peer.Listen("tcp", w.container.Interfaces[0].HostIPv4))(b)
		b.Log(calls(b, program, func() {
			if err := w.container.SendTCP(sink.Addr, 1<<30, testnet.Write); err != nil {
				b.Fatal(err)
			}
		}))
	}
}
