// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"container/heap"
	"time"
)

const lastDelay = time.Second

// plan is when something is looked at again: not at all, at first. It is for one
// goroutine.
type plan struct {
	next  time.Time // zero for not at all
	delay time.Duration

	of    *member
	in    *agenda // nil for none
	place int     // there, from 1; 0 while nothing is planned
}

// from makes the next delay the given one; those after it are doubled, up to a second.
func (p *plan) from(delay time.Duration) { p.delay = delay }

// again plans another look, after a growing delay.
func (p *plan) again() { p.againIn(1) }

// againIn is again, after so many times the delay.
func (p *plan) againIn(times int) {
	p.set(time.Now().Add(time.Duration(times) * p.delay))
	p.delay = min(2*p.delay, lastDelay)
}

// soon plans a look for the next turn.
func (p *plan) soon() { p.set(time.Now()) }

// stop plans no other look.
func (p *plan) stop() { p.set(time.Time{}) }

// end is stop, for good.
func (p *plan) end() {
	p.stop()
	p.in = nil
}

func (p *plan) set(next time.Time) {
	p.next = next
	switch {
	case p.in == nil:
	case p.place == 0 && p.planned():
		heap.Push(p.in, p)
	case p.place > 0 && p.planned():
		heap.Fix(p.in, p.place-1)
	case p.place > 0:
		heap.Remove(p.in, p.place-1)
	}
}

// planned returns whether there will be another look.
func (p *plan) planned() bool { return !p.next.IsZero() }

// due returns whether that look's time has come.
func (p *plan) due(now time.Time) bool { return p.planned() && !p.next.After(now) }

// agenda has plans in the order of their time: to look through thousands of members at each
// event would take longer than the event. It is a heap.
type agenda []*plan

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].next.Before(a[j].next) }

func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

// Push implements [heap.Interface].
func (a *agenda) Push(x any) {
	p := x.(*plan)
	*a = append(*a, p)
	p.place = len(*a)
}

// Pop implements [heap.Interface].
func (a *agenda) Pop() any {
	last := len(*a) - 1
	p := (*a)[last]
	(*a)[last], p.place = nil, 0
	*a = (*a)[:last]
	return p
}

// due returns those whose time has come, the first ones first, and no more than so many. They
// stay planned.
func (a *agenda) due(now time.Time, most int) (found []*member) {
	var plans []*plan
	for len(plans) < most && len(*a) > 0 && (*a)[0].due(now) {
		plans = append(plans, heap.Pop(a).(*plan))
	}
	for _, p := range plans {
		heap.Push(a, p)
		found = append(found, p.of)
	}
	return found
}

// firstDue returns a channel that fires when the first plan of some agendas is due, nil if
// there is none, and a function to stop it.
func firstDue(of ...agenda) (<-chan time.Time, func()) {
	var first time.Time
	for _, a := range of {
		if len(a) > 0 && (first.IsZero() || a[0].next.Before(first)) {
			first = a[0].next
		}
	}
	if first.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(first))
	return timer.C, func() { timer.Stop() }
}
