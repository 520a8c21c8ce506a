// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
)

// disk stands in for a ledger: records by id, each as it would be read back.
type disk map[string][]byte

func (d disk) write(t *testing.T, records []Record) {
	t.Helper()
	for _, r := range records {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		d[r.ID] = data
	}
}

func (d disk) read(t *testing.T) []Record {
	t.Helper()
	var records []Record
	for _, id := range slices.Sorted(maps.Keys(d)) {
		var r Record
		if err := json.Unmarshal(d[id], &r); err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}

// machine is a host with a kernel, a disk, and a nettally that ends at any moment.
type machine struct {
	t      *testing.T
	random *rand.Rand
	kernel *slots
	disk   disk
	clock  *clock
	boot   int
	a      *Accounts

	veths map[int]veth      // host interfaces with filters
	next  int               // ifindex
	want  map[string]uint64 // packets by container

	seeded, mended map[string]uint64 // of these

	drops map[int]uint64    // that the kernel has had at an interface: half as many behind our hook
	said  map[int]uint64    // of these, to the accounts
	lost  map[string]uint64 // packets by container

	user   string // whose containers they are
	limits func() Limits
}

// veth is whose an interface is, and the slot that its filters count on.
type veth struct {
	owner string
	slot  uint16
}

func (m *machine) start() {
	m.a = New(Options{
		Datapath:  m.kernel,
		Retention: func() time.Duration { return time.Minute },
		Boot:      fmt.Sprint("boot", m.boot),
		Kept:      true,
		Now:       func() time.Time { return m.clock.now },
		Limits:    m.limits,
	})
	m.a.Restore(m.disk.read(m.t))
	for _, l := range m.a.Leftovers() {
		if _, on := m.veths[l.Ifindex]; on && !l.Older {
			m.a.Adopt(l, "", "clsact")
			continue
		}
		if err := m.a.Retire(l); err != nil {
			m.t.Fatal(err)
		}
	}
	for v := range maps.Values(m.veths) {
		m.a.Start(Container{ID: v.owner})
	}
	m.recall()
}

func (m *machine) recall() {
	for _, id := range m.a.Unrecalled() {
		var kept *Record
		for _, r := range m.disk.read(m.t) {
			if r.ID == id {
				kept = &r
			}
		}
		m.a.Recall(id, kept)
	}
}

// step does one thing that happens to a host.
func (m *machine) step() {
	m.clock.now = m.clock.now.Add(time.Duration(m.random.IntN(1500)) * time.Millisecond)
	id := InScope(m.user, fmt.Sprint("c", m.random.IntN(3)))
	switch m.random.IntN(16) {
	case 0, 1:
		m.next++
		m.veths[m.next] = veth{id, open(m.t, m.a, m.next, fmt.Sprint("veth", m.next))}
		m.a.Start(Container{ID: id})
		m.recall()
		assign(m.t, m.a, m.next, id, "eth0")
	case 2, 3, 4, 5:
		m.count()
	case 6, 7:
		for _, ifindex := range slices.Sorted(maps.Keys(m.veths)) {
			delete(m.veths, ifindex)
			closeInterface(m.t, m.a, ifindex)
			break
		}
	case 8:
		m.a.Stop(id)
		m.a.Expire()
	case 9:
		m.flush(m.random.IntN(3))
	case 10:
		m.start() // after a kill
	case 11:
		if m.random.IntN(4) == 0 {
			m.reboot()
		}
	case 13:
		m.miss()
	case 14:
		for _, ifindex := range slices.Sorted(maps.Keys(m.veths)) {
			m.drops[ifindex] += 2 * uint64(m.random.IntN(100))
		}
	case 15:
		m.lose()
	case 12:
		for _, ifindex := range slices.Sorted(maps.Keys(m.veths)) {
			m.a.Start(Container{ID: id})
			m.recall()
			m.veths[ifindex] = veth{id, succeed(m.t, m.a, OnHost(ifindex), id, "eth0")}
			break
		}
	}
}

// succeed gives an interface another owner, and returns its slot.
func succeed(t *testing.T, a *Accounts, target Target, id, name string) uint16 {
	t.Helper()
	slot, err := a.Succeed(target, func(uint16) error { return nil })
	if err == nil {
		err = a.Assign(target, id, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// count lets packets pass. Some pass while nettally is down: the kernel counts them.
func (m *machine) count() {
	for _, s := range m.kernel.Slots() {
		if v, on := m.veths[s.Ifindex]; on && v.slot == s.Index {
			n := uint64(m.random.IntN(100))
			m.kernel.counts[s.Index] += n
			m.want[v.owner] += n
		}
	}
}

// miss lets packets pass that our programs don't see, before they came or since.
func (m *machine) miss() {
	for ifindex, v := range m.veths {
		n := uint64(m.random.IntN(100))
		add, to := m.a.Seed, m.seeded
		if m.random.IntN(2) == 0 {
			add, to = m.a.Mend, m.mended
		}
		if err := add(OnHost(ifindex), Volume{Bytes: 100 * n, Packets: n}, Volume{}); err != nil {
			m.t.Fatal(err)
		}
		to[v.owner] += n
		m.want[v.owner] += n
		break
	}
}

// lose tells of what the kernel has dropped by now.
func (m *machine) lose() {
	for ifindex, v := range m.veths {
		had := m.drops[ifindex]
		err := m.a.Lose(OnHost(ifindex), Loss{Dropped: had}, Loss{Dropped: had / 2})
		err = errors.Join(err, m.a.Undeliver(OnHost(ifindex), HostLoss{Dropped: had / 2}, true))
		if err != nil {
			m.t.Fatal(err)
		}
		m.lost[v.owner] += had - m.said[ifindex]
		m.said[ifindex] = had
	}
}

// flush writes to the disk, and is killed before or after that, or not at all.
func (m *machine) flush(killed int) {
	pending := m.a.Pending(false)
	if killed == 1 {
		m.start()
		return
	}
	m.disk.write(m.t, pending)
	if killed == 2 {
		m.start()
		return
	}
	m.a.Written(pending)
}

// reboot loses what the disk does not have: a flush comes first, so nothing.
func (m *machine) reboot() {
	pending := m.a.Pending(false)
	m.disk.write(m.t, pending)
	m.kernel = newSlots()
	m.veths = map[int]veth{}
	m.next = 0
	clear(m.drops)
	clear(m.said)
	m.boot++
	m.start()
}

// check compares what is shown with what passed, and with what was shown before.
func (m *machine) check(step int) {
	m.t.Helper()
	for _, c := range m.a.Snapshot().Containers { // the others' totals are on the disk, and come back with them
		rx := c.Receive
		got := []uint64{rx.Wire().Packets, rx.Interface.Packets, rx.Seeded.Packets, rx.Mended.Packets}
		want := []uint64{m.want[c.ID], m.want[c.ID], m.seeded[c.ID], m.mended[c.ID]}
		if !slices.Equal(got, want) {
			m.t.Fatalf("step %d: %s has %d packets, by the interface, seeded and mended; want %d", step, c.ID, got, want)
		}
		n, lost := m.lost[c.ID], c.Lost
		lost.Known, lost.Followed = false, false
		if want := (Lost{Receive: Loss{Dropped: n}, Transmit: Loss{Dropped: n / 2}, Undelivered: n / 2}); lost != want {
			m.t.Fatalf("step %d: %s has lost %+v, want %+v", step, c.ID, lost, want)
		}
	}
}

func newMachine(t *testing.T, seed uint64) *machine {
	return &machine{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), kernel: newSlots(), disk: disk{},
		clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)},
		veths: map[int]veth{}, want: map[string]uint64{}, seeded: map[string]uint64{}, mended: map[string]uint64{},
		drops: map[int]uint64{}, said: map[int]uint64{}, lost: map[string]uint64{},
	}
}

// However a host and nettally end and come back, and wherever in a flush, each
// container has exactly the packets that passed.
func TestNothingIsLost(t *testing.T) {
	for seed := range uint64(need.Tries(200)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t, seed)
			m.start()
			for step := range 300 {
				m.step()
				m.check(step)
			}
			if len(m.want) != 3 {
				t.Fatalf("only %d containers had packets", len(m.want))
			}
		})
	}
}

// kept returns accounts with a ledger, which has been asked about all containers.
func kept(t *testing.T, kernel *slots, c *clock) *Accounts {
	t.Helper()
	return New(Options{
		Datapath:  kernel,
		Retention: func() time.Duration { return time.Hour },
		Boot:      "boot",
		Kept:      true,
		Now:       func() time.Time { return c.now },
	})
}

// The slot of a veth that is gone stays taken until its counts are on disk.
func TestSlotWaitsForLedger(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	kernel.counts[open(t, a, 7, "veth7")] = 10
	assign(t, a, 7, "web", "eth0")
	closeInterface(t, a, 7)
	if len(kernel.taken) != 1 {
		t.Fatalf("%d slots taken after the veth went, want 1", len(kernel.taken))
	}
	a.Written(a.Pending(false))
	if len(kernel.taken) != 1 {
		t.Fatal("released at once: a packet may have been on its way")
	}
	clock.now = clock.now.Add(settleAfter)
	a.Written(a.Pending(false))
	if len(kernel.taken) != 0 {
		t.Errorf("%d slots taken after the counts were written", len(kernel.taken))
	}
	if got := received(t, a, "web"); got != 10 {
		t.Errorf("%d packets, want 10", got)
	}
	if again := a.Pending(false); len(again) != 0 {
		t.Errorf("still pending: %+v", again)
	}
}

// A container that has stopped, and is kept for a day, does not keep what was written or
// recalled along with it.
func TestRecordsAreLetGo(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Start(Container{ID: "db"})
	recalled := []Record{{Container: Container{ID: "web"}}, {Container: Container{ID: "db"}}}
	list := weak.Make(&recalled[0])
	for i := range recalled {
		a.Recall(recalled[i].ID, &recalled[i])
	}
	runtime.GC()
	if list.Value() != nil {
		t.Error("what was recalled is kept")
	}
	records := a.Pending(true)
	list = weak.Make(&records[0])
	a.Written(records)
	runtime.GC()
	if list.Value() != nil {
		t.Error("what was written is kept")
	}
	runtime.KeepAlive(a)
}

// What is on disk of a slot that an older layout has is in the slot, too.
func TestUpgrade(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	before := kept(t, kernel, clock)
	before.Start(Container{ID: "web"})
	before.Recall("web", nil)
	slot := open(t, before, 7, "veth7")
	kernel.counts[slot] = 10
	assign(t, before, 7, "web", "eth0")
	onDisk := disk{}
	onDisk.write(t, before.Pending(true))

	kernel.upgrade()
	kernel.counts[slot] = 15
	a := kept(t, kernel, clock)
	a.Restore(onDisk.read(t))
	if _, err := a.Inherit(); err != nil {
		t.Fatal(err)
	}
	if err := a.Settle(); err != nil {
		t.Fatal(err)
	}
	for _, l := range a.Leftovers() {
		a.Adopt(l, "veth7", "clsact")
	}
	if got := received(t, a, "web"); got != 15 {
		t.Errorf("%d packets, want 15", got)
	}
}

// A ledger that never comes round to it can't make the slots run out.
func TestSlotsDoNotRunOut(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	for i := range 3 * maxClosed {
		kernel.counts[open(t, a, i, "veth")] = 1
		assign(t, a, i, "web", "eth0")
		closeInterface(t, a, i)
	}
	if len(kernel.taken) > maxClosed+1 {
		t.Errorf("%d slots taken", len(kernel.taken))
	}
	if got := received(t, a, "web"); got != 3*maxClosed {
		t.Errorf("%d packets, want %d", got, 3*maxClosed)
	}
}

// A container is not shown with less than it had before, unless the ledger hangs.
func TestRecall(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	if shown := a.Snapshot().Containers; len(shown) != 0 {
		t.Errorf("shown before the ledger was asked: %+v", shown)
	}
	if pending := a.Pending(true); len(pending) != 0 {
		t.Errorf("to be written before the ledger was asked: %+v", pending)
	}
	<-a.Recalls()
	if diff := cmp.Diff([]string{"web"}, a.Unrecalled()); diff != "" {
		t.Errorf("to be asked for (-want +got):\n%s", diff)
	}
	clock.now = clock.now.Add(recallPatience + 1)
	if shown := a.Snapshot().Containers; len(shown) != 1 {
		t.Error("not shown though the ledger hangs")
	}
	before := Tally{Name: "eth0"}
	before.Final.Receive.Cells[0][0].Packets = 10
	a.Recall("web", &Record{Container: Container{ID: "web", Name: "shop"}, Tallies: []Tally{before}})
	if got := received(t, a, "web"); got != 10 {
		t.Errorf("%d packets, want 10", got)
	}
	if c := a.Snapshot().Containers[0]; c.Name != "shop" || c.State != Running {
		t.Errorf("recalled as %s, %s", c.Name, c.State)
	}
}

// What the kernel counted before us is in the totals and no more than once, though we
// come to the same veth again.
func TestSeed(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	kernel.counts[open(t, a, 7, "veth7")] = 5
	if err := a.Seed(OnHost(7), Volume{Bytes: 1000, Packets: 10}, Volume{}); err != nil {
		t.Fatal(err)
	}
	assign(t, a, 7, "web", "eth0")
	if got := received(t, a, "web"); got != 15 {
		t.Errorf("seeded: %d packets, want 15", got)
	}
	closeInterface(t, a, 7)

	// The veth's own counter has 15 and 3 more by now.
	kernel.counts[open(t, a, 7, "veth7")] = 2
	if err := a.Seed(OnHost(7), Volume{Bytes: 1800, Packets: 18}, Volume{}); err != nil {
		t.Fatal(err)
	}
	assign(t, a, 7, "web", "eth0")
	if got := received(t, a, "web"); got != 20 {
		t.Errorf("seeded again: %d packets, want 15, 3 and 2", got)
	}
	c := a.Snapshot().Containers[0].Receive
	if diff := cmp.Diff(Volume{Bytes: 1300, Packets: 13}, c.Seeded); diff != "" {
		t.Errorf("seeded (-want +got):\n%s", diff)
	}
	if c.Mended != (Volume{}) {
		t.Errorf("mended %+v, though nobody took our programs off", c.Mended)
	}
}

// What passed while our programs saw nothing is in the totals, apart from what was seeded, and
// belongs to a time.
func TestMend(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	a := kept(t, kernel, clock)
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	kernel.counts[open(t, a, 7, "veth7")] = 5
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.Seed(OnHost(7), Volume{Bytes: 1000, Packets: 10}, Volume{}))
	must(a.Mend(OnHost(7), Volume{Bytes: 300, Packets: 3}, Volume{Bytes: 80, Packets: 2}))
	assign(t, a, 7, "web", "eth0")
	must(a.Mend(OnHost(7), Volume{Bytes: 100, Packets: 1}, Volume{}))
	if rx, tx := a.Beside(OnHost(7)); rx != (Volume{1400, 14}) || tx != (Volume{80, 2}) {
		t.Errorf("beside what is counted there are %+v and %+v", rx, tx)
	}
	want := func() {
		t.Helper()
		c := a.Snapshot().Containers[0]
		if rx := c.Receive; rx.Mended != (Volume{400, 4}) || rx.Seeded != (Volume{1000, 10}) || rx.Interface != (Volume{1900, 19}) ||
			rx.Wire() != (Volume{1900, 19}) || rx.Timed() != (Volume{900, 9}) || rx.Counted() != (Volume{500, 5}) {
			t.Errorf("received %+v", rx)
		}
		if tx := c.Transmit; tx.Mended != (Volume{80, 2}) || tx.Seeded != (Volume{}) || tx.Wire() != tx.Mended || tx.Interface != tx.Mended {
			t.Errorf("transmitted %+v", tx)
		}
	}
	want()
	onDisk := disk{}
	onDisk.write(t, a.Pending(true))
	a = kept(t, kernel, clock)
	a.Restore(onDisk.read(t))
	for _, l := range a.Leftovers() {
		a.Adopt(l, "veth7", "clsact")
	}
	want()
	closeInterface(t, a, 7)
	want()
	clock.now = clock.now.Add(settleAfter)
	onDisk.write(t, a.Pending(true))
	a.Written(a.Pending(true))
	want()
	a = kept(t, newSlots(), clock) // after a restart of the host
	a.Restore(onDisk.read(t))
	want()
}

// Whose programs somebody took off while nobody was there to notice has what passed since
// mended, wherever a process ends meanwhile; what passed before we came at all stays seeded.
func TestTorn(t *testing.T) {
	target := Target{Ifindex: 2, NetNS: 4026532000}
	for _, torn := range []bool{true, false} {
		for _, written := range []bool{true, false} {
			t.Run(fmt.Sprintf("torn %t, written %t", torn, written), func(t *testing.T) {
				_, kernel, clock := newAccounts(t)
				onDisk := disk{}
				a := kept(t, kernel, clock)
				a.Start(Container{ID: "web"})
				a.Recall("web", nil)
				begin := func(counted, seeded uint64) {
					t.Helper()
					slot, _, err := a.Open(target, "", "clsact")
					kernel.counts[slot] = counted
					err = errors.Join(err, a.Seed(target, Volume{100 * seeded, seeded}, Volume{}), a.Assign(target, "web", "eth0"))
					if err != nil {
						t.Fatal(err)
					}
				}
				restart := func() {
					t.Helper()
					onDisk.write(t, a.Pending(true))
					a = kept(t, kernel, clock)
					a.Restore(onDisk.read(t))
					for _, l := range a.Leftovers() {
						l.Torn = torn
						if err := a.Retire(l); err != nil {
							t.Fatal(err)
						}
					}
				}
				begin(5, 10)
				restart()
				if written {
					clock.now = clock.now.Add(settleAfter)
					pending := a.Pending(true)
					onDisk.write(t, pending)
					a.Written(pending)
				}
				restart()
				begin(0, 22) // seven more than were told
				c := a.Snapshot().Containers[0].Receive
				want := map[bool][2]uint64{true: {10, 7}, false: {17, 0}}[torn]
				if got := [2]uint64{c.Seeded.Packets, c.Mended.Packets}; got != want || c.Wire().Packets != 22 {
					t.Errorf("seeded and mended %v, want %v; in all %d, want 22", got, want, c.Wire().Packets)
				}
			})
		}
	}
}

// What was counted on an interface for the container that had it first is not seeded to
// the one that has it now, though we come to it again, and in another process.
func TestSeedForSuccessor(t *testing.T) {
	_, slots, clock := newAccounts(t)
	onDisk := disk{}
	a := kept(t, slots, clock)
	for _, id := range []string{"first", "second"} {
		a.Start(Container{ID: id})
		a.Recall(id, nil)
	}
	slots.counts[open(t, a, 7, "veth7")] = 10
	assign(t, a, 7, "first", "eth0")
	slots.counts[succeed(t, a, OnHost(7), "second", "eth0")] = 5
	next := func(on bool) {
		t.Helper()
		onDisk.write(t, a.Pending(true))
		a = kept(t, slots, clock)
		a.Restore(onDisk.read(t))
		for _, l := range a.Leftovers() {
			if l.Older || !on {
				if err := a.Retire(l); err != nil {
					t.Fatal(err)
				}
				continue
			}
			a.Adopt(l, "veth7", "clsact")
		}
	}
	next(true)
	for _, step := range []struct{ before, had uint64 }{{10, 5}, {15, 7}} {
		if rx, _ := a.Beside(OnHost(7)); rx.Packets != step.before {
			t.Errorf("%d packets before, want %d", rx.Packets, step.before)
		}
		closeInterface(t, a, 7)
		clock.now = clock.now.Add(settleAfter)
		if step.had == 7 { // once folded, once about to be
			a.Written(a.Pending(true))
		}
		next(false)
		kernel := 10 + step.had
		if known, _ := a.Earlier(OnHost(7)); known.ID != "second" || known.Counted.Receive.Interface.Packets != kernel {
			t.Errorf("earlier %+v, want %d packets, last second's", known, kernel)
		}
		slots.counts[open(t, a, 7, "veth7")] = 2
		if err := a.Seed(OnHost(7), Volume{Packets: kernel}, Volume{}); err != nil {
			t.Fatal(err)
		}
		assign(t, a, 7, "second", "eth0")
		if first, second := received(t, a, "first"), received(t, a, "second"); first != 10 || second != step.had+2 {
			t.Errorf("%d and %d packets, want 10 and %d", first, second, step.had+2)
		}
	}
}

// An interface that went before anybody owned it is shown for a while.
func TestOrphan(t *testing.T) {
	a, kernel, clock := newAccounts(t)
	kernel.counts[open(t, a, 7, "veth7")] = 10
	open(t, a, 8, "veth8")
	closeInterface(t, a, 7)
	closeInterface(t, a, 8) // nothing passed
	u := a.Snapshot().Unowned
	if len(u) != 1 || u[0].Attached || u[0].Receive.Wire().Packets != 10 {
		t.Fatalf("unowned %+v, want veth7 with 10 packets", u)
	}
	clock.now = clock.now.Add(time.Hour + 1)
	a.Expire()
	if u := a.Snapshot().Unowned; len(u) != 0 {
		t.Errorf("still there after the retention: %+v", u)
	}
	// What it counted stays in the sum of all that no container has, like what the next one does.
	kernel.counts[open(t, a, 9, "veth9")] = 5
	if got := a.Snapshot().Orphaned.Receive.Wire().Packets; got != 10 {
		t.Errorf("orphaned: %d packets, want 10: veth9 is there", got)
	}
	closeInterface(t, a, 9)
	if got := a.Snapshot().Orphaned.Receive.Wire().Packets; got != 15 {
		t.Errorf("orphaned: %d packets, want 15", got)
	}
}

// A shadowed interface makes its container unaccounted, as long as it is.
func TestShadow(t *testing.T) {
	a, _, _ := newAccounts(t)
	a.Start(Container{ID: "web"})
	open(t, a, 7, "veth7")
	assign(t, a, 7, "web", "eth0")
	a.Explain("web", Accounted)
	for _, shadowed := range []bool{true, false} {
		a.Show(OnHost(7), Shown{HostInterface: "veth7", Hook: "clsact", Shadowed: shadowed})
		c := a.Snapshot().Containers[0]
		if c.Accounted() == shadowed || c.Interfaces[0].Shadowed != shadowed {
			t.Errorf("shadowed %v: accounted %v, reason %q", shadowed, c.Accounted(), c.Reason)
		}
	}
}

// Every number of a count is read back as itself.
func TestCountsJSON(t *testing.T) {
	var c Counts
	for i, field := range c.fields() {
		*field = uint64(i + 1)
	}
	for _, want := range []Counts{c, {}, {SYN: 1}} {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Counts
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", data, diff)
		}
	}
	if err := json.Unmarshal(fmt.Append(nil, slices.Repeat([]int{1}, 99)), &c); err == nil {
		t.Error("read counts of 99 numbers")
	}
}

// What earlier versions wrote is read as they meant it, whatever order anything is in now.
func TestCountsOnDisk(t *testing.T) {
	const atFirst = `[1,2,3,4,5,6,7,8,
		10,11,12,13,14,15,16,17, 20,21,22,23,24,25,26,27, 30,31,32,33,34,35,36,37, 40,41`
	want := Counts{
		Interface: Volume{1, 2}, Seeded: Volume{3, 4}, SYN: 5, SYNACK: 6, RST: 7, FIN: 8,
		Cells: [Families][Protocols]Volume{
			FamilyIPv4:  {ProtocolTCP: {10, 11}, ProtocolUDP: {12, 13}, ProtocolICMP: {14, 15}, ProtocolOther: {16, 17}},
			FamilyIPv6:  {ProtocolTCP: {20, 21}, ProtocolUDP: {22, 23}, ProtocolICMP: {24, 25}, ProtocolOther: {26, 27}},
			FamilyOther: {ProtocolTCP: {30, 31}, ProtocolUDP: {32, 33}, ProtocolICMP: {34, 35}, ProtocolOther: {36, 37}},
		},
		Loopback: Volume{40, 41},
	}
	for _, text := range []string{atFirst + "]", atFirst + ", 50,51]"} {
		var got Counts
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
		want.Mended = Volume{50, 51}
	}
}

// Leftovers of a process whose ledger was lost are their owners' by what is noted with
// the slots.
func TestOwnersAreNoted(t *testing.T) {
	_, kernel, clock := newAccounts(t)
	before := kept(t, kernel, clock)
	before.Start(Container{ID: "web"})
	before.Recall("web", nil)
	onDisk := disk{}
	onDisk.write(t, before.Pending(true)) // while it is starting
	kernel.counts[open(t, before, 7, "veth7")] = 10
	assign(t, before, 7, "web", "eth0")

	for name, records := range map[string][]Record{"not in the ledger": nil, "in the ledger": onDisk.read(t)} {
		t.Run(name, func(t *testing.T) { ownAgain(t, kernel, clock, records) })
	}
}

func ownAgain(t *testing.T, kernel *slots, clock *clock, records []Record) {
	t.Helper()
	kernel = &slots{taken: maps.Clone(kernel.taken), counts: kernel.counts}
	a := kept(t, kernel, clock)
	a.Restore(records)
	for _, l := range a.Leftovers() {
		if err := a.Retire(l); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range a.Unrecalled() {
		a.Recall(id, nil)
	}
	if got := received(t, a, "web"); got != 10 {
		t.Errorf("%d packets, want 10", got)
	}
	if diff := cmp.Diff([]string{"web"}, slices.Collect(maps.Keys(a.Running()))); diff != "" {
		t.Errorf("to be stopped by whoever knows better (-want +got):\n%s", diff)
	}
	a.Stop("web")
	if c := a.Snapshot().Containers[0]; !c.Accounted() {
		t.Errorf("not accounted: %s", c.Reason)
	}
}

// BenchmarkPending is what a flush holds the accounts for, all containers having changed.
func BenchmarkPending(b *testing.B) {
	for _, containers := range []int{1000, 5000} {
		b.Run(fmt.Sprint(containers), func(b *testing.B) {
			kernel := newSlots()
			a := New(Options{Datapath: kernel, Retention: func() time.Duration { return time.Hour }, Boot: "boot", Kept: true})
			for n := range containers {
				id := fmt.Sprintf("%064x", n)
				a.Start(Container{ID: id})
				a.Recall(id, nil)
				if _, _, err := a.Open(OnHost(n), "veth", "clsact"); err != nil {
					b.Fatal(err)
				}
				if err := a.Assign(OnHost(n), id, "eth0"); err != nil {
					b.Fatal(err)
				}
			}
			a.Written(a.Pending(false))
			for b.Loop() {
				for slot := range kernel.taken {
					kernel.counts[slot]++
				}
				if changed := a.Pending(false); len(changed) != containers {
					b.Fatalf("%d of %d containers are pending", len(changed), containers)
				}
			}
		})
	}
}
