// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is the network namespace of a container, held open, so that it can be looked
// at when the container's processes have ended. It lives on until Close, and so do the
// interfaces in it that nobody removes: hold it for no longer than a container starts.
//
// It is not safe for concurrent use.
type Namespace struct {
	w    *Watcher
	of   Container
	ns   namespace
	conn *netlink.Conn // in it, nil until Counters was called

	spread Spread // of the container when it was opened
}

// Hold opens the network namespace that Inspect would look at.
func (w *Watcher) Hold(c Container) (*Namespace, error) {
	stand := w.Stand(c)
	ns, err := w.sandboxNamespace(c, stand.Spread != Together || stand.Aside)
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", c.ID, err)
	}
	return &Namespace{w: w, of: c, ns: ns, spread: stand.Spread}, nil
}

// Close gives the namespace up.
func (n *Namespace) Close() error {
	if n.conn == nil {
		return n.ns.file.Close()
	}
	return errors.Join(n.conn.Close(), n.ns.file.Close())
}

// Inode tells the namespace from all that exist with it.
func (n *Namespace) Inode() uint64 { return n.ns.id.inode }

// Host reports whether it is the host's own.
func (n *Namespace) Host() bool { return n.ns.id == n.w.host }

// FD is the open file of the namespace, valid until Close.
func (n *Namespace) FD() int { return int(n.ns.file.Fd()) }

// Inspect is [Watcher.Inspect] for a namespace that is held.
func (n *Namespace) Inspect() (Sandbox, error) {
	s := Sandbox{NetNS: n.ns.id.inode, NetNSID: -1, Host: n.Host()}
	if s.Host {
		return s, nil
	}
	if err := n.w.fillSandbox(&s, n.FD(), &own{w: n.w, of: n.of}); err != nil {
		return Sandbox{}, fmt.Errorf("inspect container %s: %w", n.of.ID, err)
	}
	return s, nil
}

// Counters returns the kernel's counters of an interface in the namespace, as the
// container sees it; asked is as in [Watcher.Counters]. A physical one's go back to when it
// was made, wherever it was.
//
// The error wraps [ErrGone] if there is no such interface.
func (n *Namespace) Counters(ifindex int, asked func()) (LinkCounters, error) {
	if n.conn == nil {
		conn, err := dial(n.FD(), 0)
		if err != nil {
			return LinkCounters{}, err
		}
		n.conn = conn
	}
	if err := expect(n.conn); err != nil {
		return LinkCounters{}, err
	}
	far, err := getStats(n.conn, ifindex, asked)
	if err != nil {
		return LinkCounters{}, fmt.Errorf("read counters of interface %d in net:[%d]: %w", ifindex, n.ns.id.inode, err)
	}
	return far.fromOtherEnd(), nil // what is read is named for a host veth, the other end
}

// Number returns the number that the host's namespace has for this one, a new one if it
// had none. Requires CAP_NET_ADMIN.
func (n *Namespace) Number() (int, error) {
	host, err := dial(n.w.netns, 0)
	if err != nil {
		return -1, err
	}
	defer host.Close()
	return numberNamespace(host, n.FD())
}

// NamespaceThere says whether the host's namespace has a number for a namespace that
// exists. It may be another one than it was: [NamespaceGone] tells.
//
// Requires Linux 4.20.
func (w *Watcher) NamespaceThere(nsid int) (bool, error) {
	host, err := dial(w.netns, 0)
	if err != nil {
		return false, err
	}
	defer host.Close()
	_, err = askNumber(host, unix.RTM_GETNSID, unix.NETNSA_NSID, uint32(nsid))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for namespace %d: %w", nsid, err)
	}
	return true, nil
}

// VisitNamespaces calls visit with those of some network namespaces that a process is in
// or that are mounted, one after the other, and returns the first error of visit. The
// namespace is closed after the call.
//
// What only an open file or a socket keeps alive is not found. It reads a link for each
// process on the host, and needs CAP_SYS_PTRACE.
func (w *Watcher) VisitNamespaces(inodes map[uint64]bool, visit func(*Namespace) error) error {
	paths, err := w.namespacePaths(inodes)
	if err != nil {
		return fmt.Errorf("find network namespaces: %w", err)
	}
	var errs []error
	for inode, candidates := range paths {
		for _, path := range candidates {
			found, err := w.visitNamespace(inode, path, visit)
			errs = append(errs, err)
			if found {
				break
			}
		}
	}
	return errors.Join(errs...)
}

func (w *Watcher) visitNamespace(inode uint64, path string, visit func(*Namespace) error) (found bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return false, nil // its process has ended
	}
	id, err := namespaceOf(int(file.Fd()))
	n := &Namespace{w: w, ns: namespace{file: file, id: id}}
	if err == nil && id.inode == inode && id.device == w.host.device && id != w.host {
		found, err = true, visit(n)
	}
	return found, errors.Join(err, n.Close())
}

// namespacePaths returns, by inode, files that are namespaces, or were a moment ago: the
// first of a few processes, and mounts.
func (w *Watcher) namespacePaths(inodes map[uint64]bool) (map[uint64][]string, error) {
	const candidates = 4 // a process may end meanwhile
	paths := map[uint64][]string{}
	mounts, err := os.ReadFile(filepath.Join(w.proc, "self/mountinfo"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// id, parent, device, root, mount point
		if f := strings.Fields(line); len(f) > 4 && inodes[inodeIn(f[3])] {
			inode := inodeIn(f[3])
			paths[inode] = append(paths[inode], unescapeMount.Replace(f[4]))
		}
	}
	entries, err := os.ReadDir(w.proc)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		path := filepath.Join(w.proc, e.Name(), "ns/net")
		target, _ := os.Readlink(path) // none for who has ended
		if inode := inodeIn(target); inodes[inode] && len(paths[inode]) < candidates {
			paths[inode] = append(paths[inode], path)
		}
	}
	return paths, nil
}

// inodeIn reads "net:[4026531840]", 0 if it is something else.
func inodeIn(name string) uint64 {
	number, ok := strings.CutPrefix(name, "net:[")
	if !ok {
		return 0
	}
	inode, _ := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode
}

// namespaceNumber returns the number that the namespace of conn has for another
// one, -1 if it has none.
func namespaceNumber(conn *netlink.Conn, netns int) (int, error) {
	return askNumber(conn, unix.RTM_GETNSID, unix.NETNSA_FD, uint32(netns))
}

// numberNamespace is namespaceNumber, and has the kernel choose a number if there is none.
func numberNamespace(conn *netlink.Conn, netns int) (int, error) {
	_, err := askNumber(conn, unix.RTM_NEWNSID, unix.NETNSA_FD, uint32(netns))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("give namespace a number: %w", err)
	}
	return namespaceNumber(conn, netns)
}

// askNumber sends a request about a namespace and returns the number in the answer, -1 if
// there is none.
func askNumber(conn *netlink.Conn, verb netlink.HeaderType, attribute uint16, of uint32) (int, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(attribute, of)
	flags := netlink.Request
	if verb == unix.RTM_NEWNSID {
		attrs.Int32(unix.NETNSA_NSID, -1)
		flags |= netlink.Acknowledge
	}
	b, err := attrs.Encode()
	if err != nil {
		return -1, err
	}
	reply, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: verb, Flags: flags},
		Data:   append(make([]byte, sizeofRtgenmsg), b...),
	})
	if err != nil {
		return -1, err
	}
	for _, m := range reply {
		if m.Header.Type != unix.RTM_NEWNSID {
			continue
		}
		if n, ok := parseNumber(m.Data); ok {
			return n, nil
		}
	}
	return -1, nil
}

// sizeofRtgenmsg is struct rtgenmsg, padded.
const sizeofRtgenmsg = 4

// parseNumber reads the payload of a message about a namespace.
func parseNumber(b []byte) (nsid int, ok bool) {
	if len(b) < sizeofRtgenmsg {
		return 0, false
	}
	answer, err := netlink.NewAttributeDecoder(b[sizeofRtgenmsg:])
	if err != nil {
		return 0, false
	}
	for answer.Next() {
		if answer.Type() == unix.NETNSA_NSID {
			return int(answer.Int32()), true
		}
	}
	return 0, false
}

func namespaceGone(b []byte) []Event {
	if nsid, ok := parseNumber(b); ok {
		return []Event{NamespaceGone{NetNSID: nsid}}
	}
	return nil
}

// linkMoved leaves veths to what is said of their other ends.
func linkMoved(l link) []Event {
	if !l.moved || l.kind == "veth" {
		return nil
	}
	return []Event{LinkMoved{NetNSID: l.movedTo}}
}
