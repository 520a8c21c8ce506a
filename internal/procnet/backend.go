// SPDX-License-Identifier: Apache-2.0

// Package procnet counts containers by the kernel's own files, where no program may be
// loaded: /proc/<pid>/net has for each network namespace what its interfaces, its TCP and
// its IPv6 have counted.
//
// It needs no capability. What it can tell is less than the classifiers can, and it is as
// new as the last look: docs/METRICS.md says what each number means.
package procnet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// Hook is how interfaces are counted here, as metrics and JSON call it.
const Hook = "proc"

const (
	// pollEvery is how often the files are read. What passes between the last time and the
	// end of a container without a host veth is lost.
	pollEvery = 5 * time.Second
	// atMostEvery bounds the readings for those who ask for numbers. It is less than the second
	// after which a viewer asks again, since that is a bit more or less.
	atMostEvery = 800 * time.Millisecond
)

// host is what the backend sees of the host: *watcher.Watcher.
type host interface {
	HostVeths() ([]watcher.HostVeth, error)
	Processes(watcher.Container) []int
	Tasks(watcher.Container) (ids []int, all bool)
	Kernel(watcher.Container) watcher.Kernel
	Aside(task int) bool
	NamespaceNumber(pid int) (int, error)
	Counters(ifindex int, asked func()) (watcher.LinkCounters, error)
}

// Options are what the backend works with.
type Options struct {
	Host     host
	Datapath *Datapath // the one of Accounts
	Accounts *usage.Accounts
	// Interface reports whether to count a host interface. It is called at every use.
	Interface func(name string) bool
	// Requests says that [Backend.CountSYN] is told what host veths pass: then connections are
	// counted from the files only where a container has no host veth.
	Requests bool
	// TCP says to count what becomes of the connections of containers that have their namespace to
	// themselves.
	TCP bool
	Log *slog.Logger
	// Proc is where the host's procfs is mounted, "" for /proc. The network namespace that
	// it shows for its reader is the host's.
	Proc string
}

// Backend counts for a roster. Only Run, Refresh, Snapshot, CountSYN, Adopted and Metrics may be called
// from other goroutines than the roster's.
type Backend struct {
	Options
	files files

	host    uint64       // the number of the host's namespace
	began   time.Time    // zero until all that was there before us is known
	reading sync.RWMutex // held while the files of all are read; guards polled
	polled  time.Time
	veths   map[int]watcher.HostVeth
	members map[roster.Key]roster.Member
	inside  map[string]int        // how many members are inside of a container
	in      map[roster.Key]uint64 // the namespaces that members were located in last
	spaces  map[uint64]*space     // by the number of the namespace

	adopted chan struct{}
	ended   chan struct{}
	asked   chan chan struct{}
	poll    prometheus.Histogram
}

var _ roster.Backend[int] = (*Backend)(nil)

// New returns a backend. It starts nothing.
//
// Returns an error if the files can't be read: no procfs is mounted.
func New(o Options) (*Backend, error) {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	b := &Backend{
		Options: o,
		files:   files{o.Proc},
		veths:   map[int]watcher.HostVeth{},
		members: map[roster.Key]roster.Member{},
		inside:  map[string]int{},
		in:      map[roster.Key]uint64{},
		spaces:  map[uint64]*space{},
		adopted: make(chan struct{}),
		ended:   make(chan struct{}),
		asked:   make(chan chan struct{}),
		poll: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "nettally_proc_poll_seconds",
			Help:    "Time to read the kernel's files of all network namespaces once.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12),
		}),
	}
	var err error
	if b.host, err = b.files.host(); err != nil {
		return nil, fmt.Errorf("read counters of network namespaces: %w", err)
	}
	return b, nil
}

// Metrics returns the backend's own metrics.
func (b *Backend) Metrics() []prometheus.Collector { return []prometheus.Collector{b.poll} }

// Adopted is closed when all that an earlier process counted is known again: totals
// that are read before would be too low.
func (b *Backend) Adopted() <-chan struct{} { return b.adopted }

// Refresh reads the files now, unless that was done a moment ago. It returns when it is
// done, or cannot be since ctx or Run has ended.
func (b *Backend) Refresh(ctx context.Context) {
	done := make(chan struct{})
	select {
	case b.asked <- done:
	case <-b.ended:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-b.ended:
	case <-ctx.Done():
	}
}

// Snapshot returns the accounts as of the last time that the files were read, and when that
// was. It reads no files, and waits while they are read.
func (b *Backend) Snapshot() usage.Snapshot {
	b.reading.RLock()
	defer b.reading.RUnlock()
	snap := b.Accounts.Snapshot()
	snap.ReadAt = b.polled
	return snap
}

// Changing is [usage.Reader.Changing] as Snapshot is [usage.Accounts.Snapshot].
func (b *Backend) Changing(r *usage.Reader, all bool) usage.Snapshot {
	b.reading.RLock()
	defer b.reading.RUnlock()
	snap := r.Changing(all)
	snap.ReadAt = b.polled
	return snap
}

// Adopt implements [roster.Backend]. What was counted before is in the ledger, and found
// when a namespace is counted for the first time.
func (b *Backend) Adopt(context.Context) {}

// Run implements [roster.Backend]: it has the files read every 5 s, and when somebody asks.
func (b *Backend) Run(ctx context.Context, do chan<- func() []roster.Hint) {
	defer close(b.ended)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var work func() []roster.Hint
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			work = b.pollAll
		case done := <-b.asked:
			work = func() (hints []roster.Hint) {
				if time.Since(b.polled) >= atMostEvery {
					hints = b.pollAll()
				}
				close(done)
				return hints
			}
		}
		select {
		case <-ctx.Done():
			return
		case do <- work:
		}
	}
}

// Update implements [roster.Backend].
func (b *Backend) Update(m roster.Member) {
	_, known := b.members[m.Key]
	if m.Ended {
		delete(b.members, m.Key)
		delete(b.in, m.Key)
		if outer := m.Found.ParentID; known {
			if b.inside[outer]--; b.inside[outer] == 0 {
				delete(b.inside, outer)
			}
		}
		return
	}
	b.members[m.Key] = m
	if !known {
		b.inside[m.Found.ParentID]++
	}
	if s := b.spaces[b.in[m.Key]]; s != nil && s.owner.Key == m.Key {
		b.countTCP(s) // it may be alone there from now on, or not any more
	}
}

// Link implements [roster.Backend].
func (b *Backend) Link(e watcher.Event) (hints []roster.Hint) {
	switch e := e.(type) {
	case watcher.HostVethSeen:
		return b.vethSeen(e.HostVeth)
	case watcher.HostVethGone:
		delete(b.veths, e.Index)
		for _, s := range b.spaces {
			if s.leadsTo(e.Index) {
				hints = append(hints, b.pollSpace(s)...) // it went, and not the namespace
			}
		}
	}
	return hints
}

// vethSeen notes a host veth, and hints at the namespaces that may have waited for it.
func (b *Backend) vethSeen(v watcher.HostVeth) (hints []roster.Hint) {
	known, ok := b.veths[v.Index]
	if ok && v.NetNSID < 0 {
		v.NetNSID = known.NetNSID // the peer is back, to be removed
	}
	b.veths[v.Index] = v
	if ok && known.Name != v.Name {
		b.Accounts.Show(usage.OnHost(v.Index), usage.Shown{HostInterface: v.Name, Hook: Hook})
	}
	if ok && known == v {
		return nil
	}
	for _, s := range b.spaces {
		if s.pending() {
			hints = append(hints, roster.Hint{Key: s.owner.Key})
		}
	}
	return hints
}

// Relist implements [roster.Backend].
func (b *Backend) Relist() []roster.Hint {
	found, err := b.Host.HostVeths()
	if err != nil {
		// Incomplete: nothing is taken as gone because it is not in there.
		b.Log.Warn("could not list links", "err", err)
	} else {
		clear(b.veths)
	}
	for _, v := range found {
		b.veths[v.Index] = v
	}
	return nil
}

// Reconcile implements [roster.Backend].
func (b *Backend) Reconcile(there func(roster.Key) bool) []roster.Hint {
	hints := b.pollAll()
	if there != nil && b.began.IsZero() {
		b.began = time.Now()
		close(b.adopted)
	}
	return hints
}

// Release implements [roster.Backend]. Nothing is held: a namespace can't be entered here.
func (b *Backend) Release(roster.Key) {}
