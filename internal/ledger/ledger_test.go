// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/trusted"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

func TestLoadReturnsWhatWasWritten(t *testing.T) {
	b := newBench(t)
	full := record("a1", "web", 1000)
	full.ParentID, full.Namespace, full.Pod, full.Reason = "p1", "prod", "web-1", usage.AttachFailed
	full.Labels = map[string]string{"team": "ä", "tier": `"1"`}
	full.Tallies = append(full.Tallies, usage.Tally{
		Name: "eth1", Final: full.Traffic,
		Attachments: []usage.Attachment{{Generation: 8, Counted: full.Traffic, Folded: true}},
	})
	full.Traffic = full.Traffic.Plus(full.Traffic)
	b.flush(full, record("b2", "db", 5), stopped(record("c3", "late", 5), noon), stopped(record("d4", "early", 5), noon.Add(-time.Hour)))
	b.restart()
	same(t, b.load(noon.Add(-time.Minute)), []usage.Record{full, record("b2", "db", 5), stopped(record("c3", "late", 5), noon)})
}

func TestLoadOfNoLedgerMakesNone(t *testing.T) {
	b := newBench(t)
	same(t, b.load(time.Time{}), []usage.Record(nil))
	if _, err := os.Stat(filepath.Dir(b.path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made: %v", err)
	}
}

func TestFolderAndFileArePrivate(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 5))
	for _, path := range []string{filepath.Dir(b.path), b.path, b.path + "-wal"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode()&0o077 != 0 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
	}
}

func TestPathIsTakenLiterally(t *testing.T) {
	b := newBench(t)
	b.path = filepath.Join(t.TempDir(), "a?b#c%20 d", "ledger.db")
	b.restart()
	b.flush(record("a1", "web", 5))
	same(t, names(t, filepath.Dir(b.path)), []string{"ledger.db", "ledger.db-shm", "ledger.db-wal"})
}

func TestUsageCountsOnce(t *testing.T) {
	b := newBench(t)
	a := func(n uint64) usage.Record { return record("a1", "web", n) }
	b.flush(a(1000))
	b.flush(a(1000))
	b.restart()
	b.flush(a(1000), record("b2", "db", 700))
	b.pass(time.Hour)
	b.restart()
	b.load(noon)
	b.flush(a(1500), record("b2", "db", 700))
	b.flush(a(1500))
	same(t, b.total(), made(1500, 700))
	same(t, b.received(Query{Step: Hour}), []string{
		"03-10 12:00 db 700", "03-10 12:00 web 1000", "03-10 13:00 web 500",
	})
}

func TestUsageNeverGoesDown(t *testing.T) {
	b := newBench(t)
	for _, n := range []uint64{1000, 400, 999, 1000, 1200, 0, 1300} {
		b.flush(record("a1", "web", n))
	}
	same(t, b.total(), made(1300))
}

func TestSeededIsNoHistory(t *testing.T) {
	b := newBench(t)
	r := record("a1", "web", 1000)
	r.Receive.Seeded = usage.Volume{Bytes: 1 << 40, Packets: 1 << 30}
	b.flush(r)
	same(t, b.total(), made(1000))
}

// What was mended is part of the hour in which that was noticed.
func TestMendedIsHistory(t *testing.T) {
	b := newBench(t)
	r := record("a1", "web", 1000)
	b.flush(r)
	b.pass(time.Hour)
	r.Receive.Mended = usage.Volume{Bytes: 500, Packets: 5}
	r.Transmit.Mended = usage.Volume{Bytes: 70, Packets: 7}
	b.flush(r)
	b.flush(r)
	same(t, b.received(Query{Step: Hour}), []string{"03-10 12:00 web 1000", "03-10 13:00 web 500"})
	want := made(1000)
	want[0], want[1], want[3], want[4] = want[0]+500, want[1]+5, want[3]+70, want[4]+7
	same(t, b.total(), want)
}

func TestUsageFollowsTheName(t *testing.T) {
	const id = "a1"
	tests := map[string]struct {
		flushes []usage.Record
		want    []string
	}{
		"named later": {
			[]usage.Record{record(id, id, 100), record(id, "web", 100)},
			[]string{"03-10 12:00 web 100"},
		},
		"named later, with new usage": {
			[]usage.Record{record(id, "", 100), record(id, "web", 150)},
			[]string{"03-10 12:00 web 150"},
		},
		"named, unknown after a restart, named again": {
			[]usage.Record{record(id, "web", 100), record(id, id, 150), record(id, "web", 150), record(id, "web", 170)},
			[]string{"03-10 12:00 web 170"},
		},
		"given another name": {
			[]usage.Record{record(id, "web", 100), record(id, "shop", 150), record(id, "web", 170)},
			[]string{"03-10 12:00 shop 50", "03-10 12:00 web 120"},
		},
		"never named": {
			[]usage.Record{record(id, id, 100), record(id, id, 150)},
			[]string{"03-10 12:00 a1 150"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			for _, r := range test.flushes {
				b.flush(r)
			}
			same(t, b.received(Query{Step: Hour}), test.want)
		})
	}
}

func TestLostRowCountsNothingTwice(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 1000))
	b.pass(time.Hour)
	b.flush(record("a1", "shop", 1500))
	if _, err := b.file.write.Exec("DELETE FROM containers"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.flush(record("a1", "shop", 1600))
	same(t, b.total(), made(1600))
}

// A flush reaches the disk before it is done: the connection that writes syncs the log
// with each commit. That the disk then has it can be shown by a real power cut alone.
func TestFlushIsSynced(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 1000))
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2"} { // 2 is FULL
		var got string
		if err := b.file.write.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s is %s, want %s", pragma, got, want)
		}
	}
}

// What a flush has written is in the file and its log, while the process lives and
// nothing was closed. They are read by way of the page cache: TestFlushIsSynced is about
// the disk.
func TestFileAndLogHaveEachFlush(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 1000))
	b.flush(record("b2", "db", 500))
	copied := newBench(t)
	if err := os.Mkdir(filepath.Dir(copied.path), 0o700); err != nil {
		t.Fatal(err)
	}
	// The index in -shm may be lost in a power cut.
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(b.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied.path+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	same(t, len(copied.load(noon)), 2)
	same(t, copied.total(), made(1000, 500))
}

func TestKeep(t *testing.T) {
	b, h := newBench(t), newHost()
	b.flush(stopped(record("old", "web", 100), noon))
	b.restart()
	stop := b.keeping(h)
	h.start("old")
	h.start("new")
	eventually(t, "recalled", func() bool { _, ok := h.recalled("new"); return ok })
	kept, _ := h.recalled("old")
	want := stopped(record("old", "web", 100), noon)
	same(t, kept, &want)
	if kept, _ := h.recalled("new"); kept != nil {
		t.Errorf("recalled of a new container: %v", kept)
	}
	h.count(record("new", "db", 50))
	eventually(t, "written", func() bool { return h.pending() == 0 })
	b.Interval = time.Hour
	h.count(record("new", "db", 80))
	stop()
	if h.pending() != 0 {
		t.Error("the last flush is missing")
	}
	same(t, b.total(), made(100, 80))
	status := b.Status()
	if !status.Up || status.Error != "" || !status.LastFlush.Equal(b.now) {
		t.Errorf("status %+v", status)
	}
}

// A disk that hangs stands in for here: the one connection for writing is taken.
func TestRecallDoesNotWaitForAFlush(t *testing.T) {
	b, h := newBench(t), newHost()
	b.flush(record("old", "web", 100))
	other, err := b.file.write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	h.count(record("new", "db", 50))
	b.keeping(h)
	h.start("old")
	eventually(t, "recalled", func() bool { kept, _ := h.recalled("old"); return kept != nil })
	if h.pending() != 1 {
		t.Error("written by two at once")
	}
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written", func() bool { return h.pending() == 0 })
}

// Somebody is at the disk and does not come back.
func TestLoadDoesNotWaitForEver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	synctest.Test(t, func(t *testing.T) {
		l := New(Options{Path: path, Clock: wallclock.New(func() wallclock.Reading { return wallclock.Reading{Wall: noon} }, nil)})
		l.disk <- struct{}{}
		if _, err := l.Load(0); !errors.Is(err, errHangs) {
			t.Errorf("load: %v", err)
		}
		<-l.disk
		synctest.Wait()
		if records, err := l.Load(0); err != nil || len(records) > 0 {
			t.Errorf("load: %v, %v", records, err)
		}
	})
}

// Close waits for a look-up, and gives up on one that hangs. Nothing opens the file after it.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	synctest.Test(t, func(t *testing.T) {
		l := New(Options{Path: path})
		l.recalled <- struct{}{}
		time.AfterFunc(stopWithin-time.Second, func() { <-l.recalled })
		began := time.Now()
		if err := l.Close(); err != nil || time.Since(began) != stopWithin-time.Second {
			t.Errorf("close: %v after %v", err, time.Since(began))
		}
		if err := l.Documents("quota").Save(map[string][]byte{"a": nil}, nil); !errors.Is(err, errHangs) {
			t.Errorf("save: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("made after Close: %v", err)
		}

		l = New(Options{Path: path})
		l.recalled <- struct{}{}
		for range 2 {
			if err := l.Close(); err == nil || !strings.Contains(err.Error(), "does not answer") {
				t.Errorf("close beside a look-up that hangs: %v", err)
			}
		}
		<-l.recalled
	})
}

// A ledger that can't be read may know more than we do: nothing is said of it, and
// nothing is written over it, until it can be.
func TestRecallWaitsForLedger(t *testing.T) {
	b, h := newBench(t), newHost()
	if err := os.WriteFile(filepath.Dir(b.path), []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start("a1")
	h.count(record("a1", "web", 50))
	b.keeping(h)
	eventually(t, "failed", func() bool { return testutil.ToFloat64(b.metrics.failures) > 3 })
	if _, ok := h.recalled("a1"); ok {
		t.Error("recalled by a ledger that can't be read")
	}
	if n := b.log.count("usage is not kept on disk"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if s := b.Status(); s.Up || !strings.Contains(s.Error, "not a directory") {
		t.Errorf("status %+v", s)
	}
	if err := os.Remove(filepath.Dir(b.path)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recalled", func() bool { _, ok := h.recalled("a1"); return ok })
	eventually(t, "written", func() bool { return h.pending() == 0 && b.Status().Up })
	eventually(t, "told", func() bool { return b.log.count("kept on disk again") == 1 })
}

func TestHistoryOfAnotherGoroutine(t *testing.T) {
	b, h := newBench(t), newHost()
	b.keeping(h)
	for n := uint64(1); n <= 50; n++ {
		h.count(record("a1", "web", 100*n))
		up := b.Status().Up
		if _, err := b.History(context.Background(), Query{}); err != nil && up {
			t.Fatal(err)
		}
	}
	eventually(t, "written", func() bool { return h.pending() == 0 })
	same(t, b.total(), made(5000))
}

func TestMetrics(t *testing.T) {
	b, h := newBench(t), newHost()
	stop := b.keeping(h)
	eventually(t, "up", func() bool { return b.Status().Up })
	stop()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Metrics()...)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	err = testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP nettally_ledger_up Whether usage is kept on disk.
# TYPE nettally_ledger_up gauge
nettally_ledger_up 1
# HELP nettally_ledger_last_flush_timestamp_seconds When usage was last kept on disk, 0 if not yet.
# TYPE nettally_ledger_last_flush_timestamp_seconds gauge
nettally_ledger_last_flush_timestamp_seconds 1.7731458e+09
# HELP nettally_ledger_clock_set_back Whether the clock is behind the last write; nothing is pruned then.
# TYPE nettally_ledger_clock_set_back gauge
nettally_ledger_clock_set_back 0
# HELP nettally_ledger_damaged_total Damaged files that were set aside.
# TYPE nettally_ledger_damaged_total counter
nettally_ledger_damaged_total 0
# HELP nettally_ledger_flush_failures_total Flushes that failed. What they were to write stays pending.
# TYPE nettally_ledger_flush_failures_total counter
nettally_ledger_flush_failures_total 0
`), "nettally_ledger_up", "nettally_ledger_last_flush_timestamp_seconds", "nettally_ledger_clock_set_back",
		"nettally_ledger_damaged_total", "nettally_ledger_flush_failures_total")
	if err != nil {
		t.Error(err)
	}
}

// A ledger that others can change is neither read nor written: it could hold any usage.
func TestLedgerOfOthers(t *testing.T) {
	need.Root(t)
	const stranger = 1000
	for name, path := range map[string]func(b *bench) string{
		"the file":            func(b *bench) string { return b.path },
		"the folder":          func(b *bench) string { return filepath.Dir(b.path) },
		"the folder above it": func(b *bench) string { return filepath.Dir(filepath.Dir(b.path)) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.flush(record("a1", "web", 1000))
			b.stop()
			if err := os.Chown(path(b), stranger, stranger); err != nil {
				t.Fatal(err)
			}
			b.restart()
			if records, err := b.Load(time.Hour); !errors.Is(err, trusted.ErrUntrusted) || len(records) > 0 {
				t.Errorf("load: %d records, %v, want ErrUntrusted", len(records), err)
			}
			if err := b.attempt(record("a1", "web", 2000)); !errors.Is(err, trusted.ErrUntrusted) {
				t.Errorf("write: %v, want ErrUntrusted", err)
			}
		})
	}
}
