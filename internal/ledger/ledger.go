// SPDX-License-Identifier: Apache-2.0

// Package ledger keeps the totals of containers and their usage over time in one
// SQLite file, so that both outlive this process and the host.
//
// # Durability
//
// The file is in WAL mode with synchronous=FULL: what [Ledger.Keep] has written is on
// the disk, and a power cut costs at most what was counted since the last flush, of
// the containers the kernel forgets with it. A flush is one transaction: it is there
// or it is not. The records of a flush that failed stay pending and come with the
// next one.
//
// Counting waits for nothing in here. A disk that is full, read-only or hangs is
// logged, shown in the metrics and tried again at every flush. A damaged file is set
// aside as <path>.damaged-<time>, what can be read of it is copied into a new one, and
// everything in memory is written again.
//
// # Schema
//
// PRAGMA user_version is the version of the schema. Times are Unix time: seconds in
// the history, nanoseconds elsewhere.
//
//   - containers: one row per container, with its identity, its tallies as JSON, and
//     its watermarks: how much of what it counted is part of the history.
//   - hours, days: six numbers per beginning and subject. The difference between a
//     record and its watermarks is added to the hour in which it is flushed, so a
//     record that is written twice counts once, and one that went down counts nothing.
//     What was seeded is part of no hour, what was mended part of that in which it was.
//   - subjects: whose usage it is, as its identity was at the flush. Usage that was
//     recorded before a container's name was known is put under its name.
//   - meta: when the ledger was last written with a clock that was trusted: by that, since
//     boot, and of which boot. Since when the clock has gone steadily, in the same way.
//   - periods: bytes per period and key, see [Periods]. Added to with the hours, and never taken
//     from. held has the usage of new containers without a name, which is in no period yet.
//   - identity: the UUID that was made with the file.
//   - documents: what other rooms remember, by kind and key, see [Documents].
//
// Hours that are older than the retention are added up to days, the local days of
// time.Local at that moment. A day knows names but no container ids, so that its size
// follows the names: history by container reaches back as far as the hours do.
package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nettally/nettally/internal/trusted"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

const (
	flushInterval = 10 * time.Second
	recallWithin  = 2 * time.Second  // a container that starts waits no longer for the disk
	loadWithin    = time.Minute      // neither does the process, before it counts
	stopWithin    = 10 * time.Second // nor its end
)

// Options say where the ledger is and how far it reaches back.
type Options struct {
	// Path is the file. Its folder is made when the ledger is first written.
	Path string
	// Retention is how long hours and days are kept, and stopped containers as long
	// as hours. A day that has begun is kept in hours.
	Retention func() (hours, days time.Duration)
	// Interval is the time between two flushes, 0 for 10 s.
	Interval time.Duration
	// Labels returns the keys of labels that are kept. History may be asked for those, and for
	// what other usage has.
	Labels func() []string
	// Periods says by which periods usage is added up; nil, or nil returned, is by none.
	Periods func() *Periods
	// Location says when hours, days and months begin; nil is time.Local.
	Location *time.Location
	// Clock is held against the last write, and says what time it is.
	Clock *wallclock.Clock
	Log   *slog.Logger
}

// Ledger is the file with everybody's usage. At most one process may keep a file;
// others may read it.
type Ledger struct {
	Options
	metrics metrics

	// disk holds a token while the file is opened or written. What follows belongs to
	// who put it there.
	disk       chan struct{}
	referenced bool        // Clock knows of the last write
	checked    fs.FileInfo // the file that has passed its check
	stale      bool        // the open file is to be opened anew
	all        bool        // everything is to be written, not only what has changed
	rest       remains     // of a damaged file, still to be taken over
	losses     int         // how often the file was made anew, or set aside
	// marks are the watermarks this process has seen on the disk. They hold when rows
	// are lost with a damaged file, whose usage the history may still have.
	marks map[string]numbers
	upkeep
	totals totals

	suspect  atomic.Bool   // a reader found the file damaged
	recalled chan struct{} // holds a token while containers are looked up
	tried    chan struct{} // closed once the file is open, or could not be opened
	try      sync.Once     // closes it

	mu   sync.RWMutex // held for reading while file is read, for writing to replace it
	file *file        // nil while there is none

	statusMu sync.Mutex
	status   Status

	closed func() error // end, once
}

// Status is how the keeping goes.
type Status struct {
	Up        bool      // the last attempt to write succeeded
	Error     string    // or why it did not
	LastFlush time.Time // that succeeded; zero if none yet
	SetAside  string    // the last damaged file of this process
}

// New returns a ledger. It opens nothing; no error of the disk is fatal later on.
func New(o Options) *Ledger {
	if o.Interval == 0 {
		o.Interval = flushInterval
	}
	if o.Location == nil {
		o.Location = time.Local
	}
	l := &Ledger{
		Options:  o,
		metrics:  newMetrics(),
		disk:     make(chan struct{}, 1),
		marks:    map[string]numbers{},
		upkeep:   upkeep{due: tidyAfter},
		recalled: make(chan struct{}, 1),
		tried:    make(chan struct{}),
	}
	l.closed = sync.OnceValue(l.end)
	return l
}

// OpenToRead opens a ledger for [Ledger.History], with or without a process that keeps it. It
// makes and changes nothing, and the ledger is as it was last written. The caller closes it.
func OpenToRead(ctx context.Context, o Options) (*Ledger, error) {
	l := New(o)
	path, err := filepath.Abs(l.Path)
	for _, kept := range []string{filepath.Dir(path), path} {
		err = cmp.Or(err, trusted.Check(kept))
	}
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	f, v, err := openReadable(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	if newest := len(migrations()); v != newest {
		return nil, errors.Join(fmt.Errorf("open ledger %s: it is of another version of nettally (%d, here %d)", path, v, newest), f.shut())
	}
	return l, l.replace(f)
}

// Load returns what is kept of the containers that ran when it was last written, or
// stopped within a time. A ledger that does not exist yet has none. One on a disk that
// can't be written is read all the same; where its index (-shm) is gone, as it was at
// the last checkpoint.
//
// It gives up on a disk that does not answer within a minute: nothing is counted before.
func (l *Ledger) Load(within time.Duration) ([]usage.Record, error) {
	type loaded struct {
		records []usage.Record
		err     error
	}
	done := make(chan loaded, 1)
	go func() { // Close waits for it, see there
		records, err := l.load(within)
		done <- loaded{records, err}
	}()
	select {
	case found := <-done:
		return found.records, found.err
	case <-time.After(loadWithin):
		return nil, fmt.Errorf("load containers: %w", errHangs)
	}
}

func (l *Ledger) load(within time.Duration) ([]usage.Record, error) {
	l.disk <- struct{}{}
	defer func() { <-l.disk }()
	if _, err := os.Stat(l.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ctx := context.Background()
	openErr := l.ready(ctx)
	var records []usage.Record
	err := l.read(ctx, func(ctx context.Context, f *file) (err error) {
		clock, err := l.look(ctx, f.lookup)
		if err != nil {
			return err
		}
		since := nanos(clock.Now.Add(-within))
		records, err = l.loadRecords(ctx, f.lookup, "state = ? OR stopped_at > ?", string(usage.Running), since)
		return err
	})
	switch {
	case err != nil && openErr != nil:
		return nil, fmt.Errorf("load containers: %w", openErr)
	case err != nil:
		return nil, fmt.Errorf("load containers: %w", err)
	}
	if openErr != nil {
		l.Log.Warn("usage was read, but can't be written yet", "path", l.Path, "err", openErr)
	}
	for _, r := range records {
		l.marks[r.ID] = l.marks[r.ID].highest(counted(r))
	}
	return records, nil
}

// read runs work on the open file, which stays open meanwhile. Its context ends when
// the file is to be replaced.
func (l *Ledger) read(ctx context.Context, work func(context.Context, *file) error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.file == nil {
		return errors.New("the ledger is not open")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.file.closing, cancel)()
	err := work(ctx, l.file)
	if isDamage(err) {
		l.suspect.Store(true)
	}
	return err
}

// Close closes the file and waits for the ledger's goroutines. Nothing opens the file
// again: what comes later is told that the disk does not answer. Closing again does
// nothing and returns the same error.
//
// It gives up on a disk that does not answer within ten seconds. A system call on such a
// disk can't be interrupted, so three goroutines may outlive Close then: one that has the
// disk, one that looks up containers, and one that waits for both to close the file.
func (l *Ledger) Close() error { return l.closed() }

func (l *Ledger) end() error {
	ended := make(chan error, 1)
	go func() {
		// Each goroutine holds one of the two tokens for as long as it is at work. They
		// are not given back.
		l.disk <- struct{}{}
		err := l.replace(nil)
		l.recalled <- struct{}{}
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(stopWithin):
		return fmt.Errorf("close ledger %s: its disk does not answer", l.Path)
	}
}

// replace closes the file and goes on with another one, or none. Nobody reads it any
// more when it is closed: SQLite would go on writing to its name.
func (l *Ledger) replace(next *file) error {
	l.mu.RLock()
	old := l.file
	l.mu.RUnlock()
	if old != nil {
		old.close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file = next
	if next != nil {
		l.try.Do(func() { close(l.tried) })
	}
	if old == nil {
		return nil
	}
	return old.shut()
}

// Status returns how the keeping goes. It is safe for concurrent use and does not
// wait for the disk.
func (l *Ledger) Status() Status {
	l.statusMu.Lock()
	defer l.statusMu.Unlock()
	return l.status
}

// note changes the status.
func (l *Ledger) note(change func(*Status)) {
	l.statusMu.Lock()
	defer l.statusMu.Unlock()
	change(&l.status)
}

// queryer is a connection, a pool of them or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}
