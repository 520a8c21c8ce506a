// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/watcher"
)

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

// readIndex asks the kernel for links, and for the addresses at the other ends of host veths,
// without entering their namespaces. An address that two containers of one bridge claim is
// nobody's: either may have given it to itself. Of a namespace with more than 64 addresses some
// are nobody's, too.
//
// Requires Linux 4.20 and CAP_NET_ADMIN. Part of the index is returned with an error.
func readIndex(ns int) (*index, error) {
	links, err := linksOf(ns)
	if err != nil {
		return nil, err
	}
	x := &index{at: time.Now(), links: map[uint32]kind{}, ports: map[end]uint32{}}
	behind := map[int]map[int]*netlink.LinkAttrs{} // veths by the namespace and the index of their peers
	for _, l := range links {
		at := l.Attrs()
		switch nsid, ok := peerNamespace(l); {
		case l.Type() == "bridge":
			x.links[uint32(at.Index)] = bridge
		case ok:
			x.links[uint32(at.Index)] = veth
			if behind[nsid] == nil {
				behind[nsid] = map[int]*netlink.LinkAttrs{}
			}
			behind[nsid][at.ParentIndex] = at
		default:
			x.links[uint32(at.Index)] = other
		}
	}
	twice := map[end]bool{}
	var errs []error
	for nsid, veths := range behind {
		found, err := watcher.AddressesIn(ns, nsid)
		if !errors.Is(err, watcher.ErrGone) && !errors.Is(err, watcher.ErrPartial) {
			errs = append(errs, err)
		}
		x.add(found, veths, twice)
	}
	for e := range twice {
		delete(x.ports, e)
	}
	return x, errors.Join(errs...)
}

// add adds the addresses of a namespace, by the interface there.
func (x *index) add(found map[int][]netip.Addr, veths map[int]*netlink.LinkAttrs, twice map[end]bool) {
	for ifindex, addresses := range found {
		at := veths[ifindex]
		if at == nil {
			continue
		}
		for _, addr := range addresses {
			e, port := end{uint32(at.Index), addr}, uint32(at.Index)
			if at.MasterIndex != 0 {
				e.dev = uint32(at.MasterIndex)
			}
			if before, ok := x.ports[e]; ok && before != port {
				twice[e] = true
			}
			x.ports[e] = port
		}
	}
}

// peerNamespace returns the number of the namespace that a link's other end is in. Not ok: it
// is in none but ours, or that has no number.
func peerNamespace(l netlink.Link) (nsid int, ok bool) {
	nsid = int(int32(l.Attrs().NetNsID))
	return nsid, nsid >= 0
}

// linksOf returns the links of a network namespace, 0 for the current one. Where they change
// meanwhile some may be missing.
func linksOf(ns int) ([]netlink.Link, error) {
	at := netns.None()
	if ns != 0 {
		at = netns.NsHandle(ns)
	}
	h, err := netlink.NewHandleAt(at, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}
