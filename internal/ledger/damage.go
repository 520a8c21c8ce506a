// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	sqlite3 "modernc.org/sqlite/lib"
)

// setAsideMax is how many damaged files are left lying about. On a disk that damages
// one after another they would fill it.
const setAsideMax = 5

// ready opens the ledger for writing unless it is, checks it, sets it aside if it is
// damaged, and takes over the containers that can be read of that one. When it fails,
// the ledger may be open for reading. The caller holds the disk.
func (l *Ledger) ready(ctx context.Context) error {
	defer l.try.Do(func() { close(l.tried) })
	err := l.openGood(ctx)
	if !isDamage(err) {
		return err
	}
	if asideErr := l.setAside(err); asideErr != nil {
		return fmt.Errorf("%w (%w)", asideErr, err)
	}
	return l.openGood(ctx)
}

func (l *Ledger) openGood(ctx context.Context) error {
	if l.suspect.Swap(false) {
		return fmt.Errorf("%w: SQLite could not read it", errDamaged)
	}
	if err := l.reopen(ctx); err != nil {
		return err
	}
	if l.checked == nil || !os.SameFile(l.checked, l.file.info) {
		if err := quickCheck(ctx, l.file.write); err != nil {
			return err
		}
		l.checked = l.file.info
	}
	return l.rest.containers(ctx, l)
}

// reopen opens the file if it is not open for writing, or not the one under the path.
func (l *Ledger) reopen(ctx context.Context) error {
	moved := l.file != nil && l.file.moved()
	if l.file != nil && l.file.write != nil && !l.stale && !moved {
		return nil
	}
	if moved {
		l.Log.Error("the ledger was taken away; what it knew of the past is lost", "path", l.Path)
	}
	if l.stale || moved {
		if err := l.replace(nil); err != nil {
			l.Log.Debug("close ledger", "err", err)
		}
	}
	f, made, err := openFile(ctx, l.Path)
	if f == nil {
		return err
	}
	l.stale = false
	l.all = l.all || made
	if made {
		l.losses++
	}
	if closeErr := l.replace(f); closeErr != nil {
		l.Log.Debug("close ledger", "err", closeErr)
	}
	return err
}

// setAside renames the file and what SQLite keeps beside it.
func (l *Ledger) setAside(cause error) error {
	if err := l.replace(nil); err != nil {
		l.Log.Debug("close damaged ledger", "err", err)
	}
	aside := l.Path + ".damaged-" + l.Clock.Now().UTC().Format("20060102T150405.000Z")
	// The log goes first: beside a new file it would be taken for that one's.
	for _, suffix := range []string{"-wal", "-shm", ""} {
		err := os.Rename(l.Path+suffix, aside+suffix)
		if err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			// Without the paths: the same trouble is to read the same a while later.
			return fmt.Errorf("set damaged ledger aside: %w", errors.Unwrap(err))
		}
	}
	l.rest, l.all, l.checked = remains{path: aside}, true, nil
	l.losses++
	l.metrics.damaged.Inc()
	l.note(func(s *Status) { s.SetAside = aside })
	l.Log.Error("the ledger is damaged; it was set aside, and what can be read is taken over", "path", l.Path,
		"set_aside", aside, "err", cause)
	l.dropOldest()
	return nil
}

func (l *Ledger) dropOldest() {
	found, _ := filepath.Glob(quoteGlob(l.Path) + ".damaged-*Z")
	slices.Sort(found)
	for len(found) > setAsideMax {
		l.Log.Warn("too many damaged ledgers; deleting the oldest", "path", found[0])
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Remove(found[0] + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.Log.Warn("delete damaged ledger", "err", err)
			}
		}
		found = found[1:]
	}
}

func quoteGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// salvaged is a table of a damaged file, read by ranges of an integer key.
type salvaged struct {
	name, key, columns string
	unit               int64 // ranges are not split below that
	highest            int64 // what is above is no key of ours
}

// lowest is the first local day there is, in whichever zone.
const lowest = -24 * 3600

// salvageReads limits the reads that may fail per table: a page that is gone fails for
// each range of keys in it.
const salvageReads = 20_000

// remains is a damaged file that is set aside, and what is to be taken over from it.
type remains struct {
	path   string // "" for nothing
	loaded bool   // the containers are
}

// containers copies what SQLite still reads of the containers and the documents. Whoever
// loads them waits for no more than that.
func (r *remains) containers(ctx context.Context, l *Ledger) error {
	if r.path == "" || r.loaded {
		return nil
	}
	// What was shown of periods goes by the UUID of the old file: totals begin at 0 with that of
	// the new one, without the history that is taken over.
	const begun = "INSERT OR REPLACE INTO meta (key, value) VALUES ('" + periodsBegun + "', 1)"
	err := r.copy(ctx, l, begun, []salvaged{
		{"meta", "", "key, value", 0, 0}, // has one row, and no integer as its key
		{"containers", "n", "n, " + identityColumns + ", subject, " + numberColumns, 1, 1 << 31},
		{"documents", "n", "n, kind, key, value", 1, 1 << 40},
	})
	r.loaded = err == nil
	return err
}

// history copies the rest: 5 s per million hours. Nothing is written before.
func (r *remains) history(ctx context.Context, l *Ledger) error {
	if r.path == "" {
		return nil
	}
	const columns = "start, subject, " + numberColumns
	err := r.copy(ctx, l, mend, []salvaged{
		{"subjects", "id", "id, " + subjectColumns, 1, 1 << 31},
		{"days", "start", columns, 12 * 3600, 1 << 33},
		{"hours", "start", columns, 3600, 1 << 33},
	})
	if err == nil {
		*r = remains{}
	}
	return err
}

// copy copies tables into the open file, and mends what they are now.
func (r *remains) copy(ctx context.Context, l *Ledger, mend string, tables []salvaged) error {
	old, err := sql.Open("sqlite", source(r.path, "mode=ro", "_pragma=query_only(1)"))
	if err != nil {
		return err
	}
	old.SetMaxOpenConns(1)
	defer old.Close()
	err = inTx(ctx, l.file.write, func(tx *sql.Tx) error {
		for _, t := range tables {
			s := &salvage{ctx: ctx, salvaged: t, old: old, tx: tx, budget: salvageReads}
			if err := s.table(); err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
			l.Log.Info("read from damaged ledger", "table", t.name, "rows", s.rows, "lost_ranges", s.lost)
		}
		_, err := tx.ExecContext(ctx, mend)
		return err
	})
	if err != nil {
		l.failed(err)
		return fmt.Errorf("copy what is left of %s: %w", r.path, err)
	}
	return nil
}

// mend gives usage whose subject is lost another one, so that sums stay what they were.
const mend = `
	INSERT INTO subjects (id, container_id, user, name, namespace, pod, runtime, image, labels)
		SELECT DISTINCT subject, '', '', '(lost ' || subject || ')', '', '', '', '', ''
		FROM (SELECT subject FROM hours UNION SELECT subject FROM days)
		WHERE subject NOT IN (SELECT id FROM subjects);
	UPDATE containers SET subject = 0 WHERE subject NOT IN (SELECT id FROM subjects);`

// salvage is the copying of one table.
type salvage struct {
	salvaged
	ctx    context.Context
	old    *sql.DB
	tx     *sql.Tx
	insert *sql.Stmt
	read   string // the columns, as the damaged file has them
	budget int
	rows   int
	lost   int
}

func (s *salvage) table() (err error) {
	columns := strings.Count(s.columns, ",") + 1
	s.read = s.columns
	for _, later := range [...][2]string{
		{httpColumns, zeros(httpColumns)}, // as before schema5
		{tcpColumns, zeros(tcpColumns)},   // as before schema4
		{", user,", ", '' AS user,"},      // as before schema3
	} {
		if _, err := s.old.ExecContext(s.ctx, "SELECT "+s.read+" FROM "+s.name+" LIMIT 0"); err == nil {
			break
		}
		s.read = strings.Replace(s.read, later[0], later[1], 1)
	}
	s.insert, err = s.tx.PrepareContext(s.ctx, "INSERT OR IGNORE INTO "+s.name+" ("+s.columns+") VALUES (?"+
		strings.Repeat(", ?", columns-1)+")")
	if err != nil {
		return err
	}
	defer s.insert.Close()
	if s.key == "" {
		_, _, err := s.copy("SELECT " + s.read + " FROM meta")
		return err
	}
	low, high, err := s.bounds()
	if err != nil {
		return err
	}
	return s.span(low, high)
}

// zeros is as many of them as there are columns in a list.
func zeros(columns string) string { return strings.Repeat("0, ", strings.Count(columns, ",")) + "0" }

// bounds returns the range of the keys, a wide one if the ends can't be read.
func (s *salvage) bounds() (low, high int64, err error) {
	bound := func(function string, otherwise int64) (n int64, err error) {
		query := "SELECT coalesce(" + function + "(" + s.key + "), 0) FROM " + s.name + " NOT INDEXED"
		err = s.old.QueryRowContext(s.ctx, query).Scan(&n)
		if err != nil {
			return otherwise, s.give(err)
		}
		return n, nil
	}
	if low, err = bound("min", lowest); err != nil {
		return 0, 0, err
	}
	high, err = bound("max", s.highest)
	return max(low, lowest), min(high, s.highest) + 1, err
}

// span copies the rows with keys in [low, high). After a failure it goes on behind the
// last row that was read, in halves.
func (s *salvage) span(low, high int64) error {
	query := "SELECT " + s.read + " FROM " + s.name + " NOT INDEXED WHERE " + s.key + " >= ? AND " + s.key +
		" < ? ORDER BY " + s.key
	last, complete, err := s.copy(query, low, high)
	if err != nil || complete {
		return err
	}
	s.budget--
	if last != nil {
		low = max(low, *last)
	}
	if high-low <= s.unit || s.budget <= 0 {
		s.lost++
		return nil
	}
	middle := low + (high-low)/2
	if err := s.span(low, middle); err != nil {
		return err
	}
	return s.span(middle, high)
}

// copy copies the rows of a query. It returns the first column of the last one that
// was read if it is a number, and whether that was all of them. Its error is one of
// the new file, or of the disk.
func (s *salvage) copy(query string, args ...any) (last *int64, complete bool, err error) {
	rows, err := s.old.QueryContext(s.ctx, query, args...)
	if err != nil {
		return nil, false, s.give(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, false, err
	}
	values, into := make([]any, len(names)), make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return last, false, s.give(err)
		}
		if key, ok := values[0].(int64); ok {
			last = &key
		}
		result, err := s.insert.ExecContext(s.ctx, values...)
		if c := code(err) & 0xff; c == sqlite3.SQLITE_CONSTRAINT || c == sqlite3.SQLITE_MISMATCH {
			continue // not a row of ours
		}
		if err != nil {
			return last, false, err
		}
		if n, err := result.RowsAffected(); err == nil {
			s.rows += int(n)
		}
	}
	return last, rows.Err() == nil, s.give(rows.Err())
}

// give turns an error of the damaged file into none: it is what was to be expected of it.
// Where there is no such table, or no database, there is no use in going on.
func (s *salvage) give(err error) error {
	switch c := code(err) & 0xff; {
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case err != nil && c != sqlite3.SQLITE_CORRUPT && c != sqlite3.SQLITE_IOERR:
		s.budget = 0
	}
	return nil
}
