// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"math"

	"github.com/nettally/nettally/bpf"
)

// Lost is what the kernel's counters of an interface say was lost, in packets. None of it can
// be taken off what was counted, but Undelivered.
type Lost struct {
	// Known: the counters of the container's end have been read, and Receive and Transmit are
	// what they say, from before we came on. Else nobody knows.
	Known             bool `json:"known,omitempty"`
	Receive, Transmit Loss
	// Followed: the host's end is looked at, too. Undelivered is what it has dropped behind our
	// hook since we are there: it is part of what the container is said to have received.
	Followed    bool   `json:"followed,omitempty"`
	Undelivered uint64 `json:"undelivered,omitempty"`
}

// Loss is what was lost in one direction.
type Loss struct{ Dropped, Errors uint64 }

func (l Loss) plus(m Loss) Loss {
	return Loss{Dropped: Add(l.Dropped, m.Dropped), Errors: Add(l.Errors, m.Errors)}
}

// plus is the sum, which is known where a part is.
func (l Lost) plus(m Lost) Lost {
	return Lost{
		Known:       l.Known || m.Known,
		Receive:     l.Receive.plus(m.Receive),
		Transmit:    l.Transmit.plus(m.Transmit),
		Followed:    l.Followed || m.Followed,
		Undelivered: Add(l.Undelivered, m.Undelivered),
	}
}

// withoutUnknown leaves out of a container's sum what is not known of each of its interfaces.
func (l Lost) withoutUnknown(interfaces []Interface) Lost {
	known, followed := l.Known, l.Followed
	for i := range interfaces {
		known = known && interfaces[i].Lost.Known
		followed = followed && interfaces[i].Lost.Followed
	}
	if !known {
		l.Known, l.Receive, l.Transmit = false, Loss{}, Loss{}
	}
	if !followed {
		l.Followed, l.Undelivered = false, 0
	}
	return l
}

// lost puts what is noted with a slot into our words.
func lost(n bpf.Lost) Lost {
	return Lost{
		Known:       n.Known,
		Receive:     Loss{Dropped: n.ReceiveDropped, Errors: n.ReceiveErrors},
		Transmit:    Loss{Dropped: n.TransmitDropped, Errors: n.TransmitErrors},
		Followed:    n.Followed,
		Undelivered: n.Undelivered,
	}
}

// extend adds to what is noted with a slot what a note can't hold, as the ledger has it: that was
// written after an earlier note.
func extend(n *bpf.Lost, written Lost) {
	for _, v := range []struct {
		noted   *uint64
		written uint64
	}{
		{&n.ReceiveDropped, written.Receive.Dropped},
		{&n.TransmitDropped, written.Transmit.Dropped},
		{&n.Undelivered, written.Undelivered},
	} {
		*v.noted = v.written + uint64(uint32(*v.noted)-uint32(v.written))
	}
	n.ReceiveErrors, n.TransmitErrors = written.Receive.Errors, written.Transmit.Errors
}

// Lose takes in what the kernel has lost at the container's end of an interface, since that is
// there. What of it is said already, on an earlier slot, is not said again. It is noted with the
// slot, but for the errors: those of a veth are always 0.
func (s *Slots) Lose(target Target, receive, transmit Loss) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil || at.tally == nil { // whose earlier slots are not known yet
		return nil
	}
	said := s.before(at).Lost
	if receive.less(said.Receive) || transmit.less(said.Transmit) {
		said = Lost{} // it is another one by the same number
	}
	changed := at.slot
	l := &changed.Lost
	if !l.Known {
		l.Mark.ReceiveDropped, l.Mark.TransmitDropped = uint32(said.Receive.Dropped), uint32(said.Transmit.Dropped)
		l.ReceiveDropped = (receive.Dropped - said.Receive.Dropped) &^ math.MaxUint32 // the rest follows
		l.TransmitDropped = (transmit.Dropped - said.Transmit.Dropped) &^ math.MaxUint32
	}
	l.Known = true
	l.ReceiveDropped = Add(l.ReceiveDropped, follow(&l.Mark.ReceiveDropped, receive.Dropped))
	l.TransmitDropped = Add(l.TransmitDropped, follow(&l.Mark.TransmitDropped, transmit.Dropped))
	l.ReceiveErrors = max(l.ReceiveErrors, receive.Errors-said.Receive.Errors)
	l.TransmitErrors = max(l.TransmitErrors, transmit.Errors-said.Transmit.Errors)
	return s.keepLost(at, changed)
}

func (l Loss) less(than Loss) bool { return l.Dropped < than.Dropped || l.Errors < than.Errors }

// follow returns by how much a counter of the kernel has grown since a mark, and moves that. It
// is read far more often than its lower half begins anew.
func follow(mark *uint32, now uint64) (more uint64) {
	more = uint64(uint32(now) - *mark)
	*mark = uint32(now)
	return more
}

// HostLoss is where the counters are of what a host veth drops behind our hook.
type HostLoss struct {
	Dropped      uint64 // by the interface itself
	Qdisc        uint32 // the handle of its root qdisc
	QdiscDropped uint32
}

// Undeliver takes in what a host veth has dropped behind our hook. What it had when we came is
// not said, unless the interface is new. A qdisc that has dropped less than before is another one
// by the same handle.
func (s *Slots) Undeliver(target Target, now HostLoss, isNew bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return nil
	}
	changed := at.slot
	l := &changed.Lost
	more := follow(&l.Mark.HostDropped, now.Dropped)
	if now.Qdisc != l.Mark.Qdisc || now.QdiscDropped < l.Mark.QdiscDropped {
		l.Mark.QdiscDropped = 0
	}
	l.Mark.Qdisc = now.Qdisc
	more += follow(&l.Mark.QdiscDropped, uint64(now.QdiscDropped))
	if l.Followed || isNew {
		l.Undelivered = Add(l.Undelivered, more)
	}
	l.Followed = true
	return s.keepLost(at, changed)
}

// keepLost notes what was lost, if that has changed. The caller holds mu.
func (s *Slots) keepLost(at *attachment, now bpf.Slot) error {
	if now == at.slot {
		return nil
	}
	if err := s.Datapath.Keep(now); err != nil {
		return err
	}
	at.slot = now
	return nil
}

// LostMark is how far the counters of an interface have been read.
type LostMark struct{ lost bpf.Lost }

// LostMark returns how far the counters of a target have been read.
func (s *Slots) LostMark(target Target) LostMark { return LostMark{s.noted(target).Lost} }

// FollowLost says that the counters of a target are those of another one, whose mark this is, as
// of the container's end of a veth: what was said of that is not said again.
func (s *Slots) FollowLost(target Target, mark LostMark) error {
	if !mark.lost.Known {
		return nil
	}
	return s.note(target, func(n *bpf.Note) {
		if n.Lost.Known { // by an earlier process
			return
		}
		n.Lost = bpf.Lost{Known: true}
		n.Lost.Mark.ReceiveDropped, n.Lost.Mark.TransmitDropped = mark.lost.Mark.ReceiveDropped, mark.lost.Mark.TransmitDropped
	})
}
