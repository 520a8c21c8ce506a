// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

const (
	// maxTallies bounds how many containers are counted, with those that have ended. A tally
	// takes about 1 KiB.
	maxTallies = 20_000
	// maxAddresses bounds how many addresses all of them have.
	maxAddresses = 1 << 17
	// maxRecent is how many connections of nobody are remembered, and recallFor for how long.
	maxRecent = 4096
	recallFor = 10 * time.Second
)

// book says whose the addresses are and counts for whom has them. What it takes goes by the
// containers.
type book struct {
	tallies  map[string]*tally // by container id
	holders  map[netip.Addr]holder
	sandbox  map[uint64][]netip.Addr // what each holds
	recent   []opening               // a ring
	openings int
	all      listing // of all entries and events, ours or not
}

// holder is who has an address, or had it last.
type holder struct {
	*tally
	sandbox uint64
}

// opening is a connection whose address was nobody's: a container's may become known a moment
// later than its first connections.
type opening struct {
	at time.Time
	entry
}

func newBook() *book {
	return &book{tallies: map[string]*tally{}, holders: map[netip.Addr]holder{}, sandbox: map[uint64][]netip.Addr{}, recent: make([]opening, maxRecent)}
}

// cells calls f with the cells that an entry belongs to: one of who opened the connection and
// one of who answers, where these are containers.
func (b *book) cells(e entry, f func(*cell, *tally)) (found bool) {
	for d, addr := range [directions]netip.Addr{receive: e.to, transmit: e.from} {
		if h, ok := b.holders[addr]; ok {
			found = true
			f(&h.cells[d][e.protocol], h.tally)
		}
	}
	return found
}

// opened takes in that a connection was opened. An address whose container has ended is the
// next one's, who may not be known yet.
func (b *book) opened(e entry, at time.Time) {
	b.all.opened++
	for d, addr := range [directions]*netip.Addr{receive: &e.to, transmit: &e.from} {
		if h, ok := b.holders[*addr]; ok && h.ended.IsZero() {
			h.cells[d][e.protocol].open()
			*addr = netip.Addr{} // counted
		}
	}
	if e.to.IsValid() || e.from.IsValid() {
		b.recent[b.openings%maxRecent] = opening{at, e}
		b.openings++
	}
}

func (b *book) closed(e entry) {
	b.all.closed++
	b.cells(e, func(c *cell, _ *tally) { c.close() })
}

func (b *book) list(e entry) {
	b.all.established++ // of all kinds
	b.cells(e, func(c *cell, t *tally) {
		switch {
		case !t.ended.IsZero():
		case e.established:
			c.next.established++
		default:
			c.next.other++
		}
	})
}

// beginDump forgets what a dump before this one may have left.
func (b *book) beginDump() {
	b.all = listing{}
	for _, t := range b.tallies {
		t.cells.all(func(c *cell) { c.next = listing{} })
	}
}

// endDump takes in a dump that is complete. If events were lost meanwhile the entries are
// known, but not what was missed: the next dump says that. there is how many entries the kernel
// said it has, before the dump or after it.
func (b *book) endDump(there int64, lost bool) {
	// The kernel lists no entry whose time is over, and tells its end when it gets round to it.
	unlisted := max(0, there-int64(b.all.established)+int64(b.all.opened+b.all.closed))
	for _, t := range b.tallies {
		if !t.ended.IsZero() {
			continue
		}
		t.known = true
		t.cells.all(func(c *cell) {
			if lost {
				c.established, c.other = c.next.established, c.next.other
			} else {
				c.listed(unlisted)
			}
		})
	}
}

// claim says that a sandbox has these addresses and no others, for the container that owns it.
// An address stays with who had it first, for as long as that one has it: root in a container
// can take any.
func (b *book) claim(s Sandbox, addrs []netip.Addr, now time.Time) {
	t := b.tallies[s.Owner]
	if t == nil {
		if len(b.tallies) >= maxTallies {
			return
		}
		t = &tally{since: now}
		b.tallies[s.Owner] = t
	}
	back := !t.ended.IsZero()
	t.ended = time.Time{}
	var has, added []netip.Addr
	for _, addr := range addrs {
		h, held := b.holders[addr]
		switch {
		case held && h.tally == t && h.sandbox == s.ID:
		case held && h.tally != t && h.sandbox != s.ID && h.ended.IsZero(), !held && len(b.holders) >= maxAddresses:
			continue
		default:
			if held && h.tally != t {
				h.moved()
			}
			b.holders[addr] = holder{t, s.ID}
			added = append(added, addr)
		}
		has = append(has, addr)
	}
	gone := b.drop(s.ID, has)
	b.sandbox[s.ID] = has
	if back || gone || len(added) > 0 {
		t.moved()
	}
	since := now.Add(-recallFor)
	if s.Since.After(since) {
		since = s.Since
	}
	b.recall(t, added, since)
}

// drop takes from a sandbox the addresses that it has not any more.
func (b *book) drop(sandbox uint64, has []netip.Addr) (gone bool) {
	for _, addr := range b.sandbox[sandbox] {
		if !slices.Contains(has, addr) && b.holders[addr].sandbox == sandbox {
			delete(b.holders, addr)
			gone = true
		}
	}
	return gone
}

// recall counts the connections of addresses that were nobody's, from a time on.
func (b *book) recall(t *tally, added []netip.Addr, since time.Time) {
	if len(added) == 0 {
		return
	}
	for i := range min(b.openings, maxRecent) {
		o := &b.recent[i]
		if o.at.Before(since) {
			continue
		}
		for d, addr := range [directions]*netip.Addr{receive: &o.to, transmit: &o.from} {
			if addr.IsValid() && slices.Contains(added, *addr) {
				t.cells[d][o.protocol].open()
				*addr = netip.Addr{} // counted
			}
		}
	}
}

// leave says that a sandbox is gone. The addresses of a container that has ended stay its own.
func (b *book) leave(sandbox uint64) {
	for _, addr := range b.sandbox[sandbox] {
		if h := b.holders[addr]; h.sandbox == sandbox && h.ended.IsZero() {
			delete(b.holders, addr)
			h.moved()
		}
	}
	delete(b.sandbox, sandbox)
}

// end says that a container has ended. Its addresses are its own until another has them: the
// kernel tells the end of its connections later.
func (b *book) end(owner string, now time.Time) {
	if t := b.tallies[owner]; t != nil && t.ended.IsZero() {
		t.ended = now
	}
}

// forget forgets the containers that ended before a time.
func (b *book) forget(before time.Time) {
	maps.DeleteFunc(b.tallies, func(_ string, t *tally) bool { return !t.ended.IsZero() && t.ended.Before(before) })
	maps.DeleteFunc(b.holders, func(_ netip.Addr, h holder) bool { return !h.ended.IsZero() && h.ended.Before(before) })
	maps.DeleteFunc(b.sandbox, func(id uint64, has []netip.Addr) bool {
		return !slices.ContainsFunc(has, func(addr netip.Addr) bool { return b.holders[addr].sandbox == id })
	})
}

// unknown says that what is there is not known, until the next dump.
func (b *book) unknown() {
	for _, t := range b.tallies {
		t.known = false
		if t.inner != nil {
			t.listed = false
		}
	}
}

// shown are the containers of which something is known: while the host tracks nothing, those
// that track themselves.
func (b *book) shown(active, told bool) map[string]usage.Conntrack {
	out := make(map[string]usage.Conntrack, len(b.tallies))
	for id, t := range b.tallies {
		tracks := t.inner != nil && t.begun
		if !active && !tracks {
			continue
		}
		c := t.shown()
		c.Listed = (c.Listed && active || tracks && t.listed) && t.ended.IsZero()
		c.Told = told || tracks
		out[id] = c
	}
	return out
}
