// SPDX-License-Identifier: Apache-2.0

package view

import (
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

// Printable returns a text from outside as it may be printed: in one line, and without what a
// terminal obeys or does not show.
func Printable(text string) string { return strings.Map(Shown, text) }

// Shown replaces a character that is not simply seen: controls, ends of lines, changes of the
// direction, what has no width, and (by Go) a byte that is not UTF-8.
func Shown(r rune) rune {
	if ' ' <= r && r < unicode.MaxASCII {
		return r
	}
	if !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
		return unicode.ReplacementChar
	}
	return r
}

// Width returns how wide a terminal shows a text that is printable: marks stand on the character
// before them, and characters of East Asia have two columns.
func Width(text string) (n int) {
	for _, r := range text {
		n += runeWidth(r)
	}
	return n
}

func runeWidth(r rune) int {
	if r < unicode.MaxASCII {
		return 1
	}
	switch kind := width.LookupRune(r).Kind(); {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case kind == width.EastAsianWide, kind == width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Cut returns a printable text in at most n columns. One that is longer ends with a mark.
func Cut(text string, n int, mark string) string {
	if Width(text) <= n {
		return text
	}
	room := n - Width(mark)
	if room < 0 {
		return ""
	}
	for i, r := range text {
		if room -= runeWidth(r); room < 0 {
			return text[:i] + mark
		}
	}
	return text
}
