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
	Unified(watcher.Container) (dir string, ok bool)
	Counters(ifindex int, asked func()) (watcher.LinkCounters, error)
	AllCounters() (map[int]watcher.LinkCounters, error)
	CountersIn(nsid, ifindex int) (watcher.LinkCounters, error)
	VisitNamespaces(inodes map[uint64]bool, visit func(*watcher.Namespace) error) error
	NamespaceThere(nsid int) (bool, error)
}

// hooks puts the classifiers on interfaces and takes them off: *Hooks.
type hooks interface {
	Attach(ifindex int, slot uint16, making func() error) (createdQdisc bool, err error)
	Detach(ifindex int, removeQdisc bool) error
	Current(ifindex int) (slot uint16, ok bool, err error)
	Interfaces() ([]int, error)

	AttachTCX(ifindex int) error
	DetachTCX(ifindex int) error
	Raise(ifindex int) error
	TCX(ifindex int) (attached, first bool, err error)
	TCXInterfaces() ([]int, error)
	OthersOnTCX(ifindex int) (bool, error)

	AttachInside(netns, ifindex int, slot uint16, making func() error) (createdQdisc bool, err error)
	DetachInside(netns, ifindex int, removeQdisc bool) error
	CurrentInside(netns, ifindex int) (slot uint16, ok bool, err error)
}

// Settings are what a reload of the configuration may change.
type Settings struct {
	Interface func(name string) bool // whether to count a host interface
	Mode      Mode
	Cgroup    CgroupMode
}

// Options are what the controller works with.
type Options struct {
	Host  host
	Hooks hooks
	// Cgroups is nil where there is no cgroup2 hierarchy.
	Cgroups  cgroups
	Accounts *usage.Accounts
	Settings func() Settings
	// TCX says that the kernel has tcx: Linux 6.6.
	TCX bool
	// CNIConfig is the folder with the configuration of container networks.
	CNIConfig string
	Log       *slog.Logger
}

// Controller owns what is attached where. Only Run, Adopted and Metrics may be called from
// other goroutines than the roster's.
type Controller struct {
	Options

	veths     map[int]*veth
	insides   map[usage.Target]*inside
	members   map[roster.Key]*member
	spaces    map[uint64]*space // by inode of the network namespace
	busy      map[int]bool      // interfaces of containers at work, while we start
	started   bool              // everything was looked at once
	bandwidth bool              // a CNI configuration names that plugin
	jobs      *jobs
	ends      chan []watcher.HostVeth // to be looked at on both ends
	adopted   chan struct{}
	metrics   metrics
}

var _ roster.Backend[watcher.Sandbox] = (*Controller)(nil)

// veth is a host veth that is to be counted.
type veth struct {
	watcher.HostVeth
	since     time.Time // we know it
	led       time.Time // into another namespace, since then, as far as we know
	slot      uint16
	hook      string // it is counted on, "" for none
	owned     bool
	failure   string // of the last attempt to attach, as it stands in the log
	needsTCX  bool   // clsact does not do here
	busy      bool   // clsact would have dropped packets when we came
	bandwidth bool   // that plugin may be about to come
	moving    bool   // a job is at it
	mending   bool   // that is, to put our programs back where they see the packets
	shadowed  bool
	check     *check
	mend      backoff

	bypassed uint64   // packets that the other end had received otherwise, at the last look
	inside   bool     // it is counted there, since packets bypass it
	missed   *reading // from where on that has to make up for us, if we did so
}

func (v *veth) attached() bool { return v.hook != "" }

// member is a container that is there.
type member struct {
	roster.Member
	held          *watcher.Namespace // its own, while its interfaces are still to come
	cgroup        uint64             // id of its cgroup, if that is counted
	cgroupDir     string
	cgroupFailure string // of the last attempt, as it stands in the log
}

// space is a network namespace with containers in it.
type space struct {
	roster.Space
	owner   roster.Key          // its interfaces are counted for, as of the last time
	unnamed []watcher.Interface // those seen last that had no name for good yet
	uplinks bool                // it has some, at the last look
	looked  time.Time           // for them
	veths   map[int]time.Time   // to third namespaces: when they were first seen
}

// New returns a controller. It starts nothing.
func New(o Options) *Controller {
	return &Controller{
		Options: o,
		veths:   map[int]*veth{},
		insides: map[usage.Target]*inside{},
		members: map[roster.Key]*member{},
		spaces:  map[uint64]*space{},
		jobs:    newJobs(),
		ends:    make(chan []watcher.HostVeth, 1),
		adopted: make(chan struct{}),
		metrics: newMetrics(),
	}
}

// Metrics returns the controller's own metrics.
func (c *Controller) Metrics() []prometheus.Collector { return c.metrics.all() }

// Adopted is closed when all that an earlier process counted is known again: totals
// that are read before would be too low.
func (c *Controller) Adopted() <-chan struct{} { return c.adopted }

// Adopt implements [roster.Backend].
func (c *Controller) Adopt(ctx context.Context) {
	c.adopt()
	close(c.adopted)
	c.busy = c.findBusy(ctx)
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
	for _, task := range []func(context.Context, func(func() []roster.Hint) bool){c.work, c.checkAll, c.lookAtEnds} {
		tasks.Go(func() { task(ctx, hand) })
	}
}

// Link implements [roster.Backend].
func (c *Controller) Link(e watcher.Event) []roster.Hint {
	switch e := e.(type) {
	case watcher.HostVethSeen:
		return c.vethSeen(e.HostVeth, e.SeenAt)
	case watcher.HostVethGone:
		c.vethGone(e.Index)
	case watcher.LinkMoved:
		return []roster.Hint{{NSID: e.NetNSID}}
	case watcher.NamespaceGone:
		c.namespaceGone(e.NetNSID)
	}
	return nil
}

// Relist implements [roster.Backend].
func (c *Controller) Relist() (hints []roster.Hint) {
	c.bandwidth = usesBandwidth(c.CNIConfig)
	found, err := c.Host.HostVeths()
	if err != nil {
		// Incomplete: nothing is taken as gone because it is not in there.
		c.Log.Warn("could not list links", "err", err)
	}
	there := make(map[int]bool, len(found))
	for _, v := range found {
		there[v.Index] = true
		hints = append(hints, c.vethSeen(v, time.Time{})...)
		c.place(v.Index)
	}
	if err != nil {
		return hints
	}
	for index := range c.veths {
		if there[index] {
			continue
		}
		// Gone, as a rule; or it leads nowhere any more.
		if err := c.mover().remove(index); err != nil {
			c.Log.Warn("could not detach from an interface that is none of ours", "ifindex", index, "err", err)
		}
		delete(c.veths, index)
	}
	if !c.started {
		c.removeStrays()
	}
	return hints
}

// Reconcile implements [roster.Backend].
func (c *Controller) Reconcile(there func(roster.Key) bool) []roster.Hint {
	c.reconcileCgroups(there)
	hints := c.reconcileInside()
	c.askForEnds()
	c.busy, c.started = nil, true
	return hints
}
