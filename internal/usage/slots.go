// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nettally/nettally/bpf"
)

// Target is what is counted on a slot: an interface, or a cgroup.
type Target = bpf.Target

// OnHost is an interface in the host's namespace.
func OnHost(ifindex int) Target { return Target{Ifindex: ifindex} }

// Slots are the attachments of the host by target, each with a slot in the kernel. Nothing
// here finds a container by its id, as [Accounts] does: who only puts programs on hooks, or
// moves them, needs no more than this.
//
// Its methods are safe for concurrent use, and do nothing for a target that is not counted.
type Slots struct {
	Options

	mu          sync.Mutex // of all that is in Accounts
	attachments map[Target]*attachment
	closed      []*attachment // whose slot is held until it is written, oldest first
	discarded   []*attachment // whose slot is held for a moment, oldest first
	orphans     []orphan
	orphaned    Traffic // what all orphans counted, also those that are forgotten
	userSlots   int     // that containers of users have for packets
	userSockets int     // and for connections
}

// attachment is an interface or a cgroup that is being counted, or was until it went.
type attachment struct {
	slot     bpf.Slot
	shown    Shown
	at       time.Time
	tally    *tally    // the owner's, nil while nobody owns it
	closedAt time.Time // zero while it is counted
	passed   Opens
	torn     bool    // somebody took its programs off: what has passed since is mended
	earlier  Traffic // where its target was another container's: what was counted of that before
}

// place says where an interface is counted.
func (at *attachment) place() Place {
	if at.slot.NetNS != 0 {
		return AtContainer
	}
	return AtHost
}

// orphan is what an interface counted that went before its owner was known.
type orphan struct {
	Interface
	at time.Time // it went
}

// Shown is what a snapshot says of an attachment besides its numbers.
type Shown struct {
	HostInterface string // the host veth's name, "" without one
	Hook          string // how it is counted: "clsact" or "tcx"
	Shadowed      bool   // the kernel counts packets there that do not reach our programs
}

// maxClosed is how many slots may wait for a ledger that does not come round to it.
const maxClosed = 1024

// Open begins to count a target that has no owner yet. It returns the slot for the
// programs on it, whose counters are at 0. A target that an earlier process counted keeps
// its slot; `on` is the hook it is on.
func (s *Slots) Open(target Target, host, hook string) (slot uint16, on string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil {
		return at.slot.Index, at.shown.Hook, nil
	}
	taken, err := s.Datapath.Take(target)
	for errors.Is(err, bpf.ErrFull) && len(s.closed) > 0 {
		s.fold(s.closed[0])
		taken, err = s.Datapath.Take(target)
	}
	if err != nil {
		return 0, "", err
	}
	s.attachments[target] = &attachment{slot: taken, shown: Shown{HostInterface: host, Hook: hook}, at: s.timeOfDay()}
	return taken.Index, "", nil
}

// Succeed begins to count a target on another slot, for another owner: the totals so far
// stay with the old one. swap, which must not call the accounts, makes the programs count
// on the slot; for those that [Slots.Bind] tells the slot, as on tcx, it is nil. A slot other than 0 is the one
// that counts now, also with an error.
func (s *Slots) Succeed(target Target, swap func(slot uint16) error) (slot uint16, err error) {
	old, slot, err := s.takeOver(target, swap)
	if err != nil || old == nil {
		return slot, err
	}
	err = s.Datapath.Quiesce() // no packet is on its way to the old slot any more
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil && at.slot.Index == slot {
		at.earlier, at.passed = s.before(old).Plus(old.read(s.Datapath)), old.passed
	}
	return slot, errors.Join(err, s.close(old))
}

func (s *Slots) takeOver(target Target, swap func(slot uint16) error) (old *attachment, slot uint16, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old = s.attachments[target]
	if old == nil {
		return nil, 0, nil
	}
	taken, err := s.Datapath.Take(target)
	if err != nil {
		return nil, 0, err
	}
	taken.OwnQdisc = old.slot.OwnQdisc
	taken.Lost = bpf.Lost{Known: old.slot.Lost.Known, Followed: old.slot.Lost.Followed, Mark: old.slot.Lost.Mark}
	err = s.Datapath.Keep(taken)
	switch {
	case err != nil:
	case swap == nil:
		err = s.Datapath.Bind(taken)
	default:
		err = swap(taken.Index)
	}
	if err != nil {
		return nil, 0, errors.Join(err, s.Datapath.Release(taken))
	}
	s.attachments[target] = &attachment{slot: taken, shown: old.shown, at: s.timeOfDay()}
	return old, taken.Index, nil
}

// Show says how an attachment is shown from now on.
func (s *Slots) Show(target Target, shown Shown) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return
	}
	at.shown = shown
	if at.tally != nil {
		at.tally.show(at)
	}
}

// Owner returns the id of the container that owns a target, "" if nobody does.
func (s *Slots) Owner(target Target) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil && at.tally != nil {
		return at.slot.Container
	}
	return ""
}

// Counted returns what our programs have counted of a target, without what was seeded or
// mended.
// Not ok: it is not counted.
func (s *Slots) Counted(target Target) (_ Traffic, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return Traffic{}, false
	}
	rx, tx, err := s.Datapath.Read(at.slot)
	return traffic(target, rx, tx), err == nil
}

// Beside returns what is said of an interface besides [Slots.Counted], as its own counters
// would have it: what was seeded and mended, and counted on earlier slots.
func (s *Slots) Beside(target Target) (receive, transmit Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return Volume{}, Volume{}
	}
	before := s.before(at)
	receive = Volume(at.slot.SeededReceive).plus(Volume(at.slot.MendedReceive))
	transmit = Volume(at.slot.SeededTransmit).plus(Volume(at.slot.MendedTransmit))
	return receive.plus(before.Receive.Interface), transmit.plus(before.Transmit.Interface)
}

// Close ends the counting of an interface that is gone, or whose programs are: its owner
// keeps what it counted.
func (s *Slots) Close(target Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return nil
	}
	delete(s.attachments, target)
	return s.close(at)
}

// Forget ends the counting of an interface that turned out to lead to no container. What it
// counted is nobody's traffic, so it is not kept; an interface with an owner is closed.
func (s *Slots) Forget(target Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return nil
	}
	delete(s.attachments, target)
	if at.tally != nil {
		return s.close(at)
	}
	return s.Datapath.Release(at.slot)
}

// close holds on to the slot until its counts are written. Without an owner or a ledger
// there is nothing to wait for.
func (s *Slots) close(at *attachment) error {
	at.closedAt = s.Now()
	if at.tally == nil {
		last := at.unowned(s.Datapath)
		if last.Receive.Interface.Packets+last.Transmit.Interface.Packets > 0 {
			s.orphans = append(s.orphans, orphan{Interface: last, at: at.closedAt})
			s.orphaned = s.orphaned.Plus(last.Traffic)
		}
		return s.Datapath.Release(at.slot)
	}
	s.closed = append(s.closed, at)
	if !s.Kept || len(s.closed) > maxClosed {
		return s.fold(s.closed[0])
	}
	return nil
}

// fold puts what a closed attachment counted into its tally, and releases the slot.
func (s *Slots) fold(at *attachment) error {
	at.tally.fold(at, s.attachment(at))
	s.hold(at, -1)
	s.closed = slices.DeleteFunc(s.closed, func(other *attachment) bool { return other == at })
	if err := s.Datapath.Release(at.slot); err != nil {
		return fmt.Errorf("give up slot of %s: %w", at.shown.HostInterface, err)
	}
	return nil
}

// read reads an attachment. Its slot is ours until fold, under the same lock, so it can't
// have been released.
func (at *attachment) read(d Datapath) Traffic {
	switch kindOf(at.slot.Target) {
	case ofNamespace:
		return Traffic{TCP: at.readTCP(d)}
	case ofConnections:
		return Traffic{TCP: at.readTCP(d), Sockets: at.readSockets(d), Requests: at.readRequests(d)}
	}
	rx, tx, err := d.Read(at.slot)
	if errors.Is(err, bpf.ErrReleased) {
		panic("usage: slot of an attachment was released: " + at.shown.HostInterface)
	}
	t := traffic(at.slot.Target, rx, tx)
	t.Receive.add(at.slot.SeededReceive, at.slot.MendedReceive)
	t.Transmit.add(at.slot.SeededTransmit, at.slot.MendedTransmit)
	t.Lost = lost(at.slot.Lost)
	return t
}

// unowned is an attachment as an interface that nobody owns.
func (at *attachment) unowned(d Datapath) Interface {
	return Interface{
		HostInterface: at.shown.HostInterface,
		Hook:          at.shown.Hook,
		At:            at.place(),
		AttachedAt:    at.at,
		Attached:      at.closedAt.IsZero(),
		Shadowed:      at.shown.Shadowed,
		Traffic:       at.read(d),
	}
}
