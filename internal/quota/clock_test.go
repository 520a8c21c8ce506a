// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/wallclock"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// An hour back over midnight, and years ahead for a moment: the running day goes on.
func TestClockSetBack(t *testing.T) {
	b := newBench(t, monthly(every(Daily)))
	b.start("a1", "web")
	b.now = time.Date(2026, 11, 25, 0, 10, 0, 0, time.UTC)
	b.pass(0)
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.took()

	b.host.off = -20 * time.Minute
	b.transmit("a1", 100)
	b.pass(0)
	b.restart()
	b.pass(20 * time.Minute)
	same(t, b.took(), []string(nil))
	same(t, b.used(), map[string]uint64{"m/web": 700})

	b.host.off = 73 * year
	b.transmit("a1", 500)
	b.pass(0)
	same(t, b.took(), []string{"m web 80 firing", "m web 100 firing"})
	b.host.off = 0
	b.transmit("a1", 300)
	b.pass(time.Second)
	same(t, b.took(), []string(nil))
	same(t, logged(b, "the clock jumped ahead"), 1)
	s := b.engine.Status()[0]
	if !s.PeriodEnd.Equal(time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)) || s.Used != 1500 {
		t.Errorf("status %+v", s)
	}
	b.now = s.PeriodEnd
	b.pass(0)
	same(t, b.took(), []string{"m web 50 resolved", "m web 80 resolved", "m web 100 resolved"})
	same(t, b.used(), map[string]uint64{"m/web": 0})
}

// A host without a real-time clock boots years behind until NTP corrects it.
func TestNoRTC(t *testing.T) {
	for _, synced := range []bool{false, true} {
		b := newBench(t, monthly(every(Monthly)))
		b.start("a1", "web")
		b.pass(0)
		b.transmit("a1", 850)
		b.pass(time.Second)
		same(t, b.took(), []string{"m web 50 firing", "m web 80 firing"})

		b.reboot(2*day, -2*year)
		b.pass(time.Second)
		same(t, b.engine.Clock.State(), wallclock.Behind)
		b.pass(5 * time.Minute)
		b.host.off, b.host.synced = 0, synced // NTP
		b.pass(time.Second)
		b.transmit("a1", 900)
		b.pass(time.Second)
		same(t, b.used(), map[string]uint64{"m/web": 1750})
		same(t, b.took(), []string{"m web 100 firing"})
		if !synced {
			same(t, b.engine.Clock.State(), wallclock.Unproven)
			b.pass(wallclock.BootedFor)
		}
		same(t, b.engine.Clock.State(), wallclock.Agrees)
		same(t, b.used(), map[string]uint64{"m/web": 1750})
		same(t, b.took(), []string(nil))
		b.pass(30 * day)
		same(t, len(b.took()), 3)
		same(t, b.used(), map[string]uint64{"m/web": 0})
		same(t, logged(b, "level=WARN"), 1)
	}
}

// A clock that nobody vouches for, and that is ahead for long enough, is taken for right. When
// it is put right after all, levels that fire again are alerts of their own, also where a
// period begins a second time.
func TestAheadForLongThenBack(t *testing.T) {
	b := newBench(t, monthly())
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.host.off = 20 * day // in December
	b.pass(time.Second)
	b.pass(wallclock.SteadyFor)
	b.transmit("a1", 700)
	b.pass(time.Second)
	first := b.engine.Alerts()
	same(t, b.took(), []string{"m web 50 firing", "m web 50 resolved", "m web 50 firing"})
	b.host.off = 0
	b.pass(time.Second)
	b.pass(wallclock.SteadyFor)
	b.transmit("a1", 10)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 710})
	same(t, b.took(), []string(nil))
	b.pass(45 * day)
	same(t, b.used(), map[string]uint64{"m/web": 0})
	b.transmit("a1", 1000)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 50 resolved", "m web 50 firing", "m web 80 firing", "m web 100 firing"})
	ids := map[string]bool{}
	for _, a := range append(first, b.engine.Alerts()...) {
		ids[a.ID] = ids[a.ID] || a.State == Firing
	}
	same(t, len(ids), 5)
}

// A level fires again under an id of its own, also if it began at the same time.
func TestFiresAgainInSamePeriod(t *testing.T) {
	b := newBench(t, monthly(per(PerContainer)))
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 500)
	b.pass(time.Second)
	st := b.engine.rules["m"].states["a1"]
	b.engine.resolveLevel(st, "50", b.now)
	st.level = 0
	b.transmit("a1", 10)
	b.pass(time.Second)
	same(t, b.took(), []string{"m a1 50 firing", "m a1 50 resolved", "m a1 50 firing"})
	alerts := b.engine.Alerts()
	if len(alerts) != 2 || alerts[0].ID == alerts[1].ID {
		t.Errorf("%+v", alerts)
	}
}

// What a version without a guard left behind after a boot with a wrong clock is loaded.
func TestStateOfWrongClock(t *testing.T) {
	for name, start := range map[string]time.Time{"behind": noon.Add(-2 * year), "ahead": noon.Add(3 * year)} {
		b := newBench(t, monthly())
		b.start("a1", "web")
		b.pass(0)
		b.transmit("a1", 700)
		b.pass(time.Second)
		r := b.engine.rules["m"]
		r.start = start
		_, r.end = r.Period.Bounds(start)
		r.states["web"].epoch, r.dirty = start.UnixNano(), true
		b.engine.dirty.mark(r.states["web"])
		b.save()
		b.store.mark = wallclock.Mark{Wall: b.store.mark.Wall} // as such a version saved it
		b.reboot(time.Minute, 0)
		b.transmit("a1", 50)
		b.pass(time.Second)
		same(t, b.used(), map[string]uint64{"m/web": 750})
		b.host.synced = true
		b.pass(time.Second)
		s := b.engine.Status()[0]
		if !s.PeriodEnd.Equal(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// Whatever the clock does, at boot or later: nothing is forgiven, nothing fires twice, nothing
// is forgotten early, and all is well once the clock is.
func TestWrongClock(t *testing.T) {
	for name, off := range map[string][]time.Duration{ // how far it is off, minute by minute
		"behind":        {-2 * year, -2 * year, -2 * year, -2 * year},
		"ahead":         {2 * year, 2 * year, 2 * year, 2 * year},
		"jumped once":   {0, 2 * year, 0, 0},
		"dropped once":  {0, -2 * year, 0, 0},
		"stands still":  {-2 * time.Minute, -3 * time.Minute, -4 * time.Minute, -5 * time.Minute},
		"hours too far": {3 * time.Hour, 3 * time.Hour, 3 * time.Hour, 3 * time.Hour},
	} {
		for _, booted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, booted %v", name, booted), func(t *testing.T) { wrongClock(t, off, booted) })
		}
	}
}

func wrongClock(t *testing.T, off []time.Duration, booted bool) {
	var rules []Rule
	for _, e := range []Every{Hourly, Daily, Weekly, Monthly, Lifetime} {
		rules = append(rules, monthly(named(string(e)), every(e)))
	}
	rules = append(rules,
		monthly(named("window"), func(r *Rule) { r.Period = Period{Every: Rolling, Window: 2 * time.Hour} }),
		monthly(named("soon"), func(r *Rule) { r.Projection, r.AlertAt = true, []int{100} }))
	b := newBench(t, rules...)
	b.pass(0)
	b.start("a1", "web")
	b.start("g1", "gone")
	b.pass(time.Second)
	b.transmit("a1", 600)
	b.transmit("g1", 40)
	b.pass(time.Second)
	gone := *b.find("g1")
	b.remove("g1")
	b.pass(time.Second)
	b.took()
	if booted {
		b.reboot(time.Minute, off[0])
	}
	want := uint64(600)
	for i := range off {
		b.host.off = off[i]
		if i == 1 {
			b.start("b1", "web")
			b.transmit("b1", 50)
			want += 50
		}
		b.transmit("a1", 10)
		want += 10
		b.pass(time.Minute)
		for _, r := range rules {
			same(t, b.used()[r.Name+"/web"], want)
		}
	}
	same(t, b.took(), []string(nil))
	b.host.off, b.host.synced = 0, true
	b.transmit("a1", 400)
	b.pass(time.Second)
	same(t, b.engine.Clock.State(), wallclock.Agrees)
	// What is started once more was not forgotten, so nothing of it is counted twice.
	b.containers = append(b.containers, gone)
	b.pass(time.Second)
	b.transmit("g1", 1)
	b.pass(time.Second)
	for _, r := range rules {
		same(t, b.used()[r.Name+"/web"], want+400)
		same(t, b.used()[r.Name+"/gone"], uint64(41))
	}
	fired := slices.DeleteFunc(b.took(), func(s string) bool { return s == "soon web projection firing" })
	same(t, len(fired), 2*6+1) // 80 and 100 once each, of "soon" 100 alone
	b.pass(2*time.Hour + time.Minute)
	b.pass(31 * day)
	for _, r := range rules {
		if r.Period.Every != Lifetime {
			same(t, b.used()[r.Name+"/web"], uint64(0))
		}
	}
}

// A period whose end comes while the clock is not trusted goes on until it is.
func TestNoPeriodEndsUntrusted(t *testing.T) {
	for _, off := range []time.Duration{-2 * year, 2 * year, -10 * time.Minute} {
		b := newBench(t, monthly(every(Hourly)))
		b.start("a1", "web")
		b.pass(0)
		b.transmit("a1", 600)
		b.pass(time.Second)
		b.host.off = off
		b.pass(2 * time.Hour)
		b.transmit("a1", 100)
		b.pass(time.Second)
		same(t, b.used(), map[string]uint64{"m/web": 700})
		b.host.off = 0
		b.transmit("a1", 30)
		b.pass(time.Second)
		same(t, b.used(), map[string]uint64{"m/web": 30})
		same(t, b.took(), []string{"m web 50 firing", "m web 50 resolved"})
	}
}

// What a clock that was ahead has dated into the future is forgotten in time.
func TestGoneInTheFuture(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("life"), every(Lifetime)))
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 1)
	b.host.off, b.host.synced = 2*year, true
	b.pass(time.Second)
	b.pass(wallclock.SyncedFor)
	b.remove("a1")
	b.rules = b.rules[:1]
	b.pass(time.Second)
	b.host.off = 0
	b.pass(time.Second)
	b.pass(wallclock.SyncedFor)
	same(t, len(b.engine.containers), 1)
	b.pass(forgetAfter + time.Minute)
	same(t, len(b.engine.containers), 0)
	same(t, len(b.engine.rules), 2)
	b.pass(dormantFor)
	same(t, len(b.engine.rules), 1)
}

// A virtual machine that was paused: time since boot stood still, and NTP steps its clock.
func TestPausedMachine(t *testing.T) {
	b := newBench(t, monthly(every(Hourly)))
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.host.off = 5 * time.Hour
	b.transmit("a1", 100)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 700})
	same(t, b.engine.Clock.State(), wallclock.Ahead)
	b.host.synced = true
	b.pass(wallclock.SyncedFor)
	same(t, b.used(), map[string]uint64{"m/web": 0})
	same(t, b.engine.Status()[0].PeriodEnd.Hour(), 18)
}

// A container is met while the clock is taken for right again, years later.
func TestMetWhileClockIsPutRight(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.reboot(5*day, -2*year)
	b.pass(time.Second)
	b.start("a1", "")
	b.transmit("a1", 100)
	b.check(0) // it has no name yet
	b.start("c1", "web")
	b.transmit("c1", 1000)
	b.host.off, b.host.synced = 0, true
	b.find("a1").Name = "web"
	b.start("b1", "web")
	b.transmit("b1", 11)
	b.pass(time.Second)
	same(t, b.engine.Clock.State(), wallclock.Agrees)
	same(t, b.used(), map[string]uint64{"m/web": 1111})
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
	offs := []time.Duration{0, 0, -30 * time.Second, -time.Hour, time.Hour, -2 * year, 2 * year, 40 * day, -40 * day}
	for seed := range uint64(need.Tries(300)) {
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
			case 3: // the clock is set, rightly or wrongly
				b.host.off = offs[random.IntN(len(offs))]
				b.host.synced = b.host.off == 0 && random.IntN(2) == 0
			case 6:
				b.save()
				l.look(t)
				b.reboot(time.Duration(random.Int64N(int64(12*time.Hour))), offs[random.IntN(len(offs))])
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
