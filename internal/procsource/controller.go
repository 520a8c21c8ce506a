// SPDX-License-Identifier: Apache-2.0

// Package procsource counts containers by the kernel's own files, where no program may be
// loaded: /proc/<pid>/net has for each network namespace what its interfaces, its TCP and
// its IPv6 have counted.
//
// It needs no capability. What it can tell is less than the classifiers can, and it is as
// new as the last look: docs/METRICS.md says what each number means.
package procsource

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/retry"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// Hook is how interfaces are counted here, as metrics and JSON call it.
const Hook = "proc"

const (
	// pollEvery is how often the files are read. What passes between the last time and the
	// end of a container without a host veth is lost.
	pollEvery = 5 * time.Second
	// atMostEvery bounds the readings for those who ask for numbers.
	atMostEvery = time.Second
)

// host is what the controller sees of the host: *watcher.Watcher.
type host interface {
	Containers() ([]watcher.Container, error)
	Missed(id, cgroup string) bool
	HostVeths() ([]watcher.HostVeth, error)
	Processes(watcher.Container) []int
	NamespaceNumber(pid int) (int, error)
	Counters(ifindex int, asked func()) (watcher.LinkCounters, error)
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
}

// Options are what the controller works with.
type Options struct {
	Host     host
	Datapath *Datapath // the one of Accounts
	Accounts *usage.Accounts
	Settings func() Settings
	// Names is told whose names are wanted, and for how long.
	Names names
	Log   *slog.Logger
	// Proc is where the host's procfs is mounted, "" for /proc. The network namespace that
	// it shows for its reader is the host's.
	Proc string
}

// Controller decides what is counted for which container. Run it once.
type Controller struct {
	Options
	files files

	host       uint64       // the number of the host's namespace
	began      time.Time    // zero until what was there before us is known
	reading    sync.RWMutex // held while the files of all are read; guards polled
	polled     time.Time
	veths      map[int]watcher.HostVeth
	containers map[string]*container
	sandboxes  map[uint64]*sandbox // by the number of the namespace

	adopted chan struct{}
	ready   chan struct{}
	ended   chan struct{}
	reload  chan struct{}
	asked   chan chan struct{}
	metrics metrics
}

// New returns a controller. It starts nothing.
//
// Returns an error if the files can't be read: no procfs is mounted.
func New(o Options) (*Controller, error) {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	c := &Controller{
		Options:    o,
		files:      files{o.Proc},
		veths:      map[int]watcher.HostVeth{},
		containers: map[string]*container{},
		sandboxes:  map[uint64]*sandbox{},
		adopted:    make(chan struct{}),
		ready:      make(chan struct{}),
		ended:      make(chan struct{}),
		reload:     make(chan struct{}, 1),
		asked:      make(chan chan struct{}),
		metrics:    newMetrics(),
	}
	var err error
	if c.host, err = c.files.host(); err != nil {
		return nil, fmt.Errorf("read counters of network namespaces: %w", err)
	}
	return c, nil
}

// Metrics returns the controller's own metrics.
func (c *Controller) Metrics() []prometheus.Collector { return c.metrics.all() }

// Ready is closed when the first look at everything is done.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Adopted is closed when all that an earlier process counted is known again: totals
// that are read before would be too low.
func (c *Controller) Adopted() <-chan struct{} { return c.adopted }

// Reload makes the controller act on changed settings soon.
func (c *Controller) Reload() {
	select {
	case c.reload <- struct{}{}:
	default:
	}
}

// Refresh reads the files now, unless that was done a moment ago. It returns when it is
// done, or cannot be since ctx or Run has ended.
func (c *Controller) Refresh(ctx context.Context) {
	done := make(chan struct{})
	select {
	case c.asked <- done:
	case <-c.ended:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-c.ended:
	case <-ctx.Done():
	}
}

// Snapshot returns the accounts as of the last time that the files were read, and when that
// was. It reads no files, and waits while they are read.
func (c *Controller) Snapshot() usage.Snapshot {
	c.reading.RLock()
	defer c.reading.RUnlock()
	snap := c.Accounts.Snapshot()
	snap.ReadAt = c.polled
	return snap
}

// Run acts on events and reads the files until ctx ends.
func (c *Controller) Run(ctx context.Context, events <-chan watcher.Event) error {
	defer close(c.ended)
	c.reconcile()
	c.began = time.Now()
	close(c.adopted)
	close(c.ready)

	reconcile := time.NewTimer(c.Settings().Reconcile)
	defer reconcile.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
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
		case done := <-c.asked:
			if time.Since(c.polled) >= atMostEvery {
				c.pollAll()
			}
			close(done)
		case <-poll.C:
			c.pollAll()
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
		c.vethSeen(e.HostVeth)
	case watcher.HostVethGone:
		delete(c.veths, e.Index)
		for _, box := range c.sandboxes {
			if box.leadsTo(e.Index) {
				c.poll(box) // it went, and not the namespace
			}
		}
	case watcher.ContainerStarted:
		c.containerStarted(e.Container)
	case watcher.ContainerStopped:
		c.containerStopped(e.ID)
	case watcher.Overflowed:
		c.metrics.overflows.WithLabelValues(e.Source).Inc()
		c.Log.Warn("events were lost; looking at everything", "source", e.Source)
		c.reconcile()
	}
}

// vethSeen notes a host veth, and looks at the namespaces that may have waited for it.
func (c *Controller) vethSeen(v watcher.HostVeth) {
	known, ok := c.veths[v.Index]
	if ok && v.NetNSID < 0 {
		v.NetNSID = known.NetNSID // the peer is back, to be removed
	}
	c.veths[v.Index] = v
	if ok && known.Name != v.Name {
		c.Accounts.Show(usage.OnHost(v.Index), usage.Shown{HostInterface: v.Name, Hook: Hook})
	}
	if ok && known == v {
		return
	}
	for _, box := range c.sandboxes {
		if box.pending() {
			c.poll(box)
		}
	}
}

// reconcile looks at everything and acts on what no event told.
func (c *Controller) reconcile() {
	found, err := c.Host.HostVeths()
	if err != nil {
		// Incomplete: nothing is taken as gone because it is not in there.
		c.Log.Warn("list links", "err", err)
	} else {
		clear(c.veths)
	}
	for _, v := range found {
		c.veths[v.Index] = v
	}
	c.reconcileContainers()
	c.pollAll()
	for _, id := range c.Accounts.Expire() {
		c.Names.Forget(id)
	}
}

func (c *Controller) reconcileContainers() {
	found, err := c.Host.Containers()
	if err != nil {
		c.Log.Warn("list containers", "err", err)
		return
	}
	there := make(map[string]bool, len(found))
	for _, known := range found {
		there[known.ID] = true
		c.containerStarted(known)
	}
	for id, known := range c.containers {
		switch {
		case !there[id], !c.Settings().Container(known.Container):
			c.containerStopped(id)
		case known.reason != usage.Accounted:
			c.resolve(known)
		}
	}
	c.stopUnseen()
}

// stopUnseen ends the containers of an earlier process that are not there any more. Those
// in a directory that can't be read may be: it is for the kernel to say that they have gone.
func (c *Controller) stopUnseen() {
	for id, cgroup := range c.Accounts.Running() {
		if c.containers[id] == nil && !c.outOfSight(id, cgroup) {
			c.Accounts.Stop(id)
		}
	}
}

// outOfSight reports whether a container that was not listed may be there and is to be known.
func (c *Controller) outOfSight(id, cgroup string) bool {
	return c.Host.Missed(id, cgroup) && c.Settings().Container(watcher.Container{ID: id, Cgroup: cgroup})
}

// pollAll reads the files of every namespace.
func (c *Controller) pollAll() {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.polled = time.Now()
	for _, box := range c.sandboxes {
		c.poll(box)
	}
	c.metrics.poll.Observe(time.Since(c.polled).Seconds())
}
