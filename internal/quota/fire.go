// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// resolvedMax is how many resolved alerts are remembered, to be looked up.
const resolvedMax = 1000

// entry is an alert as it is known.
type entry struct {
	Alert
	sequence uint64 // of its last change
	owed     bool   // that change is still to be handed over
	dirty    bool
}

// parcel is a change of an alert that is to be handed over.
type parcel struct {
	Alert
	of       *entry
	sequence uint64
}

// active returns the alert of a level that fires, or nil.
func (e *Engine) active(st *state, level string) *entry {
	for _, a := range e.firing[st] {
		if a.Level == level {
			return a
		}
	}
	return nil
}

// fire says that a level was reached, unless it fires. What fires again, as in a period that
// a clock that was ahead had begun before, is another alert.
func (e *Engine) fire(st *state, level string, now time.Time) {
	r := st.rule
	a := &entry{Alert: Alert{
		Quota: r.Name, Key: st.key, Level: level, State: Firing, StartsAt: now.Round(0),
		Unit: r.unit(), Labels: st.labels(), Notifiers: slices.Clone(r.Notify),
	}}
	began := a.StartsAt
	if r.Rate == nil && r.Period.Every != Rolling {
		began = time.Unix(0, st.epoch)
		a.PeriodStart = r.start.Round(0)
	}
	if r.Rate == nil && r.Period.calendar() {
		a.PeriodEnd = r.end.Round(0)
	}
	if e.active(st, level) != nil {
		return
	}
	a.ID = alertID(r.Name, st.key, began, level)
	for e.alerts[a.ID] != nil {
		began = began.Add(1)
		a.ID = alertID(r.Name, st.key, began, level)
	}
	e.measure(a, st, now)
	a.Summary = e.summary(a, st)
	e.alerts[a.ID] = a
	e.firing[st] = append(e.firing[st], a)
	e.tell(a)
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
	r := e.rules[a.Quota]
	if r != nil && r.states[a.Key] != nil {
		st := r.states[a.Key]
		e.measure(a, st, when)
		e.firing[st] = slices.DeleteFunc(e.firing[st], func(other *entry) bool { return other == a })
		if len(e.firing[st]) == 0 {
			delete(e.firing, st)
		}
	}
	a.State, a.EndsAt = Resolved, latest(when, a.StartsAt).Round(0)
	e.tell(a)
}

func (e *Engine) resolveLevel(st *state, level string, when time.Time) {
	if a := e.active(st, level); a != nil {
		e.resolve(a, when)
	}
}

// resolveAll resolves all alerts of a rule.
func (e *Engine) resolveAll(r *rule, now time.Time) {
	for _, st := range r.states {
		for _, a := range slices.Clone(e.firing[st]) {
			e.resolve(a, now)
		}
		st.level, st.projection = 0, notProjected
		if st.rating != nil {
			st.rating = &rating{}
		}
		delete(e.hot, st)
	}
}

// tell has a change of an alert handed over.
func (e *Engine) tell(a *entry) {
	e.owe(a)
	e.outbox = append(e.outbox, parcel{a.Alert, a, a.sequence})
	e.changed = append(e.changed, a.Alert)
	e.Log.Info("quota alert", "quota", a.Quota, "key", a.Key, "level", a.Level, "state", a.State, "used", a.Used, "limit", a.Limit)
}

// owe has an alert saved, as one that is still to be handed over.
func (e *Engine) owe(a *entry) {
	e.sequence++
	a.sequence, a.owed = e.sequence, true
	e.dirty.alert(a)
}

// readdress has an alert that fires go to the notifiers that its rule names now. To those
// that it names no more it is over, since nobody would tell them later.
func (e *Engine) readdress(a *entry, now time.Time) {
	named := e.rules[a.Quota].Notify
	if slices.Equal(a.Notifiers, named) {
		return
	}
	end := a.Alert
	end.State, end.EndsAt = Resolved, latest(now, a.StartsAt).Round(0)
	end.Notifiers = slices.DeleteFunc(slices.Clone(a.Notifiers), func(name string) bool { return slices.Contains(named, name) })
	a.Notifiers = slices.Clone(named)
	e.owe(a)
	if len(end.Notifiers) > 0 {
		e.outbox = append(e.outbox, parcel{end, a, a.sequence})
	}
	e.outbox = append(e.outbox, parcel{a.Alert, a, a.sequence})
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
func (e *Engine) summary(a *entry, st *state) string {
	r, who := st.rule, st.key
	switch {
	case r.Per == PerContainer && st.name != "" && st.name != st.key:
		who = st.name + " (" + st.key[:min(12, len(st.key))] + ")"
	case r.Per == PerAll:
		who = "Everything together"
	}
	if a.Level == LevelRate {
		return fmt.Sprintf("%s is at %s, above %s for %s (quota %s)", who, Amount(a.Used, a.Unit),
			Amount(a.Limit, a.Unit), r.Rate.For, a.Quota)
	}
	until := ""
	if !a.PeriodEnd.IsZero() {
		until = " until " + a.PeriodEnd.In(r.Period.Location).Format("2006-01-02 15:04 MST")
	}
	if r.Period.Every == Rolling {
		until = " in " + r.Period.Window.String()
	}
	if a.Level == LevelProjection {
		return fmt.Sprintf("%s is going to use %s of %s%s (quota %s)", who, Amount(a.Projected, a.Unit),
			Amount(a.Limit, a.Unit), until, a.Quota)
	}
	return fmt.Sprintf("%s has used %s of %s%s, %s %% or more (quota %s)", who, Amount(a.Used, a.Unit),
		Amount(a.Limit, a.Unit), until, a.Level, a.Quota)
}

// Amount writes an amount as people read it: "1.5GiB", "200 packets", "10Mbit/s".
func Amount(n float64, unit string) string {
	what, rate := strings.CutSuffix(unit, "/s")
	per := ""
	if rate {
		per = "/s"
	}
	switch what {
	case Bytes:
		return units.BytesSize(n) + per
	case "bits":
		return units.CustomSize("%.4g%s", n, 1000, []string{"bit", "kbit", "Mbit", "Gbit", "Tbit"}) + per
	}
	return fmt.Sprintf("%.4g %s%s", n, what, per)
}

// prune forgets resolved alerts, the oldest first.
func (e *Engine) prune() {
	var old []*entry
	for _, a := range e.alerts {
		if a.State == Resolved && !a.owed {
			old = append(old, a)
		}
	}
	if len(old) <= resolvedMax {
		return
	}
	slices.SortFunc(old, func(a, b *entry) int { return cmp.Compare(a.sequence, b.sequence) })
	for _, a := range old[:len(old)-resolvedMax] {
		delete(e.alerts, a.ID)
		e.dirty.drop(alertKey(a.ID))
	}
}
