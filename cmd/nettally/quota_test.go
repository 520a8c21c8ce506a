// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
)

// standing is quotas as the daemon has them.
type standing struct {
	status []quota.Status
	set    []string
}

func (s *standing) Status() []quota.Status { return s.status }
func (s *standing) Alerts() []quota.Alert  { return nil }
func (s *standing) Set(name, key string, used uint64) error {
	if key == "nobody" {
		return fmt.Errorf("find key %q of quota %s: %w; see `nettally quota list`", key, name, quota.ErrUnknown)
	}
	s.set = append(s.set, fmt.Sprint(name, " ", key, " ", used))
	return nil
}

func someStanding() *standing {
	end := time.Date(2026, 12, 15, 0, 0, 0, 0, time.Local)
	return &standing{status: []quota.Status{
		{Quota: "egress", Key: "w\teb", Per: "name", Count: quota.TransmitBytes, Used: 85 << 30, Limit: 100 << 30, Unit: "bytes", Ratio: 0.85,
			Every: quota.Monthly, PeriodEnd: end, Projected: 170 << 30, Predictable: true, Levels: []quota.Level{{Name: "50", Firing: true}, {Name: "80", Firing: true}, {Name: "100"}}},
		{Quota: "egress", Key: "db", Per: "name", Count: quota.TransmitBytes, Limit: 100 << 30, Unit: "bytes", Every: quota.Monthly, PeriodEnd: end},
		{Quota: "syn", Key: strings.Repeat("3f", 32), Name: "web", Per: "container", Count: quota.TransmitSYN, Used: 300, Limit: 200, Unit: "requests/s",
			Ratio: 1.5, Levels: []quota.Level{{Name: "rate", Firing: true}}},
		{Quota: "all", Key: "all", Per: "all", Count: quota.TotalPackets, Used: 5, Limit: 10, Unit: "packets", Ratio: 0.5, Every: quota.Lifetime},
	}}
}

func TestQuotaList(t *testing.T) {
	s := someStanding()
	flags := serving(t, exporter.Options{Quotas: s})
	want := `QUOTA   KEY                 USED            LIMIT           RATIO   PROJECTED  RESETS AT         ALERTS
egress  w�eb                85GiB           100GiB          85.0%   170GiB     2026-12-15 00:00  50,80
egress  db                  0B              100GiB          0.0%    -          2026-12-15 00:00  -
syn     web (3f3f3f3f3f3f)  300 requests/s  200 requests/s  150.0%  -          -                 rate
all     all                 5 packets       10 packets      50.0%   -          lifetime          -`
	if diff := cmp.Diff(want, trimmed(mustOutput(t, append([]string{"quota", "list"}, flags...)...))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got := mustOutput(t, append([]string{"quota", "list", "-o", "json"}, flags...)...)
	for _, want := range []string{`"quotas": [`, `"used": 91268055040`, `"level": "80"`, `"projected": null`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	s.status = []quota.Status{
		{Quota: "m", Key: "web", Per: "name", Count: quota.TotalBytes, Used: 250e3, Limit: 1e6, Unit: "bytes", Decimal: true, Ratio: 0.25, Every: quota.Lifetime},
		{Quota: "none", Per: "name", Count: quota.TotalBytes, Limit: 100e9, Unit: "bytes", Decimal: true, Every: quota.Monthly, PeriodEnd: time.Date(2026, 12, 15, 0, 0, 0, 0, time.Local)},
	}
	want = `QUOTA  KEY  USED   LIMIT  RATIO  PROJECTED  RESETS AT         ALERTS
m      web  250kB  1MB    25.0%  -          lifetime          -
none   -    0B     100GB  0.0%   -          2026-12-15 00:00  -`
	if diff := cmp.Diff(want, trimmed(mustOutput(t, append([]string{"quota", "list"}, flags...)...))); diff != "" {
		t.Errorf("decimal, and a quota without a key (-want +got):\n%s", diff)
	}
	s.status = nil
	if got := mustOutput(t, append([]string{"quota", "list"}, flags...)...); got != "no quotas; see quotas in the configuration\n" {
		t.Errorf("none: %q", got)
	}
}

// The list says that no period ends, and why.
func TestQuotaListWithWrongClock(t *testing.T) {
	flags := serving(t, exporter.Options{Quotas: someStanding(), Distrust: func() string { return "the clock jumped ahead" }})
	got := mustOutput(t, append([]string{"quota", "list"}, flags...)...)
	if !strings.HasSuffix(got, "\nthe clock jumped ahead\n") {
		t.Errorf("no word of the clock:\n%s", got)
	}
}

func TestQuotaChanges(t *testing.T) {
	s := someStanding()
	s.status = append(s.status, quota.Status{Quota: "none", Per: "name", Count: quota.TotalBytes, Limit: 1e9, Unit: "bytes"})
	flags := serving(t, exporter.Options{Quotas: s})
	for _, args := range [][]string{
		{"set", "egress", "1.5GiB", "--key", "db"}, {"set", "all", "7k"}, {"reset", "egress", "--key", "db"}, {"reset", "egress", "--all"},
	} {
		if out := mustOutput(t, append(append([]string{"quota"}, args...), flags...)...); out != "" {
			t.Errorf("%v: %s", args, out)
		}
	}
	if diff := cmp.Diff([]string{"egress db 1610612736", "all  7000", "egress db 0", "egress  0"}, s.set); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	socket := flags[3]
	for _, test := range []struct {
		args  []string
		usage bool
		want  string
	}{
		{[]string{"list", "-o", "wide"}, true, `wrong use: --output: expected table or json, got "wide"`},
		{[]string{"set", "egress"}, true, "wrong use: accepts 2 arg(s), received 1: see `nettally quota set --help`"},
		{[]string{"set", "egress", "5"}, true, `wrong use: AMOUNT: expected an amount with a unit such as 100GiB or 1.5TB, got "5"`},
		{[]string{"set", "all", "5GB"}, true, `wrong use: AMOUNT: expected a number such as 1000 or 5M, got "5GB"`},
		{[]string{"set", "egress", "0B"}, true, "wrong use: quota egress has 2 keys: give --key to say whose usage it is"},
		{[]string{"set", "other", "5GB"}, false, "find quota \"other\": there is none; see `nettally quota list`"},
		{[]string{"set", "none", "5GB"}, false, "set quota none: no container is counted by it yet"},
		{[]string{"reset", "egress"}, true, "wrong use: give either --key or --all: see `nettally quota reset --help`"},
		{[]string{"reset", "egress", "--key", "nobody"}, false, "change quota by " + socket +
			": 404 Not Found: find key \"nobody\" of quota egress: there is none; see `nettally quota list`"},
	} {
		_, err := output(t, append(append([]string{"quota"}, test.args...), flags...)...)
		if err == nil || err.Error() != test.want || errors.Is(err, errUsage) != test.usage {
			t.Errorf("%v: got %v, want %s", test.args, err, test.want)
		}
	}
}

func TestQuotaTest(t *testing.T) {
	flags := serving(t, exporter.Options{TestNotifier: func(_ context.Context, name string) error {
		return map[string]error{"ops": nil, "hook": errors.New("post to http://x: refused")}[name]
	}})
	if got := mustOutput(t, append([]string{"quota", "test", "ops"}, flags...)...); got != "the test alert was sent\n" {
		t.Errorf("got %q", got)
	}
	want := "test notifier by " + flags[3] + ": 502 Bad Gateway: post to http://x: refused"
	if _, err := output(t, append([]string{"quota", "test", "hook"}, flags...)...); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// What the file says arrives at the engine.
func TestQuotaRules(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nettally.yaml")
	text := `names: {labels: [team]}
quotas:
  - {name: a, match: {name: n, id: i, image: m, runtime: r, namespace: s, pod: p, user: "1000", labels: [{name: team, value: x*}]}, per: "label:team",
     count: transmit_bytes, limit: 1kB, period: {every: month, day: 15, timezone: Asia/Tokyo}, alert_at: [1, 2], projection: true, initial: 5B, notify: [log]}
  - {name: b, rate: {count: total_bytes, above: 8kbit/s, clear: 500B/s, for: 3s}}
  - {name: c, count: total_tcp_syn, limit: 3, period: {rolling: 6h}}
notifiers: [{name: log, log: {}}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := configs.Load(file, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	tokyo, err := time.LoadLocation("Asia/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	want := []quota.Rule{{
		Name: "a", Per: "label:team", Count: quota.TransmitBytes, Limit: 1000, AlertAt: []int{1, 2}, Projection: true, Initial: 5, Decimal: true, Notify: []string{"log"},
		Match:  quota.Match{Name: "n", ID: "i", Image: "m", Runtime: "r", Namespace: "s", Pod: "p", User: "1000", Labels: []quota.LabelMatch{{Name: "team", Value: "x*"}}},
		Period: quota.Period{Every: quota.Monthly, Day: 15, Location: tokyo},
	}, {
		Name: "b", Per: "name", Count: quota.TotalBytes, Notify: []string{}, Rate: &quota.Rate{Above: 1000, Clear: 500, For: 3 * time.Second, Bits: true},
	}, {
		Name: "c", Per: "name", Count: quota.TotalSYN, Limit: 3, AlertAt: []int{80, 100}, Notify: []string{},
		Period: quota.Period{Every: quota.Rolling, Window: 6 * time.Hour},
	}}
	sameZone := cmp.Comparer(func(a, b *time.Location) bool { return a == b || a != nil && b != nil && a.String() == b.String() })
	var cache ruleCache
	rules := cache.of(config)
	if diff := cmp.Diff(want, rules, sameZone); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if again := cache.of(config); &again[0] != &rules[0] {
		t.Error("rules are made again for the same configuration")
	}
}
