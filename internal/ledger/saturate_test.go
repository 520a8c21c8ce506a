// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"math"
	"testing"
	"time"
)

// One absurd number breaks no flush, no history and no roll-up: sums stop at the highest
// number that SQLite has, and others are exact beside it.
func TestSumsSaturate(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{2 * day, 365 * day}
	for _, n := range []uint64{1 << 62, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64 / 3, math.MaxUint64} {
		huge := record("a1", "web", 0)
		cell := &huge.Traffic.Receive.Cells[0][0]
		cell.Bytes, cell.Packets, huge.Traffic.Receive.SYN = n, n, n
		other := huge
		other.ID = "a2"
		b.flush(huge, other, record("b1", "db", n>>40))
		b.pass(time.Hour)
	}
	exact := uint64(math.MaxUint64 >> 40)
	check := func(when string, q Query) {
		t.Helper()
		var web, db uint64
		for _, r := range b.query(q) {
			for _, amount := range []uint64{r.Receive.Bytes, r.Receive.Packets, r.Receive.TCPSYN} {
				if amount > math.MaxInt64 {
					t.Errorf("%s: %d of %s is more than there can be", when, amount, r.Key)
				}
			}
			if r.Key == "db" {
				db += r.Receive.Bytes
			} else {
				web = max(web, r.Receive.Bytes)
			}
		}
		if web != math.MaxInt64 || db != exact {
			t.Errorf("%s: %d of web, want %d; %d of db, want %d", when, web, uint64(math.MaxInt64), db, exact)
		}
	}
	check("in hours", Query{Step: Month})
	// The row of a container is lost with a damaged file: its hours say what it had.
	if _, err := b.file.write.Exec("DELETE FROM containers"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.flush(record("a1", "web", 5), record("b1", "db", exact))
	check("after a restart", Query{Step: Month})
	b.pass(5 * day)
	b.tidyAll()
	if n := b.count("hours"); n != 0 {
		t.Errorf("%d hours are left", n)
	}
	check("in days", Query{Step: Month})
	// Another container of the name, on another day: sum() would fail.
	b.flush(record("a3", "web", math.MaxInt64))
	b.pass(5 * day)
	b.tidyAll()
	check("in days of a month", Query{Step: Month})
	if n := b.count("days"); n < 3 {
		t.Errorf("%d days, want those of two names", n)
	}
	// What has no name at first is added to what has it.
	unnamed := record("a1", "", math.MaxInt64)
	b.flush(unnamed)
	b.flush(record("a1", "web", math.MaxInt64))
	check("renamed", Query{Step: Month, From: b.now.AddDate(-1, 0, 0)})
}

func TestPlusSaturates(t *testing.T) {
	const top = math.MaxInt64
	got := numbers{top, top - 1, 0, 5, 1, top}.plus(numbers{top, 1, top, 6, top, 0})
	same(t, got, numbers{top, top, top, 11, top, top})
}
