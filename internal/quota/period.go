// SPDX-License-Identifier: Apache-2.0

package quota

import "time"

// Every says how often a period begins.
type Every string

// How often periods begin. Weeks begin on Monday.
const (
	Hourly   Every = "hour"
	Daily    Every = "day"
	Weekly   Every = "week"
	Monthly  Every = "month"
	Lifetime Every = "lifetime" // it never ends
	Rolling  Every = "rolling"  // a window that ends now
)

// Period is the time that a limit is about. The zero Period is none.
type Period struct {
	Every Every
	// Day is the day of the month that a month begins on, 1 to 31. A month that has no
	// such day begins on its last one.
	Day int
	// Location is where hours, days, weeks and months are those of the calendar.
	Location *time.Location
	// Window is the length of a rolling window.
	Window time.Duration
}

// calendar says whether periods follow each other.
func (p Period) calendar() bool {
	return p.Every == Hourly || p.Every == Daily || p.Every == Weekly || p.Every == Monthly
}

// Bounds returns the period that t lies in: from start up to, and not with, end. The
// next one begins with that end, whatever the clocks of the location do, so that
// each moment lies in exactly one period.
//
// A day begins at the first moment that has its date: not at midnight where the clocks
// are put forward then, and once where they are put back. A day that the location left
// out belongs to no period. The bounds of a lifetime or a rolling window are zero.
func (p Period) Bounds(t time.Time) (start, end time.Time) {
	switch p.Every {
	case Hourly:
		return hourOf(t.In(p.Location))
	case Daily:
		return bounds(t, t.In(p.Location), p.dayStart)
	case Weekly:
		return bounds(t, t.In(p.Location), p.weekStart)
	case Monthly:
		return bounds(t, t.In(p.Location), p.monthStart)
	}
	return time.Time{}, time.Time{}
}

// bounds returns the last start that is not after t and the first one that is. start
// returns that of the period n after the one that has the date of local.
func bounds(t, local time.Time, start func(local time.Time, n int) time.Time) (from, to time.Time) {
	n := 1 // clocks put back over midnight show yesterday's date in today's period
	for from = start(local, n); from.After(t); from = start(local, n) {
		to = from
		n--
	}
	for to.IsZero() || !to.After(t) {
		n++
		to = start(local, n)
	}
	return from, to
}

func (p Period) dayStart(local time.Time, n int) time.Time {
	return firstOf(local.Year(), local.Month(), local.Day()+n, p.Location)
}

func (p Period) weekStart(local time.Time, n int) time.Time {
	sinceMonday := (int(local.Weekday()) + 6) % 7
	return firstOf(local.Year(), local.Month(), local.Day()-sinceMonday+7*n, p.Location)
}

func (p Period) monthStart(local time.Time, n int) time.Time {
	// Day 0 of the next month is the last one of this.
	last := time.Date(local.Year(), local.Month()+time.Month(n)+1, 0, 0, 0, 0, 0, time.UTC)
	return firstOf(last.Year(), last.Month(), min(p.Day, last.Day()), p.Location)
}

// firstOf returns the first moment whose local date is this one, or a later one where
// the location has left it out. time.Date promises neither.
func firstOf(year int, month time.Month, day int, in *time.Location) time.Time {
	midnight := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	// No location is further from UTC, also not in the course of a change.
	from := midnight.Add(-30 * time.Hour)
	for {
		_, offset := from.In(in).Zone()
		_, until := from.In(in).ZoneBounds()
		first := midnight.Add(-time.Duration(offset) * time.Second)
		if first.Before(from) {
			first = from
		}
		if until.IsZero() || first.Before(until) {
			return first.In(in)
		}
		// On the last day of a leap year ZoneBounds may name that day's beginning.
		from = latest(until, from.Add(time.Hour))
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// hourOf returns the hour that t lies in. One in which the clocks change by less than an
// hour, as on Lord Howe Island, ends with that.
func hourOf(t time.Time) (start, end time.Time) {
	_, offset := t.Zone()
	into := (t.Unix() + int64(offset)) % 3600
	if into < 0 {
		into += 3600
	}
	start = time.Unix(t.Unix()-into, 0).In(t.Location())
	end = start.Add(time.Hour)
	since, until := t.ZoneBounds()
	if start.Before(since) && !since.After(t) && shifts(since) {
		start = since
	}
	if end.After(until) && until.After(t) && shifts(until) {
		end = until
	}
	return start, end
}

// shifts says whether hours begin at another minute from t on.
func shifts(t time.Time) bool {
	_, before := t.Add(-1).Zone()
	_, after := t.Zone()
	return (after-before)%3600 != 0
}
