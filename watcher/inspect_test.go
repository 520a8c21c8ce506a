// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
)

// startIn starts a process in a network namespace and a cgroup. stop ends it.
func startIn(t *testing.T, ns *testnet.Namespace, cgroup string) (stop func()) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	check(t, ns.Start(cmd))
	stop = func() {
		_ = cmd.Process.Kill() // fails if stopped before
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	check(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
	return stop
}

// inspected is a made-up host with one container of Docker.
type inspected struct {
	*Watcher
	host, inner *testnet.Namespace
	root        string
	container   Container
}

func newInspected(t *testing.T, root string) inspected {
	t.Helper()
	i := inspected{host: newNamespace(t), inner: newNamespace(t), root: root}
	i.container = Container{ID: idA, Cgroup: "/docker/" + idA}
	makeDirs(t, root+i.container.Cgroup)
	i.Watcher = newWatcher(t, Options{CgroupRoot: root, NetNS: i.host.FD()})
	return i
}

func (i inspected) dir() string { return i.root + i.container.Cgroup }

func (i inspected) inspect(t *testing.T) Sandbox {
	t.Helper()
	files := openFiles(t)
	s, err := i.Inspect(i.container)
	if err != nil {
		t.Fatal(err)
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d open files, %d before", n, files)
	}
	return s
}

func inode(t *testing.T, ns *testnet.Namespace) uint64 {
	t.Helper()
	id, err := namespaceOf(ns.FD())
	check(t, err)
	return id.inode
}

// TestInspectThreaded: Docker in Docker and others make containers of threaded cgroups, where
// cgroup.procs can't be read.
func TestInspectThreaded(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		kind := filepath.Join(c.dir(), "cgroup.type")
		if _, err := os.Stat(kind); errors.Is(err, os.ErrNotExist) {
			return // of cgroup v1, which has no such cgroups
		}
		check(t, os.WriteFile(kind, []byte("threaded"), 0o644))
		domain := filepath.Dir(c.dir())
		startIn(t, c.inner, domain)
		pid, err := os.ReadFile(filepath.Join(domain, "cgroup.procs"))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(c.dir(), "cgroup.threads"), pid, 0o644))
		if b, err := os.ReadFile(filepath.Join(c.dir(), "cgroup.procs")); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Fatalf("cgroup.procs has %q, %v: is this cgroup threaded?", b, err)
		}
		if s := c.inspect(t); s.NetNS != inode(t, c.inner) {
			t.Errorf("sandbox %+v, want that of namespace %d", s, inode(t, c.inner))
		}
	})
}

func TestInspect(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		stop := startIn(t, c.inner, c.dir())
		outer := veth(t, c.host, "vethhost", c.inner, "eth0")
		check(t, c.inner.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: linkIn(t, c.inner, "eth0").Attrs().Index},
			Mode:      netlink.MACVLAN_MODE_BRIDGE,
		}))
		nsid, err := c.host.GetNetNsIdByFd(c.inner.FD())
		check(t, err)
		want := Sandbox{NetNS: inode(t, c.inner), NetNSID: nsid, Given: true, Interfaces: []Interface{
			{Name: "eth0", Index: linkIn(t, c.inner, "eth0").Attrs().Index, HostIndex: outer.Attrs().Index, Kind: "veth", Up: true},
			{Name: "mac0", Index: linkIn(t, c.inner, "mac0").Attrs().Index, Kind: "macvlan"},
		}}
		if diff := cmp.Diff(want, c.inspect(t)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		held, err := c.Hold(c.container)
		check(t, err)
		defer held.Close()
		stop()
		if _, err := c.Inspect(c.container); !errors.Is(err, ErrNoProcess) {
			t.Errorf("after the last process: %v", err)
		}
		removeCgroup(t, c.dir())
		if _, err := c.Inspect(c.container); !errors.Is(err, ErrNoProcess) {
			t.Errorf("after the cgroup: %v", err)
		}
		got, err := held.Inspect()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("held, after the cgroup: error %v (-want +got):\n%s", err, diff)
		}
	})
}

// TestInspectStarting follows a container from the host's namespace to its own.
func TestInspectStarting(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		startIn(t, c.host, c.dir())
		want := Sandbox{NetNS: inode(t, c.host), NetNSID: -1, Host: true}
		if diff := cmp.Diff(want, c.inspect(t)); diff != "" {
			t.Errorf("at first (-want +got):\n%s", diff)
		}
		startIn(t, c.inner, c.dir())
		want = Sandbox{NetNS: inode(t, c.inner), NetNSID: -1, Spread: AlsoInHost}
		if diff := cmp.Diff(want, c.inspect(t)); diff != "" {
			t.Errorf("then (-want +got):\n%s", diff)
		}
	})
}

// TestInspectBelow finds the processes in child directories, and leaves those of
// a nested container alone.
func TestInspectBelow(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		nested := c.dir() + "/docker/" + idB
		makeDirs(t, nested, c.dir()+"/payload", c.dir()+"/supervisor")
		startIn(t, newNamespace(t), nested)
		if _, err := c.Inspect(c.container); !errors.Is(err, ErrNoProcess) {
			t.Errorf("with a process in the nested container only: %v", err)
		}
		startIn(t, c.host, c.dir()+"/supervisor")
		startIn(t, c.inner, c.dir()+"/payload")
		if s := c.inspect(t); s.NetNS != inode(t, c.inner) {
			t.Errorf("sandbox %+v", s)
		}
	})
}

// TestInspectSameIndexes has the same interface indexes in five namespaces. A
// veth whose other end is not in the host has no host veth, though the host has
// one that looks like it.
func TestInspectSameIndexes(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		startIn(t, c.inner, c.dir())
		third, other := newNamespace(t), newNamespace(t)
		a := veth(t, c.host, "a", other, "eth0")
		b := veth(t, third, "b", c.inner, "eth0")
		if a.Attrs().Index != b.Attrs().Index || a.Attrs().ParentIndex != b.Attrs().ParentIndex {
			t.Fatalf("indexes differ: %+v, %+v", a.Attrs(), b.Attrs())
		}
		real := veth(t, c.host, "real", c.inner, "eth1")
		s := c.inspect(t)
		got := map[string]int{}
		for _, i := range s.Interfaces {
			got[i.Name] = i.HostIndex
		}
		if diff := cmp.Diff(map[string]int{"eth0": 0, "eth1": real.Attrs().Index}, got); diff != "" {
			t.Errorf("host veths (-want +got):\n%s", diff)
		}
	})
}
