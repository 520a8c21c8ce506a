// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/view"
)

// list is what `nettally list` was asked for.
type list struct {
	names   []string // ids, names and globs; none for all
	all     bool
	output  string // table, wide or json
	quiet   bool
	noTrunc bool
	format  format
	by      view.By
	sort    view.Column // "" for the order of the daemon: by start
	reverse bool
	watch   bool
	// interval is between the two readings that a rate is from.
	interval time.Duration

	cmd    *cobra.Command
	socket string
	book   *view.Book // of what was read
}

// The times between two readings.
const (
	readAgain        = time.Second
	watchAgain       = 2 * time.Second
	shortestInterval = 500 * time.Millisecond
	longestInterval  = time.Hour
)

func newList() *cobra.Command {
	var output, sort, by, template string
	l := &list{book: view.NewBook()}
	cmd := &cobra.Command{
		Use:   "list [NAME…]",
		Short: "Show the traffic of every container, and how much it is now",
		Long: `Show the traffic of every container, or of those that are named by an id or the beginning of
one, a name, namespace/pod/name, or a glob. Rates are per second, from two readings a second
apart. What is not known, or not counted, is shown as -.

Sums by --by leave out containers whose traffic is in the numbers of another one in the same sum.

` + formatHelp,
		Example: `  nettally list --sort receive-rate -w
  nettally list --by project
  nettally list 'web-*' --format 'table {{.Name}}\t{{.Received}}\t{{.ReceiveRate}}'`,
		ValidArgsFunction: completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			l.cmd, l.names, l.output = cmd, args, output
			if err := l.parse(sort, by, template); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			config, err := loadClientConfig(cmd)
			if err != nil {
				return err
			}
			l.socket = config.Exporter.Socket
			return l.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&output, "output", "o", "table", "table, wide (exact, by interface) or json")
	flags.BoolVarP(&l.all, "all", "a", false, "with stopped containers, and interfaces that no container owns")
	flags.StringVar(&sort, "sort", "", "sort by `column`: "+columnNames())
	flags.BoolVarP(&l.reverse, "reverse", "r", false, "the other way round")
	flags.StringVar(&by, "by", "", "sum up by project (of compose), namespace, pod or label:`KEY`")
	flags.BoolVarP(&l.watch, "watch", "w", false, "print again every two seconds")
	flags.DurationVar(&l.interval, "interval", 0, "the `time` that rates are measured over (default 1s, and 2s with --watch)")
	flags.BoolVarP(&l.quiet, "quiet", "q", false, "only ids")
	flags.BoolVar(&l.noTrunc, "no-trunc", false, "whole ids")
	flags.StringVar(&template, "format", "", "print by a Go `template`, as docker does: {{.Name}}, table {{.Name}}, or json")
	completeWith(cmd, map[string][]string{
		"output": {"table", "wide", "json"}, "sort": sortable(), "by": {"project", "namespace", "pod", "label:"},
		"format": {"json", "table"},
	})
	return cmd
}

// sortable returns the columns that there are here: quotas and connections are not.
func sortable() (names []string) {
	for _, c := range view.Columns {
		if c != view.QuotaUsed && c != view.OpenedRate && c != view.FailedRate {
			names = append(names, string(c))
		}
	}
	return names
}

func columnNames() string {
	names := sortable()
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// parse reads flags that are words, and refuses those that do not go together.
func (l *list) parse(sort, by, template string) error {
	if !slices.Contains([]string{"table", "wide", "json"}, l.output) {
		return fmt.Errorf("--output: expected table, wide or json, got %q", l.output)
	}
	if sort != "" && !slices.Contains(sortable(), sort) {
		return fmt.Errorf("--sort: expected %s, got %q", columnNames(), sort)
	}
	l.sort = view.Column(sort)
	var err error
	if l.by, err = view.ParseBy(by); err != nil {
		return fmt.Errorf("--by: %w", err)
	}
	if l.format, err = parseFormat(template); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	switch {
	case l.interval == 0 && l.watch:
		l.interval = watchAgain
	case l.interval == 0:
		l.interval = readAgain
	case l.interval < shortestInterval || l.interval > longestInterval:
		return fmt.Errorf("--interval: expected %s to %s, got %s", shortestInterval, longestInterval, l.interval)
	}
	return l.together()
}

// together returns an error about two flags that mean different things to print.
func (l *list) together() error {
	given := []struct {
		flag  string
		given bool
	}{
		{"--output " + l.output, l.output != "table"}, {"--quiet", l.quiet}, {"--by", l.by != view.By{}}, {"--format", l.format.given()},
	}
	var first string
	for _, g := range given {
		sums := first == "--by" && g.flag == "--format" // a template for sums
		if g.given && first != "" && !sums {
			return fmt.Errorf("%s and %s: give one of both", first, g.flag)
		}
		if g.given {
			first = g.flag
		}
	}
	if l.output == "json" && (l.watch || l.sort != "" || l.reverse) {
		return errors.New("--output json has everything once, by start: leave out --watch, --sort and --reverse, or try --format json")
	}
	return nil
}

// rates reports whether what is printed has rates, or goes by them.
func (l *list) rates() bool {
	byRate := slices.Contains([]view.Column{view.ReceiveRate, view.TransmitRate, view.PacketRate, view.SYNRate}, l.sort)
	return byRate || l.output == "table" && !l.quiet && l.format.rates()
}

// run reads as often as it takes, and prints.
func (l *list) run(ctx context.Context) error {
	found, err := l.read(ctx)
	if err != nil {
		return err
	}
	if found.Source == configs.SourceProc {
		if err := say(l.cmd.ErrOrStderr(), "nettally: counted by /proc, which tells less than our programs: see `nettally check`"); err != nil {
			return err
		}
	}
	if l.rates() {
		if !pause(ctx, min(l.interval, readAgain)) {
			return l.interrupted(ctx)
		}
		if found, err = l.read(ctx); err != nil {
			return err
		}
	}
	out := l.cmd.OutOrStdout()
	if !l.watch {
		return l.print(out, found)
	}
	return l.again(ctx, out, found)
}

// again prints until it is interrupted. A daemon that is down may come back.
func (l *list) again(ctx context.Context, out io.Writer, found *exporter.Containers) error {
	var err error
	for {
		failed := err
		err = reprint(out, func(w io.Writer) error {
			if failed != nil {
				return say(w, "nettally: %v", failed)
			}
			return l.print(w, found)
		})
		if err != nil {
			return err
		}
		if !pause(ctx, l.interval) {
			return nil
		}
		found, err = l.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// interrupted returns what to say of a command that was interrupted.
func (l *list) interrupted(ctx context.Context) error {
	if l.watch {
		return nil
	}
	return ctx.Err()
}

// pause waits, and reports false if it was interrupted.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// read asks the daemon, and takes what it says into the book.
func (l *list) read(ctx context.Context) (*exporter.Containers, error) {
	found, err := exporter.Fetch(ctx, l.socket, l.all)
	if err != nil {
		return nil, err
	}
	l.book.Containers(view.Listed(found))
	return found, l.pick(found)
}

// pick leaves the containers that are asked for, in the order in which they are printed.
func (l *list) pick(found *exporter.Containers) error {
	wanted, err := l.wanted(found.Containers)
	if err != nil {
		return err
	}
	if len(l.names) > 0 {
		found.Unowned = nil
	}
	found.Containers = slices.DeleteFunc(found.Containers, func(c exporter.Container) bool { return !wanted[c.ID] })
	if l.sort == "" && !l.reverse {
		return nil
	}
	place := map[string]int{}
	for i, row := range l.rows(found) {
		place[row.Key] = i
	}
	slices.SortFunc(found.Containers, func(a, b exporter.Container) int { return place[a.ID] - place[b.ID] })
	return nil
}

// wanted returns the ids of the containers that are asked for.
func (l *list) wanted(containers []exporter.Container) (map[string]bool, error) {
	wanted := map[string]bool{}
	if len(l.names) == 0 {
		for _, c := range containers {
			wanted[c.ID] = l.all || l.output == "json" || c.State != string(usage.Stopped)
		}
		return wanted, nil
	}
	for _, name := range l.names {
		best := 1 // what does not fit at all is left out
		fits := make([]int, len(containers))
		for i := range containers {
			c := view.Identity(&containers[i])
			fits[i] = view.Names(name, &c)
			whole := fits[i] > view.NamedByGlob
			if c.State == string(usage.Stopped) && !whole && !l.all && l.output != "json" {
				fits[i] = 0
			}
			best = max(best, fits[i])
		}
		if !slices.Contains(fits, best) {
			return nil, fmt.Errorf("find container %q: no id, name, start of an id or glob of those that run matches; --all looks at those that ended, too", name)
		}
		for i := range containers {
			if fits[i] == best {
				wanted[containers[i].ID] = true
			}
		}
	}
	return wanted, nil
}

// rows returns the rows of containers, sorted.
func (l *list) rows(found *exporter.Containers) []view.Row {
	rows := make([]view.Row, 0, len(found.Containers))
	for i := range found.Containers {
		if row, ok := l.book.Row(found.Containers[i].ID); ok {
			rows = append(rows, row)
		}
	}
	sums := l.by != view.By{}
	if sums {
		rows = view.Group(rows, l.by)
	}
	switch {
	case l.sort != "":
		view.Sort(rows, l.sort, l.reverse, false)
	case sums:
		view.Sort(rows, view.Name, l.reverse, false)
	case l.reverse:
		slices.Reverse(rows)
	}
	return rows
}
