// SPDX-License-Identifier: Apache-2.0

// Package controller decides which host interface is counted for which container.
//
// One goroutine owns that state. It attaches to a host veth as soon as the veth's
// other end lives in another namespace, before a container's process runs, and
// works out afterwards whose it is. Events are the fast way there; a reconcile
// that looks at everything repairs what they missed.
package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/retry"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// host is what the controller sees of the host: *watcher.Watcher.
type host interface {
	Containers() ([]watcher.Container, error)
	Missed(id, cgroup string) bool
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
	Attach(ifindex int, slot uint16) (createdQdisc bool, err error)
	Detach(ifindex int, removeQdisc bool) error
	Current(ifindex int) (slot uint16, ok bool, err error)
	Interfaces() ([]int, error)

	AttachTCX(ifindex int) error
	DetachTCX(ifindex int) error
	Raise(ifindex int) error
	TCX(ifindex int) (attached, first bool, err error)
	TCXInterfaces() ([]int, error)
	OthersOnTCX(ifindex int) (bool, error)

	AttachInside(netns, ifindex int, slot uint16) (createdQdisc bool, err error)
	DetachInside(netns, ifindex int, removeQdisc bool) error
	CurrentInside(netns, ifindex int) (slot uint16, ok bool, err error)
}

// names finds names for containers: *names.Resolver.
type names interface {
	Want(id string)
	Forget(id string)
}

// Settings are what a reload of the configuration may change.
type Settings struct {
	Interface func(name string) bool       // whether to count a host interface
	Container func(watcher.Container) bool // whether to know a container
	Reconcile time.Duration                // between two looks at everything
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
	// Names is told whose names are wanted, and for how long.
	Names names
	Log   *slog.Logger
}

// Controller owns what is attached where. Run it once.
type Controller struct {
	Options

	veths      map[int]*veth
	containers map[string]*container
	hidden     map[string]bool     // of an earlier process, in a directory that can't be read
	sandboxes  map[uint64]*sandbox // by inode of the network namespace
	insides    map[usage.Target]*inside
	busy       map[int]bool // interfaces of containers at work, while we start
	complete   bool         // everything was looked at once
	looking    bool         // at the other ends of host veths
	ends       chan map[int]bothEnds
	bandwidth  bool // a CNI configuration names that plugin
	jobs       *jobs
	adopted    chan struct{}
	reload     chan struct{}
	ready      chan struct{}
	stopping   <-chan struct{} // closed when Run's context ends; nil before Run
	beside     sync.WaitGroup  // goroutines beside the controller's; Run waits for them
	metrics    metrics
}

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

// container is a container that is there.
type container struct {
	watcher.Container
	sandbox *sandbox            // nil until its process is in a namespace of its own
	held    *watcher.Namespace  // that namespace, while its interfaces are still to come
	unnamed []watcher.Interface // those seen last that had no name for good yet
	ended   bool                // what is not known of it by now never will be
	reason  usage.Reason
	since   time.Time // its cgroup was made
	look    retry.Plan

	shared        bool   // it was in a namespace with others, so `ip` goes on when they leave
	cgroup        uint64 // id of its cgroup, if that is counted
	cgroupDir     string
	cgroupFailure string // of the last attempt, as it stands in the log
}

// sandbox is a network namespace with the containers in it. The first one owns
// its interfaces; they are counted once.
type sandbox struct {
	inode   uint64
	nsid    int // what the host calls it, -1 if nothing yet
	owner   *container
	members map[string]*container

	uplinks bool              // it has some, at the last look
	looked  time.Time         // for them
	veths   map[int]time.Time // to third namespaces: when they were first seen
}

// New returns a controller. It starts nothing.
func New(o Options) *Controller {
	return &Controller{
		Options:    o,
		veths:      map[int]*veth{},
		containers: map[string]*container{},
		hidden:     map[string]bool{},
		sandboxes:  map[uint64]*sandbox{},
		insides:    map[usage.Target]*inside{},
		jobs:       newJobs(),
		ends:       make(chan map[int]bothEnds, 1),
		adopted:    make(chan struct{}),
		reload:     make(chan struct{}, 1),
		ready:      make(chan struct{}),
		metrics:    newMetrics(),
	}
}

// Metrics returns the controller's own metrics.
func (c *Controller) Metrics() []prometheus.Collector { return c.metrics.all() }

// Ready is closed when the first look at everything is done.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Reload makes the controller act on changed settings soon.
func (c *Controller) Reload() {
	select {
	case c.reload <- struct{}{}:
	default:
	}
}

// Adopted is closed when all that an earlier process counted is known again: totals
// that are read before would be too low.
func (c *Controller) Adopted() <-chan struct{} { return c.adopted }

// Run acts on events until ctx ends. The filters stay: the kernel goes on counting. No
// goroutine of the controller outlives Run.
func (c *Controller) Run(ctx context.Context, events <-chan watcher.Event) error {
	c.stopping = ctx.Done()
	defer c.beside.Wait()
	c.beside.Go(func() { c.work(ctx) })

	c.adopt()
	close(c.adopted)
	c.busy = c.findBusy(ctx)
	if complete := c.reconcile(); complete {
		c.removeStrays()
	}
	c.busy, c.complete = nil, true
	close(c.ready)
	return c.loop(ctx, events)
}

func (c *Controller) loop(ctx context.Context, events <-chan watcher.Event) error {
	reconcile := time.NewTimer(c.Settings().Reconcile)
	defer reconcile.Stop()
	check := time.NewTimer(checkEvery)
	defer check.Stop()
	checked := make(chan kernelCounters, 1)
	for {
		again, stop := retry.Timer(c.containers, func(k *container) *retry.Plan { return &k.look })
		select {
		case <-ctx.Done():
			stop()
			return nil
		case e, ok := <-events:
			if !ok {
				stop()
				return nil
			}
			c.handle(e)
		case <-again:
			c.resolveDue()
		case done := <-c.jobs.done:
			c.moved(done)
		case <-check.C:
			c.look(checked)
		case all := <-checked:
			c.selfCheck(all)
			check.Reset(checkEvery)
		case ends := <-c.ends:
			c.findBypassed(ends)
		case <-c.reload:
			reconcile.Reset(0)
		case <-reconcile.C:
			c.reconcile()
			reconcile.Reset(c.Settings().Reconcile)
		}
		stop()
	}
}

func (c *Controller) handle(e watcher.Event) {
	switch e := e.(type) {
	case watcher.HostVethSeen:
		c.vethSeen(e.HostVeth, e.SeenAt)
	case watcher.HostVethGone:
		c.vethGone(e.Index)
	case watcher.ContainerStarted:
		c.containerStarted(e.Container)
	case watcher.ContainerStopped:
		if known := c.containers[e.ID]; known != nil && known.Cgroup == e.Cgroup { // an id that is a name may be there twice
			c.containerStopped(e.ID)
		}
	case watcher.LinkMoved:
		c.linkMoved(e.NetNSID)
	case watcher.NamespaceGone:
		c.namespaceGone(e.NetNSID)
	case watcher.Overflowed:
		c.metrics.overflows.WithLabelValues(e.Source).Inc()
		c.Log.Warn("events were lost; looking at everything", "source", e.Source)
		c.reconcile()
	}
}

// reconcile looks at everything and acts on what no event told. It returns whether all
// host veths were to be seen.
func (c *Controller) reconcile() bool {
	c.bandwidth = usesBandwidth(c.CNIConfig)
	complete := c.reconcileVeths()
	listed := c.reconcileContainers()
	for _, known := range c.containers {
		if known.reason != usage.Accounted {
			c.resolve(known)
		}
	}
	c.reconcileCgroups(listed)
	c.reconcileInside()
	c.lookAtEnds()
	for _, id := range c.Accounts.Expire() {
		c.Names.Forget(id)
	}
	return complete
}

func (c *Controller) reconcileVeths() (complete bool) {
	found, err := c.Host.HostVeths()
	if err != nil {
		// Incomplete: nothing is taken as gone because it is not in there.
		c.Log.Warn("list links", "err", err)
	}
	there := make(map[int]bool, len(found))
	for _, v := range found {
		there[v.Index] = true
		c.vethSeen(v, time.Time{})
		c.place(v.Index)
	}
	if err != nil {
		return false
	}
	for index := range c.veths {
		if there[index] {
			continue
		}
		// Gone, as a rule; or it leads nowhere any more.
		if err := c.remove(index); err != nil {
			c.Log.Warn("detach from interface that is none of ours", "ifindex", index, "err", err)
		}
		delete(c.veths, index)
	}
	return true
}

// reconcileContainers reports whether the containers could be listed.
func (c *Controller) reconcileContainers() (listed bool) {
	found, err := c.Host.Containers()
	if err != nil {
		c.Log.Warn("could not list containers", "err", err)
		return false
	}
	there := make(map[string]bool, len(found))
	for _, known := range found {
		there[known.ID] = true
		c.containerStarted(known)
	}
	for id, known := range c.containers {
		if !there[id] || !c.Settings().Container(known.Container) {
			c.containerStopped(id)
		}
	}
	c.stopUnseen()
	return true
}

// stopUnseen ends the containers of an earlier process that are not there any more. Those
// in a directory that can't be read may be: it is for the kernel to say that they have gone.
func (c *Controller) stopUnseen() {
	clear(c.hidden)
	for id, cgroup := range c.Accounts.Running() {
		switch {
		case c.containers[id] != nil:
		case c.outOfSight(id, cgroup):
			c.hidden[id] = true
		default:
			c.Accounts.Stop(id)
		}
	}
}

// outOfSight reports whether a container that was not listed may be there and is to be known.
func (c *Controller) outOfSight(id, cgroup string) bool {
	return c.Host.Missed(id, cgroup) && c.Settings().Container(watcher.Container{ID: id, Cgroup: cgroup})
}
