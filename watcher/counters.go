// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrGone means that an interface is not in the host's namespace, or no longer.
var ErrGone = errors.New("the interface is gone")

// LinkCounters is what the kernel has counted on a host veth, as the container sees it:
// its receive is what the host's end transmits. They begin with the interface and have
// 64 bits.
//
// Bytes are those of the packets with their Ethernet headers, super-packets of
// segmentation offload once. But an end of a veth that receives by NAPI counts without
// them, 14 bytes less per packet: with an XDP program on it, or with GRO (off unless
// someone switches it on) for what it could merge. On the host's end it is the transmit
// bytes that are too few then, on the container's the receive bytes.
//
// What a veth drops on the way to its other end, be it down or too busy, is not in them.
type LinkCounters struct {
	ReceiveBytes, ReceivePackets   uint64
	TransmitBytes, TransmitPackets uint64
}

// Losses is what the kernel has lost at an interface, in packets, as the container sees it. At
// a host veth, ReceiveDropped is what that could not hand over to the other end. What a qdisc
// drops is not in them, see [Watcher.RootQdiscs], nor what a firewall does.
//
// ReceiveDropped of a container's end is what /proc/net/dev calls so, which has rx_missed_errors
// in it (dev_seq_printf_stats, net/core/net-procfs.c).
type Losses struct {
	ReceiveDropped, ReceiveErrors   uint64
	TransmitDropped, TransmitErrors uint64
}

// fromOtherEnd returns the counters as the other end of a pair has them.
func (c LinkCounters) fromOtherEnd() LinkCounters {
	return LinkCounters{
		ReceiveBytes: c.TransmitBytes, ReceivePackets: c.TransmitPackets,
		TransmitBytes: c.ReceiveBytes, TransmitPackets: c.ReceivePackets,
	}
}

// LinkReading is all that is read of an interface's counters.
type LinkReading struct {
	LinkCounters
	Losses
}

// Counters returns the kernel's counters of an interface in the host's namespace. asked, if
// it is not nil, is called when the kernel has read them, and before the answer is: whoever
// counts the same packets can look at once.
//
// Requires Linux 4.7, and for the first call after New with Options.NetNS CAP_SYS_ADMIN.
// The error wraps [ErrGone] if there is no such interface.
func (w *Watcher) Counters(ifindex int, asked func()) (LinkCounters, error) {
	var c LinkCounters
	err := w.stats.ask(w.netns, func(conn *netlink.Conn) (err error) {
		c, err = getStats(conn, ifindex, asked)
		return err
	})
	if err != nil {
		return LinkCounters{}, fmt.Errorf("read counters of interface %d: %w", ifindex, err)
	}
	return c, nil
}

// Glance returns the counters of an interface of the process's own namespace without waiting for
// the kernel's lock for networks, which [Watcher.Counters] needs: from /proc/net/dev, where they
// are found by the interface's name. It costs about a microsecond per interface of the host.
//
// The error wraps [ErrGone] if there is no such interface, and is [errors.ErrUnsupported] with
// Options.NetNS.
func (w *Watcher) Glance(name string) (LinkCounters, error) {
	if w.netns != 0 {
		return LinkCounters{}, errors.ErrUnsupported
	}
	file, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return LinkCounters{}, err
	}
	defer file.Close()
	c, err := findCounters(file, name)
	if err != nil {
		return LinkCounters{}, fmt.Errorf("read counters of interface %s: %w", name, err)
	}
	return c, nil
}

// findCounters reads the line of a host veth in a net/dev file, proc_pid_net(5): eight numbers of
// what was received there, eight of what was transmitted; the first two of each are bytes and
// packets.
func findCounters(file io.Reader, name string) (c LinkCounters, err error) {
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		numbers, ok := strings.CutPrefix(strings.TrimLeft(lines.Text(), " "), name+":")
		if !ok {
			continue
		}
		fields := strings.Fields(numbers)
		if len(fields) < 16 {
			return c, fmt.Errorf("parse net/dev: expected 16 numbers, got %q", numbers)
		}
		for field, to := range map[int]*uint64{0: &c.TransmitBytes, 1: &c.TransmitPackets, 8: &c.ReceiveBytes, 9: &c.ReceivePackets} {
			if *to, err = strconv.ParseUint(fields[field], 10, 64); err != nil {
				return LinkCounters{}, fmt.Errorf("parse net/dev: %w", err)
			}
		}
		return c, nil
	}
	return c, errors.Join(ErrGone, lines.Err())
}

// AllCounters returns the kernel's counters of all interfaces in the host's namespace, by
// index. They are read one after the other, while packets flow.
//
// It costs about half a microsecond per interface, and more with many CPUs, whose counters
// the kernel adds up; meanwhile it holds the lock of its network configuration, for some
// 140 interfaces at a time. It requires what Counters does. The error wraps
// [ErrPartial], beside what was read, if interfaces came or went meanwhile: a missing one
// may exist.
func (w *Watcher) AllCounters() (map[int]LinkReading, error) {
	var all map[int]LinkReading
	err := w.stats.ask(w.netns, func(conn *netlink.Conn) (err error) {
		all, err = w.stats.dump(conn)
		return err
	})
	if err != nil {
		return all, fmt.Errorf("read counters of all interfaces: %w", err)
	}
	return all, nil
}

// stats asks for counters. It keeps its socket, because opening one in another
// namespace takes a thread each time. The zero value is ready.
type stats struct {
	mu    sync.Mutex    // from a question to the end of its answer
	conn  *netlink.Conn // nil until first asked
	buf   []byte
	count int // of the interfaces, at the last dump
}

func (s *stats) ask(netns int, question func(*netlink.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		var err error
		if s.conn, err = dial(netns, 0); err != nil {
			return err
		}
	}
	err := expect(s.conn)
	if err == nil {
		err = question(s.conn)
	}
	if err != nil && !errors.Is(err, ErrGone) && !errors.Is(err, ErrPartial) {
		// The next question must not meet the rest of this answer.
		return errors.Join(err, s.close())
	}
	return err
}

// close gives the socket back. The next question opens another one.
func (s *stats) close() error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn, s.buf = nil, nil
	return conn.Close()
}

// buffer is for dumps. The caller holds mu.
func (s *stats) buffer() []byte {
	if s.buf == nil {
		s.buf = make([]byte, dumpBuffer)
	}
	return s.buf
}

func (s *stats) dump(conn *netlink.Conn) (map[int]LinkReading, error) {
	all := make(map[int]LinkReading, s.count)
	err := dump(conn, unix.RTM_GETSTATS, statsRequest(0), s.buffer(), func(answer []byte) error {
		index, c, err := parseStats(answer)
		if err == nil {
			all[index] = c
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrPartial) {
		return nil, err
	}
	s.count = len(all)
	return all, err
}

// getStats calls asked, if it is not nil, when the kernel has read the counters: it does so
// while it is sent the request (netlink_unicast_kernel, net/netlink/af_netlink.c), and
// reading its answer takes longer than that.
func getStats(conn *netlink.Conn, index int, asked func()) (LinkCounters, error) {
	request, err := conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETSTATS, Flags: netlink.Request},
		Data:   statsRequest(index),
	})
	if err != nil {
		return LinkCounters{}, err
	}
	if asked != nil {
		asked()
	}
	reply, err := conn.Receive()
	if err == nil {
		err = netlink.Validate(request, reply)
	}
	if errors.Is(err, unix.ENODEV) {
		return LinkCounters{}, ErrGone
	}
	if err != nil {
		return LinkCounters{}, err
	}
	if len(reply) != 1 {
		return LinkCounters{}, fmt.Errorf("%d answers", len(reply))
	}
	_, c, err := parseStats(reply[0].Data)
	return c.LinkCounters, err
}

// struct if_stats_msg: family, padding, ifindex, filter_mask.
const sizeofIfStatsMsg = 12

// statsRequest asks for the counters of one interface, or with index 0 of all.
func statsRequest(index int) []byte {
	b := make([]byte, sizeofIfStatsMsg)
	native.PutUint32(b[4:], uint32(index))
	native.PutUint32(b[8:], 1<<(unix.IFLA_STATS_LINK_64-1))
	return b
}

// sizeofLinkStats is as much of struct rtnl_link_stats64 as is read: 16 of its numbers, which it
// always had. More come with each kernel.
const sizeofLinkStats = 16 * 8

// parseLinkStats reads a struct rtnl_link_stats64 as the interface's own namespace has it. It is
// of sizeofLinkStats bytes or more.
func parseLinkStats(b []byte) LinkReading {
	number := func(i int) uint64 { return native.Uint64(b[8*i:]) }
	return LinkReading{
		LinkCounters{
			ReceivePackets: number(0), TransmitPackets: number(1),
			ReceiveBytes: number(2), TransmitBytes: number(3),
		},
		Losses{
			ReceiveErrors: number(4), TransmitErrors: number(5),
			ReceiveDropped: number(6) + number(15), TransmitDropped: number(7),
		},
	}
}

// swapped is what one end of a veth has, as the other one sees it.
func (r LinkReading) swapped() LinkReading {
	return LinkReading{
		LinkCounters{
			ReceivePackets: r.TransmitPackets, TransmitPackets: r.ReceivePackets,
			ReceiveBytes: r.TransmitBytes, TransmitBytes: r.ReceiveBytes,
		},
		Losses{
			ReceiveErrors: r.TransmitErrors, TransmitErrors: r.ReceiveErrors,
			ReceiveDropped: r.TransmitDropped, TransmitDropped: r.ReceiveDropped,
		},
	}
}

// parseStats reads the payload of a statistics message. It takes no memory.
func parseStats(b []byte) (index int, c LinkReading, err error) {
	if len(b) < sizeofIfStatsMsg {
		return 0, c, fmt.Errorf("parse statistics message: %d bytes", len(b))
	}
	index = int(int32(native.Uint32(b[4:])))
	for attrs := b[sizeofIfStatsMsg:]; len(attrs) >= unix.SizeofRtAttr; {
		size, kind := int(native.Uint16(attrs)), native.Uint16(attrs[2:])
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return 0, c, fmt.Errorf("parse statistics message: attribute of %d bytes in %d", size, len(attrs))
		}
		if value := attrs[unix.SizeofRtAttr:size]; kind == unix.IFLA_STATS_LINK_64 && len(value) >= sizeofLinkStats {
			return index, parseLinkStats(value).swapped(), nil
		}
		attrs = attrs[aligned(size, len(attrs)):]
	}
	return 0, c, fmt.Errorf("parse statistics message: no counters of interface %d", index)
}

// CountersIn returns the kernel's counters of an interface in another namespace, which the
// host knows by a number, without entering that. A host veth's other end receives more than
// the host veth sends where a program of somebody hands packets over by bpf_redirect_peer:
// those pass the host veth and everything on it. Before Linux 6.8, neither end counts them.
//
// Requires Linux 4.20 and CAP_NET_ADMIN. The error wraps [ErrGone] if there is no such
// interface.
func (w *Watcher) CountersIn(nsid, ifindex int) (LinkReading, error) {
	var c LinkReading
	err := w.statsIn.ask(w.netns, func(conn *netlink.Conn) (err error) {
		c, err = getStatsIn(conn, nsid, ifindex)
		return err
	})
	if err != nil {
		return LinkReading{}, fmt.Errorf("read counters of interface %d in namespace %d: %w", ifindex, nsid, err)
	}
	return c, nil
}

func getStatsIn(conn *netlink.Conn, nsid, ifindex int) (LinkReading, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Int32(unix.IFLA_TARGET_NETNSID, int32(nsid))
	b, err := attrs.Encode()
	if err != nil {
		return LinkReading{}, err
	}
	header := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(header[4:], uint32(ifindex))
	reply, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   append(header, b...),
	})
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL): // no such namespace any more
		return LinkReading{}, ErrGone
	case err != nil:
		return LinkReading{}, err
	case len(reply) != 1:
		return LinkReading{}, fmt.Errorf("%d answers", len(reply))
	}
	return parseStatsIn(reply[0].Data)
}

// parseStatsIn reads the counters in the payload of a link message, as the link's own namespace
// has them.
func parseStatsIn(b []byte) (LinkReading, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return LinkReading{}, fmt.Errorf("parse link message: %d bytes", len(b))
	}
	attrs, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return LinkReading{}, fmt.Errorf("parse link message: %w", err)
	}
	for attrs.Next() {
		if value := attrs.Bytes(); attrs.Type() == unix.IFLA_STATS64 && len(value) >= sizeofLinkStats {
			return parseLinkStats(value), nil
		}
	}
	return LinkReading{}, errors.Join(errors.New("parse link message: no counters"), attrs.Err())
}
