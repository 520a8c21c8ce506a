// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/template"

	"github.com/docker/go-units"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/view"
)

// formatHelp documents formatted.
const formatHelp = `A template of --format has .ID .Name .Runtime .Image .Namespace .Pod .User .Network .State .CountedBy
.Labels, (.Label "KEY"), .Received .Transmitted .ReceiveRate .TransmitRate for people, and exactly .ReceivedBytes
.ReceivedPackets .ReceivedSYN .ReceivedBytesPerSecond .ReceivedPacketsPerSecond .ReceivedSYNPerSecond, and the same
with Transmitted. What is not known is the text -, so compare numbers within {{if ne .Received "-"}}. With --by, .Name is
what is summed up by, and .Containers how many these are. Functions: json, join, split, lower, upper, truncate, pad.
"table " before the template prints titles and aligns what \t is between. json is {{json .}}.`

// formatted is a container, or a sum over some, as a template has it. What is unknown is notKnown.
type formatted struct {
	ID, Name, Runtime, Image, Namespace, Pod, User, Network, State, CountedBy string

	Labels     labelSet
	Containers int

	Received, Transmitted, ReceiveRate, TransmitRate string

	ReceivedBytes, ReceivedPackets, ReceivedSYN                                     any // uint64
	ReceivedBytesPerSecond, ReceivedPacketsPerSecond, ReceivedSYNPerSecond          any // float64
	TransmittedBytes, TransmittedPackets, TransmittedSYN                            any
	TransmittedBytesPerSecond, TransmittedPacketsPerSecond, TransmittedSYNPerSecond any
}

// Label returns the value of a label.
func (l formatted) Label(key string) string { return l.Labels[key] }

// notKnown is a number that is not known.
type notKnown struct{}

func (notKnown) String() string { return "-" }

// MarshalJSON returns null.
func (notKnown) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// labelSet is labels, which docker prints as one text.
type labelSet map[string]string

func (s labelSet) String() string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(s)) {
		all = append(all, key+"="+s[key])
	}
	return strings.Join(all, ",")
}

// titles are those of the columns of a table, by the fields of formatted.
type titles map[string]string

// Label returns the title of a label's column.
func (titles) Label(key string) string { return key }

var columnTitles = titles{
	"ID": "CONTAINER ID", "Name": "NAME", "Runtime": "RUNTIME", "Image": "IMAGE", "Namespace": "NAMESPACE", "Pod": "POD", "User": "USER",
	"Network": "NETWORK", "State": "STATE", "CountedBy": "COUNTED BY", "Labels": "LABELS", "Containers": "CONTAINERS",
	"Received": "RECEIVED", "Transmitted": "TRANSMITTED", "ReceiveRate": "RATE", "TransmitRate": "RATE",
	"ReceivedBytes": "RECEIVED BYTES", "ReceivedPackets": "PACKETS", "ReceivedSYN": "SYN",
	"ReceivedBytesPerSecond": "BYTES/S", "ReceivedPacketsPerSecond": "PACKETS/S", "ReceivedSYNPerSecond": "SYN/S",
	"TransmittedBytes": "TRANSMITTED BYTES", "TransmittedPackets": "PACKETS", "TransmittedSYN": "SYN",
	"TransmittedBytesPerSecond": "BYTES/S", "TransmittedPacketsPerSecond": "PACKETS/S", "TransmittedSYNPerSecond": "SYN/S",
}

// formatFunctions are those of docker's templates, and titleFunctions leave titles as they are.
var (
	formatFunctions = template.FuncMap{
		"json": func(value any) (string, error) {
			text, err := json.Marshal(value)
			return string(escape(text, jsonEscape)), err
		},
		"join": strings.Join, "split": strings.Split, "lower": strings.ToLower, "upper": strings.ToUpper,
		"truncate": func(text string, n int) string {
			runes := []rune(text)
			return string(runes[:max(min(n, len(runes)), 0)])
		},
		"pad": func(text string, before, after int) (string, error) {
			const most = 1000
			if text == "" || min(before, after) < 0 || max(before, after) > most {
				return text, nil
			}
			return strings.Repeat(" ", before) + text + strings.Repeat(" ", after), nil
		},
	}
	titleFunctions = template.FuncMap{
		"json": same[string], "join": func(text any, _ string) any { return text }, "split": func(text string, _ string) string { return text },
		"lower": same[string], "upper": same[string], "truncate": func(text string, _ int) string { return text }, "pad": formatFunctions["pad"],
	}
)

func same[T any](v T) T { return v }

// format is how --format prints. The zero value is no format.
type format struct {
	text   string
	json   bool
	line   *template.Template
	titles *template.Template // of a table, nil for none
}

func (f format) given() bool { return f.json || f.line != nil }

// rates reports whether it has rates, as what is printed without a format does.
func (f format) rates() bool {
	return f.line == nil || strings.Contains(f.text, "Rate") || strings.Contains(f.text, "PerSecond") || strings.Contains(f.text, "json")
}

// parseFormat reads a format as docker has it. "table" alone is what is printed without one.
func parseFormat(text string) (format, error) {
	f := format{text: text, json: text == "json"}
	if text == "" || f.json || strings.TrimSpace(text) == "table" {
		return f, nil
	}
	body, isTable := strings.CutPrefix(text, "table ")
	body = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(body) // a shell leaves them as they are
	var err error
	if f.line, err = template.New("format").Funcs(formatFunctions).Parse(body); err != nil {
		return format{}, err
	}
	example := view.Row{Container: &exporter.StreamContainer{}, Counted: true, Known: true}
	if _, err := executed(f.line, fieldsOf(&example, "", "")); err != nil {
		return format{}, err
	}
	if !isTable {
		return f, nil
	}
	if f.titles, err = template.New("format").Funcs(titleFunctions).Parse(body); err == nil {
		_, err = executed(f.titles, columnTitles)
	}
	return f, err
}

// executed returns what a template makes of data.
func executed(t *template.Template, data any) (string, error) {
	var text bytes.Buffer
	err := t.Execute(&text, data)
	return text.String(), err
}

// print prints lines.
func (f format) print(w io.Writer, lines []formatted) error {
	if f.titles != nil {
		return f.printTable(w, lines)
	}
	var all strings.Builder
	for _, l := range lines {
		var text string
		var err error
		if f.json {
			text, err = oneJSON(w, l)
		} else {
			text, err = executed(f.line, l.printable())
		}
		if err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		all.WriteString(text + "\n")
	}
	return printText(w, all.String())
}

func (f format) printTable(w io.Writer, lines []formatted) error {
	head, err := executed(f.titles, columnTitles)
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	t := newTable(strings.Split(head, "\t")...)
	for _, l := range lines {
		text, err := executed(f.line, l.printable())
		if err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		// What a template leaves out of a line is out of the table, too.
		cells := strings.SplitN(text, "\t", len(t.rows[0]))
		t.row(append(cells, make([]string, len(t.rows[0])-len(cells))...)...)
	}
	return t.print(w)
}

// printable returns a line whose texts may be printed.
func (l formatted) printable() formatted {
	for _, text := range []*string{&l.ID, &l.Name, &l.Runtime, &l.Image, &l.Namespace, &l.Pod, &l.User, &l.Network, &l.State} {
		*text = printable(*text)
	}
	labels := labelSet{}
	for key, value := range l.Labels {
		labels[printable(key)] = printable(value)
	}
	l.Labels = labels
	return l
}

// lines are what a format prints.
func (l *list) lines(found *exporter.Containers) []formatted {
	containers := map[string]*exporter.Container{}
	for i := range found.Containers {
		containers[found.Containers[i].ID] = &found.Containers[i]
	}
	var lines []formatted
	for _, r := range l.rows(found) {
		var words string
		if c := containers[r.Key]; r.Container != nil && c != nil {
			words = state(c)
		}
		lines = append(lines, fieldsOf(&r, l.id(r.Key), words))
	}
	return lines
}

// fieldsOf is what a template has of a row.
func fieldsOf(r *view.Row, id, state string) formatted {
	l := formatted{Name: r.Key, Containers: r.Members}
	if c := r.Container; c != nil {
		l = formatted{
			ID: id, Name: r.Label(), Runtime: c.Runtime, Image: c.Image, Namespace: c.Namespace, Pod: c.Pod, User: c.User,
			Network: r.Network(), State: state, CountedBy: c.CountedBy, Labels: c.Labels, Containers: 1,
		}
	}
	l.Received, l.Transmitted, l.ReceiveRate, l.TransmitRate = "-", "-", rate(r, &r.Receive), rate(r, &r.Transmit)
	if r.Counted {
		l.Received, l.Transmitted = units.BytesSize(float64(r.Receive.Total.Bytes)), units.BytesSize(float64(r.Transmit.Total.Bytes))
	}
	totals := func(c view.Counts) (bytes, packets, syn any) {
		return known(r.Counted, c.Bytes), known(r.Counted, c.Packets), known(r.Counted, c.SYN)
	}
	rates := func(c view.Rate) (bytes, packets, syn any) {
		return known(r.Known, c.Bytes), known(r.Known, c.Packets), known(r.Known, c.SYN)
	}
	l.ReceivedBytes, l.ReceivedPackets, l.ReceivedSYN = totals(r.Receive.Total)
	l.TransmittedBytes, l.TransmittedPackets, l.TransmittedSYN = totals(r.Transmit.Total)
	l.ReceivedBytesPerSecond, l.ReceivedPacketsPerSecond, l.ReceivedSYNPerSecond = rates(r.Receive.Rate)
	l.TransmittedBytesPerSecond, l.TransmittedPacketsPerSecond, l.TransmittedSYNPerSecond = rates(r.Transmit.Rate)
	return l
}

func known[T any](is bool, n T) any {
	if !is {
		return notKnown{}
	}
	return n
}
