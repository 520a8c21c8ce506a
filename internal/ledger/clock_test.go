// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/wallclock"
)

const year = 365 * day

func TestClockSetBack(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{day, 2 * day}
	b.flush(record("a1", "web", 100))
	b.off = -day
	b.flush(record("a1", "web", 150))
	b.flush(record("a1", "web", 170))
	same(t, b.received(Query{To: noon.Add(day)}), []string{"03-10 00:00 web 170"})
	same(t, b.Clock.State(), wallclock.Behind)
	same(t, b.log.count("the clock is behind the last save"), 1)
	// A restart does not forget it.
	b.restart()
	b.pass(time.Minute)
	b.flush(record("a1", "web", 180))
	same(t, b.Clock.State(), wallclock.Behind)
	b.off = 0
	b.flush(record("a1", "web", 190))
	same(t, b.Clock.State(), wallclock.Agrees)
	same(t, b.log.count("the clock is trusted again"), 1)
	same(t, b.total(), made(100, 90))
}

func TestLittleStepIsNothing(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.off = -time.Minute
	b.flush(record("a1", "web", 150))
	same(t, b.Clock.State(), wallclock.Agrees)
}

// A clock that is years ahead for a while makes everything look old.
func TestClockAheadAndBack(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100), stopped(record("b2", "job", 50), b.now))
	b.pass(time.Minute)
	b.off = 20 * year
	b.tidyAll()
	b.flush(record("a1", "web", 150))
	b.tidyAll()
	b.off = 0
	b.tidyAll()
	b.flush(record("a1", "web", 170))
	b.tidyAll()
	same(t, b.log.count("the clock jumped ahead"), 1)
	same(t, b.Clock.State(), wallclock.Agrees)
	same(t, b.received(Query{}), []string{"03-10 00:00 job 50", "03-10 00:00 web 170"})
	same(t, []int{b.count("containers"), b.count("days")}, []int{2, 0})

	b.pass(60 * day)
	b.restart()
	b.tidyAll()
	same(t, b.count("containers"), 1)
	same(t, b.total(), made(100, 50, 50, 20))
}

// A clock that is ahead when the first save is made, and is put right then: the clock runs on,
// so it is right.
func TestFirstSaveAhead(t *testing.T) {
	for _, test := range []struct {
		synced bool
		wait   time.Duration
	}{{true, wallclock.SyncedFor}, {false, wallclock.SteadyFor}} {
		b := newBench(t)
		b.off = year
		b.flush(record("a1", "web", 100))
		b.off, b.host.Synced = 0, test.synced
		b.flush(record("a1", "web", 150))
		b.pass(test.wait - time.Second)
		b.flush(record("a1", "web", 160))
		same(t, b.Clock.State(), wallclock.Behind)
		b.pass(time.Second)
		b.flush(record("a1", "web", 180))
		same(t, b.Clock.State(), wallclock.Agrees)
		// It is so over a restart.
		b.restart()
		b.flush(record("a1", "web", 190))
		same(t, b.Clock.State(), wallclock.Agrees)
		same(t, b.total(), made(100, 90))
	}
}

// A ledger of an older version has the time of the last write, and nothing of the boot.
func TestLedgerWithoutBoot(t *testing.T) {
	for off, want := range map[time.Duration]wallclock.State{0: wallclock.Unproven, year: wallclock.Unproven, -year: wallclock.Behind} {
		b := newBench(t)
		b.flush(record("a1", "web", 100))
		if _, err := b.file.write.Exec("DELETE FROM meta WHERE key <> 'last_write'"); err != nil {
			t.Fatal(err)
		}
		b.off = off
		b.restart()
		b.keep[0] = 0
		b.tidyAll()
		same(t, b.Clock.State(), want)
		same(t, b.count("days"), 0)
	}
}

// The host sleeps: its clock goes on, and so does the time since boot.
func TestSleepIsNoJump(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.pass(60 * day)
	b.tidyAll()
	same(t, b.count("hours"), 0)
	same(t, b.total(), made(100))
}

// Whatever the clock does, at boot or later: nothing is pruned or rolled up early, usage is
// kept once, in an hour that was, and all is well once the clock is.
func TestWrongClock(t *testing.T) {
	clocks := map[string][]time.Duration{ // how far it is off, minute by minute
		"behind":      {-2 * year, -2 * year, -2 * year},
		"ahead":       {2 * year, 2 * year, 2 * year},
		"jumped once": {0, 2 * year, 0},
		"stands still": {-time.Minute - time.Second, -2*time.Minute - time.Second,
			-3*time.Minute - time.Second},
	}
	for name, off := range clocks {
		for _, booted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, booted %v", name, booted), func(t *testing.T) {
				b := newBench(t)
				b.keep = [2]time.Duration{2 * day, 4 * day}
				used := uint64(100)
				b.flush(record("a1", "web", used), stopped(record("b2", "job", 50), b.now))
				b.pass(day)
				b.flush(record("a1", "web", 110))
				documents := b.Documents("quota")
				if booted {
					b.reboot(off[0])
					documents = b.Documents("quota")
				}
				for i := range off {
					b.off = off[i]
					b.pass(time.Minute)
					used += 10
					b.flush(record("a1", "web", 10+used))
					if err := documents.Save(map[string][]byte{"k": {byte(i)}}, nil); err != nil {
						t.Fatal(err)
					}
					b.tidyAll()
					same(t, []int{b.count("containers"), b.count("days")}, []int{2, 0})
				}
				same(t, b.received(Query{}), []string{"03-10 00:00 job 50", "03-10 00:00 web 100", "03-11 00:00 web 40"})
				// It is right again, and an NTP client says so.
				b.off, b.host.Synced = 0, true
				b.tidyAll()
				same(t, b.Clock.State(), wallclock.Agrees)
				same(t, b.count("days"), 0)
				b.pass(3 * day)
				b.tidyAll()
				same(t, []int{b.count("containers"), b.count("days")}, []int{1, 3})
				same(t, b.total(), made(100, 50, 40))
			})
		}
	}
}

// The ledger was copied to another host, which has been up for years. Its history does not go
// on in the years to come.
func TestCopiedToAnotherHost(t *testing.T) {
	for synced, wait := range map[bool]time.Duration{true: 0, false: wallclock.BootedFor} {
		b := newBench(t)
		b.flush(record("a1", "web", 100))
		b.pass(24 * time.Hour)
		b.host = wallclock.Reading{Wall: b.now.Add(-2 * year), BootID: 7}
		b.restart()
		b.flush(record("a1", "web", 150))
		if state := b.Clock.State(); state != wallclock.Unproven {
			t.Errorf("the clock %s", state)
		}
		b.pass(wait)
		b.host.Synced = synced
		b.flush(record("a1", "web", 170))
		same(t, b.Clock.State(), wallclock.Agrees)
		same(t, b.total(), made(100, 50, 20))
		for _, r := range b.query(Query{To: b.now.Add(100 * year)}) {
			if r.Start.After(b.now) {
				t.Errorf("usage in the hour of %s, and it is %s", r.Start, b.now)
			}
		}
	}
}

// A process that is restarted often trusts a clock of this boot in the end.
func TestTrustComesOverRestarts(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.reboot(0)
	for range int(wallclock.BootedFor / time.Minute) {
		b.flush(record("a1", "web", 100))
		same(t, b.Clock.State(), wallclock.Unproven)
		b.restart()
		b.pass(time.Minute)
	}
	b.flush(record("a1", "web", 100))
	same(t, b.Clock.State(), wallclock.Agrees)
}
