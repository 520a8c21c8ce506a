// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrPartial means that links changed while they were listed, if need be several
// times: what is listed exists, and what is missing may exist too.
var ErrPartial = errors.New("interrupted by changes, the list may lack some")

var native = binary.NativeEndian

// answerWithin bounds how long the kernel's answers to one question may take, so that
// goroutines that ask can be joined. The kernel answers while it is asked: an answer this
// late never comes.
const answerWithin = 30 * time.Second

// dial opens an rtnetlink socket in a network namespace, 0 for the process's own.
// It is opened on a thread of its own, which ends if it can't go back. Without groups the
// socket is for questions, and has a deadline: one that is kept gets a new one by expect.
func dial(netns int, groups uint32) (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns, Groups: groups})
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if groups != 0 {
		return conn, nil
	}
	if err := expect(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink: %w", err), conn.Close())
	}
	return conn, nil
}

// expect gives the answer to the next question on a socket its deadline.
func expect(conn *netlink.Conn) error { return conn.SetReadDeadline(time.Now().Add(answerWithin)) }

// dumpBuffer holds what one read of a dump returns: the kernel's answers are at
// most 32 KiB. It makes them as large as the buffers that it has seen.
const dumpBuffer = 64 << 10

// dump asks for all there is of a kind (an RTM_GET…) and hands each answer's payload
// to take, which must not keep it. The error is ErrPartial, after the last answer, if
// the dump was interrupted. After another one the socket may hold more answers.
//
// conn.Receive does not do: the flag for an interruption can be on the closing
// message alone, which it keeps to itself.
func dump(conn *netlink.Conn, request netlink.HeaderType, payload, buf []byte, take func(answer []byte) error) error {
	_, err := conn.Send(netlink.Message{
		Header: netlink.Header{Type: request, Flags: netlink.Request | netlink.Dump},
		Data:   payload,
	})
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	interrupted := false
	for {
		n, err := receive(raw, buf)
		if err != nil {
			return err
		}
		for rest := buf[:n]; len(rest) > 0; {
			var m netlink.Message
			if m, rest, err = cutMessage(rest); err != nil {
				return err
			}
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
			switch m.Header.Type {
			case netlink.Done, netlink.Error:
				return dumpResult(m.Data, interrupted)
			case request - 2: // RTM_NEW… of RTM_GET…
				if err := take(m.Data); err != nil {
					return err
				}
			}
		}
	}
}

// dumpResult reads the error number that closes a dump.
func dumpResult(data []byte, interrupted bool) error {
	if len(data) >= 4 {
		if errno := int32(native.Uint32(data)); errno < 0 {
			return os.NewSyscallError("dump", syscall.Errno(-errno))
		}
	}
	if interrupted {
		return ErrPartial
	}
	return nil
}

// cutMessage takes the first message off what one read returned, without a copy.
func cutMessage(b []byte) (m netlink.Message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, fmt.Errorf("parse dump: %d bytes left", len(b))
	}
	m.Header = netlink.Header{
		Length:   native.Uint32(b),
		Type:     netlink.HeaderType(native.Uint16(b[4:])),
		Flags:    netlink.HeaderFlags(native.Uint16(b[6:])),
		Sequence: native.Uint32(b[8:]),
		PID:      native.Uint32(b[12:]),
	}
	size := uint64(m.Header.Length)
	if size < unix.SizeofNlMsghdr || size > uint64(len(b)) {
		return m, nil, fmt.Errorf("parse dump: message of %d bytes in %d", size, len(b))
	}
	m.Data = b[unix.SizeofNlMsghdr:size]
	return m, b[aligned(int(size), len(b)):], nil
}

// aligned returns where what follows a message or an attribute begins.
func aligned(size, end int) int { return min((size+3)&^3, end) }

func receive(raw syscall.RawConn, buf []byte) (n int, err error) {
	rawErr := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if rawErr != nil {
		return 0, rawErr
	}
	return n, os.NewSyscallError("recvfrom", err)
}
