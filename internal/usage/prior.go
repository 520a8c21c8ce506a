// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"slices"
)

// maxPriors bounds what a tally remembers: nettally comes back to what was counted last.
const (
	maxPriors         = 8
	maxPriorsOfOthers = 1024
)

// remember notes that final holds what was counted on an attachment whose slot is gone.
func (t *tally) remember(at Attachment) {
	t.priors = slices.DeleteFunc(t.priors, func(p Attachment) bool { return p.Boot != at.Boot || p.Target == at.Target })
	t.priors = append(t.priors, at)
	most := maxPriors
	if IsOthers(t.account.ID) {
		most = maxPriorsOfOthers
	}
	t.priors = t.priors[max(0, len(t.priors)-most):]
}

// priorOn returns the last attachment of a target that final holds. Its Counted is of all
// that the target had.
func (t *tally) priorOn(boot string, target Target) (_ Attachment, ok bool) {
	for _, p := range t.priors {
		if p.Boot == boot && p.Target == target {
			return p, true
		}
	}
	return Attachment{}, false
}

// last returns the last attachment of a target that was counted earlier, folded or about to
// be. Its Counted is of all that the target had: the kernel's own counters of it begin there.
func (s *Slots) last(t *tally, target Target) (last Attachment, ok bool) {
	last, ok = t.priorOn(s.Boot, target)
	for _, at := range t.live {
		if at.slot.Target == target && !at.closedAt.IsZero() {
			last, ok = s.attachment(at).after(last), true
		}
	}
	return last, ok
}

// after adds what was counted of the target before.
func (at Attachment) after(last Attachment) Attachment {
	if at.Earlier == (Traffic{}) {
		at.Earlier = last.Counted
	}
	at.Counted, at.Earlier = at.Counted.Plus(at.Earlier), Traffic{}
	at.Told = at.Told.newer(last.Told) // slots of an earlier process come in no order
	return at
}

// before returns what was counted of an attachment's target before it, for whomever.
func (s *Slots) before(at *attachment) Traffic {
	if at.earlier != (Traffic{}) || at.tally == nil {
		return at.earlier
	}
	last, _ := s.last(at.tally, at.slot.Target)
	return last.Counted
}

// torn reports whether somebody took the programs off an attachment's target, as it was
// counted last, while nobody was there to notice: what is seeded was missed since.
func (s *Slots) torn(at *attachment) bool {
	if at.earlier != (Traffic{}) || at.tally == nil {
		return false
	}
	last, _ := s.last(at.tally, at.slot.Target)
	return last.Torn
}

// Opens are connections, by who asked for them. Their numbers are told as SYN.
type Opens struct {
	Receive  uint64 `json:"receive,omitempty"`
	Transmit uint64 `json:"transmit,omitempty"`
}

// Pass says how many connections were opened before those that a slot counts: the kernel
// counts them, and they are in no number of ours.
func (s *Slots) Pass(target Target, passed Opens) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil {
		at.passed = passed
	}
}

// Earlier is what was counted of a target on earlier slots since the host booted.
type Earlier struct {
	ID      string // of the container that it was last counted for
	Name    string // what that calls the interface
	Counted Traffic
	Passed  Opens
}

// Earlier returns what was counted of a target on earlier slots. Not ok: nothing.
func (a *Accounts) Earlier(target Target) (_ Earlier, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found Earlier
	var newest uint64
	for id, c := range a.containers {
		for name, t := range c.tallies {
			if last, ok := a.last(t, target); ok && last.Generation >= newest {
				newest, found = last.Generation, Earlier{ID: cmp.Or(last.Guest, id), Name: name, Counted: last.Counted, Passed: last.Passed}
			}
		}
	}
	return found, found.ID != ""
}
