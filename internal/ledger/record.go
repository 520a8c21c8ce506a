// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// numbers are what the history is made of: bytes, packets and SYNs received, then
// those transmitted, then connections that were attempted, established, accepted and failed, and
// whether these are known, as a number above 0, then HTTP requests received and transmitted, and
// whether these are known.
type numbers [14]int64

const (
	firstOfTCP  = 6
	tcpKnown    = 10
	firstOfHTTP = 11
	httpKnown   = 13
)

// tcpInPart is what tcpKnown grows by where only attempts and accepts were counted, see
// [usage.TCP].InPart. Else it grows by 1, so its lower half says whether all is known.
const tcpInPart = 1 << 32

// counted returns the numbers of a record that are to be in the history in the end: those of its
// interfaces, or of its cgroup if it is in the host's network. A container that shares another
// one's interfaces is in that one's, but for its connections and requests. Those of a nested
// container are in the numbers of the outer one.
func counted(r usage.Record) (n numbers) {
	traffic := r.Traffic
	if r.IP != nil && r.OnHost {
		traffic = *r.IP
	}
	for i, c := range []usage.Counts{traffic.Receive, traffic.Transmit} {
		v := c.Timed()
		for j, amount := range []uint64{v.Bytes, v.Packets, c.SYN} {
			n[3*i+j] = int64(min(amount, math.MaxInt64))
		}
	}
	if countsTCP(r) {
		for i, amount := range []uint64{r.TCP.ConnectAttempts, r.TCP.Connects, r.TCP.Accepts, r.TCP.ConnectFailures} {
			n[firstOfTCP+i] = int64(min(amount, math.MaxInt64))
		}
	}
	if r.ParentID == "" {
		receive, transmit := r.HTTPRequests()
		n[firstOfHTTP], n[firstOfHTTP+1] = int64(min(receive, math.MaxInt64)), int64(min(transmit, math.MaxInt64))
	}
	return n
}

func countsTCP(r usage.Record) bool { return r.TCP != nil && r.ParentID == "" }

func countsHTTP(r usage.Record) bool { return r.Layer7.HTTP && r.ParentID == "" }

// highest returns the higher one of each two numbers.
func (n numbers) highest(m numbers) numbers {
	for i := range n {
		n[i] = max(n[i], m[i])
	}
	return n
}

// above returns by how much each number exceeds a mark, 0 where it does not.
func (n numbers) above(mark numbers) (delta numbers) {
	for i := range n {
		delta[i] = max(n[i]-mark[i], 0)
	}
	return delta
}

func (n *numbers) args() []any {
	args := make([]any, len(n))
	for i := range n {
		args[i] = &n[i]
	}
	return args
}

// values are numbers as arguments of a statement.
func (n numbers) values() []any {
	args := make([]any, len(n))
	for i, v := range n {
		args[i] = v
	}
	return args
}

// subject is whose usage something is.
type subject struct {
	containerID, user, name, namespace, pod, runtime, image, labels string
}

func subjectOf(r usage.Record) subject {
	return subject{
		containerID: r.ID,
		user:        usage.UserOf(r.ID),
		name:        cmp.Or(r.LastingName(), r.ID),
		namespace:   r.Namespace,
		pod:         r.Pod,
		runtime:     r.Runtime,
		image:       r.Image,
		labels:      labelText(r.Labels),
	}
}

func (s *subject) args() []any {
	return []any{&s.containerID, &s.user, &s.name, &s.namespace, &s.pod, &s.runtime, &s.image, &s.labels}
}

func (s subject) unnamed() bool { return s.name == s.containerID }

const subjectColumns = "container_id, user, name, namespace, pod, runtime, image, labels"

// labelText is the same for the same labels: JSON has its keys in order.
func labelText(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	text, _ := json.Marshal(labels) // strings can be marshalled
	return string(text)
}

func labelsOf(text string) (labels map[string]string, err error) {
	if text != "" {
		err = json.Unmarshal([]byte(text), &labels)
	}
	return labels, err
}

// nanos is a time as the ledger has it, 0 for none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

const identityColumns = `id, parent, name, runtime, image, namespace, pod, labels, cgroup,
	state, started_at, stopped_at, network_mode, reason, tallies`

// loadRecords reads the containers that a condition holds for. A row that makes no
// sense is left out: it is no reason to lose all others.
func (l *Ledger) loadRecords(ctx context.Context, db queryer, where string, args ...any) ([]usage.Record, error) {
	rows, err := db.QueryContext(ctx, "SELECT "+identityColumns+" FROM containers WHERE "+where+" ORDER BY n", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var records []usage.Record
	for rows.Next() {
		r, err := scanRecord(rows)
		if err != nil {
			l.Log.Error("what is kept of a container can't be read", "container", r.ID, "err", err)
			continue
		}
		records = append(records, r)
	}
	return records, rows.Err()
}

func (l *Ledger) findRecords(ctx context.Context, db queryer, ids []string) (map[string]*usage.Record, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	records, err := l.loadRecords(ctx, db, "id IN (SELECT value FROM json_each(?))", string(list))
	found := make(map[string]*usage.Record, len(records))
	for i := range records {
		found[records[i].ID] = &records[i]
	}
	return found, err
}

func scanRecord(rows *sql.Rows) (r usage.Record, err error) {
	var labels, tallies string
	var started, stopped int64
	err = rows.Scan(&r.ID, &r.ParentID, &r.Name, &r.Runtime, &r.Image, &r.Namespace, &r.Pod, &labels, &r.Cgroup,
		&r.State, &started, &stopped, &r.NetworkMode, &r.Reason, &tallies)
	if err != nil {
		return r, err
	}
	r.StartedAt, r.StoppedAt = fromNanos(started), fromNanos(stopped)
	if r.Labels, err = labelsOf(labels); err != nil {
		return r, fmt.Errorf("parse labels: %w", err)
	}
	if err := json.Unmarshal([]byte(tallies), &r.Tallies); err != nil {
		return r, fmt.Errorf("parse tallies: %w", err)
	}
	r.Total()
	return r, nil
}

// writeRecords writes records down in one transaction.
func (l *Ledger) writeRecords(ctx context.Context, records []usage.Record) error {
	marks := make(map[string]numbers, len(records))
	var shown PeriodTotals
	var again bool
	err := inTx(ctx, l.file.write, func(tx *sql.Tx) error {
		clock, err := l.look(ctx, tx)
		if err != nil {
			return err
		}
		w, err := newWriter(ctx, tx)
		if err != nil {
			return err
		}
		defer w.close()
		if w.credits, err = l.newCredits(ctx, tx, clock); err != nil {
			return err
		}
		hour := hourOf(clock.Now, l.Location).Unix()
		for _, r := range records {
			if marks[r.ID], err = w.put(r, hour, l.marks[r.ID]); err != nil {
				return err
			}
		}
		if w.credits != nil {
			if shown, again, err = w.credits.finish(); err != nil {
				return err
			}
		}
		return noteWrite(ctx, tx, clock)
	})
	if err != nil {
		return err
	}
	l.totals.again = again
	l.totals.show(shown)
	for id, mark := range marks {
		l.marks[id] = mark
	}
	return nil
}

// writer holds the statements of one transaction.
type writer struct {
	ctx     context.Context
	credits *credits // nil where there are no periods

	known, past, put1, find, add, name, merge, drop, use *sql.Stmt
}

func newWriter(ctx context.Context, tx *sql.Tx) (*writer, error) {
	w := &writer{ctx: ctx}
	for stmt, query := range map[**sql.Stmt]string{
		&w.known: `SELECT c.subject, ` + eachNumber("c.%[1]s") + `, coalesce(s.container_id, ''), coalesce(s.user, ''), coalesce(s.name, ''),
				coalesce(s.namespace, ''), coalesce(s.pod, ''), coalesce(s.runtime, ''), coalesce(s.image, ''),
				coalesce(s.labels, '')
			FROM containers c LEFT JOIN subjects s ON s.id = c.subject WHERE c.id = ?`,
		&w.past: "SELECT " + sums + " FROM subjects s JOIN hours h ON h.subject = s.id WHERE s.container_id = ?",
		&w.put1: "INSERT INTO containers (" + identityColumns + ", subject, " + numberColumns + ")" +
			" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, " + numberValues + ")" +
			" ON CONFLICT (id) DO UPDATE SET " + overwrite(identityColumns+", subject, "+numberColumns),
		&w.find: "SELECT id FROM subjects WHERE (" + subjectColumns + ") = (?, ?, ?, ?, ?, ?, ?, ?)",
		&w.add:  "INSERT INTO subjects (" + subjectColumns + ") VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		&w.name: "UPDATE subjects SET (" + subjectColumns + ") = (?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ?",
		&w.merge: "INSERT INTO hours (start, subject, " + numberColumns + ") SELECT start, ?, " + numberColumns +
			" FROM hours WHERE subject = ? " + onTop,
		&w.drop: "DELETE FROM hours WHERE subject = ?",
		&w.use: "INSERT INTO hours (start, subject, " + numberColumns + ") VALUES (?, ?, " + numberValues + ") " +
			onTop,
	} {
		var err error
		if *stmt, err = tx.PrepareContext(ctx, query); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *writer) close() {
	for _, stmt := range []*sql.Stmt{w.known, w.past, w.put1, w.find, w.add, w.name, w.merge, w.drop, w.use} {
		if stmt != nil {
			_ = stmt.Close()
		}
	}
	_ = w.credits.close()
}

// onTop adds numbers to those that are there, up to the highest one: SQLite makes a float of
// a sum that is too large, which the column refuses, and with it all that is written.
var onTop = "ON CONFLICT (start, subject) DO UPDATE SET " + eachNumber(
	"%[1]s = min(%[1]s, 9223372036854775807 - excluded.%[1]s) + excluded.%[1]s")

// sums are the sums of numbers over rows, 0 over none and at most the highest one each: SQLite's
// sum() fails where it overflows. The halves of numbers do not, over 2^31 rows.
var sums = eachNumber("CASE WHEN coalesce(sum(%[1]s >> 32), 0) + (sum(%[1]s & 0xffffffff) >> 32) >= 0x80000000" +
	" THEN 9223372036854775807 ELSE coalesce((sum(%[1]s >> 32) << 32) + sum(%[1]s & 0xffffffff), 0) END")

// eachNumber is an expression for each of numberColumns.
func eachNumber(format string) string {
	var each []string
	for column := range strings.SplitSeq(numberColumns, ", ") {
		each = append(each, strings.ReplaceAll(format, "%[1]s", column))
	}
	return strings.Join(each, ", ")
}

// overwrite is what replaces columns by those of a row that came too late.
func overwrite(columns string) string {
	var set []string
	for column := range strings.SplitSeq(columns, ",") {
		column = strings.TrimSpace(column)
		set = append(set, column+" = excluded."+column)
	}
	return strings.Join(set, ", ")
}

// put writes a container's row, and adds to the hour what it counted since the last
// time. It returns the new watermarks.
func (w *writer) put(r usage.Record, hour int64, mark numbers) (numbers, error) {
	var current int64
	var kept numbers
	var was subject
	err := w.known.QueryRowContext(w.ctx, r.ID).Scan(append(append([]any{&current}, kept.args()...), was.args()...)...)
	if errors.Is(err, sql.ErrNoRows) {
		// Its row may be lost with a damaged file, and its hours not.
		err = w.past.QueryRowContext(w.ctx, r.ID).Scan(kept.args()...)
	}
	if err != nil {
		return kept, fmt.Errorf("read watermarks: %w", err)
	}
	mark = mark.highest(kept)
	now := counted(r)
	delta := now.above(mark)
	current, err = w.subject(current, was, subjectOf(r), delta != numbers{})
	if err != nil {
		return mark, fmt.Errorf("name usage: %w", err)
	}
	if delta != (numbers{}) {
		switch {
		case countsTCP(r) && r.TCP.InPart:
			delta[tcpKnown] = tcpInPart
		case countsTCP(r):
			delta[tcpKnown] = 1
		}
		if countsHTTP(r) {
			delta[httpKnown] = 1
		}
		args := append([]any{hour, current}, delta.values()...)
		if _, err := w.use.ExecContext(w.ctx, args...); err != nil {
			return mark, fmt.Errorf("add usage: %w", err)
		}
	}
	if w.credits != nil {
		if err := w.credits.used(r, delta); err != nil {
			return mark, fmt.Errorf("add usage to period: %w", err)
		}
	}
	mark = mark.highest(now)
	return mark, w.putRow(r, current, mark)
}

func (w *writer) putRow(r usage.Record, subject int64, mark numbers) error {
	tallies, err := json.Marshal(r.Tallies)
	if err != nil {
		return err
	}
	args := append([]any{
		r.ID, r.ParentID, r.Name, r.Runtime, r.Image, r.Namespace, r.Pod, labelText(r.Labels), r.Cgroup,
		string(r.State), nanos(r.StartedAt), nanos(r.StoppedAt), r.NetworkMode, string(r.Reason),
		string(tallies), subject,
	}, mark.values()...)
	_, err = w.put1.ExecContext(w.ctx, args...)
	return err
}

// subject returns whom usage is recorded for from now on. Usage that was recorded
// before the container had a name goes along; under one that was known it stays.
func (w *writer) subject(current int64, was, is subject, used bool) (int64, error) {
	if current != 0 && was == is {
		return current, nil
	}
	named := current != 0 && was.unnamed() && was.containerID == is.containerID && !is.unnamed()
	if !used && !named {
		return current, nil
	}
	var known int64
	err := w.find.QueryRowContext(w.ctx, is.args()...).Scan(&known)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	switch {
	case known == 0 && !named:
		result, err := w.add.ExecContext(w.ctx, is.args()...)
		if err != nil {
			return 0, err
		}
		return result.LastInsertId()
	case known == 0:
		_, err := w.name.ExecContext(w.ctx, append(is.args(), current)...)
		return current, err
	case named && known != current:
		if _, err := w.merge.ExecContext(w.ctx, known, current); err != nil {
			return 0, err
		}
		_, err := w.drop.ExecContext(w.ctx, current)
		return known, err
	}
	return known, nil
}
