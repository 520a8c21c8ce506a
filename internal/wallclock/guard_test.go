// SPDX-License-Identifier: Apache-2.0

package wallclock

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

var noon = time.Date(2026, time.November, 18, 12, 0, 0, 0, time.UTC)

// saved is the mark of a save at noon, an hour after boot 1.
var saved = Mark{Wall: noon, Boot: time.Hour, BootID: 1}

// step is a look at the clocks, some time after the last one (the first: after the save, or
// after a boot that the save was not of).
type step struct {
	after  time.Duration
	off    time.Duration // how far the wall clock is off
	synced bool
	want   State
}

func TestGuard(t *testing.T) {
	const sec, minute = time.Second, time.Minute
	for name, test := range map[string]struct {
		fresh bool          // nothing was saved
		old   bool          // by a version that saved the wall time alone
		off   time.Duration // not 0: the host was off for that long, then it booted
		steps []step
	}{
		"right":                        {steps: []step{{sec, 0, false, Agrees}, {30 * day, 0, false, Agrees}}},
		"nothing saved":                {fresh: true, steps: []step{{sec, -2 * year, false, Agrees}, {sec, -2 * year, false, Agrees}}},
		"small steps":                  {steps: []step{{sec, minute, false, Agrees}, {sec, 2 * minute, false, Agrees}, {sec, minute, false, Agrees}}},
		"ahead for one reading":        {steps: []step{{sec, 0, true, Agrees}, {sec, 73 * year, true, Ahead}, {sec, 0, true, Agrees}}},
		"behind for one reading":       {steps: []step{{sec, 0, true, Agrees}, {sec, -73 * year, true, Behind}, {sec, 0, true, Agrees}}},
		"ahead, nobody vouches":        {steps: []step{{sec, day, false, Ahead}, {SteadyFor - 1, day, false, Ahead}, {1, day, false, Agrees}, {sec, day, false, Agrees}}},
		"behind, nobody vouches":       {steps: []step{{sec, -day, false, Behind}, {SteadyFor - 1, -day, false, Behind}, {1, -day, false, Agrees}}},
		"paused machine, NTP steps it": {steps: []step{{sec, 5 * day, false, Ahead}, {SyncedFor, 5 * day, false, Ahead}, {sec, 5 * day, true, Agrees}}},
		"NTP with a bad server":        {steps: []step{{sec, 5 * day, true, Ahead}, {SyncedFor - 1, 5 * day, true, Ahead}, {1, 0, true, Agrees}}},
		"not steady": {steps: []step{{sec, day, false, Ahead}, {20 * time.Hour, 2 * day, false, Ahead},
			{20 * time.Hour, 2 * day, false, Ahead}, {4 * time.Hour, 2 * day, false, Agrees}}},
		"stands still": {steps: []step{{minute, -minute, false, Agrees}, {minute, -2*minute - sec, false, Behind}, {minute, -3*minute - sec, false, Behind},
			{minute, 0, false, Agrees}}},
		"stands still for long": {steps: []step{{day, -day, false, Behind}, {day, -2 * day, false, Behind}, {day, -3 * day, true, Behind}, {sec, 0, false, Agrees}}},
		"taken for right, then put right": {steps: []step{{sec, year, false, Ahead}, {SteadyFor, year, false, Agrees},
			{sec, 0, false, Behind}, {SteadyFor, 0, false, Agrees}, {sec, 0, false, Agrees}}},

		"boot":                 {off: day, steps: []step{{sec, 0, false, Unproven}, {BootedFor - 1, 0, false, Unproven}, {1, 0, false, Agrees}, {sec, 0, false, Agrees}}},
		"boot with NTP":        {off: day, steps: []step{{sec, 0, false, Unproven}, {sec, 0, true, Agrees}}},
		"boot at once":         {off: sec, steps: []step{{sec, 0, false, Unproven}}},
		"no RTC":               {off: day, steps: []step{{sec, -2 * year, false, Behind}, {day - 1, -2 * year, false, Behind}, {sec, 0, false, Unproven}, {sec, 0, true, Agrees}}},
		"no RTC, set by hand":  {off: day, steps: []step{{sec, -2 * year, false, Behind}, {sec, 0, false, Unproven}, {BootedFor, 0, false, Agrees}}},
		"no RTC, for ever":     {off: day, steps: []step{{sec, -2 * year, false, Behind}, {SteadyFor, -2 * year, false, Agrees}}},
		"clock of last stop":   {off: day, steps: []step{{sec, -day, false, Unproven}, {sec, 0, true, Agrees}}},
		"ahead at boot, once":  {off: day, steps: []step{{sec, year, false, Unproven}, {sec, 0, false, Unproven}, {BootedFor, 0, false, Agrees}}},
		"ahead at boot":        {off: day, steps: []step{{sec, year, false, Unproven}, {minute, 0, true, Agrees}}},
		"behind, ahead, right": {off: day, steps: []step{{sec, -year, false, Behind}, {sec, year, false, Unproven}, {sec, 0, true, Agrees}}},
		"last save was ahead":  {off: day, steps: []step{{sec, -2 * day, true, Behind}, {SyncedFor, -2 * day, true, Agrees}}},

		"older version":         {old: true, steps: []step{{sec, 0, false, Unproven}, {sec, 0, true, Agrees}}},
		"older version, behind": {old: true, steps: []step{{sec, -day, false, Behind}, {sec, 0, false, Unproven}, {BootedFor, 0, false, Agrees}}},
	} {
		t.Run(name, func(t *testing.T) {
			var g Guard
			m := saved
			if test.old {
				m = Mark{Wall: noon}
			}
			if !test.fresh {
				g.Restore(m, Mark{})
			}
			now, r := noon.Add(test.off), Reading{Boot: time.Hour, BootID: 1}
			if test.off > 0 {
				r = Reading{BootID: 2}
			}
			for i, s := range test.steps {
				now, r.Boot = now.Add(s.after), r.Boot+s.after
				r.Wall, r.Synced = now.Add(s.off), s.synced
				before := g.Now()
				if got := g.Look(r); got != s.want {
					t.Fatalf("step %d: the clock %s, want %s", i, got, s.want)
				}
				switch {
				case s.want == Agrees && !g.Now().Equal(r.Wall), s.want == Agrees && g.Mark() != r.mark():
					t.Fatalf("step %d: it is trusted, but the time is %s and not %s", i, g.Now(), r.Wall)
				case s.want != Agrees && (g.Now().Before(before) || g.Now().After(now.Add(saved.Boot)) && !test.old && i == 0):
					t.Fatalf("step %d: it is not trusted, but the time went from %s to %s", i, before, g.Now())
				}
			}
		})
	}
}

// While the clock is not trusted, time goes on by as much as is known to have passed.
func TestTimeGoesOn(t *testing.T) {
	var g Guard
	g.Restore(saved, Mark{})
	g.Look(Reading{Wall: noon.Add(year), Boot: time.Hour + time.Minute, BootID: 1})
	same(t, g.Now(), noon.Add(time.Minute))
	same(t, g.Mark(), saved)
	// Of another boot it is known that this one has lasted.
	g.Look(Reading{Wall: noon.Add(-year), Boot: 3 * time.Minute, BootID: 2})
	same(t, g.Now(), noon.Add(3*time.Minute))
	same(t, g.Mark(), Mark{Wall: noon.Add(3 * time.Minute), Boot: 3 * time.Minute, BootID: 2, Carried: true})
	g.Look(Reading{Wall: noon.Add(-year), Boot: day, BootID: 2})
	same(t, g.Now(), noon.Add(day))
}

// A ledger that comes from another host says nothing of how long this one has been up: no time
// passes by that, and a clock that is past the last save is trusted as after a boot.
func TestOtherHost(t *testing.T) {
	for name, test := range map[string]struct {
		past  time.Duration // the wall clock is past the last save
		want  State
		least time.Duration // the time is past the last save
		trust time.Duration
	}{
		"at once":               {5 * time.Second, Unproven, 5 * time.Second, BootedFor},
		"its clock was ahead":   {-2 * time.Second, Unproven, 0, BootedFor},
		"a month later":         {30 * day, Unproven, BootedFor, BootedFor},
		"its clock was way off": {-day, Behind, BootedFor, SteadyFor},
	} {
		t.Run(name, func(t *testing.T) {
			var g Guard
			g.Restore(saved, Mark{Wall: noon, Boot: time.Hour, BootID: 1})
			r := Reading{Wall: noon.Add(test.past), Boot: 2 * year, BootID: 2}
			same(t, g.Look(r), test.want)
			same(t, g.Now(), noon.Add(test.least))
			r.Wall, r.Boot = r.Wall.Add(test.trust), r.Boot+test.trust
			same(t, g.Look(r), Agrees)
			same(t, g.Now(), r.Wall)
		})
	}
}

// A process that ends before a clock is trusted leaves the waiting to the next one.
func TestTrustComesOverRestarts(t *testing.T) {
	for name, test := range map[string]struct {
		boot  int64 // that the save is of, where the host is in boot 2
		off   time.Duration
		state State
		after time.Duration
	}{
		"booted": {1, day, Unproven, BootedFor}, "ahead": {2, day, Ahead, SteadyFor}, "behind": {2, -day, Behind, SteadyFor},
		"booted, behind": {1, -day, Behind, SteadyFor},
	} {
		t.Run(name, func(t *testing.T) {
			mark, steady := Mark{Wall: noon, Boot: time.Minute, BootID: test.boot}, Mark{}
			for passed := time.Duration(0); passed <= test.after; passed += time.Minute {
				var g Guard
				r := Reading{Wall: noon.Add(test.off + passed), Boot: time.Minute + passed, BootID: 2}
				want := test.state
				if passed == test.after {
					want = Agrees
				}
				g.Look(r) // before the ledger is read
				g.Restore(mark, steady)
				if got := g.Look(r); got != want {
					t.Fatalf("after %s: the clock %s, want %s", passed, got, want)
				}
				if now := noon.Add(passed); want != Agrees && g.Now().Sub(now) > time.Minute {
					t.Fatalf("after %s: the time is %s", passed, g.Now())
				}
				mark, steady = g.Mark(), g.Steady()
			}
		})
	}
}

// What another boot has run steadily, or a clock that was stepped since, does not count.
func TestSteadinessIsOfOneBoot(t *testing.T) {
	for name, steady := range map[string]Mark{
		"another boot": {Wall: noon.Add(-10 * day), Boot: time.Hour, BootID: 1},
		"stepped":      {Wall: noon.Add(-10 * day), Boot: time.Second, BootID: 2},
	} {
		var g Guard
		g.Restore(saved, steady)
		if got := g.Look(Reading{Wall: noon.Add(day), Boot: 3 * time.Minute, BootID: 2}); got != Unproven {
			t.Errorf("%s: the clock %s", name, got)
		}
	}
}

// A reference that is found late, since the disk could not be read, holds all the same.
func TestRestoredLate(t *testing.T) {
	var g Guard
	r := Reading{Wall: noon.Add(year), Boot: time.Minute, BootID: 2}
	same(t, g.Look(r), Agrees)
	g.Restore(Mark{}, Mark{})
	same(t, g.Look(r), Agrees)
	g.Restore(saved, Mark{})
	same(t, g.Look(r), Unproven)
	same(t, g.Now(), noon.Add(time.Minute))
}

func same(t testing.TB, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
