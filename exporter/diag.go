// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Sizes and constants of linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56 // struct inet_diag_req_v2
	diagAnswerSize   = 72 // struct inet_diag_msg
	diagID           = 4  // offset of id in the answer, where it is 8 in the request
	diagAnyState     = ^uint32(0)

	// A socket that was bound to the loopback interface is found under its index only, and
	// one that is bound to none under every index.
	loopbackIndex = 1
)

var errNoDiag = errors.New("the kernel has no inet_diag")

// diag asks the kernel for single sockets. It is not safe for concurrent use.
type diag struct {
	conn  *netlink.Conn // nil until it is needed
	works bool          // a socket was found once
}

// owner returns the uid of the socket of a flow, and false if it is not in this network
// namespace or no process has it open. Returns [errNoDiag] where the kernel cannot tell.
func (d *diag) owner(f flow) (uid uint32, ok bool, err error) {
	if err := d.open(); err != nil {
		return 0, false, errNoDiag
	}
	if answer, err := d.ask(f); err == nil {
		d.works = true
		uid, ok = parseOwner(answer, f)
		return uid, ok, nil
	}
	if d.works {
		return 0, false, nil
	}
	// The kernel answers ENOENT both for a socket and for a protocol that is not there. Our
	// own end of the connection is there.
	if _, err := d.ask(flow{local: f.remote, remote: f.local}); err != nil {
		return 0, false, errNoDiag
	}
	d.works = true
	return 0, false, nil
}

func (d *diag) open() (err error) {
	if d.conn == nil {
		d.conn, err = netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	}
	return err
}

func (d *diag) ask(f flow) ([]byte, error) {
	// The kernel answers before it takes the next request; so this is for a broken one.
	if err := d.conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	answers, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request},
		Data:   diagRequest(f),
	})
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, errors.New("not one answer")
	}
	return answers[0].Data, nil
}

func (d *diag) close() {
	if d.conn != nil {
		_ = d.conn.Close() // nothing was written
		d.conn = nil
	}
}

// diagRequest asks for one socket, which is a look into a hash table. A dump that the
// kernel filters, as libraries do it, would be a walk over all sockets of the host.
func diagRequest(f flow) []byte {
	b := make([]byte, 8, diagRequestSize)
	b[0], b[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if f.local.Addr().Is4() {
		b[0] = unix.AF_INET
	}
	binary.NativeEndian.PutUint32(b[4:], diagAnyState)
	b = append(b, diagAddresses(f)...)
	b = binary.NativeEndian.AppendUint32(b, loopbackIndex)
	return append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // INET_DIAG_NOCOOKIE
}

// diagAddresses is the part of struct inet_diag_sockid that says which socket it is.
func diagAddresses(f flow) []byte {
	b := binary.BigEndian.AppendUint16(nil, f.local.Port())
	b = binary.BigEndian.AppendUint16(b, f.remote.Port())
	for _, ip := range []netip.Addr{f.local.Addr(), f.remote.Addr()} {
		var words [16]byte
		copy(words[:], ip.AsSlice())
		b = append(b, words[:]...)
	}
	return b
}

// parseOwner returns the owner that an answer names. A socket without an inode is one that
// nobody has open any more (closing, TIME_WAIT) or not yet. Depending on its state and the
// kernel's version the uid of such a socket is 0, and a client could become root by closing.
// Where there is no such connection the kernel may answer with a listener on the port.
func parseOwner(answer []byte, f flow) (uid uint32, ok bool) {
	if len(answer) < diagAnswerSize {
		return 0, false
	}
	wanted := diagAddresses(f)
	if string(answer[diagID:diagID+4]) != string(wanted[:4]) { // the ports
		return 0, false
	}
	uid = binary.NativeEndian.Uint32(answer[64:])
	inode := binary.NativeEndian.Uint32(answer[68:])
	return uid, inode != 0
}
