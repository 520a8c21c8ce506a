// SPDX-License-Identifier: Apache-2.0

// Package notify tells notifiers about alerts: an Alertmanager, a webhook, a program or
// the log.
//
// # What is promised
//
// Nothing is lost: an alert is on disk some milliseconds after it was sent, and is
// tried again until its notifier takes it, over outages of that and restarts of
// nettally. It is given up, which a metric counts and the log says, if the notifier
// refuses it for good or more than 100,000 wait, and then those first that have ended
// already.
//
// Nothing is told twice, but for what was under way when nettally was killed: between
// a notifier's yes and the note of it on disk, some milliseconds, nobody can know. What
// a webhook and a program get therefore has a key, "delivery", which is the same
// whenever the same is told. So an alert is on disk before it is told; while the disk
// fails or hangs it waits two seconds, and then is told all the same.
//
// The states of one alert come in their order. So do different alerts, as long as
// all is well or the notifier is away; one that alone fails is overtaken.
//
// A notifier that hangs delays no other, and nothing but Run waits for any.
//
// # Alertmanager
//
// What fires is told again every minute, as that API wants it, and ends by itself five
// minutes after nettally was last heard of. An end is told for five minutes, so that
// an Alertmanager which restarts has it. What fired and ended while it was away is
// first told as firing, and as resolved a minute later: it tells nobody of an alert
// that it first sees resolved.
package notify

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/quota"
)

const (
	refreshEvery = time.Second      // the configuration is looked at
	shedEvery    = time.Minute      // the log says at most that a queue is full
	loadWithin   = 10 * time.Second // nothing is delivered before, while the disk does not answer
	keepWithin   = 2 * time.Second  // an alert waits no longer for it
	stopWithin   = 5 * time.Second  // nor does the end
	graceful     = 2 * time.Second  // an attempt that has begun, when it ends
)

// Store keeps values by their keys, durably. A call may block as long as the disk
// does; there is one at a time.
type Store interface {
	Load() (map[string][]byte, error)
	Save(put map[string][]byte, drop []string) error // all of it or nothing
}

// Options say whom to tell.
type Options struct {
	// Notifiers returns those that are configured, checked and with different names.
	// It is called about every second, and does not block.
	Notifiers func() []Config
	Store     Store
	// Now is time.Now, but for tests. Its monotonic reading is what waits go by.
	Now func() time.Time
	// TimeOfDay is what is told and kept as a time, and whether the host's clock is trusted; nil
	// is Now, trusted.
	TimeOfDay func() (now time.Time, trusted bool)
	Log       *slog.Logger

	GeneratorURL string // where people read more, a link in Alertmanager
	Instance     string // tells hosts apart; "" is the host's name
	Version      string // of nettally, for servers' logs
}

// Dispatcher tells notifiers about alerts. It is safe for concurrent use.
type Dispatcher struct {
	options Options
	log     *slog.Logger
	metrics metrics
	loaded  chan struct{} // closed once the store was read
	grown   chan struct{} // holds a token while there may be a queue without a worker
	unsaved chan struct{} // holds a token while dirty may have grown

	mu     sync.Mutex // guards what follows, and the queues; held for no longer than memory takes
	queues map[string]*queue
	dirty  map[string]place           // by key in the store
	active map[string]map[string]bool // ids by notifier, once Reconcile was called
	read   bool                       // the store was
	unkept time.Time                  // since when something waits for the disk; zero if nothing does
	lax    bool                       // the disk fails, and nothing waits for it
}

// place is where a thread is that is to be saved.
type place struct {
	notifier, thread string
	news             int // that it had when it was
}

// New returns a dispatcher, which takes alerts but tells nobody before it runs.
func New(o Options) *Dispatcher {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.TimeOfDay == nil {
		o.TimeOfDay = func() (time.Time, bool) { return o.Now(), true }
	}
	if o.Instance == "" {
		// Without a name two hosts might be one to an Alertmanager, which is better than no alert.
		o.Instance, _ = os.Hostname()
	}
	d := &Dispatcher{
		options: o,
		log:     o.Log,
		metrics: newMetrics(),
		loaded:  make(chan struct{}),
		grown:   make(chan struct{}, 1),
		unsaved: make(chan struct{}, 1),
		queues:  map[string]*queue{},
		dirty:   map[string]place{},
	}
	d.refresh()
	return d
}

// Metrics returns the metrics of the delivery.
func (d *Dispatcher) Metrics() []prometheus.Collector { return d.metrics.all() }

// Send takes an alert for each of its notifiers. It never blocks and never fails.
//
// The same state of the same alert is delivered once, however often it is sent. What
// was sent is on disk some milliseconds later; a caller that keeps its own state says
// after a restart by [Dispatcher.Reconcile] what fires, and so loses nothing if it
// ends in between.
func (d *Dispatcher) Send(a quota.Alert) {
	d.mu.Lock()
	known := d.knows(a)
	d.mu.Unlock()
	if !known {
		d.refresh() // a rule may be newer than what we know of its notifier
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.say(a)
}

func (d *Dispatcher) knows(a quota.Alert) bool {
	for _, name := range a.Notifiers {
		if d.queues[name] == nil {
			return false
		}
	}
	return true
}

// say queues an alert. The caller holds mu.
func (d *Dispatcher) say(a quota.Alert) {
	for _, name := range a.Notifiers {
		q := d.queues[name]
		if q == nil {
			d.log.Warn("an alert is for a notifier that does not exist", "notifier", name, "alert", a.ID)
			continue
		}
		q.say(a)
		d.show(q)
	}
}

// Reconcile takes all alerts that fire, at a start: those which a notifier was not told
// of are sent, and what it still takes for firing is resolved. Call it after the first
// check, when what was forgotten in a crash is known again.
func (d *Dispatcher) Reconcile(firing []quota.Alert) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active = map[string]map[string]bool{}
	for _, a := range firing {
		for _, name := range a.Notifiers {
			if d.active[name] == nil {
				d.active[name] = map[string]bool{}
			}
			d.active[name][a.ID] = true
		}
	}
	for _, q := range d.queues {
		for _, t := range inOrder(q.threads) {
			d.resolve(q, t)
		}
		d.show(q)
	}
	for _, a := range firing {
		d.say(a)
	}
}

// resolve ends an alert that its notifier takes for firing while it is not. The caller
// holds mu.
func (d *Dispatcher) resolve(q *queue, t *thread) {
	latest := t.latest()
	if d.active == nil || latest == nil || latest.State != quota.Firing || d.active[q.config.Name][latest.ID] {
		return
	}
	end := *latest
	end.State = quota.Resolved
	end.EndsAt, _ = d.options.TimeOfDay()
	q.say(end)
}

// inOrder returns threads, those first that have waited longest.
func inOrder(threads map[string]*thread) []*thread {
	var all []*thread
	for _, t := range threads {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *thread) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.key, b.key))
	})
	return all
}

// show updates the gauge of a queue. The caller holds mu.
func (d *Dispatcher) show(q *queue) {
	d.metrics.of(q.config.Name).queue.Set(float64(q.waiting))
}

// refresh takes over what has changed in the configuration.
func (d *Dispatcher) refresh() {
	configs := d.options.Notifiers()
	d.mu.Lock()
	defer d.mu.Unlock()
	configured := map[string]bool{}
	for _, c := range configs {
		configured[c.Name] = true
		q := d.queues[c.Name]
		switch {
		case q == nil:
			d.queues[c.Name] = d.newQueue(c)
		case !reflect.DeepEqual(q.config, c):
			d.change(q, c)
		}
	}
	for name, q := range d.queues {
		if !configured[name] {
			d.remove(q)
		}
	}
}

// newQueue returns an empty queue. The caller holds mu.
func (d *Dispatcher) newQueue(c Config) *queue {
	q := &queue{
		config:  c,
		full:    waitingMax,
		lax:     &d.lax,
		threads: map[string]*thread{},
		wake:    make(chan struct{}, 1),
	}
	q.changed = func(t *thread) {
		d.dirty[storeKey(c.Name, t.key)] = place{notifier: c.Name, thread: t.key}
		if t.unkept && d.unkept.IsZero() {
			d.unkept = d.options.Now()
		}
		wake(d.unsaved)
	}
	var dropped int
	var logged time.Time
	q.shed = func(alerts int) {
		d.metrics.of(c.Name).dropped.Add(float64(alerts))
		dropped += alerts
		if now := d.options.Now(); logged.IsZero() || now.Sub(logged) >= shedEvery {
			d.log.Warn("too many alerts wait for a notifier; the oldest were dropped", "notifier", c.Name, "dropped", dropped)
			dropped, logged = 0, now
		}
	}
	d.aim(q)
	d.metrics.of(c.Name)
	wake(d.grown)
	return q
}

// aim makes the target of a queue's configuration.
func (d *Dispatcher) aim(q *queue) {
	q.style = q.config.style()
	q.target = newTarget(q.config, d.options)
	q.key = func(a quota.Alert) string { return a.ID }
	if q.style.state {
		q.key = func(a quota.Alert) string { return labelKey(labels(a, d.options.Instance)) }
	}
}

// change gives a queue another target, which gets what waits. The caller holds mu.
func (d *Dispatcher) change(q *queue, c Config) {
	state := q.style.state
	q.config = c
	q.target.close()
	d.aim(q)
	q.fails, q.paused = 0, time.Time{}
	if state != q.style.state {
		d.convertAll(q)
	}
	q.poke()
	d.log.Info("notifier changed", "notifier", c.Name, "waiting", q.waiting)
}

// convertAll queues up anew what waits, for another kind of notifier. The caller
// holds mu.
func (d *Dispatcher) convertAll(q *queue) {
	threads := inOrder(q.threads)
	q.threads, q.due, q.waiting, q.bytes = map[string]*thread{}, nil, 0, 0
	q.waits.Init()
	q.ended.Init()
	q.epoch++
	for _, t := range threads {
		q.changed(t) // its key may be another one
		d.convert(q, t.saved)
	}
	d.show(q)
}

// remove forgets a notifier and what waits for it. The caller holds mu.
func (d *Dispatcher) remove(q *queue) {
	name := q.config.Name
	delete(d.queues, name)
	for _, t := range q.threads {
		q.changed(t)
	}
	q.target.close()
	d.metrics.remove(name)
	wake(d.grown)
	d.log.Info("notifier removed", "notifier", name, "dropped", q.waiting)
}

// Run delivers until the context ends, and returns nil. What is not delivered by then
// is after the next start. It waits 2 s for attempts that have begun and 5 s for the
// disk.
func (d *Dispatcher) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	running := map[*queue]context.CancelFunc{}
	kept := make(chan struct{})
	go func() { // finish waits for it
		defer close(kept)
		d.keep(ctx)
	}()
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		d.refresh()
		d.staff(ctx, &workers, running)
		d.hurry()
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-d.grown:
		}
	}
	for _, cancel := range running {
		cancel()
	}
	workers.Wait()
	d.finish(kept)
	return nil
}

// staff starts a worker for each queue that has none, and ends those of queues that
// are gone.
func (d *Dispatcher) staff(ctx context.Context, workers *sync.WaitGroup, running map[*queue]context.CancelFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range d.queues {
		if running[q] != nil {
			continue
		}
		work, cancel := context.WithCancel(ctx)
		running[q] = cancel
		workers.Go(func() { d.work(work, q) })
	}
	for q, cancel := range running {
		if d.queues[q.config.Name] != q {
			cancel()
			delete(running, q)
		}
	}
}

// Test tells one notifier of a test alert, at once, and returns what it answered in
// one line. It needs no Run.
func (d *Dispatcher) Test(ctx context.Context, name string) error {
	configs := d.options.Notifiers()
	at := slices.IndexFunc(configs, func(c Config) bool { return c.Name == name })
	if at < 0 {
		return fmt.Errorf("send test alert: there is no notifier %q%s", name, otherNames(configs))
	}
	target := newTarget(configs[at], d.options)
	defer target.close()
	ctx, cancel := context.WithTimeout(ctx, configs[at].timeout())
	defer cancel()
	if err := target.deliver(ctx, []quota.Alert{testAlert(name, d.options.Now())}); err != nil {
		return fmt.Errorf("send test alert to %s: %w", name, err)
	}
	return nil
}

func otherNames(configs []Config) string {
	if len(configs) == 0 {
		return "; none is configured"
	}
	var names []string
	for _, c := range configs {
		names = append(names, c.Name)
	}
	return ", only " + strings.Join(names, ", ")
}

// testAlert is about no quota. It has an id of its own, so that no receiver has seen it.
func testAlert(notifier string, now time.Time) quota.Alert {
	return quota.Alert{
		ID:        "test/" + notifier + "/" + now.UTC().Format(time.RFC3339Nano) + "/100",
		Quota:     "test",
		Key:       notifier,
		Level:     "100",
		State:     quota.Firing,
		StartsAt:  now,
		Used:      1 << 30,
		Limit:     1 << 30,
		Unit:      "bytes",
		Ratio:     1,
		Summary:   "This is a test of the notifier " + notifier + " by nettally; no quota was reached.",
		Notifiers: []string{notifier},
		Test:      true,
	}
}

func (c Config) timeout() time.Duration {
	if c.Timeout == 0 {
		return defaultTimeout
	}
	return c.Timeout
}

// wake leaves a token in a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a token is waiting already
	}
}
