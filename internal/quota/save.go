// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// Kinds of documents, by the beginning of their keys. The rest is a rule's name, or
// that and a key of it, or an id. A rule's name has no slash.
const (
	rulePrefix      = "rule/"
	statePrefix     = "used/"
	containerPrefix = "last/"
	alertPrefix     = "alert/"
)

func ruleKey(name string) string       { return rulePrefix + name }
func stateKey(rule, key string) string { return statePrefix + rule + "/" + key }
func containerKey(id string) string    { return containerPrefix + id }
func alertKey(id string) string        { return alertPrefix + id }

// savedRule is a rule as it was, so that a change is noticed over a restart.
type savedRule struct {
	Per        string        `json:"per"`
	Count      Count         `json:"count"`
	Every      Every         `json:"every"`
	Day        int           `json:"day,omitempty"`
	Zone       string        `json:"zone,omitempty"`
	Window     time.Duration `json:"window,omitempty"`
	Limit      uint64        `json:"limit,omitempty"`
	AlertAt    []int         `json:"alert_at,omitempty"`
	Projection bool          `json:"projection,omitempty"`
	Rate       bool          `json:"rate,omitempty"`
	Start      time.Time     `json:"start"`
	End        time.Time     `json:"end,omitzero"`
	Began      time.Time     `json:"began,omitzero"`
	Dropped    time.Time     `json:"dropped,omitzero"`
}

// savedState is what a key has used in the period that began at Period.
type savedState struct {
	Period     int64    `json:"p"`
	Used       uint64   `json:"u"`
	Base       uint64   `json:"b,omitempty"`
	Since      int64    `json:"s"`
	Epoch      int64    `json:"e"`
	Projection uint8    `json:"j,omitempty"`
	Name       string   `json:"n,omitempty"`
	At         int64    `json:"a,omitempty"`
	Parts      []uint64 `json:"w,omitempty"` // of the window, the last one first
}

// savedContainer is the total that all rules have counted up to.
type savedContainer struct {
	Last   numbers   `json:"t"`
	Source string    `json:"s"`
	GoneAt time.Time `json:"g,omitzero"`
}

type savedAlert struct {
	Alert
	Sequence uint64 `json:"sequence"`
	Owed     bool   `json:"owed,omitempty"`
}

func (r *rule) saved() savedRule {
	return savedRule{
		Per: r.Per, Count: r.Count, Every: r.Period.Every, Day: r.Period.Day, Zone: zoneName(r.Period.Location),
		Window: r.Period.Window, Limit: r.Limit, AlertAt: r.AlertAt, Projection: r.Projection, Rate: r.Rate != nil,
		Start: r.start.Round(0), End: r.end.Round(0), Began: r.began.Round(0), Dropped: r.dropped.Round(0),
	}
}

func (st *state) saved() savedState {
	s := savedState{
		Period: st.rule.start.UnixNano(), Used: st.used, Base: st.base, Since: st.since, Epoch: st.epoch,
		Projection: st.projection, Name: st.name,
	}
	if w := st.window; w != nil {
		s.At = w.at
		for i := range int64(len(w.parts)) {
			s.Parts = append(s.Parts, w.parts[w.slot(w.at-i)])
		}
		for len(s.Parts) > 0 && s.Parts[len(s.Parts)-1] == 0 {
			s.Parts = s.Parts[:len(s.Parts)-1]
		}
	}
	return s
}

// changes are what is not saved yet.
type changes struct {
	states     []*state
	containers []*container
	alerts     []*entry
	drops      map[string]struct{}
}

func (c *changes) drop(key string) {
	if c.drops == nil {
		c.drops = map[string]struct{}{}
	}
	c.drops[key] = struct{}{}
}

func (c *changes) alert(a *entry) {
	if !a.dirty {
		a.dirty = true
		c.alerts = append(c.alerts, a)
	}
}

// mark has a key saved. Rates begin anew with the process.
func (e *Engine) mark(st *state) {
	if !st.dirty && st.rating == nil {
		st.dirty = true
		e.dirty.states = append(e.dirty.states, st)
	}
}

func (e *Engine) markContainer(k *container) {
	if !k.dirty {
		k.dirty = true
		e.dirty.containers = append(e.dirty.containers, k)
	}
}

// batch is what one save writes.
type batch struct {
	changes
	rules    []*rule
	sequence uint64 // of the last alert in it
	all      bool   // usage, too
	put      map[string][]byte
	drop     []string
}

// collect returns what is to be saved: the alerts, and with all set everything. It is
// taken for saved from then on.
func (e *Engine) collect(all bool) *batch {
	b := &batch{all: all, sequence: e.sequence, put: map[string][]byte{}}
	b.alerts, e.dirty.alerts = e.dirty.alerts, nil
	for _, a := range b.alerts {
		a.dirty = false
		if e.alerts[a.ID] == a {
			b.add(alertKey(a.ID), savedAlert{a.Alert, a.sequence, a.owed})
		}
	}
	if !all {
		return b
	}
	for _, r := range e.rules {
		if r.dirty {
			r.dirty = false
			b.rules = append(b.rules, r)
			b.add(ruleKey(r.Name), r.saved())
		}
	}
	b.states, e.dirty.states = e.dirty.states, nil
	for _, st := range b.states {
		st.dirty = false
		if !st.gone {
			b.add(stateKey(st.rule.Name, st.key), st.saved())
		}
	}
	b.containers, e.dirty.containers = e.dirty.containers, nil
	for _, k := range b.containers {
		k.dirty = false
		if e.containers[k.id] == k && k.known {
			b.add(containerKey(k.id), savedContainer{k.last, k.source, k.goneAt.Round(0)})
		}
	}
	b.drops, e.dirty.drops = e.dirty.drops, nil
	for key := range b.drops {
		if b.put[key] == nil {
			b.drop = append(b.drop, key)
		}
	}
	return b
}

func (b *batch) add(key string, value any) {
	b.put[key], _ = json.Marshal(value) // numbers, texts and times can be marshalled
}

// putBack has what could not be saved saved later.
func (e *Engine) putBack(b *batch) {
	for _, a := range b.alerts {
		e.dirty.alert(a)
	}
	for _, r := range b.rules {
		r.dirty = true
	}
	for _, st := range b.states {
		e.mark(st)
	}
	for _, k := range b.containers {
		e.markContainer(k)
	}
	for key := range b.drops {
		// What was made again meanwhile is saved after it is dropped.
		e.dirty.drop(key)
	}
}

// restore makes what was saved what is known. What was counted meanwhile, while it was
// not known, is found again as the growth of the totals. A document that makes no sense
// is left out: it is no reason to lose all others.
func (e *Engine) restore(documents map[string][]byte) {
	alerts, outbox := e.alerts, e.outbox
	e.clear()
	e.outbox = outbox
	e.loaded = true
	// Keys need their rules.
	for _, kind := range []struct {
		prefix string
		read   func(name string, value []byte) error
	}{
		{rulePrefix, e.restoreRule}, {containerPrefix, e.restoreContainer}, {alertPrefix, e.restoreAlert}, {statePrefix, e.restoreState},
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
	for id, a := range alerts {
		if e.alerts[id] == nil {
			e.alerts[id] = a
			e.dirty.alert(a)
		}
	}
	e.restoreFiring()
}

func (e *Engine) restoreRule(name string, value []byte) error {
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

func (e *Engine) restoreContainer(id string, value []byte) error {
	var s savedContainer
	err := json.Unmarshal(value, &s)
	if err != nil {
		s.Source = "" // it is counted from now on
	}
	e.containers[id] = &container{id: id, known: true, last: s.Last, source: s.Source, goneAt: s.GoneAt}
	return err
}

func (e *Engine) restoreAlert(_ string, value []byte) error {
	var s savedAlert
	if err := json.Unmarshal(value, &s); err != nil {
		return err
	}
	e.alerts[s.ID] = &entry{Alert: s.Alert, sequence: s.Sequence, owed: s.Owed}
	e.sequence = max(e.sequence, s.Sequence)
	return nil
}

func (e *Engine) restoreState(path string, value []byte) error {
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
	if st.window != nil {
		st.window.at = s.At
		for i, n := range s.Parts[:min(len(s.Parts), len(st.window.parts))] {
			st.window.parts[st.window.slot(s.At-int64(i))] = n
		}
	}
	return nil
}

// restoreFiring joins alerts that fire with their keys, and has handed over what is owed.
func (e *Engine) restoreFiring() {
	entries := slices.SortedFunc(maps.Values(e.alerts), func(a, b *entry) int { return cmp.Compare(a.sequence, b.sequence) })
	waiting := map[uint64]bool{}
	for _, p := range e.outbox {
		waiting[p.sequence] = true
	}
	for _, a := range entries {
		if a.owed && !waiting[a.sequence] {
			e.outbox = append(e.outbox, parcel{a.Alert, a, a.sequence})
		}
		r := e.rules[a.Quota]
		if a.State == Firing && r == nil {
			e.resolve(a, a.StartsAt) // nobody knows what it was about
		}
		if a.State != Firing {
			continue
		}
		st := e.state(r, a.Key)
		e.firing[st] = append(e.firing[st], a)
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
	for st := range e.firing {
		e.relevel(st)
	}
}
