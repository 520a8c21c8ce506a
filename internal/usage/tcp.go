// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nettally/nettally/bpf"
)

// RTTBounds are the upper bounds in microseconds of the buckets of [TCP.RTTs]; the last bucket
// has none.
var RTTBounds = bpf.RTTBounds

// TCPCounters is what is counted on a slot of connections, and TCPNote what is noted with that.
type (
	TCPCounters = bpf.TCPCounters
	TCPNote     = bpf.TCPNote
)

// TCP is what became of the TCP connections of a container.
type TCP struct {
	ConnectAttempts uint64
	Connects        uint64 // established by an attempt
	Accepts         uint64 // that others began
	ConnectFailures uint64 // attempts that ended otherwise: refused, timed out, given up
	Closes          uint64 // that had been established, and are over
	Resets          uint64 // part of Closes, as the kernel's EstabResets
	// RetransmittedSegments does not have those with SYN and ACK.
	RetransmittedSegments uint64
	// RTTMicroseconds is the sum of the smoothed round trip times that were observed, and RTTs
	// how many were in each bucket.
	RTTMicroseconds uint64
	RTTs            [len(bpf.RTTBounds) + 1]uint64
	// ListenDrops is how many connections the kernel dropped because nobody accepted them, where
	// ListenDropsKnown is not 0: it counts that for a network namespace.
	ListenDrops, ListenDropsKnown uint64
}

// fields are the numbers in the order they are kept in.
func (t *TCP) fields() []*uint64 {
	fields := []*uint64{
		&t.ConnectAttempts, &t.Connects, &t.Accepts, &t.ConnectFailures, &t.Closes, &t.Resets,
		&t.RetransmittedSegments, &t.ListenDrops, &t.ListenDropsKnown, &t.RTTMicroseconds,
	}
	for i := range t.RTTs {
		fields = append(fields, &t.RTTs[i])
	}
	return fields
}

// Plus returns the sum of two, as [Add] makes it.
func (t TCP) Plus(u TCP) TCP {
	switch {
	case u == TCP{}:
		return t
	case t == TCP{}:
		return u
	}
	more := u.fields()
	for i, field := range t.fields() {
		*field = Add(*field, *more[i])
	}
	return t
}

// Observations is how many round trip times were observed.
func (t TCP) Observations() (sum uint64) {
	for _, n := range t.RTTs {
		sum = Add(sum, n)
	}
	return sum
}

// MarshalJSON keeps it short, as that of [Counts].
func (t TCP) MarshalJSON() ([]byte, error) {
	fields := t.fields()
	for len(fields) > 0 && *fields[len(fields)-1] == 0 {
		fields = fields[:len(fields)-1]
	}
	return json.Marshal(fields)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *TCP) UnmarshalJSON(data []byte) error {
	var numbers []uint64
	if err := json.Unmarshal(data, &numbers); err != nil {
		return err
	}
	*t = TCP{}
	fields := t.fields()
	if len(numbers) > len(fields) {
		return fmt.Errorf("read counts of connections: %d numbers, expected at most %d", len(numbers), len(fields))
	}
	for i, n := range numbers {
		*fields[i] = n
	}
	return nil
}

// tcpCounters reads the slot of connections, which is ours as in [attachment.read].
func (at *attachment) tcpCounters(d Datapath) bpf.TCPCounters {
	n, err := d.ReadTCP(at.slot)
	if errors.Is(err, bpf.ErrReleased) {
		panic("usage: slot of an attachment was released: " + at.slot.Target.String())
	}
	return n
}

// readTCP puts what a slot counted into our words.
func (at *attachment) readTCP(d Datapath) TCP {
	n := at.tcpCounters(d)
	t := TCP{
		ConnectAttempts: n.ConnectAttempts, Connects: n.Connects, Accepts: n.Accepts, ConnectFailures: n.ConnectFailures,
		Closes: n.Closes, Resets: n.Resets, RetransmittedSegments: n.RetransmittedSegments,
		RTTMicroseconds: n.RTTMicroseconds, RTTs: n.RTTs,
	}
	if n.ListenDropsKnown {
		t.ListenDrops, t.ListenDropsKnown = n.ListenDrops, 1
	}
	return t
}

// addTCP adds what was counted of a container's connections, and at its sockets and layer 7 where
// that is counted. Where it runs and they are not counted any more, what was counted is not all,
// and not told.
func (c *Container) addTCP(t *tally, d Datapath) {
	counted := t.owned(d, "")
	if c.State == Running && !counted.Attached && !IsOthers(c.ID) {
		return
	}
	c.TCP, c.TCPSince = &counted.TCP, counted.AttachedAt
	if d.CountsSockets() {
		c.Sockets = &counted.Sockets
	}
	c.addRequests(counted.Requests, d)
	if c.State == Running {
		c.Established = t.established(d)
	}
}

// established is how many connections are now, nil where that is not known of one of its
// cgroups.
func (t *tally) established(d Datapath) *uint64 {
	var sum int64
	for _, at := range t.live {
		if !at.closedAt.IsZero() {
			continue
		}
		n := at.tcpCounters(d)
		if !n.BeforeKnown {
			return nil
		}
		// Left is read after Entered, and connections come and go meanwhile.
		sum += max(0, int64(n.Before+n.Entered-n.Left))
	}
	known := uint64(sum)
	return &known
}

// TCPCounted returns what the program has counted of the connections of a cgroup, and what is
// noted with that. Not ok: it is not counted.
func (s *Slots) TCPCounted(target Target) (_ bpf.TCPCounters, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return bpf.TCPCounters{}, false
	}
	return at.tcpCounters(s.Datapath), true
}

// NoteTCP changes what is noted with the slot of a cgroup's connections.
func (s *Slots) NoteTCP(target Target, change func(*bpf.TCPNote)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return nil
	}
	note := at.tcpCounters(s.Datapath).TCPNote
	change(&note)
	return s.Datapath.NoteTCP(at.slot, note)
}

// NoteListenDrops notes what the kernel has dropped in the network namespace of a container that
// has it to itself, since that was made: what was counted of the cgroup on earlier slots is part
// of it. Not known: the container shares the namespace by now.
func (s *Slots) NoteListenDrops(target Target, drops uint64, known bool) error {
	earlier := uint64(0)
	s.mu.Lock()
	if at := s.attachments[target]; at != nil && at.tally != nil {
		earlier = s.before(at).TCP.ListenDrops
	}
	s.mu.Unlock()
	return s.NoteTCP(target, func(n *bpf.TCPNote) {
		n.ListenDropsKnown = known
		if known {
			n.ListenDrops = max(n.ListenDrops, drops-min(drops, earlier))
		}
	})
}
