// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"math"
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

// everything is a number above all that are drawn.
const everything = math.MaxUint64

// keeper saves, and lets alerts be told, for one Run.
type keeper struct {
	*Engine
	results chan result
	busy    bool
	due     time.Time // usage is to be saved
	retry   time.Time // what was saved is to be loaded again
	waits   time.Time // since when an alert waits for the disk; zero while none does
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

// step begins what is due after a check, or an acknowledgement.
func (k *keeper) step(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ready, last := k.upTo(); last > ready && k.waits.IsZero() {
		k.waits = now
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
	all := !now.Before(k.due)
	for _, r := range k.rules {
		all = all || r.dirty && k.trouble == ""
	}
	if !all && (k.trouble != "" || len(k.book.dirty) == 0 && !k.outbox.dirty()) {
		return
	}
	b := k.collect(all)
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
	defer k.mu.Unlock()
	k.busy = false
	if r.batch == nil && r.err == nil {
		(&restorer{Engine: k.Engine}).restore(r.documents)
	}
	if r.batch != nil && r.err != nil {
		k.putBack(r.batch)
	}
	if r.batch != nil && r.batch.all || r.err != nil {
		k.due = time.Now().Add(max(saveInterval, saveShare*r.took))
	}
	k.tellTrouble(r.err)
	switch {
	case r.err != nil:
		k.publish(everything)
	case r.batch != nil:
		k.publish(r.batch.sequence)
	}
	k.waits = time.Time{} // what came meanwhile begins to wait: the disk answers
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
	if k.waits.IsZero() {
		return nil
	}
	return time.After(time.Until(k.waits.Add(patience)))
}

// giveUp lets alerts be told that have waited long enough for being saved.
func (k *keeper) giveUp() {
	k.publish(everything)
	k.waits = time.Time{}
}

// stop saves everything, once what is under way has ended, and lets it be told: at the end, too,
// alerts wait no longer than patience for a disk that hangs.
func (k *keeper) stop() {
	k.await()
	if k.loaded {
		k.due = time.Time{}
		k.step(time.Now())
		k.await()
	}
	k.publish(everything)
}

// await waits for the load or save that is under way.
func (k *keeper) await() {
	for k.busy {
		select {
		case r := <-k.results:
			k.done(r)
		case <-k.patience():
			k.giveUp()
		}
	}
}

// Flush saves everything. Call it when Run has returned and nobody acknowledges deliveries any
// more, so that none is told again after the next start. A store that fails is logged.
func (e *Engine) Flush() { (&keeper{Engine: e}).flush() }

func (k *keeper) flush() {
	k.mu.Lock()
	b, loaded := k.collect(true), k.loaded
	k.mu.Unlock()
	if !loaded || len(b.put)+len(b.drop) == 0 {
		return
	}
	if err := k.Store.Save(b.put, b.drop); err != nil {
		k.Log.Error("quotas are not kept on disk", "err", err)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.putBack(b)
	}
}
