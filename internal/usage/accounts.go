// SPDX-License-Identifier: Apache-2.0

// Package usage joins the kernel's counters with the containers they belong to,
// and keeps a container's totals growing over the veths it has one after another,
// over restarts of nettally, and of the host.
//
// What an attachment counts stays in its slot in the kernel until a ledger has it on
// disk, so that the end of this process at any moment loses nothing.
package usage

import (
	"cmp"
	"slices"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/wallclock"
)

// Datapath is where the counters are: *bpf.Datapath, or *procnet.Datapath.
type Datapath interface {
	Take(bpf.Target) (bpf.Slot, error)
	Keep(bpf.Slot) error
	Bind(bpf.Slot) error
	BindCgroup(bpf.Slot) error
	CgroupBound(bpf.Slot) bool
	Quiesce() error
	Old() []bpf.Old
	Inherit(bpf.Old) (bpf.Slot, error)
	Settle() error
	Release(bpf.Slot) error
	Slots() []bpf.Slot
	Read(bpf.Slot) (rx, tx bpf.Counters, err error)
	ReadTCP(bpf.Slot) (bpf.TCPCounters, error)
	NoteTCP(bpf.Slot, bpf.TCPNote) error
	ReadSockets(bpf.Slot) (bpf.SocketCounters, error)
	CountsSockets() bool
	ReadRequests(bpf.Slot) (receive, transmit bpf.RequestCounters, err error)
	RequestsCounted() bpf.RequestOptions
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
	Datapath Datapath
	// Identify returns what is known of a container. It must not block. Nil: nothing
	// is ever known.
	Identify func(id string) (Identity, bool)
	// Retention is how long a stopped container stays in the snapshot.
	Retention func() time.Duration
	// Boot is the kernel's boot id, within which generations of slots are unique.
	Boot string
	// Kept says that a ledger keeps the records: what is final stays in the kernel
	// until [Accounts.Written], and containers wait for [Accounts.Recall].
	Kept bool
	// Now is time.Now, but for tests: how long something lasted in this process is told by its
	// monotonic reading.
	Now func() time.Time
	// Clock is what is shown and kept as a time of day goes by; nil is Now.
	Clock *wallclock.Clock
	// Limits returns the bounds; nil: there are none. Accounts that are there already keep what
	// they have.
	Limits func() Limits
}

func (o *Options) limits() Limits {
	if o.Limits == nil {
		return Unlimited
	}
	return o.Limits()
}

// timeOfDay is for what outlives the process.
func (o *Options) timeOfDay() time.Time {
	if o.Clock == nil {
		return o.Now()
	}
	return o.Clock.Now()
}

// Accounts is the usage of every container on the host.
//
// Its methods are safe for concurrent use.
type Accounts struct {
	Slots
	recalls chan struct{}

	// Guarded by the mutex of Slots.
	containers map[string]*account
	guests     map[string]*guest // containers that have no account of their own
	readers    int
	opened     opened
	restored   map[uint64]restored // attachments of an earlier process, by generation
}

// account is one container's usage.
type account struct {
	Container                   // without interfaces and sums
	tallies   map[string]*tally // by the container's name of the interface
	cgroup    *tally            // nil: its cgroup is not counted
	tcp       *tally            // nil: its connections are not
	namespace *tally            // nil: nor are they by the counters of its network namespaces

	obstructed bool      // another's program keeps ours off its cgroup
	unrecalled bool      // what it counted before is not known yet
	since      time.Time // it is so
	stopped    time.Time // by Now
	written    *Record   // what the ledger has
	final      uint8     // the readers that have its last numbers, a bit each

	guests, failing int // of an account for others: its containers, and those not counted
}

// New returns accounts without a container.
func New(o Options) *Accounts {
	if o.Identify == nil {
		o.Identify = func(string) (Identity, bool) { return Identity{}, false }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Accounts{
		Slots:      Slots{Options: o, attachments: map[Target]*attachment{}},
		recalls:    make(chan struct{}, 1),
		containers: map[string]*account{},
		guests:     map[string]*guest{},
		opened:     opened{user: map[string]int{}},
		restored:   map[uint64]restored{},
	}
}

// Start opens the account of a container, or goes on with the one it had before a
// restart. Of c the identifying fields count, not State, Reason or the numbers.
func (a *Accounts) Start(c Container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.account(c.ID)
	if g := a.guests[c.ID]; g != nil {
		g.cgroup = c.Cgroup
		return
	}
	c.State, c.StoppedAt, c.Reason = Running, time.Time{}, Starting
	if a.Clock != nil && !c.StartedAt.IsZero() {
		c.StartedAt = a.Clock.Began(c.StartedAt)
	}
	c.Interfaces, c.Traffic, c.IP, c.IPSince = nil, Traffic{}, nil, time.Time{}
	c.TCP, c.TCPSince, c.Established, c.Sockets = nil, time.Time{}, nil, nil
	c.Requests, c.Layer7 = nil, Layer7{}
	known.Container = c.identifiedBy(known.Container)
}

// open returns an account by its id, a new one if there is none.
func (a *Accounts) open(id string) *account {
	known := a.containers[id]
	if known == nil {
		known = &account{tallies: map[string]*tally{}, unrecalled: a.Kept, since: a.Now()}
		a.containers[id] = known
		a.opened.count(id)
		select {
		case a.recalls <- struct{}{}:
		default:
		}
	}
	return known
}

// Stop says that a container has ended. Its interfaces are counted on until
// [Slots.Close].
func (a *Accounts) Stop(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.guests[id]; g != nil {
		a.dismiss(id, g)
	} else if c := a.containers[id]; c != nil {
		a.stop(c)
	}
}

func (a *Accounts) stop(c *account) {
	if c.State != Running {
		return
	}
	c.State, c.StoppedAt, c.stopped = Stopped, a.timeOfDay(), a.Now()
	if c.Reason == Starting {
		c.Reason = Ended
	}
}

// Running returns the containers that have not been stopped: their cgroups by their ids.
func (a *Accounts) Running() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	cgroups := map[string]string{}
	for id, c := range a.containers {
		if c.State == Running && !IsOthers(id) {
			cgroups[id] = c.Cgroup
		}
	}
	for id, g := range a.guests {
		cgroups[id] = g.cgroup
	}
	return cgroups
}

// Explain says why a container is not accounted, or that it is.
func (a *Accounts) Explain(id string, reason Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.guests[id]; g != nil {
		a.explain(g, reason)
	} else if c := a.containers[id]; c != nil {
		c.Reason = reason
	}
}

// Obstruct says whether another's program keeps ours off a container's cgroup. Where nothing
// else counts the container, that is why it is not accounted.
func (a *Accounts) Obstruct(id string, obstructed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		c.obstructed = obstructed
	}
}

// Share says which container owns the interfaces of the network namespace that another one
// is in, "" for nobody.
func (a *Accounts) Share(id, owner string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		c.SharesWith = owner
	}
}

// RunsOn says which kernel of its own a container runs on, "" for none.
func (a *Accounts) RunsOn(id, kernel string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		c.Kernel = kernel
	}
}

// Assign gives a target, and all it has counted, to a container, which calls an interface
// by name. A target keeps its first owner.
func (a *Accounts) Assign(target Target, id, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, c := a.attachments[target], a.of(id)
	if at == nil || c == nil || at.tally != nil {
		return nil
	}
	if kindOf(target) == ofInterface {
		name = a.within(c, name)
	}
	at.slot.Container, at.slot.Interface, at.slot.Others = id, name, a.guests[id] != nil
	c.tallyOf(kindOf(target), name).own(at)
	a.hold(at, 1)
	if at.earlier == (Traffic{}) {
		at.earlier = a.elsewhere(id, c, target)
	}
	before := a.before(at)
	at.slot.SeededReceive = less(at.slot.SeededReceive, before.Receive.Interface)
	at.slot.SeededTransmit = less(at.slot.SeededTransmit, before.Transmit.Interface)
	if a.torn(at) {
		mend(&at.slot.Note, Volume(at.slot.SeededReceive), Volume(at.slot.SeededTransmit))
		at.slot.SeededReceive, at.slot.SeededTransmit = bpf.Volume{}, bpf.Volume{}
	}
	// An owner that can't be noted is known as long as this process lives, and then by the
	// ledger.
	return a.Datapath.Keep(at.slot)
}

// Renamed reports whether a target is counted for a container under another name than it
// would be by the name that the container calls it now.
func (a *Accounts) Renamed(target Target, id, name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, c := a.attachments[target], a.of(id)
	if at == nil || c == nil || at.tally == nil || at.tally.account != c || at.slot.Container != id {
		return false
	}
	return at.slot.Interface != "" && at.slot.Interface != a.within(c, name)
}

// less returns what is left of a volume, never less than nothing.
func less(v bpf.Volume, by Volume) bpf.Volume {
	return bpf.Volume{
		Bytes:   v.Bytes - min(v.Bytes, by.Bytes),
		Packets: v.Packets - min(v.Packets, by.Packets),
	}
}

// Expire drops the containers that stopped longer ago than the retention, are not
// counted any more, and are in the ledger. Of more than [Limits].Ended it drops the others, too:
// first those that were never counted, then users', then those that stopped first. One of a
// user's that was never counted leaves nothing. It returns their ids.
func (a *Accounts) Expire() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var gone []string
	before := a.Now().Add(-a.Retention())
	var ended []*account
	for id, c := range a.containers {
		if IsOthers(id) && c.guests == 0 {
			a.stop(c) // an earlier process left it
		}
		switch {
		case c.State != Stopped || c.counting() || a.Kept && !c.isWritten() && !c.leavesNothing():
		case c.stopped.Before(before), c.User() != "" && c.leavesNothing():
			delete(a.containers, id)
			gone = append(gone, id)
		default:
			ended = append(ended, c)
		}
	}
	slices.SortFunc(ended, (*account).compareEnd)
	for _, c := range ended[:max(0, len(ended)-a.limits().Ended)] {
		delete(a.containers, c.ID)
		gone = append(gone, c.ID)
	}
	a.recount()
	_ = a.releaseDiscarded() // one that stays is given up at the next start
	a.orphans = slices.DeleteFunc(a.orphans, func(o orphan) bool { return o.at.Before(before) })
	return gone
}

// compareEnd returns a negative number if c is to be dropped before another one.
func (c *account) compareEnd(other *account) int {
	return cmp.Or(
		before(c.isBlank(), other.isBlank()),
		before(c.User() != "", other.User() != ""),
		c.stopped.Compare(other.stopped),
	)
}

// before compares two by what only the first of them may be.
func before(mine, others bool) int {
	switch {
	case mine == others:
		return 0
	case mine:
		return -1
	}
	return 1
}

// isBlank reports whether a container was never counted, in none of its lives that are known.
func (c *account) isBlank() bool {
	return len(c.tallies) == 0 && c.cgroup == nil && c.tcp == nil && c.namespace == nil
}

// leavesNothing reports whether the ledger need not know that a container has stopped: it
// was never counted, and is not in there.
func (c *account) leavesNothing() bool { return c.written == nil && c.isBlank() }

func (c *account) counting() bool {
	for _, t := range c.tallies {
		if len(t.live) > 0 {
			return true
		}
	}
	return slices.ContainsFunc([]*tally{c.cgroup, c.tcp, c.namespace}, func(t *tally) bool { return t != nil && len(t.live) > 0 })
}

// isWritten says whether the ledger knows that the container has stopped; its numbers
// it then has, too.
func (c *account) isWritten() bool { return c.written != nil && c.written.State == Stopped }
