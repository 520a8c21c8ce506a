// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// own knows what is a container's own beside its namespace: other namespaces that its processes
// are in, or those of containers inside it. What is mounted where a process sees it is no proof: one
// that starts still sees what its runtime has mounted for others.
type own struct {
	w       *Watcher
	of      Container
	conn    *netlink.Conn // whose numbers has goes by
	pids    []int         // nil until they were listed
	listed  bool
	numbers map[int]bool // nil until they were asked for
}

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
	}
	return o.numbers[number]
}

// processes returns the processes of the container, of those inside it, and of a machine of Kata
// that is kept out of its cgroup.
func (o *own) processes() []int {
	if o.listed {
		return o.pids
	}
	o.listed = true
	for _, p := range o.w.inOverhead(o.of) {
		o.pids = append(o.pids, p.pid)
	}
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

// hostFile opens the host's namespace once more.
func (w *Watcher) hostFile() (*os.File, error) {
	if w.netns == 0 {
		return os.Open("/proc/self/ns/net")
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", w.netns))
}
