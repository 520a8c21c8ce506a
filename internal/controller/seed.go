// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// gap is what the kernel has counted since a reading and we have not.
type gap struct {
	since reading
	kind  gapKind
	lost  usage.LostMark // of a host veth's other end, where the gap is to be filled there
}

// gapKind says what becomes of a gap, which is part of the totals always.
type gapKind int

const (
	beforeUs gapKind = iota // seeded: it passed before we came, and counts for no hour, period or rate
	sinceUs                 // mended: it has passed since, and counts when it is noticed
	// leaked is mended, too, and is a part of what has passed: no more is missing than the wire
	// numbers lack, which are never fewer than the kernel's.
	leaked
)

// mendSince adds what was missed since a check was sound, from where it begins anew. That is
// before the gap is measured: our programs may be off again by then, and what passed between
// the two would be in neither. Nothing is in both, since there is never more added than is
// missing in all.
func (k keeper) mendSince(a *attachment, at site, as gapKind) {
	now, err := k.readQuiet(a, at)
	open := k.fill(a, at, gap{since: a.check.sound, kind: as})
	if err == nil {
		*a.check = check{first: a.check.first, sound: now, last: now, open: open, excess: a.check.excess, still: time.Now()}
	}
}

// fill adds what is missing. It returns what may have been missed besides.
func (k keeper) fill(a *attachment, at site, missing gap) (open unsettled) {
	missed, open, err := k.missed(a, at, missing)
	if errors.Is(err, watcher.ErrGone) && missing.kind == beforeUs {
		missed, err = k.missedAtFirst(a, missing), nil
	}
	if err == nil {
		err = k.add(a, missed, missing.kind)
	}
	if err != nil && !errors.Is(err, watcher.ErrGone) && !errors.Is(err, errNoWitness) {
		k.Log.Warn("read what was not counted", a.kind(), a.name, "err", err)
	}
	return open
}

// missedAtFirst returns what had passed when we came to an interface whose short life was over
// before it could be read.
func (k keeper) missedAtFirst(a *attachment, missing gap) lack {
	if a.glance == nil {
		return lack{
			usage.Volume{Bytes: a.seen.ReceiveBytes, Packets: a.seen.ReceivePackets},
			usage.Volume{Bytes: a.seen.TransmitBytes, Packets: a.seen.TransmitPackets},
		}
	}
	return lack{
		k.lacking(a, *a.glance, a.glance.after, missing).receive,
		k.lacking(a, *a.glance, a.glance.before, missing).transmit,
	}
}

func (k keeper) add(a *attachment, missed lack, as gapKind) error {
	switch {
	case missed == (lack{}):
		return nil
	case as != beforeUs:
		return k.Accounts.Mend(a.Target, missed.receive, missed.transmit)
	}
	return k.Accounts.Seed(a.Target, missed.receive, missed.transmit)
}

// unsettled is what may have been missed in a gap beyond what was added: packets flowed all
// the while. It is some packets at most, so nothing else that the kernel counts and we don't
// is taken for it.
type unsettled struct {
	gap
	lack lack
}

// settle adds what a later reading shows to have been missed in the end. Where nothing flowed
// since the reading before it, that is exact.
func (k keeper) settle(a *attachment, now reading) {
	open := &a.check.open
	if open.lack == (lack{}) {
		return
	}
	shown := k.lacking(a, now, now.after, open.gap)
	shown = lack{fewer(shown.receive, open.lack.receive), fewer(shown.transmit, open.lack.transmit)}
	if err := k.add(a, shown, open.kind); err != nil {
		k.Log.Warn("note what was not counted", a.kind(), a.name, "err", err)
	}
	open.lack = lack{minus(open.lack.receive, shown.receive), minus(open.lack.transmit, shown.transmit)}
	if now.kernel == a.check.last.kernel && now.after == a.check.last.before {
		*open = unsettled{}
	}
}

// reckon notes what was dropped behind our hook, when nothing has flowed for a while: what we have
// counted may be on its way to the kernel's counter, or in a qdisc.
func (k keeper) reckon(a *attachment, now reading) {
	idle := now.before == now.after && now.kernel == a.check.last.kernel && now.after == a.check.last.before
	if !idle || now.kernel == a.check.reckoned || time.Since(a.check.still) < checkEvery {
		return
	}
	a.check.reckoned = now.kernel
	in, out := now.grown(reading{})
	besideIn, besideOut := k.Accounts.Beside(a.Target)
	a.check.excess = lack{
		receive:  minus(plus(in.ours, besideIn), in.kernel),
		transmit: minus(plus(out.ours, besideOut), out.kernel),
	}
}

// seedTries bounds the readings, of which each takes some 10 µs, and longer while others
// configure networks. Among 300,000 packets a second every third one is quiet.
const seedTries = 30

// lack is how much more the kernel has counted than we, by direction.
type lack struct{ receive, transmit usage.Volume }

// missed works out what was missed in a gap, from readings that packets may fall in.
//
// What passes an egress hook we count before the kernel does (__dev_queue_xmit runs the
// hook, and then the driver). So what we had after the kernel was asked holds all that it
// had of ours, and a reading says too little, if anything. At an ingress hook we come after
// the kernel. So what we had before it was asked is nothing that it had not, and a reading
// says too much. Where packets flow in all readings, the truth at the egress hook is between
// these two, and open.
func (k keeper) missed(a *attachment, at site, missing gap) (missed lack, open unsettled, err error) {
	var atLeast, atMost lack
	for try, quiet := 0, 0; try < seedTries && quiet < 3; try++ {
		now, err := k.read(a, at)
		if err != nil && try > 0 {
			break // it has just gone
		}
		if err != nil {
			return lack{}, unsettled{}, err
		}
		less, more := k.lacking(a, now, now.after, missing), k.lacking(a, now, now.before, missing)
		if try == 0 {
			atLeast, atMost = less, more
		}
		atLeast = lack{most(atLeast.receive, less.receive), most(atLeast.transmit, less.transmit)}
		atMost = lack{fewer(atMost.receive, more.receive), fewer(atMost.transmit, more.transmit)}
		if now.before == now.after {
			quiet++
		}
	}
	if a.NetNS != 0 { // what a container transmits leaves its own interface, and enters the host's
		return lack{atMost.receive, atLeast.transmit}, unsettled{missing, lack{transmit: minus(atMost.transmit, atLeast.transmit)}}, nil
	}
	return lack{atLeast.receive, atMost.transmit}, unsettled{missing, lack{receive: minus(atMost.receive, atLeast.receive)}}, nil
}

// lacking is how much more the kernel has counted since a reading than we, who have counted
// ours. It is never more than what is missing in all that is said of the interface, of which
// what was dropped behind our hook is no part. That alone won't do: where segmentation offload
// is off, the kernel's bytes are more than ours from the beginning.
func (k keeper) lacking(a *attachment, now reading, ours counted, of gap) lack {
	now.after = ours
	since := of.since
	since.before = since.after // not the most that we may have counted since: it would be lost
	in, out := now.grown(since)
	allIn, allOut := now.grown(reading{})
	besideIn, besideOut := k.Accounts.Beside(a.Target)
	var dropped lack
	if a.check != nil {
		dropped = a.check.excess
	}
	return lack{
		receive:  fewer(in.missing(of.kind), minus(plus(allIn.kernel, dropped.receive), plus(allIn.ours, besideIn))),
		transmit: fewer(out.missing(of.kind), minus(plus(allOut.kernel, dropped.transmit), plus(allOut.ours, besideOut))),
	}
}

// missing is how much more the kernel has counted than we have.
func (g growth) missing(as gapKind) usage.Volume {
	more := minus(g.kernel, g.ours)
	if as == leaked {
		more = fewer(more, minus(g.kernel, g.wire))
	}
	return more
}

func plus(a, b usage.Volume) usage.Volume {
	return usage.Volume{Bytes: usage.Add(a.Bytes, b.Bytes), Packets: usage.Add(a.Packets, b.Packets)}
}

func fewer(a, b usage.Volume) usage.Volume {
	return usage.Volume{Bytes: min(a.Bytes, b.Bytes), Packets: min(a.Packets, b.Packets)}
}

func most(a, b usage.Volume) usage.Volume {
	return usage.Volume{Bytes: max(a.Bytes, b.Bytes), Packets: max(a.Packets, b.Packets)}
}
