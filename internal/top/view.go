// SPDX-License-Identifier: Apache-2.0

package top

import (
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/nettally/nettally/internal/view"
)

// smallest is the least size that something is drawn in.
const smallestWidth, smallestHeight = 30, 8

// View draws the screen.
func (m *model) View() tea.View {
	v := tea.NewView("")
	v.AltScreen = true
	v.WindowTitle = "nettally top"
	if m.width < smallestWidth || m.height < smallestHeight {
		if m.width > 0 {
			v.Content = view.Cut("too small", m.width, "")
		}
		return v
	}
	var lines []string
	switch {
	case m.help:
		lines = m.scrolledLines("help", m.helpLines(), "any other key goes back")
	case m.details != nil:
		lines = m.scrolledLines(m.detailTitle(), m.detailLines(), "esc back "+m.signs.between+" j/k scroll "+
			m.signs.between+" u unit "+m.signs.between+" space pause "+m.signs.between+" ? help "+m.signs.between+" q quit")
	default:
		lines = m.table()
		if m.prompt != nil {
			v.Cursor = tea.NewCursor(min(m.width-1, view.Width(m.promptText())), m.height-1)
		}
	}
	v.Content = strings.Join(lines, "\n")
	return v
}

// table draws everything that there is while nothing covers it.
func (m *model) table() []string {
	longestName, longestState := view.Width(m.sumLabel()), 0
	for i := range m.rows {
		longestName = max(longestName, view.Width(m.label(&m.rows[i])))
		longestState = max(longestState, len(m.rows[i].State()))
	}
	l := m.lay(longestName, longestState)
	lines := []string{m.header(), m.groups(&l), m.titles(&l), m.sumLine(&l)}
	page := m.page()
	end := min(len(m.rows), m.offset+page)
	for i := min(m.offset, end); i < end; i++ {
		lines = append(lines, m.rowLine(&l, &m.rows[i]))
	}
	if len(m.rows) == 0 {
		lines = append(lines, m.drawn("  "+m.nothing(), dim))
	}
	for len(lines) < above+page {
		lines = append(lines, "")
	}
	return append(append(lines, m.panel()...), m.footer(&l))
}

func (m *model) nothing() string {
	switch {
	case m.shown().Len() == 0:
		return "no containers"
	case m.filterText != "":
		return "no container matches the filter; esc shows all"
	}
	return "no container runs; a shows those that have ended"
}

func (m *model) label(r *view.Row) string {
	label := m.signs.text(r.Label())
	if r.Container == nil {
		label += fmt.Sprintf(" (%d)", r.Members)
	}
	return label
}

func (m *model) sumLabel() string {
	switch {
	case m.within != nil:
		return "all of " + m.signs.text((&view.Row{Key: *m.within}).Label())
	case m.filterText != "":
		return "all that match"
	}
	return "all"
}

func (m *model) sumLine(l *layout) string {
	sum := m.sum
	sum.Foremost = nil // of one of many, which its own row says
	cells := append([]cell{{width: gutter}, {text: m.sumLabel(), style: bold, width: l.name}}, m.cells(l, &sum)...)
	for i := range cells[2:] {
		if c := &cells[2+i]; i < len(l.columns) && l.columns[i].id != "trend" && l.columns[i].id != "quota" {
			c.style = c.style.Bold(true)
		}
	}
	return line(&m.signs, m.width, nil, cells)
}

func (m *model) rowLine(l *layout, r *view.Row) string {
	mark, markStyle := m.mark(r)
	name := cell{text: m.label(r), width: l.name}
	if r.Container != nil && r.Container.State == "stopped" {
		name.style = dim
	}
	cursor, one := " ", (*lipgloss.Style)(nil)
	if m.picked && r.Key == m.cursor {
		cursor, one = m.signs.cursor, &selected
	}
	cells := append([]cell{{text: cursor, width: 1}, {text: mark, style: markStyle, width: 1}, name}, m.cells(l, r)...)
	return line(&m.signs, m.width, one, cells)
}

// units are the names of units in the header.
var units = map[string]string{"bytes": "KiB", "bytes-si": "kB", "bits": "kbit", "bits-iec": "Kibit"}

// header says what is shown, and how it goes.
func (m *model) header() string {
	title := "nettally"
	if m.options.Where != "" {
		title += " " + m.signs.text(m.options.Where)
	}
	between := "  "
	left := []part{{title, bold}, {between + m.count(), plain}}
	if m.within != nil {
		left = append(left, part{between + m.by.String() + " " + m.signs.text((&view.Row{Key: *m.within}).Label()), accent})
	}
	if m.filterText != "" {
		left = append(left, part{between + "filter " + m.signs.text(m.filterText), accent})
	}
	if n := len(m.firing); n > 0 {
		left = append(left, part{between + plural(n, "alert"), danger})
	}
	if m.shown().Source() == "proc" {
		left = append(left, part{between + "counted by /proc", warning})
	}
	return m.sides(left, append([]part{{units[m.settings.Unit.String()] + "  every " + m.options.Interval.String() + "  ", dim}}, m.status()...))
}

// status says whether what is shown is of now.
func (m *model) status() []part {
	switch {
	case m.paused() && m.lost != nil:
		return []part{{"paused", warning}, {", no connection", danger}}
	case m.paused():
		return []part{{"paused " + m.frozen.TakenAt().Local().Format("15:04:05"), warning}}
	case m.lost != nil:
		return []part{{"no connection since " + m.lostAt.Format("15:04:05") + ", trying" + m.signs.timing, danger}}
	}
	if d, silent := m.silent(); silent {
		return []part{{"no reading for " + d.String(), danger}}
	}
	return []part{{"live", good}}
}

func (m *model) count() string {
	ended := 0
	if !m.ended {
		ended = m.shown().Ended()
	}
	all := m.shown().Len() - ended
	count := plural(all, "container")
	if m.sum.Members != all {
		count = fmt.Sprintf("%d of %s", m.sum.Members, count)
	}
	if ended > 0 {
		count += fmt.Sprintf(", %d ended", ended)
	}
	return count
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// part is a piece of a line.
type part struct {
	text  string
	style lipgloss.Style
}

// sides draws parts at both ends of a line. What is at the left is cut first.
func (m *model) sides(left, right []part) string {
	room := m.width
	for _, p := range right {
		room -= view.Width(p.text)
	}
	for room < m.width/2 && len(right) > 1 { // the last one matters most
		room += view.Width(right[0].text)
		right = right[1:]
	}
	var out strings.Builder
	for _, p := range left {
		text := view.Cut(p.text, max(0, room-1), m.signs.more)
		room -= view.Width(text)
		out.WriteString(p.style.Render(text))
		if text != p.text {
			break
		}
	}
	out.WriteString(repeat(" ", room))
	for _, p := range right {
		out.WriteString(p.style.Render(view.Cut(p.text, m.width, m.signs.more)))
	}
	return out.String()
}

// hints are the keys in the last line, the most needed ones first.
var hints = []string{"? help", "q quit", "/ filter", "s sort", "enter details", "space pause", "u unit", "g group", "a ended",
	"t totals", "c columns", "r reverse", "z from now"}

func (m *model) footer(l *layout) string {
	switch {
	case m.prompt != nil:
		text := m.promptText()
		if room := m.width - view.Width(text) - 3; m.prompt.wrong != "" && room > 0 {
			text += "   " + warning.Render(view.Cut(m.signs.text(m.prompt.wrong), room, m.signs.more))
		}
		return text
	case m.notice != "":
		return m.drawn(m.notice, warning)
	case m.lost != nil:
		return m.drawn(m.lost.Error(), danger)
	case m.menu != nil && m.menu.toggle != nil:
		return m.drawn("space shows or hides "+m.signs.between+" enter done", dim)
	case m.menu != nil:
		return m.drawn("j/k choose "+m.signs.between+" enter takes it "+m.signs.between+" esc back", dim)
	}
	var right []part
	if n := len(m.rows); n > m.page() {
		right = append(right, part{fmt.Sprintf("%d-%d of %d", m.offset+1, min(n, m.offset+m.page()), n), dim})
	} else if l.hidden > 0 && m.height >= 24 {
		right = append(right, part{plural(l.hidden, "column") + " hidden: too narrow", dim})
	}
	room := m.width - 2
	for _, p := range right {
		room -= view.Width(p.text)
	}
	text := ""
	for _, hint := range hints {
		next := text
		if next != "" {
			next += " " + m.signs.between + " "
		}
		if next += hint; view.Width(next) > room {
			break
		}
		text = next
	}
	return m.sides([]part{{text, dim}}, right)
}

// drawn returns a line that is a text from anywhere.
func (m *model) drawn(text string, style lipgloss.Style) string {
	return style.Render(view.Cut(m.signs.text(text), m.width, m.signs.more))
}

// promptText is what is typed, its end if there is no room for all.
func (m *model) promptText() string {
	title, text := m.prompt.title+": ", m.signs.text(m.prompt.text)
	for room := m.width - view.Width(title) - 1; view.Width(text) > room; {
		_, rest, _ := strings.Cut(text, string([]rune(text)[0]))
		text = rest
	}
	return title + text
}

// panelHeight is how many lines a menu takes.
func (m *model) panelHeight() int {
	if m.menu == nil {
		return 0
	}
	return min(len(m.menu.items)+1, max(0, m.height-above-3))
}

// panel draws a menu below the rows.
func (m *model) panel() []string {
	if m.menu == nil {
		return nil
	}
	n := m.panelHeight() - 1
	title := " " + m.menu.title + " "
	lines := []string{dim.Render(m.signs.rule) + bold.Render(title) + dim.Render(repeat(m.signs.rule, m.width-1-view.Width(title)))}
	first := max(0, min(m.menu.at-n+1, len(m.menu.items)-n))
	for i := first; i < min(first+n, len(m.menu.items)); i++ {
		it := m.menu.items[i]
		cursor, one := " ", (*lipgloss.Style)(nil)
		if i == m.menu.at {
			cursor, one = m.signs.cursor, &selected
		}
		lines = append(lines, line(&m.signs, m.width, one, []cell{
			{text: cursor, width: gutter}, {text: it.title, width: nameMin + 4},
			{text: it.about, style: dim, width: max(0, m.width-gutter-nameMin-4-1), gap: 1},
		}))
	}
	return lines
}

// scrolledLines draws lines that need not fit, with a title above and keys below.
func (m *model) scrolledLines(title string, lines []string, keys string) []string {
	page := max(1, m.height-2)
	m.scroll = max(0, min(m.scroll, len(lines)-page))
	end := min(len(lines), m.scroll+page)
	out := append([]string{m.sides([]part{{title, bold}}, m.status())}, lines[m.scroll:end]...)
	for len(out) < m.height-1 {
		out = append(out, "")
	}
	var right []part
	if len(lines) > page {
		right = []part{{fmt.Sprintf("%d-%d of %d lines", m.scroll+1, end, len(lines)), dim}}
	}
	if m.notice != "" {
		return append(out, m.drawn(m.notice, warning))
	}
	return append(out, m.sides([]part{{keys, dim}}, right))
}

// helpTexts are keys and what they do; a title has no key.
var helpTexts = [][2]string{
	{"", "Rows"},
	{"j k, arrows", "select a row; the selection follows its container"},
	{"PgUp PgDn", "a page up or down"},
	{"Home End", "the first or the last row"},
	{"Enter", "details of a container, or the members of a group"},
	{"Esc", "back: out of the group, the filter, the selection"},
	{"/", "filter by name, namespace, pod: web, web-*; label: tier=*"},
	{"a", "show those that have ended, too, or not"},
	{"g", "group by compose project, namespace, pod or label"},
	{"", "Numbers"},
	{"s", "sort by; rows move every 3 s, by rates of some seconds"},
	{"r", "reverse the order"},
	{"c", "choose columns"},
	{"u", "bytes or bits, by 1024 or by 1000"},
	{"t", "rates and totals, rates alone, totals alone"},
	{"z", "count totals from now, or show all again"},
	{"Space", "pause, and go on"},
	{"", "Other"},
	{"Ctrl-S", "save columns, sort and unit"},
	{"Ctrl-L", "draw the screen anew"},
	{"?", "this help"},
	{"q, Ctrl-C", "quit"},
	{"", "Words"},
	{"receive", "what the container received; transmit is what it sent"},
	{"SYN", "TCP connection requests, in both directions"},
	{"conns", "TCP connections that it began or accepted; failed: that it began in vain"},
	{"quota", "how much of its most used quota is used"},
	{"!", "not counted, or in part; the state says why"},
	{"x", "has ended; these are its last numbers"},
}

func (m *model) helpLines() []string {
	lines := []string{}
	for _, t := range helpTexts {
		if t[0] == "" {
			lines = append(lines, "", "  "+bold.Render(t[1]))
			continue
		}
		lines = append(lines, line(&m.signs, m.width, nil, []cell{{text: t[0], style: accent, width: 12, gap: 4},
			{text: t[1], width: max(0, m.width-18), gap: 2}}))
	}
	return append(lines, line(&m.signs, m.width, nil, []cell{{text: m.signs.gap, style: accent, width: 12, gap: 4},
		{text: "not known; never a 0", width: max(0, m.width-18), gap: 2}}))
}

func repeat(text string, n int) string { return strings.Repeat(text, max(0, n)) }
