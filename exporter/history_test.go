// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// now is in the last hour of a month that is longer than the one before.
var now = time.Date(2026, 12, 31, 23, 30, 0, 0, time.FixedZone("CET", 3600))

func TestParseHistory(t *testing.T) {
	at := func(text string) time.Time {
		when, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	byName := HistoryQuery{By: "name", Step: "day", To: now, From: at("2026-12-02T23:29:59.999999999+01:00")}
	with := func(change func(*HistoryQuery)) HistoryQuery {
		q := byName
		change(&q)
		return q
	}
	tests := []struct {
		query string
		want  HistoryQuery
	}{
		{"", byName},
		{"by=&step=&from=&to=&name=&container=&namespace=&label=&format=", byName},
		{"by=name&step=day&format=csv", byName},
		{"step=hour", with(func(q *HistoryQuery) { q.Step, q.From = "hour", at("2026-12-31T00:29:59.999999999+01:00") })},
		{"step=month", with(func(q *HistoryQuery) { q.Step, q.From = "month", at("2026-01-01T00:00:00+01:00") })},
		{"step=week", with(func(q *HistoryQuery) { q.Step, q.From = "week", at("2026-10-15T23:29:59.999999999+01:00") })},
		{"since=1h", with(func(q *HistoryQuery) { q.Step, q.From = "hour", at("2026-12-31T22:30:00+01:00") })},
		{"since=1h30m&to=2026-12-01T00:00:00%2B01:00", with(func(q *HistoryQuery) {
			q.Step, q.From, q.To = "hour", at("2026-11-30T22:30:00+01:00"), at("2026-12-01T00:00:00+01:00")
		})},
		{"since=2d", with(func(q *HistoryQuery) { q.From = at("2026-12-29T23:30:00+01:00") })},
		{"since=1h&step=week", with(func(q *HistoryQuery) { q.Step, q.From = "week", at("2026-12-31T22:30:00+01:00") })},
		{"since=2026-11", with(func(q *HistoryQuery) { q.From = at("2026-11-01T00:00:00+01:00") })},
		{"since=2026-12-31", with(func(q *HistoryQuery) { q.Step, q.From = "hour", at("2026-12-31T00:00:00+01:00") })},
		{"since=90y", with(func(q *HistoryQuery) { q.From = at("1970-01-01T00:00:00Z") })},
		{"from=2026-11&to=2026-12", with(func(q *HistoryQuery) {
			q.From, q.To = at("2026-11-01T00:00:00+01:00"), at("2026-12-01T00:00:00+01:00")
		})},
		{"step=month&to=2026-12-01", with(func(q *HistoryQuery) {
			q.Step, q.From, q.To = "month", at("2025-12-01T00:00:00+01:00"), at("2026-12-01T00:00:00+01:00")
		})},
		{"step=day&to=2026-12-01", with(func(q *HistoryQuery) {
			q.From, q.To = at("2026-11-01T23:59:59.999999999+01:00"), at("2026-12-01T00:00:00+01:00")
		})},
		{"from=2026-11-01", with(func(q *HistoryQuery) { q.From = at("2026-11-01T00:00:00+01:00") })},
		{"from=2026-11-01T13:00:00Z", with(func(q *HistoryQuery) { q.From = at("2026-11-01T14:00:00+01:00") })},
		{"from=2026-11-01T13:00:00%2B02:00", with(func(q *HistoryQuery) { q.From = at("2026-11-01T12:00:00+01:00") })},
		{"from=2026-11-01T13:00:00+02:00", with(func(q *HistoryQuery) { q.From = at("2026-11-01T12:00:00+01:00") })},
		{"from=1793491200", with(func(q *HistoryQuery) { q.From = at("2026-11-01T00:00:00Z") })},
		{"from=0", with(func(q *HistoryQuery) { q.From = at("1970-01-01T00:00:00Z") })},
		{"by=label:a=b", with(func(q *HistoryQuery) { q.By = "label:a=b" })},
		{"by=container&container=3f2a", with(func(q *HistoryQuery) { q.By, q.Container = "container", "3f2a" })},
		{"name=web-*&namespace=prod&label=team=a=b", with(func(q *HistoryQuery) {
			q.Name, q.Namespace, q.LabelKey, q.LabelValue = "web-*", "prod", "team", "a=b"
		})},
		{"label=team", with(func(q *HistoryQuery) { q.LabelKey = "team" })},
	}
	for _, test := range tests {
		t.Run(test.query, func(t *testing.T) {
			got, _, err := parseHistory(test.query, now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again, _, err := parseHistory(got.encode(), midnight)
			if err != nil {
				t.Fatalf("encoded: %v", err)
			}
			if diff := cmp.Diff(got, again); diff != "" {
				t.Errorf("encoded and read (-before +after):\n%s", diff)
			}
		})
	}
}

// encode returns a query string that parses to the query.
func (q HistoryQuery) encode() string {
	values := url.Values{}
	set := func(name, value string) {
		if value != "" {
			values.Set(name, value)
		}
	}
	set("by", q.By)
	set("step", q.Step)
	set("from", q.From.Format(time.RFC3339Nano))
	set("to", q.To.Format(time.RFC3339Nano))
	set("name", q.Name)
	set("container", q.Container)
	set("namespace", q.Namespace)
	set("user", q.User)
	if q.LabelValue != "" {
		set("label", q.LabelKey+"="+q.LabelValue)
	} else {
		set("label", q.LabelKey)
	}
	return values.Encode()
}

func TestHistoryRefusals(t *testing.T) {
	const times = " is neither a date such as 2026-11-01 nor a month such as 2026-11 nor a time such as 2026-11-01T13:00:00Z nor in seconds since 1970"
	const ago = " is neither how long ago, such as 90m, 1h, 2d or 3w, nor a month such as 2026-11, nor a date or time as in from"
	tests := []struct {
		query, want string
	}{
		{"until=x", `query parameter "until": unknown; there are by, step, since, from, to, name, container, namespace, user, label, format`},
		{"by=name&by=name", `query parameter by: given 2 times`},
		{"by=image", `query parameter by: "image" is neither name nor container nor pod nor namespace nor label:KEY`},
		{"by=label:", `query parameter by: "label:" is neither name nor container nor pod nor namespace nor label:KEY`},
		{"step=year", `query parameter step: "year" is neither hour nor day nor week nor month`},
		{"since=x", `query parameter since: "x"` + ago},
		{"since=1x", `query parameter since: "1x"` + ago},
		{"since=-1h", `query parameter since: "-1h"` + ago},
		{"since=99999999999w", `query parameter since: "99999999999w"` + ago},
		{"since=0s&to=2026-11-02T00:00:00Z", `query parameter since: 2026-11-02T00:00:00Z is not before 2026-11-02T00:00:00Z`},
		{"since=1h&from=2026-11-01", `query parameter since: from says the beginning already; give one of both`},
		{"format=xml", `query parameter format: "xml" is neither json nor csv`},
		{"name=%5B", `query parameter name: "[" is not a glob: syntax error in pattern`},
		{"label=%3Da", `query parameter label: "=a" is neither KEY=VALUE nor KEY`},
		{"from=yesterday", `query parameter from: "yesterday"` + times},
		{"from=2026-13-01", `query parameter from: "2026-13-01"` + times},
		{"from=-1", `query parameter from: "-1"` + times},
		{"to=2026-11-01T13:00:00", `query parameter to: "2026-11-01T13:00:00"` + times},
		{"to=9999-12-31", `query parameter to: "9999-12-31"` + times},
		{"to=99999999999999999", `query parameter to: "99999999999999999"` + times},
		{"from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z", `query parameter from: 2026-11-02T00:00:00Z is not before 2026-11-01T00:00:00Z`},
		{"from=2026-11-01T00:00:00Z&to=2026-11-01T00:00:00Z", `query parameter from: 2026-11-01T00:00:00Z is not before 2026-11-01T00:00:00Z`},
	}
	h := newExporter(t, withHistory(options(snapshot()))).Handler()
	for _, test := range tests {
		t.Run(test.query, func(t *testing.T) {
			code, _, body := request(t, h, "GET", "/api/v1/history?"+test.query)
			want, err := json.Marshal(failure{test.want})
			if err != nil {
				t.Fatal(err)
			}
			if code != 400 || strings.TrimSpace(body) != string(want) {
				t.Errorf("got %d %s, want %s", code, body, want)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	opts := options(snapshot())
	var asked HistoryQuery
	opts.History = func(_ context.Context, q HistoryQuery) ([]HistoryRow, error) {
		asked = q
		return historyRows()[:1], nil
	}
	const target = "/api/v1/history?by=label:team&step=month&from=2026-11-01T00:00:00%2B01:00&to=2026-12-01T00:00:00%2B01:00"
	code, header, body := request(t, newExporter(t, opts).Handler(), "GET", target)
	if code != 200 || header.Get("Content-Type") != "application/json" {
		t.Errorf("status %d, content type %q", code, header.Get("Content-Type"))
	}
	want := `{"history":[{"start":"2026-11-01T00:00:00+01:00","end":"2026-11-02T00:00:00+01:00","key":"web",` +
		`"receive":{"bytes":1,"packets":2,"tcp_syn":3},"transmit":{"bytes":4,"packets":5,"tcp_syn":6},` +
		`"tcp":{"connect_attempts":7,"connects":8,"accepts":9,"connect_failures":10},` +
		`"http":{"receive_requests":11,"transmit_requests":12}}],` +
		`"by":"label:team","step":"month","from":"2026-11-01T00:00:00+01:00","to":"2026-12-01T00:00:00+01:00"}` + "\n"
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	query := HistoryQuery{By: "label:team", Step: "month", From: midnight, To: midnight.AddDate(0, 1, 0)}
	if diff := cmp.Diff(query, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestHistoryIsNeverNull(t *testing.T) {
	opts := options(snapshot())
	opts.History = func(context.Context, HistoryQuery) ([]HistoryRow, error) { return nil, nil }
	_, _, body := request(t, newExporter(t, opts).Handler(), "GET", "/api/v1/history")
	if !strings.HasPrefix(body, `{"history":[],"by":"name","step":"day",`) {
		t.Error(body)
	}
}

func TestHistoryCSV(t *testing.T) {
	h := newExporter(t, withHistory(options(snapshot()))).Handler()
	code, header, body := request(t, h, "GET", "/api/v1/history?format=csv")
	if code != 200 || header.Get("Content-Type") != "text/csv; charset=utf-8" {
		t.Errorf("status %d, content type %q", code, header.Get("Content-Type"))
	}
	want := `start,end,key,receive_bytes,receive_packets,receive_tcp_syn,transmit_bytes,transmit_packets,transmit_tcp_syn,tcp_connect_attempts,tcp_connects,tcp_accepts,tcp_connect_failures,receive_http_requests,transmit_http_requests
2026-11-01T00:00:00+01:00,2026-11-02T00:00:00+01:00,web,1,2,3,4,5,6,7,8,9,10,11,12
2026-11-01T00:00:00+01:00,2026-11-02T00:00:00+01:00,,101,102,103,104,105,106,,,,,,
2026-11-02T00:00:00+01:00,2026-11-03T00:00:00+01:00,"'=1+1,""x""",201,202,203,204,205,206,,,,,,
`
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// No key is a formula to a spreadsheet, and every key can be had back.
func FuzzCSVKeys(f *testing.F) {
	for _, key := range []string{"", "web", "=1", "+1", "-1", "@x", "\t=1", "\r\n=1", "'=1", "''", "a\"b,c", "w\xffb", "ü"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		var text strings.Builder
		h := History{History: []HistoryRow{{Key: key}}}
		if err := h.WriteCSV(&text); err != nil {
			t.Fatal(err)
		}
		records, err := csv.NewReader(strings.NewReader(text.String())).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		got := records[1][2]
		if got != "" && strings.ContainsAny(got[:1], "=+-@\t\r\n") {
			t.Errorf("%q is a formula", got)
		}
		// Package csv reads \r\n as \n.
		want := strings.ReplaceAll(clean(key), "\r\n", "\n")
		if strings.TrimPrefix(got, "'") != want {
			t.Errorf("%q became %q", key, got)
		}
	})
}

func TestHistoryErrors(t *testing.T) {
	tests := []struct {
		err  error
		code int
		want string
	}{
		{fmt.Errorf("read history: %w: more than 100000 rows", ErrBadHistory), 400, "read history: bad query: more than 100000 rows"},
		{errors.New("read history: disk I/O error"), 503, "read history: disk I/O error"},
	}
	for _, test := range tests {
		opts := options(snapshot())
		opts.History = func(context.Context, HistoryQuery) ([]HistoryRow, error) { return historyRows(), test.err }
		code, _, body := request(t, newExporter(t, opts).Handler(), "GET", "/api/v1/history?format=csv")
		if want := fmt.Sprintf(`{"error":%q}`+"\n", test.want); code != test.code || body != want {
			t.Errorf("got %d %s, want %d %s", code, body, test.code, want)
		}
	}
	code, _, body := request(t, newExporter(t, options(snapshot())).Handler(), "GET", "/api/v1/history")
	if want := `{"error":"read history: there is no ledger"}` + "\n"; code != 503 || body != want {
		t.Errorf("got %d %s, want 503 %s", code, body, want)
	}
}

func TestFetchHistory(t *testing.T) {
	opts := options(snapshot())
	opts.Now = func() time.Time { return now }
	var asked HistoryQuery
	opts.History = func(_ context.Context, q HistoryQuery) ([]HistoryRow, error) {
		asked = q
		if q.Name == "many" {
			return nil, ErrBadHistory
		}
		return historyRows(), nil
	}
	_, socket, _ := serve(t, opts, "")
	parameters := map[string]string{"by": "label:a b&c", "label": "k+=v %", "name": "w*", "from": "2026-01-02", "step": ""}
	q, err := ParseHistoryQuery(parameters, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := FetchHistory(t.Context(), socket, parameters)
	if err != nil {
		t.Fatal(err)
	}
	want := &History{History: historyRows(), By: q.By, Step: q.Step, From: q.From, To: q.To}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fetched (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(q, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}

	parameters["name"] = "many"
	_, err = FetchHistory(t.Context(), socket, parameters)
	if want := "read history from " + socket + ": 400 Bad Request: bad query"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = FetchHistory(t.Context(), socket+"x", parameters)
	if !errors.Is(err, ErrNotRunning) || !strings.HasPrefix(err.Error(), "read history from "+socket+"x: ") {
		t.Errorf("without a daemon: %v", err)
	}
}
