// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

const day = 24 * time.Hour

func TestRollUpMovesTotalsExactly(t *testing.T) {
	b := newBench(t)
	b.in = location(t, "Europe/Berlin")
	b.keep = [2]time.Duration{2 * day, 365 * day}
	b.restart()
	// Two containers of one name, one after the other, and one that gets another name.
	for hour := range uint64(24 * 8) {
		name := "db"
		if hour >= 70 {
			name = "db2"
		}
		b.flush(record(fmt.Sprintf("web%d", hour/50), "web", 10*(hour+1)), record("d1", name, 7*hour))
		b.pass(time.Hour)
	}
	days, months, sum := b.received(Query{Step: Day}), b.received(Query{Step: Month}), b.total()
	b.tidyAll()
	same(t, b.total(), sum)
	same(t, b.received(Query{Step: Day}), days)
	same(t, b.received(Query{Step: Month}), months)
	// Up to the beginning of the day two days ago.
	if first := b.received(Query{Step: Hour})[0]; first[:11] != "03-16 00:00" {
		t.Errorf("first hour %s", first)
	}
	for _, r := range b.query(Query{Step: Day, By: ByContainer}) {
		if r.Key == "" || r.Start.Before(b.now.Add(-3*day)) {
			t.Errorf("usage of container %q on %s", r.Key, r.Start)
		}
	}
	b.tidyAll()
	same(t, b.total(), sum)
}

func TestRollUpInBatches(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{day, 365 * day}
	var records []usage.Record
	for i := range 500 {
		records = append(records, record(fmt.Sprintf("id%d", i), fmt.Sprintf("name%d", i%100), 0))
	}
	for hour := range uint64(10) {
		for i := range records {
			records[i].Traffic = record("", "", 10*(hour+1)).Traffic
		}
		b.flush(records...)
		b.pass(time.Hour)
	}
	sum := b.total()
	b.pass(3 * day)
	b.due = 0
	for hours := 5000; hours > 0; hours -= tidyRows {
		same(t, b.count("hours"), hours)
		if err := b.tidy(context.Background()); err != nil {
			t.Fatal(err)
		}
		same(t, b.total(), sum)
	}
	b.tidyAll()
	same(t, []int{b.count("hours"), b.count("days")}, []int{0, 100})
	same(t, b.total(), sum)
	// Counting goes on where it was.
	b.flush(records...)
	same(t, b.total(), sum)
}

func TestRetention(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{2 * day, 10 * day}
	ended := stopped(record("e1", "job", 100), b.now)
	b.flush(record("a1", "web", 100), ended)
	for range 6 {
		b.pass(day)
		b.tidyAll()
	}
	same(t, b.received(Query{}), []string{"03-10 00:00 job 100", "03-10 00:00 web 100"})
	same(t, len(b.load(time.Time{})), 1)
	if _, ok := b.marks["e1"]; ok {
		t.Error("the container that ended is still remembered")
	}
	b.flush(record("a1", "web", 150))
	for range 6 {
		b.pass(day)
		b.tidyAll()
	}
	same(t, b.received(Query{}), []string{"03-16 00:00 web 50"})
	// Of a container that runs the subject stays, and the day's.
	same(t, []int{b.count("subjects"), b.count("containers"), b.count("days")}, []int{2, 1, 1})
	for range 6 {
		b.pass(day)
		b.tidyAll()
	}
	same(t, b.received(Query{}), []string(nil))
	same(t, []int{b.count("subjects"), b.count("containers"), b.count("days")}, []int{1, 1, 0})
	b.flush(record("a1", "web", 160))
	same(t, b.received(Query{}), []string{"03-28 00:00 web 10"})
}

func TestTidyIsRare(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.pass(100 * day)
	b.due = b.reading().Boot + tidyAfter
	for _, step := range []struct {
		pass time.Duration
		want int
	}{{0, 1}, {tidyAfter - 1, 1}, {1, 0}} {
		b.pass(step.pass)
		if err := b.tidy(context.Background()); err != nil {
			t.Fatal(err)
		}
		same(t, b.count("hours"), step.want)
	}
	same(t, b.due, b.reading().Boot+tidyEvery)
}
