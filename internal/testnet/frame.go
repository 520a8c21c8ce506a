// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// VirtioHeader is struct virtio_net_hdr of linux/virtio_net.h: what a sender claims of a frame.
type VirtioHeader struct {
	Flags, GSOType                                    uint8
	HeaderLen, GSOSize, ChecksumStart, ChecksumOffset uint16
}

// Frame is a frame for [Agent.SendFrame].
type Frame struct {
	Interface string       `json:"interface"`
	Header    VirtioHeader `json:"header"`
	Data      []byte       `json:"data"` // the frame begins with it, and is 0 up to its size
	Size      int          `json:"size"`
}

// SendFrame sends a frame so many times by a packet socket, with a header of virtio-net
// (PACKET_VNET_HDR, Linux 2.6.27), as a thread that has CAP_NET_RAW and no other capability.
// The beginning of the frame may have some 40 KB.
func (a *Agent) SendFrame(f Frame, count int) error {
	_, err := a.do(order{Verb: "sendframe", Frame: &f, Count: count})
	return err
}

// sendFrame uses a thread that ends with it: it never gets its capabilities back.
func sendFrame(o order) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := onlyNetRaw(); err != nil {
				return fmt.Errorf("give up capabilities: %w", err)
			}
			return o.Frame.send(o.Count)
		}()
	}()
	return <-done
}

// onlyNetRaw leaves the thread no capability but CAP_NET_RAW.
func onlyNetRaw() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	only := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_RAW, Permitted: 1 << unix.CAP_NET_RAW}}
	return unix.Capset(&header, &only[0])
}

func (f *Frame) send(count int) error {
	on, err := net.InterfaceByName(f.Interface)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open packet socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: on.Index}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return os.NewSyscallError("set PACKET_VNET_HDR", err)
	}
	message, err := binary.Append(nil, binary.NativeEndian, f.Header)
	if err != nil {
		return err
	}
	message = append(message, f.Data...)
	message = append(message, make([]byte, max(0, f.Size-len(f.Data)))...)
	for range count {
		if _, err := unix.Write(fd, message); err != nil {
			return os.NewSyscallError("write frame", err)
		}
	}
	return nil
}
