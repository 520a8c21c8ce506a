// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
)

func newList() *cobra.Command {
	var output string
	var all bool
	list := &cobra.Command{
		Use:   "list",
		Short: "Show the traffic of every container",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, ok := map[string]func(io.Writer, *exporter.Containers) error{
				"table": printTable,
				"wide":  printWide,
				"json":  printJSON[exporter.Containers],
			}[output]
			if !ok {
				return fmt.Errorf("%w: --output: expected table, wide or json, got %q", errUsage, output)
			}
			config, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			found, err := exporter.Fetch(cmd.Context(), config.Exporter.Socket, all)
			if err != nil {
				return err
			}
			if output != "json" && !all {
				found.Containers = slices.DeleteFunc(found.Containers, func(c exporter.Container) bool {
					return c.State == string(usage.Stopped)
				})
			}
			if found.Source == configs.SourceProc {
				fmt.Fprintln(cmd.ErrOrStderr(), "nettally: counted by /proc, which tells less than our programs: see `nettally check`")
			}
			return print(cmd.OutOrStdout(), found)
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "table", "table, wide (exact, by interface) or json")
	list.Flags().BoolVarP(&all, "all", "a", false, "with stopped containers, and interfaces that no container owns")
	return list
}

func printJSON[T any](w io.Writer, found *T) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(found)
}

// printTable prints a line per container, for people.
func printTable(w io.Writer, found *exporter.Containers) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "CONTAINER ID\tNAME\tRECEIVED\tPACKETS\tSYN\tTRANSMITTED\tPACKETS\tSYN\tSTATE")
	for _, c := range found.Containers {
		received, transmitted := brief(c.Receive.Volume, c.Receive.TCPSYN), brief(c.Transmit.Volume, c.Transmit.TCPSYN)
		if byIP(c) {
			received, transmitted = brief(c.IP.Receive.Volume, c.IP.Receive.TCPSYN), brief(c.IP.Transmit.Volume, c.IP.Transmit.TCPSYN)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", short(c.ID), label(c), received, transmitted, state(c))
	}
	for _, i := range found.Unowned {
		fmt.Fprintf(t, "-\t%s\t%s\t%s\t%s\n", i.HostInterface, brief(i.Receive.Volume, i.Receive.TCPSYN),
			brief(i.Transmit.Volume, i.Transmit.TCPSYN), unowned(i))
	}
	return t.Flush()
}

// printWide prints a line per interface with every digit.
func printWide(w io.Writer, found *exporter.Containers) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "CONTAINER ID\tNAME\tRUNTIME\tINTERFACE\tHOST INTERFACE\tHOOK\tRECEIVED BYTES\tPACKETS\tSYN\tTRANSMITTED BYTES\tPACKETS\tSYN\tSEEDED BYTES\tMENDED BYTES\tSTATE\tCGROUP")
	for _, c := range found.Containers {
		for _, i := range lines(c) {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", short(c.ID), label(c), dash(c.Runtime),
				dash(i.Name), dash(i.HostInterface), dash(i.Hook), exact(i.Receive), exact(i.Transmit), i.SeededBytes, i.MendedBytes,
				stateOn(c, i), c.Cgroup)
		}
	}
	for _, i := range found.Unowned {
		fmt.Fprintf(t, "-\t-\t-\t-\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t-\n", i.HostInterface, dash(i.Hook),
			exact(i.Receive), exact(i.Transmit), i.SeededBytes, i.MendedBytes, unowned(i))
	}
	return t.Flush()
}

// lines are what a container has a line of: its interfaces, and its cgroup.
func lines(c exporter.Container) []exporter.Interface {
	all := c.Interfaces
	if c.IP != nil {
		all = append(slices.Clone(all), exporter.Interface{
			Hook:     "cgroup",
			Receive:  exporter.Counts{Volume: c.IP.Receive.Volume, TCPSYN: c.IP.Receive.TCPSYN},
			Transmit: exporter.Counts{Volume: c.IP.Transmit.Volume, TCPSYN: c.IP.Transmit.TCPSYN},
		})
	}
	if len(all) == 0 {
		return []exporter.Interface{{}}
	}
	return all
}

// byIP says whether a container has no other numbers than those of its cgroup.
func byIP(c exporter.Container) bool { return len(c.Interfaces) == 0 && c.IP != nil }

func brief(v exporter.Volume, syn uint64) string {
	return fmt.Sprintf("%s\t%d\t%d", units.BytesSize(float64(v.Bytes)), v.Packets, syn)
}

func exact(c exporter.Counts) string {
	return fmt.Sprintf("%d\t%d\t%d", c.Bytes, c.Packets, c.TCPSYN)
}

// short cuts an id as Docker does.
func short(id string) string { return id[:min(len(id), 12)] }

// label is the name people know a container by.
func label(c exporter.Container) string {
	name := c.Name
	if name == c.ID {
		name = short(c.ID)
	}
	if c.Pod != "" {
		name = strings.TrimPrefix(c.Namespace+"/"+c.Pod+"/"+name, "/")
	}
	return name
}

func state(c exporter.Container) string {
	switch {
	case c.Reason == string(usage.Shadowed):
		return "counted in part: shadowed"
	case !c.Accounted:
		return "not counted: " + strings.ReplaceAll(c.Reason, "_", " ")
	case byIP(c):
		return c.State + ", by IP"
	}
	return c.State
}

// stateOn is the state of a container as far as one of its interfaces goes.
func stateOn(c exporter.Container, i exporter.Interface) string {
	if c.Reason == string(usage.Shadowed) && i.Reason == "" {
		return c.State
	}
	return state(c)
}

func unowned(i exporter.Interface) string {
	if i.Reason != "" {
		return "no container known, " + i.Reason
	}
	return "no container known"
}

func dash(text string) string { return cmp.Or(text, "-") }
