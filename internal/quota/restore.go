// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// restorer makes what was saved what is known.
type restorer struct {
	*Engine
	last       uint64 // the highest number that was saved
	deliveries []*Delivery
	handover   handover
}

// restore makes what was saved what is known. What was counted meanwhile, while it was
// not known, is found again as the growth of the totals. A document that makes no sense
// is left out: it is no reason to lose all others.
func (e *restorer) restore(documents map[string][]byte) {
	alerts := e.book.byID
	e.clear()
	e.loaded, e.now = true, e.Clock.Now()
	e.outbox.reset(e.Notifiers())
	// Keys need their rules.
	for _, kind := range []struct {
		prefix string
		read   func(name string, value []byte) error
	}{
		{rulePrefix, e.restoreRule}, {containerPrefix, e.restoreContainer}, {alertPrefix, e.restoreAlert},
		{statePrefix, e.restoreState}, {deliveryPrefix, e.restoreDelivery}, {earlierPrefix, e.restoreThread},
	} {
		for key, value := range documents {
			name, ok := strings.CutPrefix(key, kind.prefix)
			if !ok {
				continue
			}
			if err := kind.read(name, value); err != nil {
				e.Log.Error("what is kept of quotas can't be read", "document", key, "err", err)
			}
		}
	}
	e.fresh = len(e.rules) == 0
	e.outbox.restore(e.deliveries, e.last, func(id string) bool { return e.book.byID[id] != nil })
	for id, a := range alerts {
		if e.book.byID[id] == nil {
			a.fired, a.sequence, a.dirty = a.fired+e.last, a.sequence+e.last, false
			e.book.byID[id] = a
			e.book.mark(a)
		}
	}
	e.convert()
	e.restoreFiring()
}

func (e *restorer) restoreRule(name string, value []byte) error {
	var s savedRule
	if err := json.Unmarshal(value, &s); err != nil {
		return err
	}
	in := time.UTC
	if s.Zone != "" {
		if zone, err := time.LoadLocation(s.Zone); err == nil {
			in = zone
		}
	}
	r := &rule{start: s.Start, end: s.End, began: s.Began, dropped: s.Dropped, states: map[string]*state{}}
	next := Rule{
		Name: name, Per: s.Per, Count: s.Count, Limit: s.Limit, AlertAt: s.AlertAt, Projection: s.Projection,
		Period: Period{Every: s.Every, Day: s.Day, Location: in, Window: s.Window},
	}
	if s.Rate {
		next.Rate = &Rate{}
	}
	r.set(next)
	e.rules[name] = r
	return nil
}

func (e *restorer) restoreContainer(id string, value []byte) error {
	var s savedContainer
	err := json.Unmarshal(value, &s)
	if err != nil {
		s.Source = "" // it is counted from now on
	}
	e.containers[id] = &container{id: id, known: true, last: s.Last, source: s.Source, goneAt: s.GoneAt}
	return err
}

func (e *restorer) restoreAlert(_ string, value []byte) error {
	var s savedAlert
	if err := json.Unmarshal(value, &s); err != nil {
		return err
	}
	a := &entry{Alert: s.Alert, sequence: s.Sequence, changedAt: s.Changed, deliveredTo: s.DeliveredTo, moved: s.Moved}
	e.book.byID[s.ID] = a
	e.last = max(e.last, s.Sequence)
	if s.Changed.IsZero() {
		e.restoreEarlier(a, value)
	}
	return nil
}

func (e *restorer) restoreDelivery(name string, value []byte) error {
	text, notifier, _ := strings.Cut(name, "/")
	number, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return err
	}
	d := &Delivery{Notifier: notifier, Number: number, written: true}
	if err := json.Unmarshal(value, &d.Alert); err != nil {
		return err
	}
	e.deliveries = append(e.deliveries, d)
	e.last = max(e.last, number)
	return nil
}

func (e *restorer) restoreState(path string, value []byte) error {
	name, key, _ := strings.Cut(path, "/")
	var s savedState
	if err := json.Unmarshal(value, &s); err != nil {
		return err
	}
	r := e.rules[name]
	if r == nil || s.Period != r.start.UnixNano() {
		e.dirty.drop(stateKey(name, key)) // it is of a period that has ended
		return nil
	}
	st := e.state(r, key)
	st.used, st.base, st.since, st.epoch = s.Used, s.Base, s.Since, s.Epoch
	st.projection, st.name = s.Projection, s.Name
	e.restoreOwner(st, s)
	if st.window != nil {
		st.window.at = s.At
		for i, n := range s.Parts[:min(len(s.Parts), len(st.window.parts))] {
			st.window.parts[st.window.slot(s.At-int64(i))] = n
		}
	}
	return nil
}

// restoreOwner finds whose usage a key has.
func (e *restorer) restoreOwner(st *state, s savedState) {
	if !st.rule.moves() {
		return
	}
	st.owner, st.runtime, st.fromEarlier = s.Owner, s.Runtime, s.Owner == ""
	switch k := e.containers[s.Owner]; {
	case s.Owner == ownerNone:
		st.owner = ""
	case s.Owner == "":
		st.owner = ownerSeveral
	case k != nil:
		k.away = append(k.away, st)
	}
}

// restoreFiring joins alerts that fire with their keys.
func (e *restorer) restoreFiring() {
	for _, a := range e.book.inOrder() {
		r := e.rules[a.Quota]
		if a.State == Firing && r == nil {
			e.resolve(a, a.StartsAt) // nobody knows what it was about
		}
		if a.State != Firing {
			continue
		}
		st := e.state(r, a.keyNow())
		e.book.firing[st] = append(e.book.firing[st], a)
		if a.Level == LevelRate && st.rating != nil {
			st.rating.firing = true
		}
		if a.Level == LevelProjection {
			st.projection = projected
		}
		if a.Level == LevelRate || a.Level == LevelProjection {
			e.hot[st] = struct{}{}
		}
	}
	for st := range e.book.firing {
		st.level = e.book.levels(st)
	}
}
