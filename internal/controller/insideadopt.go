// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// adoptInside goes on with the slots of interfaces in other namespaces. The kernel gives
// the inodes of namespaces again, so a filter that counts on the slot is the proof.
func (c *Controller) adoptInside(lefts []usage.Leftover) {
	missing := c.inNamespaces(lefts, c.adoptOneInside)
	for _, left := range missing {
		if err := c.Accounts.Retire(left); err != nil {
			c.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
		}
	}
}

func (c *Controller) adoptOneInside(ns *watcher.Namespace, left usage.Leftover) error {
	if left.Older {
		return c.Accounts.Retire(left)
	}
	slot, ok, err := c.Hooks.CurrentInside(ns.FD(), left.Ifindex)
	if err != nil {
		return err
	}
	if !ok || slot != left.Slot {
		// It may live on with one of two filters, or our empty qdisc.
		err := c.Hooks.DetachInside(ns.FD(), left.Ifindex, left.OwnQdisc)
		return errors.Join(err, c.Accounts.Retire(left))
	}
	nsid, err := ns.Number()
	if err != nil {
		return err
	}
	c.Accounts.Adopt(left, "", HookClsact)
	// Without a check, our own programs are put in place of those when its container is found.
	c.insides[left.Target] = &inside{Target: left.Target, nsid: nsid, slot: left.Slot, since: time.Now(), attached: true}
	return nil
}

// replaceInside has our programs count in place of those of an older layout.
func (c *Controller) replaceInside(ns *watcher.Namespace, left usage.Leftover) error {
	_, ok, err := c.Hooks.CurrentInside(ns.FD(), left.Ifindex)
	if err != nil || !ok || left.Older {
		return err
	}
	_, err = c.Hooks.AttachInside(ns.FD(), left.Ifindex, left.Slot, nil)
	return err
}

// inNamespaces does something in the namespaces of some slots. It returns the slots whose
// namespace is not there; none, if that can't be found out.
func (c *Controller) inNamespaces(lefts []usage.Leftover, do func(*watcher.Namespace, usage.Leftover) error) (missing []usage.Leftover) {
	if len(lefts) == 0 {
		return nil
	}
	inodes, visited := map[uint64]bool{}, map[uint64]bool{}
	for _, left := range lefts {
		inodes[left.NetNS] = true
	}
	err := c.Host.VisitNamespaces(inodes, func(ns *watcher.Namespace) error {
		visited[ns.Inode()] = true
		for _, left := range lefts {
			if left.NetNS != ns.Inode() {
				continue
			}
			if err := do(ns, left); err != nil {
				c.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
			}
		}
		return nil
	})
	if err != nil {
		c.Log.Warn("clean up after an earlier run", "err", err)
		return nil
	}
	for _, left := range lefts {
		if !visited[left.NetNS] {
			missing = append(missing, left)
		}
	}
	return missing
}
