// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// sighting is a container as one check finds it.
type sighting struct {
	*Engine
	now    time.Time
	c      *usage.Container
	k      *container
	source string
	total  numbers
	// changed: its keys are to be found.
	changed bool
}

// see takes note of a container that is to be counted.
func (e *Engine) see(c *usage.Container, now time.Time) {
	k := e.containers[c.ID]
	if c.Unrecalled { // its total is not whole
		if k != nil && k.goneAt.IsZero() {
			k.check = e.checks
		}
		return
	}
	if k == nil {
		k = &container{id: c.ID, firstAt: e.reckoned, fresh: e.fresh}
		e.containers[c.ID] = k
	}
	if k.firstAt.IsZero() {
		k.firstAt = e.reckoned // it was loaded
	}
	k.check = e.checks
	if !k.goneAt.IsZero() {
		k.goneAt, k.firstAt = time.Time{}, e.reckoned
		e.dirty.markContainer(k)
	}
	if k.version == 0 && (c.Name == "" || c.Name == c.ID) && now.Sub(k.firstAt) < nameWithin && now.Sub(k.firstAt) >= 0 {
		return // it gets its name in a moment
	}
	traffic, source := counted(*c)
	outcome := c.TCP != nil && !c.TCP.InPart
	counts := c.TCP != nil && !k.tcp || outcome && !k.outcome || c.Layer7.HTTP && !k.http // from now on
	k.tcp, k.outcome, k.http = k.tcp || c.TCP != nil, k.outcome || outcome, k.http || c.Layer7.HTTP
	e.sightings = append(e.sightings, sighting{
		Engine: e, now: now, c: c, k: k, source: source, total: numbersOf(traffic, c, k.last),
		changed: k.version != e.version || !k.identity.is(c, source) || counts,
	})
}

// take counts what containers have used since they were last seen. What those that changed have
// used under other keys goes along first, before anybody else uses something under these.
func (e *Engine) take() {
	e.claimEarlier()
	e.moveChanged()
	for i := range e.sightings {
		s := &e.sightings[i]
		if s.changed {
			s.connect()
		}
		s.count()
	}
	clear(e.sightings)
	e.sightings = e.sightings[:0]
}

// count adds the growth of a total to the keys it feeds.
//
// One on the host's network has the numbers of its cgroup from the moment on when it is
// known to be there, some seconds after it began, and had none at all before: what it has
// by then, at an age, is its first.
func (s *sighting) count() {
	k := s.k
	growth, ok := s.total.minus(k.last)
	first := k.source != "" && !k.last.passed() && k.age(s.c, s.source) < forgetAfter
	switched := s.source != k.source && !first
	if switched { // those of connections and requests have one source
		clear(growth[:ofTraffic])
	}
	if !ok || switched {
		// It never goes back, but with the numbers of another kind, or where some were not counted
		// for a while.
		s.Log.Debug("a container's total went back; counting goes on from there", "container", k.id)
		k.last, k.source = s.total, s.source
		s.dirty.markContainer(k)
	}
	k.source = s.source
	if growth == (numbers{}) {
		return
	}
	k.last = s.total
	s.dirty.markContainer(k)
	for _, st := range k.feeds {
		if n := st.rule.span.of(growth); n > 0 {
			st.add(n)
			st.usedBy(k.id)
			st.tick = usage.Add(st.tick, n)
			s.touch(st)
			s.dirty.mark(st)
		}
	}
}

// connect finds the keys that a container is counted under from now on.
func (s *sighting) connect() {
	c, k := s.c, s.k
	met := !k.known
	if met {
		k.known, k.last, k.source = true, s.total, s.source
		s.dirty.markContainer(k)
	}
	before := k.feeds
	k.feeds = nil
	for _, r := range s.ordered {
		key := s.key(r)
		if key == "" {
			continue
		}
		late := r.states[key] == nil && r.initialFor(c)
		st := s.state(r, key)
		if late {
			st.add(r.Initial)
			st.base = usage.Add(st.base, r.Initial)
		}
		st.members++
		st.name, st.fromEarlier = c.Name, false
		if r.Per == PerName {
			st.runtime = cmp.Or(c.Runtime, st.runtime)
		}
		st.source(s.sourceFor(r))
		k.feeds = append(k.feeds, st)
		s.join(st, met)
	}
	k.away = k.alone(append(before, k.away...))
	s.leave(before)
	k.version = s.version
	k.identity = identity{c.Name, c.Image, c.Runtime, c.Namespace, c.Pod, s.source, c.Shares, c.SharesWith, c.Labels}
}

// sourceFor returns where a rule's numbers come from.
func (s *sighting) sourceFor(r *rule) string {
	switch {
	case r.Count.ofTCP():
		return sourceTCP
	case r.Count.ofHTTP():
		return sourceHTTP
	}
	return s.source
}

// join adds what a container counted before it fed a key, where that belongs to it.
func (s *sighting) join(st *state, met bool) {
	r, k := st.rule, s.k
	n := r.span.of(k.last)
	switch {
	case met && !k.fresh && k.age(s.c, k.source) < forgetAfter:
		// All of it is news: one that we have forgotten was counted before that.
	case (r.isNew || met && k.fresh) && r.takesAll(s.c):
		st.base = usage.Add(st.base, n) // the time it took is not known to the projection
	default:
		return
	}
	st.add(n)
	if n > 0 {
		st.usedBy(k.id)
	}
	s.touch(st)
	s.dirty.mark(st)
}

// ownerHas says whether the container that owns the interfaces of another one's network is
// counted under the same key: what both use is in its numbers.
func (s *sighting) ownerHas(r *rule, key string) bool {
	owner := s.containers[s.c.SharesWith]
	if r.Count.bySockets() || s.source != sourceIP || owner == nil || owner.version == 0 || owner.identity.source != sourceInterface {
		return false
	}
	i := owner.identity
	as := usage.Container{ID: owner.id, Name: i.name, Image: i.image, Runtime: i.runtime, Namespace: i.namespace, Pod: i.pod, Labels: i.labels}
	return r.key(&as, sourceInterface) == key
}

// initialFor says whether a key that a container has made comes late: it was there when the
// rule began, in the running period, and had no name yet or was not found.
func (r *rule) initialFor(c *usage.Container) bool {
	return !r.isNew && r.Initial > 0 && c.StartedAt.Before(r.began) && (!r.Period.calendar() || !r.began.Before(r.start))
}

func (e *Engine) leave(states []*state) {
	for _, st := range states {
		st.members--
		if !st.gone {
			e.dropIdle(st)
		}
	}
}

// takesAll reports whether a rule that is new takes in what a container has counted before.
// Of a period that runs nobody knows what belongs to it: it would be all of what one container
// has used, and nothing of another one that is older.
func (r *rule) takesAll(c *usage.Container) bool {
	return r.Rate == nil && r.Period.Every == Lifetime && c.State != usage.Stopped
}

// born is when a container began to be counted. Its cgroup is made anew whenever it starts,
// and what it has used by that goes on.
func born(c *usage.Container, source string) time.Time {
	if source == sourceIP && !c.IPSince.IsZero() {
		return c.IPSince
	}
	var first time.Time
	for i := range c.Interfaces {
		if at := c.Interfaces[i].AttachedAt; !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return c.StartedAt
	}
	return first
}

// age is how old a container was when it was first seen.
func (k *container) age(c *usage.Container, source string) time.Duration {
	return k.firstAt.Sub(born(c, source))
}

// depart notes which containers are gone, and forgets those that have been for long.
func (e *Engine) depart(now time.Time) {
	for _, k := range e.containers {
		switch {
		case k.check == e.checks:
		case k.goneAt.IsZero():
			k.goneAt = now
			e.leave(k.feeds)
			k.away = k.alone(append(k.feeds, k.away...))
			k.feeds, k.version, k.identity = nil, 0, identity{}
			e.dirty.markContainer(k)
			if k.last == (numbers{}) {
				e.forgetContainer(k) // nothing can be counted again
			}
		case k.goneAt.After(now): // by a clock that was ahead
			k.goneAt = now
			e.dirty.markContainer(k)
		case now.Sub(k.goneAt) > forgetAfter:
			e.forgetContainer(k)
		}
	}
}

// forgetContainer drops a container, and the keys that can only be its.
func (e *Engine) forgetContainer(k *container) {
	delete(e.containers, k.id)
	e.dirty.drop(containerKey(k.id))
	for _, r := range e.rules {
		if st := r.states[k.id]; st != nil && r.Per == PerContainer && st.members == 0 && !r.Period.calendar() {
			e.drop(st)
		}
	}
}
