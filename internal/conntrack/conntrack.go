// SPDX-License-Identifier: Apache-2.0

// Package conntrack counts the connections of containers, by the kernel's connection tracking in
// the host's network namespace: those that are there, by dumps, and those that are opened and
// closed, by events.
//
// A connection belongs to the container whose address opened it, as the tuple of the first
// packet has it, and to the container whose address answers it, as the tuple of the reply has
// it. So published ports, masquerading and service addresses make no difference.
//
// What a container's own network namespace tracks is counted beside that. A connection may be in
// both tables, so of the two numbers the higher one is the container's.
//
// Of a connection nothing is kept: memory goes by the containers and their addresses, which
// are bounded, and not by the connections.
package conntrack

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/prometheus/client_golang/prometheus"
	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/usage"
)

// Sandbox is a network namespace whose connections are one container's.
type Sandbox struct {
	ID    uint64    // no two have the same at a time
	Owner string    // the container's id
	Since time.Time // the container was made
	// Addresses lists the addresses in there; none if it is gone.
	Addresses func() ([]netip.Addr, error)
	// Enter calls visit with a descriptor of the namespace, which is valid until visit returns.
	// nil: what is tracked in there is not read.
	Enter func(visit func(netns int) error) error
}

// Options are what a tracker works with.
type Options struct {
	// NetNS is the network namespace whose connections are counted, 0 for the process's own.
	NetNS int
	// Retention is how long a container that has ended is remembered. It is called at each dump.
	Retention func() time.Duration
	Log       *slog.Logger

	buffer  int                               // of the socket for events, 0 for the usual one
	setting func(name string) (string, error) // reads a sysctl in NetNS, nil for the usual one
}

const (
	// usualBuffer holds some 25,000 events. The kernel doubles it, and takes the memory as it
	// is needed.
	usualBuffer = 32 << 20
	// A dump comes after so long, sooner where it is cheap: it takes a hundredth of the time.
	longestPause, shortestPause = time.Minute, 5 * time.Second
	costShare                   = 100
	// After an overflow a dump comes soon, but takes no more than a tenth of the time.
	healShare, healPause = 10, time.Second
	// grace is how long before and after a dump events are taken for such that may be in it:
	// the kernel tells of an entry a moment before or after it lists it.
	grace = 20 * time.Millisecond
	// After an error all is opened again, at first after so long, then after twice that.
	firstRetry, lastRetry = time.Second, time.Minute
)

// Tracker counts connections. Run it once. The other methods may be called from any goroutine.
type Tracker struct {
	Options
	overflows prometheus.Counter

	mu     sync.Mutex // for what follows
	book   *book
	active bool // something is tracked
	told   bool // the kernel tells what is opened and closed
	found  map[uint64]Sandbox
	left   map[uint64]bool
	tables map[uint64]*table // of namespaces that track connections themselves
	wake   func()            // of the session that runs, nil while there is none
}

// New returns a tracker that knows nothing. It starts nothing.
func New(o Options) *Tracker {
	if o.buffer == 0 {
		o.buffer = usualBuffer
	}
	if o.setting == nil {
		o.setting = setting
	}
	return &Tracker{
		Options: o, book: newBook(), found: map[uint64]Sandbox{}, left: map[uint64]bool{}, tables: map[uint64]*table{},
		overflows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nettally_conntrack_overflows_total",
			Help: "Times that the kernel had no room for events of the connection tracking. A look at the whole table follows each; what was opened and closed in between is not in the counters.",
		}),
	}
}

// Metrics returns the tracker's own metrics.
func (t *Tracker) Metrics() []prometheus.Collector { return []prometheus.Collector{t.overflows} }

// Found says that a sandbox is there, or may have other addresses, or another owner.
func (t *Tracker) Found(s Sandbox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.left, s.ID)
	t.found[s.ID] = s
	t.wakeUp()
}

// Left says that a sandbox is gone.
func (t *Tracker) Left(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.found, id)
	t.book.leave(id)
	t.left[id] = true
	t.shut(id)
	t.wakeUp()
}

// Ended says that a container has ended.
func (t *Tracker) Ended(owner string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.book.end(owner, time.Now())
	for id, table := range t.tables {
		if table.owner == owner {
			t.shut(id) // or the namespace would not end
		}
	}
}

func (t *Tracker) wakeUp() {
	if t.wake != nil {
		t.wake()
	}
}

// Counted returns what is known of each container, by its id.
func (t *Tracker) Counted() map[string]usage.Conntrack {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.book.shown(t.active, t.told) // an empty table does not tell that there are no connections
}

// Run counts until the context ends. What fails is tried again, with a growing pause.
func (t *Tracker) Run(ctx context.Context) error {
	retry, said := firstRetry, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := t.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > lastRetry {
			retry, said = firstRetry, ""
		}
		if err.Error() != said {
			said = err.Error()
			t.Log.Warn("connections are not counted; trying again", "err", explain(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
	return nil
}

// session counts until an error. Events come first: what is opened during the first dump is
// in one of the two.
func (t *Tracker) session(ctx context.Context) error {
	s := &session{Tracker: t, known: map[uint64]Sandbox{}, young: map[uint64]look{}, empty: map[uint64]bool{}}
	defer s.end()
	var err error
	if s.events, err = open(t.NetNS, unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_DESTROY); err != nil {
		return err
	}
	defer s.events.Close()
	if err := s.events.size(t.buffer); err != nil {
		return err
	}
	if s.entries, err = open(t.NetNS); err != nil {
		return err
	}
	defer s.entries.Close()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.wakeUp()
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	return s.run(ctx)
}

// look is the next one at the addresses of a sandbox: a runtime gives it some a moment after its
// interface.
type look struct {
	at    time.Time
	delay time.Duration // until the one after it, which is twice that
}

const firstLook, lastLook = 50 * time.Millisecond, 5 * time.Second

// session has the sockets while no error ends them.
type session struct {
	*Tracker
	events, entries *socket
	known           map[uint64]Sandbox // that are there
	young           map[uint64]look    // those that have just been found
	lost            bool               // events, since the last dump
	took            time.Duration      // the last dump
	any             bool               // an event came since the last dump

	empty     map[uint64]bool // namespaces that tracked nothing when they were looked at
	insideDue time.Time       // the next look at the tables in namespaces
	hearAt    time.Time       // and at what these tell
}

func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake, s.active = nil, false
	s.book.unknown()
	for id := range s.tables {
		s.shut(id)
	}
	for id, box := range s.known { // for the next one
		if _, ok := s.found[id]; !ok && !s.left[id] {
			s.found[id] = box
		}
	}
	clear(s.left)
}

func (s *session) run(ctx context.Context) error {
	s.lookUp(ctx)
	for due := time.Now(); ctx.Err() == nil; {
		if s.lost {
			due = earlier(due, time.Now().Add(max(healPause, healShare*s.took)))
		}
		if err := s.follow(ctx, due); err != nil {
			return err
		}
		if ctx.Err() != nil || time.Now().Before(due) {
			continue
		}
		if err := s.dump(ctx); err != nil {
			return err
		}
		if err := s.lookInside(ctx); err != nil {
			return err
		}
		due = time.Now().Add(min(max(costShare*s.took, shortestPause), longestPause))
	}
	return ctx.Err()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// follow takes in events until a time, or until the first that were lost.
func (s *session) follow(ctx context.Context, until time.Time) error {
	for ctx.Err() == nil && time.Now().Before(until) {
		if err := s.waitFor(ctx, until); err != nil {
			return err
		}
		more, err := s.drain(atATime)
		if err != nil {
			return err
		}
		s.hear(false)
		s.lookUp(ctx)
		if s.lost && !more {
			return nil
		}
	}
	return nil
}

// waitFor waits until there are events, sandboxes, or until a time.
func (s *session) waitFor(ctx context.Context, until time.Time) error {
	s.mu.Lock()
	if len(s.found)+len(s.left) > 0 || ctx.Err() != nil {
		s.mu.Unlock()
		return nil
	}
	for _, l := range s.young {
		until = earlier(until, l.at)
	}
	if len(s.tables) > 0 {
		until = earlier(until, s.hearAt)
	}
	err := s.events.SetReadDeadline(until)
	s.wake = func() { _ = s.events.SetReadDeadline(time.Unix(1, 0)) }
	s.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = s.events.wait(s.event)
	return s.noted(err)
}

// noted takes in that events were lost, which is no error.
func (s *session) noted(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case errors.Is(err, errOverflow):
		s.overflows.Inc()
		s.lost = true
		return nil
	}
	return err
}

// drain takes in the events that are there.
func (s *session) drain(most int) (more bool, err error) {
	more, err = s.events.poll(most, s.event)
	return more, s.noted(err)
}

// event takes in an event. One that can't be read is none that we could count.
func (s *session) event(m netlink.Message) error {
	var e ct.Event
	if err := e.Unmarshal(m); err != nil || e.Flow == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.any = true
	switch e.Type {
	case ct.EventNew:
		s.book.opened(entryOf(e.Flow), time.Now())
	case ct.EventDestroy:
		s.book.closed(entryOf(e.Flow))
	}
	return nil
}

// lookUp takes in the sandboxes that have come and gone, and looks again at those that came a
// moment ago.
func (s *session) lookUp(ctx context.Context) {
	s.takeIn(ctx)
	for id, l := range s.young {
		switch {
		case time.Now().Before(l.at):
		case l.delay > lastLook:
			delete(s.young, id)
		default:
			s.readAddresses(s.known[id])
			s.inside(ctx, s.known[id], nil)
			s.young[id] = look{time.Now().Add(l.delay), 2 * l.delay}
		}
	}
}

func (s *session) takeIn(ctx context.Context) {
	s.mu.Lock()
	found, left := s.found, s.left
	if len(found)+len(left) == 0 {
		s.mu.Unlock()
		return
	}
	s.found, s.left = map[uint64]Sandbox{}, map[uint64]bool{}
	s.mu.Unlock()
	for id := range left {
		delete(s.known, id)
		delete(s.young, id)
		delete(s.empty, id)
	}
	for id, box := range found {
		s.known[id] = box
		s.young[id] = look{time.Now().Add(firstLook), 2 * firstLook}
		s.readAddresses(box)
		s.inside(ctx, box, nil)
	}
}

// readAddresses brings the addresses of a sandbox up to date. Those of one that can't be read
// stay as they are: its end will be told.
func (s *session) readAddresses(box Sandbox) {
	addrs, err := box.Addresses()
	if err != nil {
		s.Log.Debug("could not read addresses", "container_id", box.Owner, "err", err)
		if len(addrs) == 0 {
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tables[box.ID]; t != nil {
		t.addrs = addrs
	}
	if !s.left[box.ID] {
		s.book.claim(box, addrs, time.Now())
	}
}

// dump lists all entries. Between its parts events are taken in, so that they need no room.
func (s *session) dump(ctx context.Context) error {
	for _, box := range s.known {
		s.readAddresses(box)
	}
	s.lost = false
	told := s.tells()
	s.locked(func() {
		s.book.forget(time.Now().Add(-s.Retention()))
		s.book.beginDump()
		s.told = told
	})
	if err := s.linger(ctx); err != nil {
		return err
	}
	before, err := s.entries.count(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	err = s.entries.dump(ctx, s.entry, s.between)
	s.took = time.Since(began)
	if err != nil {
		return err
	}
	after, err := s.entries.count(ctx)
	if err != nil {
		return err
	}
	if err := s.linger(ctx); err != nil {
		return err
	}
	s.locked(func() {
		s.active = s.book.all.established > 0 || s.any
		s.book.endDump(max(before, after), s.lost)
	})
	s.any = false
	s.Log.Debug("listed connections", "entries", s.book.all.established, "took", s.took, "lost", s.lost)
	return nil
}

func (s *session) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *session) entry(m netlink.Message) error {
	var e ct.Event
	if err := e.Unmarshal(m); err != nil || e.Flow == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.list(entryOf(e.Flow))
	return nil
}

// linger takes in events for a moment, and then all that are there.
func (s *session) linger(ctx context.Context) error {
	pause := time.NewTimer(grace)
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-pause.C:
	}
	defer s.hear(true)
	for range s.buffer / 1024 { // more than there is room for
		if more, err := s.drain(atATime); err != nil || !more {
			return err
		}
	}
	return nil
}
