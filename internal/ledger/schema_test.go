// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

func TestMigrate(t *testing.T) {
	ctx := context.Background()
	db, err := sql.Open("sqlite", source(filepath.Join(t.TempDir(), "ledger.db")))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	now := len(migrations())
	steps := append(migrations(),
		"ALTER TABLE meta ADD COLUMN note TEXT NOT NULL DEFAULT ''",
		"INSERT INTO meta (key, value, note) VALUES ('k', 1, 'n')")
	for _, step := range []struct {
		steps []string
		made  bool
		want  int
	}{
		{steps[:now], true, now},
		{steps[:now], false, now},
		{steps[:now+2], false, now + 2},
		{steps[:now+2], false, now + 2},
	} {
		made, err := migrate(ctx, db, step.steps)
		if err != nil {
			t.Fatal(err)
		}
		v, err := version(ctx, db)
		if err != nil || v != step.want || made != step.made {
			t.Errorf("version %d, made %v, %v; want %d, %v", v, made, err, step.want, step.made)
		}
	}
	// One that fails half-way leaves nothing.
	_, err = migrate(ctx, db, append(steps[:now+2:now+2], "DELETE FROM meta; SELECT * FROM nowhere"))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("migrate to version %d: ", now+3)) {
		t.Errorf("migrate: %v", err)
	}
	var rows int
	if err := db.QueryRow("SELECT count(*) FROM meta").Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%d rows, %v", rows, err)
	}
}

// A ledger from before there were users has root's containers, and keeps what it has.
func TestMigrateToUsers(t *testing.T) {
	b := newBench(t)
	b.flush(record("aa11", "web", 100), record("bb22", "db", 50))
	want := b.received(Query{By: ByContainer})
	b.asBeforeUsers()
	b.restart()
	b.flush(record("aa11", "web", 100), record("1000~aa11", "1000~web", 7))
	same(t, b.received(Query{By: ByContainer}), want)
	same(t, b.received(Query{By: ByContainer, User: "1000"}), []string{"03-10 00:00 1000~aa11 7"})
}

// asBeforeUsers takes the schema of the file back to version 2.
func (b *bench) asBeforeUsers() {
	b.t.Helper()
	const columns = "id, container_id, name, namespace, pod, runtime, image, labels"
	_, old, _ := strings.Cut(schema1, "CREATE TABLE subjects")
	old, _, _ = strings.Cut(old, "STRICT;")
	b.dropColumns(tcpColumns + ", " + httpColumns)
	if _, err := b.file.write.Exec("CREATE TABLE before" + old + "STRICT; INSERT INTO before SELECT " + columns + " FROM subjects;" +
		" DROP TABLE subjects; ALTER TABLE before RENAME TO subjects; PRAGMA user_version = 2"); err != nil {
		b.t.Fatal(err)
	}
}

// dropColumns drops numbers from all tables that have them, and what came after those.
func (b *bench) dropColumns(columns string) {
	b.t.Helper()
	b.dropPeriods()
	for column := range strings.SplitSeq(columns, ", ") {
		for _, table := range []string{"containers", "hours", "days"} {
			if _, err := b.file.write.Exec("ALTER TABLE " + table + " DROP COLUMN " + column); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func (b *bench) dropPeriods() {
	b.t.Helper()
	if _, err := b.file.write.Exec("DROP TABLE identity; DROP TABLE periods; DROP TABLE held"); err != nil {
		b.t.Fatal(err)
	}
}

func TestNewerLedgerIsLeftAlone(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	if _, err := b.file.write.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if err := b.attempt(record("a1", "web", 200)); !errors.Is(err, errNewer) {
		t.Errorf("flush: %v", err)
	}
	if _, err := b.Load(0); !errors.Is(err, errNewer) {
		t.Errorf("load: %v", err)
	}
	if err := Check(b.path); !errors.Is(err, errNewer) {
		t.Errorf("check: %v", err)
	}
	same(t, b.Status().SetAside, "")
}

// A ledger from before there were connections keeps what it has, of which none are known.
func TestMigrateToConnections(t *testing.T) {
	b := newBench(t)
	b.flush(record("a1", "web", 100))
	b.dropColumns(tcpColumns + ", " + httpColumns)
	if _, err := b.file.write.Exec("PRAGMA user_version = 3"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.flush(record("a1", "web", 100))
	same(t, b.connections(Query{By: ByContainer}), []string{"a1 100 unknown"})
}

// A ledger from before there were HTTP requests keeps its connections, and knows of no requests.
func TestMigrateToHTTPRequests(t *testing.T) {
	b := newBench(t)
	r := record("a1", "web", 100)
	r.TCP = &usage.TCP{Connects: 3}
	b.flush(r)
	b.dropColumns(httpColumns)
	if _, err := b.file.write.Exec("PRAGMA user_version = 4"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.flush(r)
	same(t, b.connections(Query{By: ByContainer}), []string{"a1 100 {0 3 0 0}"})
	same(t, b.requests(Query{By: ByContainer}), []string{"a1 100 unknown"})
}
