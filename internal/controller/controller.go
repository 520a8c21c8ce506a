// SPDX-License-Identifier: Apache-2.0

// Package controller counts containers by eBPF programs: on host veths, on interfaces inside
// of network namespaces, and on cgroups. It is a backend of package roster, which says whose
// each namespace is.
//
// It attaches to a host veth as soon as the veth's other end lives in another namespace,
// before a container's process runs; the owner becomes known afterwards.
package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// host is what the controller sees of the host: *watcher.Watcher.
type host interface {
	HostVeths() ([]watcher.HostVeth, error)
	Inspect(watcher.Container) (watcher.Sandbox, error)
	Hold(watcher.Container) (*watcher.Namespace, error)
	Stand(watcher.Container) watcher.Standing
	Unified(watcher.Container) (dir string, ok bool)
	Processes(watcher.Container) []int
	Counters(ifindex int, asked func()) (watcher.LinkCounters, error)
	Glance(name string) (watcher.LinkCounters, error)
	AllCounters() (map[int]watcher.LinkReading, error)
	CountersIn(nsid, ifindex int) (watcher.LinkReading, error)
	RootQdiscs() (map[int]watcher.RootQdisc, error)
	VisitNamespaces(inodes map[uint64]bool, visit func(*watcher.Namespace) error) error
	NamespaceThere(nsid int) (bool, error)
	NetworkNamespaces(pids []int) map[uint64]int
	Established(pid int) (map[uint64]uint64, error)
	ListenDrops(pid int) (uint64, error)
	TCPIn(inode uint64, pid int) (watcher.NamespaceTCP, time.Time, error)
}

// clsactHooks puts the classifiers on the clsact qdiscs of one network namespace and takes
// them off: *Hooks.
type clsactHooks interface {
	Attach(ifindex int, slot uint16, making func() error) (createdQdisc bool, err error)
	Detach(ifindex int, removeQdisc bool) error
	Current(ifindex int) (slot uint16, ok bool, err error)
	Close() error
}

// hooks are those of the host's namespace: *Hooks.
type hooks interface {
	clsactHooks
	Inside(netns int) (clsactHooks, error)
	Interfaces() ([]int, error)

	AttachTCX(ifindex int) error
	DetachTCX(ifindex int) error
	Raise(ifindex int) error
	TCX(ifindex int) (attached, first bool, err error)
	TCXInterfaces() ([]int, error)
	OthersOnTCX(ifindex int) (bool, error)
}

// Settings are what a reload of the configuration may change.
type Settings struct {
	Interface func(name string) bool // whether to count a host interface
	Mode      Mode
	Cgroup    CgroupMode
	CNIDirs   []string // the folders with the configuration of container networks
}

// Options are what the controller works with.
type Options struct {
	Host  host
	Hooks hooks
	// Cgroups is nil where there is no cgroup2 hierarchy.
	Cgroups cgroups
	// Sockets puts the program for connections on cgroups; nil where there is no cgroup2
	// hierarchy. CountSockets says whether it is to: else it takes off what an earlier process
	// put there.
	Sockets      cgroups
	CountSockets bool
	// CountNamespaces says to count connections by the kernel's counters of network namespaces,
	// where no program can.
	CountNamespaces bool
	Accounts        *usage.Accounts
	Settings        func() Settings
	// TCX says that the kernel has tcx: Linux 6.6.
	TCX bool
	Log *slog.Logger
}

// Controller owns what is attached where. Only Run, Adopted and Metrics may be called from
// other goroutines than the roster's.
type Controller struct {
	keeper

	veths   veths
	uplinks uplinks
	groups  groups
	sockets groups
	members map[roster.Key]*member
	inside  map[string]int    // how many members are inside of a container
	spaces  map[uint64]*space // by inode of the network namespace
	started bool              // everything was looked at once
	began   time.Time         // when that was
	ends    ends
	adopted chan struct{}
}

var _ roster.Backend[watcher.Sandbox] = (*Controller)(nil)

// New returns a controller. It starts nothing.
func New(o Options) *Controller {
	c := &Controller{
		keeper:  keeper{&o, newMetrics()},
		members: map[roster.Key]*member{},
		inside:  map[string]int{},
		spaces:  map[uint64]*space{},
		ends:    ends{asked: make(chan look, 1)},
		adopted: make(chan struct{}),
	}
	c.veths = veths{
		keeper: c.keeper, known: map[int]*veth{}, excluded: map[int]bool{}, aside: map[int]bool{},
		jobs: newJobs(), unclean: map[int]bool{}, cni: cni{log: o.Log}, room: usualRoom, here: hereFor,
	}
	c.uplinks = uplinks{c.keeper, map[usage.Target]*uplink{}}
	c.groups, c.sockets = newGroups(c.keeper, false), newGroups(c.keeper, true)
	return c
}

// Metrics returns the controller's own metrics.
func (c *Controller) Metrics() []prometheus.Collector { return c.metrics.all() }

// Adopted is closed when all that an earlier process counted is known again: totals
// that are read before would be too low.
func (c *Controller) Adopted() <-chan struct{} { return c.adopted }

// Adopt implements [roster.Backend].
func (c *Controller) Adopt(ctx context.Context) {
	adoption{c.keeper, c.mover(), &c.uplinks}.adopt()
	close(c.adopted)
	c.veths.busy = c.veths.findBusy(ctx)
}

// handing hands work to the roster's goroutine. It returns false when there is none any more.
type handing func(func() []roster.Hint) bool

// every hands over work once per interval, until the context or the roster's goroutine ends.
func (hand handing) every(ctx context.Context, interval time.Duration, work func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !hand(func() []roster.Hint { work(); return nil }) {
			return
		}
	}
}

// Run implements [roster.Backend]: it moves interfaces between hooks, compares our numbers
// with the kernel's, and looks for packets that bypass us. The filters stay when it returns:
// the kernel goes on counting.
func (c *Controller) Run(ctx context.Context, do chan<- func() []roster.Hint) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	hand := func(work func() []roster.Hint) bool {
		select {
		case <-ctx.Done():
			return false
		case do <- work:
			return true
		}
	}
	for _, task := range []func(context.Context, handing){c.work, c.checkAll, c.lookAtEnds, c.settleSockets, c.readNamespaces} {
		tasks.Go(func() { task(ctx, hand) })
	}
}

// Link implements [roster.Backend].
func (c *Controller) Link(e watcher.Event) []roster.Hint {
	switch e := e.(type) {
	case watcher.HostVethSeen:
		return c.vethSeen(e.HostVeth, e.SeenAt)
	case watcher.HostVethGone:
		return c.vethGone(e.Index, e.Moved)
	case watcher.LinkMoved:
		return []roster.Hint{{NSID: e.NetNSID}}
	case watcher.NamespaceGone:
		c.namespaceGone(e.NetNSID)
	}
	return nil
}

func (c *Controller) vethSeen(link watcher.HostVeth, seenAt time.Time) []roster.Hint {
	return c.veths.seen(link, seenAt, c.uplinks.countedAt(link.NetNSID, link.PeerIndex))
}

// Relist implements [roster.Backend].
func (c *Controller) Relist() (hints []roster.Hint) {
	c.veths.lookAtCNI()
	found, err := c.Host.HostVeths()
	if err != nil {
		// Incomplete: nothing is taken as gone because it is not in there.
		c.Log.Warn("could not list links", "err", err)
	}
	there := make(map[int]bool, len(found))
	for _, v := range found {
		there[v.Index] = true
		hints = append(hints, c.vethSeen(v, time.Time{})...)
		if known := c.veths.known[v.Index]; known != nil && !c.started {
			known.ahead = time.Time{} // it was there before us
		}
		c.veths.place(v.Index)
	}
	if err != nil {
		return hints
	}
	hints = append(hints, c.leftHost(there)...)
	c.veths.endMissing(there)
	if !c.started {
		c.veths.removeStrays()
	}
	return hints
}

// Reconcile implements [roster.Backend].
func (c *Controller) Reconcile(there func(roster.Key) bool) []roster.Hint {
	c.groups.reconcile(c.members, there)
	c.sockets.reconcile(c.members, there)
	c.settleAgain()
	c.readListenDrops()
	c.countNamespaces()
	hints := c.reconcileInside()
	c.ends.bypassed = true
	c.askForEnds()
	c.veths.busy = nil
	if !c.started {
		c.started, c.began = true, time.Now()
	}
	return hints
}
