// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
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
}

// Interface is one interface of a container, loopback excepted.
type Interface struct {
	Name      string // may still change while the interface is down
	Index     int
	HostIndex int    // the host veth's, 0 if there is none
	Kind      string // "veth", "macvlan", …, "" for a physical one
	Up        bool
}

// maxProcesses bounds how many processes of a container are asked for their
// namespace. What keeps one of the host's is among the first: a runtime's set-up,
// nspawn's supervisor.
const maxProcesses = 64

// Inspect says which network namespace a container is in and what leads from
// there to the host. The error may be [ErrNoProcess].
//
// A container that starts is in the host's namespace first and has no interfaces
// then: Host is true, and the caller has to ask again. Where the processes of a
// container differ, the first that is not in the host's namespace counts. For the
// host's own namespace no interfaces are listed.
//
// It needs CAP_SYS_ADMIN, and CAP_SYS_PTRACE for other users' processes. The
// namespace is held open during the call only.
func (w *Watcher) Inspect(c Container) (Sandbox, error) {
	n, err := w.Hold(c)
	if err != nil {
		return Sandbox{}, err
	}
	defer n.Close()
	return n.Inspect()
}

// Namespace is the network namespace of a container, held open, so that it can be looked
// at when the container's processes have ended. It lives on until Close, and so do the
// interfaces in it that nobody removes: hold it for no longer than a container starts.
type Namespace struct {
	w  *Watcher
	of Container
	ns namespace
}

// Hold opens the network namespace that Inspect would look at.
func (w *Watcher) Hold(c Container) (*Namespace, error) {
	ns, err := w.sandboxNamespace(c)
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", c.ID, err)
	}
	return &Namespace{w: w, of: c, ns: ns}, nil
}

// Close gives the namespace up.
func (n *Namespace) Close() error { return n.ns.file.Close() }

// Inspect is [Watcher.Inspect] for a namespace that is held.
func (n *Namespace) Inspect() (Sandbox, error) {
	s := Sandbox{NetNS: n.ns.id.inode, NetNSID: -1, Host: n.ns.id == n.w.host}
	if s.Host {
		return s, nil
	}
	if err := n.w.fillSandbox(&s, int(n.ns.file.Fd())); err != nil {
		return Sandbox{}, fmt.Errorf("inspect container %s: %w", n.of.ID, err)
	}
	return s, nil
}

// fillSandbox lists a namespace's interfaces and finds their host veths.
func (w *Watcher) fillSandbox(s *Sandbox, netns int) error {
	inner, err := listLinks(netns, "")
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
		s.Interfaces = append(s.Interfaces, i)
	}
	return nil
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

// namespaceNumber returns the number that the namespace of conn has for another
// one, -1 if it has none.
func namespaceNumber(conn *netlink.Conn, netns int) (int, error) {
	return askNumber(conn, unix.NETNSA_FD, uint32(netns))
}

// askNumber asks by a descriptor of the namespace (NETNSA_FD) or a process in it
// (NETNSA_PID).
func askNumber(conn *netlink.Conn, kind uint16, value uint32) (int, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(kind, value)
	b, err := attrs.Encode()
	if err != nil {
		return 0, err
	}
	reply, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETNSID, Flags: netlink.Request},
		Data:   append(make([]byte, 4), b...), // struct rtgenmsg, padded
	})
	if err != nil {
		return 0, err
	}
	for _, m := range reply {
		if len(m.Data) < 4 {
			continue
		}
		answer, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, err
		}
		for answer.Next() {
			if answer.Type() == unix.NETNSA_NSID {
				return int(answer.Int32()), answer.Err()
			}
		}
	}
	return -1, nil
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

// sandboxNamespace opens the namespace of the first process that is not in the
// host's, or else the host's.
func (w *Watcher) sandboxNamespace(c Container) (namespace, error) {
	var host namespace
	var failure error
	for _, p := range w.processes(c) {
		ns, err := w.processNamespace(p)
		switch {
		case err != nil:
			failure = err
		case ns.file == nil: // ended
		case ns.id != w.host:
			if host.file != nil {
				host.file.Close()
			}
			return ns, nil
		case host.file != nil:
			ns.file.Close()
		default:
			host = ns
		}
	}
	if host.file != nil {
		return host, nil
	}
	if failure != nil {
		return namespace{}, failure
	}
	return namespace{}, ErrNoProcess
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
	if !slices.Contains(readProcesses(p.procs), p.pid) {
		return namespace{}, file.Close()
	}
	id, err := namespaceOf(int(file.Fd()))
	if err != nil {
		return namespace{}, errors.Join(err, file.Close())
	}
	return namespace{file: file, id: id}, nil
}

// processes returns the first processes of a container, oldest first. Where its
// own cgroup has none, as under crun, nspawn or an init that sorts its children,
// the nearest level below that has some counts.
func (w *Watcher) processes(c Container) []process {
	var found []process
	level := []string{c.Cgroup}
	for len(level) > 0 && len(found) == 0 {
		var below []string
		for _, dir := range level {
			found = append(found, w.processesIn(dir)...)
			below = append(below, w.below(dir, c)...)
		}
		level = below
	}
	slices.SortFunc(found, func(a, b process) int { return a.pid - b.pid })
	return found[:min(len(found), maxProcesses)]
}

func (w *Watcher) processesIn(dir string) []process {
	procs := filepath.Join(w.layout.Root, dir, "cgroup.procs")
	var found []process
	for _, pid := range readProcesses(procs) {
		found = append(found, process{pid: pid, procs: procs})
	}
	return found
}

// below lists the directories in dir that are no other container's.
func (w *Watcher) below(dir string, c Container) []string {
	entries, _ := os.ReadDir(filepath.Join(w.layout.Root, dir)) // gone is empty
	var dirs []string
	for _, e := range entries {
		child := path.Join(dir, e.Name())
		if inner, _ := Identify(child, w.patterns); e.IsDir() && inner.Cgroup == c.Cgroup {
			dirs = append(dirs, child)
		}
	}
	return dirs
}

// readProcesses reads a cgroup.procs file, which names processes in no order and
// perhaps twice. One that can't be read has none: the cgroup is gone, or its
// threads are spread over several. Processes that this PID namespace does not
// show are 0.
func readProcesses(procs string) []int {
	b, err := os.ReadFile(procs)
	if err != nil {
		return nil
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}
