// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/nettally/nettally/internal/trusted"
)

// file is the ledger as it is open. Each pool has its purpose, so that no query of a
// user's keeps a container that starts waiting.
type file struct {
	path    string
	write   *sql.DB // one connection; nil: the disk lets us only read
	lookup  *sql.DB // one connection
	history *sql.DB
	info    fs.FileInfo // what was opened under the path

	closing context.Context // ends when readers have to go
	close   context.CancelFunc
}

// errDamaged is a file that SQLite reads without an error and that is wrong.
var errDamaged = errors.New("damaged")

// errNewer is a file that a newer version of nettally has written.
var errNewer = errors.New("written by a newer nettally")

// source returns SQLite's URI of a file. A page that is damaged is found when it is
// read and not later (cell_size_check).
func source(path string, options ...string) string {
	options = append(options, "_pragma=busy_timeout(5000)", "_pragma=cell_size_check(1)")
	if scratch := scratchFor(path); scratch != "" {
		options = append(options, "_pragma="+url.QueryEscape(scratch))
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: strings.Join(options, "&")}).String()
}

// scratchFor returns the pragma that says where sums of many rows are put while they are made, ""
// for where SQLite puts them unasked. A container with a read-only file system has none of these
// folders, but one for the ledger, unless that is read-only, too.
func scratchFor(path string) string {
	usable := func(folder string) bool {
		info, err := os.Stat(folder)
		return err == nil && info.IsDir() && unix.Access(folder, unix.W_OK|unix.X_OK) == nil
	}
	usual := []string{os.Getenv("SQLITE_TMPDIR"), os.Getenv("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp", "."}
	folder := filepath.Dir(path)
	switch {
	case slices.ContainsFunc(usual, usable):
		return ""
	case usable(folder):
		return "temp_store_directory('" + strings.ReplaceAll(folder, "'", "''") + "')"
	}
	return "temp_store(MEMORY)"
}

// openFile opens a ledger, or makes one, and brings its schema up to date. If it can
// only be read, it is returned for that, along with the error. What others can change is
// not even read: it could hold any usage.
func openFile(ctx context.Context, path string) (f *file, made bool, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, false, err
	}
	for _, kept := range []string{filepath.Dir(path), path} {
		if err := trusted.Check(kept); err != nil {
			return nil, false, err
		}
	}
	f, made, err = openWritable(ctx, path)
	if err == nil || isDamage(err) || errors.Is(err, errNewer) {
		return f, made, err
	}
	if errors.Is(unix.Access(filepath.Dir(path), unix.W_OK), unix.EROFS) {
		err = fmt.Errorf("%w: %w", err, unix.EROFS) // which SQLite does not say
	}
	readable, v, roErr := openReadable(ctx, path)
	if roErr != nil {
		return nil, false, err
	}
	if v != len(migrations()) {
		return nil, false, errors.Join(err, readable.shut())
	}
	return readable, false, err
}

func openWritable(ctx context.Context, path string) (f *file, made bool, err error) {
	if err := create(path); err != nil {
		return nil, false, err
	}
	write, err := sql.Open("sqlite", source(path, "_pragma=journal_mode(WAL)", "_pragma=synchronous(FULL)",
		"_pragma=journal_size_limit(16777216)", "_txlock=immediate"))
	if err != nil {
		return nil, false, err
	}
	write.SetMaxOpenConns(1)
	f, err = withReaders(path, write, source(path, "mode=ro", "_pragma=query_only(1)"))
	if err != nil {
		return nil, false, errors.Join(err, write.Close())
	}
	made, err = migrate(ctx, write, migrations())
	if err == nil {
		err = identify(ctx, write)
	}
	if err != nil {
		return nil, false, errors.Join(err, f.shut())
	}
	return f, made, nil
}

// identify gives a file its UUID, unless it has one: then nothing is written.
func identify(ctx context.Context, db *sql.DB) error {
	var known bool
	err := db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM identity)").Scan(&known)
	if err == nil && !known {
		_, err = db.ExecContext(ctx, "INSERT OR IGNORE INTO identity (n, uuid) VALUES (1, ?)", uuid.NewString())
	}
	return err
}

// create makes an empty file that is nobody else's to read: it has names and labels.
func create(path string) error {
	if err := trusted.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// openReadable opens a ledger on a disk that can't be written, with the version of its
// schema. SQLite needs the index of the write-ahead log there, a file it can't make.
// Without it the file is read as it was at the last checkpoint.
func openReadable(ctx context.Context, path string) (f *file, v int, err error) {
	var first error
	for _, option := range []string{"mode=ro", "immutable=1"} {
		f, err := withReaders(path, nil, source(path, option, "_pragma=query_only(1)"))
		if err != nil {
			return nil, 0, err
		}
		v, err := version(ctx, f.lookup)
		if err == nil {
			return f, v, nil
		}
		_ = f.shut() // nothing was written
		if first == nil {
			first = err
		}
	}
	return nil, 0, first
}

func withReaders(path string, write *sql.DB, source string) (*file, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	f := &file{path: path, write: write, info: info}
	if f.lookup, err = sql.Open("sqlite", source); err != nil {
		return nil, err
	}
	if f.history, err = sql.Open("sqlite", source); err != nil {
		return nil, err
	}
	f.lookup.SetMaxOpenConns(1)
	f.history.SetMaxOpenConns(2)
	f.history.SetMaxIdleConns(1)
	f.closing, f.close = context.WithCancel(context.Background())
	return f, nil
}

// shut closes all connections, the writer last: it puts the write-ahead log into the
// file.
func (f *file) shut() error {
	f.close()
	errs := []error{f.history.Close(), f.lookup.Close()}
	if f.write != nil {
		errs = append(errs, f.write.Close())
	}
	return errors.Join(errs...)
}

// moved says whether the path leads to another file by now, or to none.
func (f *file) moved() bool {
	info, err := os.Stat(f.path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return !os.SameFile(info, f.info)
}

// quickCheck reads all of a file: 0.4 s per 100 MB that are cached, which is 90 days of
// 1,000 containers.
func quickCheck(ctx context.Context, db queryer) error {
	var found string
	err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found)
	if err != nil {
		return fmt.Errorf("check ledger: %w", err)
	}
	if found != "ok" {
		return fmt.Errorf("check ledger: %w: %s", errDamaged, strings.Join(strings.Fields(found), " "))
	}
	return nil
}

// code returns SQLite's extended result code of an error, 0 for any other error.
func code(err error) int {
	var failed *sqlite.Error
	if !errors.As(err, &failed) {
		return sqlite3.SQLITE_OK
	}
	return failed.Code()
}

// isDamage says whether an error means that the file is not what we wrote, or that the
// disk has lost some of it (EIO).
func isDamage(err error) bool {
	switch code(err) & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return code(err) == sqlite3.SQLITE_IOERR_CORRUPTFS || errors.Is(err, errDamaged)
}

// isOutside says whether an error is about the disk or its connection, and may be over
// with a new connection. A full disk or a locked file needs none.
func isOutside(err error) bool {
	switch code(err) & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT:
		return false
	}
	return err != nil && !isDamage(err)
}
