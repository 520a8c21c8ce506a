// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
)

// life is a random history: keys that use something, two notifiers that are told by delivery,
// and a process that is killed between any two steps.
type life struct {
	*bench
	t       *testing.T
	random  *rand.Rand
	pending *result // of a save that is under way

	used    map[string]uint64            // in the running period, by name
	reached map[string]map[string]bool   // "start name level", which is reached, by name
	told    map[string]map[string][]told // by notifier, then id
	last    map[string]uint64            // number of the last delivery, by notifier
	open    map[string]bool              // taken and not known to be acknowledged on disk: "notifier key"
	doubted map[string]int               // kills since, by the same
}

// told is what a notifier was told of an alert.
type told struct {
	state string
	start time.Time
}

const (
	names     = 3
	lifeLimit = 1000
)

var lifeLevels = []int{20, 50, 80, 100}

func newLife(t *testing.T, seed uint64) *life {
	l := &life{
		t: t, random: rand.New(rand.NewPCG(seed, 3)), used: map[string]uint64{}, reached: map[string]map[string]bool{},
		told: map[string]map[string][]told{"ops": {}, "pager": {}}, last: map[string]uint64{},
		open: map[string]bool{}, doubted: map[string]int{},
	}
	l.bench = newBench(t, monthly(every(Hourly), func(r *Rule) {
		r.AlertAt, r.Notify = lifeLevels, []string{"ops", "pager", "am"}
	}))
	l.pass(0)
	for i := range names {
		l.start(fmt.Sprint("id", i), fmt.Sprint("n", i))
	}
	l.pass(time.Second)
	return l
}

// use lets a key use something, and notes which levels that reaches.
func (l *life) use() {
	i := l.random.IntN(names)
	n, name := uint64(l.random.IntN(lifeLimit/3)), fmt.Sprint("n", i)
	l.transmit(fmt.Sprint("id", i), n)
	l.used[name] += n
	for _, level := range lifeLevels {
		if l.used[name] >= uint64(level)*lifeLimit/100 {
			id := fmt.Sprintf("m/%s/%s/%d", name, l.now.Truncate(time.Hour).Format(time.RFC3339), level)
			if l.reached[name] == nil {
				l.reached[name] = map[string]bool{}
			}
			l.reached[name][id] = true
		}
	}
}

// take is an attempt at the next delivery of a notifier. The answer may be lost with the process.
func (l *life) take(notifier string, dies bool) {
	d, ok := l.engine.Next(notifier, 0)
	if !ok {
		return
	}
	if l.store.documents[d.key()] == nil || l.store.documents[alertKey(d.Alert.ID)] == nil {
		l.t.Fatalf("%s is told and not on disk", d.Alert.ID)
	}
	key := notifier + " " + d.Alert.ID + " " + d.Alert.State
	before := l.told[notifier][d.Alert.ID]
	if i := slices.IndexFunc(before, func(b told) bool { return b.state == d.Alert.State }); i >= 0 {
		if l.doubted[key] == 0 {
			l.t.Fatalf("%s again, and no kill explains it", key)
		}
		l.doubted[key]--
		if !before[i].start.Equal(d.Alert.StartsAt) {
			l.t.Fatalf("%s again, with another key", key)
		}
	} else {
		if d.Number < l.last[notifier] {
			l.t.Fatalf("%s is out of order", key)
		}
		l.told[notifier][d.Alert.ID] = append(before, told{d.Alert.State, d.Alert.StartsAt})
	}
	l.last[notifier] = d.Number
	l.open[key] = true
	if dies {
		l.kill()
		return
	}
	l.engine.Done(d, false)
}

// begin begins a save, which may fail, or be killed before anybody knows.
func (l *life) begin(all bool) {
	if l.pending != nil {
		return
	}
	if l.keeper.due = time.Now().Add(time.Hour); all {
		l.keeper.due = time.Time{}
	}
	l.keeper.trouble = ""
	acked := len(l.engine.gone)
	l.keeper.step(time.Now())
	if l.keeper.busy {
		r := <-l.keeper.results
		l.pending = &r
		if acked > 0 {
			clear(l.open)
		}
	}
}

func (l *life) end() {
	if l.pending != nil {
		l.keeper.done(*l.pending)
		l.pending = nil
	}
}

func (l *life) kill() {
	for key := range l.open {
		l.doubted[key] = 1
	}
	clear(l.open)
	clear(l.last)
	l.pending = nil
	l.restart()
	l.check(time.Second)
}

// turn lets the period end, once all that was used is saved in it.
func (l *life) turn() {
	l.end()
	l.check(0)
	l.save2()
	l.now = l.now.Truncate(time.Hour).Add(time.Hour + time.Minute)
	l.check(0)
	clear(l.used)
}

// save2 saves everything.
func (l *life) save2() {
	for range 2 {
		l.begin(true)
		l.end()
	}
}

// Whatever is killed: each level that is reached is told each notifier once, or again with the
// same key where a kill came before its note, after it is on disk, in order, and so is its end.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(need.Tries(200)) {
		l := newLife(t, seed)
		for range 300 {
			switch n := l.random.IntN(100); {
			case n < 20:
				l.use()
			case n < 40:
				l.check(time.Second)
			case n < 55:
				l.begin(l.random.IntN(4) == 0)
			case n < 70:
				l.end()
			case n < 92:
				l.take([]string{"ops", "pager"}[n%2], n == 91)
			case n < 97:
				l.kill()
			case n < 98:
				l.turn()
			default:
				l.rules = slices.Clone(l.rules) // a reload
			}
		}
		l.turn()
		l.save2()
		for range 2000 {
			l.take("ops", false)
			l.take("pager", false)
		}
		l.compare(seed)
	}
}

// compare holds what was told against what was reached, all of which is over.
func (l *life) compare(seed uint64) {
	for notifier, alerts := range l.told {
		for name, ids := range l.reached {
			for id := range ids {
				var states []string
				for _, told := range alerts[id] {
					states = append(states, told.state)
				}
				if !slices.Equal(states, []string{Firing, Resolved}) {
					l.t.Errorf("seed %d: %s was told of %s: %q", seed, notifier, id, states)
				}
			}
			for id := range alerts {
				if strings.HasPrefix(id, "m/"+name+"/") && !ids[id] {
					l.t.Errorf("seed %d: %s was told of %s, which nothing reached", seed, notifier, id)
				}
			}
		}
	}
	if l.t.Failed() {
		l.t.FailNow()
	}
}
