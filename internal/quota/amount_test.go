// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestAmount(t *testing.T) {
	for _, test := range []struct {
		n       float64
		unit    string
		decimal bool
		want    string
	}{
		{1e6, Bytes, true, "1MB"}, {1e6, Bytes, false, "976.6KiB"}, {100e9, Bytes, true, "100GB"}, {100 << 30, Bytes, false, "100GiB"},
		{1000, Bytes, true, "1kB"}, {0, Bytes, true, "0B"}, {2.5e6, "bytes/s", true, "2.5MB/s"}, {1e7, "bits/s", false, "10Mbit/s"},
		{0.5, "requests/s", false, "0.5 requests/s"}, {12345, Packets, false, "12345 packets"}, {999999, Packets, false, "999999 packets"},
		{5e6, Packets, false, "5M packets"}, {1.5e12, Requests, false, "1.5T requests"},
	} {
		if got := Amount(test.n, test.unit, test.decimal); got != test.want {
			t.Errorf("%v %s: got %s, want %s", test.n, test.unit, got, test.want)
		}
	}
	for n, want := range map[float64]uint64{65823007: 65823007, 0.6: 1, -1: 0, math.Inf(1): math.MaxUint64, 1 << 64: math.MaxUint64} {
		if got := Whole(n); got != want {
			t.Errorf("%v: got %d, want %d", n, got, want)
		}
	}
}

// The log and the summary have a limit as it was given, and numbers without an exponent.
func TestAlertAsGiven(t *testing.T) {
	rule := monthly()
	rule.Limit, rule.Decimal, rule.AlertAt = 104857600, true, []int{50}
	b := newBench(t, rule)
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 65823007)
	alerts := b.check(time.Second)
	same(t, alerts[0].Summary, "web has used 65.82MB of 104.9MB until 2026-12-01 00:00 UTC, 50 % or more (quota m)")
	if log := b.log.String(); !strings.Contains(log, " used=65823007 limit=104857600 ") {
		t.Errorf("logged: %s", log)
	}
}

// An alert that is over says so, with the numbers of its end.
func TestResolvedSummary(t *testing.T) {
	rule := monthly()
	rule.Limit, rule.AlertAt = 50<<20, []int{100}
	b := newBench(t, rule)
	b.start("a1", "web")
	b.pass(0)
	b.transmit("a1", 80<<20)
	b.pass(time.Second)
	raised := rule
	raised.Limit = 100 << 20
	b.rules = []Rule{raised}
	alerts := b.pass(time.Second)
	same(t, said(alerts), []string{"m web 100 resolved"})
	same(t, alerts[0].Summary, "Resolved: web has used 80MiB of 100MiB until 2026-12-01 00:00 UTC (quota m)")
	same(t, b.sent[len(b.sent)-1].Summary, alerts[0].Summary) // to a webhook
	same(t, b.engine.Alerts()[0].Summary, alerts[0].Summary)

	b = newBench(t, syn(0))
	b.start("a1", "web")
	b.pass(0)
	b.rate("a1", 300, 1)
	alerts = b.rate("a1", 100, 1)
	same(t, alerts[0].Summary, "Resolved: web (a1) is at 100 requests/s; the bound is 200 requests/s (quota syn)")
}

// A rule that counts no container yet is listed, without a key.
func TestStatusWithoutKey(t *testing.T) {
	b := newBench(t, monthly(), syn(0))
	b.pass(0)
	status := b.engine.Status()
	if len(status) != 2 {
		t.Fatalf("got %+v", status)
	}
	s := status[0]
	if s.Quota != "m" || s.Key != "" || s.Limit != 1000 || s.Used != 0 || s.PeriodEnd.IsZero() || s.Predictable || len(s.Levels) != 3 {
		t.Errorf("got %+v", s)
	}
	b.start("a1", "web")
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 0, "syn/a1": 0})
	if n := len(b.engine.Status()); n != 2 {
		t.Errorf("%d lines", n)
	}
}
