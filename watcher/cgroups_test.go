// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
)

// inEachHierarchy runs a test in an own cgroup of a v1 hierarchy and of cgroup2.
func inEachHierarchy(t *testing.T, f func(t *testing.T, root string)) {
	need.Root(t)
	for name, hierarchy := range hierarchies(t) {
		t.Run(name, func(t *testing.T) { f(t, newCgroup(t, hierarchy)) })
	}
}

// watch runs a watcher on a cgroup, with a network of its own.
func watch(t *testing.T, root string) *running {
	t.Helper()
	r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
	r.settle(t)
	return r
}

func removeDirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func hexID(i int) string { return fmt.Sprintf("%064x", i) }

func TestContainerEvents(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		before := time.Now().Add(-time.Second) // kernel time is coarse
		old := "/docker/" + idA
		makeDirs(t, root+old)
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		c := next[ContainerStarted](t, r)
		if c.CreatedAt.Before(before) || c.CreatedAt.After(time.Now().Add(time.Second)) {
			t.Errorf("created at %v, it is %v", c.CreatedAt, time.Now())
		}
		c.CreatedAt = time.Time{}
		if diff := cmp.Diff(Container{ID: idA, Runtime: "docker", Cgroup: old}, c.Container); diff != "" {
			t.Errorf("at the start (-want +got):\n%s", diff)
		}

		makeDirs(t, root+"/docker/"+idB)
		if c := next[ContainerStarted](t, r); c.ID != idB {
			t.Errorf("started %+v", c)
		}
		removeDirs(t, root+old)
		if diff := cmp.Diff(ContainerStopped{ID: idA, Cgroup: old}, next[ContainerStopped](t, r)); diff != "" {
			t.Errorf("stopped (-want +got):\n%s", diff)
		}

		// The same container again, as docker restart has it.
		makeDirs(t, root+old)
		if c := next[ContainerStarted](t, r); c.ID != idA {
			t.Errorf("started again %+v", c)
		}
		if err := r.Degraded(); err != nil {
			t.Errorf("degraded: %v", err)
		}
	})
}

// TestNewBranches makes whole paths at once: the inner directories may exist
// before the outer one is watched.
func TestNewBranches(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		r := watch(t, root)
		for i := range 200 {
			dir := fmt.Sprintf("%s/parent-%d/a/b", root, i)
			makeDirs(t, dir+"/"+hexID(i))
			if c := next[ContainerStarted](t, r); c.ID != hexID(i) {
				t.Fatalf("started %+v", c)
			}
			removeDirs(t, dir+"/"+hexID(i), dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir)))
			if c := next[ContainerStopped](t, r); c.ID != hexID(i) {
				t.Fatalf("stopped %+v", c)
			}
		}
	})
}

// TestWatchesAreFew churns 1,000 containers of Docker and 100 pods.
func TestWatchesAreFew(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/docker", root+"/kubepods/burstable", root+"/system.slice")
		r := watch(t, root)
		atFirst := inotifyWatches(t)
		if atFirst != 5 {
			t.Errorf("%d watches on 5 directories", atFirst)
		}
		var dirs []string
		for i := range 1000 {
			dirs = append(dirs, root+"/docker/"+hexID(i))
		}
		for i := range 100 {
			pod := fmt.Sprintf("%s/kubepods/burstable/pod%08x-0000-0000-0000-000000000000", root, i)
			makeDirs(t, pod)
			dirs = append(dirs, pod+"/"+hexID(2000+i))
			makeDirs(t, fmt.Sprintf("%s/system.slice/s%d.service", root, i))
		}
		go func() {
			for _, d := range dirs {
				_ = os.Mkdir(d, 0o755) // missing ones are missed below
			}
		}()
		for range dirs {
			next[ContainerStarted](t, r)
		}
		if n := inotifyWatches(t) - atFirst; n != 100 {
			t.Errorf("%d more watches for 1000 containers and 100 pods, want 100", n)
		}
		go func() {
			for _, d := range dirs {
				_ = os.Remove(d)
				if pod := filepath.Dir(d); strings.HasPrefix(filepath.Base(pod), "pod") {
					_ = os.Remove(pod)
				}
			}
		}()
		for range dirs {
			next[ContainerStopped](t, r)
		}
		wantWatches(t, atFirst)
	})
}

// TestNested finds a container in a container and one in a service by a walk, too,
// and from then on their siblings at once.
func TestNested(t *testing.T) {
	for _, outer := range []string{"/docker/" + idA + "/docker", "/system.slice/podman.service"} {
		t.Run(filepath.Base(outer), func(t *testing.T) {
			inEachHierarchy(t, func(t *testing.T, root string) {
				r := watch(t, root)
				makeDirs(t, root+outer+"/"+idB)
				list, err := r.Containers()
				if err != nil {
					t.Fatal(err)
				}
				if c := list[len(list)-1]; c.ID != idB || (c.ParentID == idA) != strings.HasPrefix(outer, "/docker/") {
					t.Errorf("last of the list %+v", c)
				}
				for next[ContainerStarted](t, r).ID != idB {
					// The outer container comes first.
				}
				makeDirs(t, root+outer+"/"+hexID(1))
				if c := next[ContainerStarted](t, r); c.ID != hexID(1) {
					t.Errorf("started %+v", c)
				}
				removeDirs(t, root+outer+"/"+idB)
				if c := next[ContainerStopped](t, r); c.ID != idB {
					t.Errorf("stopped %+v", c)
				}
			})
		})
	}
}

// TestNestedSoon finds a container in a container without a walk, and from then on all
// others in there at once, wherever they are, but nothing in its services.
func TestNestedSoon(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		outer := root + "/docker/" + idA
		makeDirs(t, outer)
		r := watch(t, root)
		atFirst := inotifyWatches(t)
		makeDirs(t, outer+"/system.slice/containerd.service", outer+"/kubelet/kubepods/burstable")
		time.Sleep(r.rescanEvery) // it may look before there is something
		if n := inotifyWatches(t) - atFirst; n != 0 {
			t.Errorf("%d watches in a container that holds none", n)
		}
		makeDirs(t, outer+"/docker/"+idB)
		for next[ContainerStarted](t, r).ID != idB {
			// The outer container comes first.
		}
		r.settle(t)
		// Itself, system.slice, kubelet, kubepods, burstable and docker.
		wantWatches(t, atFirst+6)
		for i := range 2 {
			pod := fmt.Sprintf("%s/kubelet/kubepods/burstable/pod%08x-0000-0000-0000-000000000000", outer, i)
			makeDirs(t, pod+"/"+hexID(i))
			if c := next[ContainerStarted](t, r); c.ID != hexID(i) || c.ParentID != idA {
				t.Errorf("started %+v", c)
			}
		}
		removeCgroup(t, outer)
		for range 4 {
			next[ContainerStopped](t, r)
		}
		wantWatches(t, atFirst)
	})
}

// TestServiceSoon finds the container of a service, as Quadlet's, without a walk.
func TestServiceSoon(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		service := root + "/system.slice/web.service"
		makeDirs(t, service)
		r := watch(t, root)
		atFirst := inotifyWatches(t)
		time.Sleep(r.rescanEvery) // it has looked when there was nothing
		makeDirs(t, service+"/libpod-payload-"+idA)
		if c := next[ContainerStarted](t, r); c.ID != idA {
			t.Errorf("started %+v", c)
		}
		wantWatches(t, atFirst+1)
	})
}

// TestServiceAgain finds the container of a service that is started again by its events
// alone.
func TestServiceAgain(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		service := root + "/system.slice/web.service"
		makeDirs(t, root+"/system.slice")
		w := newWatcher(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		w.rescanEvery = time.Hour
		r := start(t, w)
		r.settle(t)
		atFirst := inotifyWatches(t)
		for i := range 3 {
			container := service + "/libpod-payload-" + hexID(i)
			makeDirs(t, container)
			if i == 0 {
				if _, err := r.Containers(); err != nil {
					t.Fatal(err)
				}
			}
			if c := next[ContainerStarted](t, r); c.ID != hexID(i) {
				t.Errorf("started %+v", c)
			}
			wantWatches(t, atFirst+1)
			removeDirs(t, container, service)
			if c := next[ContainerStopped](t, r); c.ID != hexID(i) {
				t.Errorf("stopped %+v", c)
			}
			wantWatches(t, atFirst)
		}
	})
}

// TestUserManager finds the containers that a user runs without root at once.
func TestUserManager(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		manager := root + "/user.slice/user-1000.slice/user@1000.service"
		makeDirs(t, manager+"/user.slice", manager+"/app.slice/shell.scope")
		r := watch(t, root)
		makeDirs(t, manager+"/user.slice/libpod-"+idA+".scope/container")
		if c := next[ContainerStarted](t, r); c.ID != idA {
			t.Errorf("started %+v", c)
		}
		// Root, user.slice, user-1000.slice, the manager, user.slice and app.slice.
		wantWatches(t, 6)
	})
}

// TestNestedEnd removes containers from inside out, as the kernel demands, and
// leaves no watch.
func TestNestedEnd(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/docker")
		r := watch(t, root)
		atFirst := inotifyWatches(t)
		outer := root + "/docker/" + idA
		makeDirs(t, outer+"/docker/"+idB)
		if _, err := r.Containers(); err != nil {
			t.Fatal(err)
		}
		removeCgroup(t, outer)
		stopped := []string{next[ContainerStopped](t, r).ID, next[ContainerStopped](t, r).ID}
		if diff := cmp.Diff([]string{idB, idA}, stopped); diff != "" {
			t.Errorf("stopped (-want +got):\n%s", diff)
		}
		wantWatches(t, atFirst)
	})
}

// TestReplaced makes a directory anew while nobody looks.
func TestReplaced(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/a/"+idA, root+"/a/b")
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		next[ContainerStarted](t, r)
		r.settle(t)
		atFirst := inotifyWatches(t)

		r.mu.Lock() // holds the watcher up
		removeDirs(t, root+"/a/"+idA, root+"/a/b", root+"/a")
		makeDirs(t, root+"/a/"+idA, root+"/a/b")
		r.mu.Unlock()

		next[ContainerStopped](t, r)
		next[ContainerStarted](t, r)
		wantWatches(t, atFirst)
		makeDirs(t, root+"/a/b/"+idB)
		if c := next[ContainerStarted](t, r); c.ID != idB {
			t.Errorf("started %+v", c)
		}
	})
}

// TestRenamed is possible in v1 only.
func TestRenamed(t *testing.T) {
	need.Root(t)
	hierarchy, ok := hierarchies(t)["v1"]
	if !ok {
		return
	}
	root := newCgroup(t, hierarchy)
	makeDirs(t, root+"/a/"+idA)
	r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
	next[ContainerStarted](t, r)
	r.settle(t)
	atFirst := inotifyWatches(t)
	if err := os.Rename(root+"/a", root+"/b"); err != nil {
		t.Fatal(err)
	}
	if c := next[ContainerStopped](t, r); c.Cgroup != "/a/"+idA {
		t.Errorf("stopped %+v", c)
	}
	if c := next[ContainerStarted](t, r); c.Cgroup != "/b/"+idA {
		t.Errorf("started %+v", c)
	}
	makeDirs(t, root+"/b/"+idB)
	if c := next[ContainerStarted](t, r); c.Cgroup != "/b/"+idB {
		t.Errorf("started %+v", c)
	}
	wantWatches(t, atFirst)
}

func TestContainersWithoutRun(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/docker/"+idA, root+"/system.slice/docker.service", root+"/machine.slice/libpod-"+idB+".scope/container")
		w := newWatcher(t, Options{CgroupRoot: root, Patterns: []string{`/jobs/(?P<id>[a-z]+)$`}})
		makeDirs(t, root+"/jobs/abc/below")
		list, err := w.Containers()
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for i, c := range list {
			ids = append(ids, c.ID)
			if i > 0 && c.CreatedAt.Before(list[i-1].CreatedAt) {
				t.Errorf("%s is older than %s before it", c.ID, list[i-1].ID)
			}
		}
		if len(ids) != 3 {
			t.Errorf("containers %v", ids)
		}
		if n := inotifyWatches(t); n != 0 {
			t.Errorf("%d watches", n)
		}
	})
}

func TestContainersOfGoneRoot(t *testing.T) {
	need.Root(t)
	root := newCgroup(t, hierarchies(t)["v2"])
	w := newWatcher(t, Options{CgroupRoot: root})
	removeDirs(t, root)
	if list, err := w.Containers(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, error %v", list, err)
	}
}

// TestWithoutInotify runs in a user namespace that may have no inotify instance.
func TestWithoutInotify(t *testing.T) {
	need.Root(t)
	ids := []syscall.SysProcIDMap{{Size: 1}}
	if !inChild(t, &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids,
	}) {
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := newCgroup(t, hierarchies(t)["v2"])
	r := run(t, Options{CgroupRoot: root})
	eventually(t, func() error {
		if r.Degraded() == nil {
			return errors.New("not degraded")
		}
		return nil
	})
	if err := r.Degraded(); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("degraded: %v", err)
	}
	makeDirs(t, root+"/docker/"+idA)
	if c := next[ContainerStarted](t, r); c.ID != idA {
		t.Errorf("started %+v", c)
	}
	if err := os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("8"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, r.Degraded)
	makeDirs(t, root+"/docker/"+idB)
	next[ContainerStarted](t, r)
}

func TestRunTwice(t *testing.T) {
	need.Root(t)
	root := newCgroup(t, hierarchies(t)["v2"])
	files := openFiles(t)
	w := newWatcher(t, Options{CgroupRoot: root})
	for range 2 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- w.Run(ctx, make(chan Event)) }()
		eventually(t, func() error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.tree == nil {
				return errors.New("not running")
			}
			return nil
		})
		if err := w.Run(ctx, nil); err == nil {
			t.Error("a second Run beside the first")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() error { // the last one is closed beside Run
		if n := openFiles(t); n != files {
			return fmt.Errorf("%d open files, %d before", n, files)
		}
		return nil
	})
}

// BenchmarkContainers walks 1,000 containers.
func BenchmarkContainers(b *testing.B) {
	beside1000(b, func(b *testing.B, root string) {
		w, err := New(Options{CgroupRoot: root})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := w.Containers(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPeek is what 1,000 containers cost every other second.
func BenchmarkPeek(b *testing.B) {
	beside1000(b, func(b *testing.B, root string) {
		t := newTree(root, kindOf(b, root), nil, newSkips(slog.New(slog.DiscardHandler)))
		if err := t.walk(); err != nil {
			b.Fatal(err)
		}
		if len(t.closed) != 1000 {
			b.Fatalf("peeks into %d directories", len(t.closed))
		}
		for b.Loop() {
			t.peek()
		}
	})
}

// beside1000 runs a benchmark where there are 1,000 containers of Docker.
func beside1000(b *testing.B, run func(b *testing.B, root string)) {
	need.Root(b)
	for name, hierarchy := range hierarchies(b) {
		b.Run(name, func(b *testing.B) {
			root := newCgroup(b, hierarchy)
			for i := range 1000 {
				makeDirs(b, root+"/docker/"+hexID(i))
			}
			run(b, root)
		})
	}
}
