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

// veths are the host veths that are to be counted.
type veths struct {
	keeper
	known    map[int]*veth // by ifindex
	excluded map[int]bool  // those that are not to be counted
	aside    map[int]bool  // those that were let go, since they lead nowhere
	jobs     *jobs
	busy     map[int]bool // those of containers at work, while we start
	cni      cni
	shaped   bool         // a CNI plugin adds an `ingress` qdisc
	unclean  map[int]bool // those that are gone and may have left pins
	room     roomRule
	roomed   time.Time     // when an interface was moved last to make room
	here     time.Duration // after which a veth that leads nowhere is let go
}

// veth is a host veth that is to be counted.
type veth struct {
	attachment
	link  watcher.HostVeth
	led   time.Time // into another namespace, since then, as far as we know
	why   tcxReason
	still stillness

	ahead time.Time // a list was, by which it was attached, of the event; zero once that has come

	bypassed uint64 // packets that the other end had received otherwise, at the last look
	missed   *gap   // which the other end has to make up for, if it is counted there
}

// tcxReason says why clsact does not do for a host veth. The greater one stays.
type tcxReason int

const (
	noReason    tcxReason = iota
	makingRoom            // for who may add an `ingress` qdisc one day
	busyNow               // it would have dropped packets when we came
	shaperComes           // who adds that qdisc may be about to
	inTheWay              // somebody has an `ingress` qdisc, or is on tcx, or ends the chain before us
)

// on returns the site that a host veth has on a hook.
func (s *veths) on(hook string, v *veth) site {
	return hostSite(s.Hooks, hook, witnessed{v.Ifindex, s.Host.Counters})
}

// at returns the site that a host veth is counted at.
func (s *veths) at(v *veth) site { return s.on(v.hook, v) }

// seen counts a host veth that is new, or notes what changed. seenAt is zero if no event told
// of it. inside says that its other end is counted already.
func (s *veths) seen(link watcher.HostVeth, seenAt time.Time, inside bool) []roster.Hint {
	if !s.Settings().Interface(link.Name) {
		s.excluded[link.Index] = true
		s.exclude(link.Index)
		return nil
	}
	delete(s.excluded, link.Index)
	if link.NetNSID >= 0 {
		delete(s.aside, link.Index)
	} else if s.aside[link.Index] {
		return nil
	}
	v := s.known[link.Index]
	fresh := v == nil
	if fresh {
		v = &veth{attachment: attachment{Target: usage.OnHost(link.Index), since: time.Now()}}
		s.known[link.Index] = v
		if !seenAt.IsZero() {
			// The network of a node may be configured after we are started, by a pod.
			s.lookAtCNI()
		}
	}
	if link.NetNSID < 0 && v.attached() {
		link.NetNSID = v.link.NetNSID // the peer is back, to be removed: we want to know from where
	}
	renamed := v.name != link.Name
	v.link, v.name = link, link.Name
	if v.attached() && renamed {
		s.show(&v.attachment)
	}
	if inside && v.state == waiting {
		s.become(&v.attachment, elsewhere)
	}
	if link.NetNSID >= 0 && v.led.IsZero() {
		v.led = time.Now()
	}
	if v.state == waiting {
		s.attach(v, seenAt)
	}
	s.late(v, seenAt, fresh)
	return s.wantsOwner(v)
}

// late observes what a list has shown earlier than an event did that was held up, once that comes.
func (s *veths) late(v *veth, seenAt time.Time, fresh bool) {
	switch {
	case seenAt.IsZero() && fresh && v.attached():
		v.ahead = time.Now()
	case !seenAt.IsZero() && !v.ahead.IsZero():
		s.metrics.attach.Observe(max(0, v.ahead.Sub(seenAt)).Seconds())
		v.ahead = time.Time{}
	}
}

// wantsOwner hints at the containers that may own an interface that nobody owns.
func (s *veths) wantsOwner(v *veth) []roster.Hint {
	if !v.attached() || v.link.NetNSID < 0 || s.owned(&v.attachment) {
		return nil
	}
	return []roster.Hint{{NSID: v.link.NetNSID}}
}

// exclude ends the counting of an interface that is not to be counted any more.
func (s *veths) exclude(index int) {
	if v := s.known[index]; v != nil && !v.atWork() { // else the next reconcile does
		s.do(v, leaving, job{kind: jobTakeOff})
	}
}

// attach puts a host veth on the hook it can be put on at once. One that is new and to be on
// tcx is moved there afterwards: that takes some 40 ms, and a container does not wait.
func (s *veths) attach(v *veth, seenAt time.Time) {
	if s.waitsForCNI(v) {
		return
	}
	slot, on, err := s.Accounts.Open(v.Target, v.name, HookClsact)
	if err != nil {
		s.notAttached(v, err)
		return
	}
	v.slot = slot
	if on == HookTCX {
		v.why = inTheWay // why it was moved there is not known any more
		s.began(&v.attachment, s.on(HookTCX, v), HookTCX, nil)
		s.move(v, s.wanted(v)) // to our own programs
		return
	}
	if on == "" {
		v.seen, _ = s.on(HookClsact, v).counters(nil)
		v.why = max(v.why, s.reason(v))
		if s.wanted(v) == HookTCX && v.why != noReason {
			s.move(v, HookTCX)
			return
		}
	}
	s.attachClsact(v, on == "", seenAt)
}

func (s *veths) attachClsact(v *veth, first bool, seenAt time.Time) {
	at := s.on(HookClsact, v)
	began := time.Now()
	err := s.put(&v.attachment, at)
	if errors.Is(err, tcctl.ErrIngressQdisc) && s.tcxAllowed() {
		v.why = inTheWay
		s.move(v, HookTCX)
		return
	}
	if err != nil {
		s.notAttached(v, errors.Join(err, s.Accounts.Close(v.Target)))
		return
	}
	if !seenAt.IsZero() {
		s.metrics.attach.Observe(time.Since(seenAt).Seconds())
	}
	var missing *gap // an earlier process has counted all
	if first {
		missing = &gap{kind: beforeUs}
		s.glanceAt(v, began)
	}
	s.began(&v.attachment, at, HookClsact, missing)
	s.Log.Debug("counting", "interface", v.name, "ifindex", v.Ifindex, "hook", v.hook)
	if s.wanted(v) == HookTCX {
		s.move(v, HookTCX)
	}
}

// glanceAfter is how long it takes as a rule, and longer, to put our programs on an interface.
const glanceAfter = 10 * time.Millisecond

// glanceAt reads the kernel's counters of an interface that our programs have just come to, if that
// took long. Each step waits for the kernel's lock for networks then, and so would the next
// reading: whoever removes the interface may be before it.
func (s *veths) glanceAt(v *veth, began time.Time) {
	if time.Since(began) < glanceAfter {
		return
	}
	var now reading
	var err error
	now.before, _ = s.counted(v.Target)
	if now.kernel, err = s.Host.Glance(v.link.Name); err != nil {
		return // it is gone, or has another name
	}
	now.after, _ = s.counted(v.Target)
	v.glance = &now
}

// reason says why an interface that nobody counts yet can't be put on clsact for a moment.
// All others are counted there until it is their turn.
func (s *veths) reason(v *veth) tcxReason {
	switch {
	case s.shaped, v.isCalicos(): // whose `ingress` qdisc could not be added, and the pod would not start
		return shaperComes
	case s.busy[v.Ifindex]:
		return busyNow
	}
	return noReason
}

// notAttached notes why an interface is not counted.
func (s *veths) notAttached(v *veth, err error) {
	if errors.Is(err, tcctl.ErrGone) {
		delete(s.known, v.Ifindex)
		return
	}
	s.failed(&v.attachment, err)
}

// place moves an interface to the hook it is wanted on by now.
func (s *veths) place(index int) {
	v := s.known[index]
	if v == nil || !v.attached() || v.atWork() {
		return
	}
	if v.why != inTheWay && s.TCX && s.Settings().Mode == ModeAuto {
		others, err := s.Hooks.OthersOnTCX(index)
		if err != nil {
			s.Log.Debug("look at the others on an interface", "interface", v.name, "err", err)
		}
		if others {
			v.why = inTheWay
		}
	}
	// A move that failed may have left it on both.
	if to := s.wanted(v); to != v.hook || s.Accounts.InHandover(v.Target) {
		s.move(v, to)
	}
}

// wanted says on which hook an interface is to be counted.
func (s *veths) wanted(v *veth) string {
	mode := s.Settings().Mode
	if s.TCX && (mode == ModeTCX || mode == ModeAuto && v.why != noReason) {
		return HookTCX
	}
	return HookClsact
}

func (s *veths) tcxAllowed() bool { return s.TCX && s.Settings().Mode != ModeClsact }

// waitsForCNI leaves an interface to the bandwidth plugin where we can't use tcx. What
// the kernel counts meanwhile is seeded.
func (s *veths) waitsForCNI(v *veth) bool {
	return s.shaped && !s.tcxAllowed() && time.Since(v.since) < cniPatience
}

// checkOne compares a host veth with the kernel's counters, and mends it.
func (s *veths) checkOne(v *veth, kernel watcher.LinkCounters, seen *completeness) (hints []roster.Hint) {
	if s.leadsNowhere(v) {
		s.letGo(v)
		return nil
	}
	if v.state == waiting && v.failure == "" {
		s.attach(v, time.Time{}) // it was left to a CNI plugin
		hints = s.wantsOwner(v)
	}
	after, ok := s.counted(v.Target)
	if !ok || v.atWork() || !v.attached() {
		return hints
	}
	switch {
	case v.check == nil:
		v.check = s.begin(&v.attachment, s.at(v), unsettled{})
	case v.check.before != nil:
		now := reading{*v.check.before, kernel, after}
		seen.add(now, v.check.first)
		if s.compare(&v.attachment, s.at(v), now) {
			s.mendUnseen(v)
		}
		s.makeRoom(v, kernel)
	}
	return hints
}

// unseen returns how many there are that packets pass unseen.
func (s *veths) unseen() (count int) {
	for _, v := range s.known {
		if v.unseen() {
			count++
		}
	}
	return count
}

// leadingTo returns the interfaces that nobody owns and that lead into a namespace, by the
// number that the host has for it as long as it is held. Their own names are not known.
func (s *veths) leadingTo(nsid int) (found []watcher.Interface) {
	for _, v := range s.known {
		if nsid >= 0 && nsid == v.link.NetNSID && !s.owned(&v.attachment) {
			found = append(found, watcher.Interface{Name: v.name, HostIndex: v.Ifindex})
		}
	}
	return found
}

// leads says whether a host veth that is counted leads to an interface, as far as events have told.
func (s *veths) leads(nsid, index int) bool {
	for _, v := range s.known {
		if nsid >= 0 && v.link.NetNSID == nsid && v.link.PeerIndex == index && v.attached() {
			return true
		}
	}
	return false
}

// gone ends the counting of a host veth that is gone.
func (s *veths) gone(v *veth) {
	delete(s.known, v.Ifindex)
	s.jobs.cancel(v.Ifindex)
	if v.hook == HookTCX || v.atWork() || s.Accounts.InHandover(v.Target) {
		s.jobs.put(job{kind: jobCleanUp, index: v.Ifindex})
	}
	if err := s.Accounts.Close(v.Target); err != nil {
		s.Log.Error("close interface", "ifindex", v.Ifindex, "err", err)
	}
}

// endMissing ends the counting of what is not there; that is gone, as a rule, or leads
// nowhere any more.
func (s *veths) endMissing(there map[int]bool) {
	for index := range s.known {
		if there[index] {
			continue
		}
		if err := s.mover().remove(index); err != nil {
			s.Log.Warn("could not detach from an interface that is none of ours", "ifindex", index, "err", err)
		}
		delete(s.known, index)
	}
	for index := range s.aside {
		if !there[index] {
			delete(s.aside, index)
		}
	}
	for index := range s.unclean {
		delete(s.unclean, index)
		if !there[index] {
			s.jobs.put(job{kind: jobCleanUp, index: index})
		}
	}
}

// removeStrays takes our programs off interfaces that are not to be counted: they
// are excluded now, or their counters are lost.
func (s *veths) removeStrays() {
	filters, err := s.Hooks.Interfaces()
	links, tcxErr := s.Hooks.TCXInterfaces()
	if err := errors.Join(err, tcxErr); err != nil {
		s.Log.Warn("list interfaces with our programs", "err", err)
	}
	for _, index := range append(filters, links...) {
		if _, wanted := s.known[index]; wanted {
			continue
		}
		if err := s.mover().remove(index); err != nil {
			s.Log.Warn("remove stray programs", "ifindex", index, "err", err)
		}
	}
}
