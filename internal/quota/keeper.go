// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"math"
	"slices"
	"time"
)

const (
	// saveInterval is the time between two saves of usage. Nothing is lost in between: it
	// is only not known to which period and key it belongs.
	saveInterval = 10 * time.Second
	// saveShare bounds the part of the time that saving takes.
	saveShare = 20
	// patience is how long an alert waits for being saved.
	patience = 500 * time.Millisecond
)

// keeper saves, and hands alerts over, for one Run.
type keeper struct {
	*Engine
	results chan result
	busy    bool
	due     time.Time // usage is to be saved
	retry   time.Time // what was saved is to be loaded again
	since   time.Time // something is in the outbox; zero while nothing is
	trouble string
}

// result is what became of a load or a save.
type result struct {
	documents map[string][]byte
	batch     *batch // nil for a load
	took      time.Duration
	err       error
}

// load loads what was saved, before the first check.
func (k *keeper) load() {
	documents, err := k.Store.Load()
	k.done(result{documents: documents, err: err})
}

// step begins what is due after a check.
func (k *keeper) step(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.outbox) > 0 && k.since.IsZero() {
		k.since = now
	}
	switch {
	case k.busy:
	case !k.loaded && !now.Before(k.retry):
		k.busy, k.retry = true, now.Add(saveInterval)
		go func() { // stop waits for it
			documents, err := k.Store.Load()
			k.results <- result{documents: documents, err: err}
		}()
	case k.loaded:
		k.save(now)
	}
}

// save begins a save if there is something to be saved now.
func (k *keeper) save(now time.Time) {
	urgent := !now.Before(k.due)
	for _, r := range k.rules {
		urgent = urgent || r.dirty && k.trouble == ""
	}
	if !urgent && (len(k.dirty.alerts) == 0 || k.trouble != "") {
		return
	}
	b := k.collect(urgent)
	if len(b.put) == 0 && len(b.drop) == 0 {
		return
	}
	k.busy = true
	go func() { // stop waits for it
		began := time.Now()
		err := k.Store.Save(b.put, b.drop)
		k.results <- result{batch: b, took: time.Since(began), err: err}
	}()
}

// done takes note of what became of a load or a save.
func (k *keeper) done(r result) {
	k.mu.Lock()
	k.busy = false
	if r.batch == nil && r.err == nil {
		k.restore(r.documents)
	}
	if r.batch != nil && r.err != nil {
		k.putBack(r.batch)
	}
	if r.batch != nil && r.batch.all || r.err != nil {
		k.due = time.Now().Add(max(saveInterval, saveShare*r.took))
	}
	k.tellTrouble(r.err)
	k.mu.Unlock()
	switch {
	case r.err != nil:
		k.deliver(everything)
	case r.batch != nil:
		k.deliver(r.batch.sequence)
	}
}

func (k *keeper) tellTrouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == k.trouble:
	case err != nil:
		k.Log.Error("quotas are not kept on disk; checks go on", "err", err)
	default:
		k.Log.Info("quotas are kept on disk again")
	}
	k.trouble = text
}

// patience ends when alerts have waited long enough for being saved.
func (k *keeper) patience() <-chan time.Time {
	if k.since.IsZero() {
		return nil
	}
	return time.After(time.Until(k.since.Add(patience)))
}

const everything = math.MaxUint64

// deliver hands over what is in the outbox, up to a sequence.
func (k *keeper) deliver(upTo uint64) {
	k.mu.Lock()
	n := 0
	for n < len(k.outbox) && k.outbox[n].sequence <= upTo {
		n++
	}
	parcels := k.outbox[:n:n]
	k.outbox = slices.Clone(k.outbox[n:])
	if len(k.outbox) == 0 {
		k.since = time.Time{}
	}
	k.mu.Unlock()
	for _, p := range parcels {
		k.Notify(p.Alert)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range parcels {
		if p.of.sequence == p.sequence {
			p.of.owed = false
			k.dirty.alert(p.of)
		}
	}
}

// stop saves everything, once what is under way has ended.
func (k *keeper) stop() {
	if k.busy {
		k.done(<-k.results)
	}
	k.deliver(everything)
	k.mu.Lock()
	b := k.collect(true)
	loaded := k.loaded
	k.mu.Unlock()
	if !loaded {
		return
	}
	if err := k.Store.Save(b.put, b.drop); err != nil {
		k.Log.Error("quotas are not kept on disk", "err", err)
	}
}
