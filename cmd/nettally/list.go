// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

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
			config, err := loadClientConfig(cmd)
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
				if err := say(cmd.ErrOrStderr(), "nettally: counted by /proc, which tells less than our programs: see `nettally check`"); err != nil {
					return err
				}
			}
			return print(cmd.OutOrStdout(), found)
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "table", "table, wide (exact, by interface) or json")
	list.Flags().BoolVarP(&all, "all", "a", false, "with stopped containers, and interfaces that no container owns")
	return list
}

// printTable prints a line per container, for people.
func printTable(w io.Writer, found *exporter.Containers) error {
	t := newTable("CONTAINER ID", "NAME", "RECEIVED", "PACKETS", "SYN", "TRANSMITTED", "PACKETS", "SYN", "STATE")
	add := func(id, name string, received, transmitted []string, state string) {
		t.row(slices.Concat([]string{id, name}, received, transmitted, []string{state})...)
	}
	for _, c := range found.Containers {
		received, transmitted := brief(c.Receive.Volume, c.Receive.TCPSYN), brief(c.Transmit.Volume, c.Transmit.TCPSYN)
		if byIP(c) {
			received, transmitted = brief(c.IP.Receive.Volume, c.IP.Receive.TCPSYN), brief(c.IP.Transmit.Volume, c.IP.Transmit.TCPSYN)
		}
		add(usage.ShortID(c.ID), label(c), received, transmitted, state(c))
	}
	for _, i := range found.Unowned {
		add("-", i.HostInterface, brief(i.Receive.Volume, i.Receive.TCPSYN), brief(i.Transmit.Volume, i.Transmit.TCPSYN), unowned(i))
	}
	return t.print(w)
}

// printWide prints a line per interface with every digit.
func printWide(w io.Writer, found *exporter.Containers) error {
	t := newTable("CONTAINER ID", "NAME", "RUNTIME", "INTERFACE", "HOST INTERFACE", "HOOK", "RECEIVED BYTES", "PACKETS", "SYN",
		"TRANSMITTED BYTES", "PACKETS", "SYN", "SEEDED BYTES", "MENDED BYTES", "STATE", "CGROUP")
	add := func(whose [3]string, i exporter.Interface, state, cgroup string) {
		t.row(slices.Concat(whose[:], []string{dash(i.Name), dash(i.HostInterface), dash(i.Hook)}, exact(i.Receive), exact(i.Transmit),
			[]string{strconv.FormatUint(i.SeededBytes, 10), strconv.FormatUint(i.MendedBytes, 10), state, cgroup})...)
	}
	for _, c := range found.Containers {
		for _, i := range lines(c) {
			add([3]string{usage.ShortID(c.ID), label(c), dash(c.Runtime)}, i, stateOn(c, i), c.Cgroup)
		}
	}
	for _, i := range found.Unowned {
		add([3]string{"-", "-", "-"}, i, unowned(i), "-")
	}
	return t.print(w)
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

// byIP says whether what a container has used is told by its cgroup, as quotas have it.
func byIP(c exporter.Container) bool { return c.IP != nil && (c.OnHost || len(c.Interfaces) == 0) }

// brief and exact are the cells of one direction.
func brief(v exporter.Volume, syn uint64) []string {
	return []string{units.BytesSize(float64(v.Bytes)), strconv.FormatUint(v.Packets, 10), strconv.FormatUint(syn, 10)}
}

func exact(c exporter.Counts) []string {
	return []string{strconv.FormatUint(c.Bytes, 10), strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.TCPSYN, 10)}
}

// label is the name people know a container by.
func label(c exporter.Container) string {
	name := c.Name
	if name == c.ID {
		name = usage.ShortID(c.ID)
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
	case c.Reason == string(usage.PartlyCounted):
		return c.State + ", counted in part"
	case c.Reason == string(usage.Excluded):
		return "excluded"
	case c.Reason == string(usage.InterfaceExcluded):
		return c.State + ", an interface is excluded"
	case !c.Accounted:
		return "not counted: " + strings.ReplaceAll(c.Reason, "_", " ")
	case byIP(c) && c.NoInterface:
		return c.State + ", by IP: no interface known"
	case byIP(c):
		return c.State + ", by IP"
	case c.Kernel != "":
		return c.State + ", on " + c.Kernel
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
