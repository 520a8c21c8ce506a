// SPDX-License-Identifier: Apache-2.0

// Package usage joins the kernel's counters with the containers they belong to,
// and keeps a container's totals growing over the veths it has one after another.
package usage

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
)

// datapath is where the counters are: *bpf.Datapath.
type datapath interface {
	Take(ifindex int) (bpf.Slot, error)
	Own(bpf.Slot) error
	Release(bpf.Slot) error
	Slots() []bpf.Slot
	Read(bpf.Slot) (rx, tx bpf.Counters, err error)
	Uncounted() map[string]uint64
	Unclassified() map[string]uint64
}

// Identity is what a container runtime says of a container. All of it is optional.
type Identity struct {
	Name        string
	Image       string
	Runtime     string
	NetworkMode string
	Namespace   string
	Pod         string
	Labels      map[string]string
}

// Options say where usage gets things from.
type Options struct {
	Datapath datapath
	// Identify returns what is known of a container. It must not block. Nil: nothing
	// is ever known.
	Identify func(id string) (Identity, bool)
	// Retention is how long a stopped container stays in the snapshot.
	Retention func() time.Duration
	// Now is time.Now, but for tests.
	Now func() time.Time
}

// Accounts is the usage of every container on the host.
//
// Its methods are safe for concurrent use.
type Accounts struct {
	Options

	mu          sync.Mutex
	containers  map[string]*account
	attachments map[int]*attachment // by ifindex of the host interface
}

// account is one container's usage.
type account struct {
	Container                   // without interfaces and sums
	tallies   map[string]*tally // by the container's name of the interface
}

// tally is the usage of one interface of a container, over all host veths it had.
type tally struct {
	host       string // the last one's name
	hook       string
	attachedAt time.Time // the first time
	final      Traffic   // of the veths that are gone
	live       []*attachment
}

// attachment is a host interface that is being counted.
type attachment struct {
	slot  bpf.Slot
	host  string
	hook  string
	at    time.Time
	tally *tally // nil while nobody owns it
}

// New returns accounts without a container.
func New(o Options) *Accounts {
	if o.Identify == nil {
		o.Identify = func(string) (Identity, bool) { return Identity{}, false }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Accounts{Options: o, containers: map[string]*account{}, attachments: map[int]*attachment{}}
}

// Start opens the account of a container, or goes on with the one it had before a
// restart. Of c the identifying fields count, not State, Reason or the numbers.
func (a *Accounts) Start(c Container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.containers[c.ID]
	if known == nil {
		known = &account{tallies: map[string]*tally{}}
		a.containers[c.ID] = known
	}
	c.State, c.StoppedAt, c.Reason = Running, time.Time{}, Starting
	c.Interfaces, c.Traffic = nil, Traffic{}
	known.Container = c
}

// Stop says that a container has ended. Its interfaces are counted on until
// [Accounts.Close].
func (a *Accounts) Stop(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil && c.State == Running {
		c.State, c.StoppedAt = Stopped, a.Now()
	}
}

// Explain says why a container is not accounted, or that it is.
func (a *Accounts) Explain(id string, reason Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		c.Reason = reason
	}
}

// Open begins to count a host interface that has no owner yet. It returns the slot
// for the filters on it, whose counters are at 0.
func (a *Accounts) Open(ifindex int, host, hook string) (uint16, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if known := a.attachments[ifindex]; known != nil {
		return known.slot.Index, nil
	}
	slot, err := a.Datapath.Take(ifindex)
	if err != nil {
		return 0, err
	}
	a.attachments[ifindex] = &attachment{slot: slot, host: host, hook: hook, at: a.Now()}
	return slot.Index, nil
}

// Leftover is a slot that an earlier process left in use.
type Leftover struct {
	Ifindex int
	Slot    uint16
}

// Leftovers returns the slots in use that nothing was opened on, or adopted.
func (a *Accounts) Leftovers() []Leftover {
	a.mu.Lock()
	defer a.mu.Unlock()
	var left []Leftover
	for _, s := range a.Datapath.Slots() {
		if known := a.attachments[s.Ifindex]; known == nil || known.slot != s {
			left = append(left, Leftover{Ifindex: s.Ifindex, Slot: s.Index})
		}
	}
	return left
}

// Adopt goes on counting a host interface on the slot an earlier process took.
func (a *Accounts) Adopt(l Leftover, host, hook string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slot, ok := a.leftover(l); ok {
		at := a.Now().Add(-age(slot))
		a.attachments[l.Ifindex] = &attachment{slot: slot, host: host, hook: hook, at: at}
	}
}

// Discard releases a slot that an earlier process took, with what it counted. It
// returns whether that process made the interface's qdisc.
func (a *Accounts) Discard(l Leftover) (ownQdisc bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot, ok := a.leftover(l)
	if !ok {
		return false, nil
	}
	return slot.OwnQdisc, a.Datapath.Release(slot)
}

func (a *Accounts) leftover(l Leftover) (bpf.Slot, bool) {
	for _, s := range a.Datapath.Slots() {
		if s.Index == l.Slot && s.Ifindex == l.Ifindex {
			return s, true
		}
	}
	return bpf.Slot{}, false
}

// OwnQdisc notes that we made the qdisc of a host interface.
func (a *Accounts) OwnQdisc(ifindex int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.attachments[ifindex]
	if known == nil {
		return nil
	}
	known.slot.OwnQdisc = true
	return a.Datapath.Own(known.slot)
}

// QdiscOwned says whether we made the qdisc of a host interface.
func (a *Accounts) QdiscOwned(ifindex int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.attachments[ifindex]
	return known != nil && known.slot.OwnQdisc
}

// Assign gives a host interface, and all it has counted, to a container that calls
// it name. An interface keeps its first owner.
func (a *Accounts) Assign(ifindex int, id, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, c := a.attachments[ifindex], a.containers[id]
	if known == nil || c == nil || known.tally != nil {
		return
	}
	t := c.tallies[name]
	if t == nil {
		t = &tally{attachedAt: known.at}
		c.tallies[name] = t
	}
	t.host, t.hook = known.host, known.hook
	t.live = append(t.live, known)
	known.tally = t
}

// Rename notes another name of a host interface.
func (a *Accounts) Rename(ifindex int, host string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if known := a.attachments[ifindex]; known != nil {
		known.host = host
		if known.tally != nil {
			known.tally.host = host
		}
	}
}

// Close ends the counting of a host interface that is gone, or whose filters are:
// its owner keeps what it counted.
func (a *Accounts) Close(ifindex int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.attachments[ifindex]
	if known == nil {
		return nil
	}
	delete(a.attachments, ifindex)
	if t := known.tally; t != nil {
		last, err := a.read(known)
		if err != nil {
			return fmt.Errorf("read last counts of %s: %w", known.host, err)
		}
		t.final = t.final.Plus(last)
		t.live = slices.DeleteFunc(t.live, func(at *attachment) bool { return at == known })
	}
	return a.Datapath.Release(known.slot)
}

// Expire drops the containers that stopped longer ago than the retention, and are
// not counted any more. It returns their ids.
func (a *Accounts) Expire() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var gone []string
	before := a.Now().Add(-a.Retention())
	for id, c := range a.containers {
		if c.State == Stopped && c.StoppedAt.Before(before) && !c.counting() {
			delete(a.containers, id)
			gone = append(gone, id)
		}
	}
	return gone
}

func (c *account) counting() bool {
	for _, t := range c.tallies {
		if len(t.live) > 0 {
			return true
		}
	}
	return false
}

// Snapshot reads the counters of every interface now.
func (a *Accounts) Snapshot() Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Snapshot{
		TakenAt:      a.Now(),
		Containers:   make([]Container, 0, len(a.containers)),
		Uncounted:    a.Datapath.Uncounted(),
		Unclassified: a.Datapath.Unclassified(),
	}
	for _, c := range a.containers {
		s.Containers = append(s.Containers, a.container(c))
	}
	slices.SortFunc(s.Containers, func(x, y Container) int {
		return cmp.Or(x.StartedAt.Compare(y.StartedAt), cmp.Compare(x.ID, y.ID))
	})
	for _, known := range a.attachments {
		if known.tally == nil {
			s.Unowned = append(s.Unowned, a.unowned(known))
		}
	}
	slices.SortFunc(s.Unowned, func(x, y Interface) int { return cmp.Compare(x.HostInterface, y.HostInterface) })
	return s
}

func (a *Accounts) container(c *account) Container {
	out := c.Container
	a.identify(&out)
	for _, name := range slices.Sorted(maps.Keys(c.tallies)) {
		t := c.tallies[name]
		i := Interface{
			Name:          name,
			HostInterface: t.host,
			Hook:          t.hook,
			AttachedAt:    t.attachedAt,
			Attached:      len(t.live) > 0,
			Traffic:       t.final,
		}
		for _, known := range t.live {
			i.Traffic = i.Traffic.Plus(a.mustRead(known))
		}
		out.Interfaces = append(out.Interfaces, i)
		out.Traffic = out.Traffic.Plus(i.Traffic)
	}
	return out
}

func (a *Accounts) identify(c *Container) {
	said, _ := a.Identify(c.ID)
	c.Name = cmp.Or(said.Name, c.ID)
	c.Image = said.Image
	c.Runtime = cmp.Or(said.Runtime, c.Runtime)
	c.Namespace = said.Namespace
	c.Pod = cmp.Or(said.Pod, c.Pod)
	c.NetworkMode = cmp.Or(said.NetworkMode, networkModes[c.Reason])
	c.Labels = said.Labels
}

// networkModes are what we can tell of a container's network by ourselves.
var networkModes = map[Reason]string{HostNetwork: "host", SharedNetwork: "container"}

func (a *Accounts) unowned(known *attachment) Interface {
	return Interface{
		HostInterface: known.host,
		Hook:          known.hook,
		AttachedAt:    known.at,
		Attached:      true,
		Traffic:       a.mustRead(known),
	}
}

// mustRead reads an open attachment. Its slot is ours until Close, under the same
// lock, so it can't have been released.
func (a *Accounts) mustRead(known *attachment) Traffic {
	t, err := a.read(known)
	if errors.Is(err, bpf.ErrReleased) {
		panic("usage: slot of an open attachment was released: " + known.host)
	}
	return t
}

func (a *Accounts) read(known *attachment) (Traffic, error) {
	rx, tx, err := a.Datapath.Read(known.slot)
	return Traffic{Receive: counts(rx), Transmit: counts(tx)}, err
}

// counts puts a row of counters into our words.
func counts(row bpf.Counters) Counts {
	c := Counts{
		Interface: Volume{Bytes: row.Interface.Bytes, Packets: row.Interface.Packets},
		SYN:       row.TCPSYN,
		SYNACK:    row.TCPSYNACK,
		RST:       row.TCPRST,
		FIN:       row.TCPFIN,
	}
	for i, cell := range row.Cells {
		family, protocol := Family(i/int(Protocols)), Protocol(i%int(Protocols))
		if family == FamilyOther {
			protocol = ProtocolOther
		}
		c.Cells[family][protocol] = Volume{Bytes: cell.Bytes, Packets: cell.Packets}
	}
	return c
}

// age is how long ago a slot was taken.
func age(s bpf.Slot) time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(uint64(now.Nano()) - s.Generation)
}
