// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// backoff is when something may be tried again.
type backoff struct {
	wait time.Duration
	next time.Time
}

const (
	firstMend = time.Second
	lastMend  = time.Minute
)

func (b *backoff) due() bool { return !time.Now().Before(b.next) }

func (b *backoff) tried() {
	b.next = time.Now().Add(b.wait)
	b.wait = min(max(2*b.wait, firstMend), lastMend)
}

// forget begins anew once all has been well for long.
func (b *backoff) forget() {
	if time.Since(b.next) > lastMend {
		*b = backoff{}
	}
}

// mend puts our programs back where they are gone, or where they see the packets.
func (c *Controller) mend(v *veth) {
	intact, err := c.intact(v)
	if err != nil {
		c.Log.Warn("look at our programs", "interface", v.Name, "err", err)
		return
	}
	due := v.mend.due()
	if intact || !due {
		c.shadow(v, true)
	}
	if !due {
		return
	}
	v.mend.tried()
	switch {
	case !intact:
		c.Log.Warn("our programs were removed: putting them back", "interface", v.Name, "hook", v.hook)
		c.putBack(v)
	case v.hook == HookTCX:
		c.raise(v)
	case c.tcxAllowed():
		// Whoever ends the chain before us does so after tcx.
		c.toHead(v)
	}
}

func (c *Controller) putBack(v *veth) {
	if v.hook == HookTCX {
		c.toHead(v)
		return
	}
	err := c.attachClsact(v)
	switch {
	case err == nil:
		c.mended(v)
	case errors.Is(err, tcctl.ErrGone):
	case c.tcxAllowed():
		c.Log.Warn("put our filters back; going to tcx instead", "interface", v.Name, "err", err)
		c.toHead(v)
	default:
		c.shadow(v, true)
		c.Log.Error("put our filters back; trying again", "interface", v.Name, "err", err)
	}
}

func (c *Controller) toHead(v *veth) {
	v.needsTCX, v.mending = true, true
	c.move(v, HookTCX)
}

func (c *Controller) raise(v *veth) {
	_, first, err := c.Hooks.TCX(v.Index)
	if err != nil || first {
		return // nobody is before us, so they bypass the hook: we can only say so
	}
	v.moving, v.mending = true, true
	c.jobs.put(job{index: v.Index, raise: true})
}

// intact says whether our programs are where we put them.
func (c *Controller) intact(v *veth) (bool, error) {
	if v.hook == HookTCX {
		attached, _, err := c.Hooks.TCX(v.Index)
		return attached, err
	}
	slot, ok, err := c.Hooks.Current(v.Index)
	return ok && slot == v.slot, err
}

// mended notes that our programs see the packets again, as far as we can tell before some
// pass.
func (c *Controller) mended(v *veth) {
	v.mending = false
	c.metrics.reattached.Inc()
	c.catchUp(v)
}

// catchUp adds what passed while we did not see it: the kernel's own counters tell.
func (c *Controller) catchUp(v *veth) {
	c.shadow(v, false)
	if v.check == nil {
		return
	}
	c.seedSince(c.witnessed(v), v.check)
}

// seedSince adds what was missed since a check was sound, from where it begins anew.
func (c *Controller) seedSince(w witnessed, k *check) {
	open := c.seed(w, k.sound)
	if now, err := c.readQuiet(w); err == nil {
		*k = check{first: k.first, sound: now, last: now, open: open}
	}
}

func (c *Controller) shadow(v *veth, shadowed bool) {
	if v.shadowed == shadowed {
		return
	}
	v.shadowed = shadowed
	c.show(v)
	if shadowed {
		c.Log.Warn("packets pass an interface that our programs don't see", "interface", v.Name, "hook", v.hook)
		return
	}
	c.Log.Info("our programs see the packets again", "interface", v.Name)
}

// seed adds what the kernel has counted on an interface and we have not, since a reading. It
// returns what may have been missed besides.
func (c *Controller) seed(w witnessed, since reading) (open unsettled) {
	missed, open, err := c.missed(w, since)
	if err == nil && missed != (lack{}) {
		err = c.Accounts.Seed(w.Target, missed.receive, missed.transmit)
	}
	c.seedFailed(w, err)
	return open
}

func (c *Controller) seedFailed(w witnessed, err error) {
	if err != nil && !errors.Is(err, watcher.ErrGone) {
		c.Log.Warn("read what was not counted", "interface", w.name, "err", err)
	}
}

// unsettled is what may have been missed beyond what was seeded, since a reading: packets
// flowed all the while. It is some packets at most, so nothing else that the kernel counts
// and we don't is taken for it.
type unsettled struct {
	since reading
	lack  lack
}

// settle seeds what a later reading shows to have been missed in the end. Where nothing flowed
// since the reading before it, that is exact.
func (c *Controller) settle(w witnessed, k *check, now reading) {
	if k.open.lack == (lack{}) {
		return
	}
	shown := c.lacking(w, now, now.after, k.open.since)
	shown = lack{fewer(shown.receive, k.open.lack.receive), fewer(shown.transmit, k.open.lack.transmit)}
	if shown != (lack{}) {
		c.seedFailed(w, c.Accounts.Seed(w.Target, shown.receive, shown.transmit))
	}
	k.open.lack = lack{minus(k.open.lack.receive, shown.receive), minus(k.open.lack.transmit, shown.transmit)}
	if now.kernel == k.last.kernel && now.after == k.last.before {
		k.open = unsettled{}
	}
}

// seedTries bounds the readings, of which each takes some 10 µs, and longer while others
// configure networks. Among 300,000 packets a second every third one is quiet.
const seedTries = 30

// lack is how much more the kernel has counted than we, by direction.
type lack struct{ receive, transmit usage.Volume }

// missed works out what was missed since a reading, from readings that packets may fall in.
//
// What passes an egress hook we count before the kernel does (__dev_queue_xmit runs the
// hook, and then the driver). So what we had after the kernel was asked holds all that it
// had of ours, and a reading says too little, if anything. At an ingress hook we come after
// the kernel. So what we had before it was asked is nothing that it had not, and a reading
// says too much. Where packets flow in all readings, the truth at the egress hook is between
// these two, and open.
func (c *Controller) missed(w witnessed, since reading) (missed lack, open unsettled, err error) {
	var atLeast, atMost lack
	for try, quiet := 0, 0; try < seedTries && quiet < 3; try++ {
		now, err := c.read(w)
		if err != nil {
			return lack{}, unsettled{}, err
		}
		less, more := c.lacking(w, now, now.after, since), c.lacking(w, now, now.before, since)
		if try == 0 {
			atLeast, atMost = less, more
		}
		atLeast = lack{most(atLeast.receive, less.receive), most(atLeast.transmit, less.transmit)}
		atMost = lack{fewer(atMost.receive, more.receive), fewer(atMost.transmit, more.transmit)}
		if now.before == now.after {
			quiet++
		}
	}
	if w.NetNS != 0 { // what a container transmits leaves its own interface, and enters the host's
		return lack{atMost.receive, atLeast.transmit}, unsettled{since, lack{transmit: minus(atMost.transmit, atLeast.transmit)}}, nil
	}
	return lack{atLeast.receive, atMost.transmit}, unsettled{since, lack{receive: minus(atMost.receive, atLeast.receive)}}, nil
}

// lacking is how much more the kernel has counted since a reading than we, who have counted
// ours. It is never more than what is missing in all that is said of the interface. That
// alone won't do: where segmentation offload is off, the kernel's bytes are more than ours
// from the beginning.
func (c *Controller) lacking(w witnessed, now reading, ours counted, since reading) lack {
	now.after = ours
	in, out := now.grown(since)
	allIn, allOut := now.grown(reading{})
	besideIn, besideOut := c.Accounts.Beside(w.Target)
	return lack{
		receive:  fewer(in.missing(), minus(allIn.missing(), besideIn)),
		transmit: fewer(out.missing(), minus(allOut.missing(), besideOut)),
	}
}

// missing is how much more the kernel has counted than we have.
func (g growth) missing() usage.Volume { return minus(g.kernel, g.ours) }

func fewer(a, b usage.Volume) usage.Volume {
	return usage.Volume{Bytes: min(a.Bytes, b.Bytes), Packets: min(a.Packets, b.Packets)}
}

func most(a, b usage.Volume) usage.Volume {
	return usage.Volume{Bytes: max(a.Bytes, b.Bytes), Packets: max(a.Packets, b.Packets)}
}
