// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"testing"
	"time"
)

func TestClockSetBack(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{day, 2 * day}
	b.flush(record("a1", "web", 100))
	b.now = b.now.Add(-day)
	b.flush(record("a1", "web", 150))
	b.flush(record("a1", "web", 170))
	same(t, b.received(Query{To: noon.Add(day)}), []string{"03-09 00:00 web 70", "03-10 00:00 web 100"})
	same(t, b.Status().ClockSetBack, true)
	same(t, b.log.count("the clock was set back"), 1)
	// A restart does not forget it.
	b.restart()
	b.pass(time.Minute)
	b.flush(record("a1", "web", 180))
	same(t, b.Status().ClockSetBack, true)
	b.pass(day)
	b.flush(record("a1", "web", 190))
	same(t, b.Status().ClockSetBack, false)
	same(t, b.log.count("past the last write again"), 1)
	same(t, b.total(), made(100, 90))
}

func TestLittleSlewIsNothing(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.now = b.now.Add(-900 * time.Millisecond)
	b.flush(record("a1", "web", 150))
	same(t, b.Status().ClockSetBack, false)
}

// A clock that is years ahead for a while makes everything look old.
func TestClockAheadAndBack(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100), stopped(record("b2", "job", 50), b.now))
	b.pass(time.Minute)
	b.now = b.now.AddDate(20, 0, 0)
	b.tidyAll()
	b.flush(record("a1", "web", 150))
	b.tidyAll()
	b.now = b.now.AddDate(-20, 0, 0)
	b.tidyAll()
	b.flush(record("a1", "web", 170))
	b.tidyAll()
	same(t, b.log.count("the clock jumped forward"), 1)
	same(t, b.total(), made(100, 50, 50, 20))
	same(t, []int{b.count("containers"), b.count("days")}, []int{2, 0})
	b.restart()
	b.tidyAll()
	same(t, b.Status().ClockSetBack, true)
	same(t, b.total(), made(100, 50, 50, 20))
	same(t, b.count("days"), 0)

	// The clock runs on, so it is right: the last write was with one that was ahead.
	b.pass(clockTrust + time.Hour)
	b.flush(record("a1", "web", 180))
	same(t, b.Status().ClockSetBack, false)
	same(t, b.log.count("it is taken for right"), 1)
	b.pass(60 * day)
	b.restart()
	b.tidyAll()
	same(t, b.count("containers"), 1)
	same(t, b.total(), made(100, 50, 50, 20, 10))
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
