// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

func TestPeriodName(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, time.November, 30, 23, 30, 0, 0, time.UTC)
	for _, test := range []struct {
		every string
		day   int
		in    *time.Location
		want  string
	}{
		{"month", 1, time.UTC, "2026-11"},
		{"month", 1, berlin, "2026-12"},
		{"month", 15, time.UTC, "2026-11-15/P1M"},
		{"month", 31, time.UTC, "2026-11-30/P1M"},
		{"week", 1, time.UTC, "2026-W49"},
		{"day", 1, time.UTC, "2026-11-30"},
		{"day", 1, berlin, "2026-12-01"},
	} {
		start, _ := quota.Period{Every: quota.Every(test.every), Day: test.day, Location: test.in}.Bounds(at)
		if got := periodName(test.every, test.day, start); got != test.want {
			t.Errorf("%s from day %d in %s: %q, want %q", test.every, test.day, test.in, got, test.want)
		}
	}
}
