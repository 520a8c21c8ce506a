// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

func thousand(n uint64) (records []usage.Record) {
	for i := range 1000 {
		id := fmt.Sprintf("%064x", i)
		r := record(id, fmt.Sprintf("name%d", i), n)
		r.Labels = map[string]string{"team": "a", "com.docker.compose.service": "web"}
		records = append(records, r)
	}
	return records
}

// BenchmarkFlush writes 1,000 containers that have all counted.
func BenchmarkFlush(b *testing.B) {
	l := newBench(b)
	n := uint64(1000)
	l.flush(thousand(n)...)
	for b.Loop() {
		n += 1000
		l.flush(thousand(n)...)
	}
}

// BenchmarkLoad reads 1,000 containers.
func BenchmarkLoad(b *testing.B) {
	l := newBench(b)
	l.flush(thousand(1000)...)
	for b.Loop() {
		if n := len(l.load(noon)); n != 1000 {
			b.Fatal(n)
		}
	}
}

// BenchmarkLarge opens, checks, asks and prunes a ledger with 90 days of 1,000 containers.
func BenchmarkLarge(b *testing.B) {
	l := newBench(b)
	l.keep[0] = 90 * day
	l.flush(thousand(1000)...)
	const hours = 90 * 24
	_, err := l.file.write.Exec(`INSERT INTO hours SELECT start - 3600 * h.value, subject, ` + numberColumns + `
		FROM hours, (SELECT value FROM json_each('[` + list(hours) + `]')) h`)
	if err != nil {
		b.Fatal(err)
	}
	l.stop()
	info, err := os.Stat(l.path)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d MB", info.Size()>>20)
	timed := func(name string, work func()) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				work()
			}
		})
	}
	timed("open", func() { l.restart(); l.load(noon) })
	timed("hours of a day", func() { l.query(Query{Step: Hour, From: noon.Add(-day)}) })
	timed("months", func() { l.query(Query{Step: Month}) })
	timed("days of a name", func() { l.query(Query{Step: Day, Name: "name7"}) })
	timed("quick check", func() {
		if err := quickCheck(context.Background(), l.file.lookup); err != nil {
			b.Fatal(err)
		}
	})
	l.pass(2 * day)
	timed("roll up", func() {
		if err := l.tidy(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
}

// list is the numbers up to n, as in JSON.
func list(n int) string {
	numbers := make([]string, n)
	for i := range numbers {
		numbers[i] = strconv.Itoa(i + 1)
	}
	return strings.Join(numbers, ",")
}

// A flush of 1,000 containers, each of a name of its own: with and without totals of periods.
func BenchmarkPeriods(b *testing.B) {
	for name, by := range map[string][]string{"off": nil, "by name": {ByName}} {
		b.Run(name, func(b *testing.B) {
			w := newBench(b)
			if by != nil {
				w.periods = byDay(by...)
				w.periods.Keys = 1000
			}
			n := uint64(0)
			for b.Loop() {
				n += 100
				w.flush(thousand(n)...)
			}
		})
	}
}
