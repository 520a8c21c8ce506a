// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

const (
	// answerWithin bounds how long the kernel may take for a part of a dump.
	answerWithin = 30 * time.Second
	// readBuffer holds one read: parts of a dump are 32 KiB at most.
	readBuffer = 64 << 10
	// atATime is how many events are read before anything else is done.
	atATime = 1024

	sizeofNfgenmsg  = 4
	messageGet      = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	messageGetStats = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5 // IPCTNL_MSG_CT_GET_STATS
	statsEntries    = 1                                 // CTA_STATS_GLOBAL_ENTRIES
)

// errOverflow says that the kernel had no room for an event. The socket goes on.
var errOverflow = errors.New("events were lost")

// socket is one of NETLINK_NETFILTER, for events or for dumps.
type socket struct {
	*netlink.Conn
	raw syscall.RawConn
	buf []byte
}

func open(netns int, groups ...uint32) (*socket, error) {
	return openWith(make([]byte, readBuffer), netns, groups...)
}

// openWith opens a socket that shares its buffer with others: none keeps what it has read.
func openWith(buf []byte, netns int, groups ...uint32) (*socket, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("open nfnetlink: %w", err)
	}
	s := &socket{Conn: conn, buf: buf}
	if s.raw, err = conn.SyscallConn(); err == nil {
		for _, group := range groups {
			err = errors.Join(err, conn.JoinGroup(group))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nfnetlink: %w", err), conn.Close())
	}
	return s, nil
}

// size gives the socket a receive buffer, beyond net.core.rmem_max where we may.
func (s *socket) size(bytes int) (failed error) {
	err := s.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
		if failed != nil {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
		}
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", failed))
}

// poll reads what is there, at most so many times, and hands each message to take.
func (s *socket) poll(times int, take func(netlink.Message) error) (more bool, err error) {
	for range times {
		n, err := 0, error(nil)
		if failed := s.raw.Control(func(fd uintptr) { n, err = readOnce(int(fd), s.buf) }); failed != nil {
			return false, failed
		}
		if errors.Is(err, unix.EAGAIN) {
			return false, nil
		}
		if err == nil {
			_, err = cut(s.buf[:n], take)
		}
		if err != nil {
			return true, err
		}
	}
	return true, nil
}

// wait reads once, as soon as there is something.
func (s *socket) wait(take func(netlink.Message) error) (done bool, err error) {
	n := 0
	failed := s.raw.Read(func(fd uintptr) bool {
		n, err = readOnce(int(fd), s.buf)
		return !errors.Is(err, unix.EAGAIN)
	})
	if failed != nil {
		return false, failed
	}
	if err != nil {
		return false, err
	}
	return cut(s.buf[:n], take)
}

func readOnce(fd int, buf []byte) (n int, err error) {
	for {
		n, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS):
			return 0, errOverflow
		default:
			return n, os.NewSyscallError("recvfrom", err)
		}
	}
}

// cut hands each message of one read to take, which must not keep it. It reports whether that
// was the end of a dump.
func cut(b []byte, take func(netlink.Message) error) (done bool, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return false, fmt.Errorf("parse nfnetlink: %d bytes left", len(b))
		}
		m := netlink.Message{Header: netlink.Header{
			Length: native.Uint32(b), Type: netlink.HeaderType(native.Uint16(b[4:])),
			Flags: netlink.HeaderFlags(native.Uint16(b[6:])), Sequence: native.Uint32(b[8:]), PID: native.Uint32(b[12:]),
		}}
		size := int(min(m.Header.Length, uint32(len(b)+1)))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, fmt.Errorf("parse nfnetlink: message of %d bytes in %d", m.Header.Length, len(b))
		}
		m.Data = b[unix.SizeofNlMsghdr:size]
		switch m.Header.Type {
		case netlink.Done, netlink.Error:
			return true, result(m.Data)
		}
		if err := take(m); err != nil {
			return false, err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}

// result reads the error number that closes an answer.
func result(data []byte) error {
	if len(data) >= 4 {
		if errno := int32(native.Uint32(data)); errno < 0 {
			return os.NewSyscallError("dump", syscall.Errno(-errno))
		}
	}
	return nil
}

// dump asks for all entries and hands each to take; between two parts of the answer it calls
// between. The kernel makes the parts as we read them: neither has the whole table in memory.
func (s *socket) dump(ctx context.Context, take func(netlink.Message) error, between func() error) error {
	if err := s.ask(ctx, messageGet, netlink.Dump, take, between); err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	return nil
}

// count returns how many entries the kernel has, those among them whose time is over and that
// it does not list.
//
// The library's StatsGlobal waits for an end of the answer that never comes.
func (s *socket) count(ctx context.Context) (entries int64, err error) {
	err = s.ask(ctx, messageGetStats, netlink.Acknowledge, func(m netlink.Message) error {
		if len(m.Data) < sizeofNfgenmsg {
			return fmt.Errorf("an answer of %d bytes", len(m.Data))
		}
		attrs, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
		if err != nil {
			return err
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == statsEntries {
				entries = int64(attrs.Uint32())
			}
		}
		return attrs.Err()
	}, func() error { return nil })
	if err != nil {
		return 0, fmt.Errorf("count connections: %w", err)
	}
	return entries, nil
}

// ask sends a request about the connections of both families, and reads to the end of the
// answer.
func (s *socket) ask(ctx context.Context, what netlink.HeaderType, how netlink.HeaderFlags, take func(netlink.Message) error, between func() error) error {
	_, err := s.Send(netlink.Message{
		Header: netlink.Header{Type: what, Flags: netlink.Request | how},
		Data:   make([]byte, sizeofNfgenmsg), // AF_UNSPEC
	})
	for done := false; err == nil && !done; {
		if err = s.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
			break
		}
		if done, err = s.wait(take); err == nil {
			err = between()
		}
		if err == nil {
			err = ctx.Err()
		}
	}
	return err
}
