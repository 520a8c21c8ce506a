// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"

	"github.com/nettally/nettally/internal/usage"
)

// adopt goes on with the slots of an earlier process whose programs are still on, and
// retires the others: their owners keep what they counted. The reconcile that follows puts
// our own programs in place of the old ones, on the same slots.
func (c *Controller) adopt() {
	c.upgrade()
	var inside []usage.Leftover
	for _, left := range c.Accounts.Leftovers() {
		if left.NetNS != 0 {
			inside = append(inside, left)
			continue
		}
		if err := c.adoptOne(left); err != nil {
			c.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
		}
	}
	c.adoptInside(inside)
}

// adoptOne finishes what that process may have been at: it may have ended while it moved
// an interface from one hook to the other, with both counting and the hand-over on.
func (c *Controller) adoptOne(left usage.Leftover) error {
	if left.Cgroup != 0 {
		return c.adoptCgroup(left)
	}
	if left.Older {
		return c.Accounts.Retire(left) // what is on the interface is its successor's
	}
	tcx, _, err := c.Hooks.TCX(left.Ifindex)
	if err != nil {
		return err
	}
	if tcx {
		c.Accounts.Adopt(left, "", HookTCX)
		return c.letGo(left.Ifindex, func() error { return c.mover().detachClsact(left.Ifindex) })
	}
	slot, ok, err := c.Hooks.Current(left.Ifindex)
	if err == nil && ok && slot == left.Slot {
		c.Accounts.Adopt(left, "", HookClsact)
		return c.letGo(left.Ifindex, func() error { return c.Hooks.DetachTCX(left.Ifindex) })
	}
	// The interface may live on with one of two filters, or our empty qdisc.
	err = errors.Join(c.Hooks.Detach(left.Ifindex, left.OwnQdisc), c.Hooks.DetachTCX(left.Ifindex))
	return errors.Join(err, c.Accounts.Retire(left)) // last, since it forgets that the qdisc is ours
}

// letGo takes an adopted interface off the hook it is not counted on, and ends the
// hand-over, where there is one.
func (c *Controller) letGo(ifindex int, off func() error) error {
	if !c.Accounts.InHandover(usage.OnHost(ifindex)) {
		return nil
	}
	if err := off(); err != nil {
		return err
	}
	if err := c.Accounts.Quiesce(); err != nil {
		return err
	}
	return c.Accounts.Handover(usage.OnHost(ifindex), false)
}

// upgrade replaces the programs that count on slots of an older layout, and takes their
// counts over.
func (c *Controller) upgrade() {
	inherited, err := c.Accounts.Inherit()
	if err != nil {
		c.Log.Error("take over the counts of an older version; they stay where they are", "err", err)
		return
	}
	var inside []usage.Leftover
	for _, left := range inherited {
		if left.NetNS != 0 {
			inside = append(inside, left)
			continue
		}
		if err := c.replace(left); err != nil {
			c.Log.Warn("replace the programs of an older version", "ifindex", left.Ifindex, "err", err)
		}
	}
	c.inNamespaces(inside, c.replaceInside)
	if err := c.Accounts.Settle(); err != nil {
		c.Log.Error("take over the counts of an older version; they stay where they are", "err", err)
	}
}

func (c *Controller) replace(left usage.Leftover) error {
	if left.Cgroup != 0 {
		return c.replaceOnCgroup(left)
	}
	if left.Older {
		return nil
	}
	tcx, _, err := c.Hooks.TCX(left.Ifindex)
	if err != nil {
		return err
	}
	_, clsact, err := c.Hooks.Current(left.Ifindex)
	if err != nil {
		return err
	}
	if clsact {
		if _, err := c.Hooks.Attach(left.Ifindex, left.Slot, nil); err != nil {
			return err
		}
	}
	if !tcx {
		return nil
	}
	if err := c.Accounts.BindInherited(left); err != nil {
		return err
	}
	return c.Hooks.AttachTCX(left.Ifindex)
}

// replaceOnCgroup leaves the cgroup bound to its slot, which has the same number in either
// layout: ours had none in use.
func (c *Controller) replaceOnCgroup(left usage.Leftover) error {
	if c.Cgroups == nil {
		return nil
	}
	return c.Cgroups.Replace(left.Cgroup)
}

// removeStrays takes our programs off interfaces that are not to be counted: they
// are excluded now, or their counters are lost.
func (c *Controller) removeStrays() {
	filters, err := c.Hooks.Interfaces()
	links, tcxErr := c.Hooks.TCXInterfaces()
	if err := errors.Join(err, tcxErr); err != nil {
		c.Log.Warn("list interfaces with our programs", "err", err)
	}
	for _, index := range append(filters, links...) {
		if _, wanted := c.veths[index]; wanted {
			continue
		}
		if err := c.mover().remove(index); err != nil {
			c.Log.Warn("remove stray programs", "ifindex", index, "err", err)
		}
	}
}
