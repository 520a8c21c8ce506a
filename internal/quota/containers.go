// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"slices"
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
}

// take counts what a container has used since it was last seen.
func (e *Engine) take(c *usage.Container, now time.Time) {
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
	s := sighting{Engine: e, now: now, c: c, k: k, source: source, total: numbersOf(traffic)}
	if k.version != e.version || !k.identity.is(c, source) {
		s.connect()
	}
	s.count()
}

// count adds the growth of a total to the keys it feeds.
//
// One on the host's network has the numbers of its cgroup from the moment on when it is
// known to be there, some seconds after it began, and had none at all before: what it has
// by then, at an age, is its first.
func (s *sighting) count() {
	k := s.k
	growth, ok := s.total.minus(k.last)
	first := k.source != "" && k.last == (numbers{}) && k.age(s.c, s.source) < forgetAfter
	if !ok || s.source != k.source && !first {
		// It never goes back, but with the numbers of another kind.
		s.Log.Debug("a container's total went back; counting goes on from there", "container", k.id)
		growth = numbers{}
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
		key := r.key(c, s.source)
		if key == "" || s.ownerHas(r, key) {
			continue
		}
		late := r.states[key] == nil && r.initialFor(c)
		st := s.state(r, key)
		if late {
			st.add(r.Initial)
			st.base = usage.Add(st.base, r.Initial)
		}
		s.rename(before, st)
		st.members++
		st.name = c.Name
		st.source(s.source)
		k.feeds = append(k.feeds, st)
		s.join(st, met)
	}
	s.leave(before)
	k.version, k.name = s.version, c.Name
	k.identity = identity{c.Name, c.Image, c.Runtime, c.Namespace, c.Pod, s.source, c.Shares, c.SharesWith, c.Labels}
}

// join adds what a container counted before it fed a key, where that belongs to it.
func (s *sighting) join(st *state, met bool) {
	r, k := st.rule, s.k
	n := r.span.of(k.last)
	switch {
	case met && !k.fresh && k.age(s.c, k.source) < forgetAfter:
		// All of it is news: one that we have forgotten was counted before that.
	case (r.isNew || met && k.fresh) && belongs(r, s.c, k.source, s.now):
		st.base = usage.Add(st.base, n) // the time it took is not known to the projection
	default:
		return
	}
	st.add(n)
	s.touch(st)
	s.dirty.mark(st)
}

// ownerHas says whether the container that owns the interfaces of another one's network is
// counted under the same key: what both use is in its numbers.
func (s *sighting) ownerHas(r *rule, key string) bool {
	owner := s.containers[s.c.SharesWith]
	if s.source != sourceIP || owner == nil || owner.version == 0 || owner.identity.source != sourceInterface {
		return false
	}
	i := owner.identity
	as := usage.Container{ID: owner.id, Name: i.name, Image: i.image, Runtime: i.runtime, Namespace: i.namespace, Pod: i.pod, Labels: i.labels}
	return r.key(&as, sourceInterface) == key
}

// rename moves what a container used while it had no name to its name.
func (s *sighting) rename(before []*state, to *state) {
	i := slices.IndexFunc(before, func(st *state) bool { return st.rule == to.rule })
	if i < 0 || before[i] == to || to.rule.Per != PerName || before[i].key != s.k.id {
		return
	}
	from := before[i]
	for _, a := range s.book.of(from) {
		s.resolve(a, s.last)
	}
	to.merge(from)
	from.used = 0
	s.drop(from)
	s.touch(to)
	s.dirty.mark(to)
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

// belongs says whether all that a container has counted lies in a rule's running period.
func belongs(r *rule, c *usage.Container, source string, now time.Time) bool {
	switch {
	case r.Rate != nil:
		return false
	case r.Period.Every == Lifetime:
		return true
	case r.Period.Every == Rolling:
		return now.Sub(born(c, source)) < r.Period.Window
	}
	return !born(c, source).Before(r.start)
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
	for id, k := range e.containers {
		switch {
		case k.check == e.checks:
		case k.goneAt.IsZero():
			k.goneAt = now
			e.leave(k.feeds)
			k.feeds, k.version = nil, 0
			e.dirty.markContainer(k)
			if !k.known {
				delete(e.containers, id)
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
