// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"slices"
	"strconv"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// How a projection stands in a period.
const (
	notProjected = iota
	projected    // it fires
	unprojected  // it fired, and does no more
)

// measureAfter is the least time that a rate is measured over.
const measureAfter = 500 * time.Millisecond

// Below this part of a level, a window or a projection is well below it.
const wellBelow = 0.9

// projectAfter is the part of a period that has to be seen for a projection.
const projectAfter = 10

// state is what one key of a rule has used. Its times are Unix nanoseconds, since there
// may be a million of them.
type state struct {
	rule *rule
	key  string
	name string // of the container that fed it last
	// owner is the container whose usage this is alone: an id, "" while there is none, or several.
	owner   string
	runtime string // of the containers, where rules go by names

	used  uint64 // in the period, or in the window
	base  uint64 // the part of used that was not seen to be used since `since`
	since int64  // the key is seen, in this period
	epoch int64  // counting began: the period, or a reset

	members    int32 // containers that feed it
	level      uint8 // of rule.thresholds, all before this one fire
	projection uint8
	sources    uint8
	dirty      bool // not saved as it is
	gone       bool
	isTouched  bool
	// fromEarlier: saved by a version that had other keys, and no container has fed it since.
	fromEarlier bool

	tick   uint64 // used since rates were measured last
	window *window
	rating *rating
}

// rating is how fast a key's count grows.
type rating struct {
	now    float64 // per second, between the last two readings of the counters
	check  uint64  // the check that measured it
	beyond time.Duration
	firing bool
}

// Sources of the containers that feed a key, as bits.
const (
	fromInterface = 1 << iota
	fromIP
	fromTCP
	fromHTTP
)

func (st *state) source(source string) {
	st.sources |= map[string]uint8{sourceInterface: fromInterface, sourceIP: fromIP, sourceTCP: fromTCP, sourceHTTP: fromHTTP}[source]
}

// state returns a rule's key, which is made if there is none.
func (e *Engine) state(r *rule, key string) *state {
	if st := r.states[key]; st != nil {
		return st
	}
	st := &state{rule: r, key: key, since: e.now.UnixNano(), epoch: e.now.UnixNano()}
	if r.Rate == nil && r.Period.calendar() {
		st.epoch = r.start.UnixNano()
	}
	if r.Period.Every == Rolling {
		st.window = &window{at: r.bucket}
	}
	if r.Rate != nil {
		st.rating = &rating{}
	}
	r.states[key] = st
	return st
}

// drop forgets a key.
func (e *Engine) drop(st *state) {
	for _, a := range e.book.of(st) {
		e.resolve(a, e.now)
	}
	st.gone = true
	e.lift(st)
	delete(e.book.firing, st)
	delete(e.hot, st)
}

// add counts usage.
func (st *state) add(n uint64) {
	st.used = usage.Add(st.used, n)
	if st.window != nil {
		st.window.add(n)
	}
}

func (st *state) merge(from *state) {
	st.base = usage.Add(st.base, from.base)
	st.since = min(st.since, from.since)
	st.used = usage.Add(st.used, from.used)
	if st.window != nil {
		st.window.merge(from.window)
	}
}

// touch has a key judged at the end of the check.
func (e *Engine) touch(st *state) {
	if !st.isTouched {
		st.isTouched = true
		e.touched = append(e.touched, st)
	}
}

// settle judges what has changed. The counters were read at a time that may be the same
// for many checks: then rates are measured by the first one that has a new reading.
func (e *Engine) settle(now, read time.Time) {
	var passed time.Duration
	if !e.read.IsZero() {
		passed = read.Sub(e.read)
	}
	measures := e.read.IsZero() || passed < 0 || passed >= measureAfter
	if measures {
		e.read, e.measured = read, e.checks
	}
	for st := range e.hot {
		e.touch(st)
	}
	later := e.touched[:0]
	for _, st := range e.touched {
		if st.rating != nil && !measures && !st.gone && st.rule.dropped.IsZero() {
			later = append(later, st)
			continue
		}
		st.isTouched = false
		tick := st.tick
		st.tick = 0
		switch {
		case st.gone || !st.rule.dropped.IsZero():
		case st.rating != nil:
			e.judgeRate(st, tick, passed, now)
		default:
			e.judgeLimit(st, now)
		}
	}
	clear(e.touched[len(later):])
	e.touched = later
}

// judgeLimit fires the levels that are reached, in order.
func (e *Engine) judgeLimit(st *state, now time.Time) {
	r := st.rule
	if st.window != nil && st.level > 0 {
		e.relax(st, now)
	}
	for int(st.level) < len(r.thresholds) && st.used >= r.thresholds[st.level] {
		e.fire(st, strconv.Itoa(r.AlertAt[st.level]), now)
		st.level++
	}
	if r.Projection {
		e.judgeProjection(st, now)
	}
}

// relax resolves the levels that a window is well below.
func (e *Engine) relax(st *state, now time.Time) {
	for st.level > 0 && float64(st.used) < wellBelow*float64(st.rule.thresholds[st.level-1]) {
		st.level--
		e.resolveLevel(st, strconv.Itoa(st.rule.AlertAt[st.level]), now)
	}
}

func (e *Engine) judgeProjection(st *state, now time.Time) {
	p, ok := st.project(now)
	limit := float64(st.rule.Limit)
	switch {
	case st.projection == notProjected && ok && p >= limit:
		st.projection = projected
		e.dirty.mark(st)
		e.fire(st, LevelProjection, now)
		e.hot[st] = struct{}{} // it falls while nothing is used
	case st.projection == projected && ok && p < wellBelow*limit:
		st.projection = unprojected
		e.dirty.mark(st)
		e.resolveLevel(st, LevelProjection, now)
		delete(e.hot, st)
	}
}

// project returns what will be used at the end of the period if it goes on as it did
// since the key is seen, and false while too little of the period was seen.
func (st *state) project(now time.Time) (float64, bool) {
	r := st.rule
	if r.Rate != nil || !r.Period.calendar() {
		return 0, false
	}
	seen := now.Sub(time.Unix(0, st.since))
	if seen <= 0 || seen < r.end.Sub(r.start)/projectAfter {
		return 0, false
	}
	left := max(r.end.Sub(now), 0)
	grown := float64(st.used) - float64(min(st.base, st.used))
	return float64(st.used) + grown*left.Seconds()/seen.Seconds(), true
}

// judgeRate measures how fast a count grew since rates were measured last.
func (e *Engine) judgeRate(st *state, tick uint64, passed time.Duration, now time.Time) {
	if passed <= 0 {
		return // the first time, or a clock without a monotonic reading went back
	}
	g, bound := st.rating, st.rule.Rate
	g.now, g.check = float64(tick)/passed.Seconds(), e.checks
	beyond := g.now > bound.Above
	if g.firing {
		beyond = g.now <= bound.Clear
	}
	if !beyond {
		g.beyond = 0
		if !g.firing {
			delete(e.hot, st)
		}
		return
	}
	e.hot[st] = struct{}{}
	g.beyond += passed
	if g.beyond < bound.For {
		return
	}
	g.beyond = 0
	g.firing = !g.firing
	if g.firing {
		e.fire(st, LevelRate, now)
		return
	}
	delete(e.hot, st)
	e.resolveLevel(st, LevelRate, now)
	e.dropIdle(st)
}

// dropIdle forgets a key that nobody feeds any more and that says nothing: a rate, or one of
// which nothing was used in its period. Short lives without traffic leave none behind.
func (e *Engine) dropIdle(st *state) {
	r := st.rule
	switch {
	case st.members > 0 || r.Per == PerAll:
	case st.rating != nil && st.rating.firing:
	case st.rating == nil && (st.used > 0 || st.level > 0 || r.Initial > 0):
	default:
		e.drop(st)
	}
}

// rate returns how fast a count grew when rates were measured last.
func (e *Engine) rate(st *state) float64 {
	if st.rating == nil || st.rating.check != e.measured {
		return 0
	}
	return st.rating.now
}

// reconcile has the alerts of a key say what is true after its rule was changed or its
// usage set: a level that is not reached any more is resolved, and may fire again.
func (e *Engine) reconcile(st *state, now time.Time) {
	r := st.rule
	rearmed := false
	for _, a := range e.book.of(st) {
		if !e.holds(st, a, now) {
			rearmed = true
			e.resolve(a, now)
		}
	}
	if e.book.active(st, LevelProjection) == nil && st.projection != notProjected {
		st.projection, rearmed = notProjected, true
		delete(e.hot, st)
	}
	if rearmed && r.Rate == nil {
		st.epoch = now.UnixNano()
	}
	st.level = e.book.levels(st)
	e.touch(st)
	e.dirty.mark(st)
}

// holds says whether an alert is still true.
func (e *Engine) holds(st *state, a *entry, now time.Time) bool {
	r := st.rule
	switch a.Level {
	case LevelRate:
		return r.Rate != nil
	case LevelProjection:
		p, ok := st.project(now)
		return r.Projection && ok && p >= wellBelow*float64(r.Limit)
	}
	percent, err := strconv.Atoi(a.Level)
	i := slices.Index(r.AlertAt, percent)
	return err == nil && i >= 0 && st.used >= r.thresholds[i]
}
