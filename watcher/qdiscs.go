// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// RootQdisc is the queue that an interface sends through, and what that has dropped. It drops
// behind the egress hook, so whoever counts there has counted that. No counter of the interface
// has it: qdisc_qstats_drop (include/net/sch_generic.h) is of the qdisc alone. Where it has
// others below it, what those drop is in its number, too.
type RootQdisc struct {
	Handle  uint32 // 0 of one that the kernel put there, as noqueue
	Dropped uint32 // packets, since it is there; goes on from 0 after the highest number
}

// RootQdiscs returns the root qdiscs of all interfaces in the host's namespace, by the index of
// the interface. It takes some microseconds for each, and what is with it, under the lock of the
// kernel's network configuration. It requires what [Watcher.Counters] does. The error wraps
// [ErrPartial], beside what was read, if some changed meanwhile.
func (w *Watcher) RootQdiscs() (map[int]RootQdisc, error) {
	found := map[int]RootQdisc{}
	err := w.stats.ask(w.netns, func(conn *netlink.Conn) error {
		return dump(conn, unix.RTM_GETQDISC, make([]byte, sizeofTcMsg), w.stats.buffer(), func(answer []byte) error {
			index, q, root, err := parseQdisc(answer)
			if root {
				found[index] = q
			}
			return err
		})
	})
	if err != nil {
		err = fmt.Errorf("read qdiscs: %w", err)
	}
	return found, err
}

// struct tcmsg: family, padding, ifindex, handle, parent, info.
const sizeofTcMsg = 20

// Where what a qdisc has dropped is in its message (linux/rtnetlink.h, linux/gen_stats.h).
const (
	tcaStats2     = 7
	tcaStatsQueue = 3 // struct gnet_stats_queue: qlen, backlog, drops, and more
)

// parseQdisc reads a qdisc message. root says that it is the one that its interface sends
// through, and tells its counters.
func parseQdisc(b []byte) (index int, q RootQdisc, root bool, err error) {
	if len(b) < sizeofTcMsg {
		return 0, q, false, fmt.Errorf("parse qdisc message: %d bytes", len(b))
	}
	index, q.Handle = int(int32(native.Uint32(b[4:]))), native.Uint32(b[8:])
	if native.Uint32(b[12:]) != tcHRoot {
		return index, q, false, nil
	}
	attrs, err := netlink.NewAttributeDecoder(b[sizeofTcMsg:])
	if err != nil {
		return index, q, false, fmt.Errorf("parse qdisc message: %w", err)
	}
	for attrs.Next() {
		if attrs.Type() != tcaStats2 {
			continue
		}
		attrs.Nested(func(stats *netlink.AttributeDecoder) error {
			for stats.Next() {
				if value := stats.Bytes(); stats.Type() == tcaStatsQueue && len(value) >= 12 {
					q.Dropped, root = native.Uint32(value[8:]), true
				}
			}
			return nil
		})
	}
	if err := attrs.Err(); err != nil {
		return index, q, false, fmt.Errorf("parse qdisc message: %w", err)
	}
	return index, q, root, nil
}

// tcHRoot is TC_H_ROOT (linux/pkt_sched.h), as whose child a root qdisc is told.
const tcHRoot = 0xffffffff
