// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/ledger"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// historyFlags are the parameters of exporter.ParseHistoryQuery.
var historyFlags = [...]struct{ name, value, usage string }{
	{"by", "name", "sum up by name, container, pod, namespace or label:`KEY`"},
	{"step", "", "hour, day, week (from Monday) or month (default day, or hour where --since asks for less than two days)"},
	{"since", "", "the last `time`, 90m, 1h, 2d or 3w, or since a beginning as --from has it"},
	{"from", "", "since this `time`: 2026-11-01, 2026-11, 2026-11-01T13:00:00Z or seconds since 1970 (default 24 hours, 30 days, 12 weeks or 12 months back)"},
	{"to", "", "until this `time`, in the same forms (default now)"},
	{"name", "", "only containers with such a name, a `glob`"},
	{"container", "", "only the container with this `id`, or with the id that begins so"},
	{"namespace", "", "only this Kubernetes `namespace`"},
	{"user", "", "only containers of the user with this `UID`, or of all users (*); root's otherwise"},
	{"label", "", "only what has this label, `KEY=VALUE` or KEY"},
}

func newHistory() *cobra.Command {
	var output string
	history := &cobra.Command{
		Use:   "history",
		Short: "Show what was used in each hour, day, week or month",
		Long: `Show what was used in each hour, day, week or month.

By month, the table ends with what the running month will be if it goes on as until now.`,
		Example: `  nettally history --since 2h --name 'web-*'
  nettally history --step week --by label:com.docker.compose.project
  nettally history --step month --by label:team --from 2026-01-01 -o csv`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, ok := map[string]func(io.Writer, *exporter.History) error{
				"table": func(w io.Writer, h *exporter.History) error { return printHistory(w, h, untilNow(cmd, h)) },
				"json":  printJSON[exporter.History],
				"csv":   printCSV,
			}[output]
			if !ok {
				return fmt.Errorf("%w: --output: expected table, json or csv, got %q", errUsage, output)
			}
			parameters := map[string]string{}
			for _, f := range historyFlags {
				parameters[f.name] = cmd.Flag(f.name).Value.String()
			}
			query, err := exporter.ParseHistoryQuery(parameters, time.Now())
			if err != nil {
				return fmt.Errorf("%w: --%w", errUsage, err)
			}
			config, err := loadClientConfig(cmd)
			if err != nil {
				return err
			}
			found, err := exporter.FetchHistory(cmd.Context(), config.Exporter.Socket, parameters)
			if errors.Is(err, exporter.ErrNotRunning) {
				found, err = readLedger(cmd, query, err)
			}
			if err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), found)
		},
	}
	for _, f := range historyFlags {
		history.Flags().String(f.name, f.value, f.usage)
	}
	history.Flags().StringVarP(&output, "output", "o", "table", "table, json or csv")
	completeWith(history, map[string][]string{
		"output": {"table", "json", "csv"}, "step": {"hour", "day", "week", "month"},
		"by": {"name", "container", "pod", "namespace", "label:"},
	})
	_ = history.RegisterFlagCompletionFunc("name", completeContainers) // see completeWith
	return history
}

// untilNow returns until when history has been: the moment that the daemon answered, or ours if
// --to names another one.
func untilNow(cmd *cobra.Command, h *exporter.History) time.Time {
	if cmd.Flag("to").Value.String() == "" {
		return h.To
	}
	return time.Now()
}

// printHistory prints a line per step and key, for people, and what the running month is
// estimated to be. Times are in the offset they came with, which is the daemon's: in another one
// its days begin at odd hours.
func printHistory(w io.Writer, h *exporter.History, now time.Time) error {
	if len(h.History) == 0 {
		const minutes = "2006-01-02 15:04"
		return say(w, "no usage from %s to %s", h.From.Format(minutes), h.To.Format(minutes))
	}
	widest := 0.0
	for _, row := range h.History {
		widest = max(widest, total(row))
	}
	format := map[string]string{"hour": "2006-01-02 15:04", "day": time.DateOnly, "week": time.DateOnly, "month": "2006-01"}[h.Step]
	t := newTable("START", keyTitle(h.By), "RECEIVED", "SYN", "TRANSMITTED", "SYN", "RECEIVED + TRANSMITTED")
	t.bars = 6
	add := func(start string, row exporter.HistoryRow, bar string) {
		key := row.Key
		if h.By == "container" {
			key = usage.ShortID(key)
		}
		t.row(start, dash(key),
			units.BytesSize(float64(row.Receive.Bytes)), strconv.FormatUint(row.Receive.TCPSYN, 10),
			units.BytesSize(float64(row.Transmit.Bytes)), strconv.FormatUint(row.Transmit.TCPSYN, 10), bar)
	}
	for _, row := range h.History {
		add(row.Start.Format(format), row, bar(total(row)/widest, lookOf(w)))
	}
	if h.Step == "month" {
		for _, row := range estimated(h.History, now) {
			add("estimated", row, "")
		}
	}
	return t.print(w)
}

// estimateAfter is how much of a month has to have passed before it is estimated.
const estimateAfter = time.Hour

// estimated returns what will have been used at the end of the running month, by the time of it
// that has passed: a row for each key that has one there.
func estimated(rows []exporter.HistoryRow, now time.Time) (estimates []exporter.HistoryRow) {
	for _, row := range rows {
		passed := now.Sub(row.Start)
		if !row.End.After(now) || passed < estimateAfter {
			continue
		}
		whole := float64(row.End.Sub(row.Start)) / float64(passed)
		grown := func(n uint64) uint64 { return uint64(min(float64(n)*whole, maxEstimate)) }
		row.Receive.Bytes, row.Receive.TCPSYN = grown(row.Receive.Bytes), grown(row.Receive.TCPSYN)
		row.Transmit.Bytes, row.Transmit.TCPSYN = grown(row.Transmit.Bytes), grown(row.Transmit.TCPSYN)
		estimates = append(estimates, row)
	}
	return estimates
}

// maxEstimate is the highest number of history, as a float.
const maxEstimate = 1 << 63

func keyTitle(by string) string {
	if label, ok := strings.CutPrefix(by, "label:"); ok {
		return label
	}
	return map[string]string{"name": "NAME", "container": "CONTAINER ID", "pod": "POD", "namespace": "NAMESPACE"}[by]
}

func total(row exporter.HistoryRow) float64 {
	return float64(row.Receive.Bytes) + float64(row.Transmit.Bytes)
}

// bar draws a share of the widest bar. What is not nothing can be seen.
func bar(share float64, look look) string {
	const cells = 20
	if !(share > 0) { // also where all are 0
		return ""
	}
	if look.ascii {
		return strings.Repeat("#", int(math.Ceil(share*cells)))
	}
	eighths := int(math.Ceil(share * cells * 8))
	return strings.Repeat("█", eighths/8) + [...]string{"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"}[eighths%8]
}

// readLedger answers a query where no daemon does, for the reason given. What was counted since
// the ledger was last written is not in there.
func readLedger(cmd *cobra.Command, q exporter.HistoryQuery, reason error) (*exporter.History, error) {
	config, err := loadClientConfig(cmd, "state_dir")
	if err != nil {
		return nil, reason
	}
	read, err := wallclock.Host()
	if err != nil {
		return nil, err
	}
	kept, err := ledger.OpenToRead(cmd.Context(), ledger.Options{Path: ledgerPath(config), Clock: wallclock.New(read, nil)})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, reason
	}
	if err != nil {
		return nil, fmt.Errorf("%w; %w", reason, err)
	}
	rows, err := historyOf(cmd.Context(), kept, q)
	if err := errors.Join(err, kept.Close()); err != nil {
		return nil, err
	}
	err = say(cmd.ErrOrStderr(), "nettally: nobody answers: this is from %s, as it was last written", ledgerPath(config))
	return &exporter.History{History: rows, By: q.By, Step: q.Step, From: q.From, To: q.To}, err
}

// history asks the ledger, for the exporter.
func (d *daemon) history(ctx context.Context, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
	return historyOf(ctx, d.ledger, q)
}

func historyOf(ctx context.Context, l *ledger.Ledger, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
	found, err := l.History(ctx, ledger.Query{
		From:       q.From,
		To:         q.To,
		Step:       ledger.Step(q.Step),
		By:         q.By,
		Name:       q.Name,
		Container:  q.Container,
		Namespace:  q.Namespace,
		User:       q.User,
		LabelKey:   q.LabelKey,
		LabelValue: q.LabelValue,
	})
	if errors.Is(err, ledger.ErrBadQuery) {
		return nil, badHistory{err}
	}
	rows := make([]exporter.HistoryRow, len(found))
	for i, r := range found {
		rows[i] = exporter.HistoryRow{
			Start: r.Start, End: r.End, Key: r.Key,
			Receive: exporter.HistoryCounts(r.Receive), Transmit: exporter.HistoryCounts(r.Transmit),
			TCP: (*exporter.HistoryTCP)(r.TCP), HTTP: (*exporter.HistoryHTTP)(r.HTTP),
		}
	}
	return rows, err
}

// badHistory is an error of the ledger that is the fault of who asked.
type badHistory struct{ error }

func (badHistory) Is(target error) bool { return target == exporter.ErrBadHistory }

func (b badHistory) Unwrap() error { return b.error }
