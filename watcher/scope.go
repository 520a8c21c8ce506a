// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Who made a cgroup decides what its name may claim. A directory in one that is root's was
// made by root, or by a runtime of root's, and its name is believed. Whatever is in a directory
// of a user was named by that user, so its ids are in a scope of their own: the uid.

// ErrSameID means that two directories of one scope claim to be the same container: the second
// is none.
var ErrSameID = errors.New("another directory has the same container id")

// betweenScopeAndID is in no id: see [isContainerd] and the like.
const betweenScopeAndID = "~"

// scoped puts an id into a scope, "" for that of root's runtimes.
func scoped(scope, id string) string {
	if scope == "" {
		return id
	}
	return scope + betweenScopeAndID + id
}

// unscoped returns an id as [Identify] finds it, without the user's scope: "k8s.io~web" of
// "1000~k8s.io~web".
func unscoped(id string) string {
	if _, bare, ok := cutUser(id); ok {
		return bare
	}
	return id
}

// cutUser takes an id in a user's scope apart.
func cutUser(id string) (uid, bare string, ok bool) {
	uid, bare, ok = strings.Cut(id, betweenScopeAndID)
	return uid, bare, ok && uid != "" && strings.Trim(uid, "0123456789") == ""
}

// ofUser says whether a container's id is a user's claim.
func (c Container) ofUser() bool {
	_, _, ok := cutUser(c.ID)
	return ok
}

// claimant returns the uid of the user who named a directory: whose the outermost directory
// around it is that is not root's. Root names what is in root's own directories, unless others
// may write there. The owner of the directory itself says nothing: runtimes give the cgroup of
// a container to the user that is its root.
func (v *visit) claimant(dir string) uint32 {
	above := path.Dir(dir)
	if uid := v.ownerOf(above).uid; uid != 0 {
		return uid
	}
	st, err := v.stat(above)
	if err != nil || st.Mode&(unix.S_IWGRP|unix.S_IWOTH) == 0 {
		return 0
	}
	return v.ownerOf(dir).uid
}
