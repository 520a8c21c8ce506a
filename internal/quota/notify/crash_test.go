// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/quota"
)

// world is a caller with state of its own, a dispatcher and a receiver, of which all
// but the receiver can be killed between any two steps.
type world struct {
	*bench
	t      *testing.T
	random *rand.Rand
	now    time.Time
	store  *memory

	// The caller's state, in memory and on its disk: which alerts fire, since when, and
	// how often they have.
	firing, durable map[string]quota.Alert
	turns           map[string]int

	received map[string][]string // keys of deliveries, with their state, by alert
	expected map[string][]string // as it was said, by alert
	fresh    map[string]bool     // alerts that began since the last save
	killed   map[string]bool     // deliveries that were under way, or not yet noted, at a kill
	unsaved  map[string]bool     // deliveries that are not yet noted
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), store: newMemory(), now: start,
		firing: map[string]quota.Alert{}, durable: map[string]quota.Alert{}, turns: map[string]int{},
		received: map[string][]string{}, expected: map[string][]string{},
		fresh: map[string]bool{}, killed: map[string]bool{}, unsaved: map[string]bool{},
	}
	w.bench = newBench(t, w.store, hook("a"))
	w.begin()
	return w
}

// begin is a start of the process: the store is read, and the caller says what fires.
func (w *world) begin() {
	w.options.Now = func() time.Time { return w.now }
	w.log.buf.Reset()
	documents, err := w.store.Load()
	if err != nil {
		w.t.Fatal(err)
	}
	early := w.random.IntN(2) == 0
	if early {
		w.Reconcile(slices.Collect(maps.Values(w.firing)))
	}
	w.load(documents)
	if !early {
		w.Reconcile(slices.Collect(maps.Values(w.firing)))
	}
}

// turn has an alert fire, or end. Each turn is another alert, so that a receiver can
// tell them apart.
func (w *world) turn(name string) {
	a, fires := w.firing[name]
	if fires {
		a.State, a.EndsAt = quota.Resolved, w.now
		delete(w.firing, name)
	} else {
		w.turns[name]++
		a = firing(fmt.Sprint(name, "/", w.turns[name]), "a")
		a.StartsAt = w.now
		w.firing[name] = a
		w.fresh[a.ID] = true
	}
	w.Send(a)
	w.expected[a.ID] = append(w.expected[a.ID], a.State)
}

// deliver is an attempt, whose answer may never be seen.
func (w *world) deliver(fails, dies bool) {
	q := w.queues["a"]
	batch, _ := q.next(w.now)
	if len(batch) == 0 {
		return
	}
	key := deliveryKey(batch[0].alert, "host-1")
	if !fails {
		w.received[batch[0].alert.ID] = append(w.received[batch[0].alert.ID], key+" "+batch[0].alert.State)
		w.unsaved[key] = true
	}
	switch {
	case dies:
		w.kill()
	case fails:
		q.failed(batch, errAway, w.now)
	default:
		q.took(batch, w.now)
	}
}

// save writes what has changed; a process may die before that or after.
func (w *world) save() {
	put, drop, taken := w.take()
	if w.random.IntN(10) == 0 {
		w.putBack(taken)
		return
	}
	if err := w.store.Save(put, drop); err != nil {
		w.t.Fatal(err)
	}
	w.noteKept(taken)
	clear(w.unsaved)
	clear(w.fresh)
	if w.random.IntN(2) == 0 { // the caller's disk has an order of its own
		w.durable = maps.Clone(w.firing)
	}
}

// kill loses all that is in memory, the caller's state too.
func (w *world) kill() {
	for key := range w.unsaved {
		w.killed[key] = true
	}
	clear(w.unsaved)
	// A caller that is killed sees again what fires, but not that it has for long.
	fires := map[string]bool{}
	for name, a := range w.firing {
		if w.durable[name].ID != a.ID {
			a.StartsAt = w.now
			w.firing[name] = a
		}
		fires[a.ID] = true
	}
	// What began and ended since the last save was in no memory but this one.
	for id := range w.fresh {
		if fires[id] {
			continue
		}
		delete(w.fresh, id)
		if len(w.received[id]) > 0 {
			w.t.Errorf("%s was told before it was saved", id)
		}
		delete(w.expected, id)
	}
	w.restart()
	w.begin()
}

// Nothing is lost and all comes in its order, wherever the process is killed; and what
// comes twice had not been noted at a kill, and has the same key.
func TestKilledAnywhere(t *testing.T) {
	for seed := range uint64(100) {
		w := newWorld(t, seed)
		kills := 0
		for range 400 {
			w.now = w.now.Add(time.Duration(w.random.IntN(int(time.Minute))))
			switch n := w.random.IntN(100); {
			case n < 25:
				w.turn(fmt.Sprint("quota", w.random.IntN(5)))
			case n < 75:
				w.deliver(n < 35, n == 74)
			case n < 97:
				w.save()
			default:
				w.kill()
				kills++
			}
		}
		for i := 0; i < 2000 && w.queues["a"].waiting > 0; i++ { // more than was said
			w.now = w.now.Add(skipFor)
			w.save()
			w.deliver(false, false)
		}
		if kills == 0 {
			t.Errorf("seed %d: nothing was killed", seed)
		}
		w.compare(seed)
		if t.Failed() {
			return
		}
	}
}

// compare checks what was received against what was said.
func (w *world) compare(seed uint64) {
	for id, want := range w.expected {
		var got []string
		seen := map[string]bool{}
		for _, delivery := range w.received[id] {
			key, state, _ := strings.Cut(delivery, " ")
			if seen[key] && !w.killed[key] {
				w.t.Errorf("seed %d: %s %s came twice, and no kill explains it", seed, id, state)
			}
			if !seen[key] {
				got = append(got, state)
			}
			seen[key] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Errorf("seed %d: %s (-said +received):\n%s", seed, id, diff)
		}
	}
}
