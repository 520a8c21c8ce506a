// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"charm.land/lipgloss/v2"

	"github.com/nettally/nettally/internal/view"
)

// column is one of the table, beside the container's name.
type column struct {
	id     string // in settings, and of view.Column if rows can be sorted by it
	title  string
	about  string
	group  group
	width  int
	left   bool
	extra  bool // not shown unless the user wants it
	sheds  int  // where there is no room, those with the highest go first
	amount bool // shows bytes, whose width is the unit's
}

// group is what columns have in common, which is written above them.
type group int

const (
	none group = iota
	perSecond
	totals
)

var columns = []column{
	{id: "receive-rate", title: "receive", about: "received per second", group: perSecond, amount: true, sheds: 1},
	{id: "transmit-rate", title: "transmit", about: "transmitted per second", group: perSecond, amount: true, sheds: 1},
	{id: "packets", title: "packets", about: "packets per second, both directions", group: perSecond, width: 8, sheds: 5},
	{id: "syn", title: "SYN", about: "connection requests (SYN) per second, both directions", group: perSecond, width: 6, sheds: 4},
	{id: "connections", title: "conns", about: "TCP connections per second, begun or accepted", group: perSecond, width: 6, extra: true, sheds: 6},
	{id: "failures", title: "failed", about: "TCP connections per second that were begun and failed", group: perSecond, width: 6, extra: true, sheds: 6},
	{id: "received", title: "receive", about: "received in total", group: totals, amount: true, sheds: 2},
	{id: "transmitted", title: "transmit", about: "transmitted in total", group: totals, amount: true, sheds: 2},
	{id: "trend", title: "last %d min", about: "plot of both directions, in steps of 10 s", width: 12, left: true, sheds: 8},
	{id: "quota", title: "quota", about: "the most used quota", width: 6, sheds: 3},
	{id: "state", title: "state", about: "state, and what is not counted", width: 9, left: true, sheds: 7},
	{id: "network", title: "network", about: "network", width: 12, left: true, extra: true, sheds: 9},
}

// shows is which numbers are shown; a key goes through them.
type shows int

const (
	both shows = iota
	onlyRates
	onlyTotals
)

const (
	gutter     = 2 // the cursor, and a mark
	nameMin    = 16
	nameMost   = 60
	stateMax   = 40
	networkMax = 24
	trendMax   = 30
	perMin     = 60_000 / view.StepMS // steps in a minute
)

// layout is which columns there is room for, and how wide they are.
type layout struct {
	name    int
	columns []column
	hidden  int // columns that there is no room for
}

// lay fits columns into a width. longest are the longest name and state there are.
func (m *model) lay(longestName, longestState int) layout {
	var l layout
	for _, c := range columns {
		if !slices.Contains(m.settings.Columns, c.id) ||
			m.shows == onlyRates && c.group == totals || m.shows == onlyTotals && (c.id == "receive-rate" || c.id == "transmit-rate") {
			continue
		}
		if c.amount {
			_, unit := m.settings.Unit.Split(5000)
			c.width = max(9, 6+len(unit))
		}
		if m.shows == onlyTotals && c.group == perSecond {
			c.group = totals
		}
		l.columns = append(l.columns, c)
	}
	slices.SortStableFunc(l.columns, func(a, b column) int { return cmp.Compare(m.rank(&a), m.rank(&b)) })
	for len(l.columns) > 0 && gutter+nameMin+l.wide() > m.width {
		worst := slices.MaxFunc(l.columns, func(a, b column) int { return cmp.Compare(a.sheds, b.sheds) })
		l.columns = slices.DeleteFunc(l.columns, func(c column) bool { return c.id == worst.id })
		l.hidden++
	}
	room := m.width - gutter - l.wide()
	l.name = min(max(longestName, nameMin), nameMost, room)
	room -= l.name
	widen := func(id string, wanted, step int) {
		i := slices.IndexFunc(l.columns, func(c column) bool { return c.id == id })
		if i < 0 {
			return
		}
		c := &l.columns[i]
		grow := max(0, min(room, wanted-c.width)) / step * step
		c.width, room = c.width+grow, room-grow
	}
	widen("state", min(longestState, stateMax), 1)
	widen("network", networkMax, 1)
	widen("trend", trendMax, perMin)
	for i := range l.columns {
		if c := &l.columns[i]; c.id == "trend" {
			c.title = fmt.Sprintf(c.title, c.width/perMin)
		}
	}
	return l
}

// rank orders columns where not all are rates: then packets come after bytes.
func (m *model) rank(c *column) int {
	switch {
	case m.shows != onlyTotals || c.amount:
		return 0
	case c.group == totals:
		return 1
	}
	return 2
}

func (l *layout) wide() (n int) {
	for i := range l.columns {
		n += l.gap(i) + l.columns[i].width
	}
	return n
}

// gap is how much is left free before a column.
func (l *layout) gap(i int) int {
	c := l.columns[i]
	if c.left || i > 0 && l.columns[i-1].group != c.group {
		return 2
	}
	return 1
}

// groups draws the line above the titles.
func (m *model) groups(l *layout) string {
	cells := []cell{{width: gutter + l.name}}
	for i := 0; i < len(l.columns); {
		g, end, wide := l.columns[i].group, i, 0
		for ; end < len(l.columns) && l.columns[end].group == g; end++ {
			wide += l.columns[end].width
			if end > i {
				wide += l.gap(end)
			}
		}
		cells = append(cells, cell{text: m.groupTitle(g, wide), style: dim, width: wide, gap: l.gap(i)})
		i = end
	}
	return line(&m.signs, m.width, nil, cells)
}

func (m *model) groupTitle(g group, wide int) string {
	var title string
	switch {
	case g == none:
		return ""
	case g == perSecond && m.shows != onlyTotals:
		title = "per second"
	case m.shown().ZeroedAt().IsZero():
		title = "total"
	default:
		title = "since " + m.shown().ZeroedAt().Local().Format("15:04:05")
	}
	rules := wide - view.Width(title) - 2
	if rules < 2 {
		return title
	}
	return repeat(m.signs.rule, rules/2) + " " + title + " " + repeat(m.signs.rule, rules-rules/2)
}

// titles draws the titles; the one that rows are sorted by has an arrow.
func (m *model) titles(l *layout) string {
	name := "name"
	if m.grouped() {
		name = m.by.String()
	}
	cells := []cell{{width: gutter}, m.title(name, "name", cell{width: l.name})}
	for i, c := range l.columns {
		cells = append(cells, m.title(c.title, c.id, cell{width: c.width, right: !c.left, gap: l.gap(i)}))
	}
	return line(&m.signs, m.width, nil, cells)
}

func (m *model) title(text, id string, c cell) cell {
	c.text, c.style = m.signs.text(text), dim
	if string(m.settings.Sort) != id {
		return c
	}
	arrow := m.signs.down
	if m.settings.Reverse != (id == "name" || id == "state") { // those begin with the lowest
		arrow = m.signs.up
	}
	c.style = bold
	if c.right {
		c.text = arrow + c.text
	} else {
		c.text += " " + arrow
	}
	return c
}

// cells are the numbers of a row.
func (m *model) cells(l *layout, r *view.Row) []cell {
	cells := make([]cell, 0, len(l.columns))
	for i, c := range l.columns {
		text, style := m.value(&c, r)
		if m.stale() {
			style = dim
		}
		cells = append(cells, cell{text: text, style: style, width: c.width, right: !c.left, gap: l.gap(i)})
	}
	return cells
}

// value is what a row has in a column.
func (m *model) value(c *column, r *view.Row) (string, lipgloss.Style) {
	switch c.id {
	case "receive-rate":
		return m.amount(r.Receive.Rate.Bytes, r.Known)
	case "transmit-rate":
		return m.amount(r.Transmit.Rate.Bytes, r.Known)
	case "received":
		return m.amount(float64(r.Receive.Total.Bytes), r.Counted)
	case "transmitted":
		return m.amount(float64(r.Transmit.Total.Bytes), r.Counted)
	case "packets":
		if m.shows == onlyTotals {
			return m.number(float64(r.Receive.Total.Packets)+float64(r.Transmit.Total.Packets), r.Counted, view.Number)
		}
		return m.number(r.Receive.Rate.Packets+r.Transmit.Rate.Packets, r.Known, view.PerSecond)
	case "syn":
		if m.shows == onlyTotals {
			return m.number(float64(r.Receive.Total.SYN)+float64(r.Transmit.Total.SYN), r.Counted, view.Number)
		}
		return m.number(r.Receive.Rate.SYN+r.Transmit.Rate.SYN, r.Known, view.PerSecond)
	case "connections":
		if m.shows == onlyTotals {
			return m.number(float64(r.TCP.Total.Opened), r.TCP.Counted, view.Number)
		}
		return m.number(r.TCP.Rate.Opened, r.TCP.Known, view.PerSecond)
	case "failures":
		if m.shows == onlyTotals {
			return m.number(float64(r.TCP.Total.Failed), r.TCP.Counted, view.Number)
		}
		text, style := m.number(r.TCP.Rate.Failed, r.TCP.Known, view.PerSecond)
		if r.TCP.Rate.Failed > 0 {
			style = warning
		}
		return text, style
	case "trend":
		receive, transmit := m.shown().Trace(r, c.width)
		return m.plot(receive, transmit), accent
	case "quota":
		if r.Foremost == nil {
			return "", plain
		}
		return percent(r.Foremost.Ratio), levelOf(r.Foremost.Ratio)
	case "state":
		if r.Container == nil {
			return "", dim
		}
		return m.signs.text(r.State()), m.stateStyle(r)
	case "network":
		return m.signs.text(r.Network()), dim
	}
	return "", plain
}

// amount shows bytes. Nothing is dim, so that the eye finds what there is.
func (m *model) amount(bytes float64, known bool) (string, lipgloss.Style) {
	if !known {
		return m.signs.gap, dim
	}
	number, unit := m.settings.Unit.Split(bytes)
	_, widest := m.settings.Unit.Split(5000)
	text := number + " " + unit + repeat(" ", len(widest)-len(unit))
	if bytes == 0 {
		return text, dim
	}
	return text, plain
}

func (m *model) number(n float64, known bool, format func(float64) string) (string, lipgloss.Style) {
	switch {
	case !known:
		return m.signs.gap, dim
	case n == 0:
		return "0", dim
	}
	return format(n), plain
}

func percent(ratio float64) string {
	if ratio >= 99.995 {
		return ">9999%"
	}
	return strconv.FormatFloat(math.Floor(ratio*100), 'f', 0, 64) + "%"
}

func levelOf(ratio float64) lipgloss.Style {
	switch {
	case ratio >= 1:
		return danger
	case ratio >= 0.8:
		return warning
	}
	return plain
}

func (m *model) stateStyle(r *view.Row) lipgloss.Style {
	if mark, style := m.mark(r); mark != " " {
		return style
	}
	return dim
}

// mark says in one character that a row is not as others: it has ended, or is not counted in full.
func (m *model) mark(r *view.Row) (string, lipgloss.Style) {
	c := r.Container
	switch {
	case c == nil:
		return " ", plain
	case c.Reason != "" && c.Reason != "excluded" && c.Reason != "interface_excluded" || !c.Accounted && c.Reason == "":
		return "!", warning
	case c.State == "stopped":
		return "x", dim
	}
	return " ", plain
}

// quietest is the rate up to which a plot is flat, so that a little now and then does not look
// like much.
const quietest = 1024

// plot draws both directions of a row, the highest step as high as can be.
func (m *model) plot(receive, transmit []float64) string {
	most := float64(quietest)
	for i := range receive {
		if sum := receive[i] + transmit[i]; sum > most {
			most = sum
		}
	}
	top := float64(len(m.signs.levels) - 1)
	out := make([]rune, len(receive))
	for i := range receive {
		sum := receive[i] + transmit[i]
		if math.IsNaN(sum) {
			out[i] = ' '
			continue
		}
		out[i] = m.signs.levels[int(math.Ceil(sum/most*top))]
	}
	return string(out)
}
