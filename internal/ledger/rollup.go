// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

const (
	// tidyAfter leaves the host time to set its clock after it has booted.
	tidyAfter = 10 * time.Minute
	tidyEvery = time.Hour
	// distrustFor is how long it is left alone if the clock is not trusted.
	distrustFor = time.Minute
	tidyRows    = 2000 // per table and transaction, which keeps a flush from waiting long
)

// upkeep is when old usage is rolled up and pruned, and how far that is.
type upkeep struct {
	due    time.Duration // since boot
	cursor int64         // the subject up to which was looked for unused ones
}

// tidy rolls up and prunes some of what is old, at most every hour once nothing is
// left to do.
func (l *Ledger) tidy(ctx context.Context) error {
	clock := l.Clock.Look()
	if clock.Boot < l.due {
		return nil
	}
	var done bool
	var gone []string
	err := inTx(ctx, l.file.write, func(tx *sql.Tx) (err error) {
		if clock, err = l.look(ctx, tx); err != nil {
			return err
		}
		if err = noteWrite(ctx, tx, clock); err != nil {
			return err
		}
		if clock.State != wallclock.Agrees {
			return nil // a clock that is ahead makes everything look old
		}
		done, gone, err = l.tidySome(ctx, tx, clock.Now)
		return err
	})
	if err != nil {
		l.failed(err)
		return err
	}
	for _, id := range gone {
		delete(l.marks, id)
	}
	switch {
	case done:
		l.due = clock.Boot + tidyEvery
	case clock.State != wallclock.Agrees:
		l.due = clock.Boot + distrustFor
	}
	return nil
}

// tidySome does one transaction's share. It returns whether that was all, and which
// containers are gone.
func (l *Ledger) tidySome(ctx context.Context, tx *sql.Tx, now time.Time) (done bool, gone []string, err error) {
	hours, days := l.Retention()
	rolled, err := l.rollUp(ctx, tx, dayOf(now.Add(-hours), l.Location))
	if err != nil {
		return false, nil, fmt.Errorf("roll up hours: %w", err)
	}
	pruned, err := affected(tx.ExecContext(ctx, `DELETE FROM days WHERE (start, subject) IN
		(SELECT start, subject FROM days WHERE start < ? LIMIT ?)`,
		dayOf(now.Add(-days), l.Location).Unix(), tidyRows))
	if err != nil {
		return false, nil, fmt.Errorf("prune days: %w", err)
	}
	gone, err = pruneContainers(ctx, tx, now.Add(-hours))
	if err != nil {
		return false, nil, fmt.Errorf("prune containers: %w", err)
	}
	looked, err := l.pruneSubjects(ctx, tx)
	if err != nil {
		return false, nil, fmt.Errorf("prune subjects: %w", err)
	}
	return max(rolled, pruned, len(gone), looked) < tidyRows, gone, nil
}

func affected(result sql.Result, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	n, err := result.RowsAffected()
	return int(n), err
}

// rolling is a row of hours on its way to days.
type rolling struct {
	start, subject int64
	numbers
}

// rollUp adds the oldest hours before a moment to their days.
func (l *Ledger) rollUp(ctx context.Context, tx *sql.Tx, before time.Time) (rows int, err error) {
	batch, err := oldest(ctx, tx, before.Unix())
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	add, err := tx.PrepareContext(ctx, "INSERT INTO days (start, subject, "+numberColumns+
		") VALUES (?, ?, "+numberValues+") "+onTop)
	if err != nil {
		return 0, err
	}
	defer add.Close()
	lasting := map[int64]int64{}
	for _, r := range batch {
		if lasting[r.subject] == 0 {
			if lasting[r.subject], err = lastingSubject(ctx, tx, r.subject); err != nil {
				return 0, fmt.Errorf("find subject: %w", err)
			}
		}
		day := dayOf(time.Unix(r.start, 0), l.Location).Unix()
		if _, err := add.ExecContext(ctx, append([]any{day, lasting[r.subject]}, r.values()...)...); err != nil {
			return 0, err
		}
	}
	last := batch[len(batch)-1]
	n, err := affected(tx.ExecContext(ctx, "DELETE FROM hours WHERE (start, subject) <= (?, ?)", last.start, last.subject))
	if err == nil && n != len(batch) {
		err = fmt.Errorf("%d hours added, %d deleted", len(batch), n)
	}
	return n, err
}

func oldest(ctx context.Context, tx *sql.Tx, before int64) (batch []rolling, err error) {
	rows, err := tx.QueryContext(ctx, "SELECT start, subject, "+numberColumns+
		" FROM hours WHERE start < ? ORDER BY start, subject LIMIT ?", before, tidyRows)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r rolling
		if err := rows.Scan(append([]any{&r.start, &r.subject}, r.args()...)...); err != nil {
			return nil, err
		}
		batch = append(batch, r)
	}
	return batch, rows.Err()
}

// lastingSubject returns the subject without a container id that a subject is to be
// known as in days.
func lastingSubject(ctx context.Context, tx *sql.Tx, id int64) (lasting int64, err error) {
	const others = "user, name, namespace, pod, runtime, image, labels"
	err = tx.QueryRowContext(ctx, `SELECT id FROM subjects WHERE container_id = ''
		AND (`+others+`) = (SELECT `+others+` FROM subjects WHERE id = ?)`, id).Scan(&lasting)
	if !errors.Is(err, sql.ErrNoRows) {
		return lasting, err
	}
	result, err := tx.ExecContext(ctx, `INSERT INTO subjects (container_id, `+others+`)
		SELECT '', `+others+` FROM subjects WHERE id = ?`, id)
	n, err := affected(result, err)
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: no subject %d", errDamaged, id)
	}
	if err != nil {
		return 0, err
	}
	return result.LastInsertId()
}

// pruneContainers deletes containers that stopped before a moment.
func pruneContainers(ctx context.Context, tx *sql.Tx, before time.Time) (gone []string, err error) {
	rows, err := tx.QueryContext(ctx, `DELETE FROM containers WHERE n IN
		(SELECT n FROM containers WHERE state = ? AND stopped_at < ? LIMIT ?) RETURNING id`,
		string(usage.Stopped), nanos(before), tidyRows)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		gone = append(gone, id)
	}
	return gone, rows.Err()
}

// pruneSubjects deletes those of the next subjects that nothing refers to. It returns
// how many it looked at, less than tidyRows at the end.
func (l *Ledger) pruneSubjects(ctx context.Context, tx *sql.Tx) (looked int, err error) {
	var last sql.NullInt64
	err = tx.QueryRowContext(ctx, "SELECT count(*), max(id) FROM (SELECT id FROM subjects WHERE id > ? ORDER BY id LIMIT ?)",
		l.cursor, tidyRows).Scan(&looked, &last)
	if err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM subjects WHERE id > ? AND id <= ?
		AND NOT EXISTS (SELECT 1 FROM hours WHERE subject = subjects.id)
		AND NOT EXISTS (SELECT 1 FROM days WHERE subject = subjects.id)
		AND NOT EXISTS (SELECT 1 FROM containers WHERE subject = subjects.id)`, l.cursor, last.Int64)
	if err != nil {
		return 0, err
	}
	l.cursor = last.Int64
	if looked < tidyRows {
		l.cursor = 0
	}
	return looked, nil
}
