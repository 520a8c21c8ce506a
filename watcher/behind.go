// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Behind says what is behind a veth that leads from a container's namespace to another one
// that is not the host's.
type Behind int

// What is behind.
const (
	// BehindUnknown: the packets end there, and others than the container may be there.
	BehindUnknown Behind = iota
	// BehindOutside: packets can go on from there to where they don't pass the container again.
	BehindOutside
	// BehindOwn: all namespaces there are the container's own, and nothing leads out of them
	// but through the container's, or by host veths. So whatever leaves or comes in passes
	// one of its other interfaces, too, and is counted there.
	BehindOwn
)

// maxBehind bounds how many namespaces are looked at behind those veths. What has more behind
// it is taken to lead outside.
const maxBehind = 512

// walk goes from namespace to namespace by their links. It uses the numbers that the
// container's namespace has for the others.
type walk struct {
	own    *own
	conn   *netlink.Conn // in the container's namespace
	start  namespaceFD
	host   namespaceFD
	places map[int]*place
}

// namespaceFD is an open namespace with its number, -1 while it has none.
type namespaceFD struct{ fd, number int }

// place is a namespace behind.
type place struct {
	out  bool  // a link leads out, and not by a host veth
	via  []int // the host veths that lead there
	next []int // the namespaces that links lead to
}

// lookBehind finds out what is behind the veths in a container's namespace that don't lead to
// the host.
func (w *Watcher) lookBehind(o *own, netns int, links []link, interfaces []Interface) error {
	third := func(l link) bool {
		at := slices.IndexFunc(interfaces, func(i Interface) bool { return i.Index == l.index })
		return l.pairs() && at >= 0 && interfaces[at].HostIndex == 0
	}
	if !slices.ContainsFunc(links, third) {
		return nil
	}
	conn, err := dial(netns, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	host, err := w.hostFile()
	if err != nil {
		return err
	}
	defer host.Close()
	o.conn = conn
	k := walk{own: o, conn: conn, start: namespaceFD{netns, -1}, host: namespaceFD{int(host.Fd()), -1}, places: map[int]*place{}}
	if err := k.number(); err != nil {
		return err
	}
	for n := range links {
		if l := &links[n]; third(*l) {
			l.behind, l.via = k.behind(l.netnsid)
		}
	}
	return nil
}

// number asks for the numbers of the two namespaces where the walk ends. The kernel gives them
// when it shows the first link that leads there.
func (k *walk) number() (err error) {
	for _, ns := range []*namespaceFD{&k.start, &k.host} {
		if ns.number < 0 {
			if ns.number, err = namespaceNumber(k.conn, ns.fd); err != nil {
				return err
			}
		}
	}
	return nil
}

// behind says what is behind a link that leads to a namespace, and which host veths lead there.
func (k *walk) behind(number int) (Behind, []int) {
	var via []int
	reached := []int{number}
	for n := 0; n < len(reached); n++ {
		if number := reached[n]; number == k.start.number {
			continue
		} else if number == k.host.number {
			return BehindOutside, nil
		}
		p := k.look(reached[n])
		if p.out {
			return BehindOutside, nil
		}
		via = append(via, p.via...)
		for _, next := range p.next {
			if !slices.Contains(reached, next) {
				reached = append(reached, next)
			}
		}
	}
	for _, number := range reached {
		if number == k.start.number || k.own.has(number) {
			continue
		}
		if len(via) > 0 {
			return BehindOutside, nil
		}
		return BehindUnknown, nil
	}
	return BehindOwn, via
}

// look looks at one namespace. In one that can't be looked at anything may be.
func (k *walk) look(number int) *place {
	if p := k.places[number]; p != nil {
		return p
	}
	p := &place{}
	k.places[number] = p
	links, err := linksIn(k.conn, number)
	if err == nil {
		err = k.number()
	}
	if err != nil || len(k.places) > maxBehind {
		p.out = true
		return p
	}
	for _, l := range links {
		switch {
		case l.elsewhere && l.netnsid < 0:
			p.out = true
		case l.pairs() && l.netnsid == k.host.number:
			p.via = append(p.via, l.peer)
		case l.elsewhere:
			p.next = append(p.next, l.netnsid)
		case l.kind == "tun":
			p.out = p.out || l.open() && !k.own.holds(l, func(fd int) bool {
				at, err := namespaceNumber(k.conn, fd)
				return err == nil && at == number
			})
		default:
			p.out = p.out || !l.stays()
		}
	}
	return p
}

// pairs says whether a link is one end of a pair, whose other end is in another namespace.
func (l link) pairs() bool { return l.elsewhere && (l.kind == "veth" || l.kind == "netkit") }

// tunnelKinds are those that send by the routes of the namespace that they name, or of their
// own if they name none.
var tunnelKinds = []string{
	"erspan", "geneve", "gre", "gretap", "ip6erspan", "ip6gre", "ip6gretap", "ip6tnl", "ipip", "sit", "vti", "vti6", "vxlan",
	"wireguard", "xfrm",
}

// stays says whether a link leads nowhere but to others of its own namespace.
func (l link) stays() bool {
	if l.loopback {
		return true
	}
	return !l.elsewhere && (l.peer != 0 || slices.Contains(innerKinds, l.kind) || slices.Contains(tunnelKinds, l.kind))
}

// linksIn dumps the links of a namespace that the one of conn has a number for. The numbers
// in the answer are those of the latter, too.
func linksIn(conn *netlink.Conn, number int) (links []link, err error) {
	payload, err := linkRequest(0, "", rtextSkipStats)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewAttributeEncoder()
	attrs.Int32(unix.IFLA_TARGET_NETNSID, int32(number))
	target, err := attrs.Encode()
	if err != nil {
		return nil, err
	}
	payload = append(payload, target...)
	for range listAttempts {
		links = nil
		if err = expect(conn); err != nil {
			return nil, err
		}
		err = dump(conn, unix.RTM_GETLINK, payload, make([]byte, dumpBuffer), func(answer []byte) error {
			l, err := parseLink(answer)
			links = append(links, l)
			return err
		})
		if !errors.Is(err, ErrPartial) {
			break
		}
	}
	return links, err
}
