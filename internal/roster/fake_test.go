// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// inHost is the number of the host's own namespace in a world.
const inHost = 1

// world is a host without a kernel: the truth that a roster has to find out. It is the
// roster's backend, too, and outlives it, as slots in the kernel do.
//
// The test holds mu while a roster runs, but for the moments in which that may work: see
// [world.yield]. The race detector does not know that time stands still for the roster.
type world struct {
	mu sync.Mutex

	containers []watcher.Container  // as they are listed
	in         map[string]uint64    // the namespace of a container's processes; none: no process
	interfaces map[uint64][]*device // by namespace
	nsids      map[uint64]int

	listFails, succeedFails error
	slowList                time.Duration // how old a list is when it is told
	lists                   int
	relistHints             []Hint

	spread  map[string]watcher.Spread // of a container's processes
	kernel  map[string]watcher.Kernel // that they are
	ownOnly bool                      // none of the interfaces leads to the host

	missed map[string]bool // containers that are not listed, in directories that can't be read

	hint bool // Reconcile hints at the owners of interfaces that are not counted for them

	// What the backend was told.
	updated  map[Key]Member
	updates  int
	released map[Key]int
	left     []uint64
	robbed   []string       // whose interfaces were given away while they ran
	owners   map[uint64]Key // the last ones that Count was told
	accounts *book
	names    map[string]int // how often wanted, less how often forgotten
	located  []string       // who was looked for
	calls    []string       // Adopt, Relist, Reconcile, Succeed, Last
	do       chan<- func() []Hint
}

// device is an interface.
type device struct {
	owner   Key // it is counted for, "" for nobody
	fails   bool
	waits   bool
	changed int // owners, after the first
}

// book is accounts that remember.
type book struct {
	mu      *sync.Mutex // the world's
	state   map[string]usage.State
	reasons map[string]usage.Reason
	shares  map[string]string
	kernels map[string]string
	expires []string
}

func (b *book) Start(c usage.Container) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state[c.ID] = usage.Running
}

func (b *book) Stop(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state[id] = usage.Stopped
}

func (b *book) Explain(id string, r usage.Reason) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reasons[id] = r
}

func (b *book) Share(id, owner string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shares[id] = owner
}

func (b *book) RunsOn(id, kernel string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kernels[id] = kernel
}

func (b *book) Running() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running()
}

func (b *book) running() map[string]string {
	cgroups := map[string]string{}
	for id, s := range b.state {
		if s == usage.Running {
			cgroups[id] = "/docker/" + id
		}
	}
	return cgroups
}

func (b *book) Expire() (ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids, b.expires = b.expires, nil
	return ids
}

func (w *world) Want(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[id]++
}

func (w *world) Forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[id]--
}

func newWorld() *world {
	w := &world{
		in: map[string]uint64{}, interfaces: map[uint64][]*device{}, nsids: map[uint64]int{},
		spread: map[string]watcher.Spread{}, kernel: map[string]watcher.Kernel{}, missed: map[string]bool{}, owners: map[uint64]Key{}, updated: map[Key]Member{}, released: map[Key]int{}, names: map[string]int{},
	}
	w.accounts = &book{mu: &w.mu, state: map[string]usage.State{}, reasons: map[string]usage.Reason{}, shares: map[string]string{}, kernels: map[string]string{}}
	return w
}

// yield lets the roster work until the test has done something and nothing is left to do.
func (w *world) yield(do func()) {
	w.mu.Unlock()
	do()
	synctest.Wait()
	w.mu.Lock()
}

// pass lets time go by.
func (w *world) pass(d time.Duration) { w.yield(func() { time.Sleep(d) }) }

// put adds a container whose processes are in a namespace, 0 for none yet.
func (w *world) put(id string, namespace uint64) watcher.Container {
	c := watcher.Container{ID: id, Cgroup: "/docker/" + id, CreatedAt: time.Now()}
	w.containers = append(w.containers, c)
	w.place(id, namespace)
	return c
}

func (w *world) place(id string, namespace uint64) {
	delete(w.in, id)
	if namespace != 0 {
		w.in[id] = namespace
	}
}

// take removes a container.
func (w *world) take(id string) watcher.Container {
	i := slices.IndexFunc(w.containers, func(c watcher.Container) bool { return c.ID == id })
	c := w.containers[i]
	w.containers = slices.Delete(w.containers, i, i+1)
	delete(w.in, id)
	return c
}

// device adds an interface to a namespace.
func (w *world) device(namespace uint64) *device {
	d := &device{}
	w.interfaces[namespace] = append(w.interfaces[namespace], d)
	return d
}

func (w *world) Adopt(context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, "adopt")
}

func (w *world) Run(ctx context.Context, do chan<- func() []Hint) {
	w.mu.Lock()
	w.do = do
	w.mu.Unlock()
	<-ctx.Done()
	time.Sleep(time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, "run ended")
}

func (w *world) Locate(m Member) (Location[string], error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.located = append(w.located, m.ID)
	namespace, ok := w.in[m.ID]
	if !ok {
		return Location[string]{}, watcher.ErrNoProcess
	}
	if namespace == inHost {
		return Location[string]{InHost: true}, nil
	}
	at := Location[string]{Space: Space{ID: namespace, NSID: -1}, Spread: w.spread[m.ID], Kernel: w.kernel[m.ID], Found: fmt.Sprint("found ", namespace)}
	if nsid, ok := w.nsids[namespace]; ok {
		at.NSID = nsid
	}
	for _, d := range w.interfaces[namespace] {
		if d.owner != (Key{}) {
			at.CountedFor = append(at.CountedFor, d.owner)
		}
	}
	return at, nil
}

func (w *world) Strays(m Member, from Space) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	namespace, ok := w.in[m.ID]
	return ok && (namespace != from.ID || w.spread[m.ID] != watcher.Together)
}

func (w *world) Count(owner Member, in Location[string]) (o Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if in.Found != fmt.Sprint("found ", in.ID) {
		panic("Count got back another finding than Locate gave")
	}
	w.owners[in.ID], o.Given = owner.Key, !w.ownOnly
	for _, d := range w.interfaces[in.ID] {
		switch {
		case d.fails:
			o.Failed++
		case d.waits && !owner.Ended:
			o.Waiting++
		default:
			if d.owner == (Key{}) {
				d.owner = owner.Key
			}
			if d.owner == owner.Key {
				o.Counted++
			} else {
				o.Others++
			}
		}
	}
	return o
}

func (w *world) Succeed(to Member, ended []Key, in Location[string]) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, "succeed "+to.ID)
	if w.succeedFails != nil {
		return w.succeedFails
	}
	for _, d := range w.interfaces[in.ID] {
		if !slices.Contains(ended, d.owner) {
			continue
		}
		if w.accounts.state[d.owner.ID] == usage.Running {
			w.robbed = append(w.robbed, d.owner.ID)
		}
		d.owner = to.Key
		d.changed++
	}
	return nil
}

func (w *world) Update(m Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updated[m.Key] = m
	w.updates++
	if m.Ended {
		delete(w.updated, m.Key)
	}
}

func (w *world) Last(m Member, in Space) (o Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, "last "+m.ID)
	for _, d := range w.interfaces[in.ID] {
		if d.owner == (Key{}) {
			d.owner = m.Key
		}
		if d.owner == m.Key {
			o.Counted++
		}
	}
	return o
}

func (w *world) Release(k Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, "release "+k.ID)
	w.released[k]++
}

func (w *world) Left(s Space) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = append(w.left, s.ID)
}

func (w *world) Link(e watcher.Event) []Hint {
	w.mu.Lock()
	defer w.mu.Unlock()
	if moved, ok := e.(watcher.LinkMoved); ok {
		return []Hint{{NSID: moved.NetNSID}}
	}
	return nil
}

func (w *world) Relist() []Hint {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, "relist")
	return w.relistHints
}

func (w *world) Reconcile(there func(Key) bool) []Hint {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, fmt.Sprint("reconcile ", there != nil))
	var hints []Hint
	for id, owner := range w.owners {
		uncounted := func(d *device) bool { return d.owner != owner }
		if w.hint && slices.ContainsFunc(w.interfaces[id], uncounted) {
			hints = append(hints, Hint{Key: owner})
		}
	}
	return hints
}

func (w *world) list() ([]watcher.Container, error) {
	w.mu.Lock()
	w.lists++
	found, err, slow := slices.Clone(w.containers), w.listFails, w.slowList
	w.mu.Unlock()
	time.Sleep(slow)
	return found, err
}

// hides reports whether a container can't be listed and may be there.
func (w *world) hides(id, cgroup string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.missed[id] && cgroup == "/docker/"+id
}

// running is a roster that runs in a bubble of synctest until the test ends.
type running struct {
	*Roster[string]
	t      *testing.T
	world  *world
	events chan watcher.Event
	stop   func()
	filter func(watcher.Container) bool
}

const every = 30 * time.Second

func run(t *testing.T, w *world) *running {
	t.Helper()
	r := &running{t: t, world: w, events: make(chan watcher.Event)}
	r.Roster = New(Options[string]{
		Containers: w.list, Missed: w.hides, Backend: w, Accounts: w.accounts, Names: w,
		Settings: func() Settings {
			return Settings{
				Container: func(c watcher.Container) bool {
					w.mu.Lock()
					filter := r.filter
					w.mu.Unlock()
					return filter == nil || filter(c)
				},
				Reconcile: every,
			}
		},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, r.events) }()
	r.stop = func() {
		w.mu.Unlock()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
	w.mu.Lock() // until stop
	return r
}

// send delivers events in order and waits until they are dealt with.
func (r *running) send(events ...watcher.Event) {
	r.world.yield(func() {
		for _, e := range events {
			r.events <- e
		}
	})
}

func startedEvent(c watcher.Container) watcher.Event { return watcher.ContainerStarted{Container: c} }

func stoppedEvent(c watcher.Container) watcher.Event {
	return watcher.ContainerStopped{ID: c.ID, Cgroup: c.Cgroup}
}

// want compares the reasons of all running containers.
func (r *running) want(reasons map[string]usage.Reason) {
	r.t.Helper()
	got := map[string]usage.Reason{}
	for _, m := range r.members {
		got[m.ID] = m.Reason
		if told := r.world.accounts.reasons[m.ID]; m.Reason != usage.Starting && told != m.Reason {
			r.t.Errorf("%s is %q, and the accounts were told %q", m.ID, m.Reason, told)
		}
	}
	if !maps.Equal(got, reasons) {
		r.t.Errorf("reasons %q, want %q", got, reasons)
	}
}

// owned expects an interface to be counted for a container.
func (r *running) owned(d *device, id string) {
	r.t.Helper()
	if d.owner.ID != id {
		r.t.Errorf("counted for %q, want %q", d.owner.ID, id)
	}
}

var errInjected = errors.New("injected")
