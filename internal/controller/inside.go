// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/watcher"
)

const (
	// lookEvery is how long an interface that no event told of may be missing in a container
	// whose others are counted.
	lookEvery = 5 * time.Minute
	// maxLooks bounds how many such containers one reconcile looks at.
	maxLooks = 64
)

// countInside counts the uplinks of a namespace for its owner, puts back what was removed,
// and ends what is no uplink any more.
func (c *Controller) countInside(known *member, box *space, found watcher.Sandbox) (sum tally) {
	wanted, aside, open := c.wantedInside(known, box, found)
	idle := slices.ContainsFunc(aside, func(i watcher.Interface) bool { return i.Idle })
	box.uplinks, box.looked, sum.Waiting = len(wanted)+open > 0 || idle, time.Now(), open
	c.notCounted(known, found, &sum)
	all, attached := c.uplinks.in(box.ID)
	if len(wanted)+len(aside)+all == 0 {
		return sum
	}
	in, err := c.enter(known)
	if err != nil {
		sum.Counted = attached
		if !errors.Is(err, watcher.ErrNoProcess) { // else its processes have ended just now
			c.notEntered(known, err)
			sum.Failed = max(0, len(wanted)-attached)
		}
		return sum
	}
	known.failure = ""
	defer c.exit(known, in)
	if in.Inode() != found.NetNS {
		return sum // they are elsewhere by now
	}
	c.uplinks.endOthers(in, wanted, found.Interfaces)
	for _, i := range wanted {
		u := c.uplinks.of(found, i)
		box.takeIn(in, u)
		if v := c.veths.known[i.HostIndex]; v != nil && v.missed != nil {
			u.missed, v.missed = v.missed, nil
		}
		if missed := box.left[i.Index]; missed != nil && !u.attached() {
			u.missed = missed
		}
		if err := c.uplinks.keep(in, u, known.ID); err != nil {
			c.uplinks.notKept(u, known.ID, err)
		} else if u.attached() {
			delete(box.left, i.Index)
			delete(box.aside, i.Index)
			c.rename(&u.attachment, in.site(u.Ifindex), known.Key, i)
		}
		sum = sum.plus(c.assignInside(known, u, i.Up))
	}
	box.setAside(aside, found.Interfaces)
	return sum
}

// notCounted adds up the interfaces that lead out and are not counted.
func (c *Controller) notCounted(known *member, found watcher.Sandbox, sum *tally) {
	for _, i := range found.Interfaces {
		switch included := c.Settings().Interface(i.Name); {
		case known.Found.ParentID != "":
		case i.Uplink && !included:
			sum.Excluded++
		case i.Hidden && included:
			sum.Hidden++
		}
	}
}

// takeIn has an interface that was set aside make up for what has passed since the last look.
// What had passed before is counted elsewhere.
func (box *space) takeIn(in visit, u *uplink) {
	was, known := box.aside[u.Ifindex]
	if !known || u.attached() || u.missed != nil {
		return
	}
	if now, err := in.Counters(u.Ifindex, nil); err == nil && !less(now, was) {
		u.missed = &gap{since: reading{kernel: was}, kind: sinceUs}
	}
}

// setAside notes what the kernel had counted on interfaces that are not counted, when it was not
// yet known that they are to stay so: they may have begun to lead out since.
func (box *space) setAside(aside, there []watcher.Interface) {
	now := map[int]watcher.LinkCounters{}
	for _, i := range aside {
		if i.Passed != nil {
			now[i.Index] = *i.Passed
		}
		delete(box.veths, i.Index)
	}
	for index, was := range box.aside {
		if has(there, index) && !has(aside, index) {
			now[index] = was // it can't be counted yet, or that is open
		}
	}
	box.aside = now
}

func (k keeper) notEntered(known *member, err error) {
	k.metrics.failures.Inc()
	if known.failure != err.Error() {
		k.Log.Error("network namespace is not entered; trying again", "container_id", known.ID, "err", err)
	}
	known.failure = err.Error()
}

// assignInside gives a container an interface that is counted inside.
func (c *Controller) assignInside(known *member, u *uplink, up bool) (sum tally) {
	switch {
	case c.uplinks.known[u.Target] == nil: // gone
	case !u.attached():
		sum.Failed++
	case !c.owned(&u.attachment) && !up && !known.Ended && time.Since(u.since) < nameAfter:
		sum.Waiting++
	default:
		return c.give(u.Target, known.Key, u.name, u.name)
	}
	return sum
}

// succeedInside counts interfaces in a namespace for its next owner.
func (c *Controller) succeedInside(to roster.Member, found watcher.Sandbox, orphaned func(usage.Target) bool) error {
	var left []*uplink
	for target, u := range c.uplinks.known {
		if target.NetNS == found.NetNS && u.attached() && orphaned(target) {
			left = append(left, u)
		}
	}
	if len(left) == 0 {
		return nil
	}
	known := c.members[to.Key]
	in, err := c.enter(known)
	if err != nil {
		return err
	}
	defer c.exit(known, in)
	for _, u := range left {
		err = errors.Join(err, c.succeed(&u.attachment, in.site(u.Ifindex), hasEnded))
	}
	return err
}

// wantedInside returns the interfaces that are to be counted inside, those that are not as long
// as nothing changes, and how many it can't be said of yet. What a nested container sends passes
// the interfaces of the outer one, so its own are not counted.
func (c *Controller) wantedInside(known *member, box *space, found watcher.Sandbox) (wanted, aside []watcher.Interface, open int) {
	for _, i := range found.Interfaces {
		if v := c.veths.known[i.HostIndex]; v != nil && v.isElsewhere() {
			wanted = append(wanted, i)
			continue
		}
		at := c.uplinks.known[targetOf(found, i)]
		counted := at != nil && at.attached()
		if counted && c.isOnItsWay(i.HostIndex) {
			wanted = append(wanted, i) // else its host veth would count what passed here once more
			continue
		}
		if i.HostIndex != 0 || known.Found.ParentID != "" || !c.Settings().Interface(i.Name) {
			continue
		}
		if !counted && c.veths.leads(found.NetNSID, i.Index) {
			open++ // it has left, and the event is on its way that says since when it counts here
			continue
		}
		if !i.Uplink && !c.mayLeadOut(box, i, counted) {
			if i.Kind == "veth" || i.Kind == "netkit" || i.Kind == "tun" {
				aside = append(aside, i)
			}
			continue
		}
		if i.Kind != "veth" || i.Behind != watcher.BehindUnknown || box.left[i.Index] != nil || counted {
			wanted = append(wanted, i)
			continue
		}
		switch inner, sure := box.innerVeth(known, i.Index); {
		case !sure:
			open++
		case inner:
			aside = append(aside, i)
		default:
			wanted = append(wanted, i)
		}
	}
	return wanted, aside, open
}

// isOnItsWay says that an interface has a host veth by now, of which no event has told yet.
func (c *Controller) isOnItsWay(hostIndex int) bool {
	return hostIndex != 0 && c.veths.known[hostIndex] == nil && !c.veths.excluded[hostIndex] && !c.veths.aside[hostIndex]
}

// mayLeadOut says whether an interface that does not seem to lead out is counted all the same: a
// container must not hide its way out by making it the port of a bridge, or by having it lead to a
// namespace whose host veths are counted for another.
func (c *Controller) mayLeadOut(box *space, i watcher.Interface, counted bool) bool {
	switch i.Behind {
	case watcher.BehindUnknown:
		return counted && (i.Kind == "veth" || i.Kind == "netkit")
	case watcher.BehindOwn:
		return !c.countedFor(box, i.Via)
	}
	return false
}

// countedFor says whether host veths are counted for the owner of a namespace.
func (c *Controller) countedFor(box *space, hosts []int) bool {
	for _, index := range hosts {
		v := c.veths.known[index]
		if v == nil || !v.attached() || c.Accounts.Owner(v.Target) != box.owner.ID {
			return false
		}
	}
	return true
}

// innerVeth says whether a veth to a third namespace is the outer end of a nested
// container's pair, and not, as in an overlay network, the container's own way out. A
// nested container is seen a moment after its veth; so where the outer one is not just
// starting, that is open at first. It is for one that was not counted so far, too: the last
// process in a namespace may have ended right before that does.
func (box *space) innerVeth(known *member, index int) (inner, sure bool) {
	if box.Nests {
		return true, true
	}
	_, was := box.aside[index]
	switch {
	case was && known.Ended:
		return true, true
	case !was && (known.Ended || time.Since(wallclock.Steadily(known.Found.CreatedAt)) < noVethAfter):
		return false, true
	}
	if box.veths == nil {
		box.veths = map[int]time.Time{}
	}
	if box.veths[index].IsZero() {
		box.veths[index] = time.Now()
	}
	return false, time.Since(box.veths[index]) >= nameAfter
}

// enter opens the namespace of a container; exit gives it up, unless it was held before.
func (c *Controller) enter(known *member) (visit, error) {
	ns := known.held
	if ns == nil {
		var err error
		if ns, err = c.Host.Hold(known.Found); err != nil {
			return visit{}, err
		}
	}
	in, err := visiting(c.Hooks, ns)
	if err != nil && ns != known.held {
		err = errors.Join(err, ns.Close())
	}
	return in, err
}

func (k keeper) exit(known *member, in visit) {
	err := in.clsact.Close()
	if in.Namespace != known.held {
		err = errors.Join(err, in.Namespace.Close())
	}
	if err != nil {
		k.Log.Warn("close network namespace", "container_id", known.ID, "err", err)
	}
}

// namespaceGone ends the counting of all that was in a namespace.
func (c *Controller) namespaceGone(nsid int) {
	for _, u := range c.uplinks.known {
		if u.nsid != nsid {
			continue
		}
		if box := c.spaces[u.NetNS]; box != nil && u.attached() && !c.owned(&u.attachment) {
			c.own(u.Target, box.owner, u.name, u.name)
		}
		c.uplinks.end(u)
	}
}

// reconcileInside looks at what is counted inside of containers, and for what no event
// told of. It hints at the owners of interfaces that wait for their names.
func (c *Controller) reconcileInside() (hints []roster.Hint) {
	looks := 0
	for _, box := range c.spaces {
		owner := c.members[box.owner]
		if owner == nil || owner.Reason != usage.Accounted || !box.uplinks && time.Since(box.looked) < lookEvery {
			continue // others than those accounted are looked at anyway
		}
		if !box.uplinks {
			if looks++; looks > maxLooks {
				continue
			}
		}
		hints = append(hints, c.lookInside(box)...)
	}
	c.endUnreachable()
	return hints
}

// lookInside looks at what is counted inside of a container, and mends that.
func (c *Controller) lookInside(box *space) []roster.Hint {
	owner := c.members[box.owner]
	if owner == nil {
		return nil
	}
	found, err := c.inspect(owner)
	if err != nil || found.NetNS != box.ID {
		return nil
	}
	box.NSID = found.NetNSID
	c.assign(owner.Member, box, found.Interfaces) // one that was renamed
	if sum := c.countInside(owner, box, found); sum.Waiting > 0 {
		return []roster.Hint{{Key: box.owner}}
	}
	return nil
}

// glance compares an interface with the kernel's counters as they were told in the host's
// namespace, and goes where it is only if packets pass unseen.
func (c *Controller) glance(u *uplink, kernel watcher.LinkCounters) []roster.Hint {
	box := c.spaces[u.NetNS]
	after, ok := c.counted(u.Target)
	if box == nil || !ok || u.check == nil || u.check.before == nil {
		return nil
	}
	now := reading{*u.check.before, kernel, after}
	last := u.check.last
	receive, transmit := now.grown(last)
	again := u.state == shadowed && now.kernel != last.kernel
	tooFew := receive.tooFew() || transmit.tooFew()
	if !again && !less(now.kernel, last.kernel) && !tooFew && !u.check.leaking() {
		c.settle(&u.attachment, now)
		c.reckon(&u.attachment, now)
		u.check.take(now)
		u.mend.forget()
		return nil
	}
	if u.mend.due() {
		u.mend.tried()
		return c.lookInside(box)
	}
	if tooFew {
		c.shadow(&u.attachment)
	}
	return nil
}

// endUnreachable ends the counting in namespaces without a container whose end no event
// told. One that lives on is counted, for the owner that it had.
func (c *Controller) endUnreachable() {
	taken := map[int]bool{} // numbers of namespaces with a container
	for _, box := range c.spaces {
		taken[box.NSID] = true
	}
	for _, u := range c.uplinks.known {
		if c.spaces[u.NetNS] != nil {
			continue
		}
		there, err := c.Host.NamespaceThere(u.nsid)
		if err != nil {
			c.Log.Warn("look for the namespace of an interface", "target", u.Target, "err", err)
			continue
		}
		_, err = c.Host.CountersIn(u.nsid, u.Ifindex)
		if !there || taken[u.nsid] || errors.Is(err, watcher.ErrGone) {
			c.uplinks.end(u)
		}
	}
}
