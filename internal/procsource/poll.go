// SPDX-License-Identifier: Apache-2.0

package procsource

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// iface is an interface of a sandbox.
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

// opened is the connections of a sandbox, which have a slot of their own: they belong to
// no interface, and are told with the first one.
type opened struct {
	name   string // of that
	target usage.Target
	slot   uint16
	told   connections
	// unknown: others were there before us, and nobody has told of them.
	unknown bool
}

// poll reads the files of a sandbox by any process that is in it. When none is left, the
// counters of the ends in the host stand in.
func (c *Controller) poll(box *sandbox) {
	now, err := c.read(box)
	switch {
	case errors.Is(err, errElsewhere):
		c.pollHost(box)
		for _, member := range box.members {
			if !member.look.Planned() {
				member.look.Again() // it may be in another namespace by now
			}
		}
	case err != nil:
		if box.failure != err.Error() {
			c.Log.Error("container is not counted; trying again", "container_id", box.owner.ID, "err", err)
		}
		box.failure = err.Error()
	default:
		box.failure = ""
		c.take(box, now)
		c.succeed(box)
		c.conclude(box)
	}
}

func (c *Controller) read(box *sandbox) (reading, error) {
	now, err := c.files.read(box.pid, box.number)
	if !errors.Is(err, errElsewhere) {
		return now, err
	}
	for _, member := range box.members {
		for _, pid := range c.Host.Processes(member.Container) {
			now, err := c.files.read(pid, box.number)
			if !errors.Is(err, errElsewhere) {
				box.pid = pid
				return now, err
			}
		}
	}
	return reading{}, errElsewhere
}

// take counts what a reading has more than the one before.
func (c *Controller) take(box *sandbox, now reading) {
	slices.SortFunc(now.interfaces, func(x, y interfaceReading) int { return cmp.Compare(x.index, y.index) })
	there := map[int]bool{}
	for _, r := range now.interfaces {
		there[r.index] = true
		c.track(box, r)
	}
	for index, i := range box.interfaces {
		if !there[index] {
			c.close(i)
			delete(box.interfaces, index)
		}
	}
	if box.connections != nil {
		c.connected(box.connections, now.connections)
	}
	box.polled = true
}

// track counts what passed an interface.
func (c *Controller) track(box *sandbox, r interfaceReading) {
	i := box.interfaces[r.index]
	if i == nil {
		if !r.up && r.duplex == (duplex{}) {
			return // it may have no name for good yet, or come with the namespace and never be used
		}
		i = &iface{since: time.Now(), fresh: box.fresh || box.polled}
		box.interfaces[r.index] = i
	}
	v, hosted := c.hostEnd(box, r.index)
	if !hosted && c.nests(box) {
		return
	}
	if hosted && !c.Settings().Interface(v.Name) {
		c.close(i)
		i.skipped, i.waits = true, false
		return
	}
	if i.counted && r.less(i.seen) {
		// It is another one by the same index.
		c.close(i)
		i.fresh, i.skipped = true, false
	}
	if !i.counted {
		i.waits = !hosted && i.fresh && time.Since(i.since) < noVethAfter
		if i.waits {
			return
		}
		i.target = usage.Target{NetNS: box.netns, Ifindex: r.index}
		if hosted {
			i.host, i.target = v.Index, usage.OnHost(v.Index)
		}
		c.open(box, i, r, v.Name)
	}
	i.seen = r.duplex
	c.count(i, r.duplex, r.ipv6)
}

// hostEnd returns the host's end of an interface.
func (c *Controller) hostEnd(box *sandbox, index int) (watcher.HostVeth, bool) {
	if i := box.interfaces[index]; i != nil && i.host != 0 {
		v, ok := c.veths[i.host]
		return v, ok
	}
	if box.nsid < 0 {
		number, err := c.Host.NamespaceNumber(box.pid)
		if err != nil {
			c.Log.Debug("ask for the number of a namespace", "err", err)
		} else {
			box.nsid = number
		}
	}
	for _, v := range c.veths {
		if box.nsid >= 0 && v.NetNSID == box.nsid && v.PeerIndex == index {
			return v, true
		}
	}
	return watcher.HostVeth{}, false
}

// open begins to count an interface. What the kernel has counted before is told already,
// by an earlier process or on an earlier slot, or it is seeded, or new.
func (c *Controller) open(box *sandbox, i *iface, r interfaceReading, host string) {
	slot, _, err := c.Accounts.Open(i.target, host, Hook)
	if err != nil {
		if !i.failed {
			c.Log.Error("interface is not counted; trying again", "interface", r.name, "container_id", box.owner.ID, "err", err)
		}
		i.failed = true
		return
	}
	i.failed, i.counted, i.slot, i.name = false, true, slot, r.name
	i.told, i.ipv6 = duplex{}, duplex{}
	id, name := box.owner.ID, r.name
	var known usage.Earlier
	var ok bool
	if !i.fresh {
		known, ok = c.earlier(box, i.target)
	}
	switch {
	case i.skipped, !i.fresh && !ok:
		i.told, i.ipv6 = r.duplex, r.ipv6
		err = c.Accounts.Seed(i.target, r.receive, r.transmit)
	case !i.fresh:
		id, name = known.ID, known.Name
		if told := interfaceNumbers(known.Counted); i.host != 0 || !r.less(told) { // else it is another one by the same number
			i.told, i.ipv6 = told, ipv6Numbers(known.Counted)
		}
	}
	if err := errors.Join(err, c.Accounts.Assign(i.target, id, name)); err != nil {
		c.Log.Warn("note the owner of an interface", "interface", r.name, "container_id", id, "err", err)
	}
	if member := box.members[id]; member != nil {
		c.own(box, member)
	} else {
		box.left = time.Now()
	}
	i.fresh, i.skipped = true, false
	if box.connections == nil {
		c.openConnections(box, id, name)
	}
	c.Log.Debug("counting", "container_id", id, "interface", r.name, "host_interface", host, "hook", Hook)
}

// earlier returns what earlier slots have of a target. An interface in the host has its
// index to itself until the host boots. The number of a namespace is another one's when it
// has ended, so what went by that must have been a member's.
func (c *Controller) earlier(box *sandbox, target usage.Target) (known usage.Earlier, ok bool) {
	known, ok = c.Accounts.Earlier(target)
	return known, ok && (target.NetNS == 0 || box.members[known.ID] != nil)
}

func interfaceNumbers(t usage.Traffic) duplex {
	return duplex{receive: t.Receive.Interface, transmit: t.Transmit.Interface}
}

func ipv6Numbers(t usage.Traffic) duplex {
	return duplex{receive: t.Receive.Family(usage.FamilyIPv6), transmit: t.Transmit.Family(usage.FamilyIPv6)}
}

// openConnections begins to count the connections of a sandbox.
func (c *Controller) openConnections(box *sandbox, id, name string) {
	o := &opened{name: name, target: usage.Target{NetNS: box.netns}, unknown: !box.fresh}
	var passed usage.Opens
	if known, ok := c.earlier(box, o.target); ok && !box.fresh {
		passed = known.Passed
		o.told = connections{active: passed.Transmit + known.Counted.Transmit.SYN, passive: passed.Receive + known.Counted.Receive.SYN}
		o.unknown = false
	}
	var err error
	if o.slot, _, err = c.Accounts.Open(o.target, "", Hook); err == nil {
		err = c.Accounts.Assign(o.target, id, name)
	}
	if err != nil {
		c.Log.Error("connections are not counted; trying again with the next interface", "container_id", id, "err", err)
		return
	}
	c.Accounts.Pass(o.target, passed)
	box.connections = o
}

// connected counts connections. Of those that were opened before us nobody knows more.
func (c *Controller) connected(o *opened, now connections) {
	switch {
	case o.unknown:
		o.told, o.unknown = now, false
		c.Accounts.Pass(o.target, usage.Opens{Receive: now.passive, Transmit: now.active})
	case now.active < o.told.active, now.passive < o.told.passive:
		o.told = connections{} // it is another namespace by the same number
		c.Accounts.Pass(o.target, usage.Opens{})
	}
	c.Datapath.count(o.slot,
		bpf.Counters{TCPSYN: now.passive - o.told.passive}, bpf.Counters{TCPSYN: now.active - o.told.active})
	o.told = now
}

// pollHost counts what the ends in the host say: when the last process of a container has
// ended they are there for some milliseconds more.
func (c *Controller) pollHost(box *sandbox) {
	for _, i := range box.interfaces {
		if !i.counted || i.host == 0 {
			continue
		}
		now, err := c.Host.Counters(i.host, nil)
		if errors.Is(err, watcher.ErrGone) {
			continue
		}
		if err != nil {
			c.Log.Warn("read the kernel's counters of an interface", "ifindex", i.host, "err", err)
			continue
		}
		c.count(i, duplex{
			receive:  volume{Bytes: now.ReceiveBytes, Packets: now.ReceivePackets},
			transmit: volume{Bytes: now.TransmitBytes, Packets: now.TransmitPackets},
		}, i.ipv6)
	}
}

// count adds what was not told yet to an interface's slot.
func (c *Controller) count(i *iface, now, six duplex) {
	if !i.counted {
		return
	}
	c.Datapath.count(i.slot,
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

func (c *Controller) close(i *iface) {
	if !i.counted {
		return
	}
	i.counted = false
	if err := c.Accounts.Close(i.target); err != nil {
		c.Log.Error("close interface", "target", i.target, "err", err)
	}
}

// closeAll ends the counting of a sandbox that has ended.
func (c *Controller) closeAll(box *sandbox) {
	for _, i := range box.interfaces {
		c.close(i)
	}
	if box.connections == nil {
		return
	}
	if err := c.Accounts.Close(box.connections.target); err != nil {
		c.Log.Error("close connections", "target", box.connections.target, "err", err)
	}
}
