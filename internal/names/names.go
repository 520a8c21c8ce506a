// SPDX-License-Identifier: Apache-2.0

// Package names gives containers the names and labels that people know them
// by, as far as a container runtime tells. Accounting needs none of it: while
// the runtime is away, hangs or lies, names are late or missing and nothing
// else is.
//
// The runtime is Docker, asked over its socket.
package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// ErrNoSocket is returned where the runtime's socket is looked for in the usual
// places and is in none of them: most likely the host runs another runtime.
var ErrNoSocket = errors.New("no socket found")

// Meta is what a runtime tells about a container. The texts are valid UTF-8,
// without control characters and cut to a length that a label can have.
type Meta struct {
	Name        string            // without Docker's leading slash; "" if it has none
	Image       string            // as first seen: it stays when its tag moves on
	NetworkMode string            // "bridge", "host", "none", "container" or a network's name
	Runtime     string            // "docker", or "podman" where that answers on Docker's socket
	Namespace   string            // Kubernetes namespace, where Docker runs its pods
	Pod         string            // Kubernetes pod name
	Labels      map[string]string // those on the allow-list that it has
}

// Options says where names come from.
type Options struct {
	// Docker is "off", the socket as "unix:///path", or "auto": the first of
	// the usual sockets that exists, looked for until there is one.
	Docker string

	// Labels returns the names of the labels to keep; nil keeps none. A change
	// reaches a container when it is next asked for, and so at most half a
	// minute later. It is called from Run's goroutine.
	Labels func() []string

	Log *slog.Logger
}

// How the runtime is asked.
const (
	refreshEvery = 30 * time.Second
	answerWithin = 5 * time.Second
	retryFirst   = time.Second
	retryLast    = 10 * time.Second

	// batch is how many containers one request asks for.
	batch = 32

	// missesMax is how many answers without a container end the asking: it is
	// removed, or another runtime's.
	missesMax = 3
)

// Resolver keeps what the runtime tells about the containers its owner wants.
// It holds nothing else, so its memory is bounded by what is wanted and not yet
// forgotten. It is safe for concurrent use.
type Resolver struct {
	options Options
	log     *slog.Logger
	sockets []string // the usual ones

	refreshEvery, answerWithin, retryFirst time.Duration

	wake  chan struct{} // holds a token while pending may have grown
	state state         // belongs to Run

	mu      sync.Mutex // guards what follows
	wanted  map[string]*entry
	pending map[string]struct{} // ids in wanted to ask for next
}

// entry is one wanted container.
type entry struct {
	meta   Meta
	known  bool // meta was told, though perhaps long ago
	misses int  // answers without it since it was last told or wanted
}

// New returns a Resolver that knows nothing until Run runs.
func New(options Options) *Resolver {
	if options.Labels == nil {
		options.Labels = func() []string { return nil }
	}
	return &Resolver{
		options:      options,
		log:          options.Log.With("source", "docker"),
		sockets:      []string{"/run/docker.sock", "/var/run/docker.sock"},
		refreshEvery: refreshEvery,
		answerWithin: answerWithin,
		retryFirst:   retryFirst,
		wake:         make(chan struct{}, 1),
		wanted:       make(map[string]*entry),
		pending:      make(map[string]struct{}),
	}
}

// Want asks for a container, soon and from then on, until it is forgotten. Call
// it for every start: a container that was removed, or that the runtime did not
// know, is asked for again. An id that Docker cannot have given is ignored. It
// does not block.
func (r *Resolver) Want(id string) {
	if !isDockerID(id) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.wanted[id]
	if !ok {
		e = &entry{}
		r.wanted[id] = e
	}
	e.misses = 0
	r.ask(id)
}

// ask makes Run ask for an id. The caller holds mu.
func (r *Resolver) ask(id string) {
	r.pending[id] = struct{}{}
	select {
	case r.wake <- struct{}{}:
	default: // a token is waiting already
	}
}

// Forget drops a container. Without it a wanted one is kept for good, also when
// the runtime has removed it: its last name is still of use.
func (r *Resolver) Forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.wanted, id)
	delete(r.pending, id)
}

// Lookup returns what was last told about a wanted container, and false if that
// is nothing yet. The result belongs to the caller. It does not block.
func (r *Resolver) Lookup(id string) (Meta, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.wanted[id]
	if !ok || !e.known {
		return Meta{}, false
	}
	meta := e.meta
	meta.Labels = maps.Clone(meta.Labels)
	return meta, true
}

// Probe connects to the runtime and says which one answers and where, or why
// none does: an error wrapping [ErrNoSocket] if "auto" finds no socket, or
// fs.ErrNotExist if the configured one is missing. It needs no Run.
func (r *Resolver) Probe(ctx context.Context) (string, error) {
	if r.options.Docker == "off" {
		return "docker: off", nil
	}
	d, err := r.connect(ctx)
	if err != nil {
		return "", err
	}
	defer d.close()
	return fmt.Sprintf("%s %s (API %s) at %s", d.runtime, d.version, d.client.ClientVersion(), d.address), nil
}

// askAll makes Run ask for every wanted container that is worth it.
func (r *Resolver) askAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, e := range r.wanted {
		if e.misses < missesMax {
			r.ask(id)
		}
	}
}

// renamed has a container asked for if it is wanted.
func (r *Resolver) renamed(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.wanted[id]; ok {
		r.ask(id)
	}
}

// take removes at most a batch of ids from those to ask for.
func (r *Resolver) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id := range r.pending {
		if len(ids) == batch {
			break
		}
		ids = append(ids, id)
		delete(r.pending, id)
	}
	return ids
}

// store keeps the answer for the ids that were asked for.
func (r *Resolver) store(ids []string, told map[string]Meta) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		e, ok := r.wanted[id]
		if !ok {
			continue // forgotten meanwhile
		}
		meta, ok := told[id]
		if !ok {
			e.misses++
			continue
		}
		*e = entry{meta: merge(e.meta, meta), known: true}
	}
}

// giveUp stops asking for an id until it is wanted again.
func (r *Resolver) giveUp(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.wanted[id]; ok {
		e.misses = missesMax
	}
}

// merge returns new with what it should keep of old. Docker takes the name away
// before it removes a container, and shows an image by its hash once the tag
// has moved to another one.
func merge(old, new Meta) Meta {
	if new.Name == "" {
		new.Name = old.Name
	}
	if old.Image != "" {
		new.Image = old.Image
	}
	return new
}
