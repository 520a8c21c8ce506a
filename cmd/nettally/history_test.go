// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/ledger"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// daemonWith serves usage on a socket, as `run` does, and returns the flags that lead
// there.
func daemonWith(t *testing.T, snap usage.Snapshot, rows func(exporter.HistoryQuery) ([]exporter.HistoryRow, error)) []string {
	t.Helper()
	return serving(t, exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return snap, nil },
		History:  func(_ context.Context, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) { return rows(q) },
	})
}

// serving serves what options have, without settings.
func serving(t *testing.T, opts exporter.Options) []string {
	t.Helper()
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "nettally.yaml"), filepath.Join(dir, "socket")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	opts.Settings = func() exporter.Settings { return exporter.Settings{} }
	opts.Log = slog.New(slog.DiscardHandler)
	e, err := exporter.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := exporter.Listen("", socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- e.Serve(ctx, listeners) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return []string{"--config", config, "--socket", socket}
}

// output runs a command and returns what it prints.
func output(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot(&out, t.Output())
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func mustOutput(t *testing.T, args ...string) string {
	t.Helper()
	out, err := output(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// trimmed is a table without the spaces at the end of its lines.
func trimmed(table string) string {
	var lines []string
	for line := range strings.Lines(table) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	return strings.Join(lines, "\n")
}

var first = time.Date(2026, 11, 1, 0, 0, 0, 0, time.FixedZone("", -5*3600))

func row(days int, key string, received, transmitted, syn uint64) exporter.HistoryRow {
	return exporter.HistoryRow{
		Start: first.AddDate(0, 0, days), End: first.AddDate(0, 0, days+1), Key: key,
		Receive:  exporter.HistoryCounts{Bytes: received, Packets: received / 100, TCPSYN: syn},
		Transmit: exporter.HistoryCounts{Bytes: transmitted, Packets: transmitted / 100},
	}
}

func TestHistory(t *testing.T) {
	var asked exporter.HistoryQuery
	var rows []exporter.HistoryRow
	flags := daemonWith(t, usage.Snapshot{}, func(q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
		asked = q
		return rows, nil
	})
	history := func(args ...string) string {
		t.Helper()
		return mustOutput(t, append(append([]string{"history"}, args...), flags...)...)
	}

	rows = []exporter.HistoryRow{row(0, "db", 1, 0, 0), row(0, "web", 3<<30, 1<<30, 17), row(1, "", 1<<29, 1<<29, 2), row(1, "idle", 0, 0, 0)}
	expect := func(what, want, got string) {
		t.Helper()
		if diff := cmp.Diff(want, trimmed(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	expect("by name", `START       NAME  RECEIVED  SYN  TRANSMITTED  SYN
2026-11-01  db    1B        0    0B           0
2026-11-01  web   3GiB      17   1GiB         0
2026-11-02  -     512MiB    2    512MiB       0
2026-11-02  idle  0B        0    0B           0`, history())
	if asked.By != "name" || asked.Step != "day" || asked.To.Sub(asked.From) < 28*24*time.Hour {
		t.Errorf("asked by default: %+v", asked)
	}

	rows = rows[3:]
	expect("nothing but zeros", `START    te�am  RECEIVED  SYN  TRANSMITTED  SYN
2026-11  idle   0B        0    0B           0`, history("--by", "label:te\tam", "--step", "month"))
	expect("by week", `START       POD   RECEIVED  SYN  TRANSMITTED  SYN
2026-11-02  idle  0B        0    0B           0`, history("--by", "pod", "--step", "week", "--user", "1000"))
	if asked.By != "pod" || asked.Step != "week" || asked.User != "1000" || asked.To.Sub(asked.From) < 76*24*time.Hour {
		t.Errorf("asked by week: %+v", asked)
	}
	rows[0].Key = strings.Repeat("3f", 32)
	expect("by container", `START             CONTAINER ID  RECEIVED  SYN  TRANSMITTED  SYN
2026-11-02 00:00  3f3f3f3f3f3f  0B        0    0B           0`, history("--by", "container", "--step", "hour"))

	rows = nil
	expect("no usage", "no usage from 2026-11-01 00:00 to 2026-12-01 00:00",
		history("--from", "2026-11-01T00:00:00Z", "--to", "2026-12-01T00:00:00Z", "--name", "w*", "--container", "3f",
			"--namespace", "prod", "--label", "team=a", "--by", "namespace"))
	asked.From, asked.To = asked.From.UTC(), asked.To.UTC()
	query := exporter.HistoryQuery{
		From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
		Step: "day", By: "namespace", Name: "w*", Container: "3f", Namespace: "prod", LabelKey: "team", LabelValue: "a",
	}
	if diff := cmp.Diff(query, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

// TestHistoryOfAnotherZone: days begin where the daemon is, and so does a day that is asked for.
func TestHistoryOfAnotherZone(t *testing.T) {
	var asked exporter.HistoryQuery
	flags := serving(t, exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return usage.Snapshot{}, nil },
		History: func(_ context.Context, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
			asked = q
			return nil, nil
		},
		Now: func() time.Time { return first.AddDate(0, 0, 20) },
	})
	for _, test := range []struct {
		args     []string
		from, to time.Time
	}{
		{[]string{"--from", "2026-11-01", "--to", "2026-11-02"}, first, first.AddDate(0, 0, 1)},
		{[]string{"--from", "2026-11-01T00:00:00Z"}, first.Add(-5 * time.Hour), first.AddDate(0, 0, 20)},
		{[]string{"--step", "month"}, first.AddDate(0, -11, 0), first.AddDate(0, 0, 20)},
		{[]string{"--since", "2026-11"}, first, first.AddDate(0, 0, 20)},
		{[]string{"--since", "2d"}, first.AddDate(0, 0, 18), first.AddDate(0, 0, 20)},
	} {
		mustOutput(t, append(append([]string{"history"}, test.args...), flags...)...)
		if !asked.From.Equal(test.from) || !asked.To.Equal(test.to) {
			t.Errorf("%v: asked from %s to %s, want from %s to %s", test.args, asked.From, asked.To, test.from, test.to)
		}
	}
}

// A month that runs ends with what it is going to be. One that has ended does not, nor any
// other step, nor what programs read.
func TestHistoryEstimated(t *testing.T) {
	now := first.AddDate(0, 0, 10)
	rows := []exporter.HistoryRow{row(-31, "web", 7, 7, 7), row(0, "db", 100, 0, 0), row(0, "web", 3<<20, 1<<20, 10)}
	rows[0].End, rows[1].End, rows[2].End = first, first.AddDate(0, 0, 30), first.AddDate(0, 0, 30)
	rows[1].Transmit.TCPSYN = 1
	flags := serving(t, exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return usage.Snapshot{}, nil },
		History:  func(context.Context, exporter.HistoryQuery) ([]exporter.HistoryRow, error) { return rows, nil },
		Now:      func() time.Time { return now },
	})
	history := func(args ...string) string {
		return trimmed(mustOutput(t, append(append([]string{"history"}, args...), flags...)...))
	}
	const counted = `START      NAME  RECEIVED  SYN  TRANSMITTED  SYN
2026-10    web   7B        7    7B           0
2026-11    db    100B      0    0B           1
2026-11    web   3MiB      10   1MiB         0
`
	want := counted + `estimated  db    300B      0    0B           3
estimated  web   9MiB      30   3MiB         0`
	if diff := cmp.Diff(want, history("--step", "month")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, args := range [][]string{{"--step", "week"}, {"--step", "month", "-o", "csv"}, {"--step", "month", "-o", "json"}} {
		if got := history(args...); strings.Contains(got, "estimated") {
			t.Errorf("%v: %s", args, got)
		}
	}
	for what, moment := range map[string]time.Time{"ended": first.AddDate(0, 0, 30), "begun a moment ago": first.Add(time.Minute)} {
		if now = moment; strings.Contains(history("--step", "month"), "estimated") {
			t.Errorf("a month that has %s is estimated", what)
		}
	}
	now = first.AddDate(0, 0, 10)
	rows[2].Receive.Bytes = 1<<64 - 1
	if got := history("--step", "month"); !strings.Contains(got, "estimated  web   8EiB") {
		t.Errorf("no end: %s", got)
	}
	// A --to is no moment until which was counted: the daemon counts until now.
	rows[1].Start, rows[1].End = time.Now().Add(-2*time.Hour), time.Now().Add(2*time.Hour)
	rows = rows[1:2]
	if got := history("--step", "month", "--to", "2026-11-02"); !strings.Contains(got, "estimated  db    200B") && !strings.Contains(got, "estimated  db    199B") {
		t.Errorf("until a --to: %s", got)
	}
}

func TestHistoryFormats(t *testing.T) {
	flags := daemonWith(t, usage.Snapshot{}, func(exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
		return []exporter.HistoryRow{row(0, "-x", 1, 2, 3)}, nil
	})
	want := "start,end,key,receive_bytes,receive_packets,receive_tcp_syn,transmit_bytes,transmit_packets,transmit_tcp_syn," +
		"tcp_connect_attempts,tcp_connects,tcp_accepts,tcp_connect_failures,receive_http_requests,transmit_http_requests\n" +
		"2026-11-01T00:00:00-05:00,2026-11-02T00:00:00-05:00,'-x,1,0,3,2,0,0,,,,,,\n"
	if diff := cmp.Diff(want, mustOutput(t, append(flags, "history", "-o", "csv")...)); diff != "" {
		t.Errorf("csv (-want +got):\n%s", diff)
	}
	got := mustOutput(t, append(flags, "history", "-o", "json", "--step", "month", "--to", "2026-12-01")...)
	for _, want := range []string{`"history": [`, `"start": "2026-11-01T00:00:00-05:00"`, `"key": "-x"`, `"tcp_syn": 3`, `"step": "month"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

func TestHistoryRefuses(t *testing.T) {
	flags := daemonWith(t, usage.Snapshot{}, func(exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
		return nil, badHistory{fmt.Errorf("read history: %w: more than 1 row", ledger.ErrBadQuery)}
	})
	t.Setenv("NETTALLY_STATE_DIR", t.TempDir())
	socket := flags[3]
	for _, test := range []struct {
		args  []string
		usage bool
		want  string
	}{
		{[]string{"-o", "wide"}, true, `wrong use: --output: expected table, json or csv, got "wide"`},
		{[]string{"--step", "year"}, true, `wrong use: --step: "year" is neither hour nor day nor week nor month`},
		{[]string{"--since", "1h", "--from", "2026-11-01"}, true, `wrong use: --since: from says the beginning already; give one of both`},
		{[]string{"--by", "image"}, true, `wrong use: --by: "image" is neither name nor container nor pod nor namespace nor label:KEY`},
		{[]string{"--from", "2026-12-01T00:00:00Z", "--to", "2026-11-01T00:00:00Z"}, true,
			"wrong use: --from: 2026-12-01T00:00:00Z is not before 2026-11-01T00:00:00Z"},
		{[]string{"web"}, true, "wrong use: unknown command \"web\" for \"nettally history\": see `nettally history --help`"},
		{nil, false, "read history from " + socket + ": 400 Bad Request: read history: bad query: more than 1 row"},
		{[]string{"--socket", socket + "x"}, false,
			"read history from " + socket + "x: nobody answers (is nettally running? see exporter.socket)"},
	} {
		_, err := output(t, append(append([]string{"history"}, flags...), test.args...)...)
		if err == nil || err.Error() != test.want || errors.Is(err, errUsage) != test.usage {
			t.Errorf("%v: got %v, want %s", test.args, err, test.want)
		}
	}
}

func TestBar(t *testing.T) {
	for share, want := range map[float64][2]string{
		0:         {"", ""},
		1e-12:     {"▏", "#"},
		1.0 / 160: {"▏", "#"},
		0.5:       {"██████████", "##########"},
		0.52:      {"██████████▌", "###########"},
		1:         {"████████████████████", "####################"},
	} {
		for i, look := range []look{{}, {ascii: true}} {
			if got := bar(share, look); got != want[i] {
				t.Errorf("%g, %+v: %q, want %q", share, look, got, want[i])
			}
		}
	}
}

// oneRecord is accounts with one container, which has received 1.5 GiB.
type oneRecord struct{}

func (oneRecord) Unrecalled() []string         { return nil }
func (oneRecord) Recall(string, *usage.Record) {}
func (oneRecord) Recalls() <-chan struct{}     { return nil }
func (oneRecord) Written([]usage.Record)       {}
func (oneRecord) Pending(bool) []usage.Record {
	counted := received(0, 0, 3<<29)
	return []usage.Record{{
		Container: usage.Container{ID: "a1", Name: "web", State: usage.Running, StartedAt: time.Now(), Traffic: counted},
		Tallies:   []usage.Tally{{Name: "eth0", Final: counted}},
	}}
}

// A daemon that is down keeps nobody from what it has written.
func TestHistoryOfLedgerAlone(t *testing.T) {
	dir := t.TempDir()
	read, err := wallclock.Host()
	if err != nil {
		t.Fatal(err)
	}
	kept := ledger.New(ledger.Options{
		Path:      filepath.Join(dir, "ledger.db"),
		Retention: func() (hours, days time.Duration) { return 48 * time.Hour, 48 * time.Hour },
		Clock:     wallclock.New(read, slog.New(slog.DiscardHandler)),
		Log:       slog.New(slog.DiscardHandler),
	})
	ended, end := context.WithCancel(t.Context())
	end()
	err = kept.Keep(ended, oneRecord{})
	if err := errors.Join(err, kept.Close()); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "nettally.yaml")
	if err := os.WriteFile(config, []byte("state_dir: "+dir+"\nquotas: 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"history", "--config", config, "--socket", filepath.Join(dir, "nobody")}
	if got := mustOutput(t, flags...); !strings.Contains(got, " web   1.5GiB") {
		t.Errorf("got %s", got)
	}
	for _, args := range [][]string{{"--since", "1h"}, {"--since", "2d", "--step", "week"}, {"--step", "month"}, {"--by", "pod"}} {
		if got := mustOutput(t, append(flags, args...)...); !strings.Contains(got, " 1.5GiB") {
			t.Errorf("%v: %s", args, got)
		}
	}
	if got := mustOutput(t, append(flags, "--user", "*")...); !strings.HasPrefix(got, "no usage from ") {
		t.Errorf("of users: %s", got)
	}
	_, err = output(t, append(flags, "--label", "team")...)
	if err == nil || !strings.Contains(err.Error(), "names.labels") {
		t.Errorf("a label that is not kept: %v", err)
	}
}

// What the ledger refuses is the client's fault, and what it can't do is not.
func TestHistoryOfLedger(t *testing.T) {
	d := &daemon{ledger: ledger.New(ledger.Options{
		Path:      filepath.Join(t.TempDir(), "ledger.db"),
		Retention: func() (hours, days time.Duration) { return time.Hour, time.Hour },
		Clock:     wallclock.New(func() wallclock.Reading { return wallclock.Reading{Wall: first} }, nil),
		Log:       slog.New(slog.DiscardHandler),
	})}
	q := exporter.HistoryQuery{From: first, To: first, Step: "day", By: "name"}
	if _, err := d.history(t.Context(), q); !errors.Is(err, exporter.ErrBadHistory) {
		t.Errorf("a query without time: %v", err)
	}
	q.To = first.AddDate(0, 0, 1)
	if _, err := d.history(t.Context(), q); err == nil || errors.Is(err, exporter.ErrBadHistory) {
		t.Errorf("a ledger that is not open: %v", err)
	}
}
