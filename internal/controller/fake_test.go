// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// kernel is a host without a kernel: links, hooks, slots and cgroups that note what is done
// to them, in order, and fail when they are told to. A controller works on it in the
// goroutine of the test, so that order and failures can be asserted without root.
type kernel struct {
	t *testing.T
	*Controller
	calls  []string
	fails  map[string]error // by verb, as it stands in calls
	kill   string           // the call that the process does not survive
	killIn int              // or how many calls it is away
	failIn int              // how many calls away is one that fails

	veths    []watcher.HostVeth
	inside   map[string]watcher.Sandbox // by container
	counters map[int]watcher.LinkCounters
	vanishes bool   // an interface goes right after our programs were put on
	slowly   func() // called while our programs are put on, which takes long then
	glance   *watcher.LinkCounters
	flow     func()       // packets that pass whenever the counters are read
	there    map[int]bool // numbers of namespaces

	processes map[string][]int // by container

	filters map[int]uint16 // slots of the filters on interfaces
	tcx     map[int]bool
	cgroups map[uint64]bool // with our programs

	slots map[uint16]bpf.Slot
	rows  map[uint16][2]bpf.Counters // received, transmitted
	tcp   map[uint16]bpf.TCPCounters

	sockets     map[uint64]bool   // cgroups with our program for connections
	established map[uint64]uint64 // connections by cgroup
	listenDrops uint64
	namespace   watcher.NamespaceTCP // what each has counted
	since       time.Time            // they were there at the latest

	bound map[int]uint16 // slots of interfaces on tcx

	released map[int][2]uint64 // what slots that were given up had counted, by interface

	excluded string
	mode     Mode
}

var (
	errInjected = errors.New("injected")
	errKilled   = errors.New("killed")
)

func newKernel(t *testing.T) *kernel {
	t.Helper()
	k := &kernel{
		t: t, fails: map[string]error{}, inside: map[string]watcher.Sandbox{}, counters: map[int]watcher.LinkCounters{}, there: map[int]bool{},
		filters: map[int]uint16{}, tcx: map[int]bool{}, cgroups: map[uint64]bool{},
		slots: map[uint16]bpf.Slot{}, rows: map[uint16][2]bpf.Counters{}, tcp: map[uint16]bpf.TCPCounters{}, bound: map[int]uint16{}, released: map[int][2]uint64{}, mode: ModeAuto,
	}
	k.restart()
	return k
}

// noBugs fails a test where an attachment changes state as none can.
type noBugs struct {
	slog.Handler
	t testing.TB
}

func (noBugs) Enabled(context.Context, slog.Level) bool { return true }

func (h noBugs) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == impossible {
		r.Attrs(func(a slog.Attr) bool { h.t.Error(impossible, a); return true })
	}
	return h.Handler.Handle(ctx, r)
}

// restart begins with another controller on the same kernel.
func (k *kernel) restart() {
	accounts := usage.New(usage.Options{Datapath: (*fakeSlots)(k), Retention: func() time.Duration { return time.Hour }, Boot: "boot"})
	k.Controller = New(Options{
		Host: (*fakeHost)(k), Hooks: (*fakeHooks)(k), Cgroups: (*fakeCgroups)(k), Accounts: accounts, TCX: true,
		Log: slog.New(noBugs{slog.DiscardHandler, k.t}),
		Settings: func() Settings {
			return Settings{Interface: func(name string) bool { return name != k.excluded }, Mode: k.mode, Cgroup: CgroupAuto}
		},
	})
}

// did notes a call, and returns how it fails.
func (k *kernel) did(format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	k.calls = append(k.calls, call)
	if k.killIn > 0 {
		k.killIn--
	}
	if call == k.kill || k.killIn == 1 {
		panic(errKilled)
	}
	if k.failIn > 0 {
		k.failIn--
		if k.failIn == 0 {
			return errInjected
		}
	}
	return k.fails[call]
}

// killed kills the process when it makes a call.
func (k *kernel) killed(call string, while func()) {
	k.t.Helper()
	k.calls, k.kill = nil, call
	defer func() {
		if recover() != errKilled {
			k.t.Errorf("%q was not called: %v", call, k.calls)
		}
		k.calls, k.kill = nil, ""
	}()
	while()
}

// veth adds a host veth that leads into a namespace, and tells of it.
func (k *kernel) veth(index, nsid int) {
	v := watcher.HostVeth{Index: index, Name: fmt.Sprint("veth", index), PeerIndex: 2, NetNSID: nsid}
	k.veths = append(k.veths, v)
	k.Link(watcher.HostVethSeen{HostVeth: v, SeenAt: time.Now()})
}

// container makes a container that leads to a host veth known.
func (k *kernel) container(id string, veth, nsid int) roster.Member {
	m := roster.Member{Key: roster.Key{ID: id}, Found: watcher.Container{ID: id, Cgroup: "/docker/" + id}, Reason: usage.Starting}
	k.inside[id] = watcher.Sandbox{
		NetNS: uint64(1000 + nsid), NetNSID: nsid,
		Interfaces: []watcher.Interface{{Name: "eth0", Index: 2, HostIndex: veth, Kind: "veth", Up: true}},
	}
	k.Accounts.Start(usage.Container{ID: id})
	k.Update(m)
	return m
}

// count counts the namespace of a container for it.
func (k *kernel) count(m roster.Member) roster.Outcome {
	k.t.Helper()
	at, err := k.Locate(m)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.Count(m, at)
}

// finish does the jobs that wait.
func (k *kernel) finish() {
	for {
		next, ok := k.Controller.veths.jobs.take()
		if !ok {
			return
		}
		next.result = k.mover().do(next)
		k.moved(next)
	}
}

// want expects these calls since the last time.
func (k *kernel) want(calls ...string) {
	k.t.Helper()
	if diff := cmp.Diff(calls, k.calls); diff != "" {
		k.t.Errorf("calls (-want +got):\n%s", diff)
	}
	k.calls = nil
}

// passes has packets of 100 bytes pass an interface, seen by our programs or not.
func (k *kernel) passes(index int, seen bool, receive, transmit uint64) {
	c := k.counters[index]
	c.ReceivePackets, c.ReceiveBytes = c.ReceivePackets+receive, c.ReceiveBytes+100*receive
	c.TransmitPackets, c.TransmitBytes = c.TransmitPackets+transmit, c.TransmitBytes+100*transmit
	k.counters[index] = c
	if seen {
		k.sees(index, receive, transmit)
	}
}

// sees has our programs see packets of 100 bytes on an interface.
func (k *kernel) sees(index int, receive, transmit uint64) {
	for slot, s := range k.slots {
		if s.Ifindex == index && s.NetNS == 0 {
			k.row(slot, receive, transmit)
		}
	}
}

// row counts packets of 100 bytes on a slot.
func (k *kernel) row(slot uint16, receive, transmit uint64) {
	row := k.rows[slot]
	for i, n := range [2]uint64{receive, transmit} {
		row[i].Interface.Packets += n
		row[i].Interface.Bytes += 100 * n
		row[i].Cells[0].Packets += n
		row[i].Cells[0].Bytes += 100 * n
	}
	k.rows[slot] = row
}

// check compares our numbers with the kernel's once.
func (k *kernel) check() {
	k.beginReadings()
	all, _ := (witness{k.Host}).counters(context.Background(), nil)
	k.selfCheck(all)
}

// total returns a container's packets, and how many of them were seeded.
func (k *kernel) total(id string) (packets, seeded [2]uint64) {
	k.t.Helper()
	c := k.usageOf(id)
	return [2]uint64{c.Receive.Interface.Packets, c.Transmit.Interface.Packets},
		[2]uint64{c.Receive.Seeded.Packets, c.Transmit.Seeded.Packets}
}

// mendedOf returns how many of a container's packets were mended.
func (k *kernel) mendedOf(id string) [2]uint64 {
	k.t.Helper()
	c := k.usageOf(id)
	return [2]uint64{c.Receive.Mended.Packets, c.Transmit.Mended.Packets}
}

func (k *kernel) usageOf(id string) usage.Container {
	k.t.Helper()
	for _, c := range k.Accounts.Snapshot().Containers {
		if c.ID == id {
			return c
		}
	}
	k.t.Fatalf("no container %s", id)
	return usage.Container{}
}

type fakeHost kernel

func (h *fakeHost) HostVeths() ([]watcher.HostVeth, error) { return slices.Clone(h.veths), nil }

func (h *fakeHost) Inspect(c watcher.Container) (watcher.Sandbox, error) {
	if found, ok := h.inside[c.ID]; ok {
		return found, nil
	}
	return watcher.Sandbox{}, watcher.ErrNoProcess
}

func (h *fakeHost) Hold(watcher.Container) (*watcher.Namespace, error) {
	return nil, watcher.ErrNoProcess
}

func (h *fakeHost) Stand(c watcher.Container) watcher.Standing {
	return watcher.Standing{NetNS: h.inside[c.ID].NetNS, Spread: h.inside[c.ID].Spread}
}

func (h *fakeHost) Processes(c watcher.Container) []int { return h.processes[c.ID] }

func (h *fakeHost) Unified(c watcher.Container) (string, bool) { return c.Cgroup, true }

func (h *fakeHost) Counters(ifindex int, asked func()) (watcher.LinkCounters, error) {
	if h.flow != nil {
		h.flow()
	}
	c, ok := h.counters[ifindex]
	if asked != nil {
		asked()
	}
	if !ok {
		return c, watcher.ErrGone
	}
	return c, nil
}

func (h *fakeHost) Glance(name string) (watcher.LinkCounters, error) {
	if h.glance == nil {
		return watcher.LinkCounters{}, watcher.ErrGone
	}
	return *h.glance, nil
}

func (h *fakeHost) AllCounters() (map[int]watcher.LinkReading, error) {
	all := map[int]watcher.LinkReading{}
	for index, c := range h.counters {
		all[index] = watcher.LinkReading{LinkCounters: c}
	}
	return all, nil
}

func (h *fakeHost) CountersIn(nsid, _ int) (watcher.LinkReading, error) {
	if h.there[nsid] {
		return watcher.LinkReading{}, nil
	}
	return watcher.LinkReading{}, watcher.ErrGone
}

func (h *fakeHost) RootQdiscs() (map[int]watcher.RootQdisc, error) { return nil, nil }

func (h *fakeHost) VisitNamespaces(map[uint64]bool, func(*watcher.Namespace) error) error { return nil }
func (h *fakeHost) NamespaceThere(nsid int) (bool, error)                                 { return h.there[nsid], nil }

type fakeHooks kernel

func (h *fakeHooks) did(format string, args ...any) error { return (*kernel)(h).did(format, args...) }

func (h *fakeHooks) Attach(ifindex int, slot uint16, making func() error) (bool, error) {
	if _, there := h.filters[ifindex]; !there && making != nil {
		if err := making(); err != nil {
			return false, err
		}
	}
	if err := h.did("attach clsact %d slot %d", ifindex, slot); err != nil {
		return false, err
	}
	_, before := h.filters[ifindex]
	h.filters[ifindex] = slot
	if h.slowly != nil {
		time.Sleep(glanceAfter)
		h.slowly()
	}
	if h.vanishes {
		delete(h.counters, ifindex)
	}
	return !before, nil
}

func (h *fakeHooks) Detach(ifindex int, removeQdisc bool) error {
	err := h.did("detach clsact %d qdisc %t", ifindex, removeQdisc)
	if err == nil {
		delete(h.filters, ifindex)
	}
	return err
}

func (h *fakeHooks) Current(ifindex int) (uint16, bool, error) {
	slot, ok := h.filters[ifindex]
	return slot, ok, nil
}

func (h *fakeHooks) Interfaces() ([]int, error)    { return slices.Sorted(maps.Keys(h.filters)), nil }
func (h *fakeHooks) TCXInterfaces() ([]int, error) { return slices.Sorted(maps.Keys(h.tcx)), nil }

func (h *fakeHooks) AttachTCX(ifindex int) error {
	err := h.did("attach tcx %d", ifindex)
	if err == nil {
		h.tcx[ifindex] = true
	}
	return err
}

func (h *fakeHooks) DetachTCX(ifindex int) error {
	err := h.did("detach tcx %d", ifindex)
	if err == nil {
		delete(h.tcx, ifindex)
	}
	return err
}

func (h *fakeHooks) Raise(ifindex int) error { return h.did("raise %d", ifindex) }

func (h *fakeHooks) TCX(ifindex int) (attached, first bool, err error) {
	_, there := h.counters[ifindex] // a pin may be left of one that is gone
	return h.tcx[ifindex] && there, h.tcx[ifindex] && there, nil
}

func (h *fakeHooks) OthersOnTCX(int) (bool, error)   { return false, nil }
func (h *fakeHooks) Inside(int) (clsactHooks, error) { return nil, tcctl.ErrGone }
func (h *fakeHooks) Close() error                    { return nil }

type fakeCgroups kernel

func (g *fakeCgroups) did(format string, args ...any) error { return (*kernel)(g).did(format, args...) }

// ID numbers cgroups by the length of their paths.
func (g *fakeCgroups) ID(dir string) (uint64, error) { return uint64(len(dir)), nil }

func (g *fakeCgroups) Attach(_ string, id uint64) error {
	err := g.did("attach cgroup %d", id)
	if err == nil {
		g.cgroups[id] = true
	}
	return err
}

func (g *fakeCgroups) Replace(id uint64) error          { return g.did("replace cgroup %d", id) }
func (g *fakeCgroups) Attached(id uint64) (bool, error) { return g.cgroups[id], nil }
func (g *fakeCgroups) IDs() ([]uint64, error)           { return slices.Sorted(maps.Keys(g.cgroups)), nil }

func (g *fakeCgroups) Below(dir string) ([]uint64, error) { return []uint64{uint64(len(dir))}, nil }

func (g *fakeCgroups) Exclusive(string) (*cgroupctl.ExclusiveError, error) { return nil, nil }

func (g *fakeCgroups) Detach(id uint64) error {
	err := g.did("detach cgroup %d", id)
	delete(g.cgroups, id)
	return err
}

// fakeSlots is the datapath.
type fakeSlots kernel

func (d *fakeSlots) did(format string, args ...any) error { return (*kernel)(d).did(format, args...) }

func (d *fakeSlots) Take(t bpf.Target) (bpf.Slot, error) {
	for index := uint16(1); ; index++ {
		if _, taken := d.slots[index]; !taken {
			s := bpf.Slot{Index: index, Generation: uint64(time.Now().UnixNano()), Target: t}
			d.slots[index], d.rows[index] = s, [2]bpf.Counters{}
			return s, nil
		}
	}
}

func (d *fakeSlots) Keep(s bpf.Slot) error {
	if before := d.slots[s.Index]; before.Handover != s.Handover {
		if err := d.did("handover %d %t", s.Ifindex, s.Handover); err != nil {
			return err
		}
	}
	if before := d.slots[s.Index]; before.OwnQdisc != s.OwnQdisc {
		if err := d.did("own qdisc %d %t", s.Ifindex, s.OwnQdisc); err != nil {
			return err
		}
	}
	d.slots[s.Index] = s
	return nil
}

func (d *fakeSlots) Bind(s bpf.Slot) error {
	err := d.did("bind %d slot %d", s.Ifindex, s.Index)
	if err == nil {
		d.bound[s.Ifindex] = s.Index
	}
	return err
}

func (d *fakeSlots) BindCgroup(s bpf.Slot) error { return d.did("bind cgroup %d", s.Cgroup) }
func (d *fakeSlots) CgroupBound(s bpf.Slot) bool {
	if s.Sockets {
		return d.sockets[s.Cgroup]
	}
	return d.cgroups[s.Cgroup]
}

func (d *fakeSlots) Quiesce() error { return d.did("quiesce") }

func (d *fakeSlots) Release(s bpf.Slot) error {
	had := d.released[s.Ifindex]
	for i, c := range d.rows[s.Index] {
		had[i] += c.Interface.Packets
	}
	d.released[s.Ifindex] = had
	delete(d.slots, s.Index)
	delete(d.tcp, s.Index)
	return nil
}

func (d *fakeSlots) Slots() []bpf.Slot { return slices.Collect(maps.Values(d.slots)) }

func (d *fakeSlots) Read(s bpf.Slot) (rx, tx bpf.Counters, err error) {
	if now, ok := d.slots[s.Index]; !ok || now.Generation != s.Generation {
		return rx, tx, bpf.ErrReleased
	}
	return d.rows[s.Index][0], d.rows[s.Index][1], nil
}

func (d *fakeSlots) Old() []bpf.Old                    { return nil }
func (d *fakeSlots) Inherit(bpf.Old) (bpf.Slot, error) { return bpf.Slot{}, errors.ErrUnsupported }
func (d *fakeSlots) Settle() error                     { return nil }
func (d *fakeSlots) Uncounted() map[string]uint64      { return nil }
func (d *fakeSlots) Unclassified() map[string]uint64   { return nil }

func (d *fakeSlots) ReadTCP(s bpf.Slot) (bpf.TCPCounters, error) {
	if now, ok := d.slots[s.Index]; !ok || now.Generation != s.Generation {
		return bpf.TCPCounters{}, bpf.ErrReleased
	}
	return d.tcp[s.Index], nil
}

func (d *fakeSlots) ReadSockets(s bpf.Slot) (bpf.SocketCounters, error) {
	if now, ok := d.slots[s.Index]; !ok || now.Generation != s.Generation {
		return bpf.SocketCounters{}, bpf.ErrReleased
	}
	return bpf.SocketCounters{}, nil
}

func (d *fakeSlots) CountsSockets() bool { return false }

func (d *fakeSlots) ReadRequests(s bpf.Slot) (receive, transmit bpf.RequestCounters, err error) {
	if now, ok := d.slots[s.Index]; !ok || now.Generation != s.Generation {
		return receive, transmit, bpf.ErrReleased
	}
	return receive, transmit, nil
}

func (d *fakeSlots) RequestsCounted() bpf.RequestOptions { return bpf.RequestOptions{} }

func (d *fakeSlots) NoteTCP(s bpf.Slot, n bpf.TCPNote) error {
	counted := d.tcp[s.Index]
	counted.TCPNote = n
	if s.Cgroup == 0 {
		d.tcp[s.Index] = n.Counters()
		return d.did("note tcp net:[%d]", s.NetNS)
	}
	d.tcp[s.Index] = counted
	return d.did("note tcp %d", s.Cgroup)
}

func (h *fakeHost) NetworkNamespaces(pids []int) map[uint64]int {
	found := map[uint64]int{}
	for _, pid := range pids {
		found[uint64(pid)] = pid
	}
	return found
}

func (h *fakeHost) Established(pid int) (map[uint64]uint64, error) {
	return h.established, h.fails[fmt.Sprintf("established %d", pid)]
}

func (h *fakeHost) ListenDrops(int) (uint64, error) { return h.listenDrops, nil }

func (h *fakeHost) TCPIn(inode uint64, pid int) (watcher.NamespaceTCP, time.Time, error) {
	return h.namespace, h.since, h.fails[fmt.Sprintf("tcp in %d by %d", inode, pid)]
}
