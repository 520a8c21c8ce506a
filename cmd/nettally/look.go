// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/view"
)

// look is what can be shown where a command prints.
type look struct {
	terminal bool
	columns  int // of a terminal
	rows     int // of a terminal
	ascii    bool
}

// unknownColumns and unknownRows are how large a terminal is that does not say it, as a serial
// console.
const (
	unknownColumns = 80
	unknownRows    = 24
)

// lookOf returns what can be shown on a screen. On any other writer, text in UTF-8 can.
func lookOf(w io.Writer) look {
	if s, ok := w.(*display); ok {
		return s.look
	}
	return look{}
}

// lookAt asks the kernel whether a writer is a terminal, and the environment for its encoding.
func lookAt(w io.Writer) look {
	l := look{ascii: !localeIsUTF8(os.Getenv)}
	f, ok := w.(*os.File)
	if !ok {
		return l
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return l
	}
	l.terminal, l.columns, l.rows = true, int(size.Col), int(size.Row)
	if l.columns == 0 {
		l.columns = unknownColumns
	}
	if l.rows == 0 {
		l.rows = unknownRows
	}
	return l
}

// localeIsUTF8 reports whether the locale's encoding is UTF-8, by the variables that a libc
// goes by. Without any it is C's, and ASCII.
func localeIsUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := getenv(name); value != "" {
			encoding := strings.ReplaceAll(strings.ToLower(value), "-", "")
			return strings.Contains(encoding, "utf8")
		}
	}
	return false
}

// shown replaces a character that can't be shown here.
func (l look) shown(r rune) rune {
	r = view.Shown(r)
	if l.ascii && r > unicode.MaxASCII {
		return '?'
	}
	return r
}
