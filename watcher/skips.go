// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTooDeep means that a cgroup has directories below it that are more than [MaxDepth]
// levels below the root of the hierarchy.
var ErrTooDeep = fmt.Errorf("more than %d levels deep", MaxDepth)

// MaxDepth is how many levels of directories are looked at. The kernel has no bound of its
// own (cgroup.max.depth is "max"), so users could make thousands. A service in a pod of a
// kubelet in a container of a user without root is at level 12, and each kubelet in a pod
// adds 7. With names of 100 bytes so many levels are still a path that the kernel takes.
const MaxDepth = 32

// Skipped is a cgroup directory below which containers may be missed.
type Skipped struct {
	Cgroup string // path within the hierarchy
	Err    error  // why: [ErrTooDeep], [ErrTooMany], [ErrNoID], or an errno
}

// String names the directory and the cause, in one line.
func (s Skipped) String() string { return fmt.Sprintf("cgroup %q: %v", abridged(s.Cgroup), s.Err) }

const (
	// Users make directories, and may make a thousand that can't be read. So many are named
	// in the log and by Skipped, and the others are counted.
	maxNamed = 64

	// No more than maxNamed lines are logged in this time, however often a user makes such
	// directories and removes them again.
	sayEvery = 10 * time.Minute
)

// skips remembers which directories could not be looked at when they were last visited.
// It is safe for concurrent use.
type skips struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	named  map[string]error
	others int    // beyond those
	errors uint64 // in all

	window time.Time // since then, said lines were logged
	said   int
}

func newSkips(log *slog.Logger) *skips {
	return &skips{log: log, now: time.Now, named: map[string]error{}}
}

// replace takes in what a visit to the whole hierarchy has found.
func (s *skips) replace(found map[string]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	some := len(s.named) > 0
	maps.DeleteFunc(s.named, func(dir string, _ error) bool { return found[dir] == nil })
	others := s.others
	s.others = 0
	s.add(found, others > 0)
	if some && len(s.named) == 0 {
		s.say(slog.LevelInfo, "every cgroup directory can be read again")
	}
}

// join takes in what a visit to a part of the hierarchy has found.
func (s *skips) join(found map[string]error) {
	if len(found) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(found, s.others > 0)
}

// add takes in directories. The caller holds mu; summarised reports whether the log says
// already that there are more than it names.
func (s *skips) add(found map[string]error, summarised bool) {
	s.errors += uint64(len(found))
	for _, dir := range slices.Sorted(maps.Keys(found)) {
		_, known := s.named[dir]
		switch {
		case known:
			s.named[dir] = found[dir]
		case len(s.named) < maxNamed:
			s.named[dir] = found[dir]
			s.say(slog.LevelWarn, missing(found[dir]), "cgroup", abridged(dir), "err", found[dir])
		default:
			s.others++
		}
	}
	if s.others > 0 && !summarised {
		s.say(slog.LevelWarn, "too many cgroup directories cannot be read to name each", "named", len(s.named), "others", s.others)
	}
}

// missing says what comes of a directory.
func missing(err error) string {
	if errors.Is(err, ErrNoID) {
		return "cgroup directory is not counted as a container's"
	}
	return "cgroup directory cannot be read: containers below it may be missed"
}

// abridged leaves the middle out of a path that is too long for a line.
func abridged(dir string) string {
	const most = 100 // bytes at each end
	if len(dir) <= 2*most {
		return dir
	}
	return dir[:most] + "[…]" + dir[len(dir)-most:]
}

// say logs a line, unless there were too many. The caller holds mu.
func (s *skips) say(level slog.Level, message string, attributes ...any) {
	if now := s.now(); now.Sub(s.window) >= sayEvery {
		s.window, s.said = now, 0
	}
	s.said++
	switch {
	case s.said <= maxNamed:
		s.log.Log(context.Background(), level, message, attributes...)
	case s.said == maxNamed+1:
		s.log.Warn("too many messages about cgroup directories that cannot be read: no more for a while", "while", sayEvery)
	}
}

// Skipped returns directories that could not be looked at when they were last visited,
// sorted, and how many there are. At most 64 are named, so that users who make many cost
// no memory. Who reads directories needs CAP_DAC_READ_SEARCH to read them all.
func (w *Watcher) Skipped() (named []Skipped, count int) {
	w.skips.mu.Lock()
	defer w.skips.mu.Unlock()
	for dir, err := range w.skips.named {
		named = append(named, Skipped{Cgroup: dir, Err: err})
	}
	slices.SortFunc(named, func(a, b Skipped) int { return cmp.Compare(a.Cgroup, b.Cgroup) })
	return named, len(named) + w.skips.others
}

// Errors returns how often a directory could not be looked at.
func (w *Watcher) Errors() uint64 {
	w.skips.mu.Lock()
	defer w.skips.mu.Unlock()
	return w.skips.errors
}

// ofDirectory reports whether an error is about one directory, and not about all of them as
// when the kernel is out of memory, descriptors or watches.
func ofDirectory(err error) bool {
	for _, errno := range []unix.Errno{unix.EACCES, unix.EPERM, unix.ENAMETOOLONG, unix.ELOOP, unix.ENOTDIR} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
