// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

func syn(hold time.Duration) Rule {
	return Rule{Name: "syn", Per: PerContainer, Count: TransmitSYN, Rate: &Rate{Above: 200, Clear: 100, For: hold}}
}

// rate has a container send n SYN per second for some seconds.
func (b *bench) rate(id string, n uint64, seconds int) (alerts []Alert) {
	for range seconds {
		b.find(id).Transmit.SYN += n
		alerts = append(alerts, b.pass(time.Second)...)
	}
	return alerts
}

func TestRate(t *testing.T) {
	b := newBench(t, syn(10*time.Second))
	b.pass(0)
	b.start("a1", "web")
	b.pass(time.Second)
	same(t, said(b.rate("a1", 200, 60)), []string(nil)) // at the bound is not above
	same(t, said(b.rate("a1", 201, 9)), []string(nil))
	same(t, said(b.rate("a1", 0, 1)), []string(nil)) // it begins anew
	same(t, said(b.rate("a1", 300, 9)), []string(nil))
	alerts := b.rate("a1", 300, 1)
	same(t, said(alerts), []string{"syn a1 rate firing"})
	same(t, alerts[0].Used, 300.0)
	same(t, alerts[0].Unit, "requests/s")
	same(t, alerts[0].Summary, "web (a1) is at 300 requests/s, above 200 requests/s for 10s (quota syn)")
	same(t, said(b.rate("a1", 300, 60)), []string(nil))
	same(t, said(b.rate("a1", 150, 60)), []string(nil)) // between the bounds
	same(t, said(b.rate("a1", 100, 9)), []string(nil))
	same(t, said(b.rate("a1", 101, 1)), []string(nil))
	b.restart()
	same(t, said(b.rate("a1", 500, 3)), []string(nil)) // it fires still
	same(t, said(b.rate("a1", 0, 9)), []string(nil))
	same(t, said(b.rate("a1", 0, 1)), []string{"syn a1 rate resolved"})
	same(t, said(b.rate("a1", 300, 10)), []string{"syn a1 rate firing"})

	// With its container gone it is over.
	b.remove("a1")
	var lines []string
	for range 11 {
		lines = append(lines, said(b.pass(time.Second))...)
	}
	same(t, lines, []string{"syn a1 rate resolved"})
	same(t, b.used(), map[string]uint64{})
	same(t, len(b.engine.hot), 0)
}

// Where counters are read less often than they are checked, a rate is what they grew by
// between two readings.
func TestRateBetweenReadings(t *testing.T) {
	for _, test := range []struct {
		perSecond uint64
		want      []string
	}{{300, []string{"syn a1 rate firing"}}, {60, nil}, {200, nil}} {
		t.Run(fmt.Sprint(test.perSecond), func(t *testing.T) {
			b := newBench(t, syn(10*time.Second))
			b.start("a1", "web")
			readAt, before := b.now, b.now
			var lines []string
			for i := range 120 {
				b.now = b.now.Add(time.Second)
				// Every five seconds, at any time between two checks, and now and then once more
				// at once, as when everything is looked at.
				if i%5 == 0 {
					readAt = b.now.Add(-time.Duration(i%3) * 300 * time.Millisecond)
				}
				if i%35 == 1 {
					readAt = readAt.Add(3 * time.Millisecond)
				}
				b.find("a1").Transmit.SYN += uint64(readAt.Sub(before).Seconds()*float64(test.perSecond) + 0.5)
				before = readAt
				lines = append(lines, said(b.engine.Check(usage.Snapshot{TakenAt: b.now, ReadAt: readAt, Containers: slices.Clone(b.containers)}))...)
				if s := b.engine.Status()[0]; i > 10 && math.Abs(s.Used-float64(test.perSecond)) > 1 {
					t.Fatalf("after %d s: %g per second", i, s.Used)
				}
				if i == 15 {
					same(t, lines, test.want)
				}
			}
			same(t, lines, test.want)
		})
	}
}

// What passed while nettally was down is no rate.
func TestRateAfterRestart(t *testing.T) {
	b := newBench(t, syn(0))
	b.pass(0)
	b.start("a1", "web")
	b.pass(time.Second)
	b.find("a1").Transmit.SYN += 1_000_000
	b.restart()
	b.now = b.now.Add(time.Minute)
	same(t, said(b.rate("a1", 0, 2)), []string(nil))
	same(t, said(b.rate("a1", 201, 1)), []string{"syn a1 rate firing"})
	same(t, said(b.rate("a1", 100, 1)), []string{"syn a1 rate resolved"})
}

func TestBitRate(t *testing.T) {
	b := newBench(t, Rule{Name: "bits", Per: PerName, Count: TransmitBytes, Rate: &Rate{Above: 1.25e6, Clear: 1e6, Bits: true}})
	b.pass(0)
	b.start("a1", "web")
	b.pass(time.Second)
	b.transmit("a1", 5_000_000)
	alerts := b.pass(2 * time.Second) // a check was late
	same(t, said(alerts), []string{"bits web rate firing"})
	if a := alerts[0]; a.Unit != "bits/s" || a.Used != 2e7 || a.Limit != 1e7 || a.Ratio != 2 {
		t.Errorf("%+v", a)
	}
	same(t, alerts[0].Summary, "web is at 20Mbit/s, above 10Mbit/s for 0s (quota bits)")
}

func rolling(window time.Duration) Rule {
	return monthly(func(r *Rule) { r.Period = Period{Every: Rolling, Window: window} })
}

func TestRolling(t *testing.T) {
	b := newBench(t, rolling(2*time.Hour))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 600)
	same(t, said(b.pass(time.Second)), []string{"m web 50 firing"})
	b.transmit("a1", 150)
	b.pass(time.Hour)
	b.restart()
	b.transmit("a1", 50)
	same(t, said(b.pass(59*time.Minute)), []string{"m web 80 firing"})
	same(t, b.used(), map[string]uint64{"m/web": 800})
	same(t, said(b.pass(2*time.Minute)), []string{"m web 80 resolved", "m web 50 resolved"})
	same(t, b.used(), map[string]uint64{"m/web": 200})
	b.transmit("a1", 290)
	b.pass(time.Second)
	b.transmit("a1", 20)
	same(t, said(b.pass(time.Second)), []string{"m web 50 firing"})
	b.remove("a1")
	same(t, said(b.pass(3*time.Hour)), []string{"m web 50 resolved"})
	b.pass(time.Minute)
	same(t, b.used(), map[string]uint64{})
}

// A window never has less than what was used in its length, and never more than in that
// and a 120th.
func TestRollingIsAWindow(t *testing.T) {
	const window, part = 2 * time.Hour, time.Minute
	random := rand.New(rand.NewPCG(3, 4))
	b := newBench(t, rolling(window))
	b.pass(0)
	b.start("a1", "web")
	type use struct {
		at time.Time
		n  uint64
	}
	var uses []use
	for range 2000 {
		n := uint64(random.IntN(100))
		b.transmit("a1", n)
		if random.IntN(50) == 0 {
			b.restart()
		}
		b.pass(time.Duration(random.Int64N(int64(3 * time.Minute))))
		uses = append(uses, use{b.now, n})
		var least, most uint64
		for _, u := range uses {
			if b.now.Sub(u.at) < window {
				least += u.n
			}
			if b.now.Sub(u.at) < window+part {
				most += u.n
			}
		}
		if got := b.used()["m/web"]; got < least || got > most {
			t.Fatalf("at %s: %d in the window, expected %d to %d", b.now, got, least, most)
		}
	}
}

func TestRollingWithClockSetBack(t *testing.T) {
	b := newBench(t, rolling(2*time.Hour))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 100)
	b.pass(time.Second)
	b.transmit("a1", 20)
	b.pass(-time.Hour)
	same(t, b.used(), map[string]uint64{"m/web": 120})
	b.now = b.now.AddDate(-1, 0, 0)
	b.pass(0)
	same(t, b.used(), map[string]uint64{"m/web": 120})
	b.pass(119 * time.Minute)
	same(t, b.used(), map[string]uint64{"m/web": 120})
	b.pass(3 * time.Minute)
	same(t, b.used(), map[string]uint64{"m/web": 0})
}

// A clock that was wrong, and is put right while nettally is down, leaves a window that
// empties.
func TestRollingWithClockSetBackWhileDown(t *testing.T) {
	b := newBench(t, rolling(2*time.Hour))
	b.pass(0)
	b.now = noon.AddDate(9, 0, 0)
	b.start("a1", "web")
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.took()
	b.now = noon
	b.restart()
	b.pass(0)
	same(t, b.used(), map[string]uint64{"m/web": 600})
	b.restart() // it is saved as of now
	b.pass(119 * time.Minute)
	same(t, b.used(), map[string]uint64{"m/web": 600})
	b.transmit("a1", 10)
	b.pass(3 * time.Minute)
	same(t, b.used(), map[string]uint64{"m/web": 10})
	same(t, b.took(), []string{"m web 50 resolved"})

	// Put right while it runs, and killed then.
	b.now = noon.AddDate(9, 0, 0)
	b.transmit("a1", 20)
	b.pass(0)
	b.now = noon
	b.pass(0)
	b.pass(time.Hour)
	b.restart()
	b.pass(61 * time.Minute)
	same(t, b.used(), map[string]uint64{"m/web": 0})
}

// A change of the limit is one change, however often nettally is started after it.
func TestLimitChangedOnce(t *testing.T) {
	projecting := func(limit uint64) []Rule {
		return []Rule{monthly(every(Hourly), func(r *Rule) { r.Projection, r.AlertAt, r.Limit = true, []int{100}, limit })}
	}
	b := newBench(t, projecting(2000)...)
	b.now = time.Date(2026, 11, 18, 12, 0, 0, 0, time.UTC)
	b.start("a1", "web")
	b.pass(0)
	b.rules = projecting(1000)
	b.transmit("a1", 200)
	b.pass(10 * time.Minute)
	same(t, b.took(), []string{"m web projection firing"})
	b.pass(20 * time.Minute)
	same(t, b.took(), []string{"m web projection resolved"})
	b.transmit("a1", 700)
	b.restart()
	b.pass(time.Second)
	same(t, b.took(), []string(nil))
	same(t, b.engine.Status()[0].Used, 900.0)
}

func TestProjection(t *testing.T) {
	projecting := func(r *Rule) { r.Projection, r.AlertAt, r.Limit = true, []int{100}, 1000 }
	b := newBench(t, monthly(every(Hourly), projecting))
	b.now = time.Date(2026, 11, 18, 12, 0, 0, 0, time.UTC)
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 100)
	same(t, said(b.pass(5*time.Minute)), []string(nil)) // too early to tell
	b.transmit("a1", 100)
	alerts := b.pass(5 * time.Minute)
	same(t, said(alerts), []string{"m web projection firing"})
	if a := alerts[0]; a.Projected < 1199 || a.Projected > 2500 || a.Used != 200 || a.PeriodEnd.Hour() != 13 {
		t.Errorf("%+v", a)
	}
	b.transmit("a1", 1)
	b.restart()
	same(t, said(b.pass(time.Minute)), []string(nil))
	same(t, said(b.pass(20*time.Minute)), []string{"m web projection resolved"})
	b.transmit("a1", 700)
	same(t, said(b.pass(time.Minute)), []string(nil)) // once per period
	b.transmit("a1", 100)
	same(t, said(b.pass(time.Minute)), []string{"m web 100 firing"})
	same(t, said(b.pass(time.Hour)), []string{"m web 100 resolved"})
	b.transmit("a1", 900)
	same(t, said(b.pass(time.Minute)), []string{"m web projection firing"})

	// What was there before it was seen says nothing of what comes.
	b = newBench(t, monthly(projecting, func(r *Rule) { r.Initial = 600 }))
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 10)
	same(t, said(b.pass(3*24*time.Hour)), []string(nil))
	if s := b.engine.Status()[0]; !s.Predictable || s.Projected < 630 || s.Projected > 645 {
		t.Errorf("%+v", s)
	}
}

// A level of a window that is only just not reached any more goes on firing: it would fire again
// and again otherwise.
func TestRollingDoesNotFlap(t *testing.T) {
	b := newBench(t, rolling(time.Hour))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 30)
	b.pass(time.Second)
	b.now = b.now.Add(30 * time.Minute)
	b.transmit("a1", 480)
	b.pass(time.Second)
	same(t, said(b.engine.Alerts()), []string{"m web 50 firing"})
	b.took()
	b.pass(35 * time.Minute) // 30 have left the window: 480 are 96 % of the level
	same(t, b.used(), map[string]uint64{"m/web": 480})
	b.transmit("a1", 30)
	b.pass(time.Second)
	same(t, b.took(), []string(nil))
	b.pass(40 * time.Minute)
	same(t, b.took(), []string{"m web 50 resolved"})
}
