// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

const (
	// namedWithin is how long the usage of a container without a name waits for one. It would have
	// to be taken back from whoever it was shown for.
	namedWithin = time.Minute
	// beyondMax bounds what is remembered of keys beyond the limit.
	beyondMax = 100_000
)

// Keys of meta.
const (
	periodMoment = "period_moment" // Unix seconds: the last trusted moment, in the running period
	periodsBegun = "periods_begun" // 1 once the history was added up to the first period
)

// schema6 adds the totals of periods, and says which ledger this is.
const schema6 = `
CREATE TABLE identity (
	n    INTEGER PRIMARY KEY CHECK (n = 1),
	uuid TEXT NOT NULL
) STRICT;

CREATE TABLE periods (
	name   TEXT NOT NULL,
	key    TEXT NOT NULL, -- JSON: the values of what was summed up by
	start  INTEGER NOT NULL,
	ending INTEGER NOT NULL,
	receive_bytes  INTEGER NOT NULL,
	transmit_bytes INTEGER NOT NULL,
	PRIMARY KEY (name, key),
	CHECK (min(receive_bytes, transmit_bytes) >= 0)
) STRICT, WITHOUT ROWID;

-- Usage of containers whose name is not known yet, of no period so far.
CREATE TABLE held (
	container      TEXT PRIMARY KEY,
	since          INTEGER NOT NULL, -- Unix seconds
	runtime        TEXT NOT NULL,
	receive_bytes  INTEGER NOT NULL,
	transmit_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`

// Periods says by which periods usage is added up, beside hours and days.
type Periods struct {
	// Bounds returns the period that a moment is in: from start up to, and not with, end.
	Bounds func(time.Time) (start, end time.Time)
	// Name returns what a period with a beginning is called. No other may be called so.
	Name func(start time.Time) string
	// By are ByName, ByPod, ByNamespace or LabelPrefix and a key, each once.
	By []string
	// Keep is how long a period's totals are kept after its end.
	Keep time.Duration
	// Keys is how many keys of a period have totals of their own; the others have one together.
	Keys int
}

// PeriodTotals are the totals of the periods that are kept, as they are on the disk.
type PeriodTotals struct {
	Ledger string // the UUID of the file; "" if nothing was read yet
	Totals []PeriodTotal
	// Beyond is how many keys are counted with the others, of those that this process has seen,
	// and at least 1 if there are any.
	Beyond int
}

// PeriodTotal is what one key used in one period.
type PeriodTotal struct {
	Period     string
	Start, End time.Time
	// Key holds a value for each of Periods.By, or what that was when the usage was counted.
	Key               map[string]string
	Receive, Transmit uint64 // bytes on the wire, without what was seeded
}

// totals is what is shown of periods, and what is remembered to keep them.
type totals struct {
	began  time.Duration // since boot, when the process first wrote
	again  bool          // there is something to do without new usage, too
	seed   maphash.Seed
	beyond map[uint64]struct{} // keys that are counted with the others, by hash

	mu    sync.Mutex
	shown PeriodTotals
}

// Totals returns the totals of periods as of the last flush. It asks no disk, and is safe for
// concurrent use. The result must not be changed.
//
// A total grows, whatever happens to the process, the host's power or the names of containers: it
// is on the disk before it is here.
func (l *Ledger) Totals() PeriodTotals {
	if l.periods() == nil {
		return PeriodTotals{}
	}
	l.totals.mu.Lock()
	defer l.totals.mu.Unlock()
	return l.totals.shown
}

func (l *Ledger) periods() *Periods {
	if l.Periods == nil {
		return nil
	}
	return l.Periods()
}

// owesPeriods reports whether periods need a write without new usage.
func (l *Ledger) owesPeriods() bool {
	if l.periods() == nil {
		l.totals.again = true // once they are on
		return false
	}
	return l.totals.again
}

// credits adds usage to the totals of the running period, in one transaction.
type credits struct {
	Periods
	ctx    context.Context
	tx     *sql.Tx
	totals *totals
	clock  wallclock.Look

	name       string
	start, end time.Time
	keys       int  // of the running period
	held       bool // there is usage without a name

	grow *sql.Stmt
}

// newCredits returns nil where no periods are asked for.
func (l *Ledger) newCredits(ctx context.Context, tx *sql.Tx, clock wallclock.Look) (*credits, error) {
	p := l.periods()
	if p == nil {
		return nil, nil
	}
	c := &credits{Periods: *p, ctx: ctx, tx: tx, totals: &l.totals, clock: clock}
	if c.totals.began == 0 {
		c.totals.began, c.totals.seed, c.totals.beyond = clock.Boot, maphash.MakeSeed(), map[uint64]struct{}{}
	}
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("open period: %w", err)
	}
	if err := c.backfill(); err != nil {
		return nil, errors.Join(fmt.Errorf("add history to period: %w", err), c.close())
	}
	return c, nil
}

func (c *credits) close() error {
	if c == nil {
		return nil
	}
	return c.grow.Close()
}

// open finds the running period. While the clock is not trusted it is that of the last moment at
// which it was: none ends, and none begins.
func (c *credits) open() (err error) {
	moment := c.clock.Now
	if c.clock.State == wallclock.Agrees {
		err = setMeta(c.ctx, c.tx, periodMoment, moment.Unix())
	} else {
		var known int64
		known, err = meta(c.ctx, c.tx, periodMoment)
		if known != 0 {
			moment = time.Unix(known, 0)
		}
	}
	if err != nil {
		return err
	}
	c.start, c.end = c.Bounds(moment)
	c.name = c.Name(c.start)
	err = c.tx.QueryRowContext(c.ctx, "SELECT count(*), EXISTS (SELECT 1 FROM held) FROM periods WHERE name = ?", c.name).Scan(&c.keys, &c.held)
	if err != nil {
		return err
	}
	c.grow, err = c.tx.PrepareContext(c.ctx, `UPDATE periods SET
		receive_bytes = min(receive_bytes, 9223372036854775807 - ?1) + ?1,
		transmit_bytes = min(transmit_bytes, 9223372036854775807 - ?2) + ?2 WHERE name = ?3 AND key = ?4`)
	return err
}

// meta returns a number that is kept, 0 if there is none.
func meta(ctx context.Context, db queryer, key string) (value int64, err error) {
	err = db.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = ?", key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return value, err
}

func setMeta(ctx context.Context, tx *sql.Tx, key string, value int64) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value)
	return err
}

// backfill adds the history of the running period, once in a ledger's life. Later it would add
// what other totals of that period have: those of another configuration, or of the file that was
// set aside, whose UUID they have.
func (c *credits) backfill() error {
	begun, err := meta(c.ctx, c.tx, periodsBegun)
	if err != nil || begun != 0 {
		return err
	}
	if err := setMeta(c.ctx, c.tx, periodsBegun, 1); err != nil {
		return err
	}
	type used struct {
		subject
		bytes [2]int64
	}
	var history []used
	rows, err := c.tx.QueryContext(c.ctx, `SELECT `+subjectColumns+`, sum(r), sum(t) FROM (
			SELECT subject, receive_bytes AS r, transmit_bytes AS t FROM hours WHERE start >= ?1 AND start < ?2
			UNION ALL SELECT subject, receive_bytes, transmit_bytes FROM days WHERE start >= ?1 AND start < ?2)
		JOIN subjects s ON s.id = subject GROUP BY s.id ORDER BY s.id`, c.start.Unix(), c.end.Unix())
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var u used
		if err := rows.Scan(append(u.args(), &u.bytes[0], &u.bytes[1])...); err != nil {
			return err
		}
		history = append(history, u)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, u := range history {
		if err := c.add(u.subject, u.bytes); err != nil {
			return err
		}
	}
	return nil
}

// used adds what a container has used since the last flush. Without a name yet it is held back.
func (c *credits) used(r usage.Record, delta numbers) error {
	bytes := [2]int64{delta[0], delta[3]}
	is := subjectOf(r)
	if is.unnamed() && !usage.IsOthers(r.ID) && c.isNew(r) {
		if bytes == [2]int64{} {
			return nil
		}
		_, err := c.tx.ExecContext(c.ctx, `INSERT INTO held (container, since, runtime, receive_bytes, transmit_bytes) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (container) DO UPDATE SET receive_bytes = receive_bytes + excluded.receive_bytes,
				transmit_bytes = transmit_bytes + excluded.transmit_bytes`,
			r.ID, c.clock.Now.Unix(), r.Runtime, bytes[0], bytes[1])
		return err
	}
	if !c.held {
		return c.add(is, bytes)
	}
	var held [2]int64
	err := c.tx.QueryRowContext(c.ctx, "DELETE FROM held WHERE container = ? RETURNING receive_bytes, transmit_bytes", r.ID).Scan(&held[0], &held[1])
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return c.add(is, [2]int64{bytes[0] + held[0], bytes[1] + held[1]})
}

// isNew reports whether a container, or this process, is so new that its name may still come.
func (c *credits) isNew(r usage.Record) bool {
	age := c.clock.Now.Sub(r.StartedAt)
	return age >= 0 && age < namedWithin || c.clock.Boot-c.totals.began < namedWithin
}

// settle adds what was held back for long enough, under the ids.
func (c *credits) settle() error {
	now, long := c.clock.Now.Unix(), int64(namedWithin/time.Second)
	rows, err := c.tx.QueryContext(c.ctx, `DELETE FROM held WHERE since <= ? OR since > ?
		RETURNING container, runtime, receive_bytes, transmit_bytes`, now-long, now+long)
	if err != nil {
		return err
	}
	defer rows.Close()
	due := map[subject][2]int64{}
	for rows.Next() {
		var s subject
		var bytes [2]int64
		if err := rows.Scan(&s.containerID, &s.runtime, &bytes[0], &bytes[1]); err != nil {
			return err
		}
		s.user, s.name = usage.UserOf(s.containerID), s.containerID
		due[s] = bytes
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for s, bytes := range due {
		if err := c.add(s, bytes); err != nil {
			return err
		}
	}
	return nil
}

// key returns the key of a subject's usage, and that of the others.
func (c *credits) key(s subject) (own, others string, err error) {
	labels, err := labelsOf(s.labels)
	if err != nil {
		return "", "", fmt.Errorf("%w: labels of %s: %v", errDamaged, s.containerID, err)
	}
	values, rest := map[string]string{}, map[string]string{}
	for _, by := range c.By {
		rest[by] = usage.Others
		switch by {
		case ByName:
			values[by] = s.name
		case ByPod:
			values[by] = s.pod
		case ByNamespace:
			values[by] = s.namespace
		default:
			values[by] = usage.InScope(s.user, labels[strings.TrimPrefix(by, LabelPrefix)])
		}
	}
	return keyText(values), keyText(rest), nil
}

func keyText(values map[string]string) string {
	text, _ := json.Marshal(values) // strings can be marshalled
	return string(text)
}

// add adds bytes to the running period's total of a subject, or to that of the others if there
// are too many keys. A key that has a total keeps it.
func (c *credits) add(s subject, bytes [2]int64) error {
	if bytes == [2]int64{} {
		return nil
	}
	own, others, err := c.key(s)
	if err != nil {
		return err
	}
	if grown, err := c.addTo(own, bytes, c.keys < c.Keys); grown || err != nil {
		return err
	}
	if len(c.totals.beyond) < beyondMax {
		c.totals.beyond[maphash.String(c.totals.seed, own)] = struct{}{}
	}
	_, err = c.addTo(others, bytes, true)
	return err
}

// addTo adds bytes to a total, and makes it if it may. It returns whether there is one.
func (c *credits) addTo(key string, bytes [2]int64, may bool) (bool, error) {
	n, err := affected(c.grow.ExecContext(c.ctx, bytes[0], bytes[1], c.name, key))
	if err != nil || n > 0 || !may {
		return n > 0, err
	}
	_, err = c.tx.ExecContext(c.ctx, "INSERT INTO periods (name, key, start, ending, receive_bytes, transmit_bytes) VALUES (?, ?, ?, ?, ?, ?)",
		c.name, key, c.start.Unix(), c.end.Unix(), bytes[0], bytes[1])
	c.keys++
	return true, err
}

// finish does what is left to do in the transaction, and returns the totals to show after it.
func (c *credits) finish() (shown PeriodTotals, again bool, err error) {
	if err = c.settle(); err != nil {
		return shown, false, fmt.Errorf("add usage without a name: %w", err)
	}
	if c.clock.State == wallclock.Agrees {
		_, err = c.tx.ExecContext(c.ctx, "DELETE FROM periods WHERE ending <= ?", c.clock.Now.Add(-c.Keep).Unix())
		if err != nil {
			return shown, false, fmt.Errorf("prune periods: %w", err)
		}
	}
	if shown, err = c.read(); err != nil {
		return shown, false, fmt.Errorf("read periods: %w", err)
	}
	var held int
	err = c.tx.QueryRowContext(c.ctx, "SELECT count(*) FROM held").Scan(&held)
	return shown, held > 0, err
}

func (c *credits) read() (shown PeriodTotals, err error) {
	if err = c.tx.QueryRowContext(c.ctx, "SELECT uuid FROM identity").Scan(&shown.Ledger); err != nil {
		return shown, err
	}
	rows, err := c.tx.QueryContext(c.ctx, "SELECT name, key, start, ending, receive_bytes, transmit_bytes FROM periods ORDER BY name, key")
	if err != nil {
		return shown, err
	}
	defer rows.Close()
	shown.Beyond = len(c.totals.beyond)
	for rows.Next() {
		var t PeriodTotal
		var key string
		var start, end int64
		if err := rows.Scan(&t.Period, &key, &start, &end, &t.Receive, &t.Transmit); err != nil {
			return shown, err
		}
		if err := json.Unmarshal([]byte(key), &t.Key); err != nil {
			return shown, fmt.Errorf("%w: key of period %s: %v", errDamaged, t.Period, err)
		}
		t.Start, t.End = time.Unix(start, 0), time.Unix(end, 0)
		if t.Period == c.name && isOthers(t.Key) {
			shown.Beyond = cmp.Or(shown.Beyond, 1)
		}
		shown.Totals = append(shown.Totals, t)
	}
	return shown, rows.Err()
}

func isOthers(key map[string]string) bool {
	for _, value := range key {
		if value != usage.Others {
			return false
		}
	}
	return true
}

// show makes totals those that are shown: they are on the disk.
func (t *totals) show(shown PeriodTotals) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shown = shown
}
