// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/nettally/nettally/internal/testnet/need"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	in, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func at(t testing.TB, text string) time.Time {
	t.Helper()
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func TestBounds(t *testing.T) {
	tests := []struct {
		name       string
		every      Every
		day        int
		zone       string
		at         string
		start, end string
	}{
		{"an hour", Hourly, 0, "UTC", "2026-11-24T13:59:59Z", "2026-11-24T13:00:00Z", "2026-11-24T14:00:00Z"},
		{"an hour of half an hour's offset", Hourly, 0, "Asia/Kolkata", "2026-11-24T13:29:59Z", "2026-11-24T12:30:00Z", "2026-11-24T13:30:00Z"},
		{"the hour that is there twice, first", Hourly, 0, "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"},
		{"the hour that is there twice, again", Hourly, 0, "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"},
		{"clocks back by half an hour, before", Hourly, 0, "Australia/Lord_Howe", "2026-04-04T14:59:00Z", "2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z"},
		{"clocks back by half an hour, half", Hourly, 0, "Australia/Lord_Howe", "2026-04-04T15:00:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z"},
		{"clocks back by half an hour, after", Hourly, 0, "Australia/Lord_Howe", "2026-04-04T15:30:00Z", "2026-04-04T15:30:00Z", "2026-04-04T16:30:00Z"},
		{"before 1970", Hourly, 0, "UTC", "1969-12-31T23:30:00Z", "1969-12-31T23:00:00Z", "1970-01-01T00:00:00Z"},

		{"a day", Daily, 0, "Europe/Berlin", "2026-11-23T23:00:00Z", "2026-11-23T23:00:00Z", "2026-11-24T23:00:00Z"},
		{"a day of 23 hours", Daily, 0, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"},
		{"a day of 25 hours", Daily, 0, "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},
		{"a day without midnight", Daily, 0, "America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"},
		{"a day whose eve has its last hour twice", Daily, 0, "America/Sao_Paulo", "2018-02-18T02:30:00Z", "2018-02-17T02:00:00Z", "2018-02-18T03:00:00Z"},
		{"a day with midnight twice", Daily, 0, "America/Havana", "2026-11-01T05:30:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"},
		{"yesterday's date once more", Daily, 0, "America/St_Johns", "2010-11-07T02:45:00Z", "2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z"},
		{"the day before one that was left out", Daily, 0, "Pacific/Apia", "2011-12-30T09:00:00Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"},
		{"the day after one that was left out", Daily, 0, "Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"},
		{"a leap day", Daily, 0, "UTC", "2028-02-29T12:00:00Z", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"},

		{"a week, on Sunday", Weekly, 0, "UTC", "2026-11-29T23:59:59Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"},
		{"a week, on Monday", Weekly, 0, "UTC", "2026-11-30T00:00:00Z", "2026-11-30T00:00:00Z", "2026-12-07T00:00:00Z"},
		{"a week over New Year", Weekly, 0, "Asia/Tokyo", "2026-12-31T16:00:00Z", "2026-12-27T15:00:00Z", "2027-01-03T15:00:00Z"},
		{"a week with a change of the clocks", Weekly, 0, "America/New_York", "2026-03-08T12:00:00Z", "2026-03-02T05:00:00Z", "2026-03-09T04:00:00Z"},

		{"a month", Monthly, 1, "UTC", "2026-11-24T00:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"},
		{"a month, on New Year's Eve", Monthly, 1, "Europe/Berlin", "2026-12-31T23:30:00Z", "2026-12-31T23:00:00Z", "2027-01-31T23:00:00Z"},
		{"day 15, before", Monthly, 15, "Europe/Berlin", "2026-11-14T22:59:59Z", "2026-10-14T22:00:00Z", "2026-11-14T23:00:00Z"},
		{"day 15, after", Monthly, 15, "Europe/Berlin", "2026-11-14T23:00:00Z", "2026-11-14T23:00:00Z", "2026-12-14T23:00:00Z"},
		{"day 31 in a month of 30", Monthly, 31, "UTC", "2026-04-30T00:00:00Z", "2026-04-30T00:00:00Z", "2026-05-31T00:00:00Z"},
		{"day 31 before the end of a month of 30", Monthly, 31, "UTC", "2026-04-29T23:59:59Z", "2026-03-31T00:00:00Z", "2026-04-30T00:00:00Z"},
		{"day 31 in February", Monthly, 31, "UTC", "2026-03-01T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"},
		{"day 31 in January", Monthly, 31, "UTC", "2026-01-30T00:00:00Z", "2025-12-31T00:00:00Z", "2026-01-31T00:00:00Z"},
		{"day 30 in a leap year", Monthly, 30, "UTC", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z", "2028-03-30T00:00:00Z"},
		{"day 29 in a leap year", Monthly, 29, "UTC", "2028-02-28T00:00:00Z", "2028-01-29T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"day 29 in another year", Monthly, 29, "UTC", "2027-02-28T00:00:00Z", "2027-02-28T00:00:00Z", "2027-03-29T00:00:00Z"},
		{"a month that begins without midnight", Monthly, 4, "America/Sao_Paulo", "2018-11-04T02:59:59Z", "2018-10-04T03:00:00Z", "2018-11-04T03:00:00Z"},
		{"a month that would begin on a day that was left out", Monthly, 30, "Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z", "2012-01-29T10:00:00Z"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := Period{Every: test.every, Day: test.day, Location: zone(t, test.zone)}
			start, end := p.Bounds(at(t, test.at))
			if !start.Equal(at(t, test.start)) || !end.Equal(at(t, test.end)) {
				t.Errorf("%s to %s, want %s to %s", start.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339),
					test.start, test.end)
			}
		})
	}
	for _, every := range []Every{Lifetime, Rolling} {
		if start, end := (Period{Every: every}).Bounds(time.Now()); !start.IsZero() || !end.IsZero() {
			t.Errorf("%s: %v to %v", every, start, end)
		}
	}
}

// zones have changes of their clocks of all kinds.
var zones = []string{
	"UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/St_Johns", "America/Havana",
	"Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "Pacific/Kiritimati", "Africa/Cairo", "Asia/Beirut",
	"Africa/Casablanca", "Antarctica/Troll", "America/Caracas", "Asia/Pyongyang", "Europe/Dublin", "Pacific/Kwajalein",
}

// Each moment lies in the period that Bounds says, everything in that period says so
// too, and the next one begins where it ends: no moment is in two periods or in none.
func checkPartition(t testing.TB, p Period, when time.Time) {
	t.Helper()
	start, end := p.Bounds(when)
	what := fmt.Sprintf("%s day %d %s at %s: %s to %s", p.Every, p.Day, p.Location, when.UTC(), start.UTC(), end.UTC())
	if start.After(when) || !end.After(when) {
		t.Fatal(what, "does not hold it")
	}
	longest := map[Every]time.Duration{Hourly: time.Hour, Daily: 50 * time.Hour, Weekly: 8 * 24 * time.Hour, Monthly: 33 * 24 * time.Hour}
	if end.Sub(start) > longest[p.Every] {
		t.Fatal(what, "lasts", end.Sub(start))
	}
	length := end.Sub(start)
	for _, inside := range []time.Time{start, start.Add(length / 3), when, end.Add(-1)} {
		if s, e := p.Bounds(inside); !s.Equal(start) || !e.Equal(end) {
			t.Fatalf("%s; at %s: %s to %s", what, inside.UTC(), s.UTC(), e.UTC())
		}
	}
	if s, _ := p.Bounds(end); !s.Equal(end) {
		t.Fatalf("%s; the next begins at %s", what, s.UTC())
	}
	if _, e := p.Bounds(start.Add(-1)); !e.Equal(start) {
		t.Fatalf("%s; the one before ends at %s", what, e.UTC())
	}
}

func TestPeriodsArePartition(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	from, to := at(t, "1980-01-01T00:00:00Z").Unix(), at(t, "2045-01-01T00:00:00Z").Unix()
	for _, name := range zones {
		in := zone(t, name)
		for _, every := range []Every{Hourly, Daily, Weekly, Monthly} {
			for range need.Tries(300) {
				p := Period{Every: every, Day: 1 + random.IntN(31), Location: in}
				when := time.Unix(from+random.Int64N(to-from), random.Int64N(1e9))
				checkPartition(t, p, when)
				// And where the clocks change.
				if change, _ := when.In(in).ZoneBounds(); !change.IsZero() {
					checkPartition(t, p, change)
					checkPartition(t, p, change.Add(-1))
					checkPartition(t, p, change.Add(time.Duration(random.Int64N(int64(26*time.Hour)))-13*time.Hour))
				}
			}
		}
	}
}

func FuzzBounds(f *testing.F) {
	f.Add(int64(1289097960), uint8(4), uint8(1), uint8(31))
	f.Add(int64(1325239200), uint8(8), uint8(3), uint8(30))
	f.Fuzz(func(t *testing.T, unix int64, where, every, day uint8) {
		unix %= 1 << 33 // until 2242
		p := Period{
			Every:    []Every{Hourly, Daily, Weekly, Monthly}[every%4],
			Day:      1 + int(day)%31,
			Location: zone(t, zones[int(where)%len(zones)]),
		}
		checkPartition(t, p, time.Unix(unix, 0))
	})
}
