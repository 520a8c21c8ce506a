// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

const (
	// calm is how long the daemon is measured while nobody attacks, two reconciles and more.
	calm = 11 * time.Second
	// barrage is how long packets are sent.
	barrage = 60 * time.Second
)

// BenchmarkUnderAttack measures the daemon before, during and after attacks: CPU, memory, a
// scrape, and how long it takes to attach to the veths of 20 containers that start meanwhile.
func BenchmarkUnderAttack(b *testing.B) {
	need.Root(b)
	for _, attack := range []struct {
		name string
		on   func(*ordeal)
	}{
		{"cgroups", cgroupAttack}, {"churn", churnAttack}, {"connections", connectionAttack},
		{"syn", synAttack}, {"malformed", malformedAttack},
	} {
		b.Run(attack.name, func(b *testing.B) {
			for b.Loop() {
				o := newOrdeal(b)
				o.phase("before", 0, func() error { time.Sleep(calm); return nil })
				attack.on(o)
				time.Sleep(calm) // it looks at everything twice
				o.phase("after", 0, func() error { time.Sleep(calm); return nil })
			}
		})
	}
}

// cgroupAttack makes 5,000 empty directories named like containers, leaves them and removes them.
func cgroupAttack(o *ordeal) {
	o.phase("making", 0, func() error { return o.directories("mkdir", 5000) })
	o.phase("left", 0, func() error { time.Sleep(calm); return nil })
	o.phase("removing", 0, func() error { return o.directories("rmdir", 5000) })
	o.quiet()
}

// churnAttack makes and removes 1,000 such directories, 20 times.
func churnAttack(o *ordeal) {
	o.phase("during", 100*time.Millisecond, func() error {
		for range 20 {
			if err := errors.Join(o.directories("mkdir", 1000), o.directories("rmdir", 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	o.quiet()
}

// connectionAttack opens 2,000 connections that say nothing and 500 that announce a body.
func connectionAttack(o *ordeal) {
	_, endIdle := o.attacker.startFlood("idle", 2000)
	_, endUnsent := o.attacker.startFlood("unsent", 500)
	o.phase("during", 0, func() error { time.Sleep(calm); return nil })
	endIdle()
	endUnsent()
	o.quiet()
}

func synAttack(o *ordeal) {
	c, mac := o.sender()
	nic := c.Interfaces[0]
	sink := nettest.Must(nettest.Agent(o.b, o.host).Listen("tcp", nic.HostIPv4))(o.b)
	o.barrage(c, synFrames(mac, nic.IPv4, sink.Addr))
}

func malformedAttack(o *ordeal) {
	c, mac := o.sender()
	o.barrage(c, malformedFrames(mac, c.Interfaces[0].IPv4, c.Interfaces[0].HostIPv4))
}

// ordeal is a daemon that is measured while it is attacked.
type ordeal struct {
	b        *testing.B
	host     *testnet.Namespace
	d        *daemon
	client   *http.Client
	attacker *attacker
	dirs     string // the attacker's cgroup in the hierarchy that is watched
}

func newOrdeal(b *testing.B) *ordeal {
	b.Helper()
	o := &ordeal{b: b, host: nettest.Host(b)}
	o.attacker, o.client = newAttacker(b, on{o.host}), client(o.host)
	parent := fmt.Sprintf("/nettally-attack-%d", os.Getpid())
	b.Cleanup(func() {
		for _, root := range nettest.Must(testnet.CgroupRoots())(b) {
			_ = unix.Rmdir(filepath.Join(root, parent))
		}
	})
	o.attacker.delegate(parent)
	cgroup := fmt.Sprintf("%s/delegated-%d", parent, o.attacker.uid)
	o.dirs = nettest.Must(watchedRoot())(b) + cgroup
	o.d = startListening(b, on{o.host}, metricsAddress, fmt.Sprintf(
		"names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {reconcile: 5s, include: [%q, %q]}",
		cgroup+"/*", fmt.Sprintf("/nettally-testnet-%d/*", os.Getpid())))
	o.d.stop() // as users run it, it writes no line for each container
	config := nettest.Must(os.ReadFile(o.d.config))(b)
	if err := os.WriteFile(o.d.config, bytes.Replace(config, []byte("debug"), []byte("info"), 1), 0o600); err != nil {
		b.Fatal(err)
	}
	o.d.start()
	return o
}

// directories makes or removes so many of the attacker's directories, as fast as may be.
func (o *ordeal) directories(command string, count int) error {
	script := fmt.Sprintf("cd %s && seq -f docker-%%064.0f.scope %d | xargs %s", o.dirs, count, command)
	if out, err := o.attacker.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

// phase reports what the daemon takes while something is done: it starts 20 containers
// meanwhile, with pauses, and scrapes.
func (o *ordeal) phase(name string, pause time.Duration, do func() error) {
	o.b.Helper()
	pid := o.d.cmd.Process.Pid
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil { // the peak of memory
		o.b.Fatal(err)
	}
	before, cpu, began := o.attaches(), cpuSeconds(o.b, pid), time.Now()
	var doing errgroup.Group
	done := make(chan struct{})
	doing.Go(func() error { defer close(done); return do() })
	var all []*testnet.Container
	var scrapes []time.Duration
	var size int
	for ended := false; !ended || len(all) < 20; {
		wait := time.Second
		if len(all) < 20 {
			all = append(all, nettest.Container(o.b, o.host, testnet.ContainerOptions{LikeDocker: true}))
			wait = pause
		}
		if len(all)%5 == 0 {
			started := time.Now()
			size = len(nettest.Must(fetch(o.client, metricsAddress, "/metrics"))(o.b))
			scrapes = append(scrapes, time.Since(started))
		}
		select {
		case <-done:
			ended = true
		case <-time.After(wait):
		}
	}
	if err := doing.Wait(); err != nil {
		o.b.Fatal(err)
	}
	took := time.Since(began)
	cpu = cpuSeconds(o.b, pid) - cpu
	grown := o.await(before, len(all))
	slices.Sort(scrapes)
	for unit, value := range map[string]float64{
		"s": took.Seconds(), "cpu-ms/s": 1000 * cpu / took.Seconds(),
		"RSS-MB": residentMB(o.b, pid), "peak-MB": o.memory("VmHWM"),
		"scrape-ms": 1000 * scrapes[len(scrapes)/2].Seconds(), "scrape-KB": float64(size) / 1000,
		"attach-ms-mean": 1000 * grown.sum / float64(grown.count), "attach-ms-max": 1000 * grown.highest,
	} {
		o.b.ReportMetric(value, name+"-"+unit)
	}
	for _, c := range all {
		if err := c.Close(); err != nil {
			o.b.Fatal(err)
		}
	}
}

// memory reads a line of the daemon's status, in MB.
func (o *ordeal) memory(line string) (kilobytes float64) {
	o.b.Helper()
	text := string(nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", o.d.cmd.Process.Pid)))(o.b))
	_, tail, _ := strings.Cut(text, line+":")
	fmt.Sscan(tail, &kilobytes)
	return kilobytes / 1024
}

// quiet reports how long the daemon is busy yet: until it takes 5 % of a CPU for two seconds.
func (o *ordeal) quiet() {
	o.b.Helper()
	began, calms := time.Now(), 0
	for calms < 2 && time.Since(began) < patience {
		before := cpuSeconds(o.b, o.d.cmd.Process.Pid)
		time.Sleep(time.Second)
		calms++
		if cpuSeconds(o.b, o.d.cmd.Process.Pid)-before > 0.05 {
			calms = 0
		}
	}
	o.b.ReportMetric(time.Since(began).Seconds()-2, "busy-after-s")
}

// attaches is what the daemon says of how long attaching took.
type attaches struct {
	sum, highest float64 // seconds; highest is the bound of the highest bucket
	count        int
	buckets      []bucket
}

type bucket struct {
	most  float64
	count int // of those that took no longer
}

func (o *ordeal) attaches() (a attaches) {
	o.b.Helper()
	for line := range strings.Lines(nettest.Must(o.d.get("/metrics"))(o.b)) {
		var at bucket
		if rest, ok := strings.CutPrefix(line, "nettally_attach_seconds_"); ok {
			fmt.Sscanf(rest, "sum %g", &a.sum)
			fmt.Sscanf(rest, "count %d", &a.count)
			if n, _ := fmt.Sscanf(strings.ReplaceAll(rest, `"`, " "), "bucket{le= %g } %d", &at.most, &at.count); n == 2 {
				a.buckets = append(a.buckets, at)
			}
		}
	}
	return a
}

// await waits until the daemon has attached to so many interfaces more, and returns how long
// those took.
func (o *ordeal) await(before attaches, more int) attaches {
	o.b.Helper()
	now := o.attaches()
	for began := time.Now(); now.count-before.count < more; now = o.attaches() {
		if time.Since(began) > patience {
			o.b.Fatalf("attached to %d interfaces of %d", now.count-before.count, more)
		}
		time.Sleep(200 * time.Millisecond)
	}
	grown := attaches{sum: now.sum - before.sum, count: now.count - before.count}
	for i, at := range now.buckets {
		grown.highest = at.most
		if at.count-before.buckets[i].count == grown.count {
			break
		}
	}
	return grown
}

// sender starts a container that attacks by packets; the hardware address is that of the
// host's end.
func (o *ordeal) sender() (*testnet.Container, []byte) {
	o.b.Helper()
	c := nettest.Container(o.b, o.host, testnet.ContainerOptions{LikeDocker: true})
	o.d.counted(c.ID, 1)
	return c, nettest.Must(o.host.LinkByName(c.Interfaces[0].HostName))(o.b).Attrs().HardwareAddr
}

// barrage sends frames, reports how many passed by the kernel's counters, and expects ours to
// be the same.
func (o *ordeal) barrage(c *testnet.Container, frames [][]byte) {
	o.b.Helper()
	kernel := func() testnet.Counters {
		return nettest.Must(testnet.InterfaceCounters(c.PID()))(o.b)["eth0"]
	}
	before := kernel()
	o.phase("during", 500*time.Millisecond, func() error {
		_, err := c.Barrage(testnet.Barrage{Interface: "eth0", Frames: frames, For: barrage})
		return err
	})
	o.b.ReportMetric(float64(kernel().TransmitPackets-before.TransmitPackets)/barrage.Seconds()/1000, "sent-kpps")
	o.b.ReportMetric(float64(kernel().ReceivePackets-before.ReceivePackets)/barrage.Seconds()/1000, "received-kpps")
	o.quiet()
	o.d.poll("equal to the kernel", func() error {
		found, err := o.d.container(c.ID)
		if diff := cmp.Diff(kernel(), interfaceCounters(found)); err == nil && diff != "" {
			err = fmt.Errorf("(-kernel +nettally):\n%s", diff)
		}
		return err
	})
}
