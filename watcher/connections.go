// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

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
	drops, err := parseGroup(text, "net/netstat", "TcpExt:", "ListenDrops")
	if err != nil {
		return 0, fmt.Errorf("read listen drops: %w", err)
	}
	return drops[0], nil
}

// NamespaceTCP is what the kernel counts of TCP for a network namespace since that was made, of
// IPv4 and IPv6 together. Its other counters do not mean what the program for connections counts:
//
//   - AttemptFails are not the attempts that failed. tcp_done and tcp_check_req raise it for a
//     connection that somebody else begins, too, and close() before an answer raises nothing.
//   - RetransSegs has SYN-ACKs: tcp_rtx_synack raises it, beside __tcp_retransmit_skb.
//   - CurrEstab has the state CLOSE_WAIT beside ESTABLISHED since Linux 6.10, and in updates of the
//     kernels before (tcp_set_state).
//
// Nothing counts attempts that succeeded, or established connections that are over.
type NamespaceTCP struct {
	// ConnectAttempts is ActiveOpens: tcp_connect raises it once it has sent a SYN.
	ConnectAttempts uint64
	// Accepts is PassiveOpens: tcp_create_openreq_child raises it with the last ACK of a handshake,
	// or with the SYN of TCP Fast Open.
	Accepts uint64
	// Resets is EstabResets: tcp_set_state raises it on the way from ESTABLISHED or CLOSE_WAIT to
	// CLOSE.
	Resets uint64
	// ListenDrops is that of TcpExt: tcp_listendrop raises it, for SYNs and for last ACKs.
	ListenDrops uint64
}

// ReadTCP returns what the kernel counts of TCP for the network namespace of a process. proc is
// where a procfs is mounted.
func ReadTCP(proc string, pid int) (n NamespaceTCP, err error) {
	var text [2][]byte
	for i, name := range [...]string{"net/snmp", "net/netstat"} {
		if text[i], err = os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), name)); err != nil {
			return n, fmt.Errorf("read TCP counters: %w", err)
		}
	}
	if err := n.parse(text[0], text[1]); err != nil {
		return n, fmt.Errorf("read TCP counters: %w", err)
	}
	return n, nil
}

// TCPIn is [ReadTCP] for a process that was seen in a namespace. It also returns a time at which
// the namespace was there already.
func (w *Watcher) TCPIn(inode uint64, pid int) (NamespaceTCP, time.Time, error) {
	n, err := ReadTCP(w.proc, pid)
	if err != nil {
		return n, time.Time{}, err
	}
	// The process may have ended, and left its pid to another one, or be in another namespace now.
	now, since, err := NamespaceSince(w.proc, pid)
	if err == nil && now != inode {
		err = fmt.Errorf("read TCP counters: process %d is not in net:[%d] any more", pid, inode)
	}
	return n, since, err
}

// NamespaceSince returns the inode of a process's network namespace, and a time at which the
// namespace was there already. The kernel makes the inode at the first stat and drops it after the
// last, unless it is mounted, as runtimes do, or open. proc is where a procfs is mounted.
//
// Returns an error if the process may not be traced.
func NamespaceSince(proc string, pid int) (inode uint64, since time.Time, err error) {
	var st unix.Stat_t
	path := filepath.Join(proc, strconv.Itoa(pid), "ns/net")
	if err := unix.Stat(path, &st); err != nil {
		return 0, since, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, time.Unix(st.Ctim.Unix()), nil
}

// joinWithin is how long before a container's cgroup its network namespace may be made for it.
const joinWithin = 2 * time.Second

// JoinedLate reports whether a container came into a network namespace that had been there since a
// moment at the latest: what that had counted before is not the container's.
func (c Container) JoinedLate(since time.Time) bool {
	return since.Before(c.CreatedAt.Add(-joinWithin))
}

func (n *NamespaceTCP) parse(snmp, netstat []byte) error {
	of, err := parseGroup(snmp, "net/snmp", "Tcp:", "ActiveOpens", "PassiveOpens", "EstabResets")
	if err != nil {
		return err
	}
	drops, err := parseGroup(netstat, "net/netstat", "TcpExt:", "ListenDrops")
	if err != nil {
		return err
	}
	n.ConnectAttempts, n.Accepts, n.Resets, n.ListenDrops = of[0], of[1], of[2], drops[0]
	return nil
}

// parseGroup reads numbers of a group from a net/snmp or net/netstat file. Each group has a line of
// names and one of values (snmp_seq_show and netstat_seq_show in net/ipv4/proc.c). Numbers
// are told as unsigned long, so they wrap at 2^32 where that has 32 bits.
func parseGroup(text []byte, file, group string, wanted ...string) ([]uint64, error) {
	var names, values [][]byte
	for line := range bytes.Lines(text) {
		if fields := bytes.Fields(line); len(fields) == 0 || string(fields[0]) != group {
			continue
		} else if names == nil {
			names = fields
		} else {
			values = fields
			break
		}
	}
	found := make([]uint64, len(wanted))
	for i, name := range wanted {
		at := slices.IndexFunc(names, func(b []byte) bool { return string(b) == name })
		if at < 0 || at >= len(values) {
			return nil, fmt.Errorf("parse %s: expected %s among those of %s", file, name, group)
		}
		n, err := strconv.ParseUint(string(values[at]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %s: expected a number, got %q", file, name, values[at])
		}
		found[i] = n
	}
	return found, nil
}
