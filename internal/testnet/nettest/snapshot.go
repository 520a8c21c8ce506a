// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// Scope says where a snapshot looks.
type Scope struct {
	// Namespaces are searched for qdiscs, filters and tcx programs; the key
	// names them in the snapshot.
	Namespaces map[string]*testnet.Namespace
	// Cgroups are cgroup paths. In every hierarchy the directories from there on
	// are listed, with the programs attached to them.
	Cgroups []string
	// Paths are files and directories, as a rule on bpffs, listed with all that
	// is in them.
	Paths []string
	// Executable is the file of the processes to list.
	Executable string
	// Named asks for the machine's named network namespaces.
	Named bool
}

// Snapshot is the state of a host. Take one before and one after, and compare
// them with cmp.Diff: nothing is left behind if they are equal.
type Snapshot struct {
	Qdiscs    []string // "host: qdisc clsact ffff: dev veth0 …"
	Filters   []string // "host: veth0 ingress: filter …", tcx programs too
	Cgroups   []string
	Files     []string
	Mounts    []string // mount points at or under Paths
	Named     []string // network namespaces of `ip netns`
	Processes []string // ids
}

// TakeSnapshot looks at the host. Requires tc.
func TakeSnapshot(tb testing.TB, scope Scope) Snapshot {
	tb.Helper()
	need.Commands(tb, "tc")
	var s Snapshot
	for _, name := range slices.Sorted(maps.Keys(scope.Namespaces)) {
		fatal(tb, s.addTraffic(name, scope.Namespaces[name]))
	}
	fatal(tb, s.addCgroups(scope.Cgroups))
	for _, path := range scope.Paths {
		s.Files = append(s.Files, Must(tree(path))(tb)...)
	}
	if scope.Named {
		s.Named = Must(filepath.Glob("/run/netns/*"))(tb)
	}
	s.Processes = Must(processes(scope.Executable))(tb)
	s.Mounts = Must(mounts(scope.Paths))(tb)
	return s
}

func (s *Snapshot) addTraffic(name string, n *testnet.Namespace) error {
	out, err := n.Run("tc", "qdisc", "show")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		s.Qdiscs = append(s.Qdiscs, name+": "+strings.TrimSpace(line))
	}
	links, err := n.LinkList()
	if err != nil {
		return fmt.Errorf("list links of %s: %w", name, err)
	}
	for _, l := range links {
		prefix := name + ": " + l.Attrs().Name
		if err := s.addFilters(prefix, n, l.Attrs().Name); err != nil {
			return err
		}
		if err := n.Do(func() error { return s.addTCX(prefix, l.Attrs().Index) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *Snapshot) addFilters(prefix string, n *testnet.Namespace, iface string) error {
	for _, hook := range []string{"ingress", "egress", "root"} {
		// An interface without the qdisc is answered with nothing.
		out, err := n.Run("tc", "filter", "show", "dev", iface, hook)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			s.Filters = append(s.Filters, prefix+" "+hook+": "+strings.TrimSpace(line))
		}
	}
	return nil
}

func (s *Snapshot) addTCX(prefix string, ifindex int) error {
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		found, err := attached(ifindex, hook)
		if err != nil {
			return fmt.Errorf("list tcx programs of %s: %w", prefix, err)
		}
		for _, id := range found {
			s.Filters = append(s.Filters, fmt.Sprintf("%s %s: program %d", prefix, hook, id))
		}
	}
	return nil
}

// attached returns the programs at a hook, none where the kernel lacks it.
func attached(target int, hook ebpf.AttachType) ([]ebpf.ProgramID, error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: hook})
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []ebpf.ProgramID
	for _, p := range result.Programs {
		ids = append(ids, p.ID)
	}
	return ids, nil
}

func (s *Snapshot) addCgroups(paths []string) error {
	roots, err := testnet.CgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		for _, path := range paths {
			dirs, err := directories(filepath.Join(root, path))
			if err != nil {
				return err
			}
			for _, dir := range dirs {
				if err := s.addCgroup(dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *Snapshot) addCgroup(dir string) error {
	s.Cgroups = append(s.Cgroups, dir)
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, hook := range []ebpf.AttachType{ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress} {
		found, err := attached(int(f.Fd()), hook)
		if errors.Is(err, unix.EBADF) {
			return nil // a v1 hierarchy has none
		}
		if err != nil {
			return fmt.Errorf("list programs of cgroup %s: %w", dir, err)
		}
		for _, id := range found {
			s.Cgroups = append(s.Cgroups, fmt.Sprintf("%s %s: program %d", dir, hook, id))
		}
	}
	return nil
}

// tree lists a path and all that is under it, nothing if it is not there.
func tree(root string) ([]string, error) { return walk(root, false) }

func directories(root string) ([]string, error) { return walk(root, true) }

func walk(root string, directoriesOnly bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && (d.IsDir() || !directoriesOnly) {
			found = append(found, path)
		}
		return err
	})
	return found, err
}

func processes(executable string) ([]string, error) {
	if executable == "" {
		return nil, nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, l := range links {
		// An error is a kernel thread, or a process that has just ended.
		if target, err := os.Readlink(l); err == nil && target == executable {
			found = append(found, filepath.Base(filepath.Dir(l)))
		}
	}
	return found, nil
}

func mounts(under []string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		point := strings.Fields(line)[4]
		for _, path := range under {
			if point == path || strings.HasPrefix(point, strings.TrimSuffix(path, "/")+"/") {
				found = append(found, point)
			}
		}
	}
	return found, nil
}
