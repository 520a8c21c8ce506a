// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// checkEvery is how often our numbers are compared with the kernel's own.
const checkEvery = time.Second

// reading is what the kernel and we have counted on an interface, the kernel read first.
// On an interface where we see every packet, we then never have fewer.
type reading struct {
	kernel watcher.LinkCounters
	ours   usage.Traffic
}

// check is what the self-check remembers of an interface: the first reading, and the last
// two. What is found missing began after the one before the last.
type check struct {
	first, before, last reading
}

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

// missing is how much more the kernel has counted than we have, since an earlier reading.
type missing struct{ receive, transmit usage.Volume }

func (r reading) missing(since reading) missing {
	return missing{
		receive: lack(r.kernel.ReceiveBytes-since.kernel.ReceiveBytes, r.kernel.ReceivePackets-since.kernel.ReceivePackets,
			grown(r.ours.Receive.Interface, since.ours.Receive.Interface)),
		transmit: lack(r.kernel.TransmitBytes-since.kernel.TransmitBytes, r.kernel.TransmitPackets-since.kernel.TransmitPackets,
			grown(r.ours.Transmit.Interface, since.ours.Transmit.Interface)),
	}
}

func grown(now, then usage.Volume) usage.Volume {
	return usage.Volume{Bytes: now.Bytes - then.Bytes, Packets: now.Packets - then.Packets}
}

func lack(bytes, packets uint64, ours usage.Volume) usage.Volume {
	return usage.Volume{Bytes: bytes - min(bytes, ours.Bytes), Packets: packets - min(packets, ours.Packets)}
}

// blind says whether packets pass in a direction of which we see none, or too few. With
// segmentation offload off, the kernel counts the segments and we the super-packets, so it
// is the wire numbers that must not be fewer.
func (r reading) blind(since reading) bool {
	return tooFew(r.kernel.ReceivePackets-since.kernel.ReceivePackets,
		grown(r.ours.Receive.Counted(), since.ours.Receive.Counted()).Packets) ||
		tooFew(r.kernel.TransmitPackets-since.kernel.TransmitPackets,
			grown(r.ours.Transmit.Counted(), since.ours.Transmit.Counted()).Packets)
}

func tooFew(kernel, ours uint64) bool {
	if ours == 0 {
		return kernel > 0
	}
	return kernel > ours+ours/10+100
}

// look reads the kernel's counters of all interfaces, beside the controller's goroutine:
// the kernel takes some milliseconds for thousands.
func (c *Controller) look(found chan<- map[int]watcher.LinkCounters) {
	all, err := c.Host.AllCounters()
	if err != nil && !errors.Is(err, watcher.ErrPartial) {
		c.Log.Debug("read the kernel's counters", "err", err)
	}
	found <- all
}

// selfCheck compares, mends what is broken, and says what can't be mended.
func (c *Controller) selfCheck(all map[int]watcher.LinkCounters) {
	var seen completeness
	for index, kernel := range all {
		v := c.veths[index]
		if v == nil {
			continue
		}
		if !v.attached() && v.failure == "" {
			c.attach(v, time.Time{}) // it was left to a CNI plugin
		}
		ours, ok := c.Accounts.Counted(index)
		if !ok || v.moving || !v.attached() {
			continue
		}
		now := reading{kernel, ours}
		if v.check == nil {
			v.check = &check{first: now, before: now, last: now}
			continue
		}
		if now.blind(v.check.last) {
			c.mend(v)
		} else if now.kernel != v.check.last.kernel {
			c.shadow(v, false)
			v.mend.forget()
		}
		if v.check != nil {
			v.check.before, v.check.last = v.check.last, now
			seen.add(now, v.check.first)
		}
	}
	c.metrics.completeness.Set(seen.ratio())
	c.metrics.shadowed.Set(float64(c.shadowed()))
}

func (c *Controller) shadowed() (count int) {
	for _, v := range c.veths {
		if v.shadowed {
			count++
		}
	}
	return count
}

// mend puts our programs back where they are gone, or where they see the packets.
func (c *Controller) mend(v *veth) {
	intact, err := c.intact(v)
	if err != nil {
		c.Log.Warn("look at our programs", "interface", v.Name, "err", err)
		return
	}
	if intact {
		c.shadow(v, true)
	}
	if !v.mend.due() {
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
		c.move(v, HookTCX)
		c.reattached(v)
		return
	}
	err := c.attachClsact(v)
	switch {
	case errors.Is(err, tcctl.ErrIngressQdisc) && c.tcxAllowed():
		c.toHead(v)
	case errors.Is(err, tcctl.ErrGone):
	case err != nil:
		c.shadow(v, true)
		c.Log.Error("put our filters back; trying again", "interface", v.Name, "err", err)
	default:
		c.reattached(v)
	}
}

func (c *Controller) toHead(v *veth) {
	v.needsTCX = true
	c.move(v, HookTCX)
	c.reattached(v)
}

// reattached adds what passed while we did not see it: the kernel's own counters tell.
func (c *Controller) reattached(v *veth) {
	c.metrics.reattached.Inc()
	c.seed(v, v.check.before)
	v.check = nil
}

func (c *Controller) raise(v *veth) {
	_, first, err := c.Hooks.TCX(v.Index)
	if err != nil || first {
		return // nobody is before us, so they bypass the hook: we can only say so
	}
	c.metrics.reattached.Inc()
	v.moving = true
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

func (c *Controller) shadow(v *veth, shadowed bool) {
	if v.shadowed == shadowed {
		return
	}
	v.shadowed = shadowed
	c.Accounts.Shadow(v.Index, shadowed)
	if shadowed {
		c.Log.Warn("packets pass an interface that our programs don't see: another's program ends the chain before us", "interface", v.Name, "hook", v.hook)
		return
	}
	c.Log.Info("our programs see the packets again", "interface", v.Name)
}

// completeness compares bytes over all interfaces, since each was first looked at.
type completeness struct{ kernel, ours uint64 }

func (s *completeness) add(now, first reading) {
	for _, d := range []struct{ kernel, ours uint64 }{
		{now.kernel.ReceiveBytes - first.kernel.ReceiveBytes,
			grown(now.ours.Receive.Counted(), first.ours.Receive.Counted()).Bytes},
		{now.kernel.TransmitBytes - first.kernel.TransmitBytes,
			grown(now.ours.Transmit.Counted(), first.ours.Transmit.Counted()).Bytes},
	} {
		s.kernel += d.kernel
		s.ours += min(d.kernel, d.ours) // wire numbers may be more
	}
}

func (s *completeness) ratio() float64 {
	if s.kernel == 0 {
		return 1
	}
	return float64(s.ours) / float64(s.kernel)
}

// seed adds what the kernel has counted on an interface and we have not, since a reading:
// while packets pass, two readings that agree are hard to get. Then it is the least of some, so
// that a packet on its way is not counted twice.
func (c *Controller) seed(v *veth, since reading) {
	missed, err := c.missed(v.Index, since)
	if err == nil && missed != (missing{}) {
		err = c.Accounts.Seed(v.Index, missed.receive, missed.transmit)
	}
	if err != nil && !errors.Is(err, watcher.ErrGone) {
		c.Log.Warn("read what was not counted", "interface", v.Name, "err", err)
	}
}

// seedTries bounds the readings.
const seedTries = 10

func (c *Controller) missed(index int, since reading) (least missing, err error) {
	for try := range seedTries {
		kernel, err := c.Host.Counters(index)
		if err != nil {
			return missing{}, err
		}
		ours, _ := c.Accounts.Counted(index)
		now := reading{kernel, ours}.missing(since)
		switch {
		case try == 0:
			least = now
		case now == least:
			return least, nil
		default:
			least.receive, least.transmit = fewer(least.receive, now.receive), fewer(least.transmit, now.transmit)
		}
	}
	return least, nil
}

func fewer(a, b usage.Volume) usage.Volume {
	return usage.Volume{Bytes: min(a.Bytes, b.Bytes), Packets: min(a.Packets, b.Packets)}
}
