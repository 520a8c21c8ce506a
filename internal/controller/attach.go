// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// vethSeen counts a host veth that is new, or notes what changed. seenAt is zero if
// no event told of it.
func (c *Controller) vethSeen(v watcher.HostVeth, seenAt time.Time) []roster.Hint {
	if !c.Settings().Interface(v.Name) {
		c.exclude(v.Index)
		return nil
	}
	known := c.veths[v.Index]
	if known == nil {
		known = &veth{since: time.Now()}
		c.veths[v.Index] = known
		if !seenAt.IsZero() {
			// The network of a node may be configured after we are started, by a pod.
			c.bandwidth = usesBandwidth(c.CNIConfig)
		}
	}
	if v.NetNSID < 0 && known.attached() {
		v.NetNSID = known.NetNSID // the peer is back, to be removed: we want to know from where
	}
	renamed := known.Name != v.Name
	known.HostVeth = v
	if known.attached() && renamed {
		c.show(known)
	}
	if !known.attached() && c.wentInside(v) {
		known.inside = true
	}
	if v.NetNSID >= 0 && known.led.IsZero() {
		known.led = time.Now()
	}
	if !known.attached() {
		c.attach(known, seenAt)
	}
	if known.attached() {
		return known.wantsOwner()
	}
	return nil
}

// wantsOwner hints at the containers that may own an interface that nobody owns.
func (v *veth) wantsOwner() []roster.Hint {
	if v.owned || v.NetNSID < 0 {
		return nil
	}
	return []roster.Hint{{NSID: v.NetNSID}}
}

// exclude ends the counting of an interface that is not to be counted any more.
func (c *Controller) exclude(index int) {
	v := c.veths[index]
	if v == nil || v.moving {
		return // one that is being moved is excluded by the next reconcile
	}
	v.moving = true
	c.jobs.put(job{index: index, off: true})
}

// attach puts a host veth on the hook it can be put on at once. One that is new and to be on
// tcx is moved there afterwards: that takes some 40 ms, and a container does not wait.
func (c *Controller) attach(v *veth, seenAt time.Time) {
	if v.moving || v.inside || c.waitsForCNI(v) {
		return
	}
	slot, on, err := c.Accounts.Open(usage.OnHost(v.Index), v.Name, HookClsact)
	if err != nil {
		c.failed(v, err)
		return
	}
	v.slot = slot
	if on == HookTCX {
		v.needsTCX = true // why it was moved there is not known any more
		c.counting(v, HookTCX, true)
		c.move(v, c.wanted(v)) // to our own programs
		return
	}
	if on == "" {
		v.busy, v.bandwidth = v.busy || c.busy[v.Index], v.bandwidth || c.bandwidth
	}
	if on == "" && c.onlyTCX(v) {
		c.move(v, HookTCX)
		return
	}
	err = c.attachClsact(v)
	if errors.Is(err, tcctl.ErrIngressQdisc) && c.tcxAllowed() {
		v.needsTCX = true
		c.move(v, HookTCX)
		return
	}
	if err != nil {
		c.failed(v, errors.Join(err, c.Accounts.Close(usage.OnHost(v.Index))))
		return
	}
	if !seenAt.IsZero() {
		c.metrics.attach.Observe(time.Since(seenAt).Seconds())
	}
	c.counting(v, HookClsact, on != "")
	if c.wanted(v) == HookTCX {
		c.move(v, HookTCX)
	}
}

// place moves an interface to the hook it is wanted on by now.
func (c *Controller) place(index int) {
	v := c.veths[index]
	if v == nil || !v.attached() || v.moving {
		return
	}
	if !v.needsTCX && c.TCX && c.Settings().Mode == ModeAuto {
		others, err := c.Hooks.OthersOnTCX(index)
		if err != nil {
			c.Log.Debug("look at the others on an interface", "interface", v.Name, "err", err)
		}
		v.needsTCX = others
	}
	if to := c.wanted(v); to != v.hook {
		c.move(v, to)
	}
}

func (c *Controller) attachClsact(v *veth) error { return c.mover().attachClsact(v.Index, v.slot) }

// counting notes that a host veth is counted now. again: an earlier process counted it,
// so what the kernel counted before is known.
func (c *Controller) counting(v *veth, hook string, again bool) {
	v.hook, v.failure = hook, ""
	// An adopted one is its owner's already.
	v.owned = c.Accounts.Owner(usage.OnHost(v.Index)) != ""
	c.show(v) // an adopted one has no name yet
	var open unsettled
	if !again {
		open = c.seed(c.witnessed(v), reading{})
	}
	if v.check == nil {
		v.check = c.begin(c.witnessed(v), open)
	}
	c.Log.Debug("counting", "interface", v.Name, "ifindex", v.Index, "hook", hook)
}

// show says how a host veth is shown.
func (c *Controller) show(v *veth) {
	c.Accounts.Show(usage.OnHost(v.Index), usage.Shown{HostInterface: v.Name, Hook: v.hook, Shadowed: v.shadowed})
}

// failed notes why an interface is not counted.
func (c *Controller) failed(v *veth, err error) {
	if errors.Is(err, tcctl.ErrGone) {
		delete(c.veths, v.Index)
		return
	}
	c.metrics.failures.Inc()
	if v.failure != err.Error() {
		c.Log.Error("interface is not counted; trying again", "interface", v.Name, "err", err)
	}
	v.failure = err.Error()
}

func (c *Controller) vethGone(index int) {
	v := c.veths[index]
	if v == nil {
		return
	}
	delete(c.veths, index)
	c.endPeer(v)
	c.ownAtLast(v)
	if v.hook == HookTCX || v.moving {
		c.jobs.put(job{index: index, gone: true})
	}
	if err := c.Accounts.Close(usage.OnHost(index)); err != nil {
		c.Log.Error("close interface", "ifindex", index, "err", err)
	}
}

// ownAtLast gives an interface that goes to the container it led to, where its own name
// was still to come: podman removes it before the container's cgroup.
func (c *Controller) ownAtLast(v *veth) {
	if v.owned || v.NetNSID < 0 {
		return
	}
	for _, box := range c.spaces {
		if box.NSID != v.NetNSID {
			continue
		}
		name := v.Name
		for _, i := range box.unnamed {
			if i.HostIndex == v.Index {
				name = i.Name
			}
		}
		c.own(usage.OnHost(v.Index), box.owner, name, v.Name)
	}
}
