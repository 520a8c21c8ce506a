// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s":           0,
		"0d":           0,
		"1.5h":         90 * time.Minute,
		"90d":          2160 * time.Hour,
		"5y":           43800 * time.Hour,
		"1y30d":        9480 * time.Hour,
		"30d1y":        9480 * time.Hour,
		"1d12h0.5s":    36*time.Hour + time.Second/2,
		"106751d":      106751 * day,
		"292y":         292 * year,
		"-1h":          -time.Hour,
		"2562047h47m":  2562047*time.Hour + 47*time.Minute,
		"106751d23h1s": 106751*day + 23*time.Hour + time.Second,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "0", "5", "d", "1.5d", "-1d", "1d-1h", "1d+1h", "1d0", "1d5", "1 d", "1D", "1w", "1h1d",
		"106752d", "293y", "106751d24h", "99999999999999999999d", "290y2d2562047h",
	} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                  "0s",
		5 * time.Minute:    "5m",
		24 * time.Hour:     "24h",
		36 * time.Hour:     "36h",
		2 * day:            "2d",
		90 * day:           "90d",
		year:               "1y",
		5 * year:           "5y",
		5*year + day:       "1826d",
		90*day + 1:         "2160h0m0.000000001s",
		90*day + time.Hour: "2161h",
	} {
		if got := duration(d); got != want {
			t.Errorf("%d: %q, want %q", d, got, want)
		}
	}
}
