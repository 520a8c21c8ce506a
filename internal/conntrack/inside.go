// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/usage"
)

const (
	// maxTables bounds how many namespaces have a socket of ours for events, and innerBuffer what
	// the kernel may keep for one, of which it takes twice as much, as the events come.
	maxTables, innerBuffer = 1024, 1 << 20
	// hearEvery is how often these sockets are read.
	hearEvery = 200 * time.Millisecond
	// maxListed bounds how many entries of such tables one look lists. It begins anywhere, so
	// what is left out has its turn.
	maxListed = 1 << 20
)

type cells [directions][usage.Protocols]cell

// all calls f for each cell.
func (c *cells) all(f func(*cell)) {
	for d := range c {
		for p := range c[d] {
			f(&c[d][p])
		}
	}
}

// inner is what a container's own network namespace tracks.
type inner struct {
	outward cells // the host's table may have the same connections
	within  cells // from the container to itself: no other table has them

	fresh  bool // all of it was made since the container is known
	begun  bool // there was a complete dump
	listed bool // and the last one was

	// Of the dump that goes on.
	left bool // some were left out
	lost bool // events were lost
	here int64
	seen listing // of all entries and events, as book.all
}

func (i *inner) both(f func(*cell)) { i.outward.all(f); i.within.all(f) }

func (i *inner) begin() {
	i.left, i.lost, i.here, i.seen = false, false, 0, listing{}
	i.both(func(c *cell) { c.next = listing{} })
}

// lose says that it is not known any more what is there.
func (i *inner) lose() {
	i.left, i.listed = true, false
	i.both(func(c *cell) { c.established, c.other, c.bounded = 0, 0, false })
}

// end takes in a dump, unless something was left out of it. What was counted before the first one
// is what the host's table had: each of the two knows of so many at least.
func (i *inner) end(host *cells) {
	if i.left {
		return
	}
	i.listed = true
	unlisted := max(0, i.here-int64(i.seen.established)+int64(i.seen.opened+i.seen.closed))
	i.both(func(c *cell) {
		if i.lost {
			c.established, c.other = c.next.established, c.next.other
		} else {
			c.listed(unlisted)
		}
		if there := c.next.established + c.next.other; !i.begun && i.fresh {
			c.opened = max(c.opened, there)
		}
	})
	for d := range i.outward {
		for p := range i.outward[d] {
			c, h := &i.outward[d][p], &host[d][p]
			if !i.begun {
				c.opened = max(c.opened, h.opened)
				there := min(c.opened, c.established+c.other+uint64(unlisted)) // whose end will be told
				c.closed = max(c.closed, min(h.closed, c.opened-there))
			}
		}
	}
	i.begun = true
}

// add adds to what the host's table has of a cell. A connection may be in both tables, so it is
// the higher number, and both states are of the table that has more entries.
func (i *inner) add(to *usage.Connections, d int, p usage.Protocol) {
	c, w := &i.outward[d][p], &i.within[d][p]
	if c.established+c.other > to.Established+to.Other {
		to.Established, to.Other = c.established, c.other
	}
	to.Established += w.established
	to.Other += w.other
	to.Opened = max(to.Opened, c.opened) + w.opened
	to.Closed = max(to.Closed, c.closed) + w.closed
}

// table is the connection tracking of a sandbox's own namespace, while there is something in it.
// Its socket keeps the namespace alive, so it is closed as soon as the container has ended.
type table struct {
	*inner
	events *socket
	owner  string
	inode  uint64
	addrs  []netip.Addr
	heard  bool // an event came since the last look
}

// cells calls f with the cells that an entry belongs to. Within the namespace all is the
// container's own; what it forwards with NAT is known by the address that it has for that.
func (t *table) cells(f *ct.Flow, count func(*cell)) {
	e := entryOf(f)
	receives := t.has(e.to) || t.has(f.TupleOrig.IP.DestinationAddress)
	transmits := t.has(e.from) || t.has(f.TupleReply.IP.DestinationAddress)
	of := &t.outward
	if receives && transmits {
		of = &t.within
	}
	if receives {
		count(&of[receive][e.protocol])
	}
	if transmits {
		count(&of[transmit][e.protocol])
	}
}

func (t *table) has(addr netip.Addr) bool { return addr.IsLoopback() || slices.Contains(t.addrs, addr) }

func (t *table) list(f *ct.Flow) {
	t.seen.established++ // of all kinds
	established := entryOf(f).established
	t.cells(f, func(c *cell) {
		if established {
			c.next.established++
		} else {
			c.next.other++
		}
	})
}

func (t *table) event(e *ct.Event) {
	t.heard = true
	switch e.Type {
	case ct.EventNew:
		t.seen.opened++
		t.cells(e.Flow, (*cell).open)
	case ct.EventDestroy:
		t.seen.closed++
		t.cells(e.Flow, (*cell).close)
	}
}

// shut gives a table up. It is called with the lock held.
func (t *Tracker) shut(id uint64) {
	if table, ok := t.tables[id]; ok {
		_ = table.events.Close()
		delete(t.tables, id)
	}
}

// lookInside looks at the tables of the containers' own namespaces, most of which are empty. It
// takes no more than a hundredth of the time.
func (s *session) lookInside(ctx context.Context) error {
	if time.Now().Before(s.insideDue) {
		return nil
	}
	s.locked(s.book.beginInside)
	if err := s.linger(ctx); err != nil {
		return err
	}
	began, budget := time.Now(), int64(maxListed)
	for _, box := range s.known {
		s.inside(ctx, box, &budget)
		if err := s.between(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	took := time.Since(began)
	if err := s.linger(ctx); err != nil {
		return err
	}
	s.locked(func() {
		s.book.endInside()
		s.Log.Debug("looked into namespaces", "all", len(s.known), "tracking", len(s.tables), "took", took)
	})
	s.insideDue = time.Now().Add(max(costShare*took, shortestPause))
	return nil
}

// inside looks whether a sandbox's namespace tracks connections, and listens for events while
// it does. It lists the table if there is a budget, from which that goes.
func (s *session) inside(ctx context.Context, box Sandbox, budget *int64) {
	if box.Enter == nil {
		return
	}
	err := box.Enter(func(netns int) error { return s.within(ctx, box, netns, budget) })
	if err == nil {
		return
	}
	s.Log.Debug("could not look at the connections that a container tracks", "container_id", box.Owner, "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut(box.ID)
	if t := s.book.tallies[box.Owner]; t != nil && t.inner != nil {
		t.lose()
	}
}

func (s *session) within(ctx context.Context, box Sandbox, netns int, budget *int64) error {
	entries, err := openWith(s.entries.buf, netns)
	if err != nil {
		return err
	}
	defer entries.Close()
	before, err := entries.count(ctx)
	if err != nil {
		return err
	}
	t, err := s.tableOf(box, netns, before, budget != nil)
	if t == nil || budget == nil || err != nil {
		return err
	}
	if before > *budget && *budget < maxListed { // a table alone may be larger
		s.locked(func() { t.left = true })
		return nil
	}
	*budget -= before
	err = entries.dump(ctx, func(m netlink.Message) error {
		var e ct.Event
		if err := e.Unmarshal(m); err == nil && e.Flow != nil {
			s.locked(func() { t.list(e.Flow) })
		}
		return nil
	}, s.between)
	if err != nil {
		return err
	}
	after, err := entries.count(ctx)
	s.locked(func() { t.here += max(before, after) })
	return err
}

// tableOf returns the table of a namespace that has so many entries; nil if it has none, or can't
// be listened to. One that has become empty is given up at the second look.
func (s *session) tableOf(box Sandbox, netns int, entries int64, look bool) (*table, error) {
	var st unix.Stat_t
	if err := unix.Fstat(netns, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tables[box.ID]
	if t != nil && (t.inode != st.Ino || t.owner != box.Owner) {
		s.shut(box.ID)
		t = nil
	}
	switch tally := s.book.tallies[box.Owner]; {
	case entries == 0 && t == nil:
		s.empty[box.ID] = true
		return nil, nil
	case entries == 0 && look && !t.heard:
		s.shut(box.ID)
		s.empty[box.ID] = true
		return nil, nil
	case t != nil:
		t.heard = t.heard && !look
		return t, nil
	case s.left[box.ID], tally == nil, !tally.ended.IsZero():
		return nil, nil
	case len(s.tables) >= maxTables:
		if tally.inner != nil {
			tally.left = true
		}
		return nil, nil
	default:
		return s.listen(box, netns, st.Ino, tally)
	}
}

func (s *session) listen(box Sandbox, netns int, inode uint64, of *tally) (*table, error) {
	addrs, err := box.Addresses()
	if err != nil && len(addrs) == 0 {
		return nil, err
	}
	events, err := openWith(s.events.buf, netns, unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_DESTROY)
	if err != nil {
		return nil, err
	}
	if err := events.size(innerBuffer); err != nil {
		return nil, errors.Join(err, events.Close())
	}
	if of.inner == nil {
		of.inner = &inner{fresh: s.empty[box.ID]}
	}
	t := &table{inner: of.inner, events: events, owner: box.Owner, inode: inode, addrs: addrs}
	s.tables[box.ID] = t
	return t, nil
}

// between takes in events while a dump goes on.
func (s *session) between() error {
	_, err := s.drain(atATime)
	s.hear(false)
	return err
}

// hear takes in the events of the containers' own tables, if it is time or must be.
func (s *session) hear(must bool) {
	var ids []uint64
	s.locked(func() {
		if must || !time.Now().Before(s.hearAt) {
			ids, s.hearAt = slices.Collect(maps.Keys(s.tables)), time.Now().Add(hearEvery)
		}
	})
	for _, id := range ids {
		s.locked(func() {
			if t := s.tables[id]; t != nil {
				s.hearOf(id, t)
			}
		})
	}
}

func (s *session) hearOf(id uint64, t *table) {
	_, err := t.events.poll(atATime, func(m netlink.Message) error {
		var e ct.Event
		if err := e.Unmarshal(m); err == nil && e.Flow != nil {
			t.event(&e)
		}
		return nil
	})
	switch {
	case errors.Is(err, errOverflow):
		s.overflows.Inc()
		t.lost = true
	case err != nil:
		s.shut(id)
		t.lose()
	}
}

func (b *book) beginInside() {
	for _, t := range b.tallies {
		if t.inner != nil {
			t.begin()
		}
	}
}

func (b *book) endInside() {
	for _, t := range b.tallies {
		if t.inner != nil && t.ended.IsZero() {
			t.end(&t.cells)
		}
	}
}
