// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

func TestChooseHierarchy(t *testing.T) {
	const (
		hybrid = `24 1 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
25 24 0:22 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
26 24 0:23 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
27 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
28 24 0:25 / /sys/fs/cgroup/pids rw shared:12 - cgroup cgroup rw,pids
29 24 0:26 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory
`
		container = `40 39 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 39 0:23 /docker/abc /sys/fs/cgroup/systemd ro - cgroup cgroup rw,xattr,name=systemd
50 39 0:26 / /host/sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
51 39 0:24 / /host/sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct
52 39 0:27 / /mnt/with\040space/cgroup2 ro - cgroup2 cgroup2 rw
`
	)
	without := func(mounts, line string) string {
		var kept strings.Builder
		for l := range strings.Lines(mounts) {
			if !strings.Contains(l, line) {
				kept.WriteString(l)
			}
		}
		return kept.String()
	}
	tests := []struct {
		name, mounts, base string
		want               Layout
		ok                 bool
	}{
		{"hybrid", hybrid, "/sys/fs/cgroup", Layout{ModeHybrid, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"}, true},
		{"memory controller disabled", without(hybrid, "memory"), "/sys/fs/cgroup", Layout{ModeHybrid, "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"}, true},
		{"v1", without(hybrid, "cgroup2"), "/sys/fs/cgroup", Layout{ModeV1, "/sys/fs/cgroup/memory", ""}, true},
		{"joint controllers", without(without(hybrid, "memory"), "pids"), "/sys/fs/cgroup", Layout{ModeHybrid, "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"}, true},
		{"only part of a hierarchy", container, "/sys/fs/cgroup", Layout{ModeV2, "", ""}, false},
		{"the host's beside the container's", container, "/host/sys/fs/cgroup", Layout{ModeV1, "/host/sys/fs/cgroup/memory", ""}, true},
		{"a cgroup2 mount somewhere", container, "/mnt", Layout{ModeV2, "/mnt/with space/cgroup2", "/mnt/with space/cgroup2"}, true},
		{"nothing", "", "/sys/fs/cgroup", Layout{ModeV2, "", ""}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mounts, err := parseMounts(strings.NewReader(tt.mounts))
			if err != nil {
				t.Fatal(err)
			}
			got, ok := chooseHierarchy(mounts, tt.base)
			if diff := cmp.Diff(tt.want, got); diff != "" || ok != tt.ok {
				t.Errorf("ok %v, (-want +got):\n%s", ok, diff)
			}
		})
	}
}

func TestAtRoot(t *testing.T) {
	for membership, want := range map[string]bool{
		"0::/\n": true, "2:memory:/\n1:name=systemd:/\n0::/\n": true,
		"0::/system.slice/nettally.service\n": false, "2:memory:/a\n0::/\n": false,
	} {
		if got := atRoot(membership); got != want {
			t.Errorf("atRoot(%q) = %v", membership, got)
		}
	}
}

func TestNoCgroups(t *testing.T) {
	if _, err := New(Options{CgroupRoot: t.TempDir()}); !errors.Is(err, ErrNoCgroups) {
		t.Errorf("error %v, want %v", err, ErrNoCgroups)
	}
	if _, err := New(Options{CgroupRoot: "/nowhere"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}

func TestLayoutGiven(t *testing.T) {
	need.Root(t)
	for _, root := range hierarchies(t) {
		dir := newCgroup(t, root)
		w := newWatcher(t, Options{CgroupRoot: dir + "/"})
		if got := w.Layout(); got.Root != dir || got.Mode == ModeHybrid {
			t.Errorf("%s: layout %+v", dir, got)
		}
	}
}

// childOf names the variable by which a test finds itself in the process that it
// started.
const childOf = "NETTALLY_TEST_CHILD"

// inChild runs the calling test again in a process with namespaces of its own
// and says whether it is that process which asks.
func inChild(t *testing.T, attr *syscall.SysProcAttr, around ...string) bool {
	t.Helper()
	if os.Getenv(childOf) == t.Name() {
		return true
	}
	command := append(slices.Clone(around), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), childOf+"="+t.Name())
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("in a child process: %v\n%s", err, out)
	}
	return false
}

func TestCgroupNamespace(t *testing.T) {
	need.Root(t)
	if !inChild(t, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWCGROUP}) {
		return
	}
	_, err := New(Options{})
	if !errors.Is(err, ErrCgroupNamespace) || !strings.Contains(err.Error(), "--cgroupns=host --pid=host") {
		t.Errorf("error %v, want %v", err, ErrCgroupNamespace)
	}
	root := hierarchies(t)["v2"]
	if _, err := New(Options{CgroupRoot: root}); err != nil {
		t.Errorf("with the root given: %v", err)
	}
}

// TestV2 runs in a mount namespace where the machine looks like one without v1.
func TestV2(t *testing.T) {
	need.Root(t)
	if !inChild(t, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}) {
		return
	}
	if err := unix.Unmount(defaultCgroupRoot, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", defaultCgroupRoot, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	r := run(t, Options{NetNS: newNamespace(t).FD()})
	want := Layout{Mode: ModeV2, Root: defaultCgroupRoot, Unified: defaultCgroupRoot}
	if diff := cmp.Diff(want, r.Layout()); diff != "" {
		t.Errorf("layout (-want +got):\n%s", diff)
	}
	r.settle(t)
	dir := newCgroup(t, defaultCgroupRoot)
	id := hexID(os.Getpid())
	makeDirs(t, filepath.Join(dir, "docker", id)) // which no other test has at the time
	for next[ContainerStarted](t, r).Cgroup != "/"+filepath.Base(dir)+"/docker/"+id {
		// The machine's own containers.
	}
}
