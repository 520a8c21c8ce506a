// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is handed to the kernel at once.
const chunk = 256 << 10

func connect(o order) (reply, error) {
	var done Connects
	for range o.Count {
		c, err := dialWithin(o.Addr, cmp.Or(o.Within, patience))
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			done.Refused++
			continue
		case o.Within != 0 && os.IsTimeout(err):
			done.TimedOut++
			continue
		case err == nil:
			err = hangUp(c)
		}
		if err != nil {
			return reply{Connects: done}, err
		}
		done.Connected++
	}
	return reply{Connects: done}, nil
}

func dial(to netip.AddrPort) (*net.TCPConn, error) { return dialWithin(to, patience) }

func dialWithin(to netip.AddrPort, within time.Duration) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", to.String(), within)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// hangUp closes our side, waits for the other side to do so, and closes.
func hangUp(c *net.TCPConn) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// sendUDP uses a socket without a peer, which an ICMP error does not stop.
func sendUDP(o order) error {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if o.Segment > 0 {
		if err := segment(c, o.Segment); err != nil {
			return err
		}
	}
	payload := make([]byte, o.Size)
	for range o.Count {
		if _, err := c.WriteToUDPAddrPort(payload, o.Addr); err != nil {
			return err
		}
	}
	return nil
}

func segment(c *net.UDPConn, size int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("set UDP_SEGMENT",
			unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size))
	})
	return errors.Join(err, failed)
}

func sendTCP(o order) error {
	switch o.Method {
	case Write:
		return sendPolled(o, sendWrite)
	case SendFile:
		return sendPolled(o, sendFile)
	case ZeroCopy:
		return sendZeroCopy(o.Addr, o.Bytes)
	}
	return fmt.Errorf("send with method %q: not known", o.Method)
}

func sendPolled(o order, send func(*net.TCPConn, int64) error) error {
	c, err := dial(o.Addr)
	if err != nil {
		return err
	}
	if err := send(c, o.Bytes); err != nil {
		return errors.Join(err, c.Close())
	}
	return hangUp(c)
}

// inChunks calls send with the number of bytes that are due until all are sent.
// The peer may take its time, and must not stop.
func inChunks(c *net.TCPConn, total int64, send func(due int) (int, error)) error {
	for total > 0 {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := send(int(min(chunk, total)))
		if err != nil {
			return err
		}
		total -= int64(n)
	}
	return nil
}

func sendWrite(c *net.TCPConn, total int64) error {
	data := make([]byte, chunk)
	return inChunks(c, total, func(due int) (int, error) { return c.Write(data[:due]) })
}

// sendFile sends from a file in memory: the kernel puts its pages on the wire.
func sendFile(c *net.TCPConn, total int64) error {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make payload: %w", err)
	}
	file := os.NewFile(uintptr(fd), "payload")
	defer file.Close()
	if err := file.Truncate(chunk); err != nil {
		return fmt.Errorf("make payload: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return inChunks(c, total, func(due int) (n int, err error) {
		failed := raw.Write(func(socket uintptr) bool {
			offset := int64(0)
			n, err = unix.Sendfile(int(socket), fd, &offset, due)
			return !errors.Is(err, unix.EAGAIN)
		})
		return n, errors.Join(failed, err)
	})
}

// sendZeroCopy lets the kernel send from our memory. It may be given the same
// memory again before it is done with it, since nobody reads what arrives.
//
// The socket blocks: a notice without data makes Go's poller give a connection
// up ("not pollable").
func sendZeroCopy(to netip.AddrPort, total int64) error {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{
		Port: int(to.Port()), Addr: to.Addr().As16(),
	})
	if to.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// Not with SO_SNDTIMEO: then the runtime's signals would interrupt calls.
	stuck := time.AfterFunc(patience, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) })
	defer stuck.Stop()
	if err := unix.Connect(fd, address); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if err := sendNoticed(fd, total, func() { stuck.Reset(patience) }); err != nil {
		return err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return os.NewSyscallError("shutdown", err)
	}
	_, err = unix.Read(fd, make([]byte, 1)) // the other side's end
	if err == nil && !stuck.Stop() {
		err = unix.ETIMEDOUT
	}
	return os.NewSyscallError("read", err)
}

func sendNoticed(fd int, total int64, alive func()) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		return os.NewSyscallError("set SO_ZEROCOPY", err)
	}
	for data := make([]byte, chunk); total > 0; {
		due := data[:min(chunk, total)]
		n, err := unix.SendmsgN(fd, due, nil, nil, unix.MSG_ZEROCOPY)
		if errors.Is(err, unix.ENOBUFS) { // too many notices are outstanding
			n, err = 0, awaitNotice(fd)
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		total -= int64(n)
		takeNotices(fd)
		alive()
	}
	return nil
}

func awaitNotice(fd int) error {
	poll := []unix.PollFd{{Fd: int32(fd)}} // POLLERR comes unasked
	n, err := unix.Poll(poll, int(patience.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return nil // the caller tries again anyway
	}
	if n == 0 && err == nil {
		return unix.ETIMEDOUT
	}
	return err
}

// takeNotices takes the kernel's notices that it is done with some memory. They
// use up the socket's option memory.
func takeNotices(fd int) {
	control := make([]byte, 128)
	for {
		flags := unix.MSG_ERRQUEUE | unix.MSG_DONTWAIT
		if _, _, _, _, err := unix.Recvmsg(fd, nil, control, flags); err != nil {
			return
		}
	}
}
