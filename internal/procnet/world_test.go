// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// world is a host made of files: a procfs of its own, containers and host veths. A roster
// with our backend counts it, in a bubble of synctest, and may be started again.
//
// The test holds mu while nettally runs, but for the moments in which that may work: see
// [world.yield]. The race detector does not know that time stands still for nettally.
type world struct {
	mu sync.Mutex

	t          *testing.T
	proc       string
	containers []watcher.Container
	pids       map[string][]int // by container
	veths      []watcher.HostVeth
	numbers    map[int]int // the host's numbers of the namespaces of processes
	counters   map[int]watcher.LinkCounters
	excluded   map[string]bool // host veths
	requests   bool            // are counted by firewall rules
	nextPID    int

	kept     map[string]usage.Record // as a ledger has them
	datapath *Datapath
	accounts *usage.Accounts
	backend  *Backend
	roster   *roster.Roster[int]
	events   chan watcher.Event
	stop     func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, proc: t.TempDir(), pids: map[string][]int{}, numbers: map[int]int{}, nextPID: 100,
		counters: map[int]watcher.LinkCounters{}, excluded: map[string]bool{}, kept: map[string]usage.Record{},
	}
	w.write("host", nil)
	w.link("self", "host")
	return w
}

// device is an interface as the kernel counts it.
type device struct {
	name  string
	index int
	up    bool
	duplex
	lost losses
}

func traffic(receive, transmit uint64) duplex {
	return duplex{receive: volume{Bytes: 100 * receive, Packets: receive}, transmit: volume{Bytes: 1000 * transmit, Packets: transmit}}
}

// write writes the files of a namespace. They keep their inodes.
func (w *world) write(namespace string, devices []device) {
	w.t.Helper()
	dir := filepath.Join(w.proc, "namespaces", namespace)
	dev, igmp := devHead, "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
	for _, d := range devices {
		in, out := d.lost.receive, d.lost.transmit
		dev += fmt.Sprintf("%s: %d %d %d %d 0 0 0 0 %d %d %d %d 0 0 0 0\n", d.name,
			d.receive.Bytes, d.receive.Packets, in.Errors, in.Dropped, d.transmit.Bytes, d.transmit.Packets, out.Errors, out.Dropped)
		if d.up {
			igmp += fmt.Sprintf("%d\t%s : 1 V3\n\t\t\t\t010000E0 1 0:00000000\t\t0\n", d.index, d.name)
		}
		w.file(filepath.Join(dir, "net/dev_snmp6", d.name), fmt.Sprintf(
			"ifIndex\t%d\nIp6InReceives\t0\nIp6InOctets\t0\nIp6OutRequests\t0\nIp6OutOctets\t0\n", d.index))
	}
	w.file(filepath.Join(dir, "net/dev"), dev)
	w.file(filepath.Join(dir, "net/igmp"), igmp)
	w.file(filepath.Join(dir, "net/snmp"), "Tcp: ActiveOpens PassiveOpens\nTcp: 0 0\n")
	w.file(filepath.Join(dir, "ns/net"), "")
}

func (w *world) file(path, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) link(process, namespace string) {
	w.t.Helper()
	if err := os.Symlink(filepath.Join("namespaces", namespace), filepath.Join(w.proc, process)); err != nil {
		w.t.Fatal(err)
	}
}

// start adds a container with a process in a namespace, and tells of it.
func (w *world) start(id, namespace string) {
	w.t.Helper()
	c := watcher.Container{ID: id, Cgroup: "/docker/" + id, CreatedAt: time.Now()}
	w.containers = append(w.containers, c)
	w.enter(id, namespace)
	w.send(watcher.ContainerStarted{Container: c})
}

// enter gives a container another process, in a namespace, instead of those it had.
func (w *world) enter(id, namespace string) {
	w.t.Helper()
	w.exit(id)
	w.fork(id, namespace)
}

// fork gives a container one more process, in a namespace.
func (w *world) fork(id, namespace string) {
	w.t.Helper()
	w.nextPID++
	w.link(fmt.Sprint(w.nextPID), namespace)
	w.pids[id] = append(w.pids[id], w.nextPID)
}

// is expects what is said of whether a container is counted.
func (w *world) is(id string, reason usage.Reason) {
	w.t.Helper()
	for _, c := range w.backend.Snapshot().Containers {
		if c.ID == id && c.Reason != reason {
			w.t.Errorf("%s is %q, want %q", id, c.Reason, reason)
		}
	}
}

// exit ends a container's processes.
func (w *world) exit(id string) {
	w.t.Helper()
	for _, pid := range w.pids[id] {
		if err := os.Remove(filepath.Join(w.proc, fmt.Sprint(pid))); err != nil {
			w.t.Fatal(err)
		}
	}
	delete(w.pids, id)
}

// end ends a container, and tells of it.
func (w *world) end(id string) {
	w.t.Helper()
	w.exit(id)
	i := slices.IndexFunc(w.containers, func(c watcher.Container) bool { return c.ID == id })
	c := w.containers[i]
	w.containers = slices.Delete(w.containers, i, i+1)
	w.send(watcher.ContainerStopped{ID: c.ID, Cgroup: c.Cgroup})
}

func (w *world) send(e watcher.Event) {
	if w.events != nil {
		w.yield(func() { w.events <- e })
	}
}

// yield lets nettally work until the test has done something and nothing is left to do.
func (w *world) yield(do func()) {
	w.mu.Unlock()
	do()
	synctest.Wait()
	w.mu.Lock()
}

// The host that the backend sees.
func (w *world) HostVeths() ([]watcher.HostVeth, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.veths), nil
}

func (w *world) Processes(c watcher.Container) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pids[c.ID])
}

func (w *world) Tasks(c watcher.Container) ([]int, bool) { return w.Processes(c), true }

func (w *world) Kernel(watcher.Container) watcher.Kernel { return watcher.HostKernel }

func (w *world) Aside(int) bool { return false }

func (w *world) NamespaceNumber(pid int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if number, ok := w.numbers[pid]; ok {
		return number, nil
	}
	return -1, nil
}

func (w *world) Counters(ifindex int, _ func()) (watcher.LinkCounters, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now, ok := w.counters[ifindex]; ok {
		return now, nil
	}
	return watcher.LinkCounters{}, watcher.ErrGone
}

// run starts nettally.
func (w *world) run() {
	w.t.Helper()
	w.datapath = NewDatapath(100)
	w.accounts = usage.New(usage.Options{
		Datapath: w.datapath, Retention: func() time.Duration { return 24 * time.Hour }, Boot: "boot", Kept: true,
	})
	var records []usage.Record
	for _, r := range w.kept {
		records = append(records, r)
	}
	w.accounts.Restore(records)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	w.backend, err = New(Options{
		Host: w, Datapath: w.datapath, Accounts: w.accounts, Proc: w.proc, Log: log, Requests: w.requests, TCP: true,
		Interface: func(name string) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return !w.excluded[name]
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.roster = roster.New(roster.Options[int]{
		Containers: func() ([]watcher.Container, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.containers), nil
		},
		Missed:  func(string, string) bool { return false },
		Backend: w.backend, Accounts: w.accounts, Names: nobody{}, Log: log,
		Settings: func() roster.Settings {
			return roster.Settings{Container: func(watcher.Container) bool { return true }, Reconcile: 30 * time.Second}
		},
	})
	w.events = make(chan watcher.Event)
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.roster.Run(ctx, w.events) }()
	w.stop = func() {
		w.mu.Unlock()
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		w.events = nil
		w.flush()
	}
	synctest.Wait()
	w.mu.Lock() // until stop
	w.flush()
}

// flush does what a ledger does.
func (w *world) flush() {
	for _, id := range w.accounts.Unrecalled() {
		if r, ok := w.kept[id]; ok {
			w.accounts.Recall(id, &r)
		} else {
			w.accounts.Recall(id, nil)
		}
	}
	records := w.accounts.Pending(false)
	for _, r := range records {
		w.kept[r.ID] = r
	}
	w.accounts.Written(records)
}

// pass lets time go by, in which the files are read.
func (w *world) pass(d time.Duration) {
	w.yield(func() { time.Sleep(d) })
	w.flush()
}

// counted returns what was counted for a container, and what was seeded.
func (w *world) counted(id string) (counted, seeded duplex) {
	w.t.Helper()
	for _, c := range w.backend.Snapshot().Containers {
		if c.ID != id {
			continue
		}
		counted = duplex{receive: c.Receive.Interface, transmit: c.Transmit.Interface}
		seeded = duplex{receive: c.Receive.Seeded, transmit: c.Transmit.Seeded}
		return counted, seeded
	}
	w.t.Errorf("no container %s", id)
	return counted, seeded
}

// want expects what was counted for a container, seeded or not.
func (w *world) want(id string, want duplex) {
	w.t.Helper()
	if got, _ := w.counted(id); got != want {
		w.t.Errorf("%s has %v, want %v", id, got, want)
	}
}

type nobody struct{}

func (nobody) Want(string)   {}
func (nobody) Forget(string) {}

// inBubble runs a test in a world and in time that passes at once.
func inBubble(t *testing.T, name string, test func(*world)) {
	t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.run()
			w.pass(time.Second) // what starts now is newer than we are
			test(w)
			w.stop()
		})
	})
}
