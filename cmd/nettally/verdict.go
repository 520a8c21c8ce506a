// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
)

// checkFlag is the flag of `quota list` that makes it a plugin of Nagios.
const checkFlag = "check"

// verdict is how quotas stand, as the exit code of a plugin of Nagios. It is an error that was
// printed already.
type verdict int

// The verdicts.
const (
	verdictOK       verdict = 0
	verdictWarning  verdict = 1 // a level below 100 % fires, or the projection
	verdictCritical verdict = 2 // a level of 100 % or more fires, or a rate
	verdictUnknown  verdict = 3 // nobody can tell
)

// word is what a plugin of Nagios says.
func (v verdict) word() string { return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[v] }

func (v verdict) Error() string { return "quotas are " + v.word() }

// checking reports whether a command was to end with a verdict.
func checking(cmd *cobra.Command) bool {
	flag := cmd.Flags().Lookup(checkFlag)
	return flag != nil && flag.Value.String() == "true"
}

// unknown prints why there is no verdict.
func unknown(w io.Writer, reason error) verdict {
	_ = say(w, "QUOTA %s: %s", verdictUnknown.word(), oneField(strings.ReplaceAll(reason.Error(), "\n", "; "))) // nobody is left to tell
	return verdictUnknown
}

// judged is how many keys the line of a check has, the foremost ones: some readers take no more
// than 4 KiB of it.
const judged = 20

// printVerdict prints the state of all quotas in one line, in the form of the Nagios plugin
// guidelines, and returns the verdict.
func printVerdict(w io.Writer, found *exporter.QuotaList) error {
	keys := slices.DeleteFunc(slices.Clone(found.Quotas), func(q exporter.Quota) bool { return q.Key == "" && q.Used == 0 })
	slices.SortStableFunc(keys, func(a, b exporter.Quota) int {
		return cmp.Or(cmp.Compare(verdictOf(b), verdictOf(a)), cmp.Compare(b.Ratio, a.Ratio))
	})
	if len(found.Quotas) == 0 {
		return unknown(w, errors.New("there are no quotas; see quotas in the configuration"))
	}
	all := verdictOK
	firing := 0
	for _, q := range keys {
		all = max(all, verdictOf(q))
		if verdictOf(q) != verdictOK {
			firing++
		}
	}
	text := fmt.Sprintf("QUOTA %s: %d of %d keys have a level that fires", all.word(), firing, len(keys))
	if len(keys) > 0 {
		text += ", foremost " + inWords(keys[0])
	}
	if found.ClockDistrust != "" {
		text += "; " + found.ClockDistrust
	}
	text = oneField(text)
	for i, q := range keys[:min(len(keys), judged)] {
		if i == 0 {
			text += " |"
		}
		text += " " + perfdata(q)
	}
	if err := say(w, "%s", text); err != nil || all == verdictOK {
		return err
	}
	return all
}

// verdictOf is the verdict on one key.
func verdictOf(q exporter.Quota) verdict {
	worst := verdictOK
	for _, l := range q.Levels {
		if l.Firing {
			worst = max(worst, verdictWarning)
			if percent, err := strconv.Atoi(l.Level); l.Level == quota.LevelRate || err == nil && percent >= 100 {
				worst = verdictCritical
			}
		}
	}
	return worst
}

func inWords(q exporter.Quota) string {
	return fmt.Sprintf("%s of %s: %.1f%% (%s of %s)", q.Quota, dash(quotaKey(q)), 100*q.Ratio,
		quota.Amount(q.Used, q.Unit, q.Decimal), quota.Amount(q.Limit, q.Unit, q.Decimal))
}

// perfdata is 'QUOTA KEY'=used;warning;critical;0;limit, in bytes or as a number.
func perfdata(q exporter.Quota) string {
	unit := ""
	if q.Unit == "bytes" {
		unit = "B"
	}
	var warning, critical string
	for _, l := range q.Levels {
		percent, err := strconv.Atoi(l.Level)
		switch {
		case l.Level == quota.LevelRate:
			critical = number(q.Limit)
		case err == nil && percent < 100:
			warning = cmp.Or(warning, number(q.Limit*float64(percent)/100))
		case err == nil:
			critical = cmp.Or(critical, number(q.Limit*float64(percent)/100))
		}
	}
	label := strings.NewReplacer("'", "''", "=", "_").Replace(oneField(q.Quota + " " + cmp.Or(quotaKey(q), "-")))
	return fmt.Sprintf("'%s'=%s%s;%s;%s;0;%s", label, number(q.Used), unit, warning, critical, number(q.Limit))
}

// number is a number without an exponent, which Nagios does not read.
func number(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// oneField is a text that does not begin the performance data of its line.
func oneField(text string) string { return strings.ReplaceAll(text, "|", "/") }
