// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

const (
	saveAtOnce = 256             // threads in one write
	saveAgain  = 5 * time.Second // after an error
)

// storeKey is the key of a thread in the store.
func storeKey(notifier, thread string) string {
	sum := sha256.Sum256([]byte(thread))
	return notifier + "/" + hex.EncodeToString(sum[:16])
}

// keep reads the store and then writes what changes, until the context ends. It alone
// waits for the disk.
func (d *Dispatcher) keep(ctx context.Context) {
	troubled := false
	for ctx.Err() == nil {
		documents, err := d.options.Store.Load()
		if err == nil {
			d.load(documents)
			break
		}
		d.warnOnce(&troubled, "alerts that were queued can't be read", err)
		rest(ctx, nil, saveAgain)
	}
	for ctx.Err() == nil {
		if d.saveAll(&troubled) {
			select {
			case <-ctx.Done():
			case <-d.unsaved:
			}
			continue
		}
		rest(ctx, nil, saveAgain)
	}
}

// finish writes what has changed last. It gives up on a disk that does not answer: then
// keep and its own goroutine outlive Run, until a call of the Store fails, which the ledger
// bounds, or all is written.
func (d *Dispatcher) finish(kept <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-kept
		troubled := false
		if d.hasRead() {
			d.saveAll(&troubled)
		}
	}()
	select {
	case <-done:
	case <-time.After(stopWithin):
		d.log.Warn("queued alerts were not written: the disk does not answer")
	}
}

func (d *Dispatcher) hasRead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.read
}

// saveAll writes all that has changed, and says whether it could.
func (d *Dispatcher) saveAll(troubled *bool) bool {
	for {
		put, drop, taken := d.take()
		if len(taken) == 0 {
			return true
		}
		if err := d.options.Store.Save(put, drop); err != nil {
			d.putBack(taken)
			d.loosen()
			d.warnOnce(troubled, "queued alerts can't be written; they are delivered all the same", err)
			return false
		}
		d.noteKept(taken)
		if *troubled {
			*troubled = false
			d.log.Info("queued alerts are written again")
		}
	}
}

func (d *Dispatcher) warnOnce(troubled *bool, message string, err error) {
	if !*troubled {
		d.log.Warn(message, "err", err)
	}
	*troubled = true
}

// take returns the next that is to be written.
func (d *Dispatcher) take() (put map[string][]byte, drop []string, taken map[string]place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	put, taken = map[string][]byte{}, map[string]place{}
	for key, at := range d.dirty {
		if len(taken) == saveAtOnce {
			break
		}
		delete(d.dirty, key)
		var t *thread
		if q := d.queues[at.notifier]; q != nil {
			t = q.threads[at.thread]
		}
		if t == nil {
			taken[key] = at
			drop = append(drop, key)
			continue
		}
		taken[key] = place{at.notifier, at.thread, t.news}
		value, err := json.Marshal(d.kept(t.saved))
		if err != nil {
			// A number that JSON has no word for. It is delivered, or fails, from memory.
			d.log.Warn("a queued alert can't be written", "notifier", at.notifier, "err", err)
			continue
		}
		put[key] = value
	}
	return put, drop, taken
}

// noteKept notes what is on disk now.
func (d *Dispatcher) noteKept(taken map[string]place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range taken {
		if q := d.queues[at.notifier]; q != nil && q.threads[at.thread] != nil {
			q.kept(q.threads[at.thread], at.news)
		}
	}
	d.lax, d.unkept = false, time.Time{}
	if len(d.dirty) > 0 {
		d.unkept = d.options.Now()
	}
}

// hurry has alerts told that have waited for the disk for too long.
func (d *Dispatcher) hurry() {
	d.mu.Lock()
	late := !d.unkept.IsZero() && d.options.Now().Sub(d.unkept) > keepWithin
	d.mu.Unlock()
	if late {
		d.loosen()
	}
}

// loosen has alerts told that are not on disk, until it works again.
func (d *Dispatcher) loosen() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lax {
		return
	}
	d.lax = true
	for _, q := range d.queues {
		for _, t := range q.threads {
			q.place(t)
		}
		q.poke()
	}
}

// putBack has something written that could not be.
func (d *Dispatcher) putBack(taken map[string]place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(d.dirty, taken)
}

// load adopts what was saved. Some may have been said already.
func (d *Dispatcher) load(documents map[string][]byte) {
	threads := make(map[string]saved, len(documents))
	for key, value := range documents {
		var s saved
		if err := json.Unmarshal(value, &s); err != nil {
			d.log.Warn("a queued alert can't be read; it was dropped", "key", key, "err", err)
		}
		threads[key] = s
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sift(threads) {
		if q := d.queues[s.Notifier]; s.State == q.style.state {
			d.adopt(q, s)
		} else {
			d.convert(q, s)
		}
	}
	for _, q := range d.queues {
		d.show(q)
		q.poke()
	}
	d.read = true
	close(d.loaded)
}

// sift returns what was saved of the notifiers that there are, the oldest first. The
// caller holds mu.
func (d *Dispatcher) sift(threads map[string]saved) []saved {
	var ours []saved
	orphans := map[string]int{}
	for key, s := range threads {
		first, q := s.first(), d.queues[s.Notifier]
		if first == nil || q == nil || storeKey(s.Notifier, q.key(*first)) != key {
			d.dirty[key] = place{} // it goes, or gets another key
		}
		switch {
		case first != nil && q != nil:
			ours = append(ours, d.found(s))
		case first != nil:
			orphans[s.Notifier] += len(s.Pending)
		}
	}
	for name, alerts := range orphans {
		d.log.Info("notifier removed", "notifier", name, "dropped", alerts)
	}
	slices.SortFunc(ours, func(a, b saved) int { return cmp.Compare(a.Seq, b.Seq) })
	return ours
}

// kept is what to save of a thread: the time of day, as far as it can be trusted.
func (d *Dispatcher) kept(s saved) saved {
	if !s.Since.IsZero() {
		now, _ := d.options.TimeOfDay()
		s.Since = now.Round(0).Add(-d.options.Now().Sub(s.Since))
	}
	return s
}

// found undoes kept in another process. Nothing is from the time to come.
func (d *Dispatcher) found(s saved) saved {
	if !s.Since.IsZero() {
		now, _ := d.options.TimeOfDay()
		s.Since = d.options.Now().Add(-max(now.Sub(s.Since), 0))
	}
	return s
}

// first returns the oldest that is known of a thread, nil if nothing is.
func (s saved) first() *quota.Alert {
	switch {
	case s.Told != nil:
		return s.Told
	case len(s.Pending) > 0:
		return &s.Pending[0]
	}
	return nil
}

// adopt puts a saved thread before what was said since. The caller holds mu.
func (d *Dispatcher) adopt(q *queue, s saved) {
	key := q.key(*s.first())
	t := q.threads[key]
	untouched := t == nil
	switch {
	case untouched:
		t = &thread{key: key}
		q.threads[key] = t
	case t.Told != nil || t.delivered:
		return // the disk was so late that it went on without
	}
	later := t.Pending
	t.saved = saved{Notifier: q.config.Name, State: q.style.state, Seq: s.Seq, Told: s.Told, Since: s.Since}
	for _, a := range slices.Concat(s.Pending, later) {
		q.add(t, a)
	}
	q.seq = max(q.seq, s.Seq)
	q.settled(t)
	if untouched {
		d.resolve(q, t)
	}
}

// convert queues up what another kind of notifier was told and what waited for it.
// An Alertmanager is to know all that fires; others know what has happened. The
// caller holds mu.
func (d *Dispatcher) convert(q *queue, s saved) {
	if told := s.Told; told != nil {
		switch {
		case q.style.state && told.State == quota.Firing:
			q.say(*told)
		case !q.style.state:
			d.adopt(q, saved{Seq: s.Seq, Told: told, Since: s.Since})
		}
	}
	for _, a := range s.Pending {
		q.say(a)
	}
}
