// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Why no cgroup hierarchy can be watched, or no more.
var (
	// ErrCgroupNamespace means that the process is in a cgroup namespace of its
	// own, where the containers of the host do not exist.
	ErrCgroupNamespace = errors.New("this process has a cgroup namespace of its own and cannot see the host's containers: start it with --cgroupns=host --pid=host --network=host")

	// ErrNoCgroups means that no cgroup hierarchy is mounted where one was looked
	// for.
	ErrNoCgroups = errors.New("no cgroup hierarchy is mounted")

	// ErrRootLost means that the hierarchy that was found is not where it was.
	ErrRootLost = errors.New("no cgroup hierarchy is mounted there any more")
)

// The modes of a [Layout].
const (
	ModeV1     = "v1"
	ModeV2     = "v2"
	ModeHybrid = "hybrid" // v1 hierarchies with a cgroup2 one beside them
)

// Layout is where the containers' cgroups are.
type Layout struct {
	Mode string // ModeV1, ModeV2 or ModeHybrid
	Root string // the mount of the one hierarchy that is watched
	// Unified is the mount of the cgroup2 hierarchy, the same or beside it; "" for none.
	Unified string
}

const defaultCgroupRoot = "/sys/fs/cgroup"

// preference orders the v1 hierarchies. Every runtime makes its directories in
// those of the controllers. The cgroup2 one of the hybrid layout comes last: runc
// fills it, but runtimes of the time before it do not.
var preference = []string{"memory", "pids", "cpu", "cpuacct", "devices", "freezer", "blkio", "cpuset", "name=systemd"}

// findLayout looks at base, or at /sys/fs/cgroup, which is a hierarchy itself or
// the directory in which the hierarchies are mounted.
func findLayout(proc, base string) (Layout, error) {
	given := base != ""
	if !given {
		base = defaultCgroupRoot
	}
	base = filepath.Clean(base)
	switch kind, err := filesystem(base); {
	case err != nil && given:
		return Layout{}, fmt.Errorf("look at cgroup root %s: %w", base, err)
	case err == nil && kind == unix.CGROUP2_SUPER_MAGIC:
		return Layout{Mode: ModeV2, Root: base, Unified: base}, nil
	case err == nil && kind == unix.CGROUP_SUPER_MAGIC:
		return Layout{Mode: ModeV1, Root: base}, nil
	}
	f, err := os.Open(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return Layout{}, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	defer f.Close()
	mounts, err := parseMounts(f)
	if err != nil {
		return Layout{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	layout, ok := chooseHierarchy(mounts, base)
	if !ok {
		return Layout{}, fmt.Errorf("look for cgroups in %s: %w", base, ErrNoCgroups)
	}
	return layout, nil
}

func filesystem(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Type), nil
}

// mount is one line of mountinfo.
type mount struct {
	root    string // the part of the filesystem that is mounted
	point   string
	fstype  string
	options []string // the filesystem's
}

// parseMounts keeps the cgroup mounts of a mountinfo file, see proc(5).
func parseMounts(r io.Reader) ([]mount, error) {
	var mounts []mount
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		// Optional fields end with a dash, then come type, source and options.
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+4 || !strings.HasPrefix(fields[dash+1], "cgroup") {
			continue
		}
		mounts = append(mounts, mount{
			root:    fields[3],
			point:   unescapeMount.Replace(fields[4]),
			fstype:  fields[dash+1],
			options: strings.Split(fields[dash+3], ","),
		})
	}
	return mounts, lines.Err()
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// chooseHierarchy picks one of the hierarchies mounted below base. A mount that
// shows only a part of its hierarchy, as a container has it, does not count.
func chooseHierarchy(mounts []mount, base string) (Layout, bool) {
	var v1 []mount
	var v2 string
	for _, m := range mounts {
		switch {
		case m.root != "/" || !strings.HasPrefix(m.point, strings.TrimSuffix(base, "/")+"/"):
		case m.fstype == "cgroup2":
			v2 = m.point
		case m.fstype == "cgroup":
			v1 = append(v1, m)
		}
	}
	layout := Layout{Mode: ModeV1, Unified: v2}
	if v2 != "" {
		layout.Mode = ModeHybrid
	}
	for _, name := range preference {
		i := slices.IndexFunc(v1, func(m mount) bool { return slices.Contains(m.options, name) })
		if i >= 0 {
			layout.Root = v1[i].point
			return layout, true
		}
	}
	return Layout{Mode: ModeV2, Root: v2, Unified: v2}, v2 != ""
}

// initialNamespace is what the kernel calls the cgroup namespace that it booted
// with (PROC_CGROUP_INIT_INO).
const initialNamespace = "cgroup:[4026531835]"

// checkNamespace returns [ErrCgroupNamespace] where the host's cgroups are out
// of sight. The namespace may be another than the initial one if the host itself
// is a system container: there it is process 1's, and the daemon, being a service
// of that host, sits below the namespace's root.
func checkNamespace(proc string) error {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/cgroup"))
	if err != nil || own == initialNamespace {
		return nil // a kernel without cgroup namespaces has no link
	}
	init, err := os.Readlink(filepath.Join(proc, "1/ns/cgroup"))
	if err == nil && init != own {
		return ErrCgroupNamespace
	}
	membership, err := os.ReadFile(filepath.Join(proc, "self/cgroup"))
	if err != nil {
		return fmt.Errorf("read own cgroup: %w", err)
	}
	if atRoot(string(membership)) {
		return ErrCgroupNamespace
	}
	return nil
}

// atRoot says whether a /proc/<pid>/cgroup names only roots.
func atRoot(membership string) bool {
	for line := range strings.Lines(membership) {
		if !strings.HasSuffix(strings.TrimSuffix(line, "\n"), ":/") {
			return false
		}
	}
	return true
}
