// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"path"
	"strings"
)

// Selection chooses things by globs on their names. The zero Selection chooses
// everything.
//
// A glob is written as for [path.Match] and must match the whole name. Unlike there,
// * and ? match a slash too: /docker/* is everything below /docker, at any depth.
type Selection struct {
	Include []string // empty: everything
	Exclude []string // wins over Include
}

// Match says whether something is chosen that goes by any of these names: one of
// them is included, and none is excluded.
func (s Selection) Match(names ...string) bool {
	return (len(s.Include) == 0 || anyMatch(s.Include, names)) && !anyMatch(s.Exclude, names)
}

func anyMatch(globs, names []string) bool {
	for _, glob := range globs {
		for _, name := range names {
			if match(glob, name) {
				return true
			}
		}
	}
	return false
}

// match hides the slashes from path.Match, which would stop a * at them. NUL
// takes their place because it is in no file name.
func match(glob, name string) bool {
	ok, err := path.Match(strings.ReplaceAll(glob, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00"))
	return ok && err == nil
}
