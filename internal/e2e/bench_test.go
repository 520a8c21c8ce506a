// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// BenchmarkScrape scrapes /metrics with so many containers, whose counters are read
// from the kernel's rows.
func BenchmarkScrape(b *testing.B) {
	need.Root(b)
	for _, containers := range []int{10, 100, 1000, 5000} {
		b.Run(strconv.Itoa(containers), func(b *testing.B) {
			server := scrapeServer(b, containers)
			var size int64
			for b.Loop() {
				answer, err := http.Get(server.URL + "/metrics")
				if err != nil {
					b.Fatal(err)
				}
				size, err = io.Copy(io.Discard, answer.Body)
				if err != nil {
					b.Fatal(err)
				}
				answer.Body.Close()
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}

func scrapeServer(b *testing.B, containers int) *httptest.Server {
	b.Helper()
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(b)
	accounts := usage.New(usage.Options{Datapath: datapath, Retention: func() time.Duration { return time.Hour }})
	for n := 1; n <= containers; n++ {
		id := fmt.Sprintf("%064x", n)
		if _, _, err := accounts.Open(usage.OnHost(n), "veth"+id[56:], "clsact"); err != nil {
			b.Fatal(err)
		}
		accounts.Start(usage.Container{ID: id, Runtime: "docker", Cgroup: "/docker/" + id})
		if err := accounts.Assign(usage.OnHost(n), id, "eth0"); err != nil {
			b.Fatal(err)
		}
		accounts.Explain(id, usage.Accounted)
	}
	e := nettest.Must(exporter.New(exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return accounts.Snapshot(), nil },
		Settings: func() exporter.Settings { return exporter.Settings{MetricsRetention: time.Hour} },
		Log:      slog.New(slog.DiscardHandler),
	}))(b)
	server := httptest.NewServer(e.Handler())
	b.Cleanup(func() {
		server.Close()
		if err := datapath.Close(); err != nil {
			b.Error(err)
		}
	})
	return server
}

// BenchmarkThroughput sends through a veth with and without our filters on it, in
// turn, and reports the median ratio of the two by iperf3's own figures, beside the
// ratio of two rounds without (A/A) that says how far noise goes.
func BenchmarkThroughput(b *testing.B) {
	need.Root(b)
	need.Commands(b, "iperf3")
	for name, args := range map[string][]string{
		"tcp":     {},
		"udp-22B": {"-u", "-b", "0", "-l", "22"},
	} {
		b.Run(name, func(b *testing.B) {
			r := newRoad(b)
			var ours, noise []float64
			for b.Loop() {
				for range 7 {
					before := r.measure(b, args)
					r.attach(b)
					with := r.measure(b, args)
					r.detach(b)
					after := r.measure(b, args)
					ours = append(ours, 2*with/(before+after))
					noise = append(noise, after/before)
				}
			}
			slices.Sort(ours)
			slices.Sort(noise)
			b.ReportMetric(ours[len(ours)/2], "ratio-median")
			b.ReportMetric(ours[0], "ratio-min")
			b.ReportMetric(ours[len(ours)-1], "ratio-max")
			b.ReportMetric(noise[len(noise)/2], "noise-median")
			b.ReportMetric(noise[0], "noise-min")
			b.ReportMetric(noise[len(noise)-1], "noise-max")
		})
	}
}

// road is a container that sends to its host.
type road struct {
	host      *testnet.Namespace
	container *testnet.Container
	ifindex   int
	datapath  *bpf.Datapath
	control   *tcctl.Controller
}

func newRoad(b *testing.B) *road {
	b.Helper()
	r := &road{host: nettest.Host(b)}
	r.container = nettest.Container(b, r.host, testnet.ContainerOptions{})
	r.ifindex = nettest.Must(r.host.LinkByName(r.container.Interfaces[0].HostName))(b).Attrs().Index
	r.datapath = nettest.Must(bpf.Load(bpf.Options{}))(b)
	nettest.Must(r.datapath.Take(bpf.Target{Ifindex: r.ifindex}))(b)
	r.control = nettest.Must(tcctl.Open(tcctl.Options{NetNS: r.host.FD()}))(b)
	b.Cleanup(func() {
		r.control.Close()
		r.datapath.Close()
	})
	return r
}

func (r *road) attach(b *testing.B) {
	b.Helper()
	nettest.Must(r.control.Attach(r.ifindex, 1, r.datapath.Ingress, r.datapath.Egress, nil))(b)
}

func (r *road) detach(b *testing.B) {
	b.Helper()
	if err := r.control.Detach(r.ifindex, true); err != nil {
		b.Fatal(err)
	}
}

// measure returns iperf3's packets per second for UDP, and bits per second for TCP.
func (r *road) measure(b *testing.B, args []string) float64 {
	b.Helper()
	server := on{r.host}.Command("iperf3", "-s", "-1", "-p", "5201")
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	// The server ends after one test; killing it then or before does no harm.
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	args = append([]string{"-c", r.container.Interfaces[0].HostIPv4.String(), "-p", "5201", "-t", "1", "-J"}, args...)
	var result iperfResult
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		out, err := r.container.Namespace.Run("iperf3", args...)
		result = iperfResult{}
		// It may exit with 0 and say what went wrong; at first the server does not listen.
		if err = errors.Join(err, json.Unmarshal(out, &result)); err == nil && result.Error == "" {
			break
		}
	}
	rate := result.End.SumReceived.BitsPerSecond
	if result.End.Sum.Packets > 0 {
		rate = result.End.Sum.Packets / result.End.Sum.Seconds
	}
	if rate == 0 {
		b.Fatalf("iperf3 measured nothing: %s", result.Error)
	}
	return rate
}

// iperfResult is what we need of iperf3's JSON: sum is UDP's, sum_received TCP's.
type iperfResult struct {
	Error string
	End   struct {
		Sum struct {
			Packets float64
			Seconds float64
		}
		SumReceived struct {
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	}
}

// BenchmarkIdle runs the daemon with 100 containers that do nothing, and reports what
// it costs: CPU in one minute, and memory.
func BenchmarkIdle(b *testing.B) {
	need.Root(b)
	const span = 30 * time.Second
	host := nettest.Host(b)
	d := startDaemon(b, on{host}, "names: {docker: \"off\", podman: \"off\", cri: \"off\"}")
	var containers []*testnet.Container
	for range 100 {
		containers = append(containers, nettest.Container(b, host, testnet.ContainerOptions{LikeDocker: true}))
	}
	for _, c := range containers {
		d.counted(c.ID, 1)
	}
	for b.Loop() {
		before := cpuSeconds(b, d.cmd.Process.Pid)
		time.Sleep(span)
		used := cpuSeconds(b, d.cmd.Process.Pid) - before
		b.ReportMetric(used*float64(time.Minute)/float64(span), "cpu-s/min")
		b.ReportMetric(residentMB(b, d.cmd.Process.Pid), "RSS-MB")
	}
}

// cpuSeconds reads user and system time, proc_pid_stat(5) fields 14 and 15, in ticks of
// 10 ms.
func cpuSeconds(b *testing.B, pid int) float64 {
	b.Helper()
	text := string(nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)))(b))
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	user := nettest.Must(strconv.ParseFloat(fields[11], 64))(b)
	system := nettest.Must(strconv.ParseFloat(fields[12], 64))(b)
	return (user + system) / 100
}

func residentMB(b *testing.B, pid int) float64 {
	b.Helper()
	text := string(nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(b))
	_, tail, _ := strings.Cut(text, "VmRSS:")
	return nettest.Must(strconv.ParseFloat(strings.Fields(tail)[0], 64))(b) / 1024
}

// BenchmarkDiscover starts nettally on a host with the cgroups of 1,000 containers, each of
// which is counted from then on, and says how long it takes until all of them are, and how
// many inotify watches that needs.
func BenchmarkDiscover(b *testing.B) {
	need.Root(b)
	const containers = 1000
	nettest.Must(binary())(b) // it takes longer than anything else here
	host := nettest.Host(b)
	root := nettest.Must(watchedRoot())(b)
	parent := fmt.Sprintf("/nettally-discover-%d", os.Getpid())
	for _, root := range []string{root, nettest.Must(unifiedRoot())(b)} {
		makeCgroups(b, root+parent, containers)
	}
	for b.Loop() {
		began := time.Now()
		d := startDaemon(b, on{host}, fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {include: [%q]}", parent+"/*"))
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-ready")
		d.poll("all counted", func() error {
			if n := d.metric(`nettally_attachments{hook="cgroup"}`); n != containers {
				return fmt.Errorf("%v of %d cgroups", n, containers)
			}
			return nil
		})
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-counted")
		b.ReportMetric(float64(d.resources(host).Watches), "watches")
		d.stop()
		nettest.Must(d.run("detach"))(b)
	}
}

// unifiedRoot is where the cgroup2 hierarchy is mounted.
func unifiedRoot() (string, error) {
	w, err := watcher.New(watcher.Options{})
	if err != nil {
		return "", err
	}
	defer w.Close()
	return w.Layout().Unified, nil
}

// makeCgroups makes the cgroups of containers without processes, until the test ends.
func makeCgroups(b *testing.B, parent string, count int) {
	b.Helper()
	if err := os.Mkdir(parent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { // the one hierarchy is both
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = removeCgroup(parent) })
	for n := range count {
		dir := fmt.Sprintf("%s/%064x", parent, n+1)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = removeCgroup(dir) })
	}
}
