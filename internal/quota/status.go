// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// ErrUnknown is wrapped by errors about a quota or a key that there is not.
var ErrUnknown = errors.New("there is none")

// ErrNotNow is wrapped by errors that are over after a while.
var ErrNotNow = errors.New("what was used before is not known yet; try again")

// Status is how one key of a rule stands, or a rule that has none yet.
type Status struct {
	Quota  string
	Key    string // "" of a rule without any: no container is counted by it
	Name   string // of the container that was counted last
	Per    string
	Count  Count
	Source string // "interface", "ip", "mixed" where containers differ, "tcp" of connections, or "http"; "" if none was counted

	Used  float64 // in Unit; of a rate, what it is now
	Limit float64 // in Unit
	Unit  string  // as that of an Alert
	// Decimal says that bytes are shown in kB, MB, …, as the limit was given.
	Decimal bool
	Ratio   float64 // Used / Limit

	Every       Every     // "" of a rate
	PeriodStart time.Time // zero where there is no period
	PeriodEnd   time.Time // zero where it does not end
	// Projected is what will be used at PeriodEnd, in Unit. Predictable says whether that
	// can be told yet.
	Projected   float64
	Predictable bool

	Levels []Level
	Notify []string
}

// Level is a level of an alert, and whether it fires.
type Level struct {
	Name   string // as that of an Alert
	Firing bool
}

// Status returns how all keys of all rules stand as of the last check: by the rules'
// order, then by key. A rule without a key is there as well.
func (e *Engine) Status() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := []Status{}
	for _, r := range e.ordered {
		if len(r.states) == 0 {
			all = append(all, e.status(&state{rule: r}))
			continue
		}
		from := len(all)
		for _, st := range r.states {
			all = append(all, e.status(st))
		}
		slices.SortFunc(all[from:], func(a, b Status) int { return cmp.Compare(a.Key, b.Key) })
	}
	return all
}

func (e *Engine) status(st *state) Status {
	r := st.rule
	s := Status{
		Quota: r.Name, Key: st.key, Name: st.name, Per: r.Per, Count: r.Count, Unit: r.unit(),
		Source: [...]string{"", sourceInterface, sourceIP, "mixed", fromTCP: sourceTCP, fromHTTP: sourceHTTP}[st.sources],
		Used:   float64(st.used), Limit: float64(r.Limit), Decimal: r.Decimal, Every: r.Period.Every, Notify: r.Notify,
	}
	if r.Rate != nil {
		s.Used, s.Limit = e.rate(st)*r.scale(), r.Rate.Above*r.scale()
		s.Levels = []Level{{LevelRate, st.rating != nil && st.rating.firing}}
	} else {
		s.PeriodStart = r.start
		if r.Period.calendar() {
			s.PeriodEnd = r.end
		}
		if r.Period.Every == Rolling {
			s.PeriodStart = e.last.Add(-r.Period.Window)
		}
		if st.key != "" {
			s.Projected, s.Predictable = st.project(e.last)
		}
	}
	s.Ratio = e.ratio(st)
	for i, percent := range r.AlertAt {
		s.Levels = append(s.Levels, Level{strconv.Itoa(percent), i < int(st.level)})
	}
	if r.Projection {
		s.Levels = append(s.Levels, Level{LevelProjection, st.projection == projected})
	}
	return s
}

// Foremost is the quota of a container that is used most.
type Foremost struct {
	Quota, Key string
	Ratio      float64 // as that of a [Status]
}

// Foremost returns, for each container that a quota counts now, the quota of which most is used.
func (e *Engine) Foremost() map[string]Foremost {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := map[string]Foremost{}
	ratios := map[*state]float64{}
	for id, k := range e.containers {
		for _, st := range k.feeds {
			ratio, known := ratios[st]
			if !known {
				ratio = e.ratio(st)
				ratios[st] = ratio
			}
			if f, there := all[id]; !there || ratio > f.Ratio {
				all[id] = Foremost{st.rule.Name, st.key, ratio}
			}
		}
	}
	return all
}

// ratio is that of a [Status].
func (e *Engine) ratio(st *state) float64 {
	used, limit := float64(st.used), float64(st.rule.Limit)
	if st.rule.Rate != nil {
		used, limit = e.rate(st), st.rule.Rate.Above
	}
	if limit > 0 {
		return used / limit
	}
	return 0
}

// Alerts returns the alerts that fire, and the last thousand that were resolved, in
// the order in which that was said.
func (e *Engine) Alerts() []Alert {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.book.list()
}

// Firing returns what a notifier may know of the alerts that name it: those that fire, and
// those that ended in the last quarter of an hour, in the order of their last change. Each is as
// it is on disk, or older than half a second.
func (e *Engine) Firing(notifier string) []Alert {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.book.standing(notifier, e.now)
}

// Set says what a key has used in its running period; a limit has it from there. With
// key "" it is that of the rule's only key, and all of them if used is 0. Alerts of
// levels that are not reached any more are resolved, and may fire again.
//
// Returns an error that wraps ErrUnknown if there is no such quota or key, ErrNotNow
// while what was saved is not known.
func (e *Engine) Set(name, key string, used uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.rules[name]
	switch {
	case !e.loaded || e.last.IsZero():
		return fmt.Errorf("set quota %s: %w", name, ErrNotNow)
	case r == nil || !r.dropped.IsZero():
		return fmt.Errorf("find quota %q: %w; see `nettally quota list`", name, ErrUnknown)
	case r.Rate != nil:
		return fmt.Errorf("set quota %s: it bounds a rate, and has nothing that was used", name)
	case key == "" && used > 0 && len(r.states) != 1:
		return fmt.Errorf("set quota %s: it has %d keys; say which", name, len(r.states))
	case key != "" && r.states[key] == nil:
		return fmt.Errorf("find key %q of quota %s: %w; see `nettally quota list`", key, name, ErrUnknown)
	}
	for _, st := range r.states {
		if key == "" || st.key == key {
			e.set(st, used)
		}
	}
	// The next save is soon and has all, lest a crash leaves alerts that are over with the
	// usage that they were about.
	r.dirty = true
	return nil
}

// set leaves alerts that it calls for to the next check.
func (e *Engine) set(st *state, used uint64) {
	now := e.last
	st.used, st.base, st.since = used, used, now.UnixNano()
	if st.window != nil {
		*st.window = window{at: st.rule.bucket}
		st.window.add(used)
	}
	e.reconcile(st, now)
}
