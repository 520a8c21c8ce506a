// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"
	"slices"

	"github.com/nettally/nettally/bpf"
)

// Tell shows the numbers of a container's cgroup, from now on and for good: no interface
// tells as much. While a container starts that is still open.
func (s *Slots) Tell(target Target) error {
	s.mu.Lock()
	at := s.attachments[target]
	told := at == nil || at.slot.Told
	if !told && at.tally != nil {
		at.tally.told = true
	}
	s.mu.Unlock()
	if told {
		return nil
	}
	return s.note(target, func(n *bpf.Note) { n.Told = true })
}

// EndCgroup ends the counting of a cgroup. The programs must be off. Numbers that were told
// stay; others are of no use.
func (s *Slots) EndCgroup(target Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return nil
	}
	delete(s.attachments, target)
	if at.slot.Told || target.Sockets {
		return s.close(at)
	}
	return s.discard(at)
}

// discard forgets what was counted of a cgroup.
func (s *Slots) discard(at *attachment) error {
	if t := at.tally; t != nil {
		t.let(at)
		if len(t.live) == 0 && !t.told {
			t.account.cgroup = nil
		}
	}
	at.closedAt = s.Now()
	s.discarded = append(s.discarded, at)
	return s.releaseDiscarded()
}

// releaseDiscarded gives up the slots that no packet is on its way to any more.
func (s *Slots) releaseDiscarded() (err error) {
	for len(s.discarded) > 0 && s.Now().Sub(s.discarded[0].closedAt) >= settleAfter {
		err = errors.Join(err, s.Datapath.Release(s.discarded[0].slot))
		s.hold(s.discarded[0], -1)
		s.discarded = slices.Delete(s.discarded, 0, 1)
	}
	return err
}

// needsCgroup reports whether the counts of a cgroup that is gone are told: they were, or
// the container ended before it was known whether it has an interface, and none is known.
func (at *attachment) needsCgroup() bool {
	if at.slot.Sockets {
		return true // there is nothing else that would tell as much
	}
	if at.tally == nil || !at.slot.Told && len(at.tally.account.tallies) > 0 {
		return false
	}
	at.tally.told = true
	return true
}

// tellsCgroup reports whether the numbers of the cgroup are told: from [Slots.Tell] on.
func (c *account) tellsCgroup() bool { return c.cgroup != nil && c.cgroup.told }

// besideCgroup reports whether nothing of what a container sends and receives can be in the
// numbers of its cgroup: they are 0, and the sockets that it has are its own kernel's.
func (c *Container) besideCgroup(counted Interface) bool {
	return c.Kernel != "" && c.Reason != HostNetwork && counted.Traffic == (Traffic{})
}

// addCgroup adds what was counted of a container's cgroup. Where that is all there can be,
// the container is accounted by it.
func (c *Container) addCgroup(counted Interface) {
	if c.besideCgroup(counted) {
		return
	}
	c.IP, c.IPSince = &counted.Traffic, counted.AttachedAt
	if (counted.Attached || c.State == Stopped) && !c.Reason.inPart() && c.Reason != Excluded {
		c.Reason = Accounted
	}
}
