// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/watcher"
)

// Hundreds of containers that come and go, and some of Docker's, leave nothing behind
// in the daemon and in the kernel.
func TestChurn(t *testing.T) {
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	// Whoever has ended is forgotten soon, and who stays does not change to tcx when it is still.
	d := startDaemon(t, docker, strings.Replace(onlyDocker(docker), "watch: {", "watch: {reconcile: 1s, ", 1)+"\nretention: {metrics: 1s, api: 1s}\nattach: {mode: clsact}")
	stays := docker.Run(dockerhost.Image)
	d.counted(stays, 1)
	churn := func(fleeting, real int) {
		t.Helper()
		began := time.Now()
		var group errgroup.Group
		group.Go(func() error { return runFleeting(docker, fleeting) })
		group.Go(func() error { return runReal(docker, real) })
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d and %d containers in %v", fleeting, real, time.Since(began).Round(time.Millisecond))
	}
	// All is there that is made when it is first needed, and at most as much as is needed at
	// the same time.
	churn(100, 10)
	var before resources
	d.poll("at rest", func() error {
		before = d.resources(docker.Namespace)
		return before.exceeds(resources{Slots: 2, Qdiscs: 1, Chunks: 1}) // its interface and its connections
	})
	t.Logf("before: %+v", before)

	const fleeting, real = 400, 40
	attached := d.attached()
	churn(fleeting, real)
	if n := d.attached() - attached; n < fleeting/4 { // half of them wait until somebody comes
		t.Errorf("%d veths of %d were there long enough to be counted: is this a test of anything?", n, fleeting+real)
	}
	d.poll("as before", func() error { return d.resources(docker.Namespace).exceeds(before) })
	t.Logf("after: %+v", d.resources(docker.Namespace))
	d.poll("alone", func() error {
		all := d.list().Containers
		if len(all) != 1 || all[0].ID != stays || !all[0].Accounted || all[0].State != "running" {
			return fmt.Errorf("%d containers: %+v", len(all), all)
		}
		return nil
	})
}

// runFleeting has containers come and go that have all that nettally looks at, and no
// runtime: a cgroup in the watched hierarchy, a process, a network namespace and a veth.
func runFleeting(docker *dockerhost.Docker, count int) error {
	root, err := watchedRoot()
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(8)
	for range count {
		n := lives.Add(1)
		id := fmt.Sprintf("%056x%08x", rand.Uint64(), n)
		group.Go(func() error {
			return live(docker, filepath.Join(root, docker.CgroupParent, id), fmt.Sprintf("fl%x", n), n%2 == 0)
		})
	}
	return group.Wait()
}

// lives numbers fleeting containers: a veth may be there for a while after its container,
// and no other can have its name.
var lives atomic.Uint32

// watchedRoot is the hierarchy in which nettally looks for containers.
func watchedRoot() (string, error) {
	w, err := watcher.New(watcher.Options{})
	if err != nil {
		return "", err
	}
	defer w.Close()
	return w.Layout().Root, nil
}

// live is the life of a container, which may end before anybody has noticed it, or is
// counted first. Its veth goes with its namespace: the kernel removes many at once so, where
// one by one would take it 40 ms each.
func live(docker *dockerhost.Docker, cgroup, veth string, counted bool) (err error) {
	inside, err := testnet.NewNamespace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inside.Close()) }()
	if err := testnet.Veth(docker.Namespace, veth, inside, "eth0"); err != nil {
		return err
	}
	process := exec.Command("sleep", "60")
	if err := inside.Start(process); err != nil {
		return err
	}
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait() // it was killed
		err = errors.Join(err, removeCgroup(cgroup))
	}()
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Append(nil, process.Process.Pid), 0); err != nil {
		return err
	}
	if counted {
		return awaitQdisc(docker.Namespace, veth)
	}
	time.Sleep(rand.N(60 * time.Millisecond))
	return nil
}

// awaitQdisc waits until somebody has put a clsact qdisc on an interface, for his filters.
func awaitQdisc(host *testnet.Namespace, veth string) error {
	link, err := host.LinkByName(veth)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all, err := host.QdiscList(link)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(q netlink.Qdisc) bool { return q.Type() == "clsact" }) {
			return nil
		}
	}
	return fmt.Errorf("interface %s is not counted", veth)
}

// removeCgroup waits for a process that has just ended: it leaves its cgroup a moment
// after it can be waited for.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := unix.Rmdir(dir)
		if errors.Is(err, unix.ENOENT) {
			return nil // it was not made
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

func runReal(docker *dockerhost.Docker, count int) error {
	var group errgroup.Group
	group.SetLimit(4)
	for range count {
		group.Go(func() error {
			_, err := docker.Client("run", "--rm", dockerhost.Image, "true").Output()
			return whatItSaid(err)
		})
	}
	return group.Wait()
}

// attached is how many host veths have been attached to since the daemon started.
func (d *daemon) attached() (count int) {
	d.t.Helper()
	const name = "nettally_attach_seconds_count "
	for line := range strings.Lines(nettest.Must(d.get("/metrics"))(d.t)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			fmt.Sscan(rest, &count)
		}
	}
	return count
}

// resources is what the daemon has of the kernel, and the kernel of it.
type resources struct {
	Descriptors int
	Maps        int // by descriptors
	Programs    int
	Watches     int // of inotify
	Mapped      int // maps: chunks of counters, and the troubles
	Threads     int
	Goroutines  int
	Slots       int
	Chunks      int // that the kernel has
	Pins        int
	Qdiscs      int // clsact ones, on the host
	Resident    int // KiB
}

func (d *daemon) resources(host *testnet.Namespace) resources {
	d.t.Helper()
	r := resources{Goroutines: int(d.metric("go_goroutines"))}
	process := fmt.Sprintf("/proc/%d", d.cmd.Process.Pid)
	for _, info := range nettest.Must(filepath.Glob(process + "/fdinfo/*"))(d.t) {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // closed meanwhile
		}
		r.Descriptors++
		r.Maps += strings.Count(string(text), "map_id:")
		r.Programs += strings.Count(string(text), "prog_id:")
		r.Watches += strings.Count(string(text), "inotify wd:")
	}
	r.Mapped = strings.Count(string(nettest.Must(os.ReadFile(process+"/maps"))(d.t)), "bpf-map")
	status := bufio.NewScanner(strings.NewReader(string(nettest.Must(os.ReadFile(process + "/status"))(d.t))))
	for status.Scan() {
		fmt.Sscanf(status.Text(), "Threads: %d", &r.Threads)
		fmt.Sscanf(status.Text(), "VmRSS: %d", &r.Resident)
	}
	// A bpffs that nettally has mounted is in its mount namespace.
	pins := process + "/root" + d.pins
	r.Slots, r.Chunks = d.elements(pins, "slots"), d.elements(pins, "chunks")
	r.Pins = len(nettest.Must(filepath.Glob(pins + "/*/*"))(d.t))
	links, err := host.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // the kernel is removing some
		links, err = host.LinkList()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	for _, l := range links {
		for _, q := range nettest.Must(host.QdiscList(l))(d.t) {
			if q.Type() == "clsact" {
				r.Qdiscs++
			}
		}
	}
	return r
}

// elements counts the elements of a pinned map.
func (d *daemon) elements(pins, name string) (count int) {
	d.t.Helper()
	m := nettest.Must(ebpf.LoadPinnedMap(filepath.Join(pins, bpf.Layout, name), &ebpf.LoadPinOptions{ReadOnly: true}))(d.t)
	defer m.Close()
	var key uint32
	value := make([]byte, m.ValueSize())
	all := m.Iterate()
	for all.Next(&key, &value) {
		count++
	}
	if err := all.Err(); err != nil {
		d.t.Fatal(err)
	}
	return count
}

// exceeds says what there is more of than there was, 0 standing for anything. Some
// more threads and memory are no leak: Go's runtime keeps both at its discretion.
func (r resources) exceeds(was resources) error {
	const someThreads, someMemory = 8, 8 << 10
	time.Sleep(100 * time.Millisecond) // it takes seconds, and looking takes time of those who work
	var errs []error
	for _, n := range []struct {
		of       string
		now, was int
	}{
		{"descriptors", r.Descriptors, was.Descriptors},
		{"descriptors of maps", r.Maps, was.Maps},
		{"descriptors of programs", r.Programs, was.Programs},
		{"inotify watches", r.Watches, was.Watches},
		{"mapped maps", r.Mapped, was.Mapped},
		{"threads", r.Threads - someThreads, was.Threads},
		{"goroutines", r.Goroutines, was.Goroutines},
		{"slots", r.Slots, was.Slots},
		{"chunks", r.Chunks, was.Chunks},
		{"pins", r.Pins, was.Pins},
		{"qdiscs", r.Qdiscs, was.Qdiscs},
		{"KiB", r.Resident - someMemory, was.Resident},
	} {
		if n.now > n.was && n.was > 0 {
			errs = append(errs, fmt.Errorf("%d %s, %d before", n.now, n.of, n.was))
		}
	}
	return errors.Join(errs...)
}
