// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A tun device's other end is a file that a process holds. If it is the container's own, as a
// VPN's, what passes the device leaves in other packets by another interface of the container. If
// it is somebody else's, who has moved the device in, the device is a way out.

// maxFiles bounds how many open files of a container's processes are looked at.
const maxFiles = 1 << 16

// open says whether packets can pass a tun device: somebody holds its other end.
func (l link) open() bool { return l.up && l.carrier }

// holds says whether the other end of a tun device is held by the container's own processes,
// and all of its queues. in says whether a namespace is the one that the device is in. Where
// that can't be told they don't. Where a process's files may not be borrowed, as under the unit,
// their names decide: a VPN in a container is common, and a device that was moved in is not.
func (o *own) holds(l link, in func(netns int) bool) bool {
	var queues []int
	defer func() {
		for _, fd := range queues {
			unix.Close(fd)
		}
	}()
	files := 0
	for _, pid := range o.processes() {
		dir := filepath.Join(o.w.proc, strconv.Itoa(pid))
		entries, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, e := range entries {
			if files++; files > maxFiles {
				return false
			}
			if !opensTun(dir, e.Name(), l.name) {
				continue
			}
			fd, err := o.w.borrow(pid, e.Name(), in)
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
				return true
			}
			if err != nil {
				continue
			}
			if isNew(queues, fd) {
				queues = append(queues, fd)
			} else {
				unix.Close(fd)
			}
			if len(queues) >= max(1, l.queues) {
				return true
			}
		}
	}
	return false
}

// opensTun says whether a file of a process is a queue of a tun device with a name, which one
// in another namespace may have, too.
func opensTun(dir, file, name string) bool {
	if target, _ := os.Readlink(filepath.Join(dir, "fd", file)); !strings.HasSuffix(target, "tun") {
		return false // it is not read: a file may be of any kind
	}
	info, _ := os.ReadFile(filepath.Join(dir, "fdinfo", file))
	for line := range strings.Lines(string(info)) {
		if is, ok := strings.CutPrefix(line, "iff:"); ok {
			return strings.TrimSpace(is) == name
		}
	}
	return false
}

// queueOf borrows a queue from a process, if its device is in a namespace.
func queueOf(pid int, file string, in func(netns int) bool) (int, error) {
	number, err := strconv.Atoi(file)
	if err != nil {
		return -1, err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, number, 0)
	if err != nil {
		return -1, err
	}
	netns, err := unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	defer unix.Close(netns)
	if !in(netns) {
		unix.Close(fd)
		return -1, unix.ENODEV
	}
	return fd, nil
}

// isNew says that a file is none of those that are held: of a queue there can be copies. Before
// Linux 6.10, which can tell, there is one queue.
func isNew(held []int, fd int) bool {
	for _, other := range held {
		if same, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_QUERY, other); err != nil || same != 0 {
			return false
		}
	}
	return true
}

// markHeld notes which tun devices in the container's namespace somebody else holds.
func (o *own) markHeld(links []link, netns uint64) {
	here := func(fd int) bool {
		id, err := namespaceOf(fd)
		return err == nil && id.inode == netns
	}
	for n := range links {
		if l := &links[n]; l.kind == "tun" && l.open() {
			l.outside = !o.holds(*l, here)
		}
	}
}
