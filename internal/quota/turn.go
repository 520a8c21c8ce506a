// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"time"

	"github.com/nettally/nettally/internal/wallclock"
)

// turn ends and begins the periods of a rule.
type turn struct {
	*Engine
	r   *rule
	now time.Time
}

// turn ends a period that is over, and moves windows on. A clock that is not trusted ends no
// period, so that it forgives nothing. Windows go on with the time that has passed since it was.
func (e *Engine) turn(r *rule, clock wallclock.Look) {
	now := clock.Now
	t := turn{Engine: e, r: r, now: now}
	switch {
	case r.Period.Every == Rolling:
		t.windows()
	case r.Rate == nil && r.Period.calendar() && clock.State == wallclock.Agrees:
		t.period()
	}
	if r.dropped.After(now) { // by a clock that was ahead
		r.dropped, r.dirty = now, true
	}
	dormant := !r.dropped.IsZero() && !r.Period.calendar() && now.Sub(r.dropped) > dormantFor
	if dormant {
		e.forget(r)
	}
}

func (e *turn) period() {
	r, now := e.r, e.now
	start, end := r.Period.Bounds(now)
	switch {
	case !now.Before(r.end):
		if !r.dropped.IsZero() {
			e.forget(r)
			return
		}
		e.endPeriod()
		r.start, r.end, r.dirty = latest(start, r.end), end, true
		for _, st := range r.states {
			e.beginPeriod(st)
		}
	case now.Add(end.Sub(start)).Before(r.start):
		e.Log.Warn("a period was begun with a clock that was ahead by more than a period; it ends with the calendar's next",
			"quota", r.Name, "began", r.start, "ends", end)
		r.start, r.end, r.dirty = now, end, true
		for _, st := range r.states {
			st.epoch, st.since = now.UnixNano(), now.UnixNano()
			st.base = st.used
			e.touch(st)
			e.dirty.mark(st)
		}
	}
}

func (e *turn) endPeriod() {
	for _, st := range e.r.states {
		for _, a := range e.book.of(st) {
			e.resolve(a, e.r.end)
		}
	}
}

// beginPeriod lets a key begin anew, or go if nobody has it any more.
func (e *turn) beginPeriod(st *state) {
	if st.members == 0 && st.rule.Per != PerAll {
		e.drop(st)
		return
	}
	delete(e.hot, st)
	// What is saved says which period it is of, so this need not be.
	st.used, st.base, st.level, st.projection = 0, 0, 0, notProjected
	st.since, st.epoch = st.rule.start.UnixNano(), st.rule.start.UnixNano()
}

// windows begins the next part of the rule's windows when it is time.
func (e *turn) windows() {
	r, now := e.r, e.now
	n := now.UnixNano() / (int64(r.Period.Window) / buckets)
	switch {
	case r.bucket != 0 && n < r.bucket-buckets:
		e.Log.Warn("a window was filled with a clock that was ahead by more than its length; what is in it goes along", "quota", r.Name)
		for _, st := range r.states {
			e.moveWindow(st, n)
		}
		r.bucket = n
		return
	case n <= r.bucket:
		return // where the clock was set back, the last part lasts longer
	}
	r.bucket = n
	for _, st := range r.states {
		if n < st.window.at-buckets {
			// It was saved before the clock was set back: r.bucket is not known then.
			e.moveWindow(st, n)
		}
		st.advance(n)
		if st.level > 0 {
			e.touch(st)
		}
		if st.used == 0 && st.members == 0 && st.level == 0 && r.Per != PerAll {
			e.drop(st)
		}
	}
}

// moveWindow has a window end at another part. That is saved: until then it looks as if it
// were of the time to come.
func (e *turn) moveWindow(st *state, to int64) {
	*st.window = st.window.moved(to)
	e.dirty.mark(st)
}
