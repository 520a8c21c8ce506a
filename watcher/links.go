// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// listAttempts bounds how often an interrupted dump is asked for again.
const listAttempts = 5

// receiveBuffer holds a few thousand link messages, some seconds of the
// worst a host does. The kernel doubles it.
const receiveBuffer = 4 << 20

// link is what we read of an rtnetlink link message.
type link struct {
	index     int
	name      string
	kind      string
	peer      int  // IFLA_LINK
	netnsid   int  // IFLA_LINK_NETNSID
	elsewhere bool // there is one: the peer is in another namespace
	bridged   bool // IFLA_MASTER: it is a port of a bridge
	moved     bool // a DELLINK's: the link lives on in another namespace
	movedTo   int  // IFLA_NEW_NETNSID: that namespace
	ethernet  bool // its packets begin with an Ethernet header
	loopback  bool
	up        bool
	carrier   bool          // IFF_LOWER_UP
	queues    int           // of a tun device, which processes hold
	passed    *LinkCounters // at the same moment; nil if it was not asked for

	// What else was found out, see lookBehind and markHeld.
	behind  Behind
	via     []int // host veths that lead to what is behind
	outside bool  // a tun device that somebody outside of the container holds
}

// hostVeth is the one test for host veths. The peer that Docker makes is in the host's
// namespace for some 160 ms, while the host's end is in its bridge already: that is
// early enough to be counted before the container's process runs on a busy host too.
func (l link) hostVeth() (HostVeth, bool) {
	v := HostVeth{Index: l.index, Name: l.name, PeerIndex: l.peer, NetNSID: -1}
	if l.elsewhere {
		v.NetNSID = l.netnsid
	}
	return v, l.crosses() || l.kind == "veth" && l.bridged
}

// crosses says whether a link is a veth that leads into another namespace. Seen from
// inside of a container its own end does.
func (l link) crosses() bool { return l.kind == "veth" && l.elsewhere }

// HostVeths lists the host veths now. It needs no capability but, with
// Options.NetNS, CAP_SYS_ADMIN. The error may be [ErrPartial], beside what was
// found.
func (w *Watcher) HostVeths() ([]HostVeth, error) {
	links, err := listLinks(w.netns, "veth")
	var veths []HostVeth
	for _, l := range links {
		if v, ok := l.hostVeth(); ok {
			veths = append(veths, v)
		}
	}
	if err != nil {
		return veths, fmt.Errorf("list host veths: %w", err)
	}
	return veths, nil
}

// listLinks dumps the links of a kind, or all. It says ErrPartial only after
// several attempts.
func listLinks(netns int, kind string) ([]link, error) { return list(netns, kind, rtextSkipStats) }

// listCounted dumps all links with what passed them, of the moment that the rest is of, too.
func listCounted(netns int) ([]link, error) { return list(netns, "", 0) }

func list(netns int, kind string, filter uint32) ([]link, error) {
	conn, err := dial(netns, 0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for attempt := 1; ; attempt++ {
		links, err := dumpLinks(conn, kind, filter)
		if !errors.Is(err, ErrPartial) || attempt == listAttempts {
			return links, err
		}
	}
}

// rtextSkipStats leaves the counters out of link messages (RTEXT_FILTER_SKIP_STATS).
const rtextSkipStats = 1 << 3

// linkRequest asks for one link, or with index 0 for all or those of a kind. A
// kernel may ignore the kind.
func linkRequest(index int, kind string, filter uint32) ([]byte, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(unix.IFLA_EXT_MASK, filter)
	if kind != "" {
		attrs.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
			info.String(unix.IFLA_INFO_KIND, kind)
			return nil
		})
	}
	b, err := attrs.Encode()
	header := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(header[4:], uint32(index))
	return append(header, b...), err
}

func dumpLinks(conn *netlink.Conn, kind string, filter uint32) ([]link, error) {
	payload, err := linkRequest(0, kind, filter)
	if err != nil {
		return nil, err
	}
	var links []link
	err = dump(conn, unix.RTM_GETLINK, payload, make([]byte, dumpBuffer), func(answer []byte) error {
		l, err := parseLink(answer)
		links = append(links, l)
		return err
	})
	if err != nil && !errors.Is(err, ErrPartial) {
		return nil, err
	}
	return links, err
}

// getLink asks for one link. The error is ENODEV if there is none.
func getLink(conn *netlink.Conn, index int) (link, error) {
	request, err := linkRequest(index, "", rtextSkipStats)
	if err != nil {
		return link{}, err
	}
	reply, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   request,
	})
	if err != nil {
		return link{}, err
	}
	if len(reply) != 1 {
		return link{}, fmt.Errorf("ask for link %d: %d answers", index, len(reply))
	}
	return parseLink(reply[0].Data)
}

// parseLink reads the payload of a link message.
func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, fmt.Errorf("parse link message: %d bytes", len(b))
	}
	flags := native.Uint32(b[8:])
	l := link{
		index:    int(int32(native.Uint32(b[4:]))),
		ethernet: native.Uint16(b[2:]) == unix.ARPHRD_ETHER,
		loopback: flags&unix.IFF_LOOPBACK != 0,
		up:       flags&unix.IFF_UP != 0,
		carrier:  flags&unix.IFF_LOWER_UP != 0,
	}
	attrs, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, fmt.Errorf("parse link message: %w", err)
	}
	for attrs.Next() {
		switch attrs.Type() {
		case unix.IFLA_IFNAME:
			l.name = attrs.String()
		case unix.IFLA_LINK:
			l.peer = int(attrs.Int32())
		case unix.IFLA_LINK_NETNSID:
			l.netnsid, l.elsewhere = int(attrs.Int32()), true
		case unix.IFLA_MASTER:
			l.bridged = attrs.Uint32() != 0
		case unix.IFLA_NEW_NETNSID:
			l.moved, l.movedTo = true, int(attrs.Int32())
		case unix.IFLA_STATS64:
			if value := attrs.Bytes(); len(value) >= sizeofLinkStats {
				read := parseLinkStats(value)
				l.passed = &read.LinkCounters
			}
		case unix.IFLA_LINKINFO:
			attrs.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					switch {
					case info.Type() == unix.IFLA_INFO_KIND:
						l.kind = info.String()
					case info.Type() == unix.IFLA_INFO_DATA && l.kind == "tun":
						info.Nested(l.takeQueues)
					}
				}
				return info.Err()
			})
		}
	}
	if err := attrs.Err(); err != nil {
		return link{}, fmt.Errorf("parse link message: %w", err)
	}
	return l, nil
}

func (l *link) takeQueues(of *netlink.AttributeDecoder) error {
	for of.Next() {
		if of.Type() == unix.IFLA_TUN_NUM_QUEUES || of.Type() == unix.IFLA_TUN_NUM_DISABLED_QUEUES {
			l.queues += int(of.Uint32())
		}
	}
	return of.Err()
}

// links follows the host veths of one namespace. Only the goroutine that reads
// the subscription owns it, so it is never ahead of an event still to be read.
type links struct {
	known map[int]HostVeth
	netns int
}

// followLinks delivers host veths until ctx ends. A subscription that breaks is
// made anew, at once if its receive buffer ran over: until that is read empty the
// kernel drops what else happens and does not say so again, so the old one is
// not worth reading.
func (w *Watcher) followLinks(ctx context.Context, events chan<- Event) error {
	l := &links{known: map[int]HostVeth{}, netns: w.netns}
	for first := true; ctx.Err() == nil; first = false {
		err := w.followSubscription(ctx, l, events, !first)
		if ctx.Err() != nil || errors.Is(err, unix.ENOBUFS) {
			continue
		}
		w.mu.Lock()
		w.degrade("netlink", fmt.Errorf("watch links: %w", err))
		w.mu.Unlock()
		pause(ctx, w.rescanEvery)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// followSubscription subscribes, lists, then follows. It returns why it can't go
// on.
func (w *Watcher) followSubscription(ctx context.Context, l *links, events chan<- Event, lost bool) error {
	conn, err := dial(w.netns, unix.RTMGRP_LINK)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.JoinGroup(unix.RTNLGRP_NSID); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetReadBuffer(w.receiveBuffer); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	changes, err := l.list(lost)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.degrade("netlink", nil)
	w.mu.Unlock()
	for {
		for _, e := range changes {
			if !send(ctx, events, e) {
				return ctx.Err()
			}
		}
		messages, err := conn.Receive()
		if err != nil {
			return err
		}
		changes = l.take(messages, time.Now())
	}
}

// take takes in link messages.
func (l *links) take(messages []netlink.Message, now time.Time) []Event {
	var changes []Event
	for _, m := range messages {
		if m.Header.Type == unix.RTM_DELNSID {
			changes = append(changes, namespaceGone(m.Data)...)
			continue
		}
		// A bridge tells of its ports in link messages of its own family: a port
		// that leaves is a DELLINK of a device that lives on.
		if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
			continue
		}
		link, err := parseLink(m.Data)
		switch {
		case err != nil: // the kernel does not
		case m.Header.Type == unix.RTM_NEWLINK:
			changes = append(changes, l.seen(link, now)...)
		case m.Header.Type == unix.RTM_DELLINK:
			changes = append(changes, l.gone(link.index, link.moved, now)...)
			changes = append(changes, l.peerMoved(link, now)...)
			changes = append(changes, linkMoved(link)...)
		}
	}
	return changes
}

// peerMoved looks at the end that stays behind when the other one moves to
// another namespace, as Docker makes its veths. The kernel sends nothing about it
// before the end that moved is up, and by then packets may flow.
func (l *links) peerMoved(peer link, now time.Time) []Event {
	v, known := l.known[peer.peer]
	if !peer.moved || peer.kind != "veth" || peer.elsewhere || known && v.NetNSID >= 0 {
		return nil
	}
	link, err := l.ask(peer.peer)
	if err != nil {
		return nil // gone, and its own events say so
	}
	return l.seen(link, now)
}

func (l *links) ask(index int) (link, error) {
	conn, err := dial(l.netns, 0)
	if err != nil {
		return link{}, err
	}
	defer conn.Close()
	return getLink(conn, index)
}

// seen takes in a link. A known veth whose peer is back in the host's namespace
// is about to be removed and still carries the container's last packets.
func (l *links) seen(link link, now time.Time) []Event {
	v, ok := link.hostVeth()
	if !ok || l.known[v.Index] == v {
		return nil
	}
	l.known[v.Index] = v
	return []Event{HostVethSeen{HostVeth: v, SeenAt: now}}
}

func (l *links) gone(index int, moved bool, now time.Time) []Event {
	if _, ok := l.known[index]; !ok {
		return nil
	}
	delete(l.known, index)
	return []Event{HostVethGone{Index: index, Moved: moved, SeenAt: now}}
}

// list brings what is known up to date with a dump, and says so if events were
// lost.
func (l *links) list(lost bool) ([]Event, error) {
	all, err := listLinks(l.netns, "veth")
	if err != nil && !errors.Is(err, ErrPartial) {
		return nil, err
	}
	changes := l.compare(all, err == nil, time.Now())
	if lost {
		changes = append(changes, Overflowed{Source: "netlink"})
	}
	return changes, nil
}

// compare takes in a list. On the host where events are lost lists are interrupted, too:
// what is missing in one that is not whole is asked for.
func (l *links) compare(all []link, whole bool, now time.Time) []Event {
	exists := map[int]bool{}
	var changes []Event
	for _, link := range all {
		exists[link.index] = true
		changes = append(changes, l.seen(link, now)...)
	}
	for index := range l.known {
		if exists[index] {
			continue
		}
		if !whole {
			if _, err := l.ask(index); !errors.Is(err, unix.ENODEV) {
				continue
			}
		}
		changes = append(changes, l.gone(index, false, now)...)
	}
	return changes
}
