// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"time"

	"github.com/nettally/nettally/watcher"
)

// A clsact qdisc keeps others from adding an `ingress` qdisc to the same interface: "Exclusivity
// flag on, cannot modify". CNI plugins do so at a pod's start; Calico, LXD, Open vSwitch and
// tools such as tcconfig and wondershaper at any time later. A tcx program is in nobody's way,
// so an interface moves there as soon as that costs its container nothing.

// roomRule says when an interface moves from clsact to tcx to make room.
type roomRule struct {
	age     time.Duration // it has been counted for so long
	still   time.Duration // for so long it received no more than
	packets uint64        // so many packets: those of some milliseconds are lost with the qdisc
	pause   time.Duration // between two interfaces: each holds the kernel's RTNL lock for some 30 ms
}

var usualRoom = roomRule{age: time.Minute, still: 10 * time.Second, packets: 10, pause: 2 * time.Second}

// stillness is a look at how many packets an interface receives.
type stillness struct {
	since   time.Time
	packets uint64
}

// calicoPrefix begins the names of Calico's host veths, on which Felix keeps an `ingress` qdisc
// where a pod's bandwidth is limited.
const calicoPrefix = "cali"

// makeRoom moves an interface to tcx when its container has received next to nothing for a
// while. It does nothing where the qdisc is not ours: that one would stay.
func (s *veths) makeRoom(v *veth, kernel watcher.LinkCounters) {
	if !s.TCX || s.Settings().Mode != ModeAuto || v.why != noReason || v.hook != HookClsact || v.state != counting ||
		time.Since(v.since) < s.room.age || !s.Accounts.QdiscOwned(v.Target) {
		return
	}
	received := kernel.ReceivePackets - v.still.packets
	switch {
	case v.still.since.IsZero() || kernel.ReceivePackets < v.still.packets || received > s.room.packets:
		v.still = stillness{time.Now(), kernel.ReceivePackets}
	case time.Since(v.still.since) >= s.room.still && time.Since(s.roomed) >= s.room.pause:
		s.roomed, v.why = time.Now(), makingRoom
		s.move(v, HookTCX)
	}
}

// noRoom notes that an interface could not be moved to make room: it is tried again as late as
// the first time.
func (v *veth) noRoom() {
	if v.why == makingRoom {
		v.why, v.since, v.still = noReason, time.Now(), stillness{}
	}
}

// hereFor is how long both ends of a veth may be in the host before it is let go. The end that
// Docker makes for a container is there for some 160 ms.
const hereFor = time.Minute

// leadsNowhere reports whether both ends of a veth have been in the host for long, as those of
// Proxmox' firewall bridges are: what passes is no container's.
func (s *veths) leadsNowhere(v *veth) bool {
	return v.link.NetNSID < 0 && v.led.IsZero() && !v.atWork() && !v.isElsewhere() && time.Since(v.since) >= s.here &&
		!s.owned(&v.attachment)
}

// letGo ends the counting of a veth that leads nowhere. It is counted again if its other end
// moves.
func (s *veths) letGo(v *veth) {
	s.Log.Debug("both ends of a veth are in the host: leaving it alone", "interface", v.name, "ifindex", v.Ifindex)
	if !v.attached() {
		s.isAside(v)
		return
	}
	s.do(v, leaving, job{kind: jobLetGo})
}

// isAside notes that a veth is let go. It returns the veth anew where its other end has moved
// meanwhile.
func (s *veths) isAside(v *veth) *veth {
	delete(s.known, v.Ifindex)
	if v.link.NetNSID < 0 {
		s.aside[v.Ifindex] = true
		return nil
	}
	s.seen(v.link, time.Time{}, false)
	return s.known[v.Ifindex]
}

// isCalicos reports whether Calico made a host veth.
func (v *veth) isCalicos() bool { return strings.HasPrefix(v.name, calicoPrefix) }

// lookAtCNI finds out whether pods' starts include a plugin that adds an `ingress` qdisc.
func (s *veths) lookAtCNI() { s.shaped = s.cni.shapes(s.Settings().CNIDirs) }
