// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

func location(t *testing.T, name string) *time.Location {
	t.Helper()
	in, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// at makes a moment of local time.
func at(in *time.Location, text string) time.Time {
	t, err := time.ParseInLocation("2006-01-02 15:04", text, in)
	if err != nil {
		panic(err)
	}
	return t
}

func TestPeriods(t *testing.T) {
	tests := []struct {
		zone, moment string
		later        time.Duration // where local time does not tell which
		step         Step
		begin, end   string
		length       time.Duration
	}{
		{"UTC", "2026-03-10 12:34", 0, Hour, "2026-03-10T12:00:00Z", "2026-03-10T13:00:00Z", time.Hour},
		{"Asia/Kolkata", "2026-03-10 12:34", 0, Hour, "2026-03-10T12:00:00+05:30", "2026-03-10T13:00:00+05:30", time.Hour},
		{"Europe/Berlin", "2026-10-25 01:30", time.Hour, Hour, "2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", time.Hour},
		{"Europe/Berlin", "2026-10-25 01:30", 2 * time.Hour, Hour, "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00", time.Hour},
		{"Europe/Berlin", "2026-03-29 12:00", 0, Day, "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00", 23 * time.Hour},
		{"Europe/Berlin", "2026-10-25 12:00", 0, Day, "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", 25 * time.Hour},
		{"Europe/Berlin", "2026-03-31 23:59", 0, Month, "2026-03-01T00:00:00+01:00", "2026-04-01T00:00:00+02:00", 743 * time.Hour},
		{"Europe/Berlin", "2026-12-31 23:59", 0, Month, "2026-12-01T00:00:00+01:00", "2027-01-01T00:00:00+01:00", 744 * time.Hour},
		{"Europe/Berlin", "2026-03-29 12:00", 0, Week, "2026-03-23T00:00:00+01:00", "2026-03-30T00:00:00+02:00", 167 * time.Hour},
		{"Europe/Berlin", "2026-10-19 00:00", 0, Week, "2026-10-19T00:00:00+02:00", "2026-10-26T00:00:00+01:00", 169 * time.Hour},
		// The first week of 2027 begins with 4 January, and the one before has days of both years.
		{"Europe/Berlin", "2027-01-03 23:59", 0, Week, "2026-12-28T00:00:00+01:00", "2027-01-04T00:00:00+01:00", 168 * time.Hour},
		{"UTC", "2024-12-31 00:00", 0, Week, "2024-12-30T00:00:00Z", "2025-01-06T00:00:00Z", 168 * time.Hour},
		{"UTC", "2024-03-01 00:00", 0, Week, "2024-02-26T00:00:00Z", "2024-03-04T00:00:00Z", 168 * time.Hour},
		{"America/New_York", "2024-02-29 00:00", 0, Day, "2024-02-29T00:00:00-05:00", "2024-03-01T00:00:00-05:00", 24 * time.Hour},
		// Midnight is skipped there, or comes twice.
		{"Asia/Beirut", "2024-03-31 12:00", 0, Day, "2024-03-31T01:00:00+03:00", "2024-04-01T00:00:00+03:00", 23 * time.Hour},
		{"Asia/Beirut", "2024-03-30 12:00", 0, Day, "2024-03-30T00:00:00+02:00", "2024-03-31T01:00:00+03:00", 24 * time.Hour},
		{"America/Havana", "2024-11-03 12:00", 0, Day, "2024-11-03T00:00:00-04:00", "2024-11-04T00:00:00-05:00", 25 * time.Hour},
		{"Asia/Beirut", "2024-03-31 12:00", 0, Week, "2024-03-25T00:00:00+02:00", "2024-04-01T00:00:00+03:00", 167 * time.Hour},
		// A Monday without its midnight.
		{"Asia/Tehran", "2021-03-24 12:00", 0, Week, "2021-03-22T01:00:00+04:30", "2021-03-29T00:00:00+04:30", 167 * time.Hour},
		{"Asia/Tehran", "2021-03-15 12:00", 0, Week, "2021-03-15T00:00:00+03:30", "2021-03-22T01:00:00+04:30", 168 * time.Hour},
		// A day that is missing.
		{"Pacific/Apia", "2011-12-29 12:00", 0, Week, "2011-12-26T00:00:00-10:00", "2012-01-02T00:00:00+14:00", 144 * time.Hour},
		{"Pacific/Apia", "2011-12-29 12:00", 0, Day, "2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00", 24 * time.Hour},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s of %s %s", test.step, test.zone, test.moment), func(t *testing.T) {
			in := location(t, test.zone)
			a := &answer{Query: Query{Step: test.step}, ledger: &Ledger{Options: Options{Location: in}}}
			begin := a.begin(at(in, test.moment).Add(test.later))
			end := a.next(begin)
			same(t, []string{begin.Format(time.RFC3339), end.Format(time.RFC3339)}, []string{test.begin, test.end})
			same(t, end.Sub(begin), test.length)
			same(t, a.begin(end.Add(-1)), begin)
			same(t, a.begin(end), end)
		})
	}
}

// Every hour of the two days on which clocks change is counted on its day.
func TestHistoryOverClockChanges(t *testing.T) {
	b := newBench(t)
	b.in = location(t, "Europe/Berlin")
	n := uint64(0)
	for _, date := range []string{"2026-03-29 00:00", "2026-10-25 00:00"} {
		b.now = at(b.in, date)
		b.restart()
		for b.now.Format("2006-01-02 15:04") <= date[:10]+" 23:59" {
			n += 100
			b.flush(record("a1", "web", n))
			b.pass(time.Hour)
		}
	}
	b.pass(day)
	days := []string{"03-29 00:00 web 2300", "10-25 00:00 web 2500"}
	same(t, b.received(Query{Step: Day}), days)
	same(t, b.received(Query{Step: Month}), []string{"03-01 00:00 web 2300", "10-01 00:00 web 2500"})
	same(t, len(b.received(Query{Step: Hour, From: at(b.in, "2026-10-25 00:00"), To: at(b.in, "2026-10-26 00:00")})), 25)
	b.keep[0] = 0
	b.tidyAll()
	same(t, b.count("hours"), 0)
	same(t, b.received(Query{Step: Day}), days)
}

// A week has the hours of its seven days, over the end of a year and as days too.
func TestHistoryByWeek(t *testing.T) {
	b := newBench(t)
	b.in = location(t, "Europe/Berlin")
	b.now = at(b.in, "2026-12-27 00:00") // a Sunday
	b.restart()
	for hour := range uint64(9 * 24) {
		b.flush(record("a1", "web", 100*(hour+1)))
		b.pass(time.Hour)
	}
	weeks := []string{"12-21 00:00 web 2400", "12-28 00:00 web 16800", "01-04 00:00 web 2400"}
	same(t, b.received(Query{Step: Week}), weeks)
	within := Query{Step: Week, From: at(b.in, "2027-01-01 13:00"), To: at(b.in, "2027-01-01 14:00")}
	same(t, b.received(within), weeks[1:2])
	b.keep[0] = 0
	b.pass(day)
	b.tidyAll()
	same(t, b.count("hours"), 0)
	same(t, b.received(Query{Step: Week}), weeks)
	same(t, b.received(within), weeks[1:2])
}

// filled has 100 bytes of web in each hour of three days, and once 50 of each of others.
func filled(t *testing.T) *bench {
	b := newBench(t)
	label := func(r usage.Record, labels map[string]string) usage.Record {
		r.Labels = labels
		return r
	}
	b.now = noon.Truncate(24 * time.Hour)
	for hour := range uint64(72) {
		b.flush(record("aa11", "web", 100*(hour+1)))
		b.pass(time.Hour)
	}
	pod := record("cc33", "api", 50)
	pod.Namespace = "prod"
	b.flush(
		label(record("ab22", "web-2", 50), map[string]string{"team": "red"}),
		label(record("bb22", "db", 50), map[string]string{"team": "blue", "x": ""}),
		pod, record("dd44", "idle", 0),
	)
	return b
}

func TestHistory(t *testing.T) {
	b := filled(t)
	from := b.now.Add(-2 * time.Hour)
	tests := map[string]struct {
		query Query
		want  []string
	}{
		"everything by day": {Query{}, []string{
			"03-10 00:00 web 2400", "03-11 00:00 web 2400", "03-12 00:00 web 2400",
			"03-13 00:00 api 50", "03-13 00:00 db 50", "03-13 00:00 web-2 50",
		}},
		"everything by month": {Query{Step: Month}, []string{
			"03-01 00:00 api 50", "03-01 00:00 db 50", "03-01 00:00 web 7200", "03-01 00:00 web-2 50",
		}},
		"hours, widened": {
			Query{Step: Hour, From: from.Add(59 * time.Minute), To: from.Add(61 * time.Minute)},
			[]string{"03-12 22:00 web 100", "03-12 23:00 web 100"},
		},
		"hours, whole":      {Query{Step: Hour, From: from, To: from.Add(time.Hour)}, []string{"03-12 22:00 web 100"}},
		"nothing there":     {Query{Step: Hour, From: from.AddDate(-9, 0, 0), To: from.AddDate(-8, 0, 0)}, nil},
		"the future":        {Query{From: from.AddDate(8, 0, 0), To: from.AddDate(9, 0, 0)}, nil},
		"by container":      {Query{Step: Month, By: ByContainer, Name: "web*"}, []string{"03-01 00:00 aa11 7200", "03-01 00:00 ab22 50"}},
		"by namespace":      {Query{Step: Month, By: ByNamespace}, []string{"03-01 00:00  7300", "03-01 00:00 prod 50"}},
		"by label":          {Query{By: "label:team", From: b.now}, []string{"03-13 00:00  50", "03-13 00:00 blue 50", "03-13 00:00 red 50"}},
		"name":              {Query{Name: "web", From: from}, []string{"03-12 00:00 web 2400"}},
		"names":             {Query{Name: "[ad][pb]*", Step: Month}, []string{"03-01 00:00 api 50", "03-01 00:00 db 50"}},
		"no such name":      {Query{Name: "we"}, nil},
		"container":         {Query{Container: "bb22"}, []string{"03-13 00:00 db 50"}},
		"container's start": {Query{Container: "b"}, []string{"03-13 00:00 db 50"}},
		"no such container": {Query{Container: "f"}, nil},
		"namespace":         {Query{Namespace: "prod"}, []string{"03-13 00:00 api 50"}},
		"has label":         {Query{LabelKey: "x"}, []string{"03-13 00:00 db 50"}},
		"label with value":  {Query{LabelKey: "team", LabelValue: "red"}, []string{"03-13 00:00 web-2 50"}},
		"label and name":    {Query{LabelKey: "team", Name: "db"}, []string{"03-13 00:00 db 50"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { same(t, b.received(test.query), test.want) })
	}
}

// What users' containers used is for whoever asks for it by the user, also when it has become
// days, which have no containers.
func TestHistoryOfUsers(t *testing.T) {
	b := newBench(t)
	b.flush(record("aa11", "web", 100), record("1000~aa11", "1000~web", 1000), record("1001~bb22", "1001~bb22", 10_000))
	for _, when := range []string{"hours", "days"} {
		same(t, b.received(Query{Step: Month}), []string{"03-01 00:00 web 100"})
		same(t, b.received(Query{Step: Month, Name: "web"}), []string{"03-01 00:00 web 100"})
		same(t, b.received(Query{Step: Month, User: "1000", Name: "web"}), []string{"03-01 00:00 1000~web 1000"})
		same(t, len(b.received(Query{Step: Month, User: "1000", Name: "x"})), 0)
		same(t, b.received(Query{Step: Month, User: "*"}), []string{"03-01 00:00 1000~web 1000", "03-01 00:00 1001~bb22 10000"})
		if when == "hours" {
			same(t, b.received(Query{Step: Month, Container: "1000~aa"}), []string{"03-01 00:00 1000~web 1000"})
			same(t, b.received(Query{Step: Month, Container: "aa"}), []string{"03-01 00:00 web 100"})
		}
		b.keep[0] = time.Hour
		b.pass(72 * time.Hour)
		b.tidyAll()
	}
}

func TestRowsHaveAllNumbers(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 1000), record("b2", "web", 1000))
	same(t, b.query(Query{}), []Row{{
		Start: noon.Truncate(24 * time.Hour), End: noon.Truncate(24 * time.Hour).Add(24 * time.Hour), Key: "web",
		Receive:  Amount{Bytes: 2000, Packets: 200, TCPSYN: 20},
		Transmit: Amount{Bytes: 6000, Packets: 400, TCPSYN: 40},
	}})
}

func TestHistoryOfNothing(t *testing.T) {
	b := newBench(t)
	b.flush()
	same(t, b.query(Query{}), []Row(nil))
	b.flush(record("a1", "web", 0))
	same(t, b.query(Query{}), []Row(nil))
}

// A container may be called by what is the beginning of another one's id.
func TestWholeIDIsNotAmbiguous(t *testing.T) {
	b := newBench(t)
	b.flush(record("web", "a", 100), record("web2", "b", 50))
	same(t, b.received(Query{Container: "web"}), []string{"03-10 00:00 a 100"})
}

func TestBadQueries(t *testing.T) {
	b := filled(t)
	tests := []struct {
		query Query
		want  string
	}{
		{Query{Step: "year"}, `read history: bad query: step "year", expected hour, day, week or month`},
		{Query{By: "image"}, `read history: bad query: by "image", expected name, container, pod, namespace or label:<name>`},
		{Query{By: "label:"}, `read history: bad query: by "label:", expected name, container, pod, namespace or label:<name>`},
		{Query{Name: "[a"}, `read history: bad query: name "[a": syntax error in pattern`},
		{Query{From: noon, To: noon}, `read history: bad query: it ends before it begins`},
		{Query{LabelValue: "x"}, `read history: bad query: a label's value without its name`},
		{Query{By: "label:nope"}, `read history: bad query: no usage has the label "nope": names.labels says which are kept`},
		{Query{LabelKey: "nope", LabelValue: "x"}, `read history: bad query: no usage has the label "nope": names.labels says which are kept`},
		{Query{Container: "a"}, `read history: bad query: 2 containers begin with "a"`},
	}
	for _, test := range tests {
		_, err := b.History(context.Background(), test.query)
		if err == nil || err.Error() != test.want || !errors.Is(err, ErrBadQuery) {
			t.Errorf("%+v: %v, want %s", test.query, err, test.want)
		}
	}
}

// A label that is kept may be asked for before any usage has it, and one that was kept after.
func TestHistoryOfKeptLabels(t *testing.T) {
	b := filled(t)
	b.Labels = func() []string { return []string{"new"} }
	same(t, len(b.received(Query{LabelKey: "new"})), 0)
	same(t, b.received(Query{LabelKey: "x"}), []string{"03-13 00:00 db 50"})
	if _, err := b.History(context.Background(), Query{By: "label:nope", Name: "web"}); !errors.Is(err, ErrBadQuery) {
		t.Errorf("got %v", err)
	}
}

// The ledger is there to be read without the process that keeps it, ended in whichever way,
// and beside it. Nothing is made or changed by that.
func TestOpenToRead(t *testing.T) {
	b := filled(t)
	read := func() (got []string) {
		t.Helper()
		l, err := OpenToRead(context.Background(), Options{Path: b.path, Location: b.in, Clock: b.Clock})
		if err != nil {
			t.Fatal(err)
		}
		rows, err := l.History(context.Background(), Query{Step: Month, Name: "web", To: b.now})
		if err = errors.Join(err, l.Close()); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			got = append(got, fmt.Sprint(r.Key, " ", r.Receive.Bytes))
		}
		return got
	}
	want := []string{"web 7200"}
	same(t, read(), want) // beside it

	killed := filepath.Join(t.TempDir(), "ledger.db")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		content, err := os.ReadFile(b.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(killed+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.stop()
	same(t, read(), want)
	b.path = killed
	same(t, read(), want)

	missing := filepath.Join(t.TempDir(), "state", "ledger.db")
	if _, err := OpenToRead(context.Background(), Options{Path: missing, Clock: b.Clock}); err == nil {
		t.Error("a ledger that is not there")
	}
	if _, err := os.Stat(filepath.Dir(missing)); err == nil {
		t.Error("its folder was made")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	need.Native(t)
	b := newBench(t)
	b.flush(thousand(100)...)
	_, err := b.file.write.Exec(`INSERT INTO hours SELECT start - 3600 * h.value, subject, ` + numberColumns + `
		FROM hours, (SELECT value FROM json_each('[` + list(100) + `]')) h`)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.History(context.Background(), Query{Step: Hour})
	if !errors.Is(err, ErrBadQuery) {
		t.Errorf("101,000 rows: %v", err)
	}
	same(t, len(b.query(Query{Step: Hour, Name: "name5*"})), 111*101)
}

func TestHistoryOverYears(t *testing.T) {
	b := newBench(t)
	b.now = time.Unix(100, 0)
	b.flush(record("a1", "web", 100))
	b.now = noon.AddDate(1000, 0, 0)
	b.flush(record("a1", "web", 150))
	same(t, len(b.query(Query{Step: Hour, To: noon.AddDate(10_000, 0, 0)})), 2)
}

func TestHistoryEndsWithItsContext(t *testing.T) {
	b := filled(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.History(ctx, Query{}); !errors.Is(err, context.Canceled) {
		t.Errorf("history: %v", err)
	}
}
