// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"math"
	"runtime"
	"slices"
)

var errNoPins = errors.New("attach to tcx: no folder for the pins was given")

// HaveTCX returns nil if the kernel has tcx, which came with Linux 6.6, and an error
// wrapping [ErrUnsupported] if not. Requires CAP_NET_ADMIN and CAP_BPF.
func HaveTCX() error {
	_, err := query(place{math.MaxInt32, Ingress})
	return ignoreGone(err)
}

// AttachTCX puts the programs at the head of the tcx hooks of an interface, before all
// that is there, and before clsact. tcx needs no qdisc. Programs there are told no slot:
// skb->tc_classid is 0.
//
// Each program is held by a link, which is pinned in Pins of [Options] as
// "<ifindex>-ingress" or "<ifindex>-egress" and stays when the process ends. Where our
// link is alive its program is replaced, in one step of the kernel that no packet slips
// through, and the link keeps its place; see [Controller.Raise]. A link that was detached,
// by the end of its interface or by somebody else, makes way for a new one. If one hook
// fails, the other is put back as it was found.
//
// Each new link takes an RCU grace period, some 20 ms, for which the kernel holds RTNL.
//
// The names of the programs must begin with "nettally_", or no verb will know the links
// again. Requires Linux 6.6, CAP_NET_ADMIN and CAP_BPF and, where a pin is found,
// CAP_SYS_ADMIN to look at its program. Returns an error wrapping [ErrGone],
// [ErrUnsupported] or [ErrForeign], or the kernel's errno.
func (c *Controller) AttachTCX(ifindex int, ingress, egress program) error {
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	return c.attachTCX(ifindex, ingress, egress)
}

func (c *Controller) attachTCX(ifindex int, ingress, egress program) error {
	// A program nobody else refers to would be closed while we use its descriptor.
	defer runtime.KeepAlive(ingress)
	defer runtime.KeepAlive(egress)
	if c.links.pins == "" {
		return errNoPins
	}
	in := place{ifindex, Ingress}
	before, err := c.links.put(in, ingress)
	if err != nil {
		return err
	}
	defer before.close()
	replaced, err := c.links.put(place{ifindex, Egress}, egress)
	if err != nil {
		return errors.Join(err, c.links.putBack(in, before))
	}
	replaced.close()
	return nil
}

// Raise is AttachTCX, and puts our programs back at the head of a hook where others were
// put before them since.
//
// The kernel can neither move a link nor have a program on a hook twice. So our link is
// detached and a new one made: what passes in between, in a grace period of some 20 ms, the
// program does not see. It takes two grace periods for each such hook. If the new link
// fails, as by the end of the interface, the hook is left without us.
func (c *Controller) Raise(ifindex int, ingress, egress program) error {
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	defer runtime.KeepAlive(ingress)
	defer runtime.KeepAlive(egress)
	// With this the kernel has accepted the programs before a place is given up.
	if err := c.attachTCX(ifindex, ingress, egress); err != nil {
		return err
	}
	return errors.Join(
		c.links.raise(place{ifindex, Ingress}, ingress),
		c.links.raise(place{ifindex, Egress}, egress),
	)
}

// DetachTCX takes our links off both tcx hooks of an interface, and removes their pins.
// When it returns the programs run no more, whoever else holds a link. What is missing,
// the interface too, is no error.
//
// Each link takes an RCU grace period, some 20 ms. Where nothing is pinned DetachTCX waits
// for nothing. Requires CAP_SYS_ADMIN where something is, to look at its program.
func (c *Controller) DetachTCX(ifindex int) error {
	if !c.links.pinned(ifindex) {
		return nil
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	var errs []error
	for _, hook := range hooks {
		errs = append(errs, c.links.clear(place{ifindex, hook}))
	}
	return errors.Join(errs...)
}

// TCX says whether our links are alive on both tcx hooks of an interface, those of an
// ended process too, and whether nothing runs before them on either. An interface that is
// gone has none.
//
// Requires CAP_NET_ADMIN and CAP_BPF and, where there are any, CAP_SYS_ADMIN to look at
// their programs.
func (c *Controller) TCX(ifindex int) (attached, first bool, err error) {
	if !c.links.pinned(ifindex) {
		return false, false, nil
	}
	first = true
	for _, hook := range hooks {
		at, err := c.links.look(place{ifindex, hook})
		if err != nil || at < 0 {
			return false, false, err
		}
		first = first && at == 0
	}
	return true, first, nil
}

// TCXInterfaces lists the interfaces that have a link of ours, on either hook, those of an
// ended process too. It removes our links that are not on the interface they are named
// for: that is gone, or in another namespace by now, or somebody has detached them.
//
// With an error it lists what could be looked at. Requires what [Controller.TCX] does.
func (c *Controller) TCXInterfaces() ([]int, error) {
	if c.links.pins == "" {
		return nil, nil
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	places, err := c.links.places()
	errs := []error{err}
	var ifindexes []int
	for _, p := range places {
		alive, err := c.links.keep(p)
		errs = append(errs, err)
		if alive {
			ifindexes = append(ifindexes, p.ifindex)
		}
	}
	slices.Sort(ifindexes)
	return slices.Compact(ifindexes), errors.Join(errs...)
}
