// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// saying returns skips, what they log, and their clock.
func saying() (s *skips, log *bytes.Buffer, now *time.Time) {
	log, now = &bytes.Buffer{}, new(time.Time)
	*now = time.Unix(1e9, 0)
	s = newSkips(slog.New(slog.NewTextHandler(log, nil)))
	s.now = func() time.Time { return *now }
	return s, log, now
}

// lines returns how many lines there are, and empties the log.
func lines(log *bytes.Buffer) int {
	defer log.Reset()
	return strings.Count(log.String(), "\n")
}

func directories(prefix string, count int) map[string]error {
	found := map[string]error{}
	for i := range count {
		found[fmt.Sprintf("/%s%04d", prefix, i)] = unix.EACCES
	}
	return found
}

// Each directory is named once while it lasts, and its end is said.
func TestSkipsSaidOnce(t *testing.T) {
	s, log, now := saying()
	for range 100 {
		s.replace(directories("a", 3))
		*now = now.Add(time.Minute)
	}
	if n := lines(log); n != 3 {
		t.Errorf("%d lines, want 3", n)
	}
	s.join(directories("b", 1))
	s.replace(directories("b", 1))
	if n := lines(log); n != 1 {
		t.Errorf("%d lines for another, want 1", n)
	}
	s.replace(nil)
	if said := log.String(); lines(log) != 1 || !strings.Contains(said, "can be read again") {
		t.Errorf("at the end %q", said)
	}
	if s.errors != 302 {
		t.Errorf("%d errors", s.errors)
	}
}

// The name of a directory that is no container's is said, in one line, and tame.
func TestSkipsWithoutID(t *testing.T) {
	s, log, _ := saying()
	s.replace(map[string]error{"/lxc.payload.\x1b[31m\u202e\n\u009b\xff": ErrNoID})
	said := log.String()
	if lines(log) != 1 || !strings.Contains(said, "not counted as a container's") || !strings.Contains(said, `\x1b[31m\u202e\n\u009b\xff`) {
		t.Errorf("said %q", said)
	}
}

// A user makes a thousand: what is remembered and logged is bounded, and all are counted.
func TestManySkips(t *testing.T) {
	s, log, now := saying()
	w := &Watcher{skips: s}
	for range 10 {
		s.replace(directories("a", 1000))
		*now = now.Add(time.Minute)
	}
	if named, count := w.Skipped(); len(named) != maxNamed || len(s.named) != maxNamed || count != 1000 {
		t.Errorf("%d are named and %d counted", len(named), count)
	}
	if n := lines(log); n != maxNamed+1 {
		t.Errorf("%d lines, want %d and a summary", n, maxNamed)
	}
	s.replace(directories("a", 2))
	if named, count := w.Skipped(); len(named) != 2 || count != 2 {
		t.Errorf("%d are named and %d counted when the others have gone", len(named), count)
	}
	if w.Errors() != 10_002 {
		t.Errorf("%d errors", w.Errors())
	}
}

// He makes others all the time.
func TestSkipsThatFlap(t *testing.T) {
	s, log, now := saying()
	for i := range 1000 {
		s.replace(directories(fmt.Sprint("x", i, "-"), 100))
		s.replace(nil)
		*now = now.Add(time.Second)
	}
	if n, most := lines(log), 2*(maxNamed+1); n > most {
		t.Errorf("%d lines in 1,000 seconds, want at most %d", n, most)
	}
	if len(s.named) != 0 || s.others != 0 {
		t.Errorf("%d and %d are left", len(s.named), s.others)
	}
}
