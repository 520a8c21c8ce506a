// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"io/fs"
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
	kind       int64 // of the filesystem that root is on
	patterns   []*regexp.Regexp
	notify     *fsnotify.Watcher  // nil: nothing is watched
	watched    map[string]watched // by path within the hierarchy
	shares     shares             // of the watches
	containers map[string]found   // by path
	ids        map[string]string  // of the containers: their paths
	closed     map[string]*peeked
	opened     map[string]uint32 // by path, its owner; the host's services stay open for when they are started again
	openings   shares            // of those
	index      index             // the directories that one of these has
	skips      *skips
	changes    []Event // not yet delivered
	unwatched  error   // why directories are not watched, of the last walk
}

// watched is a directory that is watched.
type watched struct {
	inode uint64
	uid   uint32 // of its owner, see ownerOf
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

	// maxOpened bounds what the host's services that are gone leave behind. Those of users
	// leave nothing, and while they are there have at most half of it.
	maxOpened = 10_000
)

func newTree(root string, kind int64, patterns []*regexp.Regexp, skips *skips) *tree {
	return &tree{
		root:       root,
		kind:       kind,
		patterns:   patterns,
		skips:      skips,
		watched:    map[string]watched{},
		shares:     watchShares(),
		containers: map[string]found{},
		ids:        map[string]string{},
		closed:     map[string]*peeked{},
		opened:     map[string]uint32{},
		openings:   shares{most: maxOpened / 2, users: map[uint32]int{}},
		index:      index{},
	}
}

// walk visits the whole hierarchy. Directories that can't be looked at are noted, and what
// is known below them stays known. Only an error on the hierarchy's root is returned.
func (t *tree) walk() error {
	if err := t.rooted(); err != nil {
		return err
	}
	t.unwatched = nil
	v := visit{tree: t, deep: true, seen: map[string]bool{}, skipped: map[string]error{}}
	v.directory("/", false)
	t.skips.replace(v.skipped)
	if err := v.skipped["/"]; err != nil && !errors.Is(err, ErrTooDeep) {
		return fmt.Errorf("list cgroup /: %w", err)
	}
	t.prune(v.seen)
	return nil
}

// peek looks for the first container inside each closed directory. A directory has a link
// more for each one right in it, so one look is enough where none has come.
func (t *tree) peek() {
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
		t.visit(dir, true)
	}
}

// examine looks at one directory that an event was about: removed says that the event was
// its end, under this name.
func (t *tree) examine(dir string, removed bool) {
	st, err := t.stat(dir)
	switch {
	case vanished(err), err != nil && removed:
		t.forget(dir)
	case err != nil:
		t.skips.join(map[string]error{path.Dir(dir): cause(err)})
	case t.inode(dir) != st.Ino:
		t.visit(dir, false)
	}
}

// visit looks at a directory and what is below it.
func (t *tree) visit(dir string, deep bool) {
	v := visit{tree: t, deep: deep, skipped: map[string]error{}}
	v.directory(dir, t.leaf(path.Dir(dir)))
	t.skips.join(v.skipped)
}

// list returns the containers by age, root's before those of users, who can set the times of
// theirs.
func (t *tree) list() []Container {
	list := make([]Container, 0, len(t.containers))
	for _, f := range t.containers {
		list = append(list, f.Container)
	}
	slices.SortFunc(list, func(a, b Container) int {
		if a.ofUser() != b.ofUser() {
			if a.ofUser() {
				return 1
			}
			return -1
		}
		if order := a.CreatedAt.Compare(b.CreatedAt); order != 0 {
			return order
		}
		return strings.Compare(a.Cgroup, b.Cgroup)
	})
	return list
}

// inode returns the inode under which a directory is known, 0 if it isn't.
func (t *tree) inode(dir string) uint64 {
	if w, ok := t.watched[dir]; ok {
		return w.inode
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
		if !t.isOpen(c.Cgroup) {
			return true
		}
		around = c.Cgroup
	}
	for ; len(dir) > len(around); dir = path.Dir(dir) {
		if isLeafUnit(path.Base(dir)) && !t.isOpen(dir) {
			return true
		}
	}
	return false
}

func (t *tree) isOpen(dir string) bool {
	_, open := t.opened[dir]
	return open
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

// cause strips an error of what was done to which directory.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// rooted returns nil while the hierarchy is there, else an error that wraps [ErrRootLost]: what
// is not found below a root that is lost has not ended.
func (t *tree) rooted() error {
	kind, err := filesystem(t.root)
	if err != nil {
		return fmt.Errorf("look at cgroup root %s: %w: %w", t.root, ErrRootLost, err)
	}
	if kind != t.kind {
		return fmt.Errorf("look at cgroup root %s: %w", t.root, ErrRootLost)
	}
	return nil
}

// unwatch gives all watches up, since those of a root that is lost are of no use.
func (t *tree) unwatch() {
	if t.notify != nil {
		_ = t.notify.Close()
		t.notify = nil
	}
	for dir := range t.watched {
		delete(t.watched, dir)
		t.index.remove(dir, t.knows)
	}
	t.shares = watchShares()
}

func (t *tree) path(dir string) string { return filepath.Join(t.root, dir) }

func (t *tree) stat(dir string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Stat(t.path(dir), &st); err != nil {
		return st, fmt.Errorf("look at cgroup %q: %w", dir, err)
	}
	return st, nil
}

// vanished says whether an error means that a directory was removed. Reading
// one that goes away meanwhile gives ENODEV.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// close has a directory peeked into.
func (t *tree) close(dir string, inode uint64) {
	if p := t.closed[dir]; p == nil || p.inode != inode {
		t.closed[dir] = &peeked{inode: inode}
		t.index.add(dir)
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

// forget drops a directory that is gone, or has another one in its place, and what was known
// below: all but what the kernel says is there, since that is known of the other one. Kernels
// before 2026 keep the watch of a removed cgroup, without an event, until it is removed by hand.
func (t *tree) forget(dir string) {
	t.drop(t.index.below(dir), func(d string, inode uint64) bool {
		st, err := t.stat(d)
		return err != nil || st.Ino != inode
	})
}

// prune drops what a walk has not seen and is gone. What it could not see may still be
// there: the kernel is asked about each.
func (t *tree) prune(seen map[string]bool) {
	t.drop(t.index.below("/"), func(d string, inode uint64) bool {
		if seen[d] {
			return false
		}
		st, err := t.stat(d)
		return vanished(err) || (err == nil && inode != 0 && st.Ino != inode)
	})
}

// drop forgets those of some directories, inner before outer, that are gone by path and inode;
// 0 stands for any. The root is looked at after them: with it all would seem to be gone.
func (t *tree) drop(dirs []string, gone func(dir string, inode uint64) bool) {
	lost := func(dir string, inode uint64) bool { return gone(dir, inode) && t.rooted() == nil }
	for _, d := range dirs {
		if w, ok := t.watched[d]; ok && lost(d, w.inode) {
			delete(t.watched, d)
			t.shares.count(w.uid, -1)
			_ = t.notify.Remove(t.path(d)) // fails where the kernel was first
		}
		if p := t.closed[d]; p != nil && lost(d, p.inode) {
			delete(t.closed, d)
		}
		if uid, ok := t.opened[d]; ok && (uid != 0 || path.Ext(d) != ".service") && lost(d, 0) {
			delete(t.opened, d)
			t.openings.count(uid, -1)
		}
		if f, ok := t.containers[d]; ok && lost(d, f.inode) {
			t.changes = append(t.changes, ContainerStopped{ID: f.ID, Cgroup: d})
			delete(t.containers, d)
			delete(t.ids, f.ID)
		}
		t.index.remove(d, t.knows)
	}
}

// knows reports whether something is known of a directory.
func (t *tree) knows(dir string) bool {
	_, watched := t.watched[dir]
	_, container := t.containers[dir]
	return watched || container || t.isOpen(dir) || t.closed[dir] != nil
}
