// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

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

	// InPart says that the kernel's counters of network namespaces are all there is: what they do
	// not tell is unknown. Known are ConnectAttempts, Accepts, Resets and ListenDrops. It is not
	// kept with the numbers.
	InPart bool
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
	if n.ListenDropsKnown || kindOf(at.slot.Target) == ofNamespace { // what was counted there stays
		t.ListenDrops, t.ListenDropsKnown = n.ListenDrops, 1
	}
	return t
}

// addTCP adds a container's connections: those that the program on its cgroup has counted, with its
// counts at sockets and layer 7, and those of its network namespaces. Either tally may be nil. A
// container that runs and is counted in neither way any more has none: they would not be all.
func (c *Container) addTCP(program, namespaces *tally, d Datapath) {
	byProgram, byNamespace := c.tellsTCP(program), c.tellsTCP(namespaces)
	if !byProgram && !byNamespace {
		return
	}
	var counted, more Interface
	if program != nil {
		counted = program.owned(d, "")
	}
	if namespaces != nil {
		more = namespaces.owned(d, "")
	}
	sum := counted.TCP.Plus(more.TCP)
	sum.InPart = !byProgram
	c.TCP, c.TCPSince = &sum, earlier(counted.AttachedAt, more.AttachedAt)
	if !byProgram {
		return
	}
	if d.CountsSockets() {
		c.Sockets = &counted.Sockets
	}
	c.addRequests(counted.Requests, d)
	if c.State == Running {
		c.Established = program.established(d)
	}
}

// tellsTCP reports whether a tally of connections, which may be nil, is told.
func (c *Container) tellsTCP(t *tally) bool {
	return t != nil && (c.State != Running || IsOthers(c.ID) || slices.ContainsFunc(t.live, func(at *attachment) bool { return at.closedAt.IsZero() }))
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

// earlier returns the earlier one of two times, of which a zero one is none.
func earlier(t, u time.Time) time.Time {
	if t.IsZero() || !u.IsZero() && u.Before(t) {
		return u
	}
	return t
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

// NoteListenDrops notes how many connections the kernel has dropped in the network namespace of a
// container that has it to itself, since the namespace was made. The counts of the cgroup on
// earlier slots, and of the namespace, are part of that number. Not known: the container shares
// the namespace by now.
func (s *Slots) NoteListenDrops(target Target, drops uint64, known bool) error {
	earlier := uint64(0)
	s.mu.Lock()
	if at := s.attachments[target]; at != nil && at.tally != nil {
		earlier = Add(s.before(at).TCP.ListenDrops, at.tally.account.droppedIn(s.Boot, drops))
	}
	s.mu.Unlock()
	return s.NoteTCP(target, func(n *bpf.TCPNote) {
		n.ListenDropsKnown = known
		if known {
			n.ListenDrops = max(n.ListenDrops, drops-min(drops, earlier))
		}
	})
}

// droppedIn returns what was counted of listen drops in the last network namespace that was counted
// for a container, if that can be the one whose kernel has dropped so many.
func (c *account) droppedIn(boot string, drops uint64) uint64 {
	if c.namespace == nil || len(c.namespace.priors) == 0 {
		return 0
	}
	last := c.namespace.priors[len(c.namespace.priors)-1]
	if last.Boot != boot || last.Told == nil || last.Told.ListenDrops > drops {
		return 0
	}
	return last.Counted.TCP.ListenDrops
}
