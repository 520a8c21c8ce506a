// SPDX-License-Identifier: Apache-2.0

// Package roster keeps the roster of the host: the containers, the network namespaces
// they are in, and which container owns the interfaces of each.
//
// One goroutine owns that state. How a namespace is counted is a [Backend]'s business.
// Events are the fast way; a reconcile that looks at everything repairs whatever they
// missed, so the order in which they come does not matter.
package roster

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// listAgainAfter is the pause while the containers could not be listed once.
const listAgainAfter = time.Second

// accounts are the accounts of the containers: *usage.Accounts.
type accounts interface {
	Start(usage.Container)
	Explain(id string, reason usage.Reason)
	Share(id, owner string)
	RunsOn(id, kernel string)
	Stop(id string)
	Running() map[string]string
	Expire() []string
}

// names finds names for containers: *names.Resolver.
type names interface {
	Want(id string)
	Forget(id string)
}

// Settings are the part of the configuration that may change while the roster runs.
type Settings struct {
	Container func(watcher.Container) bool // whether to know a container
	Reconcile time.Duration                // between two looks at everything
}

// Options are what a roster works with. All are needed.
type Options[F any] struct {
	// Containers lists the containers that are there: (*watcher.Watcher).Containers.
	Containers func() ([]watcher.Container, error)
	// Missed reports whether a container that was not listed may be there all the same:
	// (*watcher.Watcher).Missed.
	Missed   func(id, cgroup string) bool
	Backend  Backend[F]
	Accounts accounts
	Names    names
	// Settings is called at every use; the value is not kept.
	Settings func() Settings
	Log      *slog.Logger
}

// Roster knows which containers are there. Run it once.
type Roster[F any] struct {
	Options[F]
	members  map[Key]*member
	spaces   map[uint64]*space // by Space.ID
	inside   map[Key]int       // how many members are right inside of a container
	users    map[string]int    // how many members a user has
	excluded map[Key]bool      // containers that were members, and that the settings leave out since
	hidden   map[Key]bool      // containers of an earlier process, in directories that can't be read
	// The looks that are planned at root's members, and at users'.
	rootLooks, userLooks agenda
	// first holds where the namespaces are until all containers have been listed once: the
	// owner that one had before this process began may be the last in the list. Nil then.
	first map[uint64]Location[F]

	listing *listing // nil unless the containers are being listed
	lists   sync.WaitGroup
	listed  chan list

	reload    chan struct{}
	reloaded  bool // the settings have changed since everybody was looked at
	ready     chan struct{}
	overflows *prometheus.CounterVec
}

// member is a container that is there.
type member struct {
	Member
	made  time.Time // its cgroup; with a monotonic reading
	space *space    // nil until it is known to be in one of its own
	// excluded: it was, a moment ago. What passed meanwhile is none of its.
	excluded bool
	// fresh: it began while we ran, and no reconcile has looked at it. Its first processes may
	// have become others by then, as those of gVisor do.
	fresh bool
	look  plan

	astray time.Time      // its processes have been in several namespaces, or in the host's, since then
	spread watcher.Spread // of its processes, where that is confirmed
}

// space is a network namespace with the members in it.
type space struct {
	Space
	members map[Key]*member
	owner   *member
	left    time.Time // the owner before this one; zero if there was none
	given   bool      // it had an interface that leads to the host, at the last look
}

// New returns a roster that knows nobody. It starts nothing.
func New[F any](o Options[F]) *Roster[F] {
	r := &Roster[F]{
		Options:  o,
		members:  map[Key]*member{},
		spaces:   map[uint64]*space{},
		inside:   map[Key]int{},
		users:    map[string]int{},
		hidden:   map[Key]bool{},
		excluded: map[Key]bool{},
		first:    map[uint64]Location[F]{},
		listed:   make(chan list, 1),
		reload:   make(chan struct{}, 1),
		ready:    make(chan struct{}),
		overflows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nettally_watch_overflows_total",
			Help: "Times that the kernel dropped events, each followed by a look at everything.",
		}, []string{"source"}),
	}
	for _, source := range []string{"inotify", "netlink"} {
		r.overflows.WithLabelValues(source)
	}
	return r
}

// Metrics returns the roster's own metrics.
func (r *Roster[F]) Metrics() []prometheus.Collector { return []prometheus.Collector{r.overflows} }

// Ready is closed once all containers have been listed and looked at.
func (r *Roster[F]) Ready() <-chan struct{} { return r.ready }

// Reload makes the roster look at everything soon, by the settings in force.
func (r *Roster[F]) Reload() {
	select {
	case r.reload <- struct{}{}:
	default:
	}
}

// Run acts on events until the context ends or the events do. When it returns, the
// backend's Run has returned. What the backend put into the kernel stays.
func (r *Roster[F]) Run(ctx context.Context, events <-chan watcher.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	var backend sync.WaitGroup
	defer backend.Wait()
	defer r.lists.Wait()
	defer cancel()
	do := make(chan func() []Hint)
	backend.Go(func() { r.Backend.Run(ctx, do) })

	r.Backend.Adopt(ctx)
	r.reconcile(r.list())
	reconcile := time.NewTimer(r.pause())
	defer reconcile.Stop()
	for {
		again, stop := firstDue(r.rootLooks, r.userLooks)
		select {
		case <-ctx.Done():
			stop()
			return nil
		case e, ok := <-events:
			if !ok {
				stop()
				return nil
			}
			r.handle(e)
		case work := <-do:
			r.follow(work())
		case <-again:
			r.lookAgain()
		case <-r.reload:
			r.reloaded = true
			reconcile.Reset(0)
		case <-reconcile.C:
			r.startListing()
		case l := <-r.listed:
			r.reconcile(l)
			reconcile.Reset(r.pause())
		}
		stop()
	}
}

// pause is the time until the next reconcile. Without a first list nothing is counted.
func (r *Roster[F]) pause() time.Duration {
	if r.first != nil {
		return listAgainAfter
	}
	return r.Settings().Reconcile
}

func (r *Roster[F]) handle(e watcher.Event) {
	switch e := e.(type) {
	case watcher.ContainerStarted:
		r.started(e.Container)
	case watcher.ContainerStopped:
		// Two cgroups may have the same id, which is a name then.
		if m := r.members[Key{ID: e.ID}]; m != nil && m.Found.Cgroup == e.Cgroup {
			r.stopped(m)
		}
	case watcher.Overflowed:
		r.overflows.WithLabelValues(e.Source).Inc()
		r.Log.Warn("events were lost; looking at everything", "source", e.Source)
		r.startListing()
	default:
		r.follow(r.Backend.Link(e))
	}
}

// reconcile looks at everything and repairs whatever no event told of.
func (r *Roster[F]) reconcile(l list) {
	r.follow(r.Backend.Relist())
	var there func(Key) bool
	if r.relist(l) {
		there = r.there
	}
	all := r.reloaded
	r.reloaded = false
	for _, m := range r.members {
		if all || m.fresh || m.Reason != usage.Accounted || m.doubtful() || r.Backend.Strays(m.Member, m.at()) {
			r.look(m)
		}
		m.fresh = false
	}
	r.follow(r.Backend.Reconcile(there))
	for _, id := range r.Accounts.Expire() {
		r.Names.Forget(id)
	}
}

// there reports whether a container is there, or may be.
func (r *Roster[F]) there(k Key) bool { return r.members[k] != nil || r.hidden[k] }

// stopUnseen ends the accounts of containers of an earlier process that are not there any
// more. Those in a directory that can't be read may be: only the kernel's word that they
// have gone ends them.
func (r *Roster[F]) stopUnseen() {
	clear(r.hidden)
	for id, cgroup := range r.Accounts.Running() {
		key := Key{ID: id}
		switch {
		case r.members[key] != nil:
		case r.Missed(id, cgroup) && r.Settings().Container(watcher.Container{ID: id, Cgroup: cgroup}):
			r.hidden[key] = true
		default:
			r.Accounts.Stop(id)
		}
	}
}

// complete ends the first listing: owners are known now.
func (r *Roster[F]) complete() {
	if r.first == nil {
		return
	}
	first := r.first
	r.first = nil
	for id, at := range first {
		if box := r.spaces[id]; box != nil {
			r.count(box, at)
		}
	}
	close(r.ready)
}
