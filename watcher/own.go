// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// own knows what is a container's own beside its namespace: other namespaces that its processes
// are in, or those of containers inside it, and such as are mounted for it and not for the host.
type own struct {
	w       *Watcher
	of      Container
	conn    *netlink.Conn // whose numbers has goes by
	pids    []int         // nil until they were listed
	listed  bool
	numbers map[int]bool // nil until they were asked for
}

// The bounds of what is looked at for one container.
const (
	maxMountTables = 4
	maxMountTable  = 1 << 20 // bytes
	maxMounts      = 256
)

// has says whether the namespace with a number is the container's own.
func (o *own) has(number int) bool {
	if o.numbers == nil {
		o.numbers = map[int]bool{}
		note := func(ns *os.File) {
			if at, err := namespaceNumber(o.conn, int(ns.Fd())); err == nil && at >= 0 {
				o.numbers[at] = true
			}
		}
		o.ofProcesses(note)
		o.mounted(note)
	}
	return o.numbers[number]
}

// processes returns the processes of the container and of those inside it.
func (o *own) processes() []int {
	if o.listed {
		return o.pids
	}
	o.listed = true
	looked := 0
	for level := []string{o.of.Cgroup}; len(level) > 0; {
		var below []string
		for _, dir := range level {
			if looked++; looked > maxDirectories || len(o.pids) > maxTasks {
				return o.pids
			}
			at := filepath.Join(o.w.layout.Root, dir)
			pids, _ := readProcesses(filepath.Join(at, "cgroup.procs")) // those that can't be read prove nothing
			o.pids = append(o.pids, pids...)
			if !o.w.mayHaveBelow(dir) {
				continue
			}
			entries, _ := os.ReadDir(at)
			for _, e := range entries {
				if e.IsDir() {
					below = append(below, path.Join(dir, e.Name()))
				}
			}
		}
		level = below
	}
	return o.pids
}

// ofProcesses calls visit with the namespaces that those processes are in.
func (o *own) ofProcesses(visit func(*os.File)) {
	seen := map[uint64]bool{o.w.host.inode: true}
	for _, pid := range o.processes() {
		at := filepath.Join(o.w.proc, strconv.Itoa(pid), "ns/net")
		var st unix.Stat_t
		if unix.Stat(at, &st) != nil || seen[st.Ino] || len(seen) > maxBehind {
			continue
		}
		seen[st.Ino] = true
		if ns, err := os.Open(at); err == nil { // else it has ended
			visit(ns)
			ns.Close()
		}
	}
}

// mounted calls visit with the namespaces that are mounted where the container's processes see
// them and the host does not. `ip netns add` does that, and a runtime in the container.
func (o *own) mounted(visit func(*os.File)) {
	all, _ := o.w.processes(o.of)
	var tables []string
	var shared map[uint64]string
	for _, p := range all {
		dir := filepath.Join(o.w.proc, strconv.Itoa(p.pid))
		table, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || slices.Contains(tables, table) {
			continue
		}
		if hosts, _ := os.Readlink(filepath.Join(o.w.proc, "1/ns/mnt")); table == hosts || len(tables) == maxMountTables {
			continue
		}
		tables = append(tables, table)
		mounts := namespaceMounts(dir)
		if len(mounts) == 0 {
			continue
		}
		if shared == nil {
			shared = namespaceMounts(filepath.Join(o.w.proc, "1"))
		}
		for inode, point := range mounts {
			if _, ofHost := shared[inode]; ofHost {
				continue
			}
			if ns, err := openMounted(filepath.Join(dir, "root"), point, inode); err == nil {
				visit(ns)
				ns.Close()
			}
		}
	}
}

// namespaceMounts returns the network namespaces that are mounted where a process sees them, by
// inode, with the mount point from its root.
func namespaceMounts(dir string) map[uint64]string {
	f, err := os.Open(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return nil
	}
	defer f.Close()
	table, _ := io.ReadAll(io.LimitReader(f, maxMountTable))
	found := map[uint64]string{}
	for line := range strings.Lines(string(table)) {
		if !strings.Contains(line, " net:[") || len(found) == maxMounts {
			continue
		}
		// id, parent, device, root, mount point
		if f := strings.Fields(line); len(f) > 4 && inodeIn(f[3]) != 0 {
			found[inodeIn(f[3])] = unescapeMount.Replace(f[4])
		}
	}
	return found
}

// resolveCached is RESOLVE_CACHED: Linux 5.12. What a mount is on is always in the cache.
const resolveCached = 0x20

// openMounted opens a namespace by a path of a container's. The container says what is on
// that path: so links are followed in its root, nothing is asked of a filesystem of its own, and
// nothing else is opened.
func openMounted(root, point string, inode uint64) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, point, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolveCached,
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st)); err != nil {
		return nil, err
	}
	if fs.Type != unix.NSFS_MAGIC || st.Ino != inode {
		return nil, fmt.Errorf("%s is no longer net:[%d]", point, inode)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// hostFile opens the host's namespace once more.
func (w *Watcher) hostFile() (*os.File, error) {
	if w.netns == 0 {
		return os.Open("/proc/self/ns/net")
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", w.netns))
}

// beyond returns the interfaces with an end in the host that are in other namespaces which are
// mounted for the container alone: it has moved them there.
func (o *own) beyond(host *netlink.Conn, not uint64) (found []Interface) {
	o.mounted(func(ns *os.File) {
		id, err := namespaceOf(int(ns.Fd()))
		if err != nil || id.inode == not || id == o.w.host {
			return
		}
		number, err := namespaceNumber(host, int(ns.Fd()))
		if err != nil || number < 0 {
			return
		}
		links, err := listLinks(int(ns.Fd()), "veth")
		if err != nil {
			return
		}
		outer := hostLinks(host, links)
		for _, l := range links {
			if v, ok := outer[l.index]; ok && v.NetNSID == number && v.PeerIndex == l.index {
				found = append(found, Interface{Name: l.name, Index: l.index, HostIndex: v.Index, Kind: l.kind, Up: l.up, Beyond: true, NSID: number})
			}
		}
	})
	return found
}
