// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
)

// slots stands in for the kernel: tests say what it has counted.
type slots struct {
	taken   map[uint16]bpf.Slot
	old     []bpf.Old
	counts  map[uint16]uint64 // packets of 100 bytes, TCP over IPv4, received
	tcp     map[uint16]bpf.TCPCounters
	sockets map[uint16]bpf.SocketCounters
	read    bpf.RequestOptions // at layer 7
	said    map[uint16]bpf.RequestCounters
	next    uint16
}

func newSlots() *slots {
	return &slots{taken: map[uint16]bpf.Slot{}, counts: map[uint16]uint64{}, tcp: map[uint16]bpf.TCPCounters{}}
}

func (s *slots) Take(t bpf.Target) (bpf.Slot, error) {
	s.next++
	slot := bpf.Slot{Index: s.next, Generation: uint64(s.next), Target: t}
	s.taken[slot.Index] = slot
	return slot, nil
}

func (s *slots) Keep(slot bpf.Slot) error {
	if _, ok := s.taken[slot.Index]; !ok {
		return bpf.ErrReleased
	}
	s.taken[slot.Index] = slot
	return nil
}

// upgrade leaves all slots in use to another layout.
func (s *slots) upgrade() {
	for _, slot := range s.taken {
		s.old = append(s.old, bpf.Old{Slot: slot, Layout: "v0"})
	}
	clear(s.taken)
}

func (s *slots) Inherit(old bpf.Old) (bpf.Slot, error) {
	s.taken[old.Index] = old.Slot
	return old.Slot, nil
}

func (s *slots) Settle() error {
	s.old = nil
	return nil
}

func (s *slots) Old() []bpf.Old      { return s.old }
func (s *slots) Bind(bpf.Slot) error { return nil }

func (s *slots) BindCgroup(bpf.Slot) error { return nil }
func (s *slots) CgroupBound(bpf.Slot) bool { return true }
func (s *slots) Quiesce() error            { return nil }

func (s *slots) Release(slot bpf.Slot) error {
	delete(s.taken, slot.Index)
	return nil
}

func (s *slots) Slots() []bpf.Slot {
	var all []bpf.Slot
	for _, slot := range s.taken {
		all = append(all, slot)
	}
	return all
}

func (s *slots) Read(slot bpf.Slot) (rx, tx bpf.Counters, err error) {
	if _, ok := s.taken[slot.Index]; !ok {
		return rx, tx, bpf.ErrReleased
	}
	n := s.counts[slot.Index]
	rx.Interface.Packets, rx.Interface.Bytes = n, 100*n
	rx.Cells[0].Packets, rx.Cells[0].Bytes = n, 100*n
	return rx, tx, nil
}

func (s *slots) ReadTCP(slot bpf.Slot) (bpf.TCPCounters, error) {
	if _, ok := s.taken[slot.Index]; !ok {
		return bpf.TCPCounters{}, bpf.ErrReleased
	}
	return s.tcp[slot.Index], nil
}

func (s *slots) ReadSockets(slot bpf.Slot) (bpf.SocketCounters, error) {
	if _, ok := s.taken[slot.Index]; !ok {
		return bpf.SocketCounters{}, bpf.ErrReleased
	}
	return s.sockets[slot.Index], nil
}

func (s *slots) CountsSockets() bool { return s.sockets != nil }

// ReadRequests returns twice of what was received as transmitted.
func (s *slots) ReadRequests(slot bpf.Slot) (receive, transmit bpf.RequestCounters, err error) {
	if _, ok := s.taken[slot.Index]; !ok {
		return receive, transmit, bpf.ErrReleased
	}
	numbers := s.said[slot.Index].Numbers()
	for i := range numbers {
		numbers[i] *= 2
	}
	return s.said[slot.Index], bpf.RequestCountersOf(numbers), nil
}

func (s *slots) RequestsCounted() bpf.RequestOptions { return s.read }

func (s *slots) NoteTCP(slot bpf.Slot, n bpf.TCPNote) error {
	if slot.Cgroup == 0 {
		s.tcp[slot.Index] = n.Counters()
		return nil
	}
	counted := s.tcp[slot.Index]
	counted.TCPNote = n
	s.tcp[slot.Index] = counted
	return nil
}

func (s *slots) Uncounted() map[string]uint64    { return map[string]uint64{"no_row": 0} }
func (s *slots) Unclassified() map[string]uint64 { return map[string]uint64{"truncated": 0} }

// clock is a time source that stands still.
type clock struct{ now time.Time }

func newAccounts(t *testing.T) (*Accounts, *slots, *clock) {
	t.Helper()
	s, c := newSlots(), &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	a := New(Options{
		Datapath:  s,
		Retention: func() time.Duration { return time.Hour },
		Now:       func() time.Time { return c.now },
	})
	return a, s, c
}

// open begins to count an interface and returns its slot.
func open(t *testing.T, a *Accounts, ifindex int, host string) uint16 {
	t.Helper()
	slot, _, err := a.Open(OnHost(ifindex), host, "clsact")
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

func assign(t *testing.T, a *Accounts, ifindex int, id, name string) {
	t.Helper()
	if err := a.Assign(OnHost(ifindex), id, name); err != nil {
		t.Fatal(err)
	}
}

func closeInterface(t *testing.T, a *Accounts, ifindex int) {
	t.Helper()
	if err := a.Close(OnHost(ifindex)); err != nil {
		t.Fatal(err)
	}
}

func received(t *testing.T, a *Accounts, id string) uint64 {
	t.Helper()
	for _, c := range a.Snapshot().Containers {
		if c.ID == id {
			return c.Receive.Wire().Packets
		}
	}
	t.Fatalf("container %s is not in the snapshot", id)
	return 0
}

// A container's numbers go on over a restart, in which it gets another veth, and
// whichever of the cgroup and the veth goes first.
func TestRestart(t *testing.T) {
	for name, stop := range map[string]func(*Accounts) error{
		"cgroup first": func(a *Accounts) error { a.Stop("web"); return a.Close(OnHost(7)) },
		"veth first":   func(a *Accounts) error { err := a.Close(OnHost(7)); a.Stop("web"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			a, kernel, _ := newAccounts(t)
			a.Start(Container{ID: "web"})
			kernel.counts[open(t, a, 7, "veth7")] = 10
			assign(t, a, 7, "web", "eth0")
			if err := stop(a); err != nil {
				t.Fatal(err)
			}
			if got := received(t, a, "web"); got != 10 {
				t.Errorf("stopped: %d packets, want 10", got)
			}

			a.Start(Container{ID: "web"})
			kernel.counts[open(t, a, 8, "veth8")] = 5
			assign(t, a, 8, "web", "eth0")
			if got := received(t, a, "web"); got != 15 {
				t.Errorf("restarted: %d packets, want 15", got)
			}
			c := a.Snapshot().Containers[0]
			if len(c.Interfaces) != 1 || c.Interfaces[0].HostInterface != "veth8" {
				t.Errorf("interfaces %+v, want eth0 on veth8 alone", c.Interfaces)
			}
		})
	}
}

// What an interface counted before its owner was known is the owner's.
func TestLateOwner(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	kernel.counts[open(t, a, 7, "veth7")] = 10
	if u := a.Snapshot().Unowned; len(u) != 1 || u[0].Receive.Wire().Packets != 10 {
		t.Fatalf("unowned %+v, want veth7 with 10 packets", u)
	}
	a.Start(Container{ID: "web"})
	assign(t, a, 7, "web", "eth0")
	if got := received(t, a, "web"); got != 10 {
		t.Errorf("%d packets, want 10", got)
	}
	if u := a.Snapshot().Unowned; len(u) != 0 {
		t.Errorf("still unowned: %+v", u)
	}
}

// Two containers that claim one interface must not both have its traffic.
func TestFirstOwnerStays(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	a.Start(Container{ID: "web"})
	a.Start(Container{ID: "sidecar"})
	kernel.counts[open(t, a, 7, "veth7")] = 10
	assign(t, a, 7, "web", "eth0")
	assign(t, a, 7, "sidecar", "eth0")
	if web, sidecar := received(t, a, "web"), received(t, a, "sidecar"); web != 10 || sidecar != 0 {
		t.Errorf("web %d, sidecar %d packets, want 10 and 0", web, sidecar)
	}
}

func TestExpire(t *testing.T) {
	a, _, clock := newAccounts(t)
	a.Start(Container{ID: "done"})
	a.Start(Container{ID: "draining"})
	open(t, a, 7, "veth7")
	assign(t, a, 7, "draining", "eth0")
	a.Start(Container{ID: "running"})
	a.Stop("done")
	a.Stop("draining")

	clock.now = clock.now.Add(time.Hour)
	if gone := a.Expire(); len(gone) != 0 {
		t.Errorf("expired after exactly the retention: %v", gone)
	}
	clock.now = clock.now.Add(time.Second)
	if diff := cmp.Diff([]string{"done"}, a.Expire()); diff != "" {
		t.Errorf("expired (-want +got):\n%s", diff)
	}
	closeInterface(t, a, 7)
	if diff := cmp.Diff([]string{"draining"}, a.Expire()); diff != "" {
		t.Errorf("expired after the interface went (-want +got):\n%s", diff)
	}
	if left := a.Snapshot().Containers; len(left) != 1 || left[0].ID != "running" {
		t.Errorf("left %+v, want running alone", left)
	}
}

// A container whose end the ledger does not have yet stays, however long a disk takes.
func TestExpireWaitsForLedger(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	for _, id := range []string{"never written", "written while it ran"} {
		a.Start(Container{ID: id})
		a.Recall(id, nil)
	}
	open(t, a, 7, "veth7")
	assign(t, a, 7, "never written", "eth0")
	a.Written(slices.DeleteFunc(a.Pending(true), func(r Record) bool { return r.ID == "never written" }))
	closeInterface(t, a, 7)
	for id := range a.Running() {
		a.Stop(id)
	}
	clock.now = clock.now.Add(time.Hour + time.Second)
	if gone := a.Expire(); len(gone) != 0 {
		t.Errorf("expired before the ledger had their end: %q", gone)
	}
	ended := a.Pending(false)
	if len(ended) != 2 || ended[0].State != Stopped || ended[1].State != Stopped {
		t.Fatalf("to be written: %+v", ended)
	}
	a.Written(ended)
	if gone := a.Expire(); len(gone) != 2 {
		t.Errorf("expired after that: %q", gone)
	}
}

// The slots of an earlier process are adopted or retired, each once.
func TestLeftovers(t *testing.T) {
	before, kernel, _ := newAccounts(t)
	kept, lost := open(t, before, 7, "veth7"), open(t, before, 8, "veth8")
	if err := before.OwnQdisc(OnHost(8)); err != nil {
		t.Fatal(err)
	}
	kernel.counts[kept] = 10

	a := New(Options{Datapath: kernel, Retention: func() time.Duration { return time.Hour }})
	left := map[uint16]Leftover{}
	for _, l := range a.Leftovers() {
		left[l.Slot] = l
	}
	if len(left) != 2 {
		t.Fatalf("leftovers %+v, want two", left)
	}
	a.Adopt(left[kept], "veth7", "clsact")
	if !left[lost].OwnQdisc {
		t.Error("the qdisc of the one that is lost is ours")
	}
	if err := a.Retire(left[lost]); err != nil {
		t.Error(err)
	}
	if left := a.Leftovers(); len(left) != 0 {
		t.Errorf("still left: %+v", left)
	}
	if slot := open(t, a, 7, "veth7"); slot != kept {
		t.Errorf("slot %d after adopting %d", slot, kept)
	}
	a.Start(Container{ID: "web"})
	assign(t, a, 7, "web", "eth0")
	if got := received(t, a, "web"); got != 10 {
		t.Errorf("%d packets, want the 10 from before", got)
	}
}

// Every cell of a row ends up in one family and one protocol.
func TestCounts(t *testing.T) {
	var row bpf.Counters
	var want uint64
	for i := range row.Cells {
		row.Cells[i].Bytes = 1 << (4 * i)
		want += row.Cells[i].Bytes
	}
	row.TCPSYN, row.TCPSYNACK, row.TCPRST, row.TCPFIN = 1, 2, 3, 4
	row.Interface.Bytes, row.Interface.Packets = 5, 6
	c := counts(row)

	if got := c.Wire().Bytes; got != want {
		t.Errorf("wire bytes %#x, want %#x", got, want)
	}
	for f, want := range map[Family]uint64{FamilyIPv4: 0x1111, FamilyIPv6: 0x11110000, FamilyOther: 0x100000000} {
		if got := c.Family(f).Bytes; got != want {
			t.Errorf("%s: %#x, want %#x", f, got, want)
		}
	}
	for p, want := range map[Protocol]uint64{
		ProtocolTCP: 0x10001, ProtocolUDP: 0x100010, ProtocolICMP: 0x1000100, ProtocolOther: 0x110001000,
	} {
		if got := c.Protocol(p).Bytes; got != want {
			t.Errorf("%s: %#x, want %#x", p, got, want)
		}
	}
	if c.SYN != 1 || c.SYNACK != 2 || c.RST != 3 || c.FIN != 4 || c.Interface != (Volume{Bytes: 5, Packets: 6}) {
		t.Errorf("flags or interface numbers are mixed up: %+v", c)
	}
}

// Names are asked for at each snapshot, and the id stands in for them.
func TestIdentify(t *testing.T) {
	a, _, _ := newAccounts(t)
	known := map[string]Identity{}
	a.Identify = func(id string) (Identity, bool) { i, ok := known[id]; return i, ok }
	a.Start(Container{ID: "abc", Runtime: "containerd", Pod: "uid-1"})
	if c := a.Snapshot().Containers[0]; c.Name != "abc" || c.Runtime != "containerd" || c.Pod != "uid-1" {
		t.Errorf("without a name: %+v", c)
	}
	known["abc"] = Identity{Name: "web", Pod: "web-0", NetworkMode: "bridge"}
	if c := a.Snapshot().Containers[0]; c.Name != "web" || c.Pod != "web-0" || c.Runtime != "containerd" || c.NetworkMode != "bridge" {
		t.Errorf("with a name: %+v", c)
	}
}
