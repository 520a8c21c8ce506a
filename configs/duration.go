// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Units beyond Go's: days without changes of the clock, and years without leap days.
const (
	day  = 24 * time.Hour
	year = 365 * day
)

// longPart is a part of a duration in one of those units.
var longPart = regexp.MustCompile(`^([0-9]+)([dy])`)

// parseDuration reads what [time.ParseDuration] reads, after whole years and days:
// 5y, 1d12h.
func parseDuration(text string) (time.Duration, error) {
	var sum time.Duration
	rest := text
	for part := longPart.FindStringSubmatch(rest); part != nil; part = longPart.FindStringSubmatch(rest) {
		unit := day
		if part[2] == "y" {
			unit = year
		}
		n, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil || n > int64((math.MaxInt64-sum)/unit) {
			return 0, errUnfit
		}
		sum += time.Duration(n) * unit
		rest = rest[len(part[0]):]
	}
	if rest == "" && text != "" {
		return sum, nil
	}
	d, err := time.ParseDuration(rest)
	// The standard library lets a bare 0 pass: without a unit it is a number. A sign
	// belongs to the whole.
	if err != nil || rest == "0" || rest != text && strings.ContainsAny(rest[:1], "+-") || d > math.MaxInt64-sum {
		return 0, errUnfit
	}
	return sum + d, nil
}

// duration writes 5m, where the standard library writes 5m0s, and several days or whole
// years as such.
func duration(d time.Duration) string {
	switch {
	case d > 0 && d%year == 0:
		return strconv.FormatInt(int64(d/year), 10) + "y"
	case d > day && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
