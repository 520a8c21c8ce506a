// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"time"
)

const (
	clockSlack = time.Second
	clockJump  = time.Hour
	// clockTrust is how long a clock that is behind the last write has to run until it
	// is taken for right: the last write may have been with a clock that was ahead.
	clockTrust = 24 * time.Hour
)

// clock is what is known of the host's clock. While it looks wrong nothing is pruned:
// a clock that is ahead makes everything look old.
type clock struct {
	wall   time.Time     // at the last look
	boot   time.Duration // at the same moment
	ahead  bool          // it jumped forward while this process ran
	behind bool          // it is behind the last write
	since  time.Duration // when that was first seen
}

func (c clock) plausible() bool { return !c.ahead && !c.behind }

// look holds the clock against the last write and against the time since boot. It
// returns the time of the last write from now on, which does not go back with the
// clock.
func (l *Ledger) look(now, last time.Time) time.Time {
	c, boot := &l.clock, l.boot()
	jumped := !c.wall.IsZero() && now.Sub(c.wall)-(boot-c.boot) > clockJump
	if jumped && !c.ahead {
		l.Log.Warn("the clock jumped forward; nothing is pruned until a restart", "from", c.wall, "to", now)
	}
	c.ahead = c.ahead || jumped
	c.wall, c.boot = now.Round(0), boot

	behind := now.Before(last.Add(-clockSlack))
	switch {
	case behind && !c.behind:
		c.since = boot
		l.Log.Warn("the clock was set back; nothing is pruned until it is past the last write", "now", now, "last_write", last)
	case behind && boot-c.since > clockTrust:
		l.Log.Warn("the clock is still behind the last write; it is taken for right now", "now", now, "last_write", last)
		behind, last = false, now
	case !behind && c.behind:
		l.Log.Info("the clock is past the last write again")
	}
	c.behind = behind
	l.note(func(s *Status) { s.ClockSetBack = behind })
	if now.Before(last) {
		return last
	}
	return now
}

// hourOf returns when the hour of a moment began. The hour that comes twice in autumn
// is two.
func hourOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	return t.Add(-time.Duration(t.Minute())*time.Minute - time.Duration(t.Second())*time.Second -
		time.Duration(t.Nanosecond())).Round(0)
}

// dayOf returns when the day of a moment began.
func dayOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	return begin(t.Year(), t.Month(), t.Day(), in)
}

// monthOf returns when the month of a moment began.
func monthOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	return begin(t.Year(), t.Month(), 1, in)
}

// begin returns the first moment of a day. Where the clock changes at midnight that
// is not 0:00, or there are two of them; time.Date leaves open which it returns.
func begin(year int, month time.Month, day int, in *time.Location) time.Time {
	noon := time.Date(year, month, day, 12, 0, 0, 0, in)
	day = noon.Day() // 32 January is 1 February
	first := noon
	// Clocks change by multiples of 15 minutes, and by 3 hours at most.
	for t := noon.Add(-15 * time.Hour); t.Before(noon); t = t.Add(15 * time.Minute) {
		if t.Day() == day {
			first = t
			break
		}
	}
	return first
}
