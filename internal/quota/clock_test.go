// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
)

func TestClockSetBack(t *testing.T) {
	b := newBench(t, monthly(every(Daily)))
	b.start("a1", "web")
	b.now = time.Date(2026, 11, 25, 0, 10, 0, 0, time.UTC)
	b.pass(0)
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.took()

	// Over midnight: the day that was begun goes on, and no other is opened.
	b.now = time.Date(2026, 11, 24, 23, 50, 0, 0, time.UTC)
	b.transmit("a1", 100)
	b.pass(0)
	b.restart()
	b.pass(20 * time.Minute)
	same(t, b.took(), []string(nil))
	same(t, b.used(), map[string]uint64{"m/web": 700})

	// From far: the running day ends with the calendar's, and what fired has fired.
	b.now = time.Date(2099, 1, 1, 12, 0, 0, 0, time.UTC)
	b.transmit("a1", 500)
	b.pass(0)
	same(t, b.took(), []string{"m web 50 resolved", "m web 50 firing"})
	b.now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	b.pass(0)
	same(t, b.took(), []string(nil))
	same(t, logged(b, "the clock was set back by more than a period"), 1)
	b.transmit("a1", 300)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 80 firing"})
	s := b.engine.Status()[0]
	if !s.PeriodEnd.Equal(time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)) || s.Used != 800 {
		t.Errorf("status %+v", s)
	}
	b.now = s.PeriodEnd
	b.pass(0)
	same(t, b.took(), []string{"m web 50 resolved", "m web 80 resolved"})
	same(t, b.used(), map[string]uint64{"m/web": 0})
}

// Another billing day, or zone: what was used stays, and the running period ends with the
// calendar's next one.
func TestBillingDayChanged(t *testing.T) {
	for _, test := range []struct {
		from, to int
		end      string
	}{
		{1, 15, "2026-12-15T00:00:00Z"}, {1, 20, "2026-11-20T00:00:00Z"}, {1, 31, "2026-11-30T00:00:00Z"},
		{31, 1, "2026-12-01T00:00:00Z"}, {15, 18, "2026-12-18T00:00:00Z"},
	} {
		t.Run(fmt.Sprint(test.from, " to ", test.to), func(t *testing.T) {
			on := func(day int) Rule { return monthly(func(r *Rule) { r.Period.Day = day }) }
			b := newBench(t, on(test.from))
			b.pass(0)
			began := b.engine.rules["m"].start
			b.start("a1", "web")
			b.transmit("a1", 850)
			b.pass(time.Second)
			b.took()
			b.rules = []Rule{on(test.to)}
			if test.to%2 == 0 {
				b.restart()
			}
			b.pass(time.Second)
			s := b.engine.Status()[0]
			if s.Used != 850 || !s.PeriodStart.Equal(began) || !s.PeriodEnd.Equal(at(t, test.end)) {
				t.Errorf("%+v", s)
			}
			same(t, b.took(), []string(nil))
			b.transmit("a1", 50)
			b.now = s.PeriodEnd.Add(-1)
			b.pass(0)
			same(t, b.used()["m/web"], uint64(900))
			b.transmit("a1", 7)
			b.pass(1)
			same(t, b.used()["m/web"], uint64(7))
			same(t, b.took(), []string{"m web 50 resolved", "m web 80 resolved"})
		})
	}
}

// Periods that were changed while nettally was down, over the end of the running one: that
// has ended, and the next one is of the new kind.
func TestPeriodsChangedWhileDown(t *testing.T) {
	in := zone(t, "Asia/Tokyo")
	b := newBench(t, monthly(every(Daily)))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 700)
	b.pass(time.Second)
	b.took()
	b.rules[0].Period.Location = in
	b.transmit("a1", 400)
	b.restart()
	b.pass(4 * 24 * time.Hour)
	same(t, b.took(), []string{"m web 50 resolved"})
	same(t, b.used(), map[string]uint64{"m/web": 400})
	s := b.engine.Status()[0]
	same(t, s.PeriodStart.Equal(time.Date(2026, 11, 22, 0, 0, 0, 0, in)), true)
	same(t, s.PeriodEnd.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, in)), true)
}

// ledgers are what every byte should be found in: the sum of what the periods of a rule
// had when they ended, and of the one that runs.
type ledgers struct {
	b      *bench
	before map[string]Status
	closed map[string]float64
}

// look takes note of periods that have ended since.
func (l *ledgers) look(t *testing.T) {
	now := map[string]Status{}
	for _, s := range l.b.engine.Status() {
		now[s.Quota+"/"+s.Key] = s
	}
	for key, was := range l.before {
		is, there := now[key]
		// With a clock that is set back by far, the running period goes on with another start.
		if !there || is.PeriodStart.After(was.PeriodStart) {
			l.closed[key] += was.Used
			if there && is.PeriodStart.Before(was.PeriodEnd) {
				t.Fatalf("%s: a period began at %s, before the end of the last at %s", key, is.PeriodStart, was.PeriodEnd)
			}
		} else if is.Used < was.Used {
			t.Fatalf("%s: used %g, then %g in the same period", key, was.Used, is.Used)
		}
	}
	l.before = now
}

// Whatever happens, each byte is in one period: not in two, and not in none.
func TestNoByteTwiceOrNever(t *testing.T) {
	for seed := range uint64(need.Tries(150)) {
		random := rand.New(rand.NewPCG(seed, 7))
		in := zone(t, zones[random.IntN(len(zones))])
		rules := []Rule{monthly(named("all"), per(PerAll)), monthly(named("name"))}
		for i := range rules {
			rules[i].Period = Period{Every: []Every{Hourly, Daily, Weekly, Monthly}[random.IntN(4)], Day: 1 + random.IntN(31), Location: in}
		}
		b := newBench(t, rules...)
		b.pass(0)
		l := &ledgers{b: b, closed: map[string]float64{}}
		total := map[string]uint64{}
		for i := range 3 {
			b.start(fmt.Sprint("id", i), fmt.Sprint("name", i))
		}
		next := 3
		for range 120 {
			n := random.IntN(len(b.containers))
			id, name := b.containers[n].ID, b.containers[n].Name
			switch random.IntN(8) {
			case 0: // killed; what was not saved is found again
				amount := uint64(random.IntN(1000))
				b.transmit(id, amount)
				total["name/"+name] += amount
				total["all/all"] += amount
				b.check(time.Second)
				b.restart()
			case 1: // made anew under its name
				b.pass(0)
				l.look(t)
				b.remove(id)
				id = fmt.Sprint("id", next)
				b.start(id, name)
				next++
			case 2: // the disk fails for a while
				b.store.fail(errDisk)
				b.pass(time.Second)
				b.store.fail(nil)
			case 3:
				b.now = b.now.Add(-time.Duration(random.Int64N(int64(time.Hour))))
			case 4:
				b.pass(0) // who is first seen after days was forgotten
				l.look(t)
				b.now = b.now.Add(time.Duration(random.Int64N(int64(20 * 24 * time.Hour))))
			case 5: // reload of the same
				b.rules = append([]Rule{}, b.rules...)
			}
			amount := uint64(random.IntN(1000))
			b.transmit(id, amount)
			total["name/"+name] += amount
			total["all/all"] += amount
			b.check(time.Duration(random.Int64N(int64(time.Minute))))
			l.look(t)
			// What is looked at is saved, so that the model need not look into what is not.
			b.save()
		}
		for key, want := range total {
			if got := l.closed[key] + l.before[key].Used; got != float64(want) {
				t.Fatalf("seed %d: %s: %g in all periods, and %d was used", seed, key, got, want)
			}
		}
	}
}
