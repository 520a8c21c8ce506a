// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Barrage is what [Agent.Barrage] sends: frames, one after the other and again from the first,
// for so long.
type Barrage struct {
	Interface string        `json:"interface"`
	Frames    [][]byte      `json:"frames"`
	For       time.Duration `json:"for"`
}

// Barrage sends frames as fast as the kernel takes them, by a packet socket that gives it many
// at once (sendmmsg, Linux 3.0) and passes the queue of the interface by, as a thread that has
// CAP_NET_RAW and no other capability. It returns how many the kernel took.
func (a *Agent) Barrage(b Barrage) (int, error) {
	r, err := a.do(order{Verb: "barrage", Barrage: &b})
	return r.Sent, err
}

// sendBarrage uses a thread that ends with it: it never gets its capabilities back.
func sendBarrage(b *Barrage) (reply, error) {
	var r reply
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := onlyNetRaw()
		if err == nil {
			r.Sent, err = b.send()
		}
		done <- err
	}()
	err := <-done // before r is read
	return r, err
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	_      uint32 // msg_len, which the kernel sets
}

// atOnce is how many frames the kernel is given in one call.
const atOnce = 256

func (b *Barrage) send() (sent int, err error) {
	fd, err := packetSocket(b.Interface)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	vectors := make([]unix.Iovec, max(atOnce, len(b.Frames)))
	messages := make([]mmsghdr, len(vectors))
	for i := range messages {
		frame := b.Frames[i%len(b.Frames)]
		vectors[i].Base = &frame[0]
		vectors[i].SetLen(len(frame))
		messages[i].header.Iov = &vectors[i]
		messages[i].header.SetIovlen(1)
	}
	next := 0
	for end := time.Now().Add(b.For); time.Now().Before(end); {
		rest := messages[next:]
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)), 0, 0, 0)
		switch {
		case errno == 0:
			sent += int(n)
		case errors.Is(errno, unix.ENOBUFS): // the other end's queue is full: the frame is lost
			n = 1
		case errors.Is(errno, unix.EINTR):
			n = 0
		default:
			return sent, fmt.Errorf("send frame %d: %w", next%len(b.Frames), errno)
		}
		next = (next + int(n)) % len(messages)
	}
	return sent, nil
}

// packetSocket is bound to an interface and receives nothing.
func packetSocket(name string) (int, error) {
	on, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open packet socket", err)
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: on.Index}))
	if err == nil {
		err = os.NewSyscallError("set PACKET_QDISC_BYPASS", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}
