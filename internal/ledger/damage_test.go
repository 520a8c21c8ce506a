// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

const page = 4096

// crowd is a ledger of many pages, put into the file from its log, and its records.
func crowd(b *bench, hours int) (records []usage.Record) {
	b.t.Helper()
	for hour := range uint64(hours) {
		records = nil
		for i := range 100 {
			records = append(records, record(fmt.Sprintf("id%03d", i), fmt.Sprintf("name%03d", i), 10*(hour+1)))
		}
		b.flush(records...)
		b.pass(time.Hour)
	}
	if _, err := b.file.write.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		b.t.Fatal(err)
	}
	return records
}

// garble writes garbage over pages of a file, as a disk does, or another program.
func garble(t testing.TB, path string, pages ...int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range pages {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5, 0x17, 0xFF}, page)[:page], int64(n)*page); err != nil {
			t.Fatal(err)
		}
	}
}

// pagesOf returns the pages of a table's tree that have rows of it.
func pagesOf(b *bench, table string) (pages []int) {
	b.t.Helper()
	rows, err := b.file.write.Query("SELECT pageno - 1 FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", table)
	if err != nil {
		b.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			b.t.Fatal(err)
		}
		pages = append(pages, n)
	}
	if rows.Err() != nil || len(pages) == 0 {
		b.t.Fatalf("table %s has %d pages, %v", table, len(pages), rows.Err())
	}
	return pages
}

// checkSetAside checks that the damaged file is beside the new one, and told.
func checkSetAside(b *bench, n int) {
	b.t.Helper()
	found, err := filepath.Glob(b.path + ".damaged-*Z")
	if err != nil || len(found) != n || b.Status().SetAside != found[n-1] {
		b.t.Fatalf("set aside: %v, %v; status %+v", found, err, b.Status())
	}
	if b.log.count("the ledger is damaged; it was set aside") != n || b.log.count("set_aside="+found[n-1]) != 1 {
		b.t.Errorf("log:\n%s", b.log.buf.String())
	}
}

func TestDamagedWhileClosed(t *testing.T) {
	need.Native(t)
	tests := map[string]struct {
		pages func(b *bench) []int
		hours int // of 30 that are to be there
		rows  int // of 100 containers
	}{
		"two pages of hours": {func(b *bench) []int { p := pagesOf(b, "hours"); return []int{p[1], p[len(p)-2]} }, 24, 100},
		"last page of hours": {func(b *bench) []int { p := pagesOf(b, "hours"); return p[len(p)-1:] }, 27, 100},
		"of before there were users": {func(b *bench) []int {
			b.asBeforeUsers()
			p := pagesOf(b, "hours")
			return []int{p[1], p[len(p)-2]}
		}, 24, 100},
		"page of containers":  {func(b *bench) []int { return pagesOf(b, "containers")[1:2] }, 30, 80},
		"all of containers":   {func(b *bench) []int { return pagesOf(b, "containers") }, 30, 0},
		"all of subjects":     {func(b *bench) []int { return pagesOf(b, "subjects") }, 30, 100},
		"an index":            {func(b *bench) []int { return pagesOf(b, "hours_subject")[1:2] }, 30, 100},
		"the header":          {func(*bench) []int { return []int{0} }, 0, 0},
		"another file's text": {nil, 0, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			records := crowd(b, 30)
			if test.pages == nil {
				b.stop()
				if err := os.WriteFile(b.path, bytes.Repeat([]byte("not a ledger\n"), 1000), 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				pages := test.pages(b)
				b.stop()
				garble(t, b.path, pages...)
			}
			b.restart()
			if got := len(b.load(noon)); got < test.rows || got > 100 {
				t.Errorf("%d containers left, expected %d or more", got, test.rows)
			}
			checkSetAside(b, 1)
			if err := b.open(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := periods(b); got < test.hours {
				t.Errorf("%d whole hours left, expected %d or more", got, test.hours)
			}
			before := b.total()
			if !b.all {
				t.Error("not everything is to be written")
			}
			for i := range records {
				records[i] = record(records[i].ID, records[i].Name, 10*30+5)
			}
			b.flush(records...)
			b.flush(records...)
			checkNotDoubled(t, before, b.total(), test.hours)
			if err := Check(b.path); err != nil && !strings.Contains(err.Error(), "the clock") {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// periods counts the hours whose usage is all there.
func periods(b *bench) (whole int) {
	b.t.Helper()
	sums := map[time.Time]uint64{}
	for _, r := range b.query(Query{Step: Hour}) {
		sums[r.Start] += r.Receive.Bytes
	}
	for _, sum := range sums {
		if sum == 100*10 {
			whole++
		}
	}
	return whole
}

// checkNotDoubled checks that 100 containers that counted up to 305 are in the history
// once, and all that they counted since the damage.
func checkNotDoubled(t *testing.T, before, after numbers, hours int) {
	t.Helper()
	most := 100 * counted(record("", "", 305))[0]
	if after[0] > most {
		t.Errorf("received %d, and counted %d", after[0], most)
	}
	if after[0] < before[0]+100*5 {
		t.Errorf("received %d after %d: not all that came", after[0], before[0])
	}
	if hours == 30 && after[0] != most {
		t.Errorf("received %d, expected %d", after[0], most)
	}
}

func TestDamagedWhileOpen(t *testing.T) {
	need.Native(t)
	b, h := newBench(t), newHost()
	records := crowd(b, 30)
	hours := pagesOf(b, "hours")
	b.restart()
	for _, r := range b.load(noon) {
		h.count(r)
	}
	b.keeping(h)
	eventually(t, "written", func() bool { return h.pending() == 0 && b.Status().Up })
	before := b.total()
	same(t, before[0], int64(100*300))

	b.mu.RLock()
	b.file.history.SetMaxIdleConns(0) // nor pages that are known already
	b.mu.RUnlock()
	garble(t, b.path, hours[1], hours[2])
	eventually(t, "damage found", func() bool {
		_, err := b.History(context.Background(), Query{Step: Hour})
		return err != nil
	})
	eventually(t, "written again", h.askedForAll)
	eventually(t, "written", func() bool { return h.pending() == 0 })
	checkSetAside(b, 1)
	left := b.total()
	if left[0] < 100*10*22 || left[0] >= before[0] {
		t.Errorf("%d left of %d", left[0], before[0])
	}
	// What is lost stays lost: it is not counted into the present hour.
	for _, r := range records {
		h.count(record(r.ID, r.Name, 10*30+5))
	}
	eventually(t, "written", func() bool { return h.pending() == 0 })
	same(t, b.total()[0], left[0]+100*5)
	if _, err := os.Stat(b.path); err != nil {
		t.Error(err)
	}
}

// The page is found damaged by the flush itself.
func TestDamagedWhileWritten(t *testing.T) {
	need.Native(t)
	b := newBench(t)
	crowd(b, 30)
	pages := pagesOf(b, "containers")
	b.restart()
	if err := b.ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	garble(t, b.path, pages...)
	if _, err := b.file.write.Exec("PRAGMA shrink_memory"); err != nil { // nor pages that are known already
		t.Fatal(err)
	}
	r := record("id050", "name050", 400)
	if err := b.attempt(r); !isDamage(err) {
		t.Fatalf("flush: %v", err)
	}
	b.flush(r)
	checkSetAside(b, 1)
	same(t, b.total()[0], int64(100*300+100))
}

func TestDamagedFilesArePiledUpToALimit(t *testing.T) {
	b := newBench(t)
	for range setAsideMax + 3 {
		b.pass(time.Second)
		b.restart()
		b.flush(record("a1", "web", 100))
		b.stop()
		garble(t, b.path, 0)
	}
	found, err := filepath.Glob(b.path + ".damaged-*")
	if err != nil || len(found) != setAsideMax {
		t.Errorf("%v, %v", found, err)
	}
}

func TestCutOff(t *testing.T) {
	need.Native(t)
	for name, size := range map[string]int64{"to nothing": 0, "in a page": 10*page + 77, "to the header": page} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			crowd(b, 5)
			b.stop()
			if err := os.Truncate(b.path, size); err != nil {
				t.Fatal(err)
			}
			b.restart()
			b.flush(record("a1", "web", 100))
			b.flush(record("a1", "web", 150))
			if b.total()[0] < 150 {
				t.Errorf("total %v", b.total())
			}
			same(t, b.count("containers") >= 1, true)
		})
	}
}

// Someone deletes the file, or puts another one there, while it is open.
func TestTakenAway(t *testing.T) {
	b, h := newBench(t), newHost()
	h.count(record("a1", "web", 100))
	h.count(record("b2", "db", 100))
	b.keeping(h)
	eventually(t, "written", func() bool { return h.pending() == 0 })
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "made anew", func() bool { _, err := os.Stat(b.path); return err == nil })
	h.count(record("a1", "web", 150))
	eventually(t, "written", func() bool { return h.pending() == 0 })
	same(t, b.total(), made(150).above(made(100)))
	eventually(t, "all there", func() bool { return len(b.load(noon)) == 2 })
	same(t, b.log.count("was taken away"), 1)
	same(t, names(t, filepath.Dir(b.path)), []string{"ledger.db", "ledger.db-shm", "ledger.db-wal"})
}
