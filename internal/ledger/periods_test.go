// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// byDay are periods of a day in UTC.
func byDay(by ...string) *Periods {
	return &Periods{
		Bounds: func(t time.Time) (start, end time.Time) {
			start = t.UTC().Truncate(day)
			return start, start.Add(day)
		},
		Name: func(start time.Time) string { return start.Format("01-02") },
		By:   by,
		Keep: 2 * day,
		Keys: 100,
	}
}

func withPeriods(t testing.TB, by ...string) *bench {
	b := newBench(t)
	b.periods = byDay(by...)
	return b
}

// totals are what is shown, as "<period> <values of the key> <bytes received>".
func (b *bench) shown() (lines []string) {
	b.t.Helper()
	for _, t := range b.Totals().Totals {
		var values []string
		for _, by := range slices.Sorted(func(yield func(string) bool) {
			for key := range t.Key {
				if !yield(key) {
					return
				}
			}
		}) {
			values = append(values, t.Key[by])
		}
		if t.Transmit != 3*t.Receive {
			b.t.Errorf("%s %q: received %d, transmitted %d", t.Period, values, t.Receive, t.Transmit)
		}
		lines = append(lines, strings.Join(append(append([]string{t.Period}, values...), fmt.Sprint(t.Receive)), " "))
	}
	return lines
}

func inNamespace(r usage.Record, namespace string) usage.Record {
	r.Namespace = namespace
	return r
}

// Totals are the history's, over restarts and the ends of containers, and the periods that end.
func TestPeriodTotals(t *testing.T) {
	b := withPeriods(t, ByNamespace, ByName)
	b.flush(inNamespace(record("a1", "web", 100), "prod"), inNamespace(record("b2", "db", 50), "prod"))
	id := b.Totals().Ledger
	same(t, b.shown(), []string{"03-10 db prod 50", "03-10 web prod 100"})
	b.restart()
	same(t, b.Totals().Ledger, "") // nothing was read yet
	b.flush()
	same(t, b.Totals().Ledger, id)
	same(t, b.shown(), []string{"03-10 db prod 50", "03-10 web prod 100"})
	// It ends, and another one goes on under its name; a renamed one leaves what it had.
	b.flush(stopped(inNamespace(record("a1", "web", 130), "prod"), b.now))
	b.flush(inNamespace(record("c3", "web", 20), "prod"), inNamespace(record("b2", "store", 60), "prod"))
	same(t, b.shown(), []string{"03-10 db prod 50", "03-10 store prod 10", "03-10 web prod 150"})
	b.pass(day)
	b.flush(inNamespace(record("c3", "web", 27), "prod"))
	same(t, b.shown(), []string{"03-10 db prod 50", "03-10 store prod 10", "03-10 web prod 150", "03-11 web prod 7"})
	same(t, b.received(Query{By: ByName}), []string{
		"03-10 00:00 db 50", "03-10 00:00 store 10", "03-10 00:00 web 150", "03-11 00:00 web 7",
	})
	// Kept for two days after the end.
	b.pass(2*day - 13*time.Hour)
	b.flush(inNamespace(record("c3", "web", 28), "prod"))
	same(t, len(b.shown()), 4+1)
	b.pass(2 * time.Hour)
	b.flush(inNamespace(record("c3", "web", 29), "prod"))
	same(t, b.shown(), []string{"03-11 web prod 7", "03-12 web prod 1", "03-13 web prod 1"})
}

// A total never goes back, however names change, and each byte is in one total.
func TestPeriodsNeverGoBack(t *testing.T) {
	b := withPeriods(t, ByNamespace, ByName)
	b.flush(record("old", "old", 0))
	b.pass(namedWithin)
	before := map[string]uint64{}
	look := func(when string, sum uint64) {
		t.Helper()
		now, all := map[string]uint64{}, uint64(0)
		for _, total := range b.Totals().Totals {
			now[total.Period+fmt.Sprint(total.Key)] = total.Receive
			all += total.Receive
		}
		for key, n := range before {
			if now[key] < n {
				t.Errorf("%s: %s went from %d to %d", when, key, n, now[key])
			}
		}
		same(t, all, sum)
		before = now
	}
	unnamed := func(id string, n uint64) usage.Record {
		r := record(id, "", n)
		r.StartedAt = b.now
		return r
	}
	b.flush(unnamed("a1", 100), unnamed("b2", 10))
	look("without a name it is not shown", 0)
	b.restart()
	b.flush(inNamespace(record("a1", "web", 140), "prod"))
	look("named", 140)
	b.pass(namedWithin)
	b.flush()
	look("one without a name for long is shown by its id", 150)
	b.flush(inNamespace(record("b2", "late", 12), "prod"))
	look("named late", 152)
	b.flush(inNamespace(record("a1", "web2", 150), "dev"))
	look("renamed", 162)
	same(t, b.shown(), []string{"03-10 b2  10", "03-10 late prod 2", "03-10 web prod 140", "03-10 web2 dev 10"})
	same(t, b.total()[0], int64(162))
}

// A flush that fails adds nothing; what it was to add comes with the next one.
func TestPeriodsAfterFailure(t *testing.T) {
	b := withPeriods(t, ByName)
	b.flush(record("a1", "web", 100))
	if _, err := b.file.write.Exec("CREATE TRIGGER full BEFORE INSERT ON hours BEGIN SELECT RAISE(ABORT, 'full'); END"); err != nil {
		t.Fatal(err)
	}
	if err := b.attempt(record("a1", "web", 150)); err == nil {
		t.Fatal("flushed")
	}
	same(t, b.shown(), []string{"03-10 web 100"})
	if _, err := b.file.write.Exec("DROP TRIGGER full"); err != nil {
		t.Fatal(err)
	}
	b.flush(record("a1", "web", 170))
	same(t, b.shown(), []string{"03-10 web 170"})
}

// While the clock is not trusted no period ends and none begins, also after a restart.
func TestPeriodsWrongClock(t *testing.T) {
	b := withPeriods(t, ByName)
	b.flush(record("a1", "web", 100))
	for i, off := range []time.Duration{30 * day, -30 * day} {
		b.off = off
		b.flush(record("a1", "web", uint64(110+20*i)))
		if state := b.Clock.State(); state == wallclock.Agrees {
			t.Fatalf("off by %s: %s", off, state)
		}
		b.restart()
		b.flush(record("a1", "web", uint64(120+20*i)))
	}
	// By the time since the last write it is the next day, but nothing says that this is right.
	b.pass(13 * time.Hour)
	b.flush(record("a1", "web", 150))
	same(t, b.shown(), []string{"03-10 web 150"})
	b.off = 0
	b.flush(record("a1", "web", 151))
	same(t, b.Clock.State(), wallclock.Agrees)
	same(t, b.shown(), []string{"03-10 web 150", "03-11 web 1"})
}

// Too many keys are counted together, and a key that has a total of its own keeps it.
func TestPeriodsLimit(t *testing.T) {
	b := withPeriods(t, ByName)
	b.periods.Keys = 2
	b.flush(record("a1", "a", 1))
	b.flush(record("b2", "b", 2))
	b.flush(record("c3", "c", 4), record("d4", "d", 8), record("a1", "a", 2))
	same(t, b.shown(), []string{"03-10 a 2", "03-10 b 2", "03-10 ~others 12"})
	same(t, b.Totals().Beyond, 2)
	b.restart()
	b.flush(record("c3", "c", 5), record("b2", "b", 3))
	same(t, b.shown(), []string{"03-10 a 2", "03-10 b 3", "03-10 ~others 13"})
	same(t, b.Totals().Beyond, 1)
	b.restart()
	b.flush()
	same(t, b.Totals().Beyond, 1) // at least
}

// By labels; a user's are kept apart from root's, and one named like the others is among them.
func TestPeriodsByLabel(t *testing.T) {
	b := withPeriods(t, LabelPrefix+"team")
	of := func(r usage.Record, team string) usage.Record {
		r.Labels = map[string]string{"team": team, "other": "x"}
		return r
	}
	b.periods.Keys = 3
	b.flush(of(record("a1", "web", 1), "red"), of(record("1000~a1", "1000~web", 2), "red"), record("c3", "none", 4))
	b.flush(of(record("d4", "x", 8), "~others"), of(record("e5", "y", 16), "late"))
	same(t, b.shown(), []string{"03-10  4", "03-10 1000~red 2", "03-10 red 1", "03-10 ~others 24"})
}

// Turned on for the first time, they begin with what the history has of the running period.
func TestPeriodsBegin(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.pass(day)
	b.flush(record("a1", "web", 130))
	b.dropPeriods()
	if _, err := b.file.write.Exec("PRAGMA user_version = 5"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.flush(record("a1", "web", 140))
	same(t, b.Totals(), PeriodTotals{})
	b.periods = byDay(ByName)
	b.flush() // there is something to do without usage, too
	same(t, b.shown(), []string{"03-11 web 40"})
	b.flush(record("a1", "web", 150))
	same(t, b.shown(), []string{"03-11 web 50"})
	// By something else from now on: what was counted stays where it is.
	b.periods = byDay(ByNamespace)
	b.flush(inNamespace(record("a1", "web", 157), "prod"))
	same(t, b.shown(), []string{"03-11 web 50", "03-11 prod 7"})
	if id := b.Totals().Ledger; len(id) != 36 {
		t.Errorf("ledger %q", id)
	}
}

// A ledger that was set aside is another one afterwards: its totals stay with its UUID, and none of
// them come again under the new one's.
func TestPeriodsOfDamagedLedger(t *testing.T) {
	b := withPeriods(t, ByName)
	b.flush(record("a1", "web", 100))
	id := b.Totals().Ledger
	b.suspect.Store(true)
	b.flush(record("a1", "web", 120))
	checkSetAside(b, 1)
	if got := b.Totals().Ledger; got == id || got == "" {
		t.Errorf("ledger %q, was %q", got, id)
	}
	same(t, b.shown(), []string{"03-10 web 20"})
	same(t, b.total()[0], int64(120))
	b.restart()
	b.flush(record("a1", "web", 125))
	same(t, b.shown(), []string{"03-10 web 25"})
}
