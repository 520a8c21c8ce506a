// SPDX-License-Identifier: Apache-2.0

package usage

import "slices"

// maxPriors bounds what a tally remembers: nettally comes back to what was counted last.
const maxPriors = 8

// remember notes that final holds what was counted on an attachment whose slot is gone.
func (t *tally) remember(at Attachment) {
	t.priors = slices.DeleteFunc(t.priors, func(p Attachment) bool { return p.Boot != at.Boot || p.Target == at.Target })
	t.priors = append(t.priors, at)
	t.priors = t.priors[max(0, len(t.priors)-maxPriors):]
}

// priorOn returns what final holds of a target.
func (t *tally) priorOn(boot string, target Target) (_ Traffic, ok bool) {
	for _, p := range t.priors {
		if p.Boot == boot && p.Target == target {
			return p.Counted, true
		}
	}
	return Traffic{}, false
}

// before returns what a tally holds of a target that was counted earlier: the kernel's own
// counters of it begin there, too.
func (a *Accounts) before(t *tally, target Target) (sum Traffic, ok bool) {
	sum, ok = t.priorOn(a.Boot, target)
	for _, at := range t.live {
		if at.slot.Target == target && !at.closedAt.IsZero() {
			sum, ok = sum.Plus(a.mustRead(at)), true
		}
	}
	return sum, ok
}

// Opens are connections, by who asked for them. Their numbers are told as SYN.
type Opens struct {
	Receive  uint64 `json:"receive,omitempty"`
	Transmit uint64 `json:"transmit,omitempty"`
}

// Pass says how many connections were opened before those that a slot counts: the kernel
// counts them, and they are in no number of ours.
func (a *Accounts) Pass(target Target, passed Opens) {
	a.change(target, func(at *attachment) { at.passed = passed })
}

// Earlier is what was counted of a target on earlier slots since the host booted.
type Earlier struct {
	ID      string // of the container that it was counted for
	Name    string // what that calls the interface
	Counted Traffic
	Passed  Opens
}

// Earlier returns what was counted of a target on earlier slots. Not ok: nothing.
func (a *Accounts) Earlier(target Target) (_ Earlier, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, c := range a.containers {
		for name, t := range c.tallies {
			if counted, ok := a.before(t, target); ok {
				return Earlier{ID: id, Name: name, Counted: counted, Passed: a.passed(t, target)}, true
			}
		}
	}
	return Earlier{}, false
}

// passed returns what was passed over of a target that was counted earlier.
func (a *Accounts) passed(t *tally, target Target) Opens {
	for _, at := range slices.Backward(t.live) {
		if at.slot.Target == target {
			return at.passed
		}
	}
	for _, p := range t.priors {
		if p.Boot == a.Boot && p.Target == target {
			return p.Passed
		}
	}
	return Opens{}
}
