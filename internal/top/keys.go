// SPDX-License-Identifier: Apache-2.0

package top

import (
	"slices"
	"strings"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/nettally/nettally/internal/view"
)

// press takes a key.
func (m *model) press(key tea.KeyPressMsg) tea.Cmd {
	name := key.String()
	m.notice = ""
	switch name {
	case "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	}
	switch {
	case m.prompt != nil:
		m.typed(name, key.Text)
	case m.menu != nil:
		m.choose(name)
	case m.help:
		if !m.scrolled(name, len(m.helpLines())) {
			m.help, m.scroll = false, 0
		}
	case m.details != nil:
		return m.inDetails(name)
	default:
		return m.inTable(name)
	}
	return nil
}

// inTable takes a key where the table is shown.
func (m *model) inTable(name string) tea.Cmd {
	if m.moved(name) {
		return nil
	}
	switch name {
	case "q":
		return tea.Quit
	case "?", "h", "f1":
		m.help, m.scroll = true, 0
	case "/":
		m.prompt = &prompt{title: "filter", text: m.filterText, before: m.filterText}
	case "esc":
		m.back()
	case "enter":
		m.enter()
	case "s":
		m.menu = m.sortMenu()
	case "c":
		m.menu = m.columnMenu()
	case "g":
		m.menu = m.groupMenu()
	case "r":
		m.settings.Reverse = !m.settings.Reverse
		m.refresh(true)
	case "a":
		m.ended = !m.ended
		m.refresh(true)
	case "u":
		m.settings.Unit = m.settings.Unit.Next()
	case "t":
		m.shows = (m.shows + 1) % (onlyTotals + 1)
	case "z":
		m.zero()
	case "space":
		m.pause()
	case "ctrl+s":
		m.save()
	case "ctrl+l":
		return tea.ClearScreen
	}
	return nil
}

// moved takes keys that move the cursor.
func (m *model) moved(name string) bool {
	to, page := m.at, m.page()
	if !m.picked { // the first key selects a row that is on the screen
		to = m.offset - 1
	}
	switch name {
	case "j", "down":
		to++
	case "k", "up":
		to = max(to-1, 0)
	case "pgdown", "ctrl+f":
		to = max(to, m.offset) + page
	case "pgup", "ctrl+b":
		to -= page
	case "home":
		to = 0
	case "end", "G":
		to = len(m.rows) - 1
	default:
		return false
	}
	m.move(to)
	return true
}

// scrolled takes keys that scroll lines.
func (m *model) scrolled(name string, lines int) bool {
	page := max(1, m.height-2)
	switch name {
	case "j", "down":
		m.scroll++
	case "k", "up":
		m.scroll--
	case "pgdown", "ctrl+f", "space":
		m.scroll += page
	case "pgup", "ctrl+b":
		m.scroll -= page
	case "home":
		m.scroll = 0
	case "end", "G":
		m.scroll = lines
	default:
		return false
	}
	m.scroll = max(0, min(m.scroll, lines-page))
	return true
}

// inDetails takes a key where the details of a container are shown.
func (m *model) inDetails(name string) tea.Cmd {
	switch name {
	case "q":
		return tea.Quit
	case "esc", "enter", "backspace":
		m.details, m.scroll = nil, 0
	case "u":
		m.settings.Unit = m.settings.Unit.Next()
	case "?":
		m.help, m.scroll = true, 0
	case "space":
		m.pause()
	default:
		m.scrolled(name, len(m.detailLines()))
	}
	return nil
}

// back takes away what was narrowed last.
func (m *model) back() {
	switch {
	case m.within != nil:
		m.within = nil
		m.unselect()
	case m.filterText != "":
		m.filterText, m.filter = "", view.Filter{}
	default:
		m.unselect()
	}
	m.refresh(true)
}

// enter shows more of the selected row: the members of a group, or the details of a container.
func (m *model) enter() {
	if len(m.rows) == 0 {
		return
	}
	if !m.picked {
		m.move(m.offset)
	}
	r := m.rows[m.at]
	if r.Container == nil {
		m.within = &r.Key
		m.unselect()
		m.refresh(true)
		return
	}
	m.details, m.scroll = &details{id: r.Key}, 0
	m.wish()
}

func (m *model) zero() {
	switch {
	case m.paused():
		m.notice = "paused: Space goes on, then z counts from now"
		return
	case m.book.ZeroedAt().IsZero():
		m.book.Zero()
		m.notice = "totals count from now; z shows all again"
	default:
		m.book.Unzero()
	}
	m.refresh(true)
}

func (m *model) save() {
	if m.options.Path == "" {
		m.notice = "there is no folder for settings: set HOME or XDG_CONFIG_HOME"
		return
	}
	if err := m.settings.Save(m.options.Path); err != nil {
		m.notice = err.Error()
		return
	}
	m.notice = "saved columns, sort and unit to " + m.options.Path
}

// prompt is a line that is typed.
type prompt struct {
	title  string
	text   string
	before string // what it was
	wrong  string // why it can't be used
}

// longestPrompt bounds what is typed, in bytes.
const longestPrompt = 500

// add adds what was typed or pasted, in one line.
func (p *prompt) add(text string) {
	text = view.Printable(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' || r == '\t' }), " "))
	if len(p.text)+len(text) <= longestPrompt {
		p.text += text
	}
}

// typed takes a key in a prompt.
func (m *model) typed(name, text string) {
	p := m.prompt
	switch name {
	case "enter":
		if p.wrong == "" {
			m.prompted()
			m.prompt = nil
		}
		return
	case "esc":
		p.text = p.before
		m.prompted()
		m.prompt = nil
		return
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(p.text)
		p.text = p.text[:len(p.text)-size]
	case "ctrl+u":
		p.text = ""
	case "ctrl+w":
		p.text = p.text[:strings.LastIndexByte(strings.TrimRight(p.text, " "), ' ')+1]
	default:
		if text == "" {
			return
		}
		p.add(text)
	}
	m.prompted()
}

// prompted uses what is typed so far.
func (m *model) prompted() {
	p := m.prompt
	p.wrong = ""
	if p.title == "filter" {
		f, err := view.ParseFilter(p.text)
		if err != nil {
			p.wrong = err.Error()
			return
		}
		m.filter, m.filterText = f, strings.TrimSpace(p.text)
		m.offset = 0
	} else {
		by, err := view.ParseBy(strings.TrimSuffix("label:"+strings.TrimSpace(p.text), "label:"))
		if err != nil {
			p.wrong = err.Error()
			return
		}
		m.by, m.within = by, nil
	}
	m.refresh(true)
}

// menu is a choice among a few things.
type menu struct {
	title  string
	items  []item
	at     int
	choose func(i int) // with Enter or Space, after which it closes
	toggle func(i int) // with Space, and it stays; nil where there is one thing to choose
}

type item struct{ title, about string }

// choose takes a key in a menu.
func (m *model) choose(name string) {
	switch menu := m.menu; name {
	case "j", "down":
		menu.at = min(menu.at+1, len(menu.items)-1)
	case "k", "up":
		menu.at = max(menu.at-1, 0)
	case "home":
		menu.at = 0
	case "end":
		menu.at = len(menu.items) - 1
	case "space", "enter":
		if menu.toggle != nil {
			if name == "enter" {
				m.menu = nil
			} else {
				menu.toggle(menu.at)
			}
			break
		}
		m.menu = nil
		menu.choose(menu.at)
	case "esc", "q", "s", "c", "g":
		m.menu = nil
	}
	m.follow()
}

func (m *model) sortMenu() *menu {
	made := &menu{title: "sort by"}
	for i, c := range view.Columns {
		it := item{title: string(c)}
		if at := slices.IndexFunc(columns, func(k column) bool { return k.id == string(c) }); at >= 0 {
			it.about = columns[at].about
		}
		made.items = append(made.items, it)
		if c == m.settings.Sort {
			made.at = i
		}
	}
	made.choose = func(i int) {
		m.settings.Sort, m.settings.Reverse = view.Columns[i], false
		m.refresh(true)
	}
	return made
}

func (m *model) columnMenu() *menu {
	made := &menu{title: "columns"}
	draw := func() {
		made.items = made.items[:0]
		for _, c := range columns {
			box := "[ ] "
			if slices.Contains(m.settings.Columns, c.id) {
				box = "[x] "
			}
			made.items = append(made.items, item{box + c.id, c.about})
		}
	}
	made.toggle = func(i int) {
		chosen := m.settings.Columns
		m.settings.Columns = nil
		for _, c := range columns { // in the order of the table
			if slices.Contains(chosen, c.id) != (c.id == columns[i].id) {
				m.settings.Columns = append(m.settings.Columns, c.id)
			}
		}
		draw()
	}
	draw()
	return made
}

func (m *model) groupMenu() *menu {
	kinds := []string{"", "project", "namespace", "pod"}
	made := &menu{title: "group by", items: []item{
		{"nothing", "each container"}, {"project", "compose project"}, {"namespace", "Kubernetes namespace"},
		{"pod", "Kubernetes pod"}, {"label", "the value of a label, whose key you type"},
	}}
	if made.at = slices.Index(kinds, m.by.String()); made.at < 0 {
		made.at = len(kinds)
	}
	made.choose = func(i int) {
		m.within = nil
		m.unselect()
		if i == len(kinds) {
			key, _ := strings.CutPrefix(m.by.String(), "label:")
			m.prompt = &prompt{title: "label", before: key}
			return
		}
		m.by, _ = view.ParseBy(kinds[i]) // one of ours
		m.refresh(true)
	}
	return made
}
