// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

const (
	checkInterval = time.Second
	pruneEvery    = 60 // checks
	// nameWithin is how long a container without a name is not counted yet.
	nameWithin = 3 * time.Second
	// forgetAfter is how long a container that is gone is remembered, so that what it
	// used is not counted again if it is started once more.
	forgetAfter = 48 * time.Hour
	// dormantFor is how long what a dropped rule without periods counted is kept.
	dormantFor = 30 * 24 * time.Hour
)

// store keeps what has to outlive the process: (*ledger.Ledger).Documents.
type store interface {
	// Load returns all that is kept, nothing where nothing is.
	Load() (map[string][]byte, error)
	// Save writes and deletes, all of it or nothing.
	Save(put map[string][]byte, drop []string) error
}

// Options is what an engine works with. All are needed.
type Options struct {
	// Rules returns the rules in force, checked, with names of their own. It is called
	// at each check, and returns the same slice while nothing has changed.
	Rules func() []Rule
	Store store
	// Notifiers returns how each notifier is told. It is called at each check, after Rules.
	Notifiers func() map[string]Means
	// Clock says what time it is, and whether to trust it. It must know when Store was last
	// written once that is loaded.
	Clock *wallclock.Clock
	Log   *slog.Logger
}

// Engine counts usage against rules. It is safe for concurrent use.
type Engine struct {
	Options
	*outbox

	mu         sync.Mutex
	loaded     bool // what was saved is known
	fresh      bool // there was no rule before
	current    []Rule
	version    int // of current
	rules      map[string]*rule
	ordered    []*rule // those of current
	containers map[string]*container
	book       book
	hot        map[*state]struct{} // rates that are above their bound, or fire
	touched    []*state            // used something since the last check
	sightings  []sighting          // by the check that runs
	checks     uint64              // so far
	now        time.Time           // of the check that runs, as Clock has it
	last       time.Time           // check
	lastBoot   time.Duration       // its CLOCK_BOOTTIME
	reckoned   time.Time           // now, by last and the time since boot alone
	read       time.Time           // the counters were, when rates were measured last
	measured   uint64              // the check that did that
	dirty      changes
}

// rule is a Rule and what was counted by it.
type rule struct {
	Rule
	span       span
	thresholds []uint64 // of AlertAt
	start, end time.Time
	states     map[string]*state
	isNew      bool // to the check that runs
	began      time.Time
	bucket     int64 // of a rolling window, that is filled now
	// dropped is when the rule went away, zero while it is there. It feeds on nothing.
	dropped time.Time
	dirty   bool
}

// container is what is known of a container. Its total is shared by all rules.
type container struct {
	id      string
	last    numbers // total at the last check
	source  string
	known   bool      // last is
	tcp     bool      // its connections are counted, or were
	outcome bool      // so is what becomes of its attempts to connect
	http    bool      // its HTTP requests are counted, or were
	fresh   bool      // it was there when nothing was ever saved
	firstAt time.Time // as the clock was when it began, should it have been put right since
	goneAt  time.Time // zero while it is in the snapshot
	check   uint64    // the last one that saw it

	identity identity
	version  int // of the rules that feeds are of, 0 for none
	feeds    []*state
	away     []*state // what it alone has used, and feeds no more
	dirty    bool
}

// identity is what rules look at, but the id.
type identity struct {
	name, image, runtime, namespace, pod, source string
	shares                                       bool
	owner                                        string // of the interfaces of its network
	labels                                       map[string]string
}

func (i *identity) is(c *usage.Container, source string) bool {
	return i.name == c.Name && i.image == c.Image && i.runtime == c.Runtime && i.namespace == c.Namespace &&
		i.pod == c.Pod && i.source == source && i.shares == c.Shares && i.owner == c.SharesWith && maps.Equal(i.labels, c.Labels)
}

// New returns an engine that knows nothing yet.
func New(o Options) *Engine {
	e := &Engine{Options: o, outbox: newOutbox(o.Log)}
	e.clear()
	return e
}

func (e *Engine) clear() {
	e.rules, e.ordered = map[string]*rule{}, nil
	e.containers = map[string]*container{}
	e.book = newBook(e.outbox)
	e.hot = map[*state]struct{}{}
	e.touched, e.current, e.dirty = nil, nil, changes{}
	e.last, e.read, e.fresh = time.Time{}, time.Time{}, true
	e.version++
}

// Run loads what was saved, then checks every second until ctx ends; then it saves once
// more and returns nil. It never returns an error: a store that fails is tried again. At the
// end it waits for two calls of the store at most, as long as these take.
//
// snapshot is called from one goroutine while there are rules: (*usage.Reader).Changing. What
// is missing in it is taken for gone, and with all set it must be complete.
func (e *Engine) Run(ctx context.Context, snapshot func(all bool) usage.Snapshot) error {
	k := &keeper{Engine: e, results: make(chan result, 1)}
	k.load()
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		if !e.idle() {
			e.Check(snapshot(e.beginsAnew()))
		}
		k.step(time.Now())
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				k.stop()
				return nil
			case r := <-k.results:
				k.done(r)
				k.step(time.Now())
			case <-k.patience():
				k.giveUp()
			case <-k.acks:
				k.step(time.Now())
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// beginsAnew reports whether the next check is the first one that knows what was saved: what has
// ended since that is to be found once more.
func (e *Engine) beginsAnew() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.loaded || e.last.IsZero()
}

// idle returns whether there is no rule, not even one that was dropped: then nobody needs to
// be asked for usage.
func (e *Engine) idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.Rules())+len(e.rules) > 0 {
		return false
	}
	clock := e.Clock.Look()
	e.now, e.lastBoot = clock.Now, clock.Boot
	e.route(e.Notifiers())
	e.rest()
	return true
}

// Check counts what containers have used since the last check, and returns the alerts
// that fired or were resolved by that, in order. Rates are measured by the snapshot's times,
// which should have a monotonic reading, as time.Now has. It touches no store, and
// nobody is told: that is Run's.
func (e *Engine) Check(snap usage.Snapshot) []Alert {
	e.mu.Lock()
	defer e.mu.Unlock()
	clock := e.Clock.Look()
	now := clock.Now
	e.checks++
	e.now, e.book.said, e.reckoned = now, nil, now
	if !e.last.IsZero() {
		e.reckoned = e.last.Add(clock.Boot - e.lastBoot)
	}
	e.lastBoot = clock.Boot
	rules := e.Rules()
	rerouted := e.route(e.Notifiers())
	e.adopt(rules, now)
	if rerouted {
		e.readdress(now)
	}
	if len(e.rules) == 0 {
		e.rest()
		return nil
	}
	for _, r := range e.ordered {
		e.turn(r, clock)
	}
	for _, r := range e.rules {
		if !r.dropped.IsZero() {
			e.turn(r, clock)
		}
	}
	for i := range snap.Containers {
		e.see(&snap.Containers[i], now)
	}
	e.take()
	e.depart(now)
	e.begin()
	read := snap.ReadAt
	if read.IsZero() {
		read = snap.TakenAt
	}
	e.settle(now, read)
	if e.checks%pruneEvery == 0 {
		for _, id := range e.book.prune(now) {
			e.dirty.drop(alertKey(id))
		}
	}
	e.last, e.fresh = now, false
	return e.book.said
}

// rest forgets containers while there are no rules, so that nothing is saved for nobody.
// The first rule then finds everything as at the first start.
func (e *Engine) rest() {
	for id := range e.containers {
		e.dirty.drop(containerKey(id))
	}
	clear(e.containers)
	e.last, e.read, e.fresh = e.now, time.Time{}, true
}

// adopt puts rules in force that are not. What a rule has counted stays with its name, as
// far as it means something to the rule as it is now.
func (e *Engine) adopt(rules []Rule, now time.Time) {
	same := e.current != nil && len(rules) == len(e.current)
	if same && (len(rules) == 0 || &rules[0] == &e.current[0] || reflect.DeepEqual(rules, e.current)) {
		return
	}
	e.current = append([]Rule{}, rules...)
	if len(rules) > 0 {
		e.current = rules
	}
	e.version++
	e.ordered = e.ordered[:0]
	named := map[string]bool{}
	for i := range rules {
		named[rules[i].Name] = true
		e.adoptOne(&rules[i], now)
		e.ordered = append(e.ordered, e.rules[rules[i].Name])
	}
	for name, r := range e.rules {
		if !named[name] && r.dropped.IsZero() {
			e.Log.Info("quota dropped; what it counted is kept for a while", "quota", name)
			e.resolveAll(r, now)
			r.dropped, r.dirty = now, true
		}
	}
}

func (e *Engine) adoptOne(next *Rule, now time.Time) {
	r := e.rules[next.Name]
	if r != nil && !r.sameBasis(next) {
		e.Log.Info("quota changed what it counts, and counts anew", "quota", next.Name)
		e.resolveAll(r, now)
		e.forget(r)
		r = nil
	}
	if r == nil {
		r = &rule{states: map[string]*state{}, isNew: true, began: now, dirty: true}
		r.start, r.end = next.Period.Bounds(now)
		if !next.Period.calendar() {
			r.start = now
		}
		e.rules[next.Name] = r
	} else if !r.samePeriods(next) && now.Before(r.end) {
		// A period that ended while nettally was down is over. What was used since r.start
		// can't be divided at another day: it is counted on, up to where the calendar's next
		// period begins.
		_, r.end = next.Period.Bounds(latest(now, r.start))
		e.Log.Info("quota's periods changed; the running one ends with the next", "quota", next.Name, "ends", r.end)
		r.dirty = true
	}
	changed := !r.isNew && !r.sameLevels(next)
	if !r.dropped.IsZero() {
		r.dropped, r.dirty, changed = time.Time{}, true, true
		for _, st := range r.states {
			st.epoch = now.UnixNano() // what is reached is said again
		}
	}
	r.set(*next)
	if r.isNew && r.Per == PerAll {
		e.state(r, PerAll)
	}
	if changed {
		r.dirty = true // or it would be a change after the next restart, too
		for _, st := range r.states {
			e.reconcile(st, now)
		}
	}
	for _, st := range r.states {
		for _, a := range e.book.of(st) {
			e.book.address(a, r.Notify, now)
		}
	}
}

// readdress looks at all that fires again, once there are other notifiers.
func (e *Engine) readdress(now time.Time) {
	for st, alerts := range e.book.firing {
		for _, a := range alerts {
			e.book.address(a, st.rule.Notify, now)
		}
	}
}

func (r *rule) set(next Rule) {
	r.Rule, r.span = next, spans[next.Count]
	r.thresholds = make([]uint64, len(next.AlertAt))
	for i, percent := range next.AlertAt {
		r.thresholds[i] = next.threshold(percent)
	}
}

// forget drops a rule and all that it counted.
func (e *Engine) forget(r *rule) {
	for _, st := range r.states {
		e.drop(st)
	}
	delete(e.rules, r.Name)
	e.dirty.drop(ruleKey(r.Name))
	e.version++ // feeds lead to its states
}

// begin adds what new rules are to begin with, once the keys are there.
func (e *Engine) begin() {
	for _, r := range e.rules {
		if !r.isNew {
			continue
		}
		r.isNew = false
		for _, st := range r.states {
			if r.Initial > 0 {
				st.add(r.Initial)
				st.base = usage.Add(st.base, r.Initial)
			}
			e.touch(st)
			e.dirty.mark(st)
		}
	}
}
