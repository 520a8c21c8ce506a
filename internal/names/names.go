// SPDX-License-Identifier: Apache-2.0

// Package names gives containers the names and labels that people know them
// by, as far as a container runtime tells. Accounting needs none of it: while
// a runtime is away, hangs or lies, names are late or missing and nothing else
// is.
//
// Runtimes are asked over their sockets: Docker and podman by Docker's API,
// those of Kubernetes by CRI. Each socket is a source of its own, which no
// other waits for.
package names

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// ErrAbsent is returned where a runtime is looked for in the usual places and
// is in none of them: most likely the host has another one.
var ErrAbsent = errors.New("no runtime found")

// Meta is what a runtime tells about a container. The texts are valid UTF-8,
// without control characters and cut to a length that a label can have.
type Meta struct {
	Name        string            // without Docker's leading slash; a pod's sandbox has the pod's; "" if it has none
	Image       string            // as first seen: it stays when its tag moves on; "" for a pod's sandbox
	NetworkMode string            // "bridge", "host", "none", "container", "pod" or a network's name
	Runtime     string            // "docker", "podman", "containerd", "crio" or what another calls itself
	Namespace   string            // of Kubernetes
	Pod         string            // name of the pod, in Kubernetes or podman
	Labels      map[string]string // those on the allow-list that it or else its pod has
}

// Options says where names come from.
type Options struct {
	// Docker, Podman and CRI are each "off", a socket as "unix:///path", or
	// "auto": the usual sockets, looked for until they exist. What two of them
	// claim to know is told by the first.
	Docker, Podman, CRI string

	// Labels returns the names of the labels to keep; nil keeps none. A change
	// reaches a container when it is next asked for, and so at most half a
	// minute later. It is called from several goroutines.
	Labels func() []string

	Log *slog.Logger
}

// How runtimes are asked.
const (
	refreshEvery = 30 * time.Second
	answerWithin = 5 * time.Second
	retryFirst   = time.Second
	retryLast    = 10 * time.Second

	// missesMax is how many answers without a container end the asking: it is
	// removed, or another runtime's.
	missesMax = 6
)

// missedAgain is how long after an answer without a container it is asked for again: a
// runtime may list it late, as containerd does a pod's sandbox, some 100 ms after its
// cgroup. After the last of these it is left to the refreshes.
var missedAgain = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond, 5 * time.Second}

// Resolver keeps what runtimes tell about the containers its owner wants. It
// holds nothing else, so its memory is bounded by what is wanted and not yet
// forgotten. It is safe for concurrent use.
type Resolver struct {
	options Options
	sources []*source // the earlier are believed first

	refreshEvery, answerWithin, retryFirst time.Duration

	mu     sync.Mutex // guards what follows, and what each source has pending or missed
	wanted map[string]*entry
}

// entry is one wanted container.
type entry struct {
	replies []reply // by the rank of the source
}

// reply is what a source told of a container.
type reply struct {
	meta   *Meta // nil if it never knew it; never changed
	misses int   // answers without the container since it was last told or wanted
}

// before returns what is believed of what sources of a lower rank told.
func (e *entry) before(rank int) *Meta {
	for _, a := range e.replies[:rank] {
		if a.meta != nil {
			return a.meta
		}
	}
	return nil
}

// New returns a Resolver that knows nothing until Run runs.
func New(options Options) *Resolver {
	if options.Labels == nil {
		options.Labels = func() []string { return nil }
	}
	r := &Resolver{
		options:      options,
		refreshEvery: refreshEvery,
		answerWithin: answerWithin,
		retryFirst:   retryFirst,
		wanted:       make(map[string]*entry),
	}
	for _, k := range kinds {
		r.addSources(k, k.setting(options))
	}
	return r
}

// Run keeps what is wanted up to date until ctx ends, and then returns nil.
// Troubles of a runtime are logged when they begin and when they are over. One
// request and one stream of events are open at a time for each socket. Run it
// once.
func (r *Resolver) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, s := range r.sources {
		running.Go(func() { s.run(ctx) })
	}
	running.Wait()
	return nil
}

// Want asks for a container, soon and from then on, until it is forgotten. Call
// it for every start: a container that was removed, or that no runtime knew, is
// asked for again. An id that none of the runtimes can have given is ignored.
// It does not block.
func (r *Resolver) Want(id string) {
	if !isID(id) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.wanted[id]
	if !ok {
		e = &entry{replies: make([]reply, len(r.sources))}
		r.wanted[id] = e
	}
	for _, s := range r.sources {
		e.replies[s.rank].misses = 0
		s.ask(id, e)
	}
}

// Forget drops a container. Without it a wanted one is kept for good, also when
// the runtime has removed it: its last name is still of use.
func (r *Resolver) Forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.wanted, id)
	for _, s := range r.sources {
		delete(s.pending, id)
		delete(s.missed, id)
	}
}

// Lookup returns what was last told about a wanted container, and false if that
// is nothing yet. The result belongs to the caller. It does not block.
func (r *Resolver) Lookup(id string) (Meta, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.wanted[id]
	if !ok {
		return Meta{}, false
	}
	told := e.before(len(e.replies))
	if told == nil {
		return Meta{}, false
	}
	meta := *told
	meta.Labels = maps.Clone(meta.Labels)
	return meta, true
}
