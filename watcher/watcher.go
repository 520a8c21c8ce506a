// SPDX-License-Identifier: Apache-2.0

// Package watcher says which containers and which host veths exist, which
// container owns which interface, and when that changes.
//
// It knows containers from the paths of their cgroups and asks no runtime. Three
// sources heal one another: inotify on the cgroup directories, rtnetlink's link
// events, and the full lists that the caller asks for from time to time.
package watcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Options say what to watch. The zero value is the host as a service sees it.
type Options struct {
	// CgroupRoot is a cgroup hierarchy, a directory of one, or where the
	// hierarchies are mounted; "" is /sys/fs/cgroup.
	CgroupRoot string

	// Patterns find containers that [Identify] does not know by itself: regular
	// expressions with a group named id and optionally one named runtime.
	Patterns []string

	// NetNS is an open file of the host's network namespace, 0 for the process's
	// own. New duplicates it.
	NetNS int

	Proc string       // where the host's procfs is mounted, "" is /proc
	Log  *slog.Logger // nil is slog.Default()
}

// Container is a container as its cgroup shows it.
type Container struct {
	// ID is full, as in the path, after the scope of a container that is not in the
	// scope of root's runtimes: "1000~web" is what user 1000 calls web. An id has no ~.
	ID       string
	ParentID string // the container around it, or ""
	Runtime  string // "docker", "containerd", "crio", "podman", "ecs", "lxc", "nspawn", a pattern's, or "" where the path does not say
	PodUID   string // the Kubernetes pod's, or ""
	Cgroup   string // path within the hierarchy, "/docker/<id>"

	// CreatedAt is when the cgroup was made, as far as the kernel remembers: under
	// memory pressure it forgets, and the time is later then. [Identify] leaves it
	// zero.
	CreatedAt time.Time
}

// HostVeth is a veth in the host's namespace whose other end is in another one, or soon
// will be: a port of a bridge whose other end is still in the host's namespace, too.
type HostVeth struct {
	Index     int
	Name      string
	PeerIndex int // of the other end, in its own namespace
	NetNSID   int // the other end's namespace, as the host's one numbers it; -1 for the host's
}

// Event is one of [ContainerStarted], [ContainerStopped], [HostVethSeen],
// [HostVethGone], [LinkMoved], [NamespaceGone] and [Overflowed].
type Event interface{ event() }

// ContainerStarted says that a container's cgroup exists. There may be no process
// in it yet, or one that is still in the host's network namespace.
type ContainerStarted struct{ Container }

// ContainerStopped says that a container's cgroup is gone. Its veth may go before
// or after.
type ContainerStopped struct{ ID, Cgroup string }

// HostVethSeen says that a host veth is new or changed. The peer end that a runtime
// makes in the host's namespace is none.
type HostVethSeen struct {
	HostVeth
	SeenAt time.Time
}

// HostVethGone says that a host veth was removed, or moved elsewhere.
type HostVethGone struct {
	Index  int
	Moved  bool // it lives on in another namespace
	SeenAt time.Time
}

// LinkMoved says that a link other than a veth has moved from the host's namespace to
// another one, such as the macvlan of a container that starts.
type LinkMoved struct {
	NetNSID int // that namespace, as the host's one numbers it
}

// NamespaceGone says that a network namespace that the host's one had a number for has
// ended, with all interfaces in it but the physical ones. The number may be another's soon.
type NamespaceGone struct{ NetNSID int }

// Overflowed says that events were lost. The differences that the watcher found
// by listing anew come before it; what began and ended meanwhile stays unknown.
type Overflowed struct{ Source string } // "inotify" or "netlink"

func (ContainerStarted) event() {}
func (ContainerStopped) event() {}
func (HostVethSeen) event()     {}
func (HostVethGone) event()     {}
func (LinkMoved) event()        {}
func (NamespaceGone) event()    {}
func (Overflowed) event()       {}

// Watcher watches one host.
//
// All methods but Close are safe for concurrent use, also from the goroutine that
// receives the events. Nothing outlives the process.
type Watcher struct {
	log      *slog.Logger
	proc     string
	netns    int // owned; 0: the process's own
	host     namespaceID
	layout   Layout
	kind     int64 // of the filesystem that its root is on
	patterns []*regexp.Regexp

	changed       chan struct{} // wakes Run after Containers has found changes
	rescanEvery   time.Duration
	receiveBuffer int
	maxTasks      int
	borrow        func(pid int, file string, in func(netns int) bool) (fd int, err error)

	skips   *skips
	stats   stats
	statsIn stats // of other namespaces: who asks for many holds up nobody

	mu       sync.Mutex // guards what follows
	tree     *tree      // nil unless Run runs
	degraded map[string]error
	lost     error     // why the hierarchy is, nil while it is there
	rescans  time.Time // not before
}

// rescanEvery is how often containers are looked for in closed directories, and everywhere
// while inotify is missing.
const rescanEvery = 2 * time.Second

// New finds the cgroup hierarchy and checks that it is the host's: the error may
// be [ErrCgroupNamespace] or [ErrNoCgroups]. A hierarchy given by CgroupRoot is
// taken as it is. New starts nothing; Close gives its descriptors back.
func New(o Options) (*Watcher, error) {
	w := &Watcher{
		log:           o.Log,
		proc:          o.Proc,
		changed:       make(chan struct{}, 1),
		rescanEvery:   rescanEvery,
		receiveBuffer: receiveBuffer,
		maxTasks:      maxTasks,
		borrow:        queueOf,
		degraded:      map[string]error{},
	}
	if w.log == nil {
		w.log = slog.Default()
	}
	if w.proc == "" {
		w.proc = "/proc"
	}
	w.skips = newSkips(w.log)
	var err error
	if w.patterns, err = compilePatterns(o.Patterns); err != nil {
		return nil, err
	}
	if o.CgroupRoot == "" {
		if err := checkNamespace(w.proc); err != nil {
			return nil, fmt.Errorf("find cgroups: %w", err)
		}
	}
	if w.layout, err = findLayout(w.proc, o.CgroupRoot); err != nil {
		return nil, err
	}
	if w.kind, err = filesystem(w.layout.Root); err != nil {
		return nil, fmt.Errorf("look at cgroup root %s: %w", w.layout.Root, err)
	}
	if err := w.openHost(o.NetNS); err != nil {
		return nil, fmt.Errorf("open host network namespace: %w", err)
	}
	return w, nil
}

// openHost keeps the host's namespace at hand, and its identity.
func (w *Watcher) openHost(fd int) error {
	if fd == 0 {
		var err error
		w.host, err = namespaceAt(filepath.Join(w.proc, "self/ns/net"))
		return err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	if w.host, err = namespaceOf(own); err != nil {
		return errors.Join(err, unix.Close(own))
	}
	w.netns = own
	return nil
}

// Close releases the host's namespace and the socket for counters. It must not run
// beside another method, and no other one may follow.
func (w *Watcher) Close() error {
	err := errors.Join(w.stats.close(), w.statsIn.close())
	if w.netns == 0 {
		return err
	}
	fd := w.netns
	w.netns = 0
	return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
}

// Layout says which hierarchy is watched.
func (w *Watcher) Layout() Layout { return w.layout }

// Degraded returns nil while both kinds of events come in, or why not: changes
// are then found late, by looking again every few seconds. While the hierarchy is
// lost, which is an error that wraps [ErrRootLost], no container is found and none
// ends. It is nil unless Run runs.
func (w *Watcher) Degraded() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.lost, w.degraded["inotify"], w.degraded["netlink"])
}

// lose notes that the hierarchy is lost, or with nil that it is there. The log tells of
// changes only.
func (w *Watcher) lose(err error) {
	was := w.lost
	w.lost = err
	switch {
	case err != nil && was == nil:
		w.log.Error("the cgroup hierarchy is lost: no container is found, and none is taken for ended", "err", err)
	case err == nil && was != nil:
		w.log.Info("the cgroup hierarchy is back")
	}
}

// degrade sets or clears what hinders a source. The log tells of changes only.
func (w *Watcher) degrade(source string, err error) {
	was := w.degraded[source]
	w.degraded[source] = err
	switch {
	case err != nil && was == nil:
		w.log.Warn("events unavailable, looking every few seconds instead", "source", source, "err", err)
	case err == nil && was != nil:
		w.log.Info("events available again", "source", source)
	}
}

// Run delivers events until ctx ends, then returns nil. It begins with all there
// is: one event for each container and host veth. No event is dropped; a slow
// receiver delays them, and may lose some in the kernel, which an [Overflowed]
// then says.
//
// Applied in order the events always lead to what exists, but a list taken
// meanwhile can be ahead of them. An event may repeat what a list has said.
//
// The channel must have no capacity: a new interface would wait behind all the events of users'
// directories that it holds. The kernel's own queues hold more.
//
// Only one Run at a time. It needs no capability, but for NetNS CAP_SYS_ADMIN, and
// CAP_NET_ADMIN for a large receive buffer. After it returns nothing is left in
// the kernel.
func (w *Watcher) Run(ctx context.Context, events chan<- Event) error {
	if cap(events) > 0 {
		return errors.New("watch containers: the channel of events has a capacity")
	}
	w.mu.Lock()
	if w.tree != nil {
		w.mu.Unlock()
		return errors.New("watch containers: already running")
	}
	w.tree = newTree(w.layout.Root, w.kind, w.patterns, w.skips)
	w.mu.Unlock()

	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return w.followCgroups(ctx, events) })
	tasks.Go(func() error { return w.followLinks(ctx, events) })
	err := tasks.Wait()

	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tree.notify != nil {
		_ = w.tree.notify.Close()
	}
	w.tree, w.lost = nil, nil
	clear(w.degraded)
	return err
}

// Containers walks the whole hierarchy now and returns the containers, sorted by
// CreatedAt, then Cgroup. An error says that the hierarchy can't be read, and the list may
// lack any of them. A directory that can't be read, or is more than [MaxDepth] levels deep,
// is no error: see [Watcher.Skipped]. What Run knew below it stays in the list.
//
// Beside Run it also watches what is not watched yet, and Run delivers what the
// walk found changed.
func (w *Watcher) Containers() ([]Container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tree == nil {
		once := newTree(w.layout.Root, w.kind, w.patterns, w.skips)
		err := once.walk()
		return once.list(), err
	}
	err := w.walk()
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return w.tree.list(), err
}

// Missed reports whether a container that [Watcher.Containers] did not list may exist all the
// same, in a directory that can't be read: the kernel does not say that its cgroup has gone.
func (w *Watcher) Missed(id, cgroup string) bool {
	if c, ok := Identify(cgroup, w.patterns); !ok || unscoped(c.ID) != unscoped(id) || c.Cgroup != cgroup {
		return false
	}
	var st unix.Stat_t
	if !vanished(unix.Stat(filepath.Join(w.layout.Root, cgroup), &st)) {
		return true
	}
	kind, err := filesystem(w.layout.Root)
	return err != nil || kind != w.kind
}

// walk brings the tree up to date, with inotify if it can be had. The caller
// holds mu.
func (w *Watcher) walk() error {
	lost := w.tree.rooted()
	w.lose(lost)
	if lost != nil {
		w.tree.unwatch()
		return lost
	}
	var missing error
	if w.tree.notify == nil {
		notify, err := fsnotify.NewWatcher()
		if err != nil {
			missing = fmt.Errorf("watch cgroups: %w", err)
		} else {
			w.tree.notify = notify
		}
	}
	err := w.tree.walk()
	w.degrade("inotify", errors.Join(missing, w.tree.unwatched))
	return err
}

// followCgroups delivers the events of the tree.
func (w *Watcher) followCgroups(ctx context.Context, events chan<- Event) error {
	rescan := time.NewTicker(w.rescanEvery)
	defer rescan.Stop()
	lost := newRecovery()
	defer lost.timer.Stop()
	w.rewalk()
	for w.deliver(ctx, events) {
		created, failed := w.notifications()
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
		case e := <-created:
			w.examine(e)
		case err, open := <-failed:
			if !open {
				continue // given up with a root that was lost
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				w.log.Warn("could not read cgroup notifications", "err", err)
			}
			lost.want(time.Now())
		case <-lost.timer.C:
			began := time.Now()
			w.recover()
			lost.done(time.Now(), time.Since(began))
		case <-rescan.C:
			w.rescan()
		}
	}
	return nil
}

func (w *Watcher) notifications() (<-chan fsnotify.Event, <-chan error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tree.notify == nil {
		return nil, nil
	}
	return w.tree.notify.Events, w.tree.notify.Errors
}

// rescan stands in for inotify, and looks where nothing is watched. Users can make that take
// long, by many directories: then it comes less often.
func (w *Watcher) rescan() {
	w.mu.Lock()
	defer w.mu.Unlock()
	began := time.Now()
	if began.Before(w.rescans) {
		return
	}
	defer func() { w.rescans = time.Now().Add((recoverShare - 1) * time.Since(began)) }()
	if w.degraded["inotify"] == nil && w.lost == nil && w.tree.rooted() == nil {
		w.tree.peek()
	} else if err := w.walk(); err != nil && !errors.Is(err, ErrRootLost) { // which was said
		w.log.Warn("could not walk cgroups", "err", err)
	}
	if w.tree.unwatched != nil {
		w.degrade("inotify", w.tree.unwatched)
	}
}

func (w *Watcher) rewalk() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.walk(); err != nil && !errors.Is(err, ErrRootLost) {
		w.log.Warn("could not walk cgroups", "err", err)
	}
}

// examine follows up one notification. Writes to a cgroup's files come in, too.
func (w *Watcher) examine(e fsnotify.Event) {
	if !e.Has(fsnotify.Create) && !e.Has(fsnotify.Remove) && !e.Has(fsnotify.Rename) {
		return
	}
	dir, ok := strings.CutPrefix(e.Name, w.layout.Root+"/")
	if !ok {
		return // the root itself
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tree.examine("/"+dir, !e.Has(fsnotify.Create))
	if w.tree.unwatched != nil {
		w.degrade("inotify", w.tree.unwatched)
	}
}

// recover lists anew what lost notifications would have said.
func (w *Watcher) recover() {
	w.rewalk()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tree.changes = append(w.tree.changes, Overflowed{Source: "inotify"})
}

// deliver sends the changes of the tree, which may grow meanwhile. It returns
// false when ctx ends.
func (w *Watcher) deliver(ctx context.Context, events chan<- Event) bool {
	for {
		w.mu.Lock()
		changes := w.tree.changes
		w.tree.changes = nil
		w.mu.Unlock()
		if len(changes) == 0 {
			return true
		}
		for _, e := range changes {
			if !send(ctx, events, e) {
				return false
			}
		}
	}
}

// send returns false when ctx ends.
func send(ctx context.Context, events chan<- Event, e Event) bool {
	select {
	case <-ctx.Done():
		return false
	case events <- e:
		return true
	}
}
