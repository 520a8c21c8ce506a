// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// noon is when tests begin, in UTC.
var noon = time.Date(2026, time.March, 10, 12, 30, 0, 0, time.UTC)

// bench is a ledger in a folder of its own, and a clock.
type bench struct {
	*Ledger
	t    testing.TB
	path string
	now  time.Time     // as it is, whatever the host's clock says
	off  time.Duration // of the host's clock
	host wallclock.Reading
	in   *time.Location
	keep [2]time.Duration
	log  lines

	periods *Periods
}

func newBench(t testing.TB) *bench {
	b := &bench{
		t: t, path: filepath.Join(t.TempDir(), "state", "ledger.db"), now: noon, in: time.UTC,
		keep: [2]time.Duration{30 * 24 * time.Hour, 365 * 24 * time.Hour},
	}
	b.restart()
	return b
}

// restart closes the ledger and makes another one on the same file.
func (b *bench) restart() {
	b.t.Helper()
	b.stop()
	log := slog.New(slog.NewTextHandler(&b.log, nil))
	b.Ledger = New(Options{
		Path:      b.path,
		Retention: func() (hours, days time.Duration) { return b.keep[0], b.keep[1] },
		Location:  b.in,
		Periods:   func() *Periods { return b.periods },
		Interval:  5 * time.Millisecond,
		Clock:     wallclock.New(b.reading, log),
		Log:       log,
	})
	b.due = 0
	b.t.Cleanup(func() { b.stop() })
}

func (b *bench) stop() {
	b.t.Helper()
	if b.Ledger == nil {
		return
	}
	if err := b.Close(); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

// reading is what the host's clocks say: it booted at noon, or when a test says so.
func (b *bench) reading() wallclock.Reading {
	booted := noon
	if !b.host.Wall.IsZero() {
		booted = b.host.Wall
	}
	return wallclock.Reading{
		Wall: b.now.Add(b.off), Boot: b.now.Sub(booted), BootID: 1 + b.host.BootID, Synced: b.host.Synced,
	}
}

// reboot is a host that boots now, with a clock that is off.
func (b *bench) reboot(off time.Duration) {
	b.off = off
	b.host = wallclock.Reading{Wall: b.now, BootID: b.host.BootID + 1}
	b.restart()
}

// onHost has the ledger look at this machine's clocks.
func (b *bench) onHost() {
	read, err := wallclock.Host()
	if err != nil {
		b.t.Fatal(err)
	}
	b.Clock = wallclock.New(read, b.Log)
}

// pass lets time go by.
func (b *bench) pass(d time.Duration) { b.now = b.now.Add(d) }

// attempt is what Keep does at a flush.
func (b *bench) attempt(records ...usage.Record) error {
	ctx := context.Background()
	if err := b.open(ctx); err != nil {
		return err
	}
	return b.write(ctx, records)
}

func (b *bench) flush(records ...usage.Record) {
	b.t.Helper()
	if err := b.attempt(records...); err != nil {
		b.t.Fatalf("flush: %v", err)
	}
}

func (b *bench) tidyAll() {
	b.t.Helper()
	if err := b.open(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	for b.due = 0; b.due == 0; {
		if err := b.tidy(context.Background()); err != nil {
			b.t.Fatalf("tidy: %v", err)
		}
	}
}

func (b *bench) query(q Query) []Row {
	b.t.Helper()
	rows, err := b.History(context.Background(), q)
	if err != nil {
		b.t.Fatalf("history: %v", err)
	}
	return rows
}

// received is the history of received bytes as "<start> <key> <bytes>".
func (b *bench) received(q Query) (got []string) {
	b.t.Helper()
	for _, r := range b.query(q) {
		got = append(got, fmt.Sprintf("%s %s %d", r.Start.Format("01-02 15:04"), r.Key, r.Receive.Bytes))
	}
	return got
}

// connections returns rows as "<key> <bytes received> <connections>".
func (b *bench) connections(q Query) (lines []string) {
	b.t.Helper()
	for _, r := range b.query(q) {
		known := "unknown"
		if r.TCP != nil {
			of := func(n *uint64) string {
				if n == nil {
					return "?"
				}
				return fmt.Sprint(*n)
			}
			known = fmt.Sprintf("{%d %s %d %s}", r.TCP.ConnectAttempts, of(r.TCP.Connects), r.TCP.Accepts, of(r.TCP.ConnectFailures))
		}
		lines = append(lines, fmt.Sprint(r.Key, " ", r.Receive.Bytes, " ", known))
	}
	return lines
}

// requests returns rows as "<key> <bytes received> <requests>".
func (b *bench) requests(q Query) (lines []string) {
	b.t.Helper()
	for _, r := range b.query(q) {
		known := "unknown"
		if r.HTTP != nil {
			known = fmt.Sprint(*r.HTTP)
		}
		lines = append(lines, fmt.Sprint(r.Key, " ", r.Receive.Bytes, " ", known))
	}
	return lines
}

// total is the sum over all history of each number of traffic.
func (b *bench) total() (sum numbers) {
	b.t.Helper()
	for _, r := range b.query(Query{Step: Month, To: b.now.AddDate(100, 0, 0)}) {
		for i, n := range []uint64{
			r.Receive.Bytes, r.Receive.Packets, r.Receive.TCPSYN,
			r.Transmit.Bytes, r.Transmit.Packets, r.Transmit.TCPSYN,
		} {
			sum[i] += int64(n)
		}
	}
	return sum
}

func (b *bench) load(since time.Time) []usage.Record {
	b.t.Helper()
	records, err := b.Load(b.now.Sub(since))
	if err != nil {
		b.t.Fatalf("load: %v", err)
	}
	return records
}

func (b *bench) count(table string) (n int) {
	b.t.Helper()
	if err := b.file.write.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

func same(t testing.TB, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// record is a running container that has counted n, and other numbers made of it.
func record(id, name string, n uint64) usage.Record {
	var t usage.Traffic
	t.Receive.Cells[usage.FamilyIPv4][usage.ProtocolTCP] = usage.Volume{Bytes: n, Packets: n / 10}
	t.Receive.SYN = n / 100
	t.Transmit.Cells[usage.FamilyIPv6][usage.ProtocolUDP] = usage.Volume{Bytes: 3 * n, Packets: n / 5}
	t.Transmit.SYN = n / 50
	return usage.Record{
		Container: usage.Container{
			ID: id, Name: name, Runtime: "docker", Image: "nginx:1", Cgroup: "/docker/" + id,
			State: usage.Running, StartedAt: noon.Add(-time.Hour), NetworkMode: "bridge", Traffic: t,
		},
		Tallies: []usage.Tally{{
			Name: "eth0", HostInterface: "veth1", Hook: "clsact", AttachedAt: noon,
			Attachments: []usage.Attachment{{Boot: "b", Generation: 7, Target: usage.OnHost(3), Counted: t}},
		}},
	}
}

// made is what the history has of records that were counted up to n.
func made(counts ...uint64) (sum numbers) {
	for _, n := range counts {
		sum = sum.plus(counted(record("", "", n)))
	}
	return sum
}

// stopped is a record of a container that has stopped.
func stopped(r usage.Record, at time.Time) usage.Record {
	r.State, r.StoppedAt = usage.Stopped, at
	return r
}

// lines is a log that is read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// host is accounts that a test counts for.
type host struct {
	mu      sync.Mutex
	records map[string]usage.Record
	changed map[string]bool
	started []string
	told    map[string]*usage.Record
	alls    int
	recalls chan struct{}
}

func newHost() *host {
	return &host{
		records: map[string]usage.Record{}, changed: map[string]bool{},
		told: map[string]*usage.Record{}, recalls: make(chan struct{}, 1),
	}
}

func (h *host) count(r usage.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[r.ID], h.changed[r.ID] = r, true
}

func (h *host) start(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, id)
	select {
	case h.recalls <- struct{}{}:
	default:
	}
}

func (h *host) Unrecalled() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.started)
}

func (h *host) Recall(id string, kept *usage.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = slices.DeleteFunc(h.started, func(s string) bool { return s == id })
	h.told[id] = kept
}

func (h *host) Recalls() <-chan struct{} { return h.recalls }

func (h *host) Pending(all bool) (pending []usage.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if all {
		h.alls++
	}
	for id, r := range h.records {
		if all || h.changed[id] {
			pending = append(pending, r)
		}
	}
	return pending
}

func (h *host) Written(records []usage.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range records {
		if cmp.Equal(h.records[r.ID], r) {
			delete(h.changed, r.ID)
		}
	}
}

func (h *host) pending() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.changed)
}

func (h *host) askedForAll() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.alls > 0
}

func (h *host) recalled(id string) (kept *usage.Record, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept, ok = h.told[id]
	return kept, ok
}

// keeping runs Keep until the test ends, or the returned function is called.
func (b *bench) keeping(a accounts) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Keep(ctx, a) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("keep: %v", err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

// eventually waits for something to hold.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for range 6000 {
		if holds() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func names(t testing.TB, folder string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
