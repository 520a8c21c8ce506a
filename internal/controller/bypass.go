// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/watcher"
)

// A program may hand packets over to a container without its host veth, by
// bpf_redirect_peer: no hook there sees them, nor do that end's own counters. The
// container's end counts them; there the interface is counted from then on.

// bothEnds is how many packets a host veth has sent, and its other end received.
type bothEnds struct{ sent, received uint64 }

// mayBeBypassed says whether a host veth's other end is worth a look.
func (s *veths) mayBeBypassed(v *veth) bool {
	return v.attached() && !v.atWork() && v.link.NetNSID >= 0 && v.check != nil && s.owned(&v.attachment)
}

// askForEnds has the host veths looked at on both ends, unless that is under way.
func (c *Controller) askForEnds() {
	var veths []watcher.HostVeth
	for _, v := range c.veths.known {
		if c.veths.mayBeBypassed(v) {
			veths = append(veths, v.link)
		}
	}
	select {
	case c.ends <- veths:
	default:
	}
}

// lookAtEnds reads the counters of host veths on both ends when it is asked to, beside the
// roster's goroutine and the self-check: for thousands of them that takes a while.
func (c *Controller) lookAtEnds(ctx context.Context, hand handing) {
	kernel := witness{c.Host}
	for {
		select {
		case <-ctx.Done():
			return
		case veths := <-c.ends:
			ends := kernel.ends(ctx, veths)
			hand(func() []roster.Hint {
				c.veths.findBypassed(ends)
				return nil
			})
		}
	}
}

// ends reads the counters of host veths on both ends.
func (w witness) ends(ctx context.Context, veths []watcher.HostVeth) map[int]bothEnds {
	ends := map[int]bothEnds{}
	for _, v := range veths {
		if ctx.Err() != nil {
			break
		}
		// In this order: what has been received was sent before.
		received, err := w.host.CountersIn(v.NetNSID, v.PeerIndex)
		if err != nil {
			continue
		}
		if sent, err := w.host.Counters(v.Index, nil); err == nil {
			ends[v.Index] = bothEnds{sent.ReceivePackets, received.ReceivePackets}
		}
	}
	return ends
}

// findBypassed has an interface counted inside of which the container's end receives what
// the host's does not send.
func (s *veths) findBypassed(ends map[int]bothEnds) {
	for index, now := range ends {
		v := s.known[index]
		if v != nil && s.mayBeBypassed(v) && v.bypass(now) {
			s.Log.Warn("packets reach a container past its interface on the host: counting inside from now on", "interface", v.name)
			s.do(v, leaving, job{kind: jobInside})
		}
	}
}

// fewBypassed is how many packets are not worth to go inside for.
const fewBypassed = 10

// bypass takes in how many packets were sent and received by now. It returns whether more
// have been received without having been sent since the last time.
func (v *veth) bypass(now bothEnds) bool {
	before := v.bypassed
	v.bypassed = now.received - min(now.received, now.sent)
	return v.bypassed > before+fewBypassed
}

// told returns what of the counters at a host veth's other end is in our numbers by now, as the
// beginning of a gap there.
func (c *Controller) told(v *veth) *gap {
	since := reading{kernel: v.check.sound.kernel}
	if now, ok := c.counted(v.Target); ok {
		in := minus(now.receive.asKernel, v.check.sound.before.receive.asKernel)
		out := minus(now.transmit.asKernel, v.check.sound.before.transmit.asKernel)
		since.kernel.ReceiveBytes += in.Bytes
		since.kernel.ReceivePackets += in.Packets
		since.kernel.TransmitBytes += out.Bytes
		since.kernel.TransmitPackets += out.Packets
	}
	return &gap{since, sinceUs}
}

// goInside has an interface that is off the host's hooks counted in the container. What the
// kernel says is missing since our counting was last sound is mended there: what bypassed
// the hooks, and what passes while we are on neither.
func (c *Controller) goInside(v *veth) []roster.Hint {
	missed := c.told(v)
	owner := c.owners(v.Target)
	if err := c.Accounts.Close(v.Target); err != nil {
		c.Log.Error("could not close interface", "interface", v.name, "err", err)
	}
	v.hook, v.check, v.missed = "", nil, missed
	var hints []roster.Hint
	for _, key := range owner {
		for _, box := range c.spaces {
			box.uplinks = box.uplinks || box.owner == key // if it does not work out now
		}
		hints = append(hints, roster.Hint{Key: key})
	}
	return hints
}
