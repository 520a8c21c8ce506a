// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// An interface without an end in the host's namespace is counted where it is, in the
// container's. No namespace is held for that: its owner's processes lead there each time.
// Where none is left the filters may go on counting, since others can hold a namespace;
// so the slot is given up only when the kernel says that the namespace has ended.

// uplinks are the interfaces that lead out of their containers' namespaces without a host
// veth.
type uplinks struct {
	keeper
	known map[usage.Target]*uplink
}

// uplink is one of them.
type uplink struct {
	attachment
	link   string // its kind
	nsid   int    // the host's number for the namespace
	missed *gap   // of its host veth, which it has to make up for
}

// physical says that a driver keeps the interface's counters. It may do so seconds later,
// and for more than what passed here, so they witness nothing.
func (u *uplink) physical() bool { return u.link == "" }

func targetOf(found watcher.Sandbox, i watcher.Interface) usage.Target {
	return usage.Target{Ifindex: i.Index, NetNS: found.NetNS}
}

// of returns what is known of an uplink, and notes what may have changed.
func (s *uplinks) of(found watcher.Sandbox, i watcher.Interface) *uplink {
	target := targetOf(found, i)
	u := s.known[target]
	if u == nil {
		u = &uplink{attachment: attachment{Target: target, since: time.Now()}}
		s.known[target] = u
	}
	u.name, u.link, u.nsid = i.Name, i.Kind, found.NetNSID
	return u
}

// countedAt says whether an interface is counted, by the host's number for its namespace.
func (s *uplinks) countedAt(nsid, ifindex int) bool {
	for target, u := range s.known {
		if nsid >= 0 && u.nsid == nsid && target.Ifindex == ifindex {
			return true
		}
	}
	return false
}

// in counts what is known in a namespace.
func (s *uplinks) in(netns uint64) (all, attached int) {
	for target, u := range s.known {
		if target.NetNS != netns {
			continue
		}
		all++
		if u.attached() {
			attached++
		}
	}
	return all, attached
}

// keep has an interface of a container counted, or sees to it that it still is.
func (s *uplinks) keep(in visit, u *uplink, container string) error {
	at := in.site(u.Ifindex)
	slot, ours, err := in.clsact.Current(u.Ifindex)
	if err != nil {
		return err
	}
	if u.state == counting || u.state == shadowed {
		return s.check(in, u, ours && slot == u.slot, container)
	}
	if err := s.Accounts.MayTake(u.Target, container); err != nil {
		return err
	}
	var on string
	if u.slot, on, err = s.Accounts.Open(u.Target, "", HookClsact); err != nil {
		return err
	}
	if on == "" {
		u.seen, _ = at.counters(nil)
	}
	if err := s.put(&u.attachment, at); err != nil {
		if on == "" {
			err = errors.Join(err, s.Accounts.Close(u.Target))
		}
		return err // those of an earlier process go on counting
	}
	// A physical interface's counters have what it did for others, and those of one with
	// our filters what an earlier owner did.
	missing := u.missed
	if missing != nil {
		if err := s.Accounts.FollowLost(u.Target, missing.lost); err != nil {
			s.Log.Warn("note what was lost", "interface", u.name, "target", u.Target, "err", err)
		}
	}
	if missing == nil && on == "" && !ours && !u.physical() {
		missing = &gap{kind: beforeUs}
	}
	u.missed = nil
	s.began(&u.attachment, at, HookClsact, missing)
	s.Log.Debug("counting inside", "interface", u.name, "kind", u.link, "target", u.Target)
	return nil
}

// check compares our numbers with the kernel's, and mends. A container that may change its
// network can remove our filters.
func (s *uplinks) check(in visit, u *uplink, intact bool, container string) error {
	at := in.site(u.Ifindex)
	now, err := s.read(&u.attachment, at)
	if err != nil {
		return err
	}
	if u.check == nil {
		u.check = &check{first: now, sound: now, last: now}
	}
	switch {
	case !intact && less(now.kernel, u.check.last.kernel):
		// Not the one that we knew: the kernel gives numbers again.
		s.end(u)
		*u = uplink{attachment: attachment{Target: u.Target, name: u.name, since: time.Now()}, link: u.link, nsid: u.nsid}
		s.known[u.Target] = u
		return s.keep(in, u, container)
	case !intact:
		err := s.putBack(&u.attachment, at, u.physical())
		if err != nil {
			s.shadow(&u.attachment)
		}
		return err
	case u.physical():
		u.check.take(now)
	case s.compare(&u.attachment, at, now):
		s.shadow(&u.attachment)
	}
	return nil
}

func less(a, b watcher.LinkCounters) bool {
	return a.ReceivePackets < b.ReceivePackets || a.TransmitPackets < b.TransmitPackets ||
		a.ReceiveBytes < b.ReceiveBytes || a.TransmitBytes < b.TransmitBytes
}

// notKept notes why an interface is not counted.
func (s *uplinks) notKept(u *uplink, container string, err error) {
	if errors.Is(err, tcctl.ErrGone) || errors.Is(err, watcher.ErrGone) {
		s.end(u)
		return
	}
	s.failed(&u.attachment, err, "container_id", container)
}

// ownRest gives the owner of a namespace, which ends, the interfaces in it that had no name
// for good. It returns how many interfaces are counted there.
func (s *uplinks) ownRest(box *space) (counted int) {
	for target, u := range s.known {
		if target.NetNS != box.ID || !u.attached() {
			continue
		}
		if !s.owned(&u.attachment) {
			s.own(target, box.owner, u.name, u.name)
		}
		counted++
	}
	return counted
}

// endOthers ends the counting of what is in a namespace and not wanted: it is gone, or has
// moved and left its filters behind, or it is excluded by now.
func (s *uplinks) endOthers(in visit, wanted, there []watcher.Interface) {
	for target, u := range s.known {
		if target.NetNS != in.Inode() || has(wanted, target.Ifindex) {
			continue
		}
		if u.attached() && has(there, target.Ifindex) {
			if err := in.site(target.Ifindex).detach(s.Accounts.QdiscOwned(target)); err != nil {
				s.Log.Warn("detach from interface in a container", "interface", u.name, "target", target, "err", err)
				continue
			}
		}
		s.end(u)
	}
}

func has(interfaces []watcher.Interface, index int) bool {
	for _, i := range interfaces {
		if i.Index == index {
			return true
		}
	}
	return false
}

// end ends the counting of an interface that is gone, or whose filters are.
func (s *uplinks) end(u *uplink) {
	delete(s.known, u.Target)
	if err := s.Accounts.Close(u.Target); err != nil {
		s.Log.Error("close interface", "target", u.Target, "err", err)
	}
}

// endPeer ends the counting at the other end of a host veth that is gone.
func (s *uplinks) endPeer(v *veth) {
	for target, u := range s.known {
		if v.isElsewhere() && u.nsid == v.link.NetNSID && target.Ifindex == v.link.PeerIndex {
			s.end(u)
		}
	}
}

// beginReadings begins a reading of all. It returns the interfaces with the numbers of their
// namespaces.
func (s *uplinks) beginReadings() map[usage.Target]int {
	begun := map[usage.Target]int{}
	for target, u := range s.known {
		if u.check != nil && !u.physical() {
			s.before(&u.attachment)
			begun[target] = u.nsid
		}
	}
	return begun
}
