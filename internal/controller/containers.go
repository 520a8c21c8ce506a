// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/watcher"
)

const (
	// A container's process sits in the host's namespace while runc starts it, for
	// some 10 ms. One that is there after this time is there to stay.
	hostNetworkAfter = 2 * time.Second
	// Docker moves the veth into the namespace some 120 ms after it made that.
	noVethAfter = 10 * time.Second
	// Docker moves the interface into the namespace, renames it and sets it up, one right
	// after the other. One that is down in there for so long has its name.
	nameAfter = 10 * time.Second

	// No runtime takes that long.
	startedAfter = time.Minute

	firstDelay = 2 * time.Millisecond

	// Those of a pod that ends end within this time; who is there then goes on.
	succeedAfter = 2 * time.Second
)

func (c *Controller) containerStarted(found watcher.Container) {
	if c.containers[found.ID] != nil || !c.Settings().Container(found) {
		return
	}
	known := &container{Container: found, reason: usage.Starting, since: wallclock.Steadily(found.CreatedAt)}
	known.look.From(firstDelay)
	c.containers[found.ID] = known
	c.Accounts.Start(usage.Container{
		ID:        found.ID,
		ParentID:  found.ParentID,
		Runtime:   found.Runtime,
		Pod:       found.PodUID,
		Cgroup:    found.Cgroup,
		StartedAt: found.CreatedAt,
	})
	c.Names.Want(found.ID)
	c.Log.Debug("container started", "container_id", found.ID, "cgroup", found.Cgroup)
	c.placeCgroup(known)
	c.resolve(known)
}

// containerStopped closes a container's account as soon as its interfaces go, which
// may be before or after this.
func (c *Controller) containerStopped(id string) {
	known := c.containers[id]
	if known == nil {
		return
	}
	c.lastLook(known)
	c.endCgroup(known)
	delete(c.containers, id)
	c.leave(known)
	c.release(known)
	c.Accounts.Stop(id)
	c.Log.Debug("container stopped", "container_id", id)
}

// lastLook takes what is known of a container that ended before all of it was.
func (c *Controller) lastLook(known *container) {
	known.ended = true
	if known.held != nil {
		c.resolve(known)
	}
	inside := c.ownRest(known)
	if known.reason != usage.Starting {
		return
	}
	sum := c.assign(known, slices.Concat(known.unnamed, c.leadingTo(known.sandbox)))
	if sum.counted+inside > 0 {
		c.settle(known, usage.Accounted)
	} else {
		c.settle(known, usage.Ended)
	}
}

// leadingTo returns the interfaces that nobody owns and that led into a sandbox, by the
// number that the host has for it as long as it is held. Their own names are not known.
func (c *Controller) leadingTo(box *sandbox) []watcher.Interface {
	var found []watcher.Interface
	for _, v := range c.veths {
		if box != nil && box.nsid >= 0 && box.nsid == v.NetNSID && !v.owned {
			found = append(found, watcher.Interface{Name: v.Name, HostIndex: v.Index})
		}
	}
	return found
}

// resolve works out which interfaces a container owns, or plans to look again.
func (c *Controller) resolve(known *container) {
	defer c.placeCgroup(known)
	found, err := c.inspect(known)
	waited := time.Since(known.since)
	switch {
	case errors.Is(err, watcher.ErrNoProcess):
		c.later(known)
	case err != nil:
		c.Log.Debug("inspect container", "container_id", known.ID, "err", err)
		c.later(known)
	case found.Host && waited < hostNetworkAfter:
		c.later(known)
	case found.Host:
		c.leave(known)
		c.settle(known, usage.HostNetwork)
	default:
		c.join(known, found)
	}
}

// inspect looks at a container, by the namespace that is held where its processes have
// ended already: on a busy host a short life can be over before its veth's events are read.
func (c *Controller) inspect(known *container) (watcher.Sandbox, error) {
	found, err := c.Host.Inspect(known.Container)
	if known.held != nil && errors.Is(err, watcher.ErrNoProcess) {
		return known.held.Inspect()
	}
	return found, err
}

// hold keeps the namespace of a container open until its interfaces are known.
func (c *Controller) hold(known *container) {
	if known.held != nil || known.ended {
		return
	}
	held, err := c.Host.Hold(known.Container)
	if err != nil {
		return // it has ended, and was not there long enough for this
	}
	known.held = held
}

func (c *Controller) release(known *container) {
	if known.held == nil {
		return
	}
	if err := known.held.Close(); err != nil {
		c.Log.Warn("close network namespace", "container_id", known.ID, "err", err)
	}
	known.held = nil
}

// join puts a container into its sandbox. The sandbox's owner gets its interfaces.
func (c *Controller) join(known *container, found watcher.Sandbox) {
	box := c.sandboxes[found.NetNS]
	if box == nil {
		box = &sandbox{inode: found.NetNS, owner: known, members: map[string]*container{}}
		c.sandboxes[found.NetNS] = box
	}
	if known.sandbox != box {
		c.leave(known)
		known.sandbox = box
		box.members[known.ID] = known
		c.placeCgroups(box) // those in it before may share it now
	}
	box.nsid = found.NetNSID
	if box.owner != known && c.owns(known, found.Interfaces) {
		// So it was before nettally was started again, and came to know the others first.
		c.settle(box.owner, usage.SharedNetwork)
		box.owner = known
	}
	if box.owner != known {
		c.settle(known, usage.SharedNetwork)
		return
	}

	sum := c.assign(known, found.Interfaces).plus(c.countInside(known, found))
	switch {
	case sum.failed > 0:
		c.settle(known, usage.AttachFailed)
	case sum.counted > 0:
		c.settle(known, usage.Accounted)
	case sum.unnamed+sum.moving > 0:
	case sum.others > 0:
		c.settle(known, usage.SharedNetwork)
	case time.Since(known.since) < noVethAfter:
		c.later(known)
	default:
		c.settle(known, usage.NoHostVeth)
	}
	if sum.unnamed > 0 {
		known.look.Again()
	}
	if known.look.Planned() {
		c.hold(known)
	}
}

// owns says whether a container owns one of some interfaces already.
func (c *Controller) owns(known *container, interfaces []watcher.Interface) bool {
	return slices.ContainsFunc(interfaces, func(i watcher.Interface) bool {
		return i.HostIndex != 0 && c.Accounts.Owner(usage.OnHost(i.HostIndex)) == known.ID
	})
}

// tallied is how many interfaces are counted for a container, how many should be and are
// not, how many do not have their name yet, how many are on their way to tcx, and how many
// are another container's.
type tallied struct{ counted, failed, unnamed, moving, others int }

func (t tallied) plus(u tallied) tallied {
	return tallied{t.counted + u.counted, t.failed + u.failed, t.unnamed + u.unnamed, t.moving + u.moving, t.others + u.others}
}

// assign gives a container its interfaces.
func (c *Controller) assign(known *container, interfaces []watcher.Interface) (sum tallied) {
	for _, i := range interfaces {
		v := c.veths[i.HostIndex]
		switch {
		case v == nil || v.inside:
			// Counted elsewhere, or none, or its event is on the way: that will bring us here again.
		case !v.attached() && v.moving:
			sum.moving++ // that brings us here again
		case !v.attached():
			sum.failed++
		case !v.owned && !i.Up && !known.ended && (v.led.IsZero() || time.Since(v.led) < nameAfter):
			known.unnamed = interfaces
			sum.unnamed++
		default:
			if c.orphaned(usage.OnHost(v.Index), known) && !v.moving {
				c.succeed(v)
			}
			if err := c.Accounts.Assign(usage.OnHost(v.Index), known.ID, i.Name); err != nil {
				c.Log.Warn("note the owner of an interface", "interface", v.Name, "container_id", known.ID, "err", err)
			}
			v.owned = true
			if c.Accounts.Owner(usage.OnHost(v.Index)) == known.ID {
				sum.counted++
			} else {
				sum.others++
			}
		}
	}
	return sum
}

// orphaned says whether an interface that a container leads to is counted for one that has
// ended: a network namespace can outlive the container it was made for. Before we have
// seen everything, nobody is known to have ended.
func (c *Controller) orphaned(target usage.Target, known *container) bool {
	owner := c.Accounts.Owner(target)
	return c.complete && owner != "" && owner != known.ID && c.containers[owner] == nil && !c.hidden[owner]
}

// succeed has a host veth counted on another slot, for who comes after its owner.
func (c *Controller) succeed(v *veth) {
	slot, err := c.Accounts.Succeed(usage.OnHost(v.Index), func(slot uint16) error {
		_, err := c.Hooks.Attach(v.Index, slot)
		return err
	})
	if err != nil {
		c.Log.Warn("count interface for another container", "interface", v.Name, "err", err)
	}
	if slot == 0 {
		return // it is tried again
	}
	v.slot, v.check = slot, c.begin(c.witnessed(v))
	c.Log.Info("the container that had an interface has ended: counting for another", "interface", v.Name)
}

// leave takes a container out of its sandbox. If it was the owner, the oldest of the
// others gets the interfaces that are still to come.
func (c *Controller) leave(known *container) {
	box := known.sandbox
	if box == nil {
		return
	}
	known.sandbox = nil
	delete(box.members, known.ID)
	if len(box.members) == 0 {
		delete(c.sandboxes, box.inode)
		return
	}
	defer c.placeCgroups(box)
	if box.owner != known {
		return
	}
	box.owner = nil
	for _, member := range box.members {
		if box.owner == nil || member.CreatedAt.Before(box.owner.CreatedAt) {
			box.owner = member
		}
	}
	box.owner.look.From(succeedAfter)
	box.owner.look.Again()
}

// settle says what became of a container. Until something happens only the reconcile
// looks at it again.
func (c *Controller) settle(known *container, reason usage.Reason) {
	known.reason = reason
	known.look.Stop()
	owner := ""
	if box := known.sandbox; box != nil && box.owner != known {
		owner = box.owner.ID
	}
	c.Accounts.Share(known.ID, owner)
	c.release(known)
	c.placeCgroup(known)
	c.Accounts.Explain(known.ID, reason)
}

// later plans another look at a container that is being started. One that does not
// come to be is left to events and the reconcile.
func (c *Controller) later(known *container) {
	if time.Since(known.since) < startedAfter {
		known.look.Again()
		return
	}
	known.look.Stop()
	c.release(known)
}

func (c *Controller) resolveDue() {
	now := time.Now()
	for _, known := range c.containers {
		if known.look.Due(now) {
			c.resolve(known)
		}
	}
}
