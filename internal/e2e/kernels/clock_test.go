// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"encoding/base64"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet/need"
)

// monthly is a quota whose only key is always there.
const monthly = `
quotas:
  - {name: all, match: {}, per: all, count: transmit_bytes, limit: 1000B, period: {every: month, timezone: UTC}, alert_at: [50, 80, 100]}
`

// A host whose real-time clock has lost its time keeps what was used this month, and goes on
// with it when the clock is put right.
func TestNoRTC(t *testing.T) {
	need.Debian(t)
	need.Commands(t, "qemu-system-x86_64", "busybox")
	kernel := kernels[len(kernels)-1]
	a := newApt(t, kernel.suite)
	g := guest{
		unpacked: a.download(t, a.newest(t, regexp.MustCompile(kernel.form))),
		nettally: build(t),
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

	g.date = "2024-06-01T00:00:00"
	g.files["var/lib/nettally/ledger.db"] = state
	g.steps = "CLOCK=behind DATE='2026-11-22 12:00:00'\n" + clockScript
	second := g.boot(t)
	succeeded(t, second)
	if date := second["date at boot"].output; date != "2024-06\n" {
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
}

func succeeded(t *testing.T, results map[string]result) {
	t.Helper()
	for step, r := range results {
		if r.code != 0 && step != "" {
			t.Errorf("%s: ended with %d and printed:\n%s", step, r.code, r.output)
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
