// SPDX-License-Identifier: Apache-2.0

package view

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nettally/nettally/exporter"
)

// ProjectLabel is the label that Docker compose gives the containers of a project.
const ProjectLabel = "com.docker.compose.project"

const stopped = "stopped"

// Row is a container, or a sum over several, as a table shows it.
type Row struct {
	Key       string                    // the container's id, or what the members of a sum have in common
	Container *exporter.StreamContainer // nil for a sum
	Members   int                       // the containers of a sum; 1 for a container
	Counted   bool                      // whether totals are known
	Known     bool                      // whether rates are known
	Receive   Flow
	Transmit  Flow
	Smooth    [2]Rate                  // receive and transmit, over some seconds
	Foremost  *exporter.StreamForemost // the quota of which it has used most, nil if there is none
	TCP       TCP
	within    []string // the containers whose numbers include these
	around    []string // the containers that it is nested in, whose connections include these
	trace     []*Trace
}

// Rows returns a row for each container that a filter lets through, in no order. With ended
// set, those that have stopped too.
func (b *Book) Rows(f Filter, ended bool) []Row {
	rows := make([]Row, 0, len(b.containers))
	for _, c := range b.containers {
		if (ended || c.identity.State != stopped) && f.Matches(&c.identity) {
			rows = append(rows, b.row(c))
		}
	}
	return rows
}

// Row returns the row of one container.
func (b *Book) Row(id string) (Row, bool) {
	c, ok := b.containers[id]
	if !ok {
		return Row{}, false
	}
	return b.row(c), true
}

func (b *Book) row(c *entry) Row {
	totals := [2]Counts{total(c.identity.Receive), total(c.identity.Transmit)}
	opened := connections(c.identity.TCP)
	if !b.zeroed.IsZero() {
		totals, opened = c.counted, c.tcp.counted
	}
	identity := c.identity
	r := Row{
		Key: identity.ID, Container: &identity, Members: 1,
		Counted:  identity.CountedBy != "",
		Known:    c.known && identity.CountedBy != "",
		Receive:  Flow{totals[0], c.rates[0]},
		Transmit: Flow{totals[1], c.rates[1]},
		Smooth:   c.smooth,
		TCP:      TCP{identity.TCP != nil, c.tcp.known, opened, c.tcp.rate, c.tcp.smooth},
		within:   b.chain(&identity, func(c *exporter.StreamContainer) string { return c.PartOf }),
		around:   b.chain(&identity, func(c *exporter.StreamContainer) string { return c.ParentID }),
		trace:    []*Trace{&c.trace},
	}
	if f, ok := b.foremost[identity.ID]; ok {
		r.Foremost = &f
	}
	return r
}

// chain returns the container that outer names for one, the one that it names for that, and so on.
func (b *Book) chain(c *exporter.StreamContainer, outer func(*exporter.StreamContainer) string) []string {
	const deepest = 8 // nested containers; also what ends a circle
	var ids []string
	for next := outer(c); next != "" && len(ids) < deepest; {
		ids = append(ids, next)
		e, ok := b.containers[next]
		if !ok {
			break
		}
		next = outer(&e.identity)
	}
	return ids
}

// Trace returns the bytes per second of a row in the last n steps that are over, receive and
// transmit, oldest first, NaN where they are not known.
func (b *Book) Trace(r *Row, n int) (receive, transmit []float64) {
	receive, transmit = make([]float64, n), make([]float64, n)
	for i := range n {
		receive[i], transmit[i] = math.NaN(), math.NaN()
	}
	for _, t := range r.trace {
		in, out := t.Rates(n, b.boot)
		for i := range n {
			receive[i], transmit[i] = join(receive[i], in[i]), join(transmit[i], out[i])
		}
	}
	return receive, transmit
}

// join adds what is known.
func join(a, b float64) float64 {
	switch {
	case math.IsNaN(a):
		return b
	case math.IsNaN(b):
		return a
	}
	return a + b
}

// Sum returns the sum over rows. A container whose numbers are part of another one's in the sum
// is a member that adds nothing. What is not known adds nothing either; the sum is known if one
// of its members is.
func Sum(key string, rows []Row) Row {
	sum := Row{Key: key}
	there := make(map[string]bool, len(rows))
	for i := range rows {
		there[rows[i].Key] = rows[i].Container != nil
	}
	for i := range rows {
		r := &rows[i]
		sum.Members += r.Members
		if r.Foremost != nil && (sum.Foremost == nil || r.Foremost.Ratio > sum.Foremost.Ratio) {
			sum.Foremost = r.Foremost
		}
		has := func(id string) bool { return there[id] && id != r.Key }
		if !slices.ContainsFunc(r.around, has) {
			sum.TCP = sum.TCP.plus(r.TCP)
		}
		if !r.Counted || slices.ContainsFunc(r.within, has) {
			continue
		}
		sum.Counted, sum.Known = true, sum.Known || r.Known
		sum.Receive.Total = sum.Receive.Total.plus(r.Receive.Total)
		sum.Transmit.Total = sum.Transmit.Total.plus(r.Transmit.Total)
		sum.trace = append(sum.trace, r.trace...)
		if r.Known {
			sum.Receive.Rate = sum.Receive.Rate.plus(r.Receive.Rate)
			sum.Transmit.Rate = sum.Transmit.Rate.plus(r.Transmit.Rate)
			for d := range sum.Smooth {
				sum.Smooth[d] = sum.Smooth[d].plus(r.Smooth[d])
			}
		}
	}
	return sum
}

// By says what rows are summed by. The zero value sums nothing.
type By struct {
	kind  string // "", "project", "namespace", "pod", "label"
	label string
}

// ParseBy reads "", "project", "namespace", "pod" or "label:KEY".
func ParseBy(text string) (By, error) {
	switch text {
	case "", "project", "namespace", "pod":
		return By{kind: text}, nil
	}
	if key, ok := strings.CutPrefix(text, "label:"); ok && key != "" {
		return By{"label", key}, nil
	}
	return By{}, fmt.Errorf("expected project, namespace, pod or label:KEY, got %q", text)
}

// String returns what ParseBy reads.
func (b By) String() string {
	if b.kind == "label" {
		return "label:" + b.label
	}
	return b.kind
}

// Key returns what a container is summed under, "" where it has no such thing.
func (b By) Key(c *exporter.StreamContainer) string {
	switch b.kind {
	case "project":
		return c.Labels[ProjectLabel]
	case "namespace":
		return c.Namespace
	case "pod":
		if c.Pod == "" {
			return ""
		}
		return strings.TrimPrefix(c.Namespace+"/"+c.Pod, "/")
	case "label":
		return c.Labels[b.label]
	}
	return c.ID
}

// Group returns a sum for each key of the containers, in no order; the rows themselves if by
// is the zero value.
func Group(rows []Row, by By) []Row {
	if by == (By{}) {
		return rows
	}
	members := map[string][]Row{}
	for i := range rows {
		key := by.Key(rows[i].Container)
		members[key] = append(members[key], rows[i])
	}
	sums := make([]Row, 0, len(members))
	for key, rows := range members {
		sums = append(sums, Sum(key, rows))
	}
	return sums
}

// Label returns the name people know a row by. It is not fit to be printed yet: see [Printable].
func (r *Row) Label() string {
	if r.Container == nil {
		return cmp.Or(r.Key, "(none)")
	}
	c := r.Container
	name := c.Name
	if name == "" || name == c.ID {
		name = ShortID(c.ID)
	}
	if c.Pod != "" {
		name = strings.TrimPrefix(c.Namespace+"/"+c.Pod+"/"+name, "/")
	}
	return name
}

// ShortID returns the beginning of an id, as runtimes print it.
func ShortID(id string) string {
	const digits, shown = 64, 12
	scope := strings.Index(id, "~") + 1
	if own := id[scope:]; len(own) == digits && strings.Trim(own, "0123456789abcdef") == "" {
		return id[:scope+shown]
	}
	return id
}

// State returns the state of a row in words, "" for a sum.
func (r *Row) State() string {
	c := r.Container
	switch {
	case c == nil:
		return ""
	case c.Reason == "shadowed":
		return "counted in part: shadowed"
	case c.Reason == "partly_counted":
		return c.State + ", counted in part"
	case c.Reason == "excluded":
		return "excluded"
	case c.Reason == "interface_excluded":
		return c.State + ", an interface is excluded"
	case !c.Accounted:
		return "not counted: " + strings.ReplaceAll(c.Reason, "_", " ")
	case c.Kernel != "":
		return c.State + ", on " + c.Kernel
	}
	return c.State
}

// Network returns a row's network in words, "" for a sum or where it is not known.
func (r *Row) Network() string {
	if r.Container == nil {
		return ""
	}
	return r.Container.Network
}

// Column is what rows can be sorted by.
type Column string

// Columns that rows can be sorted by. Rates are per second.
const (
	Name          Column = "name"
	ReceiveRate   Column = "receive-rate"
	TransmitRate  Column = "transmit-rate"
	ReceiveTotal  Column = "received"
	TransmitTotal Column = "transmitted"
	PacketRate    Column = "packets"
	SYNRate       Column = "syn"
	OpenedRate    Column = "connections"
	FailedRate    Column = "failures"
	QuotaUsed     Column = "quota"
	StateWords    Column = "state"
)

// Columns are all of them, in the order of a table.
var Columns = []Column{Name, ReceiveRate, TransmitRate, ReceiveTotal, TransmitTotal, PacketRate, SYNRate, OpenedRate, FailedRate, QuotaUsed, StateWords}

// ParseColumn reads the name of a column.
func ParseColumn(text string) (Column, error) {
	if slices.Contains(Columns, Column(text)) {
		return Column(text), nil
	}
	names := make([]string, len(Columns))
	for i, c := range Columns {
		names[i] = string(c)
	}
	return "", fmt.Errorf("expected one of %s, got %q", strings.Join(names, ", "), text)
}

// number returns a row's number in a column, and whether it is known.
func (r *Row) number(c Column, smooth bool) (float64, bool) {
	rates := [2]Rate{r.Receive.Rate, r.Transmit.Rate}
	if smooth {
		rates = r.Smooth
	}
	switch c {
	case ReceiveRate:
		return rates[0].Bytes, r.Known
	case TransmitRate:
		return rates[1].Bytes, r.Known
	case PacketRate:
		return rates[0].Packets + rates[1].Packets, r.Known
	case SYNRate:
		return rates[0].SYN + rates[1].SYN, r.Known
	case OpenedRate, FailedRate:
		rate := r.TCP.Rate
		if smooth {
			rate = r.TCP.Smooth
		}
		if c == FailedRate {
			return rate.Failed, r.TCP.Known
		}
		return rate.Opened, r.TCP.Known
	case QuotaUsed:
		if r.Foremost == nil {
			return 0, false
		}
		return r.Foremost.Ratio, true
	}
	return 0, false
}

// Sort sorts rows by a column: numbers from the highest, texts from A, or the other way round
// with reverse set. What is not known comes last either way. With smooth set the rates are those
// over some seconds, so that rows don't change their places all the time. Rows that are
// equal are in the order of their names, and then of their keys.
func Sort(rows []Row, c Column, reverse, smooth bool) {
	sign := 1
	if reverse {
		sign = -1
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(compare(&a, &b, c, sign, smooth), cmp.Compare(a.Label(), b.Label()), cmp.Compare(a.Key, b.Key))
	})
}

func compare(a, b *Row, c Column, sign int, smooth bool) int {
	switch c {
	case Name:
		return sign * cmp.Or(cmp.Compare(a.Label(), b.Label()), cmp.Compare(a.Key, b.Key))
	case StateWords:
		return sign * cmp.Compare(a.State(), b.State())
	case ReceiveTotal:
		return cmp.Or(knownFirst(a.Counted, b.Counted), sign*cmp.Compare(b.Receive.Total.Bytes, a.Receive.Total.Bytes))
	case TransmitTotal:
		return cmp.Or(knownFirst(a.Counted, b.Counted), sign*cmp.Compare(b.Transmit.Total.Bytes, a.Transmit.Total.Bytes))
	}
	x, okX := a.number(c, smooth)
	y, okY := b.number(c, smooth)
	return cmp.Or(knownFirst(okX, okY), sign*cmp.Compare(y, x))
}

func knownFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
