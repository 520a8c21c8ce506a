// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
)

// ErrTooMany means that a user has more cgroup directories than are watched for one user. What
// is made in the others is found when everything is looked at.
var ErrTooMany = fmt.Errorf("more than %d directories of one user: containers in some are found late", maxUserWatches)

const (
	// maxUserWatches is how many directories of one user are watched. Watches are root's, and
	// those of other programs, too: the kernel gives a uid so many (fs.inotify.max_user_watches,
	// 8,192 before Linux 5.11). A session of systemd has some 20 that can hold containers,
	// Docker without root has a few, and a kubelet one for each pod.
	maxUserWatches = 1024
	// userWatchShare is the part of root's watches that all users together get.
	userWatchShare = 4
)

// shares divide what there is so much of, such as watches, among the owners of directories.
type shares struct {
	most  int // for all users together
	all   int
	users map[uint32]int
}

// watchShares returns the shares of the watches that the kernel gives to root.
func watchShares() shares {
	most := 8192
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_user_watches")
	if n, bad := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && bad == nil {
		most = n
	}
	return shares{most: most / userWatchShare, users: map[uint32]int{}}
}

// room reports whether there is some for one more directory of a user. For root there is.
func (s *shares) room(uid uint32) bool {
	return uid == 0 || s.users[uid] < maxUserWatches && s.all < s.most
}

// count notes that n directories more of a user have theirs.
func (s *shares) count(uid uint32, n int) {
	if uid == 0 {
		return
	}
	s.all += n
	if s.users[uid] += n; s.users[uid] == 0 {
		delete(s.users, uid)
	}
}

// owner is whose a directory is: that of the outermost directory around it that is not root's,
// whoever made those in there.
type owner struct {
	uid uint32
	top string // that outermost directory
}

// ownerOf returns whose a directory is. What can't be looked at is taken for root's.
func (v *visit) ownerOf(dir string) owner {
	if o, known := v.owners[dir]; known {
		return o
	}
	o := owner{}
	if dir != "/" {
		o = v.ownerOf(path.Dir(dir))
	}
	if st, err := v.stat(dir); o.uid == 0 && err == nil && st.Uid != 0 {
		o = owner{st.Uid, dir}
	}
	if v.owners == nil {
		v.owners = map[string]owner{}
	}
	v.owners[dir] = o
	return o
}
