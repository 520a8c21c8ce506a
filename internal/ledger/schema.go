// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"fmt"
)

// migrations lead from one version of the schema to the next, in order. They are only
// ever added to.
func migrations() []string { return []string{schema1, schema2, schema3, schema4, schema5, schema6} }

// numberColumns are numbers as columns, in their order.
const (
	numberColumns = "receive_bytes, receive_packets, receive_syn, transmit_bytes, transmit_packets, transmit_syn, " + tcpColumns + ", " + httpColumns
	tcpColumns    = "tcp_connect_attempts, tcp_connects, tcp_accepts, tcp_connect_failures, tcp_known"
	httpColumns   = "receive_http_requests, transmit_http_requests, http_known"
)

// numberValues are as many parameters.
var numberValues = eachNumber("?")

const schema1 = `
CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE subjects (
	id           INTEGER PRIMARY KEY,
	container_id TEXT NOT NULL, -- '' in days
	name         TEXT NOT NULL, -- the container's id while it has none
	namespace    TEXT NOT NULL,
	pod          TEXT NOT NULL,
	runtime      TEXT NOT NULL,
	image        TEXT NOT NULL,
	labels       TEXT NOT NULL, -- JSON, keys in order; '' for none
	UNIQUE (container_id, name, namespace, pod, runtime, image, labels)
) STRICT;

CREATE TABLE containers (
	n            INTEGER PRIMARY KEY,
	id           TEXT NOT NULL UNIQUE,
	parent       TEXT NOT NULL,
	name         TEXT NOT NULL,
	runtime      TEXT NOT NULL,
	image        TEXT NOT NULL,
	namespace    TEXT NOT NULL,
	pod          TEXT NOT NULL,
	labels       TEXT NOT NULL,
	cgroup       TEXT NOT NULL,
	state        TEXT NOT NULL,
	started_at   INTEGER NOT NULL,
	stopped_at   INTEGER NOT NULL, -- 0 while it runs
	network_mode TEXT NOT NULL,
	reason       TEXT NOT NULL,
	tallies      TEXT NOT NULL, -- JSON
	subject      INTEGER NOT NULL, -- the last one it had usage under, or 0
	receive_bytes    INTEGER NOT NULL, -- watermarks, as all six
	receive_packets  INTEGER NOT NULL,
	receive_syn      INTEGER NOT NULL,
	transmit_bytes   INTEGER NOT NULL,
	transmit_packets INTEGER NOT NULL,
	transmit_syn     INTEGER NOT NULL,
	CHECK (min(receive_bytes, receive_packets, receive_syn, transmit_bytes, transmit_packets, transmit_syn) >= 0)
) STRICT;
CREATE INDEX containers_subject ON containers (subject);

CREATE TABLE hours (
	start   INTEGER NOT NULL,
	subject INTEGER NOT NULL,
	receive_bytes    INTEGER NOT NULL,
	receive_packets  INTEGER NOT NULL,
	receive_syn      INTEGER NOT NULL,
	transmit_bytes   INTEGER NOT NULL,
	transmit_packets INTEGER NOT NULL,
	transmit_syn     INTEGER NOT NULL,
	PRIMARY KEY (start, subject),
	CHECK (min(receive_bytes, receive_packets, receive_syn, transmit_bytes, transmit_packets, transmit_syn) >= 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX hours_subject ON hours (subject);

CREATE TABLE days (
	start   INTEGER NOT NULL,
	subject INTEGER NOT NULL,
	receive_bytes    INTEGER NOT NULL,
	receive_packets  INTEGER NOT NULL,
	receive_syn      INTEGER NOT NULL,
	transmit_bytes   INTEGER NOT NULL,
	transmit_packets INTEGER NOT NULL,
	transmit_syn     INTEGER NOT NULL,
	PRIMARY KEY (start, subject),
	CHECK (min(receive_bytes, receive_packets, receive_syn, transmit_bytes, transmit_packets, transmit_syn) >= 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX days_subject ON days (subject);
`

// schema3 says of which user a subject is. SQLite adds no column to what is unique, so the
// table is made again.
const schema3 = `
CREATE TABLE subjects_of_users (
	id           INTEGER PRIMARY KEY,
	container_id TEXT NOT NULL, -- '' in days
	user         TEXT NOT NULL, -- the uid, '' for those of root's runtimes
	name         TEXT NOT NULL, -- the container's id while it has none
	namespace    TEXT NOT NULL,
	pod          TEXT NOT NULL,
	runtime      TEXT NOT NULL,
	image        TEXT NOT NULL,
	labels       TEXT NOT NULL, -- JSON, keys in order; '' for none
	UNIQUE (container_id, user, name, namespace, pod, runtime, image, labels)
) STRICT;
INSERT INTO subjects_of_users SELECT id, container_id, '', name, namespace, pod, runtime, image, labels FROM subjects;
DROP TABLE subjects;
ALTER TABLE subjects_of_users RENAME TO subjects;
`

// schema4 adds connections. tcp_known is above 0 where they were counted; see tcpInPart.
const schema4 = `
ALTER TABLE containers ADD COLUMN tcp_connect_attempts INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connect_attempts >= 0);
ALTER TABLE containers ADD COLUMN tcp_connects INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connects >= 0);
ALTER TABLE containers ADD COLUMN tcp_accepts INTEGER NOT NULL DEFAULT 0 CHECK (tcp_accepts >= 0);
ALTER TABLE containers ADD COLUMN tcp_connect_failures INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connect_failures >= 0);
ALTER TABLE containers ADD COLUMN tcp_known INTEGER NOT NULL DEFAULT 0 CHECK (tcp_known >= 0);
ALTER TABLE hours ADD COLUMN tcp_connect_attempts INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connect_attempts >= 0);
ALTER TABLE hours ADD COLUMN tcp_connects INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connects >= 0);
ALTER TABLE hours ADD COLUMN tcp_accepts INTEGER NOT NULL DEFAULT 0 CHECK (tcp_accepts >= 0);
ALTER TABLE hours ADD COLUMN tcp_connect_failures INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connect_failures >= 0);
ALTER TABLE hours ADD COLUMN tcp_known INTEGER NOT NULL DEFAULT 0 CHECK (tcp_known >= 0);
ALTER TABLE days ADD COLUMN tcp_connect_attempts INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connect_attempts >= 0);
ALTER TABLE days ADD COLUMN tcp_connects INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connects >= 0);
ALTER TABLE days ADD COLUMN tcp_accepts INTEGER NOT NULL DEFAULT 0 CHECK (tcp_accepts >= 0);
ALTER TABLE days ADD COLUMN tcp_connect_failures INTEGER NOT NULL DEFAULT 0 CHECK (tcp_connect_failures >= 0);
ALTER TABLE days ADD COLUMN tcp_known INTEGER NOT NULL DEFAULT 0 CHECK (tcp_known >= 0);
`

// schema5 adds HTTP requests. http_known is above 0 where they were counted.
const schema5 = `
ALTER TABLE containers ADD COLUMN receive_http_requests INTEGER NOT NULL DEFAULT 0 CHECK (receive_http_requests >= 0);
ALTER TABLE containers ADD COLUMN transmit_http_requests INTEGER NOT NULL DEFAULT 0 CHECK (transmit_http_requests >= 0);
ALTER TABLE containers ADD COLUMN http_known INTEGER NOT NULL DEFAULT 0 CHECK (http_known >= 0);
ALTER TABLE hours ADD COLUMN receive_http_requests INTEGER NOT NULL DEFAULT 0 CHECK (receive_http_requests >= 0);
ALTER TABLE hours ADD COLUMN transmit_http_requests INTEGER NOT NULL DEFAULT 0 CHECK (transmit_http_requests >= 0);
ALTER TABLE hours ADD COLUMN http_known INTEGER NOT NULL DEFAULT 0 CHECK (http_known >= 0);
ALTER TABLE days ADD COLUMN receive_http_requests INTEGER NOT NULL DEFAULT 0 CHECK (receive_http_requests >= 0);
ALTER TABLE days ADD COLUMN transmit_http_requests INTEGER NOT NULL DEFAULT 0 CHECK (transmit_http_requests >= 0);
ALTER TABLE days ADD COLUMN http_known INTEGER NOT NULL DEFAULT 0 CHECK (http_known >= 0);
`

// version returns the version of a file's schema, 0 for an empty file.
func version(ctx context.Context, db queryer) (v int, err error) {
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&v)
	return v, err
}

// migrate brings a file's schema up to date. It returns whether the file was empty.
func migrate(ctx context.Context, db *sql.DB, steps []string) (made bool, err error) {
	from, err := version(ctx, db)
	if err != nil {
		return false, fmt.Errorf("read version: %w", err)
	}
	if from > len(steps) {
		return false, fmt.Errorf("%w: its version is %d, and %d the newest known here", errNewer, from, len(steps))
	}
	for v := from; v < len(steps); v++ {
		if err := migrateTo(ctx, db, v+1, steps[v]); err != nil {
			return false, fmt.Errorf("migrate to version %d: %w", v+1, err)
		}
	}
	return from == 0, complete(ctx, db)
}

// complete finds tables missing, as they are in a file that was cut off.
func complete(ctx context.Context, db queryer) error {
	var tables int
	err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE type = 'table'
		AND name IN ('meta', 'subjects', 'containers', 'hours', 'days', 'documents', 'identity', 'periods', 'held')`).Scan(&tables)
	if err == nil && tables != 9 {
		err = fmt.Errorf("%w: %d of 9 tables", errDamaged, tables)
	}
	return err
}

func migrateTo(ctx context.Context, db *sql.DB, v int, step string) error {
	return inTx(ctx, db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, step); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", v))
		return err
	})
}

// inTx runs work in a transaction that is all there afterwards, or not at all.
func inTx(ctx context.Context, db *sql.DB, work func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := work(tx); err != nil {
		// A transaction that SQLite ended itself, as on a full disk, has nothing to undo.
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}
