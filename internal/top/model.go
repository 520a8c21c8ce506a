// SPDX-License-Identifier: Apache-2.0

package top

import (
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/view"
)

// settled is how long rows stay in their order, so that they can be read.
const settled = 3 * time.Second

// model is what is shown. It is bubbletea's: one goroutine calls it.
type model struct {
	options  Options
	signs    signs
	now      func() time.Time
	settings Settings

	width, height int

	book   *view.Book
	frozen *view.Book // what is shown while paused
	lost   error      // why there is no connection
	lostAt time.Time
	heard  time.Time       // when there was an event last
	firing map[string]bool // ids of alerts

	filterText string
	filter     view.Filter
	ended      bool // those that have ended are shown, too
	by         view.By
	within     *string // the group whose members are shown, nil for none
	shows      shows

	rows   []view.Row
	sum    view.Row
	order  []string // keys, in the order of the last sorting
	sorted time.Time
	picked bool   // a row is selected
	cursor string // its key
	at     int    // where that row is, or was
	offset int    // the first row that is on the screen

	prompt  *prompt
	menu    *menu
	help    bool
	scroll  int // of help and details
	details *details
	wishes  chan<- string // the container whose details are wanted
	notice  string
}

func newModel(o Options, wishes chan<- string) *model {
	m := &model{
		options: o, signs: unicodeSigns, now: o.Now, settings: o.Settings, notice: o.Notice,
		book: view.NewBook(), firing: map[string]bool{}, wishes: wishes,
	}
	if o.ASCII {
		m.signs = asciiSigns
	}
	if m.now == nil {
		m.now = time.Now
	}
	m.settings.Columns = slices.Clone(o.Settings.Columns)
	return m
}

// Init begins nothing: events come by themselves.
func (m *model) Init() tea.Cmd { return nil }

// Update takes a message.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.follow()
	case tea.KeyPressMsg:
		return m, m.press(msg)
	case tea.PasteMsg:
		if m.prompt != nil {
			m.prompt.add(msg.Content)
			m.prompted()
		}
	case eventMsg:
		m.heard = m.now()
		m.take(msg.event)
	case recentMsg:
		m.book.Recent(msg.recent)
	case lostMsg:
		if m.lost == nil {
			m.lostAt = m.now()
		}
		m.lost = msg.err
	case detailsMsg:
		if m.details != nil && m.details.id == msg.id {
			m.details.loaded = &msg
		}
	}
	return m, nil
}

// take takes an event of the stream.
func (m *model) take(e exporter.StreamEvent) {
	m.book.Take(e)
	switch e := e.(type) {
	case *exporter.StreamContainers:
		m.lost = nil
		if e.Replace {
			clear(m.firing) // those that fire are told next
		}
		m.refresh(false)
	case *exporter.StreamSample:
		m.refresh(false)
		if m.details != nil && !m.paused() {
			m.wish()
		}
	case *exporter.Alert:
		if e.State == "firing" && len(m.firing) < mostAlerts {
			m.firing[e.ID] = true
		} else {
			delete(m.firing, e.ID)
		}
	}
}

// mostAlerts bounds those that are counted.
const mostAlerts = 10_000

// silent returns for how long there was no reading, if that is longer than it should be.
func (m *model) silent() (time.Duration, bool) {
	d := m.now().Sub(m.heard).Truncate(time.Second)
	return d, !m.heard.IsZero() && d > m.options.Interval+patient
}

// patient is how long a reading may be late.
const patient = 3 * time.Second

// stale reports whether the rates that are shown are not of now, though nobody paused.
func (m *model) stale() bool {
	_, silent := m.silent()
	return !m.paused() && (m.lost != nil || silent)
}

func (m *model) paused() bool { return m.frozen != nil }

// shown is the book that is looked at.
func (m *model) shown() *view.Book {
	if m.frozen != nil {
		return m.frozen
	}
	return m.book
}

func (m *model) grouped() bool { return m.by != (view.By{}) && m.within == nil }

// refresh works out the rows, and puts them in order if it is time, or at once if sort is set.
func (m *model) refresh(sort bool) {
	rows := m.shown().Rows(m.filter, m.ended)
	if m.within != nil {
		rows = slices.DeleteFunc(rows, func(r view.Row) bool { return m.by.Key(r.Container) != *m.within })
	}
	m.sum = view.Sum("", rows)
	if m.grouped() {
		rows = view.Group(rows, m.by)
	}
	view.Sort(rows, m.settings.Sort, m.settings.Reverse, true)
	now := m.now()
	if sort || now.Sub(m.sorted) >= settled || now.Before(m.sorted) {
		m.sorted, m.order = now, keys(rows)
		if !m.sum.Known {
			m.sorted = time.Time{} // there are no rates to sort by yet
		}
	} else {
		keep(rows, m.order)
		m.order = keys(rows)
	}
	m.rows = rows
	m.follow()
}

func keys(rows []view.Row) []string {
	all := make([]string, len(rows))
	for i := range rows {
		all[i] = rows[i].Key
	}
	return all
}

// keep puts rows in an order that they had; new ones come last.
func keep(rows []view.Row, order []string) {
	place := make(map[string]int, len(order))
	for i, key := range order {
		place[key] = i
	}
	of := func(r view.Row) int {
		if i, ok := place[r.Key]; ok {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(rows, func(a, b view.Row) int { return of(a) - of(b) })
}

// follow finds the selected row again, and keeps it on the screen. If it has gone, the row in its
// place is selected.
func (m *model) follow() {
	page := m.page()
	if !m.picked {
		m.offset = max(0, min(m.offset, len(m.rows)-page))
		return
	}
	i := slices.IndexFunc(m.rows, func(r view.Row) bool { return r.Key == m.cursor })
	if i < 0 {
		i = min(m.at, len(m.rows)-1)
	}
	m.move(i)
}

// move selects a row.
func (m *model) move(i int) {
	i = max(0, min(i, len(m.rows)-1))
	m.at, m.picked = i, len(m.rows) > 0
	if m.picked {
		m.cursor = m.rows[i].Key
	}
	page := m.page()
	m.offset = min(m.offset, i)
	m.offset = max(m.offset, i-page+1, 0)
	m.offset = max(0, min(m.offset, len(m.rows)-page))
}

// unselect goes back to the beginning.
func (m *model) unselect() { m.picked, m.at, m.offset = false, 0, 0 }

// above is how many lines are above the rows: header, groups, titles and the sum.
const above = 4

// page is how many rows there is room for.
func (m *model) page() int { return max(1, m.height-above-m.panelHeight()-1) }

func (m *model) pause() {
	if m.paused() {
		m.frozen = nil
	} else {
		m.frozen = m.book.Clone()
	}
	m.refresh(false)
}
