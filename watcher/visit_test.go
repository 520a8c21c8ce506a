// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// makeDeep makes directories in one another, as deep as a path can't name. It returns the
// names' path.
func makeDeep(t *testing.T, dir, name string, levels int) string {
	t.Helper()
	need.Commands(t, "find")
	t.Cleanup(func() { removeDeep(t, dir+"/"+name) })
	at, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err)
	for range levels {
		check(t, unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Close(at))
		at = next
	}
	check(t, unix.Close(at))
	return dir + strings.Repeat("/"+name, levels)
}

// removeDeep removes directories whose path may be longer than the kernel takes.
func removeDeep(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return
	}
	if out, err := exec.Command("find", dir, "-depth", "-type", "d", "-delete").CombinedOutput(); err != nil {
		t.Errorf("remove %s: %v: %s", dir, err, out)
	}
}

// wantSkipped walks, and expects directories to be skipped.
func (r *running) wantSkipped(t *testing.T, want ...Skipped) {
	t.Helper()
	if _, err := r.Containers(); err != nil {
		t.Errorf("list containers: %v", err)
	}
	named, count := r.Skipped()
	if len(named) != len(want) || count != len(want) {
		t.Errorf("skipped %d: %v, want %v", count, named, want)
		return
	}
	for i, w := range want {
		if named[i].Cgroup != w.Cgroup || !errors.Is(named[i].Err, w.Err) {
			t.Errorf("skipped %+v, want %+v", named[i], w)
		}
	}
}

// A tenant names directories like containers, and puts into the name what others would read.
// Those are none, they are said, and what is below them and beside them is found.
func TestNamesWithoutID(t *testing.T) {
	need.Root(t)
	for name, hierarchy := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			root := newCgroup(t, hierarchy)
			const escape, job = "/lxc.payload.a\x1b[31m\u202e", "/jobs/a b"
			makeDirs(t, root+escape+"/docker/"+idA, root+"/lxc.payload.good", root+"/jobs/b")
			r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD(), Patterns: []string{`^/jobs/(?P<id>[^/]+)$`}})
			var found []string
			for range 3 {
				found = append(found, next[ContainerStarted](t, r).ID)
			}
			if slices.Sort(found); !slices.Equal(found, []string{idA, "b", "good"}) {
				t.Errorf("started %q", found)
			}
			r.settle(t)
			r.wantSkipped(t, Skipped{escape, ErrNoID})
			makeDirs(t, root+job)
			eventually(t, func() error { // by its event, too
				if named, _ := r.Skipped(); len(named) != 2 || named[0].Cgroup != job {
					return fmt.Errorf("skipped %v", named)
				}
				return nil
			})
			r.wantSkipped(t, Skipped{job, ErrNoID}, Skipped{escape, ErrNoID})
			check(t, os.Remove(root+job))
			r.wantSkipped(t, Skipped{escape, ErrNoID})
			r.worksOn(t, root, 20)
		})
	}
}

// worksOn expects that containers elsewhere are found by events and by walks, when they
// begin and when they end.
func (r *running) worksOn(t *testing.T, root string, number int) {
	t.Helper()
	if err := r.Degraded(); err != nil {
		t.Errorf("degraded: %v", err)
	}
	alone := newTree(root, kindOf(t, root), nil, newSkips(slog.New(slog.DiscardHandler)))
	one := "/docker/" + hexID(number)
	makeDirs(t, root+one)
	if c := next[ContainerStarted](t, r); unscoped(c.ID) != hexID(number) {
		t.Errorf("started %+v", c)
	}
	check(t, alone.walk())
	if _, known := alone.containers[one]; !known {
		t.Error("a walk does not find a new container")
	}
	removeDirs(t, root+one)
	if c := next[ContainerStopped](t, r); unscoped(c.ID) != hexID(number) {
		t.Errorf("stopped %+v", c)
	}
	check(t, alone.walk())
	if _, known := alone.containers[one]; known {
		t.Error("a walk does not notice that a container has gone")
	}
}

// TestNamesTooLong has directories whose path the kernel does not take, before the watch
// begins and made while it runs.
func TestNamesTooLong(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		name := strings.Repeat("n", 240)
		makeDirs(t, root+"/docker/"+idA, root+"/user/late")
		makeDeep(t, root+"/user", name, 18)
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		if c := next[ContainerStarted](t, r); c.ID != idA {
			t.Errorf("started %+v", c)
		}
		r.settle(t)
		fits := (unix.PathMax - 1 - len(root+"/user")) / 241
		skipped := Skipped{"/user" + strings.Repeat("/"+name, fits), unix.ENAMETOOLONG}
		r.wantSkipped(t, skipped)
		r.worksOn(t, root, 1)

		makeDeep(t, root+"/user/late", name, 18)
		fits = (unix.PathMax - 1 - len(root+"/user/late")) / 241
		late := Skipped{"/user/late" + strings.Repeat("/"+name, fits), unix.ENAMETOOLONG}
		r.wantSkipped(t, late, skipped)
		r.worksOn(t, root, 2)

		removeDeep(t, root+"/user/late/"+name)
		removeDeep(t, root+"/user/"+name)
		r.wantSkipped(t)
		r.worksOn(t, root, 3)
		if r.Errors() == 0 {
			t.Error("no error is counted")
		}
	})
}

// TestTooDeep has containers at the last level that is looked at, and below it.
func TestTooDeep(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/docker/"+idA)
		last := makeDeep(t, root, "d", MaxDepth-1)
		makeDirs(t, last+"/"+idB, last+"/e/"+hexID(9)+"/f")
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		next[ContainerStarted](t, r)
		next[ContainerStarted](t, r)
		r.settle(t)
		deep := strings.TrimPrefix(last, root)
		r.wantSkipped(t, Skipped{deep + "/e", ErrTooDeep})
		list, err := r.Containers()
		check(t, err)
		var found []string
		for _, c := range list {
			found = append(found, c.ID)
		}
		if len(found) != 2 || !strings.Contains(fmt.Sprint(found), idB) {
			t.Errorf("containers %v, want the one at level %d and none below", found, MaxDepth)
		}
		wantWatches(t, 2+MaxDepth-1) // none at the last level
		r.worksOn(t, root, 1)

		makeDirs(t, last+"/late/below") // only the first one is an event
		r.worksOn(t, root, 2)
		r.wantSkipped(t, Skipped{deep + "/e", ErrTooDeep}, Skipped{deep + "/late", ErrTooDeep})
		removeDirs(t, last+"/late/below", last+"/e/"+hexID(9)+"/f", last+"/e/"+hexID(9))
		r.wantSkipped(t)
	})
}

// stranger owns directories that he closes to others.
const stranger = 61_200

// as runs a command of the stranger.
func as(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// ownRoots names the variable with the cgroups that a test's child process works in.
const ownRoots = "NETTALLY_TEST_ROOTS"

// TestUnreadable runs without the capabilities that open every directory.
func TestUnreadable(t *testing.T) {
	need.Root(t)
	need.Commands(t, "setpriv", "find")
	if os.Getenv(ownRoots) == "" {
		var roots []string
		for _, hierarchy := range hierarchies(t) {
			roots = append(roots, newCgroup(t, hierarchy))
		}
		t.Setenv(ownRoots, strings.Join(roots, ":"))
	}
	if !inChild(t, nil, "setpriv", "--bounding-set=-dac_override,-dac_read_search", "--") {
		return
	}
	for _, mode := range []string{"700", "704", "701"} { // closed; can't be searched; can't be listed
		for i, root := range strings.Split(os.Getenv(ownRoots), ":") {
			t.Run(fmt.Sprint(mode, " ", i), func(t *testing.T) {
				makeDirs(t, root+"/"+mode)
				unreadable(t, root+"/"+mode, mode)
			})
		}
	}
}

func unreadable(t *testing.T, root, mode string) {
	private, later := root+"/user/private", root+"/user/later"
	makeDirs(t, root+"/docker/"+idA, private, later)
	for _, dir := range []string{private, later} {
		check(t, os.Chown(dir, stranger, stranger))
	}
	as(t, "mkdir", "-p", private+"/own/"+idB, later+"/own/"+hexID(1), later+"/own/"+hexID(2))
	t.Cleanup(func() {
		as(t, "chmod", "755", private, later)
		as(t, "find", private+"/own", later+"/own", "-depth", "-type", "d", "-delete")
	})
	as(t, "chmod", mode, private)

	r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
	for range 3 {
		if c := next[ContainerStarted](t, r); unscoped(c.ID) == idB {
			t.Errorf("started %+v", c)
		}
	}
	r.settle(t)
	r.wantSkipped(t, Skipped{"/user/private", unix.EACCES})
	r.worksOn(t, root, 10)

	// What is known stays known, until the kernel says that it has gone.
	as(t, "chmod", mode, later)
	r.wantSkipped(t, Skipped{"/user/later", unix.EACCES}, Skipped{"/user/private", unix.EACCES})
	r.worksOn(t, root, 11) // nothing else stops
	as(t, "chmod", "755", later)
	as(t, "sh", "-c", "cd "+later+"/own && chmod "+mode+" .. && rmdir "+hexID(1))
	if c := next[ContainerStopped](t, r); unscoped(c.ID) != hexID(1) {
		t.Errorf("stopped %+v", c)
	}
	for id, missed := range map[string]bool{hexID(2): true, hexID(1): mode == "700" || mode == "704"} {
		if got := r.Missed(id, "/user/later/own/"+id); got != missed {
			t.Errorf("container %s missed: %v", id, got)
		}
	}
	if r.Missed(hexID(3), "/docker/"+hexID(3)) || r.Missed(hexID(3), "/user/later/own/"+hexID(2)) || r.Missed("", "") {
		t.Error("a container is missed that has gone, or is another one")
	}

	as(t, "chmod", "755", private, later)
	r.wantSkipped(t)
	if c := next[ContainerStarted](t, r); unscoped(c.ID) != idB {
		t.Errorf("started %+v", c)
	}
	list, err := r.Containers()
	check(t, err)
	if len(list) != 3 {
		t.Errorf("containers %v, want 3", list)
	}
	r.worksOn(t, root, 12)
}
