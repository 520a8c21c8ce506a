// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"maps"

	"github.com/nettally/nettally/watcher"
)

// list are the containers of the host at some moment of a listing.
type list struct {
	found []watcher.Container
	err   error
}

// listing goes on beside the roster's goroutine: with a million directories it takes seconds,
// in which events are dealt with. What they say is newer than the list.
type listing struct {
	came  map[Key]bool    // members since it began
	gone  map[string]bool // cgroups of those that have gone since
	again bool            // something was lost meanwhile
}

func (r *Roster[F]) list() list {
	found, err := r.Containers()
	return list{found, err}
}

// startListing has the containers listed, and then everything looked at.
func (r *Roster[F]) startListing() {
	if r.listing != nil {
		r.listing.again = true
		return
	}
	r.listing = &listing{came: map[Key]bool{}, gone: map[string]bool{}}
	r.lists.Go(func() { r.listed <- r.list() })
}

// relist brings the members up to date with a list. After an error nothing that is missing in
// it is taken for gone. It reports whether there was none.
func (r *Roster[F]) relist(l list) bool {
	meanwhile := r.listing
	r.listing = nil
	if meanwhile == nil {
		meanwhile = &listing{} // nothing has happened yet
	}
	if meanwhile.again {
		r.startListing()
	}
	if l.err != nil {
		r.Log.Warn("could not list containers", "err", l.err)
		return false
	}
	there := make(map[string]bool, len(l.found)) // by cgroup, since two may have the same id
	found := make(map[Key]bool, len(l.found))
	for _, c := range l.found {
		there[c.Cgroup] = true
		found[Key{ID: c.ID}] = true
	}
	maps.DeleteFunc(r.excluded, func(key Key, _ bool) bool { return !found[key] })
	for key, m := range r.members {
		switch {
		case !there[m.Found.Cgroup] && !meanwhile.came[key]:
			r.stopped(m)
		case !r.Settings().Container(m.Found):
			r.exclude(m)
		}
	}
	for _, c := range l.found {
		if !meanwhile.gone[c.Cgroup] {
			r.started(c)
		}
	}
	r.stopUnseen()
	r.complete()
	return true
}
