// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"
	"time"
)

// saveWithin is how long a save of documents waits for the disk, with whatever flush is
// under way on it.
const saveWithin = 10 * time.Second

// schema2 adds what other rooms have to remember.
const schema2 = `
CREATE TABLE documents (
	n     INTEGER PRIMARY KEY,
	kind  TEXT NOT NULL,
	key   TEXT NOT NULL,
	value BLOB NOT NULL,
	UNIQUE (kind, key)
) STRICT;
`

// Documents are named values of one kind. What they mean is for whoever keeps them; they
// are as durable as usage is. Methods are safe for concurrent use, and saves take effect
// in the order of their calls.
//
// They are kept in memory too: when the file is lost, or damaged, the next save puts
// back what had been in it.
type Documents struct {
	ledger  *Ledger
	kind    string
	earlier []string

	// What follows belongs to who has the ledger's disk.
	saved  map[string][]byte // what is on the disk
	losses int               // of the ledger, when all of saved was there
}

// Documents returns the documents of a kind. It opens nothing.
//
// Documents of earlier kinds, which an earlier version kept, are among them: their keys begin
// with that kind and a slash. So they can be replaced in one transaction.
func (l *Ledger) Documents(kind string, earlier ...string) *Documents {
	return &Documents{ledger: l, kind: kind, earlier: earlier, saved: map[string][]byte{}}
}

// place returns the kind and the key that a key stands for.
func (d *Documents) place(key string) (kind, rest string) {
	for _, kind := range d.earlier {
		if rest, ok := strings.CutPrefix(key, kind+"/"); ok {
			return kind, rest
		}
	}
	return d.kind, key
}

// Load returns all documents of the kind by their keys. Of a ledger that does not exist
// yet there are none. A disk that can't be written is read all the same.
//
// Returns an error if the disk does not answer within ten seconds, or the file can't be
// read and not be set aside.
func (d *Documents) Load() (map[string][]byte, error) {
	var found map[string][]byte
	err := d.ledger.onDisk(func(ctx context.Context) (err error) {
		found, err = d.load(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load %s documents: %w", d.kind, err)
	}
	return found, nil
}

func (d *Documents) load(ctx context.Context) (map[string][]byte, error) {
	if _, err := os.Stat(d.ledger.Path); errors.Is(err, fs.ErrNotExist) {
		return map[string][]byte{}, nil
	}
	openErr := d.ledger.ready(ctx)
	var found map[string][]byte
	err := d.ledger.read(ctx, func(ctx context.Context, f *file) (err error) {
		if _, err = d.ledger.look(ctx, f.lookup); err != nil {
			return err
		}
		found = map[string][]byte{}
		err = loadDocuments(ctx, f.lookup, d.kind, "", found)
		for _, kind := range d.earlier {
			err = cmp.Or(err, loadDocuments(ctx, f.lookup, kind, kind+"/", found))
		}
		return err
	})
	if err != nil {
		return nil, cmp.Or(openErr, err)
	}
	d.saved, d.losses = maps.Clone(found), d.ledger.losses
	return found, nil
}

// loadDocuments adds the documents of a kind to those that were found, with a prefix.
func loadDocuments(ctx context.Context, db queryer, kind, prefix string, found map[string][]byte) error {
	rows, err := db.QueryContext(ctx, "SELECT key, value FROM documents WHERE kind = ?", kind)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var value []byte
		if err := rows.Scan(&key, &value); err != nil {
			return err
		}
		found[prefix+key] = value
	}
	return rows.Err()
}

// Save writes documents and deletes others, all of it or nothing. After a power cut it is
// there if Save has returned nil.
//
// After an error nothing, or rarely everything, is on the disk: the caller saves it again
// together with what has changed since. A disk that does not answer within ten seconds is
// an error too. The arguments must not be changed afterwards.
func (d *Documents) Save(put map[string][]byte, drop []string) error {
	err := d.ledger.onDisk(func(ctx context.Context) error {
		if err := d.ledger.ready(ctx); err != nil {
			return err
		}
		put := d.withLost(put, drop)
		err := inTx(ctx, d.ledger.file.write, func(tx *sql.Tx) error { return d.write(ctx, tx, put, drop) })
		if err != nil {
			d.ledger.failed(err)
			return err
		}
		for _, key := range drop {
			delete(d.saved, key)
		}
		maps.Copy(d.saved, put)
		d.losses = d.ledger.losses
		return nil
	})
	if err != nil {
		return fmt.Errorf("save %s documents: %w", d.kind, err)
	}
	return nil
}

// withLost adds what was saved before, if it may not be in the file any more.
func (d *Documents) withLost(put map[string][]byte, drop []string) map[string][]byte {
	if d.losses == d.ledger.losses {
		return put
	}
	all := maps.Clone(d.saved)
	for _, key := range drop {
		delete(all, key)
	}
	maps.Copy(all, put)
	return all
}

func (d *Documents) write(ctx context.Context, tx *sql.Tx, put map[string][]byte, drop []string) error {
	clock, err := d.ledger.look(ctx, tx)
	if err == nil {
		err = noteWrite(ctx, tx, clock)
	}
	if err != nil {
		return err
	}
	gone, err := tx.PrepareContext(ctx, "DELETE FROM documents WHERE kind = ? AND key = ?")
	if err != nil {
		return err
	}
	defer gone.Close()
	for _, key := range drop {
		kind, key := d.place(key)
		if _, err := gone.ExecContext(ctx, kind, key); err != nil {
			return err
		}
	}
	set, err := tx.PrepareContext(ctx, `INSERT INTO documents (kind, key, value) VALUES (?, ?, ?)
		ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value`)
	if err != nil {
		return err
	}
	defer set.Close()
	for key, value := range put {
		if value == nil {
			value = []byte{} // which SQLite would take for NULL
		}
		kind, key := d.place(key)
		if _, err := set.ExecContext(ctx, kind, key, value); err != nil {
			return err
		}
	}
	return nil
}

// onDisk has the disk do something and waits a while for it. What takes longer is
// cancelled, and keeps the disk to itself until it has noticed; [Ledger.Close] waits for it.
func (l *Ledger) onDisk(do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), saveWithin)
	select {
	case l.disk <- struct{}{}:
	case <-ctx.Done():
		cancel()
		return errHangs
	}
	done := make(chan error, 1)
	go func() {
		defer cancel()
		defer func() { <-l.disk }()
		done <- do(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // it may have been both
		return err
	default:
		return errHangs
	}
}
