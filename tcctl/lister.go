// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// lister reads qdiscs and filters of any kind and anyone. It is not safe for
// concurrent use.
type lister struct{ conn *netlink.Conn }

// qdisc is what we need to know of a qdisc on the ingress side of an interface.
type qdisc struct {
	ifindex int
	kind    string // "" is none
	shared  bool   // a hook's filters are in a block that other interfaces use
}

// filter is what we need to know of anyone's filter.
type filter struct {
	kind     string
	handle   uint32 // 0 in the entry some kernels make for the priority as such
	priority uint16
	protocol uint16 // host byte order
	chain    uint32

	// Of kind bpf only.
	name    string
	classid uint32
	direct  bool
	program uint32
	tag     [8]byte
}

const (
	sizeofTcmsg = 20 // struct tcmsg
	dumpTries   = 5
)

// Attributes of cls_bpf (linux/pkt_cls.h).
const (
	tcaBpfClassid = 3
	tcaBpfName    = 7
	tcaBpfFlags   = 8
	tcaBpfTag     = 10
	tcaBpfID      = 11

	tcaBpfFlagActDirect = 1
)

var (
	errInterrupted = errors.New("changes kept interrupting the answer")
	errShort       = errors.New("message too short")
	errNoAnswer    = errors.New("no answer from the kernel")
)

// qdisc looks at the ingress side of one interface, which a clsact or an ingress
// qdisc can have. Where the interface is gone it returns ErrGone.
func (l lister) qdisc(ifindex int) (qdisc, error) {
	// Without Echo the answer goes to everyone but the one who asks. With the
	// handle there is always one: both qdiscs have it, the placeholder of an
	// interface without one has not. Should the kernel lack the memory for it, only
	// the acknowledgement comes; else that is left for the next ask to pass over.
	replies, err := l.ask(unix.RTM_GETQDISC, netlink.Echo|netlink.Acknowledge,
		tcmsg(ifindex, clsactHandle, clsactParent, 0))
	switch {
	case errors.Is(err, unix.ENODEV):
		return qdisc{}, fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
		return qdisc{}, nil
	case err != nil:
		return qdisc{}, err
	case len(replies) == 0 || replies[0].Header.Type != unix.RTM_NEWQDISC:
		return qdisc{}, errNoAnswer
	}
	return parseQdisc(replies[0].Data)
}

// qdiscs lists every qdisc of the namespace.
func (l lister) qdiscs() ([]qdisc, error) {
	return dump(l, unix.RTM_GETQDISC, tcmsg(0, 0, 0, 0), parseQdisc)
}

// filters lists the filters of a hook. Priority and protocol of info, where not
// 0, are left to the kernel to select by.
func (l lister) filters(ifindex int, hook Hook, info uint32) ([]filter, error) {
	return dump(l, unix.RTM_GETTFILTER, tcmsg(ifindex, 0, hook.parent(), info), parseFilter)
}

// dump asks for a list, again where the kernel says that it changed underway.
func dump[T any](l lister, kind netlink.HeaderType, request []byte, parse func([]byte) (T, error)) ([]T, error) {
	for range dumpTries {
		messages, err := l.ask(kind, netlink.Dump, request)
		if errors.Is(err, unix.EINTR) || err == nil && slices.ContainsFunc(messages, interrupted) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list := make([]T, 0, len(messages))
		for _, m := range messages {
			item, err := parse(m.Data)
			if err != nil {
				return nil, fmt.Errorf("parse answer: %w", err)
			}
			list = append(list, item)
		}
		return list, nil
	}
	return nil, errInterrupted
}

func interrupted(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }

// ask sends a request and returns the answer to it. What is left of the answer to
// an earlier request, also one whose reading failed midway, is passed over.
func (l lister) ask(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) ([]netlink.Message, error) {
	sent, err := l.conn.Send(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   data,
	})
	if err != nil {
		return nil, err
	}
	for {
		replies, err := l.conn.Receive()
		var refused *netlink.OpError
		switch {
		case errors.As(err, &refused) && refused.Sequence != 0 && refused.Sequence != sent.Header.Sequence:
		case err != nil:
			return nil, err
		case len(replies) == 0 || replies[0].Header.Sequence == sent.Header.Sequence:
			return replies, nil
		}
	}
}

// tcmsg encodes a struct tcmsg.
func tcmsg(ifindex int, handle, parent, info uint32) []byte {
	b := make([]byte, sizeofTcmsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(ifindex))
	binary.NativeEndian.PutUint32(b[8:], handle)
	binary.NativeEndian.PutUint32(b[12:], parent)
	binary.NativeEndian.PutUint32(b[16:], info)
	return b
}

// info packs a filter's priority and protocol as tcm_info has them.
func info(priority, protocol uint16) uint32 {
	return uint32(priority)<<16 | uint32(networkOrder(protocol))
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// split takes a message apart.
func split(data []byte) (header []byte, attributes *netlink.AttributeDecoder, err error) {
	if len(data) < sizeofTcmsg {
		return nil, nil, errShort
	}
	attributes, err = netlink.NewAttributeDecoder(data[sizeofTcmsg:])
	return data[:sizeofTcmsg], attributes, err
}

func parseQdisc(data []byte) (qdisc, error) {
	header, attributes, err := split(data)
	if err != nil {
		return qdisc{}, err
	}
	q := qdisc{ifindex: int(int32(binary.NativeEndian.Uint32(header[4:])))}
	for attributes.Next() {
		switch attributes.Type() {
		case unix.TCA_KIND:
			q.kind = attributes.String()
		case unix.TCA_INGRESS_BLOCK, unix.TCA_EGRESS_BLOCK:
			q.shared = q.shared || attributes.Uint32() != 0
		}
	}
	return q, attributes.Err()
}

func parseFilter(data []byte) (filter, error) {
	header, attributes, err := split(data)
	if err != nil {
		return filter{}, err
	}
	packed := binary.NativeEndian.Uint32(header[16:])
	f := filter{
		handle:   binary.NativeEndian.Uint32(header[8:]),
		priority: uint16(packed >> 16),
		protocol: networkOrder(uint16(packed)),
	}
	var options []byte
	for attributes.Next() {
		switch attributes.Type() {
		case unix.TCA_KIND:
			f.kind = attributes.String()
		case unix.TCA_CHAIN:
			f.chain = attributes.Uint32()
		case unix.TCA_OPTIONS:
			options = attributes.Bytes()
		}
	}
	if err := attributes.Err(); err != nil || f.kind != "bpf" {
		return f, err
	}
	return f, f.parseBPF(options)
}

// parseBPF reads the options of cls_bpf, passing over what it does not know.
func (f *filter) parseBPF(options []byte) error {
	attributes, err := netlink.NewAttributeDecoder(options)
	if err != nil {
		return err
	}
	for attributes.Next() {
		switch attributes.Type() {
		case tcaBpfClassid:
			f.classid = attributes.Uint32()
		case tcaBpfName:
			f.name = attributes.String()
		case tcaBpfFlags:
			f.direct = attributes.Uint32()&tcaBpfFlagActDirect != 0
		case tcaBpfTag:
			copy(f.tag[:], attributes.Bytes())
		case tcaBpfID:
			f.program = attributes.Uint32()
		}
	}
	return attributes.Err()
}
