// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"slices"

	"github.com/nettally/nettally/internal/usage"
)

// Owners of what a key has used that are no container's id.
const (
	ownerNone    = "-" // as it is saved
	ownerSeveral = "*"
)

// moves reports whether the key of a container can become another one: it is renamed, gets its
// name late, or another runtime has the name, too.
func (r *rule) moves() bool { return r.Per == PerName || r.Per == PerPod }

// usedBy notes that an owner, or several, used something under a key.
func (st *state) usedBy(owner string) {
	switch {
	case !st.rule.moves() || owner == "" || st.owner == owner:
	case st.owner == "":
		st.owner = owner
	default:
		st.owner = ownerSeveral
	}
}

// alone returns the keys of a list that hold what the container alone has used, and that it
// does not feed.
func (k *container) alone(list []*state) (alone []*state) {
	for _, st := range list {
		if st.owner == k.id && !st.gone && !slices.Contains(k.feeds, st) && !slices.Contains(alone, st) {
			alone = append(alone, st)
		}
	}
	return alone
}

// key returns the key of a rule that a container is counted under, or "" for not at all. Where
// two runtimes have containers of one name, all but the first runtime's have theirs before it.
func (s *sighting) key(r *rule) string {
	key := r.key(s.c, s.source)
	unknown := r.Count.ofTCP() && !s.k.tcp || r.Count.ofOutcomes() && !s.k.outcome || r.Count.ofHTTP() && !s.k.http // which is not 0
	if key == "" || unknown || s.ownerHas(r, key) {
		return ""
	}
	runtime := s.c.Runtime
	if r.Per != PerName || s.c.Namespace != "" || key == s.k.id {
		return key
	}
	own, there := usage.OfRuntime(key, runtime), r.states[key]
	switch {
	case own != key && r.states[own] != nil:
		return own
	case there == nil || runtime == "" || there.runtime == "" || there.runtime == runtime:
		return key
	case usage.FirstRuntime(there.runtime, runtime) == runtime:
		if others := usage.OfRuntime(key, there.runtime); r.states[others] == nil {
			s.rekey(there, others)
		}
		return key
	}
	return own
}

// moving is what a container has used under a key, on its way to another one.
type moving struct {
	*sighting
	st *state
}

// moveChanged lets what containers used follow them to other keys, where they were alone. All
// keys that come free are free before one of them is taken: names can change hands.
func (e *Engine) moveChanged() {
	var all []moving
	for i := range e.sightings {
		s := &e.sightings[i]
		if !s.changed {
			continue
		}
		for _, st := range slices.Concat(s.k.feeds, s.k.away) {
			if st.gone || !st.rule.moves() || !st.rule.dropped.IsZero() {
				continue
			}
			if key := s.key(st.rule); key != "" && key != st.key && s.follows(st, key) {
				all = append(all, moving{s, st})
			}
		}
	}
	for _, m := range all {
		if m.others(m.st) == 0 {
			e.lift(m.st)
		}
	}
	for _, m := range all {
		m.place(m.st)
	}
}

// follows reports whether what was used under a key goes along with a container to another one.
func (s *sighting) follows(st *state, key string) bool {
	switch {
	case st.rating != nil:
		return s.others(st) == 0
	case st.owner == s.k.id || st.key == s.k.id:
		return true
	case st.used > 0:
		s.Log.Info("a container has another name; what several used under the old one stays there",
			"quota", st.rule.Name, "container", s.k.id, "key", st.key, "now", key, "used", st.used)
	}
	return false
}

// others returns how many other containers feed a key.
func (s *sighting) others(st *state) int {
	if slices.Contains(s.k.feeds, st) {
		return int(st.members) - 1
	}
	return int(st.members)
}

// place brings what a container has used to its key. Alerts that fire go along as they are: they
// are not said again, and end as what they began.
func (s *sighting) place(st *state) {
	if st.key == s.k.id { // it had no name: what fires is said again by its name
		for _, a := range s.book.of(st) {
			s.measure(a, st, s.last)
			s.book.end(a, st, s.last, s.now)
		}
		st.level, st.projection = 0, notProjected
	}
	key := s.key(st.rule)
	if s.others(st) > 0 {
		s.absorb(s.state(st.rule, key), st)
		return
	}
	s.rekey(st, key)
}

// lift takes a key away from where it is found.
func (e *Engine) lift(st *state) {
	if r := st.rule; r.states[st.key] == st {
		e.dirty.drop(stateKey(r.Name, st.key))
		delete(r.states, st.key)
	}
}

// rekey gives a key of a rule another name, or adds it to the key that has this name.
func (e *Engine) rekey(st *state, key string) {
	r := st.rule
	e.lift(st)
	if to := r.states[key]; to != nil {
		st.gone = true
		e.absorb(to, st)
		return
	}
	st.key = key
	r.states[key] = st
	e.moveAlerts(st, st)
	e.touch(st)
	e.dirty.mark(st)
}

// absorb adds what one key has used to another one, and leaves the first with nothing. A rate
// goes along only to a key that has none: two can't be added.
func (e *Engine) absorb(to, from *state) {
	r := to.rule
	if from.rating != nil {
		if to.members > 0 {
			for _, a := range e.book.of(from) {
				e.book.end(a, from, e.now, e.now)
			}
			delete(e.hot, from)
			return
		}
		to.rating, from.rating = from.rating, &rating{}
	}
	if from.used > 0 {
		to.usedBy(from.owner)
	}
	to.merge(from)
	to.tick = usage.Add(to.tick, from.tick)
	if to.projection == notProjected || from.projection == projected {
		to.projection = from.projection
	}
	e.moveAlerts(to, from)
	from.used, from.base, from.tick, from.owner = 0, 0, 0, ""
	from.level, from.projection = 0, notProjected
	if from.window != nil {
		*from.window = window{at: r.bucket}
	}
	to.level = e.book.levels(to)
	e.touch(to)
	e.dirty.mark(to)
	if !from.gone {
		e.dirty.mark(from)
		e.dropIdle(from)
	}
}

// moveAlerts makes the alerts of one key that fire those of another one.
func (e *Engine) moveAlerts(to, from *state) {
	alerts := e.book.of(from)
	for _, a := range alerts {
		if a.moved = to.key; a.Key == to.key {
			a.moved = ""
		}
		e.book.mark(a)
	}
	_, hot := e.hot[from]
	if to == from {
		return
	}
	if len(alerts) > 0 {
		e.book.firing[to] = append(e.book.firing[to], alerts...)
	}
	delete(e.book.firing, from)
	if delete(e.hot, from); hot {
		e.hot[to] = struct{}{}
	}
}

// claimEarlier gives keys that an earlier version made of names alone to those whose they are.
// Where that can't be told, the sum of several stays under the old key until its period ends.
func (e *Engine) claimEarlier() {
	claims := map[*state][]string{}
	for i := range e.sightings {
		s := &e.sightings[i]
		for _, r := range e.ordered {
			if !s.changed || r.Per != PerName {
				continue
			}
			st := r.states[s.c.Name]
			if st == nil || !st.fromEarlier {
				continue
			}
			key := r.key(s.c, s.source)
			if key == st.key {
				st.runtime = usage.FirstRuntime(st.runtime, s.c.Runtime)
			}
			if key != "" && !slices.Contains(claims[st], key) {
				claims[st] = append(claims[st], key)
			}
		}
	}
	for st, keys := range claims {
		st.fromEarlier = false
		switch {
		case len(keys) == 1 && keys[0] != st.key:
			e.rekey(st, keys[0])
		case len(keys) > 1:
			e.Log.Info("several containers have had one key, and have keys of their own now; what they have used stays under it until the period ends",
				"quota", st.rule.Name, "key", st.key, "used", st.used, "now", keys)
		}
	}
}
