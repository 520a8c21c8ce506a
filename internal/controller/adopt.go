// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// adoption goes on with what an earlier process counted.
type adoption struct {
	keeper
	mover
	uplinks *uplinks
}

// adopt goes on with the slots of an earlier process whose programs are still on, and
// retires the others: their owners keep what they counted. The reconcile that follows puts
// our own programs in place of the old ones, on the same slots.
func (a adoption) adopt() {
	a.upgrade()
	var inside []usage.Leftover
	for _, left := range a.Accounts.Leftovers() {
		if left.Sockets && left.Cgroup == 0 {
			a.retireNamespace(left)
			continue
		}
		if left.NetNS != 0 {
			inside = append(inside, left)
			continue
		}
		if err := a.adoptOne(left); err != nil {
			a.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
		}
	}
	a.adoptInside(inside)
}

// adoptOne finishes what that process may have been at: it may have ended while it moved
// an interface from one hook to the other, with both counting and the hand-over on.
func (a adoption) adoptOne(left usage.Leftover) error {
	if left.Cgroup != 0 {
		return a.adoptCgroup(left)
	}
	if left.Older {
		return a.Accounts.Retire(left) // what is on the interface is its successor's
	}
	tcx, clsact := a.on(HookTCX, left.Ifindex), a.on(HookClsact, left.Ifindex)
	there, err := tcx.counts(left.Slot)
	if err != nil {
		return err
	}
	if there {
		a.Accounts.Adopt(left, "", HookTCX)
		return a.letGo(left.Ifindex, func() error { return a.offClsact(left.Ifindex) })
	}
	if there, err = clsact.counts(left.Slot); err == nil && there {
		a.Accounts.Adopt(left, "", HookClsact)
		return a.letGo(left.Ifindex, func() error { return tcx.detach(false) })
	}
	return a.retire(left, clsact, tcx)
}

// retire ends the counting on a slot that nothing counts on. The interface may live on with one
// of two filters, or our empty qdisc. The slot comes last: it says that the qdisc is ours.
func (a adoption) retire(left usage.Leftover, sites ...site) (err error) {
	for _, at := range sites {
		err = errors.Join(err, at.detach(left.OwnQdisc))
	}
	return errors.Join(err, a.Accounts.Retire(left))
}

// letGo takes an adopted interface off the hook it is not counted on, and ends the
// hand-over, where there is one.
func (a adoption) letGo(ifindex int, off func() error) error {
	if !a.Accounts.InHandover(usage.OnHost(ifindex)) {
		return nil
	}
	if err := off(); err != nil {
		return err
	}
	if err := a.Accounts.Quiesce(); err != nil {
		return err
	}
	return a.Accounts.Handover(usage.OnHost(ifindex), false)
}

// upgrade replaces the programs that count on slots of an older layout, and takes their
// counts over.
func (a adoption) upgrade() {
	inherited, err := a.Accounts.Inherit()
	if err != nil {
		a.Log.Error("take over the counts of an older version; they stay where they are", "err", err)
		return
	}
	var inside []usage.Leftover
	for _, left := range inherited {
		if left.Sockets && left.Cgroup == 0 {
			continue // no program counts on it
		}
		if left.NetNS != 0 {
			inside = append(inside, left)
			continue
		}
		if err := a.replace(left); err != nil {
			a.Log.Warn("replace the programs of an older version", "ifindex", left.Ifindex, "err", err)
		}
	}
	a.inNamespaces(inside, a.replaceInside)
	if err := a.Accounts.Settle(); err != nil {
		a.Log.Error("take over the counts of an older version; they stay where they are", "err", err)
	}
}

func (a adoption) replace(left usage.Leftover) error {
	if left.Cgroup != 0 {
		return a.replaceOnCgroup(left)
	}
	if left.Older {
		return nil
	}
	tcx, _, err := a.Hooks.TCX(left.Ifindex)
	if err != nil {
		return err
	}
	_, clsact, err := a.Hooks.Current(left.Ifindex)
	if err != nil {
		return err
	}
	if clsact {
		if _, err := a.Hooks.Attach(left.Ifindex, left.Slot, nil); err != nil {
			return err
		}
	}
	if !tcx {
		return nil
	}
	if err := a.Accounts.BindInherited(left); err != nil {
		return err
	}
	return a.Hooks.AttachTCX(left.Ifindex)
}

// replaceOnCgroup leaves the cgroup bound to its slot, which has the same number in either
// layout: ours had none in use.
func (a adoption) replaceOnCgroup(left usage.Leftover) error {
	on := a.putting(left.Sockets)
	switch {
	case on == nil:
		return nil
	case left.Sockets && !a.CountSockets:
		return on.Detach(left.Cgroup)
	}
	return on.Replace(left.Cgroup)
}

// adoptInside goes on with the slots of interfaces in other namespaces. The kernel gives
// the inodes of namespaces again, so a filter that counts on the slot is the proof.
func (a adoption) adoptInside(lefts []usage.Leftover) {
	missing := a.inNamespaces(lefts, a.adoptOneInside)
	for _, left := range missing {
		if err := a.Accounts.Retire(left); err != nil {
			a.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
		}
	}
}

func (a adoption) adoptOneInside(in visit, left usage.Leftover) error {
	if left.Older {
		return a.Accounts.Retire(left)
	}
	at := in.site(left.Ifindex)
	there, err := at.counts(left.Slot)
	if err != nil {
		return err
	}
	if !there {
		left.Torn = true // by the container, since nobody else has to do there
		return a.retire(left, at)
	}
	nsid, err := in.Number()
	if err != nil {
		return err
	}
	a.Accounts.Adopt(left, "", HookClsact)
	// Our own programs are put in place of those when its container is found.
	a.uplinks.known[left.Target] = &uplink{nsid: nsid, attachment: attachment{
		Target: left.Target, state: adopted, hook: HookClsact, slot: left.Slot, since: time.Now(),
	}}
	return nil
}

// replaceInside has our programs count in place of those of an older layout.
func (a adoption) replaceInside(in visit, left usage.Leftover) error {
	_, ok, err := in.clsact.Current(left.Ifindex)
	if err != nil || !ok || left.Older {
		return err
	}
	_, err = in.clsact.Attach(left.Ifindex, left.Slot, nil)
	return err
}

// inNamespaces does something in the namespaces of some slots. It returns the slots whose
// namespace is not there; none, if that can't be found out.
func (a adoption) inNamespaces(lefts []usage.Leftover, do func(visit, usage.Leftover) error) (missing []usage.Leftover) {
	if len(lefts) == 0 {
		return nil
	}
	inodes, visited := map[uint64]bool{}, map[uint64]bool{}
	for _, left := range lefts {
		inodes[left.NetNS] = true
	}
	err := a.Host.VisitNamespaces(inodes, func(ns *watcher.Namespace) error {
		visited[ns.Inode()] = true
		in, err := visiting(a.Hooks, ns)
		if err != nil {
			a.Log.Warn("clean up after an earlier run", "netns", ns.Inode(), "err", err)
			return nil
		}
		for _, left := range lefts {
			if left.NetNS != ns.Inode() {
				continue
			}
			if err := do(in, left); err != nil {
				a.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
			}
		}
		if err := in.clsact.Close(); err != nil {
			a.Log.Warn("clean up after an earlier run", "netns", ns.Inode(), "err", err)
		}
		return nil
	})
	if err != nil {
		a.Log.Warn("clean up after an earlier run", "err", err)
		return nil
	}
	for _, left := range lefts {
		if !visited[left.NetNS] {
			missing = append(missing, left)
		}
	}
	return missing
}

// adoptCgroup goes on with a cgroup that an earlier process counted, or retires its slot.
func (a adoption) adoptCgroup(left usage.Leftover) error {
	on, hook := a.putting(left.Sockets), HookCgroup
	if left.Sockets {
		hook = HookSockOps
	}
	if on == nil {
		return a.Accounts.Retire(left)
	}
	if left.Sockets && !a.CountSockets {
		return errors.Join(on.Detach(left.Cgroup), a.Accounts.Retire(left))
	}
	attached, err := on.Attached(left.Cgroup)
	if err != nil {
		return err
	}
	if attached && a.Accounts.Bound(left) {
		a.Accounts.Adopt(left, "", hook)
		return nil
	}
	if err := a.Accounts.Retire(left); err != nil || attached {
		return err // the cgroup is counted on another slot by now
	}
	return on.Detach(left.Cgroup)
}
