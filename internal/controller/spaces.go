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

// Update implements [roster.Backend].
func (c *Controller) Update(m roster.Member) {
	known := c.members[m.Key]
	if known == nil {
		known = &member{}
		c.members[m.Key] = known
	}
	known.Member = m
	c.placeCgroup(known)
	if m.Ended {
		c.endCgroup(known)
		delete(c.members, m.Key)
	}
}

// Locate implements [roster.Backend].
func (c *Controller) Locate(m roster.Member) (at roster.Location[watcher.Sandbox], err error) {
	found, err := c.inspect(c.members[m.Key])
	if err != nil {
		return at, err
	}
	at.InHost, at.Found = found.Host, found
	if found.Host {
		return at, nil
	}
	at.Space = roster.Space{ID: found.NetNS, NSID: found.NetNSID}
	for _, i := range found.Interfaces {
		at.CountedFor = append(at.CountedFor, c.owners(usage.OnHost(i.HostIndex), targetOf(found, i))...)
	}
	return at, nil
}

// owners returns the containers that targets are counted for.
func (c *Controller) owners(targets ...usage.Target) (keys []roster.Key) {
	for _, target := range targets {
		if id := c.Accounts.Owner(target); id != "" {
			keys = append(keys, roster.Key{ID: id})
		}
	}
	return keys
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
	return sum.Outcome
}

// tally adds up outcomes.
type tally struct{ roster.Outcome }

func (t tally) plus(u tally) tally {
	t.Counted += u.Counted
	t.Failed += u.Failed
	t.Waiting += u.Waiting
	t.Others += u.Others
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
		v := c.veths[i.HostIndex]
		switch {
		case v == nil || v.inside:
			// Counted elsewhere, or none, or its event is on the way: that will bring us here again.
		case !v.attached() && v.moving:
			sum.Waiting++
		case !v.attached():
			sum.Failed++
		case !v.owned && !i.Up && !owner.Ended && (v.led.IsZero() || time.Since(v.led) < nameAfter):
			box.unnamed = interfaces
			sum.Waiting++
		default:
			c.own(usage.OnHost(v.Index), owner.Key, i.Name, v.Name)
			v.owned = true
			if c.Accounts.Owner(usage.OnHost(v.Index)) == owner.ID {
				sum.Counted++
			} else {
				sum.Others++
			}
		}
	}
	return sum
}

// own gives an interface to a container, which calls it name. An interface keeps its first
// owner.
func (c *Controller) own(target usage.Target, to roster.Key, name, known string) {
	if err := c.Accounts.Assign(target, to.ID, name); err != nil {
		c.Log.Warn("could not note the owner of an interface", "interface", known, "container_id", to.ID, "err", err)
	}
}

// errMoving says that an interface is on its way between two hooks.
var errMoving = errors.New("an interface is moving to another hook")

// Succeed implements [roster.Backend].
func (c *Controller) Succeed(to roster.Member, ended []roster.Key, in roster.Location[watcher.Sandbox]) (failed error) {
	orphaned := func(target usage.Target) bool {
		return slices.Contains(ended, roster.Key{ID: c.Accounts.Owner(target)})
	}
	for _, i := range in.Found.Interfaces {
		v := c.veths[i.HostIndex]
		if v == nil || !v.attached() || !orphaned(usage.OnHost(v.Index)) {
			continue
		}
		if v.moving {
			failed = errors.Join(failed, errMoving)
			continue
		}
		failed = errors.Join(failed, c.succeed(v))
	}
	return errors.Join(failed, c.succeedInsides(to, in.Found, orphaned))
}

// succeed counts a host veth on another slot, for the next owner.
func (c *Controller) succeed(v *veth) error {
	swap := func(slot uint16) error {
		_, err := c.Hooks.Attach(v.Index, slot, nil)
		return err
	}
	if v.hook == HookTCX {
		swap = nil
	}
	slot, err := c.Accounts.Succeed(usage.OnHost(v.Index), swap)
	if slot == 0 {
		return err // it is tried again
	}
	v.slot, v.check = slot, c.begin(c.witnessed(v), unsettled{})
	c.Log.Info("the container that had an interface has ended: counting for another", "interface", v.Name)
	return err
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
	sum.Counted = max(sum.Counted, c.ownRest(box))
	if m.Reason == usage.Starting && sum.Counted == 0 {
		sum = sum.plus(c.assign(m, box, slices.Concat(box.unnamed, c.leadingTo(in.NSID))))
	}
	return sum.Outcome
}

// leadingTo returns the interfaces that nobody owns and that lead into a namespace, by the
// number that the host has for it as long as it is held. Their own names are not known.
func (c *Controller) leadingTo(nsid int) (found []watcher.Interface) {
	for _, v := range c.veths {
		if nsid >= 0 && nsid == v.NetNSID && !v.owned {
			found = append(found, watcher.Interface{Name: v.Name, HostIndex: v.Index})
		}
	}
	return found
}

// Left implements [roster.Backend]. The interfaces in it are counted on until they go.
func (c *Controller) Left(in roster.Space) { delete(c.spaces, in.ID) }
