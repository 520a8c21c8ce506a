// SPDX-License-Identifier: Apache-2.0

package top

import (
	"strings"
	"unicode"

	"charm.land/lipgloss/v2"

	"github.com/nettally/nettally/internal/view"
)

// Styles use the 16 colors that a terminal's user has chosen, and attributes where there are none.
var (
	plain    = lipgloss.NewStyle()
	dim      = plain.Faint(true)
	bold     = plain.Bold(true)
	accent   = plain.Foreground(lipgloss.Cyan)
	good     = plain.Foreground(lipgloss.Green)
	warning  = plain.Foreground(lipgloss.Yellow)
	danger   = plain.Foreground(lipgloss.Red).Bold(true)
	selected = plain.Reverse(true)
)

// signs are what is drawn beside text.
type signs struct {
	ascii                                    bool
	more, rule, cursor, between, gap, timing string
	up, down                                 string
	levels                                   []rune // of a plot, from nothing to most
	full, empty                              string // of a bar
}

var (
	unicodeSigns = signs{
		more: "…", rule: "─", cursor: "▌", between: "·", gap: "–", timing: "…", up: "▲", down: "▼",
		levels: []rune("▁▂▃▄▅▆▇█"), full: "█", empty: "░",
	}
	asciiSigns = signs{
		ascii: true,
		more:  "~", rule: "-", cursor: ">", between: "|", gap: "-", timing: "...", up: "^", down: "v",
		levels: []rune("_.:-=+*#"), full: "#", empty: ".",
	}
)

// marksMost is how many marks of a text stand on one character. Terminals draw piles of them over
// other lines, or lose count of their columns.
const marksMost = 2

// text returns a text from outside as it may be drawn.
func (s *signs) text(text string) string {
	marks := 0
	text = strings.Map(func(r rune) rune {
		if marks++; !unicode.In(r, unicode.Mn, unicode.Me) {
			marks = 0
		}
		if marks > marksMost {
			return -1
		}
		return view.Shown(r)
	}, text)
	if s.ascii {
		text = strings.Map(func(r rune) rune {
			if r > unicode.MaxASCII {
				return '?'
			}
			return r
		}, text)
	}
	return text
}

// cell is a text in a column of a table.
type cell struct {
	text  string
	style lipgloss.Style
	width int
	right bool
	gap   int // columns before it
}

// padded returns the cell's text in its width, cut if it is longer.
func (c *cell) padded(s *signs) string {
	text := view.Cut(c.text, c.width, s.more)
	room := strings.Repeat(" ", max(0, c.width-view.Width(text)))
	if c.right {
		return strings.Repeat(" ", c.gap) + room + text
	}
	return strings.Repeat(" ", c.gap) + text + room
}

// line draws cells beside each other, all of them in one style unless that is nil.
func line(s *signs, width int, one *lipgloss.Style, cells []cell) string {
	var out, text strings.Builder
	used := 0
	for i := range cells {
		piece := cells[i].padded(s)
		used += view.Width(piece)
		text.WriteString(piece)
		out.WriteString(cells[i].style.Render(piece))
	}
	if one != nil {
		return one.Render(text.String() + strings.Repeat(" ", max(0, width-used)))
	}
	return out.String()
}
