// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

const (
	// Docker moves the veth into the namespace some 120 ms after it made that.
	noVethAfter = 10 * time.Second
	// Docker moves the interface into the namespace, renames it and sets it up, one right
	// after the other. An interface that is down in there for so long has its name.
	nameAfter = 10 * time.Second
)

// member is a container that is there.
type member struct {
	roster.Member
	held    *watcher.Namespace // its own, while its interfaces are still to come
	failure string             // to enter its namespace, as it stands in the log
}

// space is a network namespace with containers in it.
type space struct {
	roster.Space
	owner   roster.Key          // its interfaces are counted for, as of the last time
	unnamed []watcher.Interface // those seen last that had no name for good yet
	uplinks bool                // it has some, or may have, at the last look
	looked  time.Time           // for them
	veths   map[int]time.Time   // to third namespaces: when they were first seen
	left    map[int]*gap        // those whose host ends have left the host
	// aside are those that are not counted since what passes them is counted elsewhere, or nothing
	// does, with what the kernel had counted on them at the last look.
	aside map[int]watcher.LinkCounters

	pid        int    // of a process that was in it when its connections were counted
	tcpFailure string // to count these, as it stands in the log
}

// Update implements [roster.Backend].
func (c *Controller) Update(m roster.Member) {
	known := c.members[m.Key]
	if known == nil {
		known = &member{}
		c.members[m.Key] = known
		c.inside[m.Found.ParentID]++
		if usage.UserOf(m.ID) != "" {
			known.Member = m
			return // there may be thousands at once: its cgroup is placed when it is looked at, in its turn
		}
	}
	known.Member = m
	c.groups.place(known)
	c.sockets.place(known)
	if m.Ended {
		c.groups.end(m.Key)
		c.sockets.end(m.Key)
		delete(c.members, m.Key)
		if c.inside[m.Found.ParentID]--; c.inside[m.Found.ParentID] == 0 {
			delete(c.inside, m.Found.ParentID)
		}
		return
	}
	for inode, box := range c.spaces {
		if c.CountNamespaces && box.owner == m.Key {
			c.countNamespace(inode, box) // it may be alone there from now on, or not any more
		}
	}
}

// Locate implements [roster.Backend].
func (c *Controller) Locate(m roster.Member) (at roster.Location[watcher.Sandbox], err error) {
	found, err := c.inspect(c.members[m.Key])
	if err != nil {
		return at, err
	}
	at.InHost, at.Found, at.Kernel = found.Host, found, found.Kernel
	if found.Host {
		return at, nil
	}
	at.Space, at.Spread = roster.Space{ID: found.NetNS, NSID: found.NetNSID}, found.Spread
	for _, i := range found.Interfaces {
		at.CountedFor = append(at.CountedFor, c.owners(usage.OnHost(i.HostIndex))...)
		at.CountedFor = append(at.CountedFor, c.owners(targetOf(found, i))...)
	}
	return at, nil
}

// Strays implements [roster.Backend].
func (c *Controller) Strays(m roster.Member, from roster.Space) bool {
	now := c.Host.Stand(m.Found)
	return now.Spread != watcher.Together || now.NetNS != 0 && now.NetNS != from.ID
}

// inspect looks at a container, by the namespace that is held where its processes have
// ended already: on a busy host a short life can be over before its veth's events are read.
func (c *Controller) inspect(known *member) (watcher.Sandbox, error) {
	found, err := c.Host.Inspect(known.Found)
	if known.held != nil && errors.Is(err, watcher.ErrNoProcess) {
		return known.held.Inspect()
	}
	return found, err
}

// Count implements [roster.Backend]. The namespace of a container whose interfaces are still
// to come is held open.
func (c *Controller) Count(owner roster.Member, in roster.Location[watcher.Sandbox]) roster.Outcome {
	box := c.spaces[in.ID]
	if box == nil {
		box = &space{}
		c.spaces[in.ID] = box
	}
	box.Space, box.owner = in.Space, owner.Key
	known := c.members[owner.Key]
	sum := c.assign(owner, box, in.Found.Interfaces).plus(c.countInside(known, box, in.Found))
	if sum.Waiting > 0 || sum.Outcome == (roster.Outcome{}) {
		c.hold(known)
	}
	sum.Given = in.Found.Given
	return sum.Outcome
}

// tally adds up outcomes.
type tally struct{ roster.Outcome }

func (t tally) plus(u tally) tally {
	t.Counted += u.Counted
	t.Failed += u.Failed
	t.Waiting += u.Waiting
	t.Others += u.Others
	t.Excluded += u.Excluded
	t.Hidden += u.Hidden
	return t
}

// hold keeps the namespace of a container open until its interfaces are known.
func (c *Controller) hold(known *member) {
	if known.held != nil || known.Ended {
		return
	}
	held, err := c.Host.Hold(known.Found)
	if err != nil {
		return // it has ended, and was not there long enough for this
	}
	known.held = held
}

// Release implements [roster.Backend].
func (c *Controller) Release(k roster.Key) {
	known := c.members[k]
	if known == nil || known.held == nil {
		return
	}
	if err := known.held.Close(); err != nil {
		c.Log.Warn("could not close network namespace", "container_id", k.ID, "err", err)
	}
	known.held = nil
}

// assign gives a container its interfaces that have an end in the host.
func (c *Controller) assign(owner roster.Member, box *space, interfaces []watcher.Interface) (sum tally) {
	for _, i := range interfaces {
		v := c.veths.known[i.HostIndex]
		switch {
		case c.veths.excluded[i.HostIndex]:
			sum.Excluded++
		case v == nil || v.isElsewhere():
			// Counted elsewhere, or none, or its event is on the way: that will bring us here again.
		case !v.attached() && v.atWork():
			sum.Waiting++
		case !v.attached():
			sum.Failed++
		case !c.owned(&v.attachment) && !i.Up && !owner.Ended && (v.led.IsZero() || time.Since(v.led) < nameAfter):
			box.unnamed = interfaces
			sum.Waiting++
		default:
			if !v.atWork() {
				c.rename(&v.attachment, c.veths.at(v), owner.Key, i)
			}
			sum = sum.plus(c.give(v.Target, owner.Key, i.Name, v.name))
		}
	}
	return sum
}

// errMoving says that an interface is on its way between two hooks.
var errMoving = errors.New("an interface is moving to another hook")

// Succeed implements [roster.Backend].
func (c *Controller) Succeed(to roster.Member, ended []roster.Key, in roster.Location[watcher.Sandbox]) (failed error) {
	orphaned := func(target usage.Target) bool {
		return slices.Contains(ended, roster.Key{ID: c.Accounts.Owner(target)})
	}
	for _, i := range in.Found.Interfaces {
		v := c.veths.known[i.HostIndex]
		if v == nil || !v.attached() || !orphaned(v.Target) {
			continue
		}
		if v.atWork() || c.Accounts.InHandover(v.Target) {
			failed = errors.Join(failed, errMoving)
			continue
		}
		failed = errors.Join(failed, c.succeed(&v.attachment, c.veths.at(v), hasEnded))
	}
	return errors.Join(failed, c.succeedInside(to, in.Found, orphaned))
}

// Last implements [roster.Backend].
func (c *Controller) Last(m roster.Member, in roster.Space) roster.Outcome {
	box, known := c.spaces[in.ID], c.members[m.Key]
	if box == nil || box.owner != m.Key || known == nil {
		return roster.Outcome{}
	}
	known.Member = m
	var sum tally
	if known.held != nil {
		if found, err := c.inspect(known); err == nil && found.NetNS == in.ID {
			sum = c.assign(m, box, found.Interfaces).plus(c.countInside(known, box, found))
		}
	}
	sum.Counted = max(sum.Counted, c.uplinks.ownRest(box))
	if m.Reason == usage.Starting && sum.Counted == 0 {
		sum = sum.plus(c.assign(m, box, slices.Concat(box.unnamed, c.veths.leadingTo(in.NSID))))
	}
	return sum.Outcome
}

// Left implements [roster.Backend]. The interfaces in it are counted on until they go.
func (c *Controller) Left(in roster.Space) {
	delete(c.spaces, in.ID)
	c.endNamespace(in.ID, false)
}

// vethGone ends the counting of a host veth that is gone. One that was moved to another namespace
// is the container's way out still, and is counted at the container's end.
func (c *Controller) vethGone(index int, moved bool) (hints []roster.Hint) {
	delete(c.veths.excluded, index)
	delete(c.veths.aside, index)
	v := c.veths.known[index]
	if v == nil {
		return nil
	}
	if !moved { // else it is counted on at the other end, if it is counted there
		c.uplinks.endPeer(v)
	}
	c.ownAtLast(v)
	if moved {
		hints = c.leaveHost(v)
	}
	c.veths.gone(v)
	return hints
}

// leftHost looks at the host veths that a list lacks. Where the other end is there still, the event
// that says that this one was moved is on its way, or was lost.
func (c *Controller) leftHost(there map[int]bool) (hints []roster.Hint) {
	for index, v := range c.veths.known {
		if there[index] || v.link.NetNSID < 0 {
			continue
		}
		if _, err := c.Host.Counters(index, nil); !errors.Is(err, watcher.ErrGone) {
			continue
		}
		if _, err := c.Host.CountersIn(v.link.NetNSID, v.link.PeerIndex); err == nil {
			hints = append(hints, c.vethGone(index, true)...)
		}
	}
	return hints
}

// leaveHost notes what the kernel has counted at the end in the container that is in our numbers:
// the rest is mended there.
func (c *Controller) leaveHost(v *veth) (hints []roster.Hint) {
	if !v.attached() || v.check == nil || v.link.NetNSID < 0 {
		return nil
	}
	for _, box := range c.spaces {
		if box.NSID != v.link.NetNSID {
			continue
		}
		if box.left == nil {
			box.left = map[int]*gap{}
		}
		box.left[v.link.PeerIndex], box.uplinks = c.told(v), true
		hints = append(hints, roster.Hint{Key: box.owner})
	}
	return hints
}

// ownAtLast gives an interface that goes to the container it led to, where its own name
// was still to come: podman removes it before the container's cgroup.
func (c *Controller) ownAtLast(v *veth) {
	if c.owned(&v.attachment) || v.link.NetNSID < 0 {
		return
	}
	for _, box := range c.spaces {
		if box.NSID != v.link.NetNSID {
			continue
		}
		name := v.name
		for _, i := range box.unnamed {
			if i.HostIndex == v.Ifindex {
				name = i.Name
			}
		}
		c.own(v.Target, box.owner, name, v.name)
	}
}
