// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// ErrNoProcess means that no process lives in a container's cgroup, or that the
// cgroup is gone.
var ErrNoProcess = errors.New("no process in the cgroup")

// Sandbox is the network namespace of a container.
type Sandbox struct {
	NetNS      uint64 // the namespace's inode
	NetNSID    int    // the number the host's namespace has for it, -1 if none
	Host       bool   // it is the host's own
	Interfaces []Interface
	// Given: one of them leads to the host's namespace, or is physical. Only who may administer
	// the host's network can have made that.
	Given bool
	// Spread is where the container's other threads are, if it was asked for the container.
	Spread Spread
	Kernel Kernel // that the container runs on, if it was asked for the container
}

// Interface is one interface of a container, loopback excepted.
type Interface struct {
	Name      string // may still change while the interface is down
	Index     int
	HostIndex int    // the host veth's, 0 if there is none
	Kind      string // "veth", "macvlan", …, "" for a physical one
	Up        bool
	// Uplink: it leads out of the namespace, and not by a host veth. What passes it can be
	// counted in the namespace only. A "veth" leads to a third namespace then.
	Uplink bool
	// Behind is what is behind a veth that leads to a third namespace. Via are the host veths
	// that lead there, if it is the container's own.
	Behind Behind
	Via    []int
	// Passed is what the kernel had counted on an end of a pair that does not lead to the host, and on
	// a tun device, at the moment that Up is of. Nil where that is not known.
	Passed *LinkCounters
	// Idle: it is a tun device that nobody holds, or that is down.
	Idle bool
	// Hidden: it leads out, too, and can't be counted, as it has no Ethernet headers.
	Hidden bool
}

// maxProcesses bounds how many processes of a container are asked for their
// namespace. What keeps one of the host's is among the first: a runtime's set-up,
// nspawn's supervisor.
const maxProcesses = 64

// maxDirectories bounds how many directories of a container are searched for a process. Whoever
// owns them may make any number.
const maxDirectories = 1000

// Inspect says which network namespace a container is in and what leads from
// there to the host. The error may be [ErrNoProcess].
//
// A container that starts is in the host's namespace first and has no interfaces
// then: Host is true, and the caller has to ask again. Where the processes of a
// container differ, the first namespace counts that is not the host's and has an interface
// from there, or else leads anywhere, or else the first that is not the host's, and Spread says
// that they differ. For the host's own namespace no interfaces are listed. A container that has no
// process of its own is where those are that work for it, as for the containers of a pod in gVisor.
//
// A namespace with an uplink gets a number in the host's one if it has none, so that
// [NamespaceGone] can tell its end. The kernel forgets it with the namespace.
//
// It needs CAP_SYS_ADMIN, CAP_NET_ADMIN, and CAP_SYS_PTRACE for other users' processes.
// The namespace is held open during the call only.
func (w *Watcher) Inspect(c Container) (Sandbox, error) {
	n, err := w.Hold(c)
	if err != nil {
		return Sandbox{}, err
	}
	defer n.Close()
	s, err := n.Inspect()
	s.Spread, s.Kernel = n.spread, w.Kernel(c)
	return s, err
}

// fillSandbox lists a namespace's interfaces and finds their host veths. of is the container,
// nil if it does not matter what is its own.
func (w *Watcher) fillSandbox(s *Sandbox, netns int, of *own) error {
	inner, err := listCounted(netns)
	if err != nil && !errors.Is(err, ErrPartial) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	host, err := dial(w.netns, 0)
	if err != nil {
		return err
	}
	defer host.Close()
	candidates := hostLinks(host, inner)
	// Asked for after the links: showing a veth makes the kernel number its
	// peer's namespace.
	if s.NetNSID, err = namespaceNumber(host, netns); err != nil {
		return fmt.Errorf("ask for namespace number: %w", err)
	}
	for _, l := range inner {
		if l.loopback {
			continue
		}
		i := Interface{Name: l.name, Index: l.index, Kind: l.kind, Up: l.up}
		if v, ok := candidates[l.index]; ok && s.NetNSID >= 0 && v.NetNSID == s.NetNSID && v.PeerIndex == l.index {
			i.HostIndex = v.Index
		}
		if of != nil && i.HostIndex == 0 && (i.Kind == "veth" || i.Kind == "netkit" || i.Kind == "tun") {
			i.Passed = l.passed
		}
		s.Interfaces = append(s.Interfaces, i)
	}
	if of != nil {
		if err := w.lookBehind(of, netns, inner, s.Interfaces); err != nil {
			return err
		}
		of.markHeld(inner, s.NetNS)
		s.noteBehind(inner)
	}
	if markUplinks(s.Interfaces, inner) && s.NetNSID < 0 {
		if s.NetNSID, err = numberNamespace(host, netns); err != nil {
			return err
		}
	}
	s.Given, err = w.given(s.Interfaces, inner, netns)
	return err
}

// noteBehind notes what was found out about links.
func (s *Sandbox) noteBehind(links []link) {
	for _, l := range links {
		for n := range s.Interfaces {
			if i := &s.Interfaces[n]; i.Index == l.index {
				i.Behind, i.Via, i.Hidden, i.Idle = l.behind, l.via, l.hidden(), l.kind == "tun" && !l.open()
			}
		}
	}
}

// hostLinks returns, by inner index, the host veths that could be the other ends.
// The same index may belong to a stranger's veth: the other end can be in a third
// namespace.
func hostLinks(host *netlink.Conn, inner []link) map[int]HostVeth {
	candidates := map[int]HostVeth{}
	for _, l := range inner {
		if !l.crosses() {
			continue
		}
		outer, err := getLink(host, l.peer)
		if err != nil {
			continue // ENODEV: gone, or never in this namespace
		}
		if v, ok := outer.hostVeth(); ok {
			candidates[l.index] = v
		}
	}
	return candidates
}

// namespaceID tells namespaces apart.
type namespaceID struct{ device, inode uint64 }

func namespaceOf(fd int) (namespaceID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return namespaceID{}, os.NewSyscallError("fstat", err)
	}
	return namespaceID{device: uint64(st.Dev), inode: st.Ino}, nil
}

func namespaceAt(name string) (namespaceID, error) {
	f, err := os.Open(name)
	if err != nil {
		return namespaceID{}, err
	}
	defer f.Close()
	return namespaceOf(int(f.Fd()))
}

type namespace struct {
	file *os.File
	id   namespaceID
}

// maxNamespaces bounds how many namespaces of a container's processes are looked at for
// the one that has an interface from the host.
const maxNamespaces = 16

// sandboxNamespace opens the namespace that a container is in: of those of its processes
// that are not the host's the first that has an interface from the host, since it may make
// others itself; else the first that anything leads out of, else the first, or else the host's.
// several: they may be in several.
func (w *Watcher) sandboxNamespace(c Container, several bool) (namespace, error) {
	found, err := w.namespacesOf(c, several)
	if len(found) == 0 {
		return namespace{}, cmp.Or(err, ErrNoProcess)
	}
	chosen := w.choose(found)
	for i, ns := range found {
		if i != chosen {
			ns.file.Close()
		}
	}
	return found[chosen], nil
}

func (w *Watcher) choose(among []namespace) int {
	var own []int
	for i, ns := range among {
		if ns.id != w.host {
			own = append(own, i)
		}
	}
	switch len(own) {
	case 0:
		return 0
	case 1:
		return own[0]
	}
	for _, is := range []func(namespace) bool{w.isGiven, isOpen} {
		for _, i := range own {
			if is(among[i]) {
				return i
			}
		}
	}
	return own[0]
}

// isGiven says whether there is an interface from the host in a namespace.
func (w *Watcher) isGiven(ns namespace) bool {
	var s Sandbox
	err := w.fillSandbox(&s, int(ns.file.Fd()), nil)
	return err == nil && s.Given
}

// namespacesOf opens the namespaces of a container's processes: up to the first that is not the
// host's, or all, those of the oldest processes first.
func (w *Watcher) namespacesOf(c Container, all bool) (found []namespace, failure error) {
	processes, own, failure := w.workers(c, all)
	all = all || !own
	for _, p := range processes {
		ns, err := w.processNamespace(p)
		switch known := func(n namespace) bool { return n.id == ns.id }; {
		case err != nil:
			failure = err
		case ns.file == nil: // ended
		case slices.ContainsFunc(found, known), len(found) == maxNamespaces:
			ns.file.Close()
		default:
			found = append(found, ns)
			if ns.id != w.host && !all {
				return found, failure
			}
		}
	}
	return found, failure
}

// process is a member of a cgroup.
type process struct {
	pid   int
	procs string // the cgroup.procs file that names it
}

// processNamespace opens a process's network namespace. If the process has ended
// the namespace is zero: its pid may be another's by now.
func (w *Watcher) processNamespace(p process) (namespace, error) {
	file, err := os.Open(filepath.Join(w.proc, strconv.Itoa(p.pid), "ns/net"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return namespace{}, nil
	}
	if err != nil {
		return namespace{}, fmt.Errorf("open network namespace: %w", err)
	}
	if pids, _ := readProcesses(p.procs); !slices.Contains(pids, p.pid) {
		return namespace{}, file.Close()
	}
	id, err := namespaceOf(int(file.Fd()))
	if err != nil {
		return namespace{}, errors.Join(err, file.Close())
	}
	return namespace{file: file, id: id}, nil
}

// Unified returns the directory of a container in the cgroup2 hierarchy, by its path there,
// which need not exist. Not ok: its processes are not in one of its own, as with a runtime
// that knows only the v1 hierarchies.
func (w *Watcher) Unified(c Container) (dir string, ok bool) {
	if w.layout.Unified == "" {
		return "", false
	}
	if w.layout.Root == w.layout.Unified {
		return c.Cgroup, true
	}
	processes, _ := w.processes(c) // one will do
	for _, p := range processes {
		membership, err := os.ReadFile(filepath.Join(w.proc, strconv.Itoa(p.pid), "cgroup"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(membership)) {
			if path, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); found {
				there, _ := Identify(path, w.patterns)
				return there.Cgroup, unscoped(there.ID) == unscoped(c.ID)
			}
		}
	}
	return c.Cgroup, true // nobody is in it yet
}

// processes returns the processes of a container, by their pids. Where its
// own cgroup has none, as under crun, nspawn or an init that sorts its children,
// the nearest level below that has some counts. The error says that there may be more, in a
// directory that can't be read.
func (w *Watcher) processes(c Container) (found []process, failure error) {
	level, looked := []string{c.Cgroup}, 0
	for len(level) > 0 && len(found) == 0 && looked < maxDirectories {
		level = level[:min(len(level), maxDirectories-looked)]
		looked += len(level)
		var below []string
		for _, dir := range level {
			in, err := w.processesIn(dir)
			failure = cmp.Or(failure, err)
			found = append(found, in...)
		}
		if len(found) == 0 {
			for _, dir := range level {
				below = append(below, w.below(dir, c)...)
			}
		}
		level = below
	}
	slices.SortFunc(found, func(a, b process) int { return a.pid - b.pid })
	return found, failure
}

// sortByAge puts the oldest processes first, which pids don't tell once they have begun anew. One
// that has ended comes last.
func (w *Watcher) sortByAge(found []process) error {
	fs, err := procfs.NewFS(w.proc)
	if err != nil {
		return fmt.Errorf("open procfs: %w", err)
	}
	began := make(map[int]uint64, len(found))
	for _, p := range found {
		began[p.pid] = math.MaxUint64
		if of, err := fs.Proc(p.pid); err == nil {
			if stat, err := of.Stat(); err == nil {
				began[p.pid] = stat.Starttime
			}
		}
	}
	slices.SortStableFunc(found, func(a, b process) int { return cmp.Compare(began[a.pid], began[b.pid]) })
	return nil
}

func (w *Watcher) processesIn(dir string) (found []process, err error) {
	procs := filepath.Join(w.layout.Root, dir, "cgroup.procs")
	pids, err := readProcesses(procs)
	for _, pid := range pids {
		found = append(found, process{pid: pid, procs: procs})
	}
	return found, err
}

// below lists the directories in dir that are no other container's.
func (w *Watcher) below(dir string, c Container) []string {
	if !w.mayHaveBelow(dir) {
		return nil
	}
	entries, _ := os.ReadDir(filepath.Join(w.layout.Root, dir)) // gone is empty
	var dirs []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		child := path.Join(dir, e.Name())
		if inner, _ := Identify(child, w.patterns); inner.Cgroup == c.Cgroup {
			dirs = append(dirs, child)
		}
	}
	return dirs
}

// readProcesses reads a cgroup.procs file, which names processes in no order and
// perhaps twice. It has none where the cgroup is gone; an error says that it may not be read.
// Processes that this PID namespace does not show are 0. A threaded cgroup has threads instead,
// each of which has a namespace, too.
func readProcesses(procs string) ([]int, error) {
	b, err := os.ReadFile(procs)
	if errors.Is(err, unix.EOPNOTSUPP) {
		b, err = os.ReadFile(filepath.Join(filepath.Dir(procs), "cgroup.threads"))
	}
	if ofDirectory(err) {
		return nil, err
	}
	if err != nil {
		return nil, nil
	}
	return parseIDs(b), nil
}

func parseIDs(b []byte) (ids []int) {
	for field := range strings.FieldsSeq(string(b)) {
		if id, err := strconv.Atoi(field); err == nil && id > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
