// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"context"
	"net/netip"
	"time"

	"github.com/florianl/go-nflog/v2"

	"github.com/nettally/nettally/internal/usage"
)

// Directions as the container sees them.
const (
	receive = iota
	transmit
)

const (
	maxPending = 4096             // ends that are looked for at a time, or were in vain a moment ago
	patience   = 5 * time.Second  // for which an end is looked for, but in tests
	forgotten  = time.Minute      // after which one that was not found is looked for again
	stale      = 30 * time.Second // after which addresses are read again, while they are used
	keepUnseen = time.Minute      // for which a count may be of an account that no snapshot had

	firstLook, lastLook = 50 * time.Millisecond, 2 * time.Second // pauses between two looks
)

// tally is what was counted for an account.
type tally struct {
	requests    [2]usage.LoggedRequests
	first, last time.Time
	began       time.Time // since when it is counted, once a snapshot has told
}

// end is one side of a request: where it came from or went to, on the host.
type end struct {
	dev  uint32     // the port of a bridge where the hook tells that, else the interface
	addr netip.Addr // of the container, if it is one's
}

// waiting is what was counted for an end that may be a container's.
type waiting struct {
	requests [2]usage.LoggedRequests
	since    time.Time
	vain     bool // nobody was found
}

// take counts a packet of the group.
func (c *Counter) take(a nflog.Attribute, next *uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.totals.logged++
	if a.Seq != nil {
		c.totals.lost += uint64(*a.Seq - *next) // the numbers wrap around
		*next = *a.Seq + 1
	}
	var p packet
	ok := false
	if a.Payload != nil {
		p, ok = parse(*a.Payload)
	}
	if !ok || !p.request() {
		c.totals.ignored++
		return
	}
	now := time.Now()
	if dev := device(a.PhysInDev, a.InDev); dev != 0 {
		c.count(end{dev, p.from}, transmit, p.tcp, now)
	}
	if dev := device(a.PhysOutDev, a.OutDev); dev != 0 {
		c.count(end{dev, p.to}, receive, p.tcp, now)
	}
}

// device returns the port of a bridge if it is known, else the interface, 0 for none.
func device(port, iface *uint32) uint32 {
	switch {
	case port != nil && *port != 0:
		return *port
	case iface != nil:
		return *iface
	}
	return 0
}

func (c *Counter) count(e end, direction int, tcp bool, now time.Time) {
	var r [2]usage.LoggedRequests
	r[direction].Connections = 1
	if tcp {
		r[direction].SYN = 1
	}
	id, port, may := c.owner(e)
	switch {
	case id != "":
		c.add(id, port, r, now)
	case may:
		c.wait(e, r, now)
	}
}

// owner returns whose an end is, and by which host veth. Not may: it is no container's.
func (c *Counter) owner(e end) (id string, port uint32, may bool) {
	if id := c.Owner(int(e.dev)); id != "" {
		return id, e.dev, true
	}
	kind, known := c.index.links[e.dev]
	if known && kind == other {
		return "", 0, false
	}
	port, found := c.index.ports[e]
	if !found {
		return "", 0, true
	}
	if time.Since(c.index.at) > stale {
		c.look()
	}
	return c.Owner(int(port)), port, true
}

func (c *Counter) add(id string, port uint32, r [2]usage.LoggedRequests, now time.Time) {
	t := c.tallies[id]
	if t == nil {
		t = &tally{first: now}
		c.tallies[id] = t
	}
	t.last = now
	for d := range t.requests {
		t.requests[d] = t.requests[d].Plus(r[d])
	}
	if c.Count != nil {
		c.Count(int(port), r[receive].SYN, r[transmit].SYN)
	}
}

// wait keeps what is counted for an end until its container is found.
func (c *Counter) wait(e end, r [2]usage.LoggedRequests, now time.Time) {
	if c.index.links[e.dev] == veth {
		e.addr = netip.Addr{} // it is one container's, or none's
	}
	w := c.pending[e]
	if w != nil && w.vain && now.Sub(w.since) > forgotten {
		delete(c.pending, e)
		w = nil
	}
	if w == nil && len(c.pending) < maxPending {
		w = &waiting{since: now}
		c.pending[e] = w
	}
	if w == nil || w.vain {
		c.giveUp(r)
		return
	}
	for d := range w.requests {
		w.requests[d] = w.requests[d].Plus(r[d])
	}
	c.look()
}

func (c *Counter) giveUp(r [2]usage.LoggedRequests) {
	for d := range r {
		c.totals.unattributed[d] += r[d].Connections
	}
}

func (c *Counter) look() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// find looks for the containers of what waits, less and less often while some are not found.
func (c *Counter) find(ctx context.Context) {
	said := ""
	pause := firstLook
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		found, err := readIndex(c.NetNS)
		if err != nil && err.Error() != said {
			said = err.Error()
			c.Log.Error("containers of connection requests may not be found", "err", err)
		}
		if c.settle(found) {
			pause = min(2*pause, lastLook)
			c.look()
		} else {
			pause = firstLook
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// settle gives what waits to the containers that are known now. It reports whether somebody
// is still to be found.
func (c *Counter) settle(found *index) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found != nil {
		c.index = found
	}
	now := time.Now()
	for e, w := range c.pending {
		if w.vain {
			if now.Sub(w.since) > forgotten {
				delete(c.pending, e)
			}
			continue
		}
		switch id, port, may := c.owner(e); {
		case id != "":
			c.add(id, port, w.requests, now)
			delete(c.pending, e)
		case !may:
			delete(c.pending, e)
		case now.Sub(w.since) > c.patience:
			c.giveUp(w.requests)
			*w = waiting{since: now, vain: true}
		default:
			more = true
		}
	}
	return more
}
