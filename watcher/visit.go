// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// visit is one pass over a part of the hierarchy. Users make directories: what goes wrong
// with one of them costs what is below that one only.
type visit struct {
	*tree
	deep    bool             // look into closed directories, too
	seen    map[string]bool  // if not nil, the directories that exist
	skipped map[string]error // directories of which some below could not be looked at
	owners  map[string]owner // of the directories that were asked for
}

// directory visits a directory and what is below it; leaf says that it is inside
// a closed one. It reports whether the directory is a container's.
func (v *visit) directory(dir string, leaf bool) bool {
	st, err := v.stat(dir)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		v.skip(path.Dir(dir), err) // it may not be searched, or its path is too long for more
		return false
	}
	if known := v.inode(dir); known != 0 && known != st.Ino {
		v.forget(dir)
	}
	if v.seen != nil {
		v.seen[dir] = true
	}
	c, err := identify(dir, v.patterns)
	v.skip(dir, err)
	container := c.ID != "" && c.Cgroup == dir
	if container {
		v.meet(c, st)
	}
	inside := leaf
	switch {
	case container:
		leaf = !v.isOpen(dir)
	case !inside:
		leaf = isLeafUnit(path.Base(dir)) && !v.isOpen(dir)
	}
	closed := leaf && (container || !inside)
	if closed {
		v.close(dir, st.Ino)
	}
	if depth(dir) >= MaxDepth {
		if st.Nlink > 2 {
			v.skip(dir, ErrTooDeep)
		}
		return container
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
	if closed && v.isOpen(dir) {
		v.watch(dir, st.Ino)
		v.children(dir, false)
	}
	return container
}

// children visits the directories in dir and says whether one is a container's.
func (v *visit) children(dir string, leaf bool) bool {
	entries, err := os.ReadDir(v.path(dir))
	v.skip(dir, err)
	holds := false
	for _, e := range entries {
		if e.IsDir() && v.directory(path.Join(dir, e.Name()), leaf) {
			holds = true
		}
	}
	return holds
}

// watch starts to watch a directory. It says whether that is new, in which case
// the directory has to be listed again. The inode was read before: should another
// directory have taken the name since, its event will show the difference.
func (v *visit) watch(dir string, inode uint64) bool {
	if _, ok := v.watched[dir]; ok || v.notify == nil {
		return false
	}
	owner := v.ownerOf(dir)
	if !v.shares.room(owner.uid) {
		v.skip(owner.top, ErrTooMany)
		return false
	}
	err := v.notify.Add(v.path(dir))
	switch {
	case err == nil:
		v.watched[dir] = watched{inode, owner.uid}
		v.shares.count(owner.uid, 1)
		v.index.add(dir)
	case ofDirectory(err):
		v.skip(dir, err)
	case !vanished(err) && v.unwatched == nil:
		v.unwatched = fmt.Errorf("watch cgroup %q: %w", dir, err)
	}
	return err == nil
}

// skip notes that not all below a directory could be looked at; nil and what is gone are
// nothing to note.
func (v *visit) skip(dir string, err error) {
	if err != nil && !vanished(err) {
		v.skipped[dir] = cause(err)
	}
}

// meet takes note of a container.
func (v *visit) meet(c Container, st unix.Stat_t) {
	if _, known := v.containers[c.Cgroup]; known {
		return
	}
	c.CreatedAt = createdAt(st)
	c.ParentID = v.around(c)
	if uid := v.claimant(c.Cgroup); uid != 0 {
		c.ID = scoped(strconv.FormatUint(uint64(uid), 10), c.ID)
	}
	if first, taken := v.ids[c.ID]; taken {
		v.forget(first) // if it has gone meanwhile
	}
	if first, taken := v.ids[c.ID]; taken {
		v.skip(c.Cgroup, fmt.Errorf("%w: %q", ErrSameID, first))
		return
	}
	v.ids[c.ID] = c.Cgroup
	v.containers[c.Cgroup] = found{Container: c, inode: st.Ino}
	v.index.add(c.Cgroup)
	v.changes = append(v.changes, ContainerStarted{c})
	for dir := path.Dir(c.Cgroup); dir != "/"; dir = path.Dir(dir) {
		if _, container := v.containers[dir]; container || isLeafUnit(path.Base(dir)) {
			v.open(dir)
		}
	}
}

// around returns the id of the container that a container is in, "" if that is in none.
func (v *visit) around(c Container) string {
	if c.ParentID == "" {
		return ""
	}
	for dir := path.Dir(c.Cgroup); dir != "/"; dir = path.Dir(dir) {
		if f, known := v.containers[dir]; known {
			return f.ID
		}
	}
	return c.ParentID
}

// open makes a directory one that is watched like those that were never closed, once it is
// visited.
func (v *visit) open(dir string) {
	delete(v.closed, dir)
	if v.isOpen(dir) {
		return
	}
	if uid := v.ownerOf(dir).uid; v.openings.room(uid) && len(v.opened) < maxOpened {
		v.opened[dir] = uid
		v.openings.count(uid, 1)
		v.index.add(dir)
	}
}

// depth is the level of a directory, 1 right below the root.
func depth(dir string) int { return strings.Count(strings.TrimSuffix(dir, "/"), "/") }
