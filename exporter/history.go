// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// ErrBadHistory is wrapped by the errors of Options.History that are the client's
// fault: it asked for too much, or for what is ambiguous.
var ErrBadHistory = errors.New("bad query")

// HistoryQuery says what usage over time is asked for.
type HistoryQuery struct {
	From, To time.Time // widened to whole steps
	Step     string    // "hour", "day", "week" or "month"
	By       string    // "name", "container", "pod", "namespace" or "label:" and a key

	// What the usage has to be of, each "" for any.
	Name       string // a glob of path.Match
	Container  string // an id, or the beginning of one
	Namespace  string
	User       string // a uid, or "*" for all users'; "" is for root's
	LabelKey   string // has the label
	LabelValue string // has it with this value
}

// History is the body of GET /api/v1/history. docs/openapi.yaml documents it and the
// types it is made of.
type History struct {
	History []HistoryRow `json:"history"` // by start, then key
	By      string       `json:"by"`
	Step    string       `json:"step"`
	From    time.Time    `json:"from"`
	To      time.Time    `json:"to"`
}

// HistoryRow is what one key used in one step. Times keep their offset: the day of a
// month that begins at 0:00 is another one in UTC.
type HistoryRow struct {
	Start    time.Time     `json:"start"`
	End      time.Time     `json:"end"`
	Key      string        `json:"key"`
	Receive  HistoryCounts `json:"receive"`
	Transmit HistoryCounts `json:"transmit"`
	TCP      *HistoryTCP   `json:"tcp"`  // null where connections were not counted
	HTTP     *HistoryHTTP  `json:"http"` // null where HTTP was not counted
}

// HistoryTCP is what was counted of TCP connections. What is nil is not known.
type HistoryTCP struct {
	ConnectAttempts uint64  `json:"connect_attempts"`
	Connects        *uint64 `json:"connects"`
	Accepts         uint64  `json:"accepts"`
	ConnectFailures *uint64 `json:"connect_failures"`
}

// HistoryHTTP is what was counted of HTTP/1 requests.
type HistoryHTTP struct {
	Receive  uint64 `json:"receive_requests"`
	Transmit uint64 `json:"transmit_requests"`
}

// HistoryCounts is one direction, as the container sees it: wire numbers.
type HistoryCounts struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	TCPSYN  uint64 `json:"tcp_syn"` // without ACK; retransmitted ones too
}

func (e *Exporter) history(w http.ResponseWriter, r *http.Request) {
	q, format, err := parseHistory(r.URL.RawQuery, e.now())
	if err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return
	}
	if e.rows == nil {
		e.fail(w, http.StatusServiceUnavailable, errors.New("read history: there is no ledger"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitTimeout)
	defer cancel()
	rows, err := e.rows(ctx, q)
	switch {
	case errors.Is(err, ErrBadHistory):
		e.fail(w, http.StatusBadRequest, err)
		return
	case err != nil:
		e.fail(w, http.StatusServiceUnavailable, err)
		return
	}
	h := &History{History: append([]HistoryRow{}, rows...), By: q.By, Step: q.Step, From: q.From, To: q.To}
	if format == "csv" {
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		_ = h.WriteCSV(w) // the client is gone, and nobody is left to tell
		return
	}
	e.answer(w, h)
}

// parseHistory returns the query and the format of a query string.
func parseHistory(raw string, now time.Time) (q HistoryQuery, format string, err error) {
	p, err := parseParameters(raw, "by", "step", "since", "from", "to", "name", "container", "namespace", "user", "label", "format")
	if err != nil {
		return q, "", err
	}
	format = cmp.Or(p["format"], "json")
	if format != "json" && format != "csv" {
		return q, "", fmt.Errorf("query parameter format: %q is neither json nor csv", format)
	}
	if q, err = ParseHistoryQuery(p, now); err != nil {
		return q, "", fmt.Errorf("query parameter %w", err)
	}
	return q, format, nil
}

// ParseHistoryQuery reads the parameters of a query by their names, as the URL of GET
// /api/v1/history has them. What is missing or "" has its default: the last 24 hours, 30
// days, 12 weeks or 12 months until now. Times without an offset are in now's location.
//
// The error begins with the name of the parameter that is wrong.
func ParseHistoryQuery(parameters map[string]string, now time.Time) (HistoryQuery, error) {
	label, value, _ := strings.Cut(parameters["label"], "=")
	q := HistoryQuery{
		Step:       parameters["step"],
		By:         cmp.Or(parameters["by"], "name"),
		Name:       parameters["name"],
		Container:  parameters["container"],
		Namespace:  parameters["namespace"],
		User:       parameters["user"],
		LabelKey:   label,
		LabelValue: value,
	}
	if err := q.check(); err != nil {
		return q, err
	}
	if label == "" && parameters["label"] != "" {
		return q, fmt.Errorf("label: %q is neither KEY=VALUE nor KEY", parameters["label"])
	}
	return q, q.parseSpan(parameters, now)
}

// shortSpan is how little time may be asked for by since to be shown by hour.
const shortSpan = 48 * time.Hour

// parseSpan reads from when to when, and by the way the step where it is not given.
func (q *HistoryQuery) parseSpan(parameters map[string]string, now time.Time) error {
	var err error
	if q.To, err = parseTime(parameters["to"], now); err != nil {
		return fmt.Errorf("to: %w", err)
	}
	if q.To.IsZero() {
		q.To = now
	}
	beginning := "from"
	if parameters["since"] != "" {
		if beginning = "since"; parameters["from"] != "" {
			return errors.New("since: from says the beginning already; give one of both")
		}
		q.From, err = parseSince(parameters["since"], q.To, now)
	} else {
		q.From, err = parseTime(parameters["from"], now)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", beginning, err)
	}
	if q.Step == "" {
		q.Step = "day"
		if beginning == "since" && q.To.Sub(q.From) < shortSpan {
			q.Step = "hour" // a day would have more than what was asked for
		}
	}
	if q.From.IsZero() {
		q.From = q.start()
	}
	if !q.From.Before(q.To) {
		return fmt.Errorf("%s: %s is not before %s", beginning, q.From.Format(time.RFC3339), q.To.Format(time.RFC3339))
	}
	return nil
}

// parseSince reads a beginning: how long before to it is, or a moment.
func parseSince(text string, to, now time.Time) (time.Time, error) {
	if t, err := parseTime(text, now); err == nil {
		return t, nil
	}
	ago, err := model.ParseDuration(text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither how long ago, such as 90m, 1h, 2d or 3w, nor a month such as 2026-11, "+
			"nor a date or time as in from", text)
	}
	since := to.Add(-time.Duration(ago))
	if since.Unix() < 0 {
		since = time.Unix(0, 0).In(to.Location())
	}
	return since, nil
}

func (q HistoryQuery) check() error {
	switch q.Step {
	case "", "hour", "day", "week", "month":
	default:
		return fmt.Errorf("step: %q is neither hour nor day nor week nor month", q.Step)
	}
	key, isLabel := strings.CutPrefix(q.By, "label:")
	switch {
	case isLabel && key != "", q.By == "name", q.By == "container", q.By == "pod", q.By == "namespace":
	default:
		return fmt.Errorf("by: %q is neither name nor container nor pod nor namespace nor label:KEY", q.By)
	}
	if strings.Trim(q.User, "0123456789") != "" && q.User != "*" {
		return fmt.Errorf("user: %q is neither a uid nor *", q.User)
	}
	if _, err := path.Match(q.Name, ""); err != nil {
		return fmt.Errorf("name: %q is not a glob: %w", q.Name, err)
	}
	return nil
}

// start returns a moment in the first step that is asked for unless the query says it.
func (q HistoryQuery) start() time.Time {
	last := q.To.Add(-1) // the step that ends with To is the last
	switch q.Step {
	case "hour":
		return last.Add(-23 * time.Hour)
	case "day":
		return last.AddDate(0, 0, -29)
	case "week":
		return last.AddDate(0, 0, -7*11)
	}
	return time.Date(last.Year(), last.Month()-11, 1, 0, 0, 0, 0, last.Location())
}

// endOfTime is the beginning of the year 9999, the last that RFC 3339 can write.
const endOfTime = 253370764800

// parseTime reads a moment, and the zero time of "".
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	// The + of an offset is a space to those who decode a query.
	t, err := time.Parse(time.RFC3339, strings.Replace(text, " ", "+", 1))
	for _, layout := range [...]string{time.DateOnly, "2006-01"} {
		if err != nil {
			t, err = time.ParseInLocation(layout, text, now.Location())
		}
	}
	if err != nil {
		var seconds int64
		seconds, err = strconv.ParseInt(text, 10, 64)
		t = time.Unix(seconds, 0).In(now.Location())
	}
	if err != nil || t.Unix() < 0 || t.Unix() >= endOfTime {
		return time.Time{}, fmt.Errorf("%q is neither a date such as 2026-11-01 nor a month such as 2026-11 "+
			"nor a time such as 2026-11-01T13:00:00Z nor in seconds since 1970", text)
	}
	return t, nil
}

// WriteCSV writes the rows with a header as RFC 4180 has it, but for the ends of lines.
//
// Labels hold what anybody wrote into them, and a spreadsheet takes a cell that begins
// with =, +, -, @, a tab or the end of a line for a formula. Such a key gets a ' in
// front, and so does one that begins with a ', so that it can be taken off again.
func (h *History) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	// The writer keeps an error for its end.
	_ = out.Write([]string{"start", "end", "key", "receive_bytes", "receive_packets", "receive_tcp_syn",
		"transmit_bytes", "transmit_packets", "transmit_tcp_syn",
		"tcp_connect_attempts", "tcp_connects", "tcp_accepts", "tcp_connect_failures",
		"receive_http_requests", "transmit_http_requests"})
	for _, row := range h.History {
		cells := []string{row.Start.Format(time.RFC3339), row.End.Format(time.RFC3339), cell(row.Key)}
		for _, c := range [...]HistoryCounts{row.Receive, row.Transmit} {
			for _, n := range [...]uint64{c.Bytes, c.Packets, c.TCPSYN} {
				cells = append(cells, strconv.FormatUint(n, 10))
			}
		}
		_ = out.Write(slices.Concat(cells, row.TCP.cells(), row.HTTP.cells()))
	}
	out.Flush()
	return out.Error()
}

func (t *HistoryTCP) cells() []string {
	if t == nil {
		return []string{"", "", "", ""}
	}
	var cells []string
	for _, n := range [...]*uint64{&t.ConnectAttempts, t.Connects, &t.Accepts, t.ConnectFailures} {
		if n == nil {
			cells = append(cells, "")
		} else {
			cells = append(cells, strconv.FormatUint(*n, 10))
		}
	}
	return cells
}

func (h *HistoryHTTP) cells() []string {
	if h == nil {
		return []string{"", ""}
	}
	return []string{strconv.FormatUint(h.Receive, 10), strconv.FormatUint(h.Transmit, 10)}
}

func cell(key string) string {
	key = clean(key)
	if key != "" && strings.IndexByte("=+-@\t\r\n'", key[0]) >= 0 {
		return "'" + key
	}
	return key
}
