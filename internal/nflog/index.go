// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// skipStats is RTEXT_FILTER_SKIP_STATS: links come without their counters.
const skipStats = 1 << 3

// kind says what a link of the host may be to containers.
type kind int

const (
	other  kind = iota // no container is behind it
	veth               // a container is
	bridge             // some may be
)

// index says behind which interface an address is.
type index struct {
	at    time.Time
	links map[uint32]kind
	ports map[end]uint32 // the host veth by the interface that hooks name, its bridge's or its own
}

// link is a link of the host.
type link struct {
	name                string
	index, master, peer uint32
	nsid                int32 // of the namespace that the peer is in, -1 for none
	bridge              bool
}

// readIndex asks the kernel for links, and for the addresses at the other ends of host veths,
// without entering their namespaces. An address that two containers of one bridge claim is
// nobody's: either may have given it to itself.
//
// Requires Linux 4.20 and CAP_NET_ADMIN. Part of the index is returned with an error.
func readIndex(netns int) (*index, error) {
	conn, err := dialRoute(netns)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	links, err := listLinks(conn)
	if err != nil {
		return nil, err
	}
	x := &index{at: time.Now(), links: map[uint32]kind{}, ports: map[end]uint32{}}
	behind := map[int32]map[uint32]link{} // veths by the namespace and the index of their peers
	for _, l := range links {
		switch {
		case l.bridge:
			x.links[l.index] = bridge
		case l.nsid >= 0:
			x.links[l.index] = veth
			if behind[l.nsid] == nil {
				behind[l.nsid] = map[uint32]link{}
			}
			behind[l.nsid][l.peer] = l
		default:
			x.links[l.index] = other
		}
	}
	twice := map[end]bool{}
	var errs []error
	for nsid, veths := range behind {
		errs = append(errs, x.addAddresses(conn, nsid, veths, twice))
	}
	for e := range twice {
		delete(x.ports, e)
	}
	return x, errors.Join(errs...)
}

// addAddresses adds the addresses of a namespace.
func (x *index) addAddresses(conn *netlink.Conn, nsid int32, veths map[uint32]link, twice map[end]bool) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := listAddresses(conn, nsid, family, func(ifindex uint32, addr netip.Addr) {
			l, ok := veths[ifindex]
			if !ok {
				return
			}
			e := end{l.index, addr}
			if l.master != 0 {
				e.dev = l.master
			}
			if port, ok := x.ports[e]; ok && port != l.index {
				twice[e] = true
			}
			x.ports[e] = l.index
		})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			return nil // the namespace has gone
		}
		if err != nil {
			return fmt.Errorf("list addresses in namespace %d: %w", nsid, err)
		}
	}
	return nil
}

// linksOf returns the links of a network namespace.
func linksOf(netns int) ([]link, error) {
	conn, err := dialRoute(netns)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return listLinks(conn)
}

func dialRoute(netns int) (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns, Strict: true})
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return conn, nil
}

func listLinks(conn *netlink.Conn) ([]link, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(unix.IFLA_EXT_MASK, skipStats)
	b, err := attrs.Encode()
	if err != nil {
		return nil, err
	}
	reply, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   append(make([]byte, unix.SizeofIfInfomsg), b...),
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := make([]link, 0, len(reply))
	for _, m := range reply {
		if l, ok := parseLink(m.Data); ok {
			links = append(links, l)
		}
	}
	return links, nil
}

func parseLink(b []byte) (link, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, false
	}
	l := link{index: binary.NativeEndian.Uint32(b[4:]), nsid: -1}
	attrs, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, false
	}
	for attrs.Next() {
		switch attrs.Type() {
		case unix.IFLA_IFNAME:
			l.name = attrs.String()
		case unix.IFLA_MASTER:
			l.master = attrs.Uint32()
		case unix.IFLA_LINK:
			l.peer = attrs.Uint32()
		case unix.IFLA_LINK_NETNSID:
			l.nsid = attrs.Int32()
		case unix.IFLA_LINKINFO:
			attrs.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					if info.Type() == unix.IFLA_INFO_KIND {
						l.bridge = info.String() == "bridge"
					}
				}
				return nil
			})
		}
	}
	return l, attrs.Err() == nil
}

func listAddresses(conn *netlink.Conn, nsid int32, family byte, each func(ifindex uint32, addr netip.Addr)) error {
	attrs := netlink.NewAttributeEncoder()
	attrs.Int32(unix.IFA_TARGET_NETNSID, nsid)
	b, err := attrs.Encode()
	if err != nil {
		return err
	}
	header := make([]byte, unix.SizeofIfAddrmsg)
	header[0] = family
	reply, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   append(header, b...),
	})
	if err != nil {
		return err
	}
	for _, m := range reply {
		if len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		addr, ok := parseAddress(m.Data[unix.SizeofIfAddrmsg:])
		if ok {
			each(binary.NativeEndian.Uint32(m.Data[4:]), addr)
		}
	}
	return nil
}

// parseAddress returns the interface's own address: IFA_LOCAL where there is one, since
// IFA_ADDRESS is the other end's then.
func parseAddress(b []byte) (addr netip.Addr, ok bool) {
	attrs, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return addr, false
	}
	local := false
	for attrs.Next() {
		switch attrs.Type() {
		case unix.IFA_LOCAL:
			addr, local = netip.AddrFromSlice(attrs.Bytes())
		case unix.IFA_ADDRESS:
			if !local {
				addr, _ = netip.AddrFromSlice(attrs.Bytes())
			}
		}
	}
	return addr, addr.IsValid() && attrs.Err() == nil
}
