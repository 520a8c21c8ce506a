// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"errors"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// target is where alerts go.
type target interface {
	// deliver returns nil once all alerts were taken. The error may be a *failure;
	// any other may pass.
	deliver(ctx context.Context, alerts []quota.Alert) error
	// close lets go of idle connections. Deliveries may go on.
	close()
}

// failure is an error of which more is known.
type failure struct {
	cause     error
	permanent bool          // these alerts will never be taken
	everyone  bool          // no other alert would have fared better
	after     time.Duration // is how long the notifier asks to be left alone
}

func (f *failure) Error() string { return f.cause.Error() }
func (f *failure) Unwrap() error { return f.cause }

// work delivers what is in a queue until the context ends.
func (d *Dispatcher) work(ctx context.Context, q *queue) {
	patience := time.NewTimer(loadWithin)
	defer patience.Stop()
	select {
	case <-ctx.Done():
		return
	case <-d.loaded: // otherwise what was told before the restart might be told again
	case <-patience.C:
		d.log.Warn("what was queued before the start can't be read yet; delivering what is new", "notifier", q.config.Name)
	}
	for ctx.Err() == nil {
		d.mu.Lock()
		batch, wait := q.next(d.options.Now())
		target, timeout, name := q.target, q.config.timeout(), q.config.Name
		d.mu.Unlock()
		if len(batch) == 0 {
			rest(ctx, q.wake, wait)
			continue
		}
		err := attempt(ctx, target, timeout, batch)
		d.settle(ctx, q, name, batch, err)
	}
}

// rest waits for a token, for some time at most.
func rest(ctx context.Context, wake <-chan struct{}, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}

// attempt delivers once. When the context ends it goes on for some time: whoever gives
// up on an attempt can't know whether the alert was taken.
func attempt(ctx context.Context, target target, timeout time.Duration, batch []delivery) error {
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { rest(try, nil, graceful); cancel() })
	defer stop()
	alerts := make([]quota.Alert, len(batch))
	for i := range batch {
		alerts[i] = batch[i].alert
	}
	return target.deliver(try, alerts)
}

// settle notes how an attempt ended.
func (d *Dispatcher) settle(ctx context.Context, q *queue, name string, batch []delivery, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.options.Now()
	log := d.log.With("notifier", name)
	m := newMetrics().of(name)
	if d.queues[name] == q { // otherwise it was removed meanwhile, and its metrics with it
		m = d.metrics.of(name)
	}
	var f *failure
	switch failed := q.fails; {
	case err == nil:
		fresh := q.took(batch, now)
		m.sent.Add(float64(fresh))
		if failed > 0 {
			log.Info("notifier takes alerts again", "failures", failed, "waiting", q.waiting)
		}
	case ctx.Err() != nil:
		q.release(batch) // it was cut short by us
	case errors.As(err, &f) && f.permanent:
		m.failures.Inc()
		given := q.refused(batch)
		m.dropped.Add(float64(given))
		if given > 0 {
			log.Error("notifier refuses an alert; it was dropped", "alert", batch[0].alert.ID, "state", batch[0].alert.State, "err", err)
		}
	default:
		q.failed(batch, err, now)
		m.failures.Inc()
		logFailure := log.Debug
		if q.fails == 1 {
			logFailure = log.Warn
		}
		logFailure("alert could not be delivered; it will be tried again", "alert", batch[0].alert.ID,
			"err", err, "waiting", q.waiting, "pause", q.paused.Sub(now).Round(time.Millisecond))
	}
	m.queue.Set(float64(q.waiting))
}
