// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/nettally/nettally/internal/testnet/need"
)

// TestManyDirectoriesOfAUser makes more directories of one user than are watched for one.
// What is in the others is found by walks, and everybody else's by events.
func TestManyDirectoriesOfAUser(t *testing.T) {
	need.Root(t)
	inEachHierarchy(t, func(t *testing.T, root string) {
		const uid = 61_290
		makeDirs(t, root+"/docker", root+"/user", root+"/other")
		check(t, os.Chown(root+"/user", uid, uid))
		check(t, os.Chown(root+"/other", uid+1, uid+1))
		names := make([]string, maxUserWatches+50)
		for i := range names {
			names[i] = fmt.Sprintf("%s/user/%d", root, i)
		}
		makeDirs(t, names...) // of root's, which change nothing about whose they are
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		r.settle(t)
		const roots = 4 // the root, /docker, /other and the one of another user's below
		makeDirs(t, root+"/other/"+"one")
		wantWatches(t, maxUserWatches+roots)
		r.wantSkipped(t, Skipped{"/user", ErrTooMany})

		makeDirs(t, root+"/docker/"+hexID(1))
		if c := next[ContainerStarted](t, r); c.ID != hexID(1) {
			t.Errorf("started %+v", c)
		}
		makeDirs(t, root+"/other/one/"+hexID(2))
		if c := next[ContainerStarted](t, r); c.ID != scoped(fmt.Sprint(uid+1), hexID(2)) {
			t.Errorf("started %+v", c)
		}
		for i, name := range names {
			makeDirs(t, name+"/"+hexID(100+i))
		}
		found, err := r.Containers()
		check(t, err)
		if len(found) != len(names)+2 {
			t.Errorf("%d containers, want %d", len(found), len(names)+2)
		}

		ended := make(chan struct{})
		defer close(ended)
		go func() { // the events that nobody needs
			for {
				select {
				case <-r.events:
				case <-ended:
					return
				}
			}
		}()
		for i, name := range names {
			removeDirs(t, name+"/"+hexID(100+i), name)
		}
		wantWatches(t, roots+1)
		r.wantSkipped(t)
		makeDirs(t, root+"/user/again")
		wantWatches(t, roots+2)
	})
}

// TestAllUsersShareWatches: users together leave root most of the watches.
func TestAllUsersShareWatches(t *testing.T) {
	s := watchShares()
	s.most = 2*maxUserWatches + 1
	for uid := range uint32(4) {
		for s.room(uid) && s.users[uid] < 2*maxUserWatches && uid > 0 {
			s.count(uid, 1)
		}
	}
	if s.users[1] != maxUserWatches || s.users[3] != 1 || s.room(4) || !s.room(0) {
		t.Errorf("watches by user: %v", s.users)
	}
	s.count(1, -maxUserWatches)
	if _, there := s.users[1]; there || !s.room(4) {
		t.Errorf("watches by user: %v", s.users)
	}
}

// TestServicesOfAUser: services that a user made, and removed again, do not keep the watcher
// from remembering those of the host that hold containers.
func TestServicesOfAUser(t *testing.T) {
	need.Root(t)
	root := newCgroup(t, hierarchies(t)["v2"])
	const uid = 61_290
	makeDirs(t, root+"/user")
	check(t, os.Chown(root+"/user", uid, uid))
	tree := newTree(root, kindOf(t, root), nil, newSkips(slog.New(slog.DiscardHandler)))
	const batch = 500
	for from := 0; from <= maxOpened; from += batch {
		for i := range batch {
			makeDirs(t, fmt.Sprintf("%s/user/%d.service/%s", root, from+i, hexID(from+i)))
		}
		check(t, tree.walk())
		for i := range batch {
			service := fmt.Sprintf("%s/user/%d.service", root, from+i)
			removeDirs(t, service+"/"+hexID(from+i), service)
		}
		check(t, tree.walk())
	}
	makeDirs(t, root+"/host.service/"+hexID(1))
	check(t, tree.walk())
	if !tree.leaf("/user") && tree.leaf("/host.service") {
		t.Errorf("a service of the host is not remembered, and %d are", len(tree.opened))
	}
}
