// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// tree is what is known of the hierarchy: the containers in it and the
// directories that are watched. Whatever an event or a walk says is checked
// against the directory itself, so both may come late, twice or not at all.
//
// Containers, and systemd's leaf units (.service, .scope, .mount, .swap, .socket,
// but not a user's service manager, user@UID.service), are closed: hardly any
// holds a container. Watched is
//   - every directory that is not in a closed one;
//   - every directory that holds a container, wherever it is.
//
// So 1,000 containers of Docker cost one watch, and Kubernetes one for each pod.
// The first container inside a closed directory is found by the next peek, if a
// directory right below it is new, and else by the next walk. From then on it is
// open, and what is in it is watched like the rest.
type tree struct {
	root       string
	patterns   []*regexp.Regexp
	notify     *fsnotify.Watcher // nil: nothing is watched
	watched    map[string]uint64 // path within the hierarchy → inode
	containers map[string]found  // the same
	closed     map[string]*peeked
	opened     map[string]bool // a service stays open for when it is started again
	changes    []Event         // not yet delivered
	unwatched  error           // why a directory is not watched, of the last walk
}

type found struct {
	Container
	inode uint64
}

// peeked is a closed directory.
type peeked struct {
	inode uint64
	links uint64 // at the last peek
	since int    // peeks, as many links ago
}

const (
	// newPeeks is how many peeks go into a directory that has as many links as at the last
	// one: what was made in it may not have been there for the first.
	newPeeks = 2

	// maxOpened bounds what services that are gone leave behind.
	maxOpened = 10_000
)

func newTree(root string, patterns []*regexp.Regexp) *tree {
	return &tree{
		root:       root,
		patterns:   patterns,
		watched:    map[string]uint64{},
		containers: map[string]found{},
		closed:     map[string]*peeked{},
		opened:     map[string]bool{},
	}
}

// walk visits the whole hierarchy. After an error what is missing may still
// exist, so nothing is forgotten.
func (t *tree) walk() error {
	if _, err := t.stat("/"); err != nil {
		return err
	}
	t.unwatched = nil
	v := visit{tree: t, deep: true, seen: map[string]bool{}}
	v.directory("/", false)
	if v.err != nil {
		return v.err
	}
	for _, known := range []iter.Seq[string]{maps.Keys(t.watched), maps.Keys(t.containers), maps.Keys(t.closed)} {
		for dir := range known {
			if !v.seen[dir] {
				t.forget(dir)
			}
		}
	}
	return nil
}

// peek looks for the first container inside each closed directory. A directory has a link
// more for each one right in it, so one look is enough where none has come.
func (t *tree) peek() error {
	var failed error
	for dir, p := range t.closed {
		st, err := t.stat(dir)
		if err != nil || st.Ino != p.inode {
			continue // an event will tell, or the next walk
		}
		if links := uint64(st.Nlink); p.links != links {
			p.links, p.since = links, 0
		}
		if p.since++; p.links == 2 || p.since > newPeeks {
			continue
		}
		v := visit{tree: t, deep: true}
		v.directory(dir, t.leaf(path.Dir(dir)))
		failed = cmp.Or(failed, v.err)
	}
	return failed
}

// examine looks at one directory that an event was about.
func (t *tree) examine(dir string) error {
	st, err := t.stat(dir)
	if vanished(err) {
		t.forget(dir)
		return nil
	}
	if err != nil {
		return err
	}
	if t.inode(dir) == st.Ino {
		return nil
	}
	v := visit{tree: t}
	v.directory(dir, t.leaf(path.Dir(dir)))
	return v.err
}

// list returns the containers by age.
func (t *tree) list() []Container {
	list := make([]Container, 0, len(t.containers))
	for _, f := range t.containers {
		list = append(list, f.Container)
	}
	slices.SortFunc(list, func(a, b Container) int {
		if order := a.CreatedAt.Compare(b.CreatedAt); order != 0 {
			return order
		}
		return strings.Compare(a.Cgroup, b.Cgroup)
	})
	return list
}

// inode returns the inode under which a directory is known, 0 if it isn't.
func (t *tree) inode(dir string) uint64 {
	if inode, ok := t.watched[dir]; ok {
		return inode
	}
	if p := t.closed[dir]; p != nil {
		return p.inode
	}
	return t.containers[dir].inode
}

// leaf says whether a directory is, or is inside of, a closed one.
func (t *tree) leaf(dir string) bool {
	around := "/"
	if c, ok := Identify(dir, t.patterns); ok {
		if !t.opened[c.Cgroup] {
			return true
		}
		around = c.Cgroup
	}
	for ; len(dir) > len(around); dir = path.Dir(dir) {
		if isLeafUnit(path.Base(dir)) && !t.opened[dir] {
			return true
		}
	}
	return false
}

func isLeafUnit(name string) bool {
	if strings.HasPrefix(name, "user@") {
		return false // a service manager, with units of its own
	}
	switch path.Ext(name) {
	case ".service", ".scope", ".mount", ".swap", ".socket":
		return true
	}
	return false
}

func (t *tree) path(dir string) string { return filepath.Join(t.root, dir) }

func (t *tree) stat(dir string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Stat(t.path(dir), &st); err != nil {
		return st, fmt.Errorf("look at cgroup %s: %w", dir, err)
	}
	return st, nil
}

// vanished says whether an error means that a directory was removed. Reading
// one that goes away meanwhile gives ENODEV.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// meet takes note of a container.
func (t *tree) meet(c Container, st unix.Stat_t) {
	if _, known := t.containers[c.Cgroup]; known {
		return
	}
	c.CreatedAt = createdAt(st)
	t.containers[c.Cgroup] = found{Container: c, inode: st.Ino}
	t.changes = append(t.changes, ContainerStarted{c})
	for dir := path.Dir(c.Cgroup); dir != "/"; dir = path.Dir(dir) {
		if _, container := t.containers[dir]; container || isLeafUnit(path.Base(dir)) {
			t.open(dir)
		}
	}
}

// open has a directory watched like those that were never closed, once it is visited.
func (t *tree) open(dir string) {
	delete(t.closed, dir)
	if len(t.opened) < maxOpened {
		t.opened[dir] = true
	}
}

// close has a directory peeked into.
func (t *tree) close(dir string, inode uint64) {
	if p := t.closed[dir]; p == nil || p.inode != inode {
		t.closed[dir] = &peeked{inode: inode}
	}
}

// createdAt is the earliest time of a directory. There is no birth time on
// cgroupfs, and a child or a read moves one or another of these.
func createdAt(st unix.Stat_t) time.Time {
	first := time.Unix(st.Mtim.Unix())
	for _, ts := range []unix.Timespec{st.Ctim, st.Atim} {
		if t := time.Unix(ts.Unix()); t.Before(first) {
			first = t
		}
	}
	return first
}

// watch starts to watch a directory. It says whether that is new, in which case
// the directory has to be listed again. The inode was read before: should another
// directory have taken the name since, its event will show the difference.
func (t *tree) watch(dir string, inode uint64) bool {
	if _, ok := t.watched[dir]; ok || t.notify == nil {
		return false
	}
	if err := t.notify.Add(t.path(dir)); err != nil {
		if !vanished(err) && t.unwatched == nil {
			t.unwatched = fmt.Errorf("watch cgroup %s: %w", dir, err)
		}
		return false
	}
	t.watched[dir] = inode
	return true
}

// forget drops what is no longer there of a directory and all below it. Kernels
// before 2026 keep the watch of a removed cgroup, without an event, until it is
// removed by hand.
func (t *tree) forget(dir string) {
	below := strings.TrimSuffix(dir, "/") + "/"
	lost := func(d string, inode uint64) bool {
		if d != dir && !strings.HasPrefix(d, below) {
			return false
		}
		st, err := t.stat(d)
		return vanished(err) || (err == nil && st.Ino != inode)
	}
	for d, inode := range t.watched {
		if lost(d, inode) {
			delete(t.watched, d)
			_ = t.notify.Remove(t.path(d)) // fails where the kernel was first
		}
	}
	for d, p := range t.closed {
		if lost(d, p.inode) {
			delete(t.closed, d)
		}
	}
	for d := range t.opened {
		if (d == dir || strings.HasPrefix(d, below)) && path.Ext(d) != ".service" {
			delete(t.opened, d)
		}
	}
	var gone []string
	for d, f := range t.containers {
		if lost(d, f.inode) {
			gone = append(gone, d)
		}
	}
	slices.SortFunc(gone, func(a, b string) int { return strings.Compare(b, a) }) // inner before outer
	for _, d := range gone {
		t.changes = append(t.changes, ContainerStopped{ID: t.containers[d].ID, Cgroup: d})
		delete(t.containers, d)
	}
}

// visit is one pass over a part of the hierarchy.
type visit struct {
	*tree
	deep bool            // look into closed directories, too
	seen map[string]bool // if not nil, the directories that exist
	err  error           // the first
}

// directory visits a directory and what is below it; leaf says that it is inside
// a closed one. It reports whether the directory is a container's.
func (v *visit) directory(dir string, leaf bool) bool {
	st, err := v.stat(dir)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		v.fail(err)
		return false
	}
	if known := v.inode(dir); known != 0 && known != st.Ino {
		v.forget(dir)
	}
	if v.seen != nil {
		v.seen[dir] = true
	}
	c, ok := Identify(dir, v.patterns)
	container := ok && c.Cgroup == dir
	if container {
		v.meet(c, st)
	}
	inside := leaf
	switch {
	case container:
		leaf = !v.opened[dir]
	case !inside:
		leaf = isLeafUnit(path.Base(dir)) && !v.opened[dir]
	}
	closed := leaf && (container || !inside)
	if closed {
		v.close(dir, st.Ino)
	}
	fresh := !leaf && v.watch(dir, st.Ino)
	// A directory with two links has no directories in it; a new watch may have
	// come after one was made.
	if (leaf && !v.deep) || (!fresh && st.Nlink == 2) {
		return container
	}
	if v.children(dir, leaf) && v.watch(dir, st.Ino) {
		v.children(dir, leaf)
	}
	if closed && v.opened[dir] {
		v.watch(dir, st.Ino)
		v.children(dir, false)
	}
	return container
}

// children visits the directories in dir and says whether one is a container's.
func (v *visit) children(dir string, leaf bool) bool {
	entries, err := os.ReadDir(v.path(dir))
	v.fail(err)
	holds := false
	for _, e := range entries {
		if e.IsDir() && v.directory(path.Join(dir, e.Name()), leaf) {
			holds = true
		}
	}
	return holds
}

func (v *visit) fail(err error) {
	if v.err == nil && err != nil && !vanished(err) {
		v.err = err
	}
}
