// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// What a container could not send, and what it dropped of what it received, only its own end of
// a veth tells. The host asks for that end's counters without entering its namespace.

// endsPerSecond is how many host veths' other ends are looked at per second, on average: some
// 10 µs each.
const endsPerSecond = 10

// ends are the looks at both ends of host veths.
type ends struct {
	asked    chan look
	bypassed bool // the next one is to find packets that go past the host's end
	pause    int  // checks until the next one
}

// look is what is to be looked at.
type look struct {
	veths    []watcher.HostVeth
	inside   map[usage.Target]int // interfaces that no check looks at, with the numbers of their namespaces
	bypassed bool
}

// bothEnds is what the kernel has counted on both ends of a veth, as the container sees it.
type bothEnds struct {
	container watcher.LinkReading
	host      watcher.LinkReading
	qdisc     watcher.RootQdisc
	// hosted and queued: what is of the host's end is known.
	hosted, queued bool
}

// looked is what a look has found.
type looked struct {
	veths  map[int]bothEnds
	inside map[usage.Target]watcher.LinkReading
}

// hasOtherEnd says that a host veth is counted for somebody, and where its other end is.
func (s *veths) hasOtherEnd(v *veth) bool {
	return v.attached() && v.link.NetNSID >= 0 && s.owned(&v.attachment)
}

// askForLosses has all that is counted looked at, and less often where that is many. It is called
// each second.
func (c *Controller) askForLosses() {
	if c.ends.pause > 0 {
		c.ends.pause--
		return
	}
	c.ends.pause = len(c.veths.known) / endsPerSecond
	c.askForEnds()
}

// askForEnds has the host veths looked at on both ends, unless that is under way.
func (c *Controller) askForEnds() {
	next := look{inside: map[usage.Target]int{}, bypassed: c.ends.bypassed}
	for _, v := range c.veths.known {
		if c.veths.hasOtherEnd(v) {
			next.veths = append(next.veths, v.link)
		}
	}
	for target, u := range c.uplinks.known {
		if u.attached() && u.physical() {
			next.inside[target] = u.nsid
		}
	}
	select {
	case c.ends.asked <- next:
		c.ends.bypassed = false
	default:
	}
}

// lookAtEnds reads the counters of both ends when it is asked to, beside the roster's goroutine
// and the self-check: for thousands of them that takes a while.
func (c *Controller) lookAtEnds(ctx context.Context, hand handing) {
	kernel := witness{c.Host}
	for {
		select {
		case <-ctx.Done():
			return
		case next := <-c.ends.asked:
			found, err := kernel.look(ctx, next)
			if err != nil {
				c.Log.Debug("could not read what the kernel's counters say was lost", "err", err)
			}
			hand(func() []roster.Hint {
				if next.bypassed {
					c.veths.findBypassed(found.veths)
				}
				c.loseAll(found)
				return nil
			})
		}
	}
}

// look reads the counters of both ends of host veths. A container's end comes first: what has
// been received was sent before.
func (w witness) look(ctx context.Context, at look) (found looked, err error) {
	found = looked{map[int]bothEnds{}, map[usage.Target]watcher.LinkReading{}}
	for _, v := range at.veths {
		if ctx.Err() != nil {
			return found, nil
		}
		if end, err := w.host.CountersIn(v.NetNSID, v.PeerIndex); err == nil { // its end is told otherwise
			found.veths[v.Index] = bothEnds{container: end}
		}
	}
	for target, nsid := range at.inside {
		if ctx.Err() != nil {
			return found, nil
		}
		if end, err := w.host.CountersIn(nsid, target.Ifindex); err == nil {
			found.inside[target] = end
		}
	}
	if len(found.veths) == 0 {
		return found, nil
	}
	hosts, err := w.host.AllCounters()
	qdiscs, qdiscErr := w.host.RootQdiscs()
	for index, v := range found.veths {
		v.host, v.hosted = hosts[index]
		v.qdisc, v.queued = qdiscs[index]
		found.veths[index] = v
	}
	return found, errors.Join(err, qdiscErr)
}

// loseAll notes what was lost.
func (c *Controller) loseAll(found looked) {
	for index, ends := range found.veths {
		v := c.veths.known[index]
		if v == nil || !c.veths.hasOtherEnd(v) {
			continue
		}
		c.lose(&v.attachment, ends.container.Losses)
		if ends.hosted && ends.queued {
			c.undeliver(v, ends)
		}
	}
	for target, kernel := range found.inside {
		if u := c.uplinks.known[target]; u != nil && u.attached() {
			c.lose(&u.attachment, kernel.Losses)
		}
	}
}

// lose notes what the kernel has lost at the container's end of an interface.
func (k keeper) lose(a *attachment, all watcher.Losses) {
	err := k.Accounts.Lose(a.Target,
		usage.Loss{Dropped: all.ReceiveDropped, Errors: all.ReceiveErrors},
		usage.Loss{Dropped: all.TransmitDropped, Errors: all.TransmitErrors})
	if err != nil {
		k.Log.Debug("note what was lost", a.kind(), a.name, "target", a.Target, "err", err)
	}
}

// undeliver notes what a host veth has dropped behind our hook. An interface that had sent
// nothing when we came had dropped nothing either.
func (k keeper) undeliver(v *veth, ends bothEnds) {
	now := usage.HostLoss{Dropped: ends.host.ReceiveDropped, Qdisc: ends.qdisc.Handle, QdiscDropped: ends.qdisc.Dropped}
	if err := k.Accounts.Undeliver(v.Target, now, v.seen == watcher.LinkCounters{}); err != nil {
		k.Log.Debug("note what was not delivered", v.kind(), v.name, "target", v.Target, "err", err)
	}
}
