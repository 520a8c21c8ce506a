// SPDX-License-Identifier: Apache-2.0

package usage

import "github.com/nettally/nettally/bpf"

// note changes the note that is kept with the slot of a target, if it is counted.
func (s *Slots) note(target Target, change func(*bpf.Note)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return nil
	}
	changed := at.slot
	change(&changed.Note)
	if err := s.Datapath.Keep(changed); err != nil {
		return err
	}
	at.slot = changed
	return nil
}

// noted returns the note of a target, an empty one if it is not counted.
func (s *Slots) noted(target Target) bpf.Note {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil {
		return at.slot.Note
	}
	return bpf.Note{}
}

// OwnQdisc notes that we made the qdisc of an interface.
func (s *Slots) OwnQdisc(target Target) error {
	return s.note(target, func(n *bpf.Note) { n.OwnQdisc = true })
}

// DisownQdisc notes that our qdisc of an interface is gone.
func (s *Slots) DisownQdisc(target Target) error {
	return s.note(target, func(n *bpf.Note) { n.OwnQdisc = false })
}

// QdiscOwned reports whether we made the qdisc of an interface.
func (s *Slots) QdiscOwned(target Target) bool { return s.noted(target).OwnQdisc }

// Handover says that a host interface changes between clsact and tcx: while both see a
// packet, only tcx counts it. It is to be said before the second is put on, and taken
// back when the first is off and [Slots.Quiesce] has returned.
func (s *Slots) Handover(target Target, up bool) error {
	return s.note(target, func(n *bpf.Note) { n.Handover = up })
}

// InHandover reports whether a host interface is changing between clsact and tcx.
func (s *Slots) InHandover(target Target) bool { return s.noted(target).Handover }

// Seed adds to what the kernel had counted on an interface before we came. It is noted with
// the slot.
func (s *Slots) Seed(target Target, receive, transmit Volume) error {
	return s.note(target, func(n *bpf.Note) {
		n.SeededReceive = bpf.Volume(Volume(n.SeededReceive).plus(receive))
		n.SeededTransmit = bpf.Volume(Volume(n.SeededTransmit).plus(transmit))
	})
}

// Mend adds to what the kernel has counted on an interface since we came, while our programs
// saw nothing. It is noted with the slot.
func (s *Slots) Mend(target Target, receive, transmit Volume) error {
	return s.note(target, func(n *bpf.Note) { mend(n, receive, transmit) })
}

func mend(n *bpf.Note, receive, transmit Volume) {
	n.MendedReceive = bpf.Volume(Volume(n.MendedReceive).plus(receive))
	n.MendedTransmit = bpf.Volume(Volume(n.MendedTransmit).plus(transmit))
}

// Bind lets the tcx programs on a host interface count on its slot.
func (s *Slots) Bind(target Target) error { return s.bind(target, s.Datapath.Bind) }

// BindCgroup lets the programs on a cgroup count on its slot.
func (s *Slots) BindCgroup(target Target) error { return s.bind(target, s.Datapath.BindCgroup) }

func (s *Slots) bind(target Target, bind func(bpf.Slot) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil {
		return bind(at.slot)
	}
	return nil
}

// Quiesce waits until every packet that is on its way has been counted: an RCU grace
// period, some 15 ms.
func (s *Slots) Quiesce() error { return s.Datapath.Quiesce() }
