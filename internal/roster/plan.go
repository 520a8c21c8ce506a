// SPDX-License-Identifier: Apache-2.0

package roster

import "time"

const lastDelay = time.Second

// plan is when something is looked at again: not at all, at first. It is for one
// goroutine.
type plan struct {
	next  time.Time // zero for not at all
	delay time.Duration
}

// from makes the next delay the given one; those after it are doubled, up to a second.
func (p *plan) from(delay time.Duration) { p.delay = delay }

// again plans another look, after a growing delay.
func (p *plan) again() { p.againIn(1) }

// againIn is again, after so many times the delay.
func (p *plan) againIn(times int) {
	p.next = time.Now().Add(time.Duration(times) * p.delay)
	p.delay = min(2*p.delay, lastDelay)
}

// soon plans a look for the next turn.
func (p *plan) soon() { p.next = time.Now() }

// stop plans no other look.
func (p *plan) stop() { p.next = time.Time{} }

// planned returns whether there will be another look.
func (p *plan) planned() bool { return !p.next.IsZero() }

// due returns whether that look's time has come.
func (p *plan) due(now time.Time) bool { return p.planned() && !p.next.After(now) }

// firstDue returns a channel that fires when the first of the plans is due, nil if none
// is, and a function to stop it.
func firstDue(of map[Key]*member) (<-chan time.Time, func()) {
	var first time.Time
	for _, m := range of {
		if p := &m.look; p.planned() && (first.IsZero() || p.next.Before(first)) {
			first = p.next
		}
	}
	if first.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(first))
	return timer.C, func() { timer.Stop() }
}
