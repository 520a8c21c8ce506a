// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"time"

	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/usage"
)

// The directions of the packet that opened a connection, as the container sees it. They index
// arrays.
const (
	receive = iota
	transmit
	directions
)

// cell counts the entries of a container with one protocol and direction. It is all that is
// kept: what it takes does not depend on how many entries there are.
type cell struct {
	established, other uint64 // as of the last dump
	opened, closed     uint64

	// There are between low and high entries, by the last dump and the events since. Both are
	// of no use unless bounded is set.
	low, high int64
	bounded   bool

	next listing // the dump that goes on
}

// listing is what a dump has of a cell, and what was told while it went on.
type listing struct{ established, other, opened, closed uint64 }

func (c *cell) open() {
	c.opened++
	c.next.opened++
	c.low++
	c.high++
}

func (c *cell) close() {
	c.closed++
	c.next.closed++
	c.low--
	c.high--
}

// listed takes in a dump that is complete. Whether it has an entry that came or went meanwhile
// is not known, nor whose the entries were that the kernel has and does not list, since their
// time is over. So there are between so many and so many. If no number is between these and
// between those that the events lead to, some events did not come: so many were opened, or
// closed, at least.
func (c *cell) listed(unlisted int64) {
	n := c.next
	c.established, c.other = n.established, n.other
	there := int64(n.established + n.other)
	low, high := there-int64(n.closed), there+int64(n.opened)+unlisted
	if !c.bounded {
		c.low, c.high, c.bounded = low, high, true
		return
	}
	if missed := low - c.high; missed > 0 {
		c.opened += uint64(missed)
		c.high += missed
	}
	if missed := c.low - high; missed > 0 {
		c.closed += uint64(missed)
		c.low -= missed
	}
	c.low, c.high = max(c.low, low), min(c.high, high)
}

// entry is what we need of an entry of the connection tracking.
type entry struct {
	from, to    netip.Addr // who opened the connection, and who answers, NAT or not
	protocol    usage.Protocol
	established bool
}

// tcpEstablished is TCP_CONNTRACK_ESTABLISHED.
const tcpEstablished = 3

// entryOf reads an entry. The original tuple begins with the address of who opened the
// connection, before any NAT; the reply's with the address of who answers, behind all NAT.
func entryOf(f *ct.Flow) entry {
	e := entry{
		from: f.TupleOrig.IP.SourceAddress, to: f.TupleReply.IP.SourceAddress,
		protocol: usage.ProtocolOther, established: f.Status.SeenReply(),
	}
	switch f.TupleOrig.Proto.Protocol {
	case unix.IPPROTO_TCP:
		e.protocol = usage.ProtocolTCP
		e.established = f.ProtoInfo.TCP != nil && f.ProtoInfo.TCP.State == tcpEstablished
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		e.protocol = usage.ProtocolUDP
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		e.protocol = usage.ProtocolICMP
	}
	return e
}

// tally is what is counted for a container.
type tally struct {
	since  time.Time
	ended  time.Time // zero while it is there
	known  bool      // in a dump since it has its addresses
	cells  cells
	*inner // nil while its own namespace tracks nothing
}

// moved says that the addresses of a container are others than they were: how many entries
// they have is not known before the next dump.
func (t *tally) moved() {
	t.known = false
	t.cells.all(func(c *cell) { c.bounded = false })
	if t.inner != nil {
		t.both(func(c *cell) { c.bounded = false })
	}
}

func (t *tally) shown() usage.Conntrack {
	out := usage.Conntrack{Since: t.since, Listed: t.known}
	for d, shown := range [directions]*[usage.Protocols]usage.Connections{receive: &out.Receive, transmit: &out.Transmit} {
		for p := range shown {
			c := &t.cells[d][p]
			shown[p] = usage.Connections{Established: c.established, Other: c.other, Opened: c.opened, Closed: c.closed}
			if t.inner != nil {
				t.add(&shown[p], d, usage.Protocol(p))
			}
		}
	}
	return out
}
