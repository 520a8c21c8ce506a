// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/text/runes"
	"golang.org/x/text/transform"
	"golang.org/x/text/width"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
)

// This file is the only one that writes to the terminal; TestOnlyTerminalWrites holds that.
// Names, labels, paths and errors hold what anybody wrote into them, and a terminal obeys
// some of it.

// printable is a text from outside as it may be printed: in one line, and without what a
// terminal obeys or does not show.
func printable(text string) string { return strings.Map(shown, text) }

// shown replaces a character that is not simply seen: controls, ends of lines, changes of the
// direction, what has no width, and (by Go) a byte that is not UTF-8.
func shown(r rune) rune {
	if ' ' <= r && r < unicode.MaxASCII {
		return r
	}
	if !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
		return unicode.ReplacementChar
	}
	return r
}

// screen is where commands write to. What could come through all the same is replaced there,
// except for the ends of lines and the tabs that are our own.
func screen(w io.Writer) io.Writer {
	return transform.NewWriter(w, runes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return shown(r)
	}))
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
type table struct{ rows [][]string }

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

func (t *table) print(w io.Writer) error {
	const between = 2
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], columns(cell))
		}
	}
	var text bytes.Buffer
	for _, row := range t.rows {
		last := len(row) - 1
		for i, cell := range row[:last] {
			text.WriteString(cell)
			text.WriteString(strings.Repeat(" ", widths[i]+between-columns(cell)))
		}
		text.WriteString(row[last])
		text.WriteByte('\n')
	}
	_, err := w.Write(text.Bytes())
	return err
}

// columns is how wide a terminal shows a text that is printable: marks stand on the character
// before them, and those of East Asia have two columns.
func columns(text string) (n int) {
	for _, r := range text {
		switch kind := width.LookupRune(r).Kind(); {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case kind == width.EastAsianWide, kind == width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
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
	_, err := w.Write(escape(text.Bytes(), jsonEscape))
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
	if !bytes.Equal(text, escape(text, yamlEscape)) {
		if text, err = escapedYAML(text); err != nil {
			return err
		}
	}
	_, err = w.Write(text)
	return err
}

// escapedYAML is the same document with escapes, which YAML knows within " only.
func escapedYAML(text []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	quote(&document)
	var quoted bytes.Buffer
	e := yaml.NewEncoder(&quoted)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(&document), e.Close()); err != nil {
		return nil, err
	}
	return escape(quoted.Bytes(), yamlEscape), nil
}

func quote(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && printable(n.Value) != n.Value {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range n.Content {
		quote(child)
	}
}

// escape replaces what is not shown, but for ends of lines, by how the format writes it.
func escape(text []byte, as func(out []byte, r rune) []byte) []byte {
	var out []byte
	for _, r := range string(text) {
		if r == '\n' || shown(r) == r {
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
