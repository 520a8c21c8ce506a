// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"encoding/json"
	"time"
)

// Kinds of documents, by the beginning of their keys. The rest is a rule's name, or
// that and a key of it, or an id. A rule's name has no slash.
const (
	rulePrefix      = "rule/"
	statePrefix     = "used/"
	containerPrefix = "last/"
	alertPrefix     = "alert/"
	deliveryPrefix  = "delivery/" // number/notifier
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
	Owner      string   `json:"o,omitempty"` // an earlier version had none
	Runtime    string   `json:"r,omitempty"`
	At         int64    `json:"a,omitempty"`
	Parts      []uint64 `json:"w,omitempty"` // of the window, the last one first
}

// savedContainer is the total that all rules have counted up to.
type savedContainer struct {
	Last   numbers   `json:"t"`
	Source string    `json:"s"`
	GoneAt time.Time `json:"g,omitzero"`
}

// savedAlert is an alert. An earlier version had no Changed.
type savedAlert struct {
	Alert
	Sequence    uint64    `json:"sequence"`
	Changed     time.Time `json:"changed,omitzero"`
	DeliveredTo []string  `json:"delivered_to,omitempty"`
	Moved       string    `json:"moved,omitempty"`
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
		Projection: st.projection, Name: st.name, Runtime: st.runtime,
	}
	if st.rule.moves() {
		s.Owner = cmp.Or(st.owner, ownerNone)
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
	drops      map[string]struct{}
}

func (c *changes) drop(key string) {
	if c.drops == nil {
		c.drops = map[string]struct{}{}
	}
	c.drops[key] = struct{}{}
}

// mark marks a key as not saved. Rates begin anew with the process.
func (c *changes) mark(st *state) {
	if !st.dirty && st.rating == nil {
		st.dirty = true
		c.states = append(c.states, st)
	}
}

func (c *changes) markContainer(k *container) {
	if !k.dirty {
		k.dirty = true
		c.containers = append(c.containers, k)
	}
}

// batch is what one save writes.
type batch struct {
	changes
	alerts     []*entry
	deliveries []*Delivery
	gone       []string // deliveries that were acknowledged
	rules      []*rule
	sequence   uint64 // all that is numbered up to it is on disk with the batch
	all        bool   // usage, too
	put        map[string][]byte
	drop       []string
}

// collect returns what is to be saved: alerts and deliveries, and with all set everything. It
// is taken for saved from then on.
func (e *keeper) collect(all bool) *batch {
	b := &batch{all: all, put: map[string][]byte{}}
	e.book.take(b)
	e.outbox.take(b)
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

// putBack lets what could not be saved be saved later.
func (e *keeper) putBack(b *batch) {
	for _, a := range b.alerts {
		if e.book.byID[a.ID] == a { // otherwise it was forgotten meanwhile
			e.book.mark(a)
		}
	}
	e.outbox.putBack(b)
	for _, r := range b.rules {
		r.dirty = true
	}
	for _, st := range b.states {
		e.dirty.mark(st)
	}
	for _, k := range b.containers {
		e.dirty.markContainer(k)
	}
	for key := range b.drops {
		// What was made again meanwhile is saved after it is dropped.
		e.dirty.drop(key)
	}
}
