// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// checkEvery is how often our numbers are compared with the kernel's own.
const checkEvery = time.Second

// counted is what our programs have counted on an interface.
type counted struct{ receive, transmit oneWay }

// oneWay is one direction, as the kernel's interface counters have it and on the wire.
type oneWay struct{ asKernel, wire usage.Volume }

// counted reads an interface's counters. Not ok: it is not counted.
func (k keeper) counted(target usage.Target) (now counted, ok bool) {
	t, ok := k.Accounts.Counted(target)
	return counted{
		receive:  oneWay{t.Receive.Interface, t.Receive.Counted()},
		transmit: oneWay{t.Transmit.Interface, t.Transmit.Counted()},
	}, ok
}

// reading is what the kernel has counted on an interface, and what we had before and after
// it was asked. Between two readings, where we see every packet, we count from the
// before of one to the after of the other never fewer than the kernel, whatever flows.
type reading struct {
	before counted
	kernel watcher.LinkCounters
	after  counted
}

// growth is what came in one direction between two readings; of ours it is the most that
// it may have been.
type growth struct{ kernel, ours, wire usage.Volume }

func (r reading) grown(since reading) (receive, transmit growth) {
	return grown(r.kernel.ReceiveBytes-since.kernel.ReceiveBytes, r.kernel.ReceivePackets-since.kernel.ReceivePackets,
			r.after.receive, since.before.receive),
		grown(r.kernel.TransmitBytes-since.kernel.TransmitBytes, r.kernel.TransmitPackets-since.kernel.TransmitPackets,
			r.after.transmit, since.before.transmit)
}

func grown(bytes, packets uint64, now, then oneWay) growth {
	return growth{
		kernel: usage.Volume{Bytes: bytes, Packets: packets},
		ours:   minus(now.asKernel, then.asKernel),
		wire:   minus(now.wire, then.wire),
	}
}

// minus returns what is left of a volume, never less than nothing.
func minus(v, less usage.Volume) usage.Volume {
	return usage.Volume{Bytes: v.Bytes - min(v.Bytes, less.Bytes), Packets: v.Packets - min(v.Packets, less.Packets)}
}

// tooFew says that packets pass of which we see none, or too few. With segmentation
// offload off, the kernel counts the segments and we the super-packets, so it is the wire
// numbers that must not be fewer.
func (g growth) tooFew() bool {
	kernel, ours := g.kernel.Packets, g.wire.Packets
	return kernel > 0 && ours == 0 || kernel > ours+ours/10+100
}

// check is what the self-check remembers of an interface.
type check struct {
	first  reading // when our counting began
	sound  reading // nothing was missing then, and what is missing now has been since
	last   reading
	leaks  time.Time // since when something has been missing, zero while nothing is
	before *counted  // for the next reading, nil if that was not taken
	open   unsettled
	// excess is how much more we have counted than the kernel, of all time: a qdisc or a program
	// behind our hook has dropped that. It hides none of what we miss later.
	excess   lack
	still    time.Time            // since when no reading has shown a packet
	reckoned watcher.LinkCounters // of the reading that says so

	// Packets pass unseen, by direction: what flows the other way says nothing about it.
	blindReceive, blindTransmit bool
}

func (k *check) blind() bool { return k.blindReceive || k.blindTransmit }

// take takes a reading in.
func (k *check) take(now reading) {
	if now.kernel != k.last.kernel || now.after != k.last.after {
		k.still = time.Now()
	}
	receive, transmit := now.grown(k.last)
	k.blindReceive = stillBlind(k.blindReceive, receive)
	k.blindTransmit = stillBlind(k.blindTransmit, transmit)

	receive, transmit = now.grown(k.sound)
	switch {
	case receive.kernel.Packets <= receive.wire.Packets && transmit.kernel.Packets <= transmit.wire.Packets:
		k.sound = k.last // not now: what flows may hide that a packet or two are missing
		k.leaks = time.Time{}
	case k.leaks.IsZero():
		k.leaks = time.Now()
	}
	k.last = now
}

// leakAfter is how long a few packets may be missing. What is only on its way is not for so long.
const leakAfter = 10 * time.Second

// leaking says that a few packets pass unseen, among many that are seen.
func (k *check) leaking() bool { return !k.leaks.IsZero() && time.Since(k.leaks) >= leakAfter }

func stillBlind(was bool, g growth) bool {
	if g.kernel.Packets == 0 {
		return was
	}
	return g.tooFew()
}

// begin starts to compare an attachment's counters from now on, with what seeding left open.
// It returns nil if they can't be read.
func (k keeper) begin(a *attachment, at site, open unsettled) *check {
	now, err := k.readQuiet(a, at)
	if err != nil {
		return nil
	}
	return &check{first: now, sound: now, last: now, open: open, still: time.Now()}
}

// readQuiet takes a reading while no packet is counted, if it can be had soon.
func (k keeper) readQuiet(a *attachment, at site) (now reading, err error) {
	for range seedTries {
		now, err = k.read(a, at)
		if err != nil || now.before == now.after {
			break
		}
	}
	return now, err
}

// read takes a reading of one attachment.
func (k keeper) read(a *attachment, at site) (r reading, err error) {
	r.before, _ = k.counted(a.Target)
	r.kernel, err = at.counters(func() { r.after, _ = k.counted(a.Target) })
	return r, err
}

// kernelCounters are what the kernel has counted on all interfaces.
type kernelCounters struct {
	host   map[int]watcher.LinkReading // nil if they can't be read
	inside map[usage.Target]watcher.LinkReading
}

// witness reads the kernel's counters, beside the roster's goroutine.
type witness struct{ host host }

// checkAll compares all that is counted with the kernel's own counters, every second.
func (c *Controller) checkAll(ctx context.Context, hand handing) {
	kernel, pause := witness{c.Host}, time.NewTimer(checkEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		inside := make(chan map[usage.Target]int, 1)
		if !hand(func() []roster.Hint { inside <- c.beginReadings(); return nil }) {
			return
		}
		all, err := kernel.counters(ctx, <-inside)
		if err != nil {
			c.Log.Debug("could not read the kernel's counters", "err", err)
		}
		if !hand(func() []roster.Hint { return c.selfCheck(all) }) {
			return
		}
		pause.Reset(checkEvery)
	}
}

// beginReadings begins a reading of all that is counted. It returns the interfaces inside of
// containers with the numbers of their namespaces.
func (c *Controller) beginReadings() map[usage.Target]int {
	for _, v := range c.veths.known {
		c.before(&v.attachment)
	}
	return c.uplinks.beginReadings()
}

// counters reads the kernel's counters of all interfaces. The kernel takes some milliseconds
// for thousands, and longer while others configure networks.
func (w witness) counters(ctx context.Context, inside map[usage.Target]int) (all kernelCounters, err error) {
	all.inside = map[usage.Target]watcher.LinkReading{}
	all.host, err = w.host.AllCounters()
	if errors.Is(err, watcher.ErrPartial) {
		err = nil
	}
	for target, nsid := range inside {
		if ctx.Err() != nil {
			break
		}
		if counters, err := w.host.CountersIn(nsid, target.Ifindex); err == nil { // its end is told otherwise
			all.inside[target] = counters
		}
	}
	return all, err
}

// before begins a reading.
func (k keeper) before(a *attachment) {
	if a.check == nil {
		return
	}
	a.check.before = nil
	if before, ok := k.counted(a.Target); ok {
		a.check.before = &before
	}
}

// selfCheck compares, mends what is broken, and says what can't be mended.
func (c *Controller) selfCheck(all kernelCounters) (hints []roster.Hint) {
	if all.host == nil {
		return nil
	}
	var seen completeness
	for index, kernel := range all.host {
		if v := c.veths.known[index]; v != nil {
			hints = append(hints, c.veths.checkOne(v, kernel.LinkCounters, &seen)...)
		}
	}
	for target, in := range c.uplinks.known {
		if kernel, ok := all.inside[target]; ok {
			c.lose(&in.attachment, kernel.Losses)
			hints = append(hints, c.glance(in, kernel.LinkCounters)...)
		}
		if in.check != nil && !in.physical() {
			seen.add(in.check.last, in.check.first)
		}
	}
	c.askForLosses()
	c.metrics.completeness.Set(seen.ratio())
	c.gauge()
	return hints
}

// gauge says how many attachments there are that packets pass unseen.
func (c *Controller) gauge() {
	unseen := c.veths.unseen()
	for _, u := range c.uplinks.known {
		if u.unseen() {
			unseen++
		}
	}
	c.metrics.shadowed.Set(float64(unseen))
}

// completeness compares bytes over all interfaces, since each was first looked at.
type completeness struct{ kernel, ours uint64 }

func (s *completeness) add(now, first reading) {
	receive, transmit := now.grown(first)
	for _, g := range []growth{receive, transmit} {
		s.kernel += g.kernel.Bytes
		s.ours += min(g.kernel.Bytes, g.wire.Bytes) // wire numbers may be more
	}
}

func (s *completeness) ratio() float64 {
	if s.kernel == 0 {
		return 1
	}
	return float64(s.ours) / float64(s.kernel)
}
