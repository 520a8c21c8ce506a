// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/view"
)

// print prints what was read, as it is asked for.
func (l *list) print(w io.Writer, found *exporter.Containers) error {
	switch {
	case l.output == "json":
		return printJSON(w, found)
	case l.output == "wide":
		return l.printWide(w, found)
	case l.quiet:
		var ids strings.Builder
		for _, c := range found.Containers {
			ids.WriteString(printable(l.id(c.ID)) + "\n")
		}
		return printText(w, ids.String())
	case l.format.given():
		return l.format.print(w, l.lines(found))
	case l.by != view.By{}:
		return l.printSums(w, found)
	}
	return l.printTable(w, found)
}

// id is an id as it is shown.
func (l *list) id(id string) string {
	if l.noTrunc {
		return id
	}
	return usage.ShortID(id)
}

// The columns of one direction.
var (
	receivedTitles    = []string{"RECEIVED", "RATE", "PACKETS", "SYN"}
	transmittedTitles = []string{"TRANSMITTED", "RATE", "PACKETS", "SYN"}
)

// printTable prints a line per container, for people.
func (l *list) printTable(w io.Writer, found *exporter.Containers) error {
	t := newTable(slices.Concat([]string{"CONTAINER ID", "NAME", "NETWORK"}, receivedTitles, transmittedTitles, []string{"STATE"})...)
	containers := map[string]*exporter.Container{}
	for i := range found.Containers {
		containers[found.Containers[i].ID] = &found.Containers[i]
	}
	for _, r := range l.rows(found) {
		t.row(slices.Concat([]string{l.id(r.Key), r.Label(), dash(r.Network())}, both(&r), []string{state(containers[r.Key])})...)
	}
	for _, i := range found.Unowned {
		t.row(slices.Concat([]string{"-", i.HostInterface, "-"},
			brief(i.Receive.Volume, i.Receive.TCPSYN, "-"), brief(i.Transmit.Volume, i.Transmit.TCPSYN, "-"), []string{unowned(i)})...)
	}
	return t.print(w)
}

// printSums prints a line per key of --by.
func (l *list) printSums(w io.Writer, found *exporter.Containers) error {
	title := strings.TrimPrefix(l.by.String(), "label:")
	if title == l.by.String() {
		title = strings.ToUpper(title)
	}
	t := newTable(slices.Concat([]string{title, "CONTAINERS"}, receivedTitles, transmittedTitles)...)
	for _, r := range l.rows(found) {
		t.row(slices.Concat([]string{dash(r.Key), strconv.Itoa(r.Members)}, both(&r))...)
	}
	return t.print(w)
}

// both are the cells of both directions.
func both(r *view.Row) []string {
	return slices.Concat(flow(r, &r.Receive), flow(r, &r.Transmit))
}

// flow are the cells of one direction: dashes for what is not known.
func flow(r *view.Row, f *view.Flow) []string {
	if !r.Counted {
		return []string{"-", "-", "-", "-"}
	}
	return brief(exporter.Volume{Bytes: f.Total.Bytes, Packets: f.Total.Packets}, f.Total.SYN, rate(r, f))
}

// rate is a rate for people.
func rate(r *view.Row, f *view.Flow) string {
	if !r.Known {
		return "-"
	}
	return units.BytesSize(f.Rate.Bytes) + "/s"
}

func brief(v exporter.Volume, syn uint64, rate string) []string {
	return []string{units.BytesSize(float64(v.Bytes)), rate, strconv.FormatUint(v.Packets, 10), strconv.FormatUint(syn, 10)}
}

// printWide prints a line per interface with every digit.
func (l *list) printWide(w io.Writer, found *exporter.Containers) error {
	t := newTable("CONTAINER ID", "NAME", "RUNTIME", "NETWORK", "INTERFACE", "HOST INTERFACE", "HOOK", "RECEIVED BYTES", "PACKETS", "SYN",
		"TRANSMITTED BYTES", "PACKETS", "SYN", "SEEDED BYTES", "MENDED BYTES", "STATE", "CGROUP")
	add := func(whose [4]string, i exporter.Interface, state, cgroup string) {
		numbers := []string{"-", "-", "-", "-", "-", "-", "-", "-"}
		if i.Hook != "" {
			numbers = slices.Concat(exact(i.Receive), exact(i.Transmit),
				[]string{strconv.FormatUint(i.SeededBytes, 10), strconv.FormatUint(i.MendedBytes, 10)})
		}
		t.row(slices.Concat(whose[:], []string{dash(i.Name), dash(i.HostInterface), dash(i.Hook)}, numbers, []string{state, cgroup})...)
	}
	for _, c := range found.Containers {
		row, _ := l.book.Row(c.ID)
		for _, i := range lines(c) {
			add([4]string{l.id(c.ID), row.Label(), dash(c.Runtime), dash(row.Network())}, i, stateOn(c, i), c.Cgroup)
		}
	}
	for _, i := range found.Unowned {
		add([4]string{"-", "-", "-", "-"}, i, unowned(i), "-")
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

func exact(c exporter.Counts) []string {
	return []string{strconv.FormatUint(c.Bytes, 10), strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.TCPSYN, 10)}
}

// state is the state of a container in words.
func state(c *exporter.Container) string {
	if c.Accounted && c.NoInterface && c.CountedBy == "cgroup" {
		return c.State + ", no interface known"
	}
	identity := view.Identity(c)
	row := view.Row{Container: &identity}
	return row.State()
}

// stateOn is the state of a container as far as one of its interfaces goes.
func stateOn(c exporter.Container, i exporter.Interface) string {
	if c.Reason == string(usage.Shadowed) && i.Reason == "" {
		return c.State
	}
	return state(&c)
}

func unowned(i exporter.Interface) string {
	if i.Reason != "" {
		return "no container known, " + i.Reason
	}
	return "no container known"
}

func dash(text string) string { return cmp.Or(text, "-") }
