// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// Where the hierarchy is unmounted no container has ended. It is said, and all goes on once it
// is mounted again.
func TestRootLost(t *testing.T) {
	need.Root(t)
	if !inChild(t, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}) {
		return
	}
	for name, hierarchy := range hierarchies(t) {
		t.Run(name, func(t *testing.T) { loseRoot(t, newCgroup(t, hierarchy)) })
	}
}

func loseRoot(t *testing.T, cgroup string) {
	root := t.TempDir()
	mount := func() {
		if err := unix.Mount(cgroup, root, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	defer func() { _ = unix.Unmount(root, unix.MNT_DETACH) }()
	r := run(t, Options{CgroupRoot: root})
	r.settle(t)
	makeDirs(t, cgroup+"/docker/"+idA, cgroup+"/docker/"+idB)
	next[ContainerStarted](t, r)
	next[ContainerStarted](t, r)

	for range 2 {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		list, err := r.Containers()
		if !errors.Is(err, ErrRootLost) || len(list) != 2 {
			t.Errorf("listed %+v, error %v", list, err)
		}
		for _, c := range list {
			if !r.Missed(c.ID, c.Cgroup) {
				t.Errorf("%s is said to be gone", c.ID)
			}
		}
		if err := r.Degraded(); !errors.Is(err, ErrRootLost) {
			t.Errorf("degraded: %v", err)
		}
		mount()
		eventually(t, r.Degraded)
	}

	// It is noticed without being asked. What ends and begins meanwhile is found afterwards.
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !errors.Is(r.Degraded(), ErrRootLost) {
			return errors.New("not said to be lost")
		}
		return nil
	})
	removeDirs(t, cgroup+"/docker/"+idB)
	makeDirs(t, cgroup+"/docker/"+hexID(1))
	mount()
	ended, began := "", ""
	for ended == "" || began == "" {
		switch e := (<-r.events).(type) {
		case ContainerStopped:
			ended += e.ID
		case ContainerStarted:
			began += e.ID
		}
	}
	if ended != idB || began != hexID(1) {
		t.Errorf("ended: %s, began: %s", ended, began)
	}
	// It is watched again.
	removeDirs(t, cgroup+"/docker/"+idA)
	if e := next[ContainerStopped](t, r); e.ID != idA {
		t.Errorf("ended: %+v", e)
	}
	if err := os.Mkdir(cgroup+"/docker/"+idA, 0o755); err != nil {
		t.Fatal(err)
	}
	if e := next[ContainerStarted](t, r); e.ID != idA {
		t.Errorf("began: %+v", e)
	}
}
