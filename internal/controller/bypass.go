// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"github.com/nettally/nettally/internal/roster"
)

// A program may hand packets over to a container without its host veth, by
// bpf_redirect_peer: no hook there sees them, nor do that end's own counters. The
// container's end counts them; there the interface is counted from then on.

// fewBypassed is how many packets are not worth to go inside for.
const fewBypassed = 10

// mayBeBypassed says whether a host veth's other end is worth a look.
func (s *veths) mayBeBypassed(v *veth) bool {
	return !v.atWork() && v.check != nil && s.hasOtherEnd(v)
}

// findBypassed has an interface counted inside of which the container's end receives what
// the host's does not send.
func (s *veths) findBypassed(ends map[int]bothEnds) {
	for index, now := range ends {
		v := s.known[index]
		if v != nil && now.hosted && s.mayBeBypassed(v) && v.bypass(now) {
			s.Log.Warn("packets reach a container past its interface on the host: counting inside from now on", "interface", v.name)
			s.do(v, leaving, job{kind: jobInside})
		}
	}
}

// bypass takes in how many packets were sent and received by now. It returns whether more
// have been received without having been sent since the last time.
func (v *veth) bypass(now bothEnds) bool {
	before := v.bypassed
	received, sent := now.container.ReceivePackets, now.host.ReceivePackets
	v.bypassed = received - min(received, sent)
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
	return &gap{since, sinceUs, c.Accounts.LostMark(v.Target)}
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
