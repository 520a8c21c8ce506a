// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func (b *bench) documents(kind string) map[string]string {
	b.t.Helper()
	found, err := b.Documents(kind).Load()
	if err != nil {
		b.t.Fatal(err)
	}
	text := map[string]string{}
	for key, value := range found {
		text[key] = string(value)
	}
	return text
}

func put(t testing.TB, d *Documents, pairs ...string) {
	t.Helper()
	values := map[string][]byte{}
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i]] = []byte(pairs[i+1])
	}
	if err := d.Save(values, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDocuments(t *testing.T) {
	b := newBench(t)
	same(t, b.documents("quota"), map[string]string{})
	if _, err := os.Stat(b.path); err == nil {
		t.Error("reading made a ledger")
	}
	d := b.Documents("quota")
	put(t, d, "a", "1", "b/ü", "\x00\xff", "c", "")
	put(t, b.Documents("notify"), "a", "other")
	put(t, d, "a", "2")
	if err := d.Save(map[string][]byte{"d": nil}, []string{"c", "no such"}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	same(t, b.documents("quota"), map[string]string{"a": "2", "b/ü": "\x00\xff", "d": ""})
	same(t, b.documents("notify"), map[string]string{"a": "other"})
}

// Documents of an earlier kind can be read, and replaced in one transaction.
func TestDocumentsOfEarlierKind(t *testing.T) {
	b := newBench(t)
	put(t, b.Documents("quota"), "a", "1")
	put(t, b.Documents("notify"), "hook/a", "2", "hook/b", "3")
	b.restart()
	d := b.Documents("quota", "notify")
	found, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	same(t, found, map[string][]byte{"a": []byte("1"), "notify/hook/a": []byte("2"), "notify/hook/b": []byte("3")})
	if err := d.Save(map[string][]byte{"c": []byte("4")}, []string{"notify/hook/a", "a"}); err != nil {
		t.Fatal(err)
	}
	same(t, b.documents("quota"), map[string]string{"c": "4"})
	same(t, b.documents("notify"), map[string]string{"hook/b": "3"})
}

// A ledger of the version before documents gets the table and keeps the rest.
func TestDocumentsInOlderLedger(t *testing.T) {
	b := newBench(t)
	b.stop()
	if err := create(b.path); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", source(b.path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrate(context.Background(), db, migrations()[:1]); err == nil {
		t.Error("a ledger of six tables was complete with five")
	}
	if _, err := db.Exec("INSERT INTO meta (key, value) VALUES ('last_write', 7)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b.restart()
	put(t, b.Documents("quota"), "a", "1")
	same(t, b.documents("quota"), map[string]string{"a": "1"})
	same(t, b.count("meta"), 7)
	same(t, b.Status().SetAside, "")
}

// All of a save is there, or nothing.
func TestDocumentsAreSavedTogether(t *testing.T) {
	b := newBench(t)
	d := b.Documents("quota")
	put(t, d, "a", "1", "b", "1")
	if _, err := b.file.write.Exec(`CREATE TEMP TRIGGER refuse BEFORE INSERT ON documents WHEN NEW.key = 'z'
		BEGIN SELECT RAISE(ABORT, 'refused'); END`); err != nil {
		t.Fatal(err)
	}
	err := d.Save(map[string][]byte{"a": []byte("2"), "z": []byte("2")}, []string{"b"})
	if err == nil || !strings.HasPrefix(err.Error(), "save quota documents: ") {
		t.Errorf("save: %v", err)
	}
	same(t, b.documents("quota"), map[string]string{"a": "1", "b": "1"})
}

func TestDocumentsOfDamagedLedger(t *testing.T) {
	b := newBench(t)
	d := b.Documents("quota")
	want := map[string]string{}
	var pairs []string
	for i := range 1000 {
		key, value := fmt.Sprintf("key%04d", i), strings.Repeat(fmt.Sprint(i%10), 100)
		pairs, want[key] = append(pairs, key, value), value
	}
	put(t, d, pairs...)
	crowd(b, 2)
	pages := pagesOf(b, "documents")

	// With nobody to remember, what can be read is taken over.
	b.stop()
	garble(t, b.path, pages[3])
	b.restart()
	got := b.documents("quota")
	if len(got) < 900 || len(got) == 1000 {
		t.Errorf("%d of 1000 documents left", len(got))
	}
	for key, value := range got {
		if want[key] != value {
			t.Errorf("%s is %q", key, value)
		}
	}
	checkSetAside(b, 1)

	// Who remembers puts back what is lost.
	d = b.Documents("quota")
	if _, err := d.Load(); err != nil {
		t.Fatal(err)
	}
	put(t, d, pairs...)
	b.suspect.Store(true)
	pages = pagesOf(b, "documents")
	garble(t, b.path, pages[1])
	if err := d.Save(map[string][]byte{"more": []byte("1")}, []string{"key0000"}); err != nil {
		t.Fatal(err)
	}
	delete(want, "key0000")
	want["more"] = "1"
	same(t, b.documents("quota"), want)
}

// Someone deletes the file while it is open.
func TestDocumentsTakenAway(t *testing.T) {
	b := newBench(t)
	d := b.Documents("quota")
	put(t, d, "a", "1", "b", "1")
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	put(t, d, "b", "2")
	b.restart()
	same(t, b.documents("quota"), map[string]string{"a": "1", "b": "2"})
}

// A save that fails after the file was lost leaves it to the next one to put all back.
func TestDocumentsTakenAwayAndRefused(t *testing.T) {
	b := newBench(t)
	d := b.Documents("quota")
	put(t, d, "a", "1", "b", "1")
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	b.flush() // makes another
	if _, err := b.file.write.Exec(`CREATE TEMP TRIGGER refuse BEFORE INSERT ON documents WHEN NEW.key = 'z'
		BEGIN SELECT RAISE(ABORT, 'refused'); END`); err != nil {
		t.Fatal(err)
	}
	if err := d.Save(map[string][]byte{"a": []byte("2"), "z": []byte("2")}, []string{"b"}); err == nil {
		t.Fatal("saved in spite of a refusal")
	}
	same(t, b.documents("quota"), map[string]string{})
	put(t, d, "c", "3")
	same(t, b.documents("quota"), map[string]string{"a": "1", "b": "1", "c": "3"})
}

func TestDocumentsOnFullDisk(t *testing.T) {
	b, mount := onDisk(t)
	d := b.Documents("quota")
	put(t, d, "a", "1")
	free := fill(t, mount)
	if err := d.Save(map[string][]byte{"b": make([]byte, 100<<10)}, []string{"a"}); err == nil {
		t.Error("saved on a full disk")
	}
	same(t, b.documents("quota"), map[string]string{"a": "1"})
	free()
	put(t, d, "b", "2")
	same(t, b.documents("quota"), map[string]string{"a": "1", "b": "2"})
}

// A disk that hangs is given up; who comes later waits for its turn.
func TestDocumentsOnDiskThatHangs(t *testing.T) {
	b := newBench(t)
	d := b.Documents("quota")
	put(t, d, "a", "1")
	b.disk <- struct{}{}
	began := time.Now()
	if err := d.Save(nil, []string{"a"}); !errors.Is(err, errHangs) || time.Since(began) < saveWithin {
		t.Errorf("save: %v after %v", err, time.Since(began))
	}
	<-b.disk
	same(t, b.documents("quota"), map[string]string{"a": "1"})
}
