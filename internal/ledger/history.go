// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// ErrBadQuery is wrapped by what is wrong with a query, as opposed to with the ledger.
var ErrBadQuery = errors.New("bad query")

// rowsMax limits an answer.
const rowsMax = 100_000

// Step is the length of a period of history.
type Step string

// The steps. Days, weeks and months begin with the calendar's, and a week on its Monday as in
// ISO 8601.
const (
	Hour  Step = "hour"
	Day   Step = "day"
	Week  Step = "week"
	Month Step = "month"
)

// What usage is summed up by. LabelPrefix takes a label's name.
const (
	ByName      = "name"
	ByContainer = "container"
	ByPod       = "pod"
	ByNamespace = "namespace"
	LabelPrefix = "label:"
)

// Query asks for history. Hours, and anything by container, reach back as far as hours
// are kept; the rest as far as days.
type Query struct {
	// From and To are widened to whole steps. Zero is the first that is known, and now.
	From, To time.Time
	Step     Step   // "" is Day
	By       string // ByName, …; "" is ByName

	// What usage has to be of, each "" for any.
	Name      string // as in path.Match: "web-*"
	Container string // the id, or a beginning of it that no other has
	Namespace string
	// User is the uid that users' containers are asked for by, "*" for those of all. Without
	// it only root's are meant, and a container whose full id names its user.
	User       string
	LabelKey   string // has the label, with
	LabelValue string // this value unless ""
}

// Row is what one key used in one period.
type Row struct {
	Start, End time.Time
	// Key is the name, container id, pod, namespace or value of the label. The name is that of
	// [usage.Container.NameKey], and the id of a container whose name was never known; where
	// several runtimes have containers of one name, all but the first have theirs before it.
	Key               string
	Receive, Transmit Amount
	TCP               *Connections  // nil where they were not counted
	HTTP              *HTTPRequests // nil where they were not counted
}

// Connections is what was counted of TCP connections, as in [usage.TCP]. What is nil is not known.
type Connections struct {
	ConnectAttempts uint64
	Connects        *uint64
	Accepts         uint64
	ConnectFailures *uint64
}

// HTTPRequests are those of HTTP/1, of all methods, as in [usage.Requests].
type HTTPRequests struct{ Receive, Transmit uint64 }

// Amount is what was counted in one direction: wire numbers, without what was seeded.
type Amount struct {
	Bytes   uint64
	Packets uint64
	TCPSYN  uint64 // SYN without ACK
}

// History answers a query, by start and then by key, without rows that are all 0. It
// waits for no flush and keeps none waiting. It is safe for concurrent use.
func (l *Ledger) History(ctx context.Context, q Query) ([]Row, error) {
	q, err := l.checkQuery(q)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	var rows []Row
	err = l.read(ctx, func(ctx context.Context, f *file) error {
		tx, err := f.history.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			return err
		}
		// One moment for all of it: usage may be on its way from hours to days.
		defer func() { _ = tx.Rollback() }()
		a := &answer{ctx: ctx, ledger: l, tx: tx, Query: q}
		rows, err = a.rows()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	return rows, nil
}

func (l *Ledger) checkQuery(q Query) (Query, error) {
	q.Step, q.By = cmp.Or(q.Step, Day), cmp.Or(q.By, ByName)
	if q.To.IsZero() {
		q.To = l.Clock.Now().Add(1) // the present, too, when a step begins
	}
	label, isLabel := strings.CutPrefix(q.By, LabelPrefix)
	_, globErr := path.Match(q.Name, "")
	var wrong string
	switch {
	case !slices.Contains([]Step{Hour, Day, Week, Month}, q.Step):
		wrong = fmt.Sprintf("step %q, expected hour, day, week or month", q.Step)
	case q.By != ByName && q.By != ByContainer && q.By != ByPod && q.By != ByNamespace && (!isLabel || label == ""):
		wrong = fmt.Sprintf("by %q, expected name, container, pod, namespace or label:<name>", q.By)
	case globErr != nil:
		wrong = fmt.Sprintf("name %q: %v", q.Name, globErr)
	case !q.From.Before(q.To):
		wrong = "it ends before it begins"
	case q.LabelValue != "" && q.LabelKey == "":
		wrong = "a label's value without its name"
	}
	if wrong != "" {
		return q, fmt.Errorf("%w: %s", ErrBadQuery, wrong)
	}
	return q, nil
}

// answer is the answering of one query.
type answer struct {
	Query
	ctx    context.Context
	ledger *Ledger
	tx     *sql.Tx
	keys   map[int64]string // by subject; the others are not asked for
	labels map[string]bool  // that are asked for, and whether there are any
	kinds  runtimes
}

func (a *answer) rows() ([]Row, error) {
	err := a.subjects()
	if err == nil {
		err = a.checkLabels()
	}
	if err != nil || len(a.keys) == 0 {
		return nil, err
	}
	query, args, err := a.statement()
	if err != nil {
		return nil, err
	}
	stmt, err := a.tx.PrepareContext(a.ctx, query)
	if err != nil {
		return nil, err
	}
	defer stmt.Close()
	var rows []Row
	to := a.next(a.begin(a.To.Add(-1)))
	start, err := a.usedFrom(a.begin(a.From))
	for ; err == nil && start.Before(to); start, err = a.usedFrom(a.next(start)) {
		period, err := a.period(stmt, start, a.next(start), args)
		if err != nil {
			return nil, err
		}
		rows = append(rows, period...)
		if len(rows) > rowsMax {
			return nil, fmt.Errorf("%w: more than %d rows; ask for less time, a longer step or fewer names",
				ErrBadQuery, rowsMax)
		}
	}
	return rows, err
}

// subjects finds those that are asked for, with their keys.
func (a *answer) subjects() error {
	rows, err := a.tx.QueryContext(a.ctx, "SELECT id, "+subjectColumns+" FROM subjects")
	if err != nil {
		return err
	}
	defer rows.Close()
	a.keys, a.labels = map[int64]string{}, map[string]bool{}
	if label, ok := strings.CutPrefix(a.By, LabelPrefix); ok {
		a.labels[label] = false
	}
	if a.LabelKey != "" {
		a.labels[a.LabelKey] = false
	}
	a.kinds = runtimes{first: map[string]string{}, of: map[int64]string{}}
	containers := map[string][]int64{}
	for rows.Next() {
		var id int64
		var s subject
		if err := rows.Scan(append([]any{&id}, s.args()...)...); err != nil {
			return err
		}
		labels, err := labelsOf(s.labels)
		if err != nil {
			return fmt.Errorf("%w: labels of subject %d: %v", errDamaged, id, err)
		}
		for label, known := range a.labels {
			_, has := labels[label]
			a.labels[label] = known || has
		}
		key := a.key(s, labels)
		a.kinds.note(key, s)
		if a.wants(s, labels) {
			a.keys[id] = key
			a.kinds.of[id] = s.runtime
			containers[s.containerID] = append(containers[s.containerID], id)
		}
	}
	if a.By == ByName {
		a.kinds.apart(a.keys)
	}
	if a.Container != "" && len(containers) > 1 {
		return errors.Join(rows.Err(), a.only(containers))
	}
	return rows.Err()
}

// checkLabels returns an error about a label that no usage has, nor will: it is not kept.
func (a *answer) checkLabels() error {
	var kept []string
	if a.ledger.Labels != nil {
		kept = a.ledger.Labels()
	}
	for label, known := range a.labels {
		if !known && !slices.Contains(kept, label) {
			return fmt.Errorf("%w: no usage has the label %q: names.labels says which are kept", ErrBadQuery, label)
		}
	}
	return nil
}

// only leaves the container that is asked for by its full id, of all that begin so.
func (a *answer) only(containers map[string][]int64) error {
	whole, ok := containers[a.Container]
	if !ok {
		return fmt.Errorf("%w: %d containers begin with %q", ErrBadQuery, len(containers), a.Container)
	}
	maps.DeleteFunc(a.keys, func(id int64, _ string) bool { return !slices.Contains(whole, id) })
	return nil
}

func (a *answer) wants(s subject, labels map[string]string) bool {
	if s.containerID == "" && a.byContainer() {
		return false
	}
	named, _ := path.Match(a.Name, usage.Bare(s.user, s.name)) // checked
	value, labelled := labels[a.LabelKey]
	return (a.Name == "" || named) && a.ofUser(s) &&
		strings.HasPrefix(s.containerID, a.Container) &&
		(a.Namespace == "" || a.Namespace == usage.Bare(s.user, s.namespace)) &&
		(a.LabelKey == "" || labelled && (a.LabelValue == "" || a.LabelValue == value))
}

// ofUser says whether a subject is of the users that are asked for.
func (a *answer) ofUser(s subject) bool {
	switch a.User {
	case "":
		return s.user == "" || usage.UserOf(a.Container) == s.user
	case "*":
		return s.user != ""
	}
	return a.User == s.user
}

// key is what usage is summed up under: with the user, if it is not root's.
func (a *answer) key(s subject, labels map[string]string) string {
	switch a.By {
	case ByName:
		return s.container(labels).NameKey()
	case ByContainer:
		return s.containerID
	case ByPod:
		return s.container(labels).PodKey()
	case ByNamespace:
		return s.namespace
	}
	return usage.InScope(s.user, labels[strings.TrimPrefix(a.By, LabelPrefix)])
}

// container returns what is known of a subject.
func (s subject) container(labels map[string]string) *usage.Container {
	return &usage.Container{ID: s.containerID, Name: s.name, Namespace: s.namespace, Pod: s.pod, Runtime: s.runtime, Labels: labels}
}

// runtimes tell apart the containers of several runtimes that have one name.
type runtimes struct {
	first map[string]string // that a key is kept by
	of    map[int64]string  // by subject
}

// note takes note of a subject, also of one that is not asked for: keys are the same in all answers.
func (r runtimes) note(key string, s subject) {
	if s.namespace == "" && !s.unnamed() {
		r.first[key] = usage.FirstRuntime(r.first[key], s.runtime)
	}
}

// apart gives the subjects of all runtimes but the first keys of their own.
func (r runtimes) apart(keys map[int64]string) {
	for id, key := range keys {
		if first, ok := r.first[key]; ok && first != r.of[id] {
			keys[id] = usage.OfRuntime(key, r.of[id])
		}
	}
}

func (a *answer) byContainer() bool { return a.By == ByContainer || a.Container != "" }

// hoursOnly says whether days have nothing to add.
func (a *answer) hoursOnly() bool { return a.Step == Hour || a.byContainer() }

// few says whether to look for the subjects one by one rather than at everybody's usage.
func (a *answer) few() bool {
	filtered := a.User != "" || a.Name != "" || a.Container != "" || a.Namespace != "" || a.LabelKey != ""
	return filtered && len(a.keys) <= 200
}

// usedFrom returns the first period not before a moment that has usage, or one behind
// the query. The clock may once have been years off: not every period in between is
// looked at.
func (a *answer) usedFrom(t time.Time) (time.Time, error) {
	var first sql.NullInt64
	err := a.tx.QueryRowContext(a.ctx, `SELECT min(start) FROM (
		SELECT min(start) AS start FROM hours WHERE start >= ?
		UNION ALL SELECT min(start) + ? FROM days WHERE start >= ? - ?)`,
		t.Unix(), halfDay, t.Unix(), halfDay).Scan(&first)
	if err != nil || !first.Valid {
		return a.To.AddDate(0, 2, 0), err
	}
	return a.begin(time.Unix(first.Int64, 0)), nil
}

// begin returns the beginning of the period that a moment is in.
func (a *answer) begin(t time.Time) time.Time {
	switch a.Step {
	case Hour:
		return hourOf(t, a.ledger.Location)
	case Day:
		return dayOf(t, a.ledger.Location)
	case Week:
		return weekOf(t, a.ledger.Location)
	}
	return monthOf(t, a.ledger.Location)
}

// next returns the end of the period with a beginning.
func (a *answer) next(start time.Time) time.Time {
	switch y, m, d := start.Date(); a.Step {
	case Hour:
		return start.Add(time.Hour)
	case Day:
		return begin(y, m, d+1, a.ledger.Location)
	case Week:
		return begin(y, m, d+7, a.ledger.Location)
	default:
		return begin(y, m+1, 1, a.ledger.Location)
	}
}

// halfDay is added to the beginning of a day in the ledger: in the middle, it is that
// day also where the host's time zone has changed since.
const halfDay = 12 * 60 * 60

// statement returns what sums up one period by subject. Its arguments are the period
// as often as it has tables, each followed by those returned.
func (a *answer) statement() (query string, args []any, err error) {
	which := ""
	if a.few() {
		subjects := make([]int64, 0, len(a.keys))
		for id := range a.keys {
			subjects = append(subjects, id)
		}
		list, err := json.Marshal(subjects)
		if err != nil {
			return "", nil, err
		}
		which, args = " AND subject IN (SELECT value FROM json_each(?))", []any{string(list)}
	}
	from := func(table string) string {
		return "SELECT subject, " + sums + " FROM " + table + " WHERE start >= ? AND start < ?" + which + " GROUP BY subject"
	}
	if a.hoursOnly() {
		return from("hours"), args, nil
	}
	return from("hours") + " UNION ALL " + from("days"), args, nil
}

// period sums up one period by key.
func (a *answer) period(stmt *sql.Stmt, start, end time.Time, rest []any) ([]Row, error) {
	args := append([]any{start.Unix(), end.Unix()}, rest...)
	if !a.hoursOnly() {
		args = append(append(args, start.Unix()-halfDay, end.Unix()-halfDay), rest...)
	}
	rows, err := stmt.QueryContext(a.ctx, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	sums := map[string]numbers{}
	for rows.Next() {
		var id int64
		var n numbers
		if err := rows.Scan(append([]any{&id}, n.args()...)...); err != nil {
			return nil, err
		}
		if key, ok := a.keys[id]; ok && n != (numbers{}) {
			sums[key] = sums[key].plus(n)
		}
	}
	period := make([]Row, 0, len(sums))
	for key, n := range sums {
		period = append(period, Row{
			Start: start, End: end, Key: key, Receive: n.amount(0), Transmit: n.amount(3), TCP: n.connections(), HTTP: n.requests(),
		})
	}
	slices.SortFunc(period, func(x, y Row) int { return cmp.Compare(x.Key, y.Key) })
	return period, rows.Err()
}

// plus returns the sum of each two numbers, at most the highest one.
func (n numbers) plus(m numbers) numbers {
	for i := range n {
		n[i] = min(n[i], math.MaxInt64-m[i]) + m[i]
	}
	return n
}

// amount returns the direction that begins at an index.
func (n numbers) amount(at int) Amount {
	return Amount{Bytes: uint64(n[at]), Packets: uint64(n[at+1]), TCPSYN: uint64(n[at+2])}
}

func (n numbers) connections() *Connections {
	if n[tcpKnown] == 0 {
		return nil
	}
	of := n[firstOfTCP:]
	c := &Connections{ConnectAttempts: uint64(of[0]), Accepts: uint64(of[2])}
	if n[tcpKnown]%tcpInPart != 0 {
		c.Connects, c.ConnectFailures = new(uint64(of[1])), new(uint64(of[3]))
	}
	return c
}

func (n numbers) requests() *HTTPRequests {
	if n[httpKnown] == 0 {
		return nil
	}
	return &HTTPRequests{uint64(n[firstOfHTTP]), uint64(n[firstOfHTTP+1])}
}
