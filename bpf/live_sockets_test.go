// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// callsVariable has this program call what TestSockets counts. Its value is the most that sendfile
// hands over at a time.
const callsVariable = "NETTALLY_TEST_SOCKET_CALLS"

func init() {
	var c caller
	if _, err := fmt.Sscan(os.Getenv(callsVariable), &c.piece); err != nil {
		return
	}
	runtime.LockOSThread()
	defer func() {
		if failed := recover(); failed != nil {
			fmt.Fprintln(os.Stderr, failed)
			os.Exit(1)
		}
	}()
	c.all()
	c.check(json.NewEncoder(os.Stdout).Encode(c.did))
	os.Exit(0)
}

// A caller sends and receives on sockets of its own, and keeps what it did.
type caller struct {
	did   SocketCounters
	piece int
}

func (c *caller) check(err error) {
	if err != nil {
		_, _, line, _ := runtime.Caller(1)
		panic(fmt.Sprintf("line %d: %v", line, err))
	}
}

func (c *caller) all() {
	lo, err := netlink.LinkByName("lo")
	c.check(err)
	c.check(netlink.LinkSetUp(lo))
	for _, to := range []unix.Sockaddr{&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}} {
		family := unix.AF_INET
		if _, ok := to.(*unix.SockaddrInet6); ok {
			family = unix.AF_INET6
		}
		c.streams(SocketTCP, c.connected(family, unix.SOCK_STREAM, to))
		c.messages(SocketUDP, c.connected(family, unix.SOCK_DGRAM, to))
	}
	c.streams(SocketUnix, c.pair(unix.SOCK_STREAM))
	c.messages(SocketUnix, c.pair(unix.SOCK_DGRAM))
	c.messages(SocketUnix, c.pair(unix.SOCK_SEQPACKET))

	// The function for pages of such a socket calls that for messages.
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)
	c.check(err)
	c.check(unix.Connect(raw, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	c.sendFile(SocketUDP, raw, 1000)
}

// connected returns two sockets that are connected with one another over loopback.
func (c *caller) connected(family, kind int, to unix.Sockaddr) (pair [2]int) {
	server, err := unix.Socket(family, kind, 0)
	c.check(err)
	c.check(unix.Bind(server, to))
	bound, err := unix.Getsockname(server)
	c.check(err)
	if kind == unix.SOCK_STREAM {
		c.check(unix.Listen(server, 1))
	}
	pair[0], err = unix.Socket(family, kind, 0)
	c.check(err)
	c.check(unix.Connect(pair[0], bound))
	pair[1] = server
	if kind == unix.SOCK_STREAM {
		pair[1], _, err = unix.Accept(server)
		c.check(err)
	}
	return pair
}

func (c *caller) pair(kind int) [2]int {
	pair, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	c.check(err)
	return pair
}

func (c *caller) streams(of int, pair [2]int) {
	c.send(of, pair[0], 1000)
	c.receive(of, pair[1], 1000)
	c.sendFile(of, pair[0], 20_000)
	c.receive(of, pair[1], 20_000)
	c.nothing(pair[1])
	c.check(unix.Shutdown(pair[0], unix.SHUT_WR))
	c.receive(of, pair[1], 0)
	if err := unix.Send(pair[0], make([]byte, 10), unix.MSG_NOSIGNAL); err != unix.EPIPE {
		c.check(fmt.Errorf("send after shutdown: %v", err))
	}
}

func (c *caller) messages(of int, pair [2]int) {
	c.send(of, pair[0], 100)
	c.receive(of, pair[1], 100)
	c.sendMany(of, pair[0])
	for range 3 {
		c.receive(of, pair[1], 50)
	}
	c.sendFile(of, pair[0], 3000)
	c.receive(of, pair[1], 3000)
	c.nothing(pair[1])
}

func (c *caller) send(of, fd, size int) {
	n, err := unix.Write(fd, make([]byte, size))
	c.check(err)
	count(&c.did.Send[of], 1, n)
}

// sendMany sends three messages by one system call.
func (c *caller) sendMany(of, fd int) {
	var text [50]byte
	part := unix.Iovec{Base: &text[0]}
	part.SetLen(len(text))
	var messages [3]struct {
		unix.Msghdr
		Len uint32
	}
	for i := range messages {
		messages[i].Iov, messages[i].Iovlen = &part, 1
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages)), uintptr(len(messages)), 0, 0, 0)
	if n != 3 {
		c.check(fmt.Errorf("sendmmsg: %d, %v", n, errno))
	}
	count(&c.did.Send[of], 3, 3*len(text))
}

func (c *caller) sendFile(of, fd, size int) {
	file, err := unix.MemfdCreate("file", 0)
	c.check(err)
	defer unix.Close(file)
	_, err = unix.Write(file, make([]byte, size))
	c.check(err)
	n, err := unix.Sendfile(fd, file, new(int64), size)
	c.check(err)
	if n != size {
		c.check(fmt.Errorf("sendfile: %d of %d", n, size))
	}
	count(&c.did.Send[of], (size+c.piece-1)/c.piece, size)
}

// receive receives a message, or that many bytes, after a look.
func (c *caller) receive(of, fd, size int) {
	text := make([]byte, max(size, 1))
	_, _, err := unix.Recvfrom(fd, text, unix.MSG_PEEK)
	c.check(err)
	n, _, err := unix.Recvfrom(fd, text, unix.MSG_WAITALL)
	c.check(err)
	if n != size {
		c.check(fmt.Errorf("received %d of %d", n, size))
	}
	count(&c.did.Receive[of], 1, n)
}

func (c *caller) nothing(fd int) {
	if _, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_DONTWAIT); err != unix.EAGAIN {
		c.check(fmt.Errorf("receive what is not there: %v", err))
	}
}

func count(to *SocketCalls, calls, bytes int) {
	to.Calls += uint64(calls)
	to.Bytes += uint64(bytes)
}

// Nothing is said to count that can't be attached.
func TestSocketsCountedBy(t *testing.T) {
	_, err := SocketsCountedBy()
	need.Kernel(t, "what counts at sockets", err)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	must(t, withoutCapabilities(func() error {
		if by, err := SocketsCountedBy(); !errors.Is(err, unix.EPERM) {
			t.Errorf("without capabilities they are counted by %q, %v, want EPERM", by, err)
		}
		return nil
	}))
}

// Calls of each kind count as they were called, by whatever this kernel has, for their cgroup and
// the one above.
func TestSockets(t *testing.T) {
	d := load(t, Options{})
	by, err := SocketsCountedBy()
	need.Kernel(t, "what counts at sockets", err)
	t.Log(by)
	if err := errors.Join(d.LoadTCP(), d.LoadSockets()); err != nil {
		t.Fatal(err)
	}
	outer := requestCgroup(t)
	inner := filepath.Join(outer, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(inner) })
	var slots []Slot
	for _, dir := range []string{outer, inner} {
		l := nettest.Must(ebpflink.AttachCgroup(ebpflink.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupSockOps, Program: d.TCP}))(t)
		t.Cleanup(func() { l.Close() })
		slot := nettest.Must(d.Take(Target{Cgroup: inodeOf(t, dir), Sockets: true}))(t)
		if err := d.BindCgroup(slot); err != nil {
			t.Fatal(err)
		}
		slots = append(slots, slot)
	}
	cgroup := nettest.Must(os.Open(inner))(t)
	defer cgroup.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	piece := 65536
	if d.sockets.Programs["inet_sendpage"] != nil {
		piece = os.Getpagesize()
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", callsVariable, piece))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Cloneflags: syscall.CLONE_NEWNET}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	said, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var want SocketCounters
	if err := json.Unmarshal(said, &want); err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		got, err := d.ReadSockets(slot)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v (-called +counted):\n%s", err, diff)
		}
	}
}
