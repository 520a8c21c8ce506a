// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// NetworkNamespaces returns the network namespaces that some processes are in, by inode, each
// with one of them. What has ended is left out.
func (w *Watcher) NetworkNamespaces(pids []int) map[uint64]int {
	found := map[uint64]int{}
	for _, pid := range pids {
		target, _ := os.Readlink(w.processFile(pid, "ns/net"))
		if inode := inodeIn(target); inode != 0 {
			found[inode] = pid
		}
	}
	return found
}

func (w *Watcher) processFile(pid int, name string) string {
	return filepath.Join(w.proc, strconv.Itoa(pid), name)
}

// The kernel's numbers of inet_diag, include/uapi/linux/inet_diag.h and tcp_states.h.
const (
	diagRequestSize = 56 // struct inet_diag_req_v2
	diagMessageSize = 72 // struct inet_diag_msg
	diagCgroupID    = 21 // INET_DIAG_CGROUP_ID
	tcpEstablished  = 1
)

var errNoCgroupIDs = errors.New("the kernel does not say which cgroup a socket is in")

// Established returns how many TCP connections are established in the network namespace of a
// process, by the id of the cgroup that each socket was made in.
//
// Requires Linux 5.8 with inet_diag, and CAP_SYS_ADMIN for a namespace that is not ours.
func (w *Watcher) Established(pid int) (map[uint64]uint64, error) {
	file, err := os.Open(w.processFile(pid, "ns/net"))
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	defer file.Close()
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: int(file.Fd())})
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	defer conn.Close()
	found := map[uint64]uint64{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, diagRequestSize)
		request[0], request[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(request[4:], 1<<tcpEstablished)
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
			Data:   request,
		})
		if err != nil {
			return nil, fmt.Errorf("list connections: %w", err)
		}
		for _, m := range messages {
			id, err := cgroupOf(m.Data)
			if err != nil {
				return nil, fmt.Errorf("list connections: %w", err)
			}
			found[id]++
		}
	}
	return found, nil
}

// cgroupOf returns the id of the cgroup of a socket in an answer of inet_diag.
func cgroupOf(message []byte) (uint64, error) {
	if len(message) < diagMessageSize {
		return 0, fmt.Errorf("%d bytes of a socket, expected %d", len(message), diagMessageSize)
	}
	attributes, err := netlink.NewAttributeDecoder(message[diagMessageSize:])
	if err != nil {
		return 0, err
	}
	for attributes.Next() {
		if attributes.Type() == diagCgroupID {
			return attributes.Uint64(), attributes.Err()
		}
	}
	return 0, errors.Join(errNoCgroupIDs, attributes.Err())
}

// ListenDrops returns how many connections the kernel has dropped in the network namespace of a
// process because nobody accepted them, since that was made.
func (w *Watcher) ListenDrops(pid int) (uint64, error) {
	text, err := os.ReadFile(w.processFile(pid, "net/netstat"))
	if err != nil {
		return 0, fmt.Errorf("read listen drops: %w", err)
	}
	return parseListenDrops(text)
}

// parseListenDrops reads a net/netstat file: for each group of numbers a line of names and one
// of values (netstat_seq_show in net/ipv4/proc.c).
func parseListenDrops(text []byte) (uint64, error) {
	var names [][]byte
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names[:min(len(names), len(fields))] {
			if string(name) == "ListenDrops" {
				return strconv.ParseUint(string(fields[i]), 10, 64)
			}
		}
	}
	return 0, errors.New("read listen drops: expected ListenDrops among those of TcpExt in net/netstat")
}
