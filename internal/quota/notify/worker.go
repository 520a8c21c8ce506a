// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

const (
	pauseFirst    = time.Second // after a failure; doubles with each
	pauseLast     = time.Minute
	pauseLeast    = 100 * time.Millisecond
	retryAfterMax = time.Hour // no server makes us wait longer
	idle          = time.Hour // until something changes
)

// target is where alerts go.
type target interface {
	// deliver returns nil once all alerts were taken. The error may be a *failure;
	// any other may pass.
	deliver(ctx context.Context, alerts []quota.Alert) error
	// close lets go of idle connections.
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

// outcome is how an attempt ended.
type outcome uint8

const (
	taken   outcome = iota
	refused         // these alerts will never be taken
	alone           // it failed, and others might not
	away            // it failed, as any other would
	cut             // we are ending, and did not wait for it
)

// teller tells one notifier.
type teller interface {
	// round tells what is to be told now, and returns how long to wait at most for the next
	// round, 0 for not at all. Once the context ends no attempt is worth its while.
	round(ctx context.Context) time.Duration
}

// worker tells one notifier, in one goroutine.
type worker struct {
	config Config
	target target
	source Source
	log    *slog.Logger
	series *series
	now    func() time.Time
	fails  int // attempts in a row that failed
}

// run tells until life ends. If that is since stop has ended, what is there to be told still is,
// unless the notifier fails; hard ends those attempts.
func (w *worker) run(life, stop, hard context.Context, t teller) {
	defer w.target.close()
	defer w.series.waiting.Store(0)
	for life.Err() == nil {
		changed := w.source.Changed()
		wait := t.round(hard)
		if w.fails > 0 {
			changed = nil // it is left alone for as long
		}
		if wait > 0 {
			rest(life, changed, wait)
		}
	}
	for stop.Err() != nil && hard.Err() == nil && w.fails == 0 && t.round(hard) == 0 {
	}
}

// rest waits for a channel, for some time at most.
func rest(ctx context.Context, wake <-chan struct{}, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}

// attempt tells once. An attempt that has begun is not given up but by its timeout: nobody would
// know whether the alerts were taken.
func (w *worker) attempt(ctx context.Context, alerts []quota.Alert) (outcome, error) {
	try, cancel := context.WithTimeout(ctx, w.config.timeout())
	defer cancel()
	err := w.target.deliver(try, alerts)
	var f *failure
	switch {
	case err == nil:
		if w.fails > 0 {
			waiting, _ := w.source.Waiting(w.config.Name)
			w.log.Info("notifier takes alerts again", "failures", w.fails, "waiting", waiting)
		}
		w.fails = 0
		return taken, nil
	case ctx.Err() != nil:
		return cut, err
	}
	w.series.failures.Add(1)
	switch {
	case errors.As(err, &f) && f.permanent:
		w.fails = 0
		return refused, err
	case f != nil && f.everyone:
		return away, err
	}
	return alone, err
}

// pause notes that telling failed, and returns how long to leave the notifier alone.
func (w *worker) pause(a quota.Alert, why error) time.Duration {
	w.fails++
	pause := backOff(w.fails)
	if f := (*failure)(nil); errors.As(why, &f) {
		pause = max(pause, min(f.after, retryAfterMax))
	}
	logFailure := w.log.Debug
	if w.fails == 1 {
		logFailure = w.log.Warn
	}
	waiting, _ := w.source.Waiting(w.config.Name)
	logFailure("alert could not be delivered; it will be tried again", "alert", a.ID, "err", why,
		"waiting", waiting, "pause", pause.Round(time.Millisecond))
	return pause
}

// backOff returns how long to wait after so many failures in a row: a random part of
// a time that doubles, so that many hosts do not come back all at once.
func backOff(fails int) time.Duration {
	longest := pauseLast
	if fails < 7 {
		longest = pauseFirst << (fails - 1)
	}
	return pauseLeast + rand.N(longest)
}
