// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// fire says that a level was reached, unless it fires. What fires again, as in a period that
// a clock that was ahead had begun before, is another alert.
func (e *Engine) fire(st *state, level string, now time.Time) {
	r := st.rule
	a := &entry{Alert: Alert{
		Quota: r.Name, Key: st.key, Level: level, State: Firing, StartsAt: now.Round(0),
		Unit: r.unit(), Labels: st.labels(),
	}}
	began := a.StartsAt
	if r.Rate == nil && r.Period.Every != Rolling {
		began = time.Unix(0, st.epoch)
		a.PeriodStart = r.start.Round(0)
	}
	if r.Rate == nil && r.Period.calendar() {
		a.PeriodEnd = r.end.Round(0)
	}
	if e.book.active(st, level) != nil {
		return
	}
	a.ID = alertID(r.Name, st.key, began, level)
	for e.book.byID[a.ID] != nil {
		began = began.Add(1)
		a.ID = alertID(r.Name, st.key, began, level)
	}
	e.measure(a, st, now)
	a.Summary = summary(a, st)
	e.book.begin(a, st, r.Notify, now)
}

func alertID(quota, key string, began time.Time, level string) string {
	return strings.Join([]string{quota, key, began.UTC().Format(time.RFC3339Nano), level}, "/")
}

// measure writes down what a key has used by now.
func (e *Engine) measure(a *entry, st *state, now time.Time) {
	r := st.rule
	a.Used, a.Limit = float64(st.used), float64(r.Limit)
	if r.Rate != nil {
		a.Used, a.Limit = e.rate(st)*r.scale(), r.Rate.Above*r.scale()
	}
	a.Ratio = 0
	if a.Limit > 0 {
		a.Ratio = a.Used / a.Limit
	}
	a.Projected, _ = st.project(now)
}

// resolve says that an alert is over.
func (e *Engine) resolve(a *entry, when time.Time) {
	var st *state
	if r := e.rules[a.Quota]; r != nil && r.states[a.keyNow()] != nil {
		st = r.states[a.keyNow()]
		e.measure(a, st, when)
		a.State = Resolved
		a.Summary = summary(a, st)
	}
	e.book.end(a, st, when, e.now)
}

func (e *Engine) resolveLevel(st *state, level string, when time.Time) {
	for _, a := range e.book.of(st) {
		if a.Level == level {
			e.resolve(a, when)
		}
	}
}

// resolveAll resolves all alerts of a rule.
func (e *Engine) resolveAll(r *rule, now time.Time) {
	for _, st := range r.states {
		for _, a := range e.book.of(st) {
			e.resolve(a, now)
		}
		st.level, st.projection = 0, notProjected
		if st.rating != nil {
			st.rating = &rating{}
		}
		delete(e.hot, st)
	}
}

// labels are what is known of a key, beside the quota and the key.
func (st *state) labels() map[string]string {
	r := st.rule
	switch {
	case r.Per == PerContainer:
		return map[string]string{"container_id": st.key, "name": cmp.Or(st.name, st.key)}
	case r.Per == PerName, r.Per == PerNamespace:
		return map[string]string{r.Per: st.key}
	case r.Per == PerPod:
		namespace, pod, _ := strings.Cut(st.key, "/")
		return map[string]string{"namespace": namespace, "pod": pod}
	case strings.HasPrefix(r.Per, PerLabel):
		return map[string]string{strings.TrimPrefix(r.Per, PerLabel): st.key}
	}
	return nil
}

// summary is the alert in one line for people.
func summary(a *entry, st *state) string {
	r, who := st.rule, st.key
	switch {
	case r.Per == PerContainer && st.name != "" && st.name != st.key:
		who = st.name + " (" + usage.ShortID(st.key) + ")"
	case r.Per == PerAll:
		who = "Everything together"
	}
	show := func(n float64) string { return Amount(n, a.Unit, r.Decimal) }
	if a.Level == LevelRate && a.State == Resolved {
		return fmt.Sprintf("Resolved: %s is at %s; the bound is %s (quota %s)", who, show(a.Used), show(a.Limit), a.Quota)
	}
	if a.Level == LevelRate {
		return fmt.Sprintf("%s is at %s, above %s for %s (quota %s)", who, show(a.Used), show(a.Limit), r.Rate.For, a.Quota)
	}
	until := ""
	if !a.PeriodEnd.IsZero() {
		until = " until " + a.PeriodEnd.In(r.Period.Location).Format("2006-01-02 15:04 MST")
	}
	if r.Period.Every == Rolling {
		until = " in " + r.Period.Window.String()
	}
	switch {
	case a.State == Resolved:
		return fmt.Sprintf("Resolved: %s has used %s of %s%s (quota %s)", who, show(a.Used), show(a.Limit), until, a.Quota)
	case a.Level == LevelProjection:
		return fmt.Sprintf("%s is going to use %s of %s%s (quota %s)", who, show(a.Projected), show(a.Limit), until, a.Quota)
	}
	return fmt.Sprintf("%s has used %s of %s%s, %s %% or more (quota %s)", who, show(a.Used), show(a.Limit), until, a.Level, a.Quota)
}
