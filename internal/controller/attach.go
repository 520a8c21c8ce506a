// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// adopt goes on with the slots of an earlier process whose filters are still on,
// and frees the others. The reconcile that follows puts our own programs in place
// of the old ones, on the same slots.
func (c *Controller) adopt() {
	for _, left := range c.Accounts.Leftovers() {
		slot, ok, err := c.Hooks.Current(left.Ifindex)
		if err == nil && ok && slot == left.Slot {
			c.Accounts.Adopt(left, "", hookName)
			continue
		}
		own, err := c.Accounts.Discard(left)
		if err == nil {
			// The interface may live on with one of two filters, or our empty qdisc.
			err = c.Hooks.Detach(left.Ifindex, own)
		}
		if err != nil {
			c.Log.Warn("clean up after an earlier run", "ifindex", left.Ifindex, "err", err)
		}
	}
}

// removeStrays takes our filters off interfaces that are not to be counted: they
// are excluded now, or their counters are lost.
func (c *Controller) removeStrays() {
	candidates, err := c.Hooks.Interfaces()
	if err != nil {
		c.Log.Warn("list qdiscs", "err", err)
		return
	}
	for _, index := range candidates {
		if _, wanted := c.veths[index]; wanted {
			continue
		}
		if err := c.remove(index); err != nil {
			c.Log.Warn("remove stray filters", "ifindex", index, "err", err)
		}
	}
}

// remove ends the counting of an interface that lives on.
func (c *Controller) remove(index int) error {
	own := c.Accounts.QdiscOwned(index)
	if err := c.Hooks.Detach(index, own); err != nil {
		return err
	}
	return c.Accounts.Close(index)
}

// vethSeen counts a host veth that is new, or notes what changed. seenAt is zero if
// no event told of it.
func (c *Controller) vethSeen(v watcher.HostVeth, seenAt time.Time) {
	if !c.Settings().Interface(v.Name) {
		c.exclude(v.Index)
		return
	}
	known := c.veths[v.Index]
	if known == nil {
		known = &veth{since: time.Now()}
		c.veths[v.Index] = known
	}
	if known.attached && known.Name != v.Name {
		c.Accounts.Rename(v.Index, v.Name)
	}
	if v.NetNSID < 0 && known.attached {
		v.NetNSID = known.NetNSID // the peer is back, to be removed: we want to know from where
	}
	known.HostVeth = v
	if !known.attached {
		c.attach(known, seenAt)
	}
	if known.attached && !known.owned && known.NetNSID >= 0 {
		c.findOwner(known)
	}
}

func (c *Controller) exclude(index int) {
	if c.veths[index] == nil {
		return
	}
	if err := c.remove(index); err != nil {
		c.Log.Warn("detach excluded interface", "ifindex", index, "err", err)
		return
	}
	delete(c.veths, index)
}

func (c *Controller) attach(v *veth, seenAt time.Time) {
	err := c.tryAttach(v)
	switch {
	case err == nil:
		v.attached, v.failure = true, ""
		if !seenAt.IsZero() {
			c.metrics.attach.Observe(time.Since(seenAt).Seconds())
		}
		c.Log.Debug("counting", "interface", v.Name, "ifindex", v.Index)
	case errors.Is(err, tcctl.ErrGone):
		delete(c.veths, v.Index)
	default:
		c.metrics.failures.Inc()
		if v.failure != err.Error() {
			c.Log.Error("interface is not counted; trying again with each reconcile", "interface", v.Name, "err", err)
		}
		v.failure = err.Error()
	}
}

func (c *Controller) tryAttach(v *veth) error {
	slot, err := c.Accounts.Open(v.Index, v.Name, hookName)
	if err != nil {
		return err
	}
	created, err := c.Hooks.Attach(v.Index, slot)
	if err != nil {
		return errors.Join(err, c.Accounts.Close(v.Index))
	}
	c.Accounts.Rename(v.Index, v.Name) // an adopted one has no name yet
	if created {
		return c.Accounts.OwnQdisc(v.Index)
	}
	return nil
}

// findOwner looks again at the containers that may own an interface that nobody
// owns: those that wait for one, and the one whose namespace it leads into.
func (c *Controller) findOwner(v *veth) {
	for _, known := range c.containers {
		waits := known.reason == usage.Starting || known.reason == usage.NoHostVeth
		if box := known.sandbox; box != nil {
			waits = box.owner == known && (box.nsid == v.NetNSID || box.nsid < 0)
		}
		if waits {
			known.delay = firstDelay
			c.resolve(known)
		}
		if v.owned {
			return
		}
	}
}

func (c *Controller) vethGone(index int) {
	if c.veths[index] == nil {
		return
	}
	delete(c.veths, index)
	if err := c.Accounts.Close(index); err != nil {
		c.Log.Error("close interface", "ifindex", index, "err", err)
	}
}
