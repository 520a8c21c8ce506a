// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet/need"
)

// monthly is a quota whose only key is always there, and that no container counts for.
const monthly = `
retention: {hours: 1d}
quotas:
  - {name: all, match: {name: nobody}, per: all, count: transmit_bytes, limit: 1000B, period: {every: month, timezone: UTC}, alert_at: [50, 80, 100]}
`

// id is the container's, in the second guest.
const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// A host whose real-time clock has lost its time keeps what was used this month, and goes on
// with it when the clock is put right. So does the history: it has no month in the year that the
// clock began at, and is rolled up and pruned then.
func TestNoRTC(t *testing.T) {
	need.Debian(t)
	need.Commands(t, "qemu-system-x86_64", "busybox")
	kernel := kernels[len(kernels)-1]
	a := newApt(t, kernel.suite)
	g := guest{
		unpacked: a.download(t, a.newest(t, regexp.MustCompile(kernel.form))),
		nettally: build(t),
		programs: []string{buildOf(t, "internal/e2e/kernels/inside")},
		date:     "2026-11-20T12:00:00",
		files:    map[string][]byte{"etc/nettally/nettally.yaml": []byte(monthly)},
	}
	g.steps = "SET=1 CLOCK='reason=\"\"'\n" + clockScript
	first := g.boot(t)
	succeeded(t, first)
	if q := quotaOf(t, first["used then"]); q.Used != 850 {
		t.Fatalf("used %g, and 850 was set", q.Used)
	}
	state, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(first["state"].output, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}

	g.date = "1970-01-02T00:00:00"
	g.files["var/lib/nettally/ledger.db"] = aged(t, state)
	// Old hours are left alone for ten minutes after a boot.
	g.steps = "CLOCK=behind DATE='2026-11-22 12:00:00' AS='inside later 3600' CONTAINER=" + id + "\n" + clockScript
	second := g.boot(t)
	succeeded(t, second)
	if date := second["date at boot"].output; date != "1970-01\n" {
		t.Errorf("the guest booted in %s", date)
	}
	for _, step := range []string{"used at boot", "used then"} {
		q := quotaOf(t, second[step])
		if q.Used != 850 || q.PeriodEnd == nil || q.PeriodEnd.Format("2006-01-02") != "2026-12-01" || !q.Levels[1].Firing {
			t.Errorf("%s: %s", step, second[step].output)
		}
	}
	for _, said := range []string{"the clock is behind the last save", "once an NTP client vouches for it"} {
		if n := strings.Count(second["stop"].output, said); n != 1 {
			t.Errorf("logged %d times: %s\n%s", n, said, second["stop"].output)
		}
	}
	if strings.Contains(second["stop"].output, `msg="quota alert"`) {
		t.Errorf("an alert fired or was resolved:\n%s", second["stop"].output)
	}
	wantHistory(t, second)
}

// aged returns a ledger that has usage of some days before, and of years.
func aged(t *testing.T, state []byte) []byte {
	t.Helper()
	const traffic = "receive_bytes, receive_packets, receive_syn, transmit_bytes, transmit_packets, transmit_syn"
	db, path := opened(t, state)
	for _, statement := range []string{
		`INSERT INTO subjects (id, container_id, user, name, namespace, pod, runtime, image, labels)
			VALUES (1001, 'old', '', 'old', '', '', '', '', ''), (1002, '', '', 'older', '', '', '', '', '')`,
		`INSERT INTO hours (start, subject, ` + traffic + `) VALUES (unixepoch('2026-11-17 10:00'), 1001, 1, 2, 3, 4, 5, 6), (unixepoch('2026-11-17 11:00'), 1001, 10, 20, 30, 40, 50, 60)`,
		`INSERT INTO days (start, subject, ` + traffic + `) VALUES (unixepoch('2019-01-01'), 1002, 1, 1, 1, 1, 1, 1)`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// opened opens a ledger by SQLite alone.
func opened(t *testing.T, state []byte) (db *sql.DB, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ledger.db")
	err := os.WriteFile(path, state, 0o600)
	if err == nil {
		db, err = sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(delete)")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db, path
}

// wantHistory expects what was used before the clock was right on the day of the last save. That
// is more than a day ago, so it is rolled up, too.
func wantHistory(t *testing.T, results map[string]result) {
	t.Helper()
	state, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(results["state"].output, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	db, _ := opened(t, state)
	for query, want := range map[string]string{
		"SELECT group_concat(datetime(start, 'unixepoch') || ' ' || transmit_packets, ', ') FROM (SELECT * FROM hours ORDER BY start)": "2026-11-22 12:00:00 100",
		"SELECT group_concat(date(start, 'unixepoch') || ' ' || transmit_packets || ' ' || transmit_syn, ', ') FROM days":              "2026-11-17 55 66, 2026-11-20 100 0",
	} {
		var got sql.NullString
		if err := db.QueryRow(query).Scan(&got); err != nil || got.String != want {
			t.Errorf("%s: %q, %v, want %q", query, got.String, err, want)
		}
	}
	for line := range strings.Lines(strings.TrimSpace(results["months"].output)) {
		if !strings.HasPrefix(line, "start,") && !strings.HasPrefix(line, "2026-11-01T00:00:00Z,") {
			t.Errorf("a month of the history: %s", line)
		}
	}
}

func succeeded(tb testing.TB, results map[string]result) {
	tb.Helper()
	for step, r := range results {
		if r.code != 0 && step != "" {
			tb.Errorf("%s: ended with %d and printed:\n%s", step, r.code, r.output)
		}
	}
}

func quotaOf(t *testing.T, r result) exporter.Quota {
	t.Helper()
	var list exporter.QuotaList
	if err := json.Unmarshal([]byte(r.output), &list); err != nil || len(list.Quotas) != 1 {
		t.Fatalf("quotas: %v\n%s", err, r.output)
	}
	return list.Quotas[0]
}
