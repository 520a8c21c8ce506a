// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/nettally/nettally/internal/wallclock"
)

// Keys of meta, for the last moment at which the clock was trusted, and since when it had gone
// steadily at the last write. A ledger of an older version has the first alone.
const (
	lastWrite        = "last_write"         // Unix nanoseconds
	lastWriteBoot    = "last_write_boot"    // nanoseconds since boot
	lastWriteBootID  = "last_write_boot_id" // see wallclock.Reading
	lastWriteCarried = "last_write_carried" // 1 or 0, see wallclock.Mark
	steadySince      = "steady_since"       // as last_write
	steadyBoot       = "steady_boot"
	steadyBootID     = "steady_boot_id"
)

// look reads the clock, and holds it against the last write first if that was not done yet.
func (l *Ledger) look(ctx context.Context, db queryer) (wallclock.Look, error) {
	if !l.referenced {
		mark, steady, err := readMarks(ctx, db)
		if err != nil {
			return wallclock.Look{}, fmt.Errorf("read time of the last write: %w", err)
		}
		l.Clock.Restore(mark, steady)
		l.referenced = true
	}
	return l.Clock.Look(), nil
}

func readMarks(ctx context.Context, db queryer) (mark, steady wallclock.Mark, err error) {
	rows, err := db.QueryContext(ctx, "SELECT key, value FROM meta")
	if err != nil {
		return mark, steady, err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var value int64
		if err := rows.Scan(&key, &value); err != nil {
			return mark, steady, err
		}
		switch key {
		case lastWrite:
			mark.Wall = fromNanos(value)
		case lastWriteBoot:
			mark.Boot = time.Duration(value)
		case lastWriteBootID:
			mark.BootID = value
		case lastWriteCarried:
			mark.Carried = value != 0
		case steadySince:
			steady.Wall = fromNanos(value)
		case steadyBoot:
			steady.Boot = time.Duration(value)
		case steadyBootID:
			steady.BootID = value
		}
	}
	return mark, steady, rows.Err()
}

// noteWrite notes when the ledger was last written, in the transaction that does it.
func noteWrite(ctx context.Context, tx *sql.Tx, clock wallclock.Look) error {
	m, s := clock.Mark, clock.Steady
	carried := 0
	if m.Carried {
		carried = 1
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO meta (key, value)
		VALUES (?, ?), (?, ?), (?, ?), (?, ?), (?, ?), (?, ?), (?, ?)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value`,
		lastWrite, nanos(m.Wall), lastWriteBoot, int64(m.Boot), lastWriteBootID, m.BootID,
		lastWriteCarried, carried,
		steadySince, nanos(s.Wall), steadyBoot, int64(s.Boot), steadyBootID, s.BootID)
	return err
}

// hourOf returns when the hour of a moment began. The hour that comes twice in autumn
// is two.
func hourOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	return t.Add(-time.Duration(t.Minute())*time.Minute - time.Duration(t.Second())*time.Second -
		time.Duration(t.Nanosecond())).Round(0)
}

// dayOf returns when the day of a moment began.
func dayOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	return begin(t.Year(), t.Month(), t.Day(), in)
}

// weekOf returns when the Monday of a moment's week began.
func weekOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	sinceMonday := (int(t.Weekday()) + 6) % 7
	return begin(t.Year(), t.Month(), t.Day()-sinceMonday, in)
}

// monthOf returns when the month of a moment began.
func monthOf(t time.Time, in *time.Location) time.Time {
	t = t.In(in)
	return begin(t.Year(), t.Month(), 1, in)
}

// begin returns the first moment of a day. Where the clock changes at midnight that
// is not 0:00, or there are two of them; time.Date leaves open which it returns.
func begin(year int, month time.Month, day int, in *time.Location) time.Time {
	noon := time.Date(year, month, day, 12, 0, 0, 0, in)
	day = noon.Day() // 32 January is 1 February
	first := noon
	// Clocks change by multiples of 15 minutes, and by 3 hours at most.
	for t := noon.Add(-15 * time.Hour); t.Before(noon); t = t.Add(15 * time.Minute) {
		if t.Day() == day {
			first = t
			break
		}
	}
	return first
}
