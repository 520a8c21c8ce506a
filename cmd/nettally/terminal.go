// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
	"golang.org/x/text/runes"
	"golang.org/x/text/transform"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/view"
)

// This file is the only one that writes to the terminal; TestOnlyTerminalWrites holds that.
// Names, labels, paths and errors hold what anybody wrote into them, and a terminal obeys
// some of it.

// printable is a text from outside as it may be printed.
func printable(text string) string { return view.Printable(text) }

// display is a screen, and what can be shown there.
type display struct {
	io.Writer
	look
	under io.Writer // as it is: what is written here has to be printable
}

// errNoReader says that what commands print goes to a pipe that nobody reads any more, as that of
// `nettally list | head -1`. The kernel ends a program there by SIGPIPE, unless whoever has
// started it ignores that.
var errNoReader = errors.New("nobody reads the output any more")

// sink is a writer whose pipes end with errNoReader.
type sink struct{ io.Writer }

func (s sink) Write(text []byte) (int, error) {
	n, err := s.Writer.Write(text)
	if errors.Is(err, unix.EPIPE) {
		err = errNoReader
	}
	return n, err
}

// screen is where commands write to. What could come through all the same is replaced there,
// except for the ends of lines and the tabs that are our own.
func screen(w io.Writer) io.Writer {
	look := lookAt(w)
	return &display{under: w, look: look, Writer: transform.NewWriter(sink{w}, runes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return look.shown(r)
	}))}
}

// reprint prints something anew: on a terminal in the place of what is there, as much of it as
// there is room for, and elsewhere behind it.
func reprint(w io.Writer, print func(io.Writer) error) error {
	s, ok := w.(*display)
	if !ok || !s.terminal {
		return print(w)
	}
	look := lookAt(s.under) // its size may have changed
	var text bytes.Buffer
	if err := print(&display{Writer: &text, look: look, under: &text}); err != nil {
		return err
	}
	const home, clearLine, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if room := max(look.rows-1, 1); len(lines) > room {
		left := len(lines) - room + 1
		lines = append(lines[:room-1], fmt.Sprintf("and %d lines more", left))
	}
	frame := home
	for _, line := range lines {
		line = strings.Map(look.shown, strings.ReplaceAll(line, "\t", "    "))
		frame += view.Cut(line, look.columns, ">") + clearLine + "\n"
	}
	_, err := sink{s.under}.Write([]byte(frame + clearBelow))
	return err
}

// printText prints lines of our own making, of which what is from outside was made printable.
func printText(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

// oneJSON returns a value as JSON in one line, where what is not shown on a screen is escaped.
func oneJSON(w io.Writer, value any) (string, error) {
	text, err := json.Marshal(value)
	return string(escapeFor(lookOf(w), text, jsonEscape)), err
}

// terminalOf returns the terminal behind a screen, for [top.Run], which replaces what a terminal
// obeys itself. It returns nil if there is none.
func terminalOf(w io.Writer) *os.File {
	s, ok := w.(*display)
	if !ok || !s.terminal {
		return nil
	}
	return s.under.(*os.File) // what lookAt found to be a terminal
}

// say prints one line.
func say(w io.Writer, format string, arguments ...any) error {
	_, err := fmt.Fprintln(w, printable(fmt.Sprintf(format, arguments...)))
	return err
}

// complain prints an error. One that is made of several has a line for each, and what is
// below the first is indented: nobody's text can look like another message.
func complain(w io.Writer, err error) {
	lines := strings.Split("nettally: "+err.Error(), "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	_, _ = fmt.Fprintln(w, strings.Join(lines, "\n  ")) // nobody is left to tell
}

// table is printed with its columns aligned.
type table struct {
	rows [][]string
	bars int // the column of bars, 0 for none
}

func newTable(titles ...string) *table {
	t := &table{}
	t.row(titles...)
	return t
}

// row adds a line, of as many cells as the table has titles.
func (t *table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = printable(cell)
	}
	t.rows = append(t.rows, row)
}

// between is how many spaces are between two columns.
const between = 2

// print prints the table. Bars are for terminals, and for those that have room for them.
func (t *table) print(w io.Writer) error {
	look := lookOf(w)
	for _, row := range t.rows {
		for i := range row {
			row[i] = strings.Map(look.shown, row[i])
		}
	}
	widths := t.widths()
	if t.bars > 0 && !(look.terminal && wide(widths) <= look.columns) {
		for i := range t.rows {
			t.rows[i] = slices.Delete(t.rows[i], t.bars, t.bars+1)
		}
		widths = t.widths()
	}
	var text bytes.Buffer
	for _, row := range t.rows {
		last := len(row) - 1
		for i, cell := range row[:last] {
			text.WriteString(cell)
			text.WriteString(strings.Repeat(" ", widths[i]+between-view.Width(cell)))
		}
		text.WriteString(row[last])
		text.WriteByte('\n')
	}
	_, err := w.Write(text.Bytes())
	return err
}

// widths returns how wide each column is.
func (t *table) widths() []int {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], view.Width(cell))
		}
	}
	return widths
}

// wide returns how wide a table is whose columns have these widths.
func wide(widths []int) (n int) {
	for _, width := range widths {
		n += width + between
	}
	return n - between
}

// printJSON prints values exactly: what is not shown is escaped. What is not UTF-8 has no
// form in JSON, and is replaced.
func printJSON[T any](w io.Writer, found *T) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetIndent("", "  ")
	if err := e.Encode(found); err != nil {
		return err
	}
	_, err := w.Write(escapeFor(lookOf(w), text.Bytes(), jsonEscape))
	return err
}

// printJSONLine is printJSON in one line.
func printJSONLine[T any](w io.Writer, found *T) error {
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	_, err = w.Write(append(escapeFor(lookOf(w), text, jsonEscape), '\n'))
	return err
}

// printCSV prints what has no form in a line of CSV as a table does: as replaced.
func printCSV(w io.Writer, h *exporter.History) error {
	shown := *h
	shown.History = slices.Clone(h.History)
	for i := range shown.History {
		shown.History[i].Key = printable(shown.History[i].Key)
	}
	return shown.WriteCSV(w)
}

// printYAML prints a configuration exactly: what is not shown is escaped.
func printYAML(w io.Writer, config *configs.Config) error {
	text, err := config.YAML()
	if err != nil {
		return err
	}
	if look := lookOf(w); !bytes.Equal(text, escapeFor(look, text, yamlEscape)) {
		if text, err = escapedYAML(look, text); err != nil {
			return err
		}
	}
	_, err = w.Write(text)
	return err
}

// escapedYAML is the same document with escapes, which YAML knows within " only.
func escapedYAML(look look, text []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	quote(look, &document)
	var quoted bytes.Buffer
	e := yaml.NewEncoder(&quoted)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(&document), e.Close()); err != nil {
		return nil, err
	}
	return escapeFor(look, quoted.Bytes(), yamlEscape), nil
}

func quote(look look, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && strings.Map(look.shown, n.Value) != n.Value {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range n.Content {
		quote(look, child)
	}
}

// escape replaces what is not shown, but for ends of lines, by how the format writes it.
func escape(text []byte, as func(out []byte, r rune) []byte) []byte {
	return escapeFor(look{}, text, as)
}

// escapeFor is escape for what can be shown somewhere.
func escapeFor(look look, text []byte, as func(out []byte, r rune) []byte) []byte {
	var out []byte
	for _, r := range string(text) {
		if r == '\n' || look.shown(r) == r {
			out = utf8.AppendRune(out, r)
		} else {
			out = as(out, r)
		}
	}
	return out
}

func jsonEscape(out []byte, r rune) []byte {
	if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
		return fmt.Appendf(out, `\u%04x\u%04x`, high, low)
	}
	return fmt.Appendf(out, `\u%04x`, r)
}

func yamlEscape(out []byte, r rune) []byte { return fmt.Appendf(out, `\U%08X`, r) }

// escaping is where a log in JSON goes to, a line at a time: slog escapes less than a terminal
// obeys.
type escaping struct{ to io.Writer }

func (e escaping) Write(line []byte) (int, error) {
	if _, err := e.to.Write(escape(line, jsonEscape)); err != nil {
		return 0, err
	}
	return len(line), nil
}
