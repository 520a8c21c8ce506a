// SPDX-License-Identifier: Apache-2.0

// Package retry plans when something is looked at again, for loops that look at many
// things of which few wait.
package retry

import "time"

const lastDelay = time.Second

// Plan is when something is looked at again: not at all, at first. It is for one
// goroutine.
type Plan struct {
	next  time.Time // zero for not at all
	delay time.Duration
}

// From makes the next delay the given one; those after it are doubled, up to a second.
func (p *Plan) From(delay time.Duration) { p.delay = delay }

// Again plans another look, after a growing delay.
func (p *Plan) Again() {
	p.next = time.Now().Add(p.delay)
	p.delay = min(2*p.delay, lastDelay)
}

// Stop plans no other look.
func (p *Plan) Stop() { p.next = time.Time{} }

// Planned returns whether there will be another look.
func (p *Plan) Planned() bool { return !p.next.IsZero() }

// Due returns whether that look's time has come.
func (p *Plan) Due(now time.Time) bool { return p.Planned() && !p.next.After(now) }

// Timer returns a channel that fires when the first of the plans is due, nil if none
// is, and a function to stop it.
func Timer[K comparable, V any](of map[K]V, plan func(V) *Plan) (<-chan time.Time, func()) {
	var first time.Time
	for _, v := range of {
		if p := plan(v); p.Planned() && (first.IsZero() || p.next.Before(first)) {
			first = p.next
		}
	}
	if first.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(first))
	return timer.C, func() { timer.Stop() }
}
