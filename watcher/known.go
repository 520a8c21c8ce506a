// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"path"
	"slices"
)

// index finds the directories that something is known of by what they are in: it has the
// names in each directory that are known or lead to one that is. So what ends one directory
// costs no look at all others, of which a user may have made thousands.
type index map[string]map[string]struct{}

// add takes a directory in.
func (i index) add(dir string) {
	for dir != "/" {
		parent, name := path.Dir(dir), path.Base(dir)
		if _, there := i[parent][name]; there {
			return
		}
		if i[parent] == nil {
			i[parent] = map[string]struct{}{}
		}
		i[parent][name] = struct{}{}
		dir = parent
	}
}

// remove takes a directory out, and those above that led to it alone. known reports whether
// something is known of a directory.
func (i index) remove(dir string, known func(dir string) bool) {
	for dir != "/" && len(i[dir]) == 0 && !known(dir) {
		parent := path.Dir(dir)
		delete(i[parent], path.Base(dir))
		if len(i[parent]) == 0 {
			delete(i, parent)
		}
		dir = parent
	}
}

// below returns a directory and all in the index that are below it, inner before outer.
func (i index) below(dir string) []string {
	all := []string{dir}
	for n := 0; n < len(all); n++ {
		for name := range i[all[n]] {
			all = append(all, path.Join(all[n], name))
		}
	}
	slices.Reverse(all)
	return all
}
