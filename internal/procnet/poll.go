// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// iface is an interface of a namespace.
type iface struct {
	name    string
	host    int // index of its end in the host, 0 if it has none there
	since   time.Time
	fresh   bool // it is new, so all that the kernel has counted on it is to be counted
	skipped bool // its end in the host was not to be counted, so what passed there meanwhile is not either

	waits   bool // for its end in the host to be known
	failed  bool
	counted bool
	target  usage.Target
	slot    uint16
	seen    duplex // what its files said last
	told    duplex // what of its traffic has been counted
	ipv6    duplex // what of that as IPv6
}

// opened is the connections of a namespace, which have a slot of their own: they belong to
// no interface, and are told with the first one.
type opened struct {
	name   string // of that
	target usage.Target
	slot   uint16
	told   connections
	passed usage.Opens // what of that is not counted
	// unknown: others were there before us, and nobody has told of them.
	unknown bool
}

// pollAll reads the files of every namespace.
func (b *Backend) pollAll() (hints []roster.Hint) {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.polled = time.Now()
	for _, s := range b.spaces {
		if s.owner.Found.ParentID == "" {
			hints = append(hints, b.pollSpace(s)...)
		}
	}
	b.poll.Observe(time.Since(b.polled).Seconds())
	return hints
}

// pollSpace reads the files of a namespace by any process that is in it. When none is left,
// the counters of the ends in the host stand in. It hints at the containers for which that
// may have changed something.
func (b *Backend) pollSpace(s *space) []roster.Hint {
	before := b.outcome(s, s.owner.Key)
	now, err := b.read(s)
	switch {
	case errors.Is(err, errElsewhere):
		b.pollHost(s)
		return b.hintsIn(s) // they may be in another namespace by now
	case err != nil:
		if s.failure != err.Error() {
			b.Log.Error("container is not counted; trying again", "container_id", s.owner.ID, "err", err)
		}
		s.failure = err.Error()
		return nil
	}
	s.failure = ""
	b.take(s, now)
	b.countTCP(s)
	if b.outcome(s, s.owner.Key) != before {
		return []roster.Hint{{Key: s.owner.Key}}
	}
	return nil
}

// hintsIn hints at all that were located in a namespace.
func (b *Backend) hintsIn(s *space) (hints []roster.Hint) {
	for key, number := range b.in {
		if number == s.number {
			hints = append(hints, roster.Hint{Key: key})
		}
	}
	return hints
}

// read reads the files of a namespace by a process that is in it.
func (b *Backend) read(s *space) (reading, error) {
	now, err := b.files.read(s.pid, s.number)
	if !errors.Is(err, errElsewhere) {
		return now, err
	}
	for key, number := range b.in {
		if number != s.number {
			continue
		}
		for _, pid := range b.Host.Processes(b.members[key].Found) {
			now, err := b.files.read(pid, s.number)
			if !errors.Is(err, errElsewhere) {
				s.pid = pid
				return now, err
			}
		}
	}
	return reading{}, errElsewhere
}

// take counts what a reading has more than the one before.
func (b *Backend) take(s *space, now reading) {
	slices.SortFunc(now.interfaces, func(x, y interfaceReading) int { return cmp.Compare(x.index, y.index) })
	there := map[int]bool{}
	for _, r := range now.interfaces {
		there[r.index] = true
		b.track(s, r)
	}
	for index, i := range s.interfaces {
		if !there[index] {
			b.close(i)
			delete(s.interfaces, index)
		}
	}
	if s.connections != nil {
		b.connected(s, now.connections)
	}
	s.polled = true
}

// track counts what passed an interface.
func (b *Backend) track(s *space, r interfaceReading) {
	i := s.interfaces[r.index]
	if i == nil {
		if !r.up && r.duplex == (duplex{}) {
			return // it may have no name for good yet, or come with the namespace and never be used
		}
		i = &iface{since: time.Now(), fresh: s.fresh || s.polled}
		s.interfaces[r.index] = i
	}
	v, hosted := b.hostEnd(s, r.index)
	if !hosted && s.nests {
		return
	}
	if hosted && !b.Interface(v.Name) {
		b.close(i)
		i.skipped, i.waits = true, false
		return
	}
	if i.counted && r.less(i.seen) {
		// It is another one by the same index.
		b.close(i)
		i.fresh, i.skipped = true, false
	}
	if !i.counted {
		i.waits = !hosted && i.fresh && time.Since(i.since) < noVethAfter
		if i.waits {
			return
		}
		i.host, i.target = v.Index, s.target(r.index, v, hosted)
		b.open(s, i, r, v.Name)
	}
	i.seen = r.duplex
	b.count(i, r.duplex, r.ipv6)
	if i.counted {
		if err := b.Accounts.Lose(i.target, r.lost.receive, r.lost.transmit); err != nil {
			b.Log.Debug("note what was lost", "interface", r.name, "target", i.target, "err", err)
		}
	}
}

// hostEnd returns the host's end of an interface.
func (b *Backend) hostEnd(s *space, index int) (watcher.HostVeth, bool) {
	if i := s.interfaces[index]; i != nil && i.host != 0 {
		v, ok := b.veths[i.host]
		return v, ok
	}
	if s.nsid < 0 {
		number, err := b.Host.NamespaceNumber(s.pid)
		if err != nil {
			b.Log.Debug("ask for the number of a namespace", "err", err)
		} else {
			s.nsid = number
		}
	}
	for _, v := range b.veths {
		if s.nsid >= 0 && v.NetNSID == s.nsid && v.PeerIndex == index {
			return v, true
		}
	}
	return watcher.HostVeth{}, false
}

// open begins to count an interface. What the kernel has counted before is told already,
// by an earlier process or on an earlier slot, or it is seeded, or new.
func (b *Backend) open(s *space, i *iface, r interfaceReading, host string) {
	err := b.Accounts.MayTake(i.target, s.owner.ID)
	var slot uint16
	if err == nil {
		slot, _, err = b.Accounts.Open(i.target, host, Hook)
	}
	if err != nil {
		if !i.failed {
			b.Log.Error("interface is not counted; trying again", "interface", r.name, "container_id", s.owner.ID, "err", err)
		}
		i.failed = true
		return
	}
	i.failed, i.counted, i.slot, i.name = false, true, slot, r.name
	i.told, i.ipv6 = duplex{}, duplex{}
	id, name := s.owner.ID, r.name
	var known usage.Earlier
	var ok bool
	if !i.fresh {
		known, ok = b.earlier(s, i.target)
	}
	switch {
	case i.skipped, !i.fresh && !ok:
		i.told, i.ipv6 = r.duplex, r.ipv6
		err = b.Accounts.Seed(i.target, r.receive, r.transmit)
	case !i.fresh:
		id, name = known.ID, known.Name
		if told := interfaceNumbers(known.Counted); i.host != 0 || !r.less(told) { // else it is another one by the same number
			i.told, i.ipv6 = told, ipv6Numbers(known.Counted)
		}
	}
	if err := errors.Join(err, b.Accounts.Assign(i.target, id, name)); err != nil {
		b.Log.Warn("note the owner of an interface", "interface", r.name, "container_id", id, "err", err)
	}
	i.fresh, i.skipped = true, false
	if s.connections == nil {
		b.openConnections(s, id, name)
	}
	b.Log.Debug("counting", "container_id", id, "interface", r.name, "host_interface", host, "hook", Hook)
}

// earlier returns what earlier slots have of a target. An interface in the host has its
// index to itself until the host boots. The number of a namespace is another one's when it
// has ended, so what went by that must have been a member's.
func (b *Backend) earlier(s *space, target usage.Target) (known usage.Earlier, ok bool) {
	known, ok = b.Accounts.Earlier(target)
	return known, ok && (target.NetNS == 0 || b.in[roster.Key{ID: known.ID}] == s.number)
}

func interfaceNumbers(t usage.Traffic) duplex {
	return duplex{receive: t.Receive.Interface, transmit: t.Transmit.Interface}
}

func ipv6Numbers(t usage.Traffic) duplex {
	return duplex{receive: t.Receive.Family(usage.FamilyIPv6), transmit: t.Transmit.Family(usage.FamilyIPv6)}
}

// openConnections begins to count the connections of a namespace.
func (b *Backend) openConnections(s *space, id, name string) {
	o := &opened{name: name, target: usage.Target{NetNS: s.netns}, unknown: !s.fresh}
	var passed usage.Opens
	if known, ok := b.earlier(s, o.target); ok && !s.fresh {
		passed = known.Passed
		o.told = connections{active: passed.Transmit + known.Counted.Transmit.SYN, passive: passed.Receive + known.Counted.Receive.SYN}
		o.unknown = false
	}
	var err error
	if o.slot, _, err = b.Accounts.Open(o.target, "", Hook); err == nil {
		err = b.Accounts.Assign(o.target, id, name)
	}
	if err != nil {
		b.Log.Error("connections are not counted; trying again with the next interface", "container_id", id, "err", err)
		return
	}
	o.pass(b, passed)
	s.connections = o
}

// pass notes what is not counted, for the next process.
func (o *opened) pass(b *Backend, passed usage.Opens) {
	o.passed = passed
	b.Accounts.Pass(o.target, passed)
}

// connected counts connections. Of those that were opened before us nobody knows more, and
// those that host veths pass are counted as requests, if they are.
func (b *Backend) connected(s *space, now connections) {
	o := s.connections
	switch {
	case o.unknown:
		o.told, o.unknown = now, false
		o.pass(b, usage.Opens{Receive: now.passive, Transmit: now.active})
	case now.active < o.told.active, now.passive < o.told.passive:
		o.told = connections{} // it is another namespace by the same number
		o.pass(b, usage.Opens{})
	}
	if b.Requests && s.hosted() {
		if now != o.told {
			o.pass(b, usage.Opens{
				Receive:  o.passed.Receive + now.passive - o.told.passive,
				Transmit: o.passed.Transmit + now.active - o.told.active,
			})
		}
		o.told = now
		return
	}
	b.Datapath.count(o.slot,
		bpf.Counters{TCPSYN: now.passive - o.told.passive}, bpf.Counters{TCPSYN: now.active - o.told.active})
	o.told = now
}

// CountSYN counts requests of TCP that a host veth has passed.
func (b *Backend) CountSYN(ifindex int, receive, transmit uint64) {
	if slot, ok := b.Accounts.Slot(usage.OnHost(ifindex)); ok {
		b.Datapath.countSYN(slot, receive, transmit)
	}
}

// pollHost counts what the ends in the host say: when the last process of a container has
// ended they are there for some milliseconds more.
func (b *Backend) pollHost(s *space) {
	for _, i := range s.interfaces {
		if !i.counted || i.host == 0 {
			continue
		}
		now, err := b.Host.Counters(i.host, nil)
		if errors.Is(err, watcher.ErrGone) {
			continue
		}
		if err != nil {
			b.Log.Warn("read the kernel's counters of an interface", "ifindex", i.host, "err", err)
			continue
		}
		b.count(i, duplex{
			receive:  volume{Bytes: now.ReceiveBytes, Packets: now.ReceivePackets},
			transmit: volume{Bytes: now.TransmitBytes, Packets: now.TransmitPackets},
		}, i.ipv6)
	}
}

// count adds what was not told yet to an interface's slot.
func (b *Backend) count(i *iface, now, six duplex) {
	if !i.counted {
		return
	}
	b.Datapath.count(i.slot,
		growth(&i.told.receive, now.receive, &i.ipv6.receive, six.receive),
		growth(&i.told.transmit, now.transmit, &i.ipv6.transmit, six.transmit))
}

// The cells of what is known to be IPv6, and of all else: of protocols nothing is known.
var cellIPv6, cellElse = bpf.Cell(bpf.IPv6, bpf.Other), bpf.NonIP

// growth tells what has been counted and was not told. What of it was IPv6 is counted at
// another place in the kernel, so it is told as far as it fits in.
func growth(told *volume, now volume, toldSix *volume, six volume) (more bpf.Counters) {
	all, part := beyond(now, *told), beyond(six, *toldSix)
	part = volume{Bytes: min(part.Bytes, all.Bytes), Packets: min(part.Packets, all.Packets)}
	told.Bytes, told.Packets = told.Bytes+all.Bytes, told.Packets+all.Packets
	toldSix.Bytes, toldSix.Packets = toldSix.Bytes+part.Bytes, toldSix.Packets+part.Packets
	more.Interface = bpf.Volume(all)
	more.Cells[cellIPv6] = bpf.Volume(part)
	more.Cells[cellElse] = bpf.Volume(beyond(all, part))
	return more
}

// beyond returns what v has more than a volume, never less than nothing.
func beyond(v, than volume) volume {
	return volume{Bytes: v.Bytes - min(v.Bytes, than.Bytes), Packets: v.Packets - min(v.Packets, than.Packets)}
}

func (b *Backend) close(i *iface) {
	if !i.counted {
		return
	}
	i.counted = false
	if err := b.Accounts.Close(i.target); err != nil {
		b.Log.Error("close interface", "target", i.target, "err", err)
	}
}

// closeAll ends the counting of a namespace that has ended.
func (b *Backend) closeAll(s *space) {
	b.endTCP(s, false)
	for _, i := range s.interfaces {
		b.close(i)
	}
	if s.connections == nil {
		return
	}
	if err := b.Accounts.Close(s.connections.target); err != nil {
		b.Log.Error("close connections", "target", s.connections.target, "err", err)
	}
}
