// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// An interface without an end in the host's namespace is counted where it is, in the
// container's. No namespace is held for that: its owner's processes lead there each time.
// Where none is left the filters may go on counting, since others can hold a namespace;
// so the slot is given up only when the kernel says that the namespace has ended.

const (
	// lookEvery is how long an interface that no event told of may be missing in a container
	// whose others are counted.
	lookEvery = 5 * time.Minute
	// maxLooks bounds how many such containers one reconcile looks at.
	maxLooks = 64
)

// inside is an interface that leads out of its container's namespace without a host veth.
type inside struct {
	usage.Target
	name     string // the container's
	kind     string
	nsid     int // what the host calls the namespace
	slot     uint16
	since    time.Time // we know it
	attached bool
	owned    bool
	shadowed bool
	failure  string // of the last attempt to attach, as it stands in the log
	check    *check
	mend     backoff
	missed   *reading // where it has to make up from for its host veth
}

// countInside counts the uplinks of a namespace for its owner, puts back what was removed,
// and ends what is no uplink any more.
func (c *Controller) countInside(known *member, box *space, found watcher.Sandbox) (sum tally) {
	wanted, open := c.uplinks(known, box, found)
	box.uplinks, box.looked, sum.Waiting = len(wanted)+open > 0, time.Now(), open
	all, attached := c.insideIn(box)
	if len(wanted)+all == 0 {
		return sum
	}
	ns, err := c.enter(known)
	if err != nil {
		sum.Counted = attached // its processes have ended just now
		return sum
	}
	defer c.exit(known, ns)
	if ns.Inode() != found.NetNS {
		return sum // they are elsewhere by now
	}
	c.endOthers(ns, wanted, found.Interfaces)
	for _, i := range wanted {
		in := c.insideOf(found, i)
		if err := c.attachInside(ns, in); err != nil {
			c.failedInside(in, known, err)
		}
		switch {
		case c.insides[in.Target] == nil: // gone
		case !in.attached:
			sum.Failed++
		case !in.owned && !i.Up && !known.Ended && time.Since(in.since) < nameAfter:
			sum.Waiting++
		default:
			c.ownInside(in, known.Key)
			if c.Accounts.Owner(in.Target) == known.ID {
				sum.Counted++
			} else {
				sum.Others++
			}
		}
	}
	return sum
}

// succeedInsides counts interfaces in a namespace for its next owner.
func (c *Controller) succeedInsides(to roster.Member, found watcher.Sandbox, orphaned func(usage.Target) bool) error {
	var left []*inside
	for target, in := range c.insides {
		if target.NetNS == found.NetNS && in.attached && orphaned(target) {
			left = append(left, in)
		}
	}
	if len(left) == 0 {
		return nil
	}
	known := c.members[to.Key]
	ns, err := c.enter(known)
	if err != nil {
		return err
	}
	defer c.exit(known, ns)
	for _, in := range left {
		err = errors.Join(err, c.succeedInside(ns, in))
	}
	return err
}

// succeedInside counts an interface on another slot, for the next owner.
func (c *Controller) succeedInside(ns *watcher.Namespace, in *inside) error {
	slot, err := c.Accounts.Succeed(in.Target, func(slot uint16) error {
		_, err := c.Hooks.AttachInside(ns.FD(), in.Ifindex, slot, nil)
		return err
	})
	if slot != 0 { // else it is tried again
		in.slot, in.check = slot, c.begin(c.witnessedInside(ns, in), unsettled{})
	}
	return err
}

// uplinks returns the interfaces that are to be counted inside, and how many it can't be
// said of yet. What a nested container sends passes the interfaces of the outer one, so its
// own are not counted.
func (c *Controller) uplinks(known *member, box *space, found watcher.Sandbox) (wanted []watcher.Interface, open int) {
	for _, i := range found.Interfaces {
		if v := c.veths[i.HostIndex]; v != nil && v.inside {
			wanted = append(wanted, i)
			continue
		}
		if !i.Uplink || known.Found.ParentID != "" || !c.Settings().Interface(i.Name) {
			continue
		}
		if at := c.insides[targetOf(found, i)]; i.Kind != "veth" || at != nil && at.attached {
			wanted = append(wanted, i)
			continue
		}
		switch inner, sure := c.innerVeth(known, box, i.Index); {
		case !sure:
			open++
		case !inner:
			wanted = append(wanted, i)
		}
	}
	return wanted, open
}

// innerVeth says whether a veth to a third namespace is the outer end of a nested
// container's pair, and not, as in an overlay network, the container's own way out. A
// nested container is seen a moment after its veth; so where the outer one is not just
// starting, that is open at first.
func (c *Controller) innerVeth(known *member, box *space, index int) (inner, sure bool) {
	if box.Nests {
		return true, true
	}
	if known.Ended || time.Since(wallclock.Steadily(known.Found.CreatedAt)) < noVethAfter {
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

func targetOf(found watcher.Sandbox, i watcher.Interface) usage.Target {
	return usage.Target{Ifindex: i.Index, NetNS: found.NetNS}
}

// insideOf returns what is known of an uplink, and notes what may have changed.
func (c *Controller) insideOf(found watcher.Sandbox, i watcher.Interface) *inside {
	target := targetOf(found, i)
	in := c.insides[target]
	if in == nil {
		in = &inside{Target: target, since: time.Now()}
		c.insides[target] = in
	}
	in.name, in.kind, in.nsid = i.Name, i.Kind, found.NetNSID
	if v := c.veths[i.HostIndex]; v != nil && v.missed != nil {
		in.missed, v.missed = v.missed, nil
	}
	return in
}

// insideIn counts what is known in a namespace.
func (c *Controller) insideIn(box *space) (all, attached int) {
	for target, in := range c.insides {
		if target.NetNS != box.ID {
			continue
		}
		all++
		if in.attached {
			attached++
		}
	}
	return all, attached
}

// enter opens the namespace of a container; exit gives it up, unless it was held before.
func (c *Controller) enter(known *member) (*watcher.Namespace, error) {
	if known.held != nil {
		return known.held, nil
	}
	return c.Host.Hold(known.Found)
}

func (c *Controller) exit(known *member, ns *watcher.Namespace) {
	if ns == known.held {
		return
	}
	if err := ns.Close(); err != nil {
		c.Log.Warn("close network namespace", "container_id", known.ID, "err", err)
	}
}

func (c *Controller) witnessedInside(ns *watcher.Namespace, in *inside) witnessed {
	return witnessed{in.Target, in.name, func(asked func()) (watcher.LinkCounters, error) {
		return ns.Counters(in.Ifindex, asked)
	}}
}

// attachInside has an interface counted, or sees to it that it still is.
func (c *Controller) attachInside(ns *watcher.Namespace, in *inside) error {
	slot, ours, err := c.Hooks.CurrentInside(ns.FD(), in.Ifindex)
	if err != nil {
		return err
	}
	if in.attached && in.check != nil {
		return c.checkInside(ns, in, ours && slot == in.slot)
	}
	var on string
	if in.slot, on, err = c.Accounts.Open(in.Target, "", HookClsact); err != nil {
		return err
	}
	if err := c.putInside(ns, in); err != nil {
		if on == "" {
			err = errors.Join(err, c.Accounts.Close(in.Target))
		}
		return err // those of an earlier process go on counting
	}
	in.attached, in.failure = true, ""
	in.owned = c.Accounts.Owner(in.Target) != "" // an adopted one is its owner's already
	w := c.witnessedInside(ns, in)
	// A physical interface's counters have what it did for others, and those of one with
	// our filters what an earlier owner did.
	var open unsettled
	switch {
	case in.missed != nil:
		open = c.seed(w, *in.missed)
		in.missed = nil
	case on == "" && !ours && !in.physical():
		open = c.seed(w, reading{})
	}
	in.check = c.begin(w, open)
	c.Log.Debug("counting inside", "interface", in.name, "kind", in.kind, "target", in.Target)
	return nil
}

// putInside puts our programs on, or in place of our own.
func (c *Controller) putInside(ns *watcher.Namespace, in *inside) error {
	return c.mover().owning(in.Target, func(making func() error) (bool, error) {
		return c.Hooks.AttachInside(ns.FD(), in.Ifindex, in.slot, making)
	})
}

// checkInside compares our numbers with the kernel's, and mends. A container that may
// change its network can remove our filters.
func (c *Controller) checkInside(ns *watcher.Namespace, in *inside, intact bool) error {
	w := c.witnessedInside(ns, in)
	now, err := c.read(w)
	if err != nil {
		return err
	}
	switch {
	case intact:
		c.compareInside(w, in, now)
		return nil
	case less(now.kernel, in.check.last.kernel):
		// Not the one that we knew: the kernel gives numbers again.
		c.endInside(in)
		*in = inside{Target: in.Target, name: in.name, kind: in.kind, nsid: in.nsid, since: time.Now()}
		c.insides[in.Target] = in
		return c.attachInside(ns, in)
	}
	c.Log.Warn("our programs were removed: putting them back", "interface", in.name, "target", in.Target)
	if err := c.putInside(ns, in); err != nil {
		c.shadowInside(in, true)
		return err
	}
	c.metrics.reattached.Inc()
	c.shadowInside(in, false)
	if !in.physical() {
		c.seedSince(w, in.check)
	}
	return nil
}

func less(a, b watcher.LinkCounters) bool {
	return a.ReceivePackets < b.ReceivePackets || a.TransmitPackets < b.TransmitPackets ||
		a.ReceiveBytes < b.ReceiveBytes || a.TransmitBytes < b.TransmitBytes
}

func (c *Controller) compareInside(w witnessed, in *inside, now reading) {
	moved := now.kernel != in.check.last.kernel
	if !in.shadowed {
		c.settle(w, in.check, now)
	}
	in.check.take(now)
	switch {
	case in.physical():
	case in.check.blind():
		c.shadowInside(in, true)
	case moved && in.shadowed:
		c.shadowInside(in, false)
		c.seedSince(w, in.check)
	}
}

func (c *Controller) shadowInside(in *inside, shadowed bool) {
	if in.shadowed == shadowed {
		return
	}
	in.shadowed = shadowed
	c.Accounts.Show(in.Target, usage.Shown{Hook: HookClsact, Shadowed: shadowed})
	c.Log.Warn("packets pass an interface inside a container, and our programs see them or not",
		"interface", in.name, "target", in.Target, "seen", !shadowed)
}

// failedInside notes why an interface is not counted.
func (c *Controller) failedInside(in *inside, known *member, err error) {
	if errors.Is(err, tcctl.ErrGone) || errors.Is(err, watcher.ErrGone) {
		c.endInside(in)
		return
	}
	c.metrics.failures.Inc()
	if in.failure != err.Error() {
		c.Log.Error("interface is not counted; trying again",
			"interface", in.name, "container_id", known.ID, "target", in.Target, "err", err)
	}
	in.failure = err.Error()
}

func (c *Controller) ownInside(in *inside, owner roster.Key) {
	c.own(in.Target, owner, in.name, in.name)
	in.owned = true
}

// ownRest gives the owner of a namespace, which ends, the interfaces in it that had no name
// for good. It returns how many interfaces are counted there.
func (c *Controller) ownRest(box *space) (counted int) {
	for target, in := range c.insides {
		if target.NetNS != box.ID || !in.attached {
			continue
		}
		if !in.owned {
			c.ownInside(in, box.owner)
		}
		counted++
	}
	return counted
}

// endOthers ends the counting of what is in a namespace and not wanted: it is gone, or has
// moved and left its filters behind, or it is excluded by now.
func (c *Controller) endOthers(ns *watcher.Namespace, wanted, there []watcher.Interface) {
	for target, in := range c.insides {
		if target.NetNS != ns.Inode() || has(wanted, target.Ifindex) {
			continue
		}
		if in.attached && has(there, target.Ifindex) {
			if err := c.Hooks.DetachInside(ns.FD(), target.Ifindex, c.Accounts.QdiscOwned(target)); err != nil {
				c.Log.Warn("detach from interface in a container", "interface", in.name, "target", target, "err", err)
				continue
			}
		}
		c.endInside(in)
	}
}

func has(interfaces []watcher.Interface, index int) bool {
	for _, i := range interfaces {
		if i.Index == index {
			return true
		}
	}
	return false
}

// endInside ends the counting of an interface that is gone, or whose filters are.
func (c *Controller) endInside(in *inside) {
	delete(c.insides, in.Target)
	if err := c.Accounts.Close(in.Target); err != nil {
		c.Log.Error("close interface", "target", in.Target, "err", err)
	}
}

// namespaceGone ends the counting of all that was in a namespace.
func (c *Controller) namespaceGone(nsid int) {
	for _, in := range c.insides {
		if in.nsid != nsid {
			continue
		}
		if box := c.spaces[in.NetNS]; box != nil && in.attached && !in.owned {
			c.ownInside(in, box.owner)
		}
		c.endInside(in)
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
	if sum := c.countInside(owner, box, found); sum.Waiting > 0 {
		return []roster.Hint{{Key: box.owner}}
	}
	return nil
}

// glance compares an interface with the kernel's counters as they were told in the host's
// namespace, and goes where it is only if packets pass unseen.
func (c *Controller) glance(in *inside, kernel watcher.LinkCounters) []roster.Hint {
	box := c.spaces[in.NetNS]
	after, ok := c.counted(in.Target)
	if box == nil || !ok || in.check == nil || in.check.before == nil {
		return nil
	}
	now := reading{*in.check.before, kernel, after}
	last := in.check.last
	receive, transmit := now.grown(last)
	again := in.shadowed && now.kernel != last.kernel
	if !again && !less(now.kernel, last.kernel) && !receive.tooFew() && !transmit.tooFew() {
		c.settle(witnessed{Target: in.Target, name: in.name}, in.check, now)
		in.check.take(now)
		in.mend.forget()
		return nil
	}
	if in.mend.due() {
		in.mend.tried()
		return c.lookInside(box)
	}
	if receive.tooFew() || transmit.tooFew() {
		c.shadowInside(in, true)
	}
	return nil
}

// physical says that a driver keeps the interface's counters. It may do so seconds later,
// and for more than what passed here, so they witness nothing.
func (in *inside) physical() bool { return in.kind == "" }

// endUnreachable ends the counting in namespaces without a container whose end no event
// told. One that lives on is counted, for the owner that it had.
func (c *Controller) endUnreachable() {
	taken := map[int]bool{} // numbers of namespaces with a container
	for _, box := range c.spaces {
		taken[box.NSID] = true
	}
	for _, in := range c.insides {
		if c.spaces[in.NetNS] != nil {
			continue
		}
		there, err := c.Host.NamespaceThere(in.nsid)
		if err != nil {
			c.Log.Warn("look for the namespace of an interface", "target", in.Target, "err", err)
			continue
		}
		if !there || taken[in.nsid] {
			c.endInside(in)
		}
	}
}
