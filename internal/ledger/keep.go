// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// accounts is whose usage is kept: *usage.Accounts. Its methods are called from Keep's
// goroutine only.
type accounts interface {
	// Unrecalled returns containers that just started and may have been counted before.
	Unrecalled() []string
	// Recall tells what is kept of a container, nil if nothing. It is not called while
	// that can't be told.
	Recall(id string, kept *usage.Record)
	// Recalls says that there are unrecalled containers: they don't wait for the next flush.
	Recalls() <-chan struct{}
	// Pending returns what changed since it was last written; everything, if all is set.
	Pending(all bool) []usage.Record
	// Written says that records are on disk.
	Written([]usage.Record)
}

// keeper is one run of Keep.
type keeper struct {
	*Ledger
	accounts accounts
	// grace ends a while after Keep's context, so that a disk that hangs does not keep
	// the process from ending.
	grace context.Context

	flushing, recalling, tidying trouble
}

// Keep writes down every 10 s what has changed, and once more when ctx ends. It always
// returns nil: what goes wrong is logged, and tried again.
func (l *Ledger) Keep(ctx context.Context, a accounts) error {
	grace, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(stopWithin):
			cancel()
		case <-grace.Done():
		}
	})()
	k := &keeper{Ledger: l, accounts: a, grace: grace}
	tick := time.NewTicker(l.Interval)
	defer tick.Stop()
	for {
		k.flush()
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				k.flush()
				return nil
			case <-a.Recalls():
				k.recall()
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// flush writes down what has changed, then does what else is due.
func (k *keeper) flush() {
	start := time.Now()
	err := k.work(k.open)
	k.recall()
	var records []usage.Record
	if err == nil {
		records = k.accounts.Pending(k.all)
		err = k.work(func(ctx context.Context) error { return k.write(ctx, records) })
	}
	k.metrics.seconds.Observe(time.Since(start).Seconds())
	k.report(err)
	if err != nil {
		return
	}
	k.accounts.Written(records)
	err = k.work(k.tidy)
	if k.tidying.isNews(err) {
		k.Log.Warn("old usage is not rolled up or pruned", "path", k.Path, "err", err)
	}
}

func (k *keeper) report(err error) {
	k.note(func(s *Status) {
		s.Up, s.Error = err == nil, ""
		if err != nil {
			s.Error = err.Error()
		} else {
			s.LastFlush = k.Clock.Now()
		}
	})
	if err != nil {
		k.metrics.failures.Inc()
	}
	news := k.flushing.isNews(err)
	switch {
	case news && err != nil:
		k.Log.Error("usage is not kept on disk; counting goes on", "path", k.Path, "err", err)
	case news:
		k.Log.Info("usage is kept on disk again", "path", k.Path)
	}
}

// trouble is what was last told of something that is tried again and again.
type trouble string

// isNews says whether an error, or the end of it, was not told yet.
func (t *trouble) isNews(err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	news := text != string(*t)
	*t = trouble(text)
	return news
}

// work has the disk do something and answers recalls meanwhile. It is left alone with
// it when grace ends; [Ledger.Close] waits for it once more.
func (k *keeper) work(do func(context.Context) error) error {
	select {
	case k.disk <- struct{}{}:
	case <-k.grace.Done():
		return errHangs
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-k.disk }()
		done <- do(k.grace)
	}()
	for {
		select {
		case err := <-done:
			return err
		case <-k.accounts.Recalls():
			k.recall()
		case <-k.grace.Done():
			return errHangs
		}
	}
}

var errHangs = errors.New("the disk does not answer")

// recall tells what is kept of the containers that just started.
func (k *keeper) recall() {
	ids := k.accounts.Unrecalled()
	if len(ids) == 0 {
		return
	}
	kept, err := k.lookUp(ids)
	if k.recalling.isNews(err) && err != nil {
		k.Log.Error("what containers had counted before is not known; asking again with each flush", "path", k.Path, "err", err)
	}
	if err != nil {
		return // they are counted, and not written before we know
	}
	for _, id := range ids {
		k.accounts.Recall(id, kept[id])
	}
}

// lookUp finds what is kept of containers, unless the disk takes too long. One that took
// too long is cancelled; [Ledger.Close] waits for it.
func (l *Ledger) lookUp(ids []string) (map[string]*usage.Record, error) {
	type found struct {
		kept map[string]*usage.Record
		err  error
	}
	select {
	case l.recalled <- struct{}{}:
	default:
		return nil, errHangs // an earlier one is still at it
	}
	done := make(chan found, 1)
	ctx, cancel := context.WithTimeout(context.Background(), recallWithin)
	go func() {
		defer cancel()
		defer func() { <-l.recalled }()
		var f found
		select {
		case <-l.tried:
		case <-ctx.Done():
		}
		f.err = l.read(ctx, func(ctx context.Context, file *file) (err error) {
			f.kept, err = l.findRecords(ctx, file.lookup, ids)
			return err
		})
		done <- f
	}()
	select {
	case f := <-done:
		if f.err != nil {
			return nil, fmt.Errorf("look up containers: %w", f.err)
		}
		return f.kept, nil
	case <-ctx.Done():
		return nil, errHangs
	}
}

// open makes the ledger ready to be written, whatever has happened to it.
func (l *Ledger) open(ctx context.Context) error {
	err := l.ready(ctx)
	if err == nil {
		err = l.rest.history(ctx, l)
	}
	if err != nil {
		return fmt.Errorf("open ledger: %w", err)
	}
	return nil
}

// write puts records on the disk, all of them or none.
func (l *Ledger) write(ctx context.Context, records []usage.Record) error {
	all := l.all
	failing := !l.Status().Up
	if len(records) == 0 && !all && !failing && !l.owesPeriods() {
		return nil
	}
	if err := l.writeRecords(ctx, records); err != nil {
		l.failed(err)
		return fmt.Errorf("write usage: %w", err)
	}
	l.all = false
	return nil
}

// failed has the file opened anew, or set aside, if an error calls for it.
func (l *Ledger) failed(err error) {
	if isDamage(err) {
		l.suspect.Store(true)
	}
	l.stale = l.stale || isOutside(err)
}
