// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/wallclock"
)

// Leftover is a slot that an earlier process left in use.
type Leftover struct {
	Target
	Slot uint16
	// OwnQdisc says that the earlier process made the interface's qdisc, or was about to.
	OwnQdisc bool
	// Older says that another slot was taken for the same target later: programs that are
	// on count on that.
	Older bool
	// Torn says, to [Accounts.Retire], that somebody has taken the programs off while nobody
	// was there to notice.
	Torn bool

	slot bpf.Slot
}

// leftovers marks the slots whose target has another one since.
func leftovers(slots []bpf.Slot) []Leftover {
	newest := map[Target]uint64{}
	for _, s := range slots {
		newest[s.Target] = max(newest[s.Target], s.Generation)
	}
	var left []Leftover
	for _, s := range slots {
		left = append(left, Leftover{Target: s.Target, Slot: s.Index, OwnQdisc: s.OwnQdisc, Older: s.Generation < newest[s.Target], slot: s})
	}
	return left
}

// Inherit takes slots for what an older layout of the counters had in use. Programs that
// count on the old ones are to be replaced, and then [Slots.Settle] called.
func (s *Slots) Inherit() ([]Leftover, error) {
	var left []bpf.Slot
	for _, old := range s.Datapath.Old() {
		slot, err := s.Datapath.Inherit(old)
		if err != nil {
			return leftovers(left), fmt.Errorf("inherit counts of %s: %w", old.Target, err)
		}
		left = append(left, slot)
	}
	return leftovers(left), nil
}

// Settle moves the counts of an older layout to the slots that inherited them.
func (s *Slots) Settle() error { return s.Datapath.Settle() }

// BindInherited is [Slots.Bind] for an interface that is not adopted yet.
func (s *Slots) BindInherited(l Leftover) error { return s.Datapath.Bind(l.slot) }

// Bound reports whether the programs on a cgroup count on a slot that an earlier process
// took for it.
func (s *Slots) Bound(l Leftover) bool { return s.Datapath.CgroupBound(l.slot) }

// Leftovers returns the slots in use that nothing was opened on, or adopted: interfaces
// first, since what a cgroup counted is of use only without one.
func (s *Slots) Leftovers() []Leftover {
	s.mu.Lock()
	defer s.mu.Unlock()
	ours := map[uint64]bool{}
	for _, at := range s.attachments {
		ours[at.slot.Generation] = true
	}
	for _, at := range slices.Concat(s.closed, s.discarded) {
		ours[at.slot.Generation] = true
	}
	var slots []bpf.Slot
	for _, slot := range s.Datapath.Slots() {
		if !ours[slot.Generation] {
			slots = append(slots, slot)
		}
	}
	left := leftovers(slots)
	slices.SortFunc(left, func(a, b Leftover) int { return cmp.Compare(a.Cgroup, b.Cgroup) })
	return left
}

// Adopt goes on counting a target on the slot an earlier process took, for the owner it
// had then.
func (a *Accounts) Adopt(l Leftover, host, hook string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := &attachment{slot: l.slot, shown: Shown{HostInterface: host, Hook: hook}, at: a.takenAt(l.slot)}
	a.attachments[l.Target] = at
	a.ownAgain(at)
}

// Retire ends the counting on a slot that an earlier process took, whose programs are
// gone: the owner it had keeps what it counted.
func (a *Accounts) Retire(l Leftover) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot := l.slot
	if a.restored[slot.Generation].folded {
		return a.Datapath.Release(slot)
	}
	at := &attachment{slot: slot, at: a.takenAt(slot), torn: l.Torn}
	a.ownAgain(at)
	if slot.Cgroup != 0 && !at.needsCgroup() {
		return a.discard(at)
	}
	return a.close(at)
}

// ownAgain gives an attachment of an earlier process to the owner it had: the one noted
// with its slot, or else the one in the ledger.
func (a *Accounts) ownAgain(at *attachment) {
	note, then := &at.slot.Note, a.restored[at.slot.Generation]
	delete(a.restored, at.slot.Generation)
	at.earlier = then.earlier
	extend(&at.slot.Lost, then.lost)
	if note.Container == "" {
		note.Container, note.Interface, note.Others = cmp.Or(then.guest, then.container), then.name, then.guest != ""
	}
	id := note.Container
	if id == "" {
		return
	}
	c := a.accountAgain(id, note.Others)
	if c.ID == "" { // it started after the ledger was last written
		c.Container = Container{ID: id, State: Running, StartedAt: at.at}
	}
	if !at.slot.Sockets {
		c.Reason = Accounted // the ledger may have been written before it was
	}
	c.tallyOf(kindOf(at.slot.Target), note.Interface).own(at)
	a.hold(at, 1)
}

// takenAt is the time of day when a slot was taken.
func (o *Options) takenAt(s bpf.Slot) time.Time {
	return o.timeOfDay().Add(time.Duration(s.Generation) - wallclock.SinceBoot())
}
