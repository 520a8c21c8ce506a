// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// loopback is the index of lo, in each namespace.
const loopback = 1

// linkHeader is what an interface counts of a packet before its IP header: Ethernet's.
const linkHeader = 14

// reading is what the files of a namespace say at one moment, more or less: the kernel
// counts on while they are read.
type reading struct {
	interfaces []interfaceReading // without lo
	connections
}

// interfaceReading is what they say of one interface.
type interfaceReading struct {
	name  string
	index int
	up    bool
	deviceReading
	ipv6 duplex // what of it was IPv6, about, with a link header for each packet
}

// errElsewhere says that a process has ended, or is in another namespace than expected.
var errElsewhere = errors.New("no process of the namespace")

// files are the kernel's files about processes.
type files struct{ proc string }

func (f files) path(pid int, name string) string {
	return filepath.Join(f.proc, strconv.Itoa(pid), name)
}

// namespace returns a number for the network namespace of a process, which no other one
// has at the same time: the inode of its net/dev. That of ns/net would be hidden from
// whoever may not trace the process, and this one is the number of what we read, also on
// old kernels whose /proc/<pid>/net lags behind a process that changes its namespace.
func (f files) namespace(pid int) (uint64, error) { return inode(f.path(pid, "net/dev")) }

// host returns the number of our own namespace.
func (f files) host() (uint64, error) { return inode(filepath.Join(f.proc, "self/net/dev")) }

// netns returns the inode of the namespace itself, or 0 where it is hidden from us.
func (f files) netns(pid int) uint64 {
	number, _ := inode(f.path(pid, "ns/net"))
	return number
}

// open reports whether a namespace has an interface that is up or was, other than lo. What is
// not in there any more may have.
func (f files) open(pid int, namespace uint64) bool {
	now, err := f.read(pid, namespace)
	return err != nil || slices.ContainsFunc(now.interfaces, func(i interfaceReading) bool { return i.up || i.duplex != (duplex{}) })
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// read reads the files of a namespace, by a process that was seen in it. Where it is not
// in there any more, or the pid is another's by now, the error is [errElsewhere].
func (f files) read(pid int, namespace uint64) (reading, error) {
	r, err := f.readAll(pid)
	if now, statErr := f.namespace(pid); statErr != nil || now != namespace {
		return reading{}, errElsewhere
	}
	if err != nil {
		return reading{}, fmt.Errorf("read counters of network namespace by process %d: %w", pid, err)
	}
	return r, nil
}

func (f files) readAll(pid int) (r reading, err error) {
	counters, err := parsed(f.path(pid, "net/dev"), parseDev)
	if err != nil {
		return r, err
	}
	if r.connections, err = parsed(f.path(pid, "net/snmp"), parseSNMP); err != nil {
		return r, err
	}
	up, err := parsed(f.path(pid, "net/igmp"), parseIGMP)
	anyUp := errors.Is(err, fs.ErrNotExist) // a kernel without multicast: it can't be told
	if err != nil && !anyUp {
		return r, err
	}
	for name, counted := range counters {
		index, isUp := up[name]
		i := interfaceReading{name: name, index: index, up: isUp || anyUp, deviceReading: counted}
		six, err := parsed(f.path(pid, filepath.Join("net/dev_snmp6", name)), parseSNMP6)
		switch {
		case err == nil:
			i.index, i.ipv6 = six.index, six.onLink()
		case !errors.Is(err, fs.ErrNotExist): // no IPv6 on it
			return r, err
		}
		if i.index != 0 && i.index != loopback {
			r.interfaces = append(r.interfaces, i)
		}
	}
	return r, nil
}

// onLink returns what the packets of an interface's IPv6 layer are on the interface.
func (s ipv6) onLink() duplex {
	s.receive.Bytes += linkHeader * s.receive.Packets
	s.transmit.Bytes += linkHeader * s.transmit.Packets
	return s.duplex
}

func parsed[T any](path string, parse func([]byte) (T, error)) (found T, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return found, err
	}
	return parse(text)
}
