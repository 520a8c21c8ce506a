// SPDX-License-Identifier: Apache-2.0

// Package notify tells notifiers about alerts: an Alertmanager, a webhook, a program or
// the log. It keeps nothing: what is to be told, and what was, is the [Source]'s to keep.
//
// # Webhooks, programs and the log
//
// One worker for each takes the source's deliveries in their order, and tries each until it is
// taken. A delivery is dropped, which a metric counts and the log says, if the notifier
// refuses it for good, or if it fails for an hour while another one passes.
//
// A delivery is acknowledged once it was taken. A kill in between, some milliseconds, makes it
// told twice: nobody can know then. What a webhook and a program get therefore has a key,
// "delivery", which is the same whenever the same is told.
//
// # Alertmanager
//
// What fires is told again every minute, as that API wants it, and ends by itself five
// minutes after nettally was last heard of. An end is told for five minutes, so that
// an Alertmanager which restarts has it. An alert is told as firing for at least a minute,
// also if it has ended meanwhile: an Alertmanager tells nobody of an alert that it first
// sees resolved. What began and ended while it was away for a quarter of an hour, or before
// nettally was restarted, it is not told.
//
// A notifier that hangs delays no other, and nothing but Run waits for any.
package notify

import (
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
	refreshEvery = time.Second     // the configuration is looked at
	graceful     = 2 * time.Second // for what is under way, or just ready, at the end
)

// Source has what is to be told: [quota.Engine], whose methods say what they return. It is
// called by several goroutines.
type Source interface {
	Next(notifier string, after uint64) (quota.Delivery, bool)
	Done(d quota.Delivery, dropped bool)
	Waiting(notifier string) (waiting int, dropped uint64)
	Firing(notifier string) []quota.Alert
	Changed() <-chan struct{}
}

// Options say whom to tell.
type Options struct {
	// Notifiers returns those that are configured, checked and with different names.
	// It is called about every second, and does not block.
	Notifiers func() []Config
	Source    Source
	// Now is time.Now, but for tests. Its monotonic reading is what waits go by.
	Now func() time.Time
	// TimeOfDay is what is told as a time, and whether the host's clock is trusted; nil
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
	metrics *metrics
	// What follows is as in newTarget and newManager, but for tests.
	aim          func(Config) target
	again, least time.Duration
}

// New returns a dispatcher, which tells nobody before it runs.
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
	d := &Dispatcher{options: o, metrics: newMetrics(o.Source), again: againAfter, least: firesAtLeast}
	d.aim = func(c Config) target { return newTarget(c, o) }
	for _, c := range o.Notifiers() {
		d.metrics.of(c.Name)
	}
	return d
}

// Metrics returns the metrics of the delivery.
func (d *Dispatcher) Metrics() []prometheus.Collector { return []prometheus.Collector{d.metrics} }

// crew is the workers of one Run.
type crew struct {
	*Dispatcher
	stop, hard context.Context
	workers    sync.WaitGroup
	running    map[string]post
}

// post is a notifier's worker.
type post struct {
	config Config
	leave  context.CancelFunc // nil if the notifier was removed
	left   chan struct{}      // is closed when the worker has
}

// Run tells until the context ends, and returns nil. It then tells what is ready, and waits for
// two seconds for that and for attempts that have begun. What is not told by then is after the
// next start.
func (d *Dispatcher) Run(ctx context.Context) error {
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	c := &crew{Dispatcher: d, stop: ctx, hard: hard, running: map[string]post{}}
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		c.refresh()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	defer time.AfterFunc(graceful, cut).Stop()
	c.workers.Wait()
	return nil
}

// refresh takes over what has changed in the configuration.
func (c *crew) refresh() {
	configured := map[string]bool{}
	for _, config := range c.options.Notifiers() {
		configured[config.Name] = true
		p, known := c.running[config.Name]
		switch {
		case !known || p.leave == nil:
			c.begin(config, p.left)
		case !reflect.DeepEqual(p.config, config):
			p.leave()
			c.begin(config, p.left)
			waiting, _ := c.options.Source.Waiting(config.Name)
			c.options.Log.Info("notifier changed", "notifier", config.Name, "waiting", waiting)
		}
	}
	for name, p := range c.running {
		if !configured[name] && p.leave != nil {
			p.leave()
			c.metrics.remove(name)
			c.running[name] = post{left: p.left}
		}
	}
}

// begin starts a notifier's worker, which tells nobody until the one before it has left.
func (c *crew) begin(config Config, before <-chan struct{}) {
	life, leave := context.WithCancel(c.stop)
	left := make(chan struct{})
	c.running[config.Name] = post{config, leave, left}
	w := &worker{
		config: config, target: c.aim(config), source: c.options.Source, now: c.options.Now,
		log: c.options.Log.With("notifier", config.Name), series: c.metrics.of(config.Name),
	}
	var t teller = &deliverer{worker: w}
	if config.Alertmanager != nil {
		m := newManager(w, c.options)
		m.again, m.least = c.again, c.least
		t = m
	}
	c.workers.Go(func() {
		defer close(left)
		defer leave()
		if before != nil {
			<-before
		}
		w.run(life, c.stop, c.hard, t)
	})
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
