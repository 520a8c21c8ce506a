// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Spread says over which network namespaces the threads of a container are spread. It is
// threads that are looked at, since each can be in another namespace than its process.
type Spread int

// The spreads.
const (
	Together   Spread = iota // all in one
	Apart                    // in several, none of which is the host's
	AlsoInHost               // some in the host's, and some not
	Unsure                   // in one, or in several: there are too many, or some can't be looked at
)

// WithHost reports whether some may be in the host's namespace while others are not.
func (s Spread) WithHost() bool { return s == AlsoInHost || s == Unsure }

// Standing is where the threads of a container are.
type Standing struct {
	NetNS  uint64 // the inode of a network namespace in which some are; 0 if there are none
	Spread Spread
	// Aside: some are elsewhere, and are left out, since nothing of the container passes there.
	Aside bool
}

// Eyes look at threads.
type Eyes struct {
	Host uint64 // the number of the host's network namespace
	// NetNS returns the number of a thread's namespace. The error is [fs.ErrNotExist] if the
	// thread has ended.
	NetNS func(task int) (uint64, error)
	// Open reports whether anything leads out of the namespace of that number that a thread
	// is in. When in doubt it does.
	Open func(task int, netns uint64) bool
	// Aside reports whether a thread in the host's namespace is not the container's: see
	// [Watcher.Aside].
	Aside func(task int) bool
}

// maxTasks bounds how many threads of a container are asked for their namespace. Who has
// more may hide one behind the others, so of these nobody is sure.
const maxTasks = 4096

// Stand looks where the threads of a container are, in its cgroup and those below it that
// are no other container's. It takes a system call for each.
//
// It needs CAP_SYS_PTRACE for other users' processes.
func (w *Watcher) Stand(c Container) Standing {
	tasks, all := w.Tasks(c)
	return Eyes{Host: w.host.inode, NetNS: w.namespaceOfTask, Open: w.leadsOut, Aside: w.Aside}.Stand(tasks, all)
}

// Stand says where threads are; all: they are all.
//
// Those in a namespace that nothing leads out of are in none: a gofer of gVisor, a browser's
// own sandbox. What they have opened elsewhere before is counted there. And those that are not
// the container's are not looked at, unless all are.
func (e Eyes) Stand(tasks []int, all bool) Standing {
	s := e.stand(tasks, all)
	if s.Spread == Apart || s.Spread == AlsoInHost {
		if one, ok := e.only(tasks); ok {
			return Standing{NetNS: one, Aside: true}
		}
	}
	return s
}

// only returns the one namespace that threads are in if they are in no other one that counts.
func (e Eyes) only(tasks []int) (one uint64, ok bool) {
	seen := map[uint64]bool{}
	for _, task := range tasks {
		number, err := e.NetNS(task)
		switch {
		case gone(err), seen[number]:
			continue
		case err != nil:
			return 0, false
		case number == e.Host && e.Aside(task):
			continue
		case number == e.Host, len(seen) == maxNamespaces:
			return 0, false
		}
		seen[number] = true
		switch {
		case !e.Open(task, number):
		case ok:
			return 0, false
		default:
			one, ok = number, true
		}
	}
	return one, ok
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

func (e Eyes) stand(tasks []int, all bool) (s Standing) {
	if !all {
		return Standing{Spread: Unsure} // whatever these say
	}
	inHost, elsewhere := false, false
	for _, task := range tasks {
		number, err := e.NetNS(task)
		switch {
		case gone(err):
			continue
		case err != nil:
			all = false
			continue
		case s.NetNS == 0:
			s.NetNS = number
		case s.NetNS != number:
			s.Spread = Apart
		}
		inHost, elsewhere = inHost || number == e.Host, elsewhere || number != e.Host
		if inHost && elsewhere {
			s.Spread = AlsoInHost
			return s
		}
	}
	if !all {
		s.Spread = Unsure
	}
	return s
}

func (w *Watcher) namespaceOfTask(task int) (uint64, error) {
	dir := filepath.Join(w.proc, strconv.Itoa(task))
	var st unix.Stat_t
	err := unix.Stat(dir+"/ns/net", &st)
	if err == unix.EACCES { // also of one that ends just then
		if gone := unix.Access(dir, unix.F_OK); gone != nil {
			err = gone
		}
	}
	return st.Ino, err
}

// leadsOut is for [Eyes].
func (w *Watcher) leadsOut(task int, netns uint64) bool {
	file, err := os.Open(filepath.Join(w.proc, strconv.Itoa(task), "ns/net"))
	if err != nil {
		return true
	}
	defer file.Close()
	id, err := namespaceOf(int(file.Fd()))
	return err != nil || id.inode != netns || isOpen(namespace{file: file})
}

// isOpen says whether anything leads out of a namespace, to wherever.
func isOpen(ns namespace) bool {
	links, err := listLinks(int(ns.file.Fd()), "")
	return err != nil || slices.ContainsFunc(links, func(l link) bool { return l.crosses() || l.way() != staysInside })
}

// Tasks returns the ids of a container's threads: of those in its cgroup, and in those below
// that are no other container's. Not all: there are, or may be, more than these.
//
// It needs no capability.
func (w *Watcher) Tasks(c Container) (ids []int, all bool) {
	level, looked := []string{c.Cgroup}, 0
	for len(level) > 0 {
		var below []string
		for _, dir := range level {
			if looked++; looked > maxDirectories {
				return ids, false
			}
			in, err := w.tasksIn(dir)
			if ids = append(ids, in...); err != nil || len(ids) > w.maxTasks {
				return ids[:min(len(ids), w.maxTasks)], false
			}
			below = append(below, w.belowOf(dir, c)...)
		}
		level = below
	}
	return ids, true
}

func (w *Watcher) tasksIn(dir string) ([]int, error) {
	name := "tasks"
	if w.layout.Root == w.layout.Unified {
		name = "cgroup.threads"
	}
	f, err := os.Open(filepath.Join(w.layout.Root, dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // gone, and nobody is in it
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const longest = len("4194304\n")
	b, err := io.ReadAll(io.LimitReader(f, int64(maxTasks+1)*int64(longest)))
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return parseIDs(b), err
}

// mayHaveBelow spares reading a directory: cgroupfs counts in its links those below it.
func (w *Watcher) mayHaveBelow(dir string) bool {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(w.layout.Root, dir), &st)
	return err == nil && st.Nlink != 2
}

// belowOf leaves out the directory in which nspawn's own supervisor is: that stays in the
// host's network, and who is in the container can't get there.
func (w *Watcher) belowOf(dir string, c Container) []string {
	dirs := w.below(dir, c)
	if c.Runtime != "nspawn" {
		return dirs
	}
	return slices.DeleteFunc(dirs, func(d string) bool { return d == path.Join(c.Cgroup, "supervisor") })
}

// given says whether one of the interfaces in a namespace leads to the host's, or is
// physical. A link can be put on top of one in another namespace only with CAP_NET_ADMIN there.
func (w *Watcher) given(interfaces []Interface, links []link, netns int) (bool, error) {
	if slices.ContainsFunc(interfaces, func(i Interface) bool { return i.HostIndex != 0 || i.Kind == "" }) {
		return true, nil
	}
	if !slices.ContainsFunc(links, link.stacked) {
		return false, nil
	}
	number, err := w.hostNumberIn(netns)
	if err != nil {
		return false, fmt.Errorf("ask for the host's number: %w", err)
	}
	onHost := func(l link) bool { return l.stacked() && l.netnsid == number }
	return number >= 0 && slices.ContainsFunc(links, onHost), nil
}

// stacked says whether a link stands on one in another namespace, as a macvlan does.
func (l link) stacked() bool { return l.elsewhere && l.kind != "veth" && l.kind != "netkit" }

// hostNumberIn returns the number that a namespace has for the host's, -1 if none.
func (w *Watcher) hostNumberIn(netns int) (int, error) {
	conn, err := dial(netns, 0)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	host, err := w.hostFile()
	if err != nil {
		return -1, err
	}
	defer host.Close()
	return namespaceNumber(conn, int(host.Fd()))
}
