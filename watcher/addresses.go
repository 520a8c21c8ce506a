// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxAddresses bounds how many addresses of a namespace are listed: who may administer it can
// give it any number.
const maxAddresses = 64

// Addresses lists the addresses of the interfaces in the namespace by which others can know it:
// not those of loopback and of a link alone, which are in many. It lists 64 at most, beside
// [ErrPartial].
func (n *Namespace) Addresses() ([]netip.Addr, error) {
	conn, err := dial(n.FD(), 0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	found, err := listAddresses(conn, nil, func(addr netip.Addr) bool {
		return !addr.IsLoopback() && !(addr.IsLinkLocalUnicast() && addr.Is6())
	})
	if err != nil {
		err = fmt.Errorf("list addresses in net:[%d]: %w", n.ns.id.inode, err)
	}
	return slices.Concat(slices.Collect(maps.Values(found))...), err
}

// AddressesIn lists the addresses in another namespace, by the interface there, without entering
// it. netns has the number nsid for that; it is a descriptor, 0 for the process's own. It lists
// 64 at most, beside [ErrPartial].
//
// Requires Linux 4.20 and CAP_NET_ADMIN. The error wraps [ErrGone] if there is no such namespace
// any more.
func AddressesIn(netns, nsid int) (map[int][]netip.Addr, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Int32(unix.IFA_TARGET_NETNSID, int32(nsid))
	target, err := attrs.Encode()
	if err != nil {
		return nil, err
	}
	conn, err := dial(netns, 0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetOption(netlink.GetStrictCheck, true); err != nil { // else the number is not looked at
		return nil, fmt.Errorf("list addresses in namespace %d: %w", nsid, err)
	}
	found, err := listAddresses(conn, target, func(netip.Addr) bool { return true })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		err = ErrGone
	}
	if err != nil {
		return found, fmt.Errorf("list addresses in namespace %d: %w", nsid, err)
	}
	return found, nil
}

// errEnough ends a list: who may administer a namespace can make it endless.
var errEnough = errors.New("enough")

func listAddresses(conn *netlink.Conn, target []byte, wanted func(netip.Addr) bool) (found map[int][]netip.Addr, err error) {
	payload, buf := append(make([]byte, unix.SizeofIfAddrmsg), target...), make([]byte, dumpBuffer)
	for range listAttempts {
		found = map[int][]netip.Addr{}
		count := 0
		err = dump(conn, unix.RTM_GETADDR, payload, buf, func(answer []byte) error {
			index, addr, err := parseAddress(answer)
			if err != nil || !addr.IsValid() || !wanted(addr) {
				return err
			}
			if count++; count > maxAddresses {
				return errEnough
			}
			found[index] = append(found[index], addr)
			return nil
		})
		if errors.Is(err, errEnough) {
			return found, ErrPartial
		}
		if !errors.Is(err, ErrPartial) {
			return found, err
		}
	}
	return found, err
}

// parseAddress reads the payload of a message about an address: the interface that has it, and
// itself. Of a point-to-point link it is the own one, and not the other end's.
func parseAddress(b []byte) (index int, addr netip.Addr, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return 0, addr, fmt.Errorf("parse address message: %d bytes", len(b))
	}
	attrs, err := netlink.NewAttributeDecoder(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, addr, fmt.Errorf("parse address message: %w", err)
	}
	var local netip.Addr
	for attrs.Next() {
		switch attrs.Type() {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attrs.Bytes())
		case unix.IFA_ADDRESS:
			addr, _ = netip.AddrFromSlice(attrs.Bytes())
		}
	}
	if local.IsValid() {
		addr = local
	}
	return int(native.Uint32(b[4:])), addr.Unmap(), attrs.Err()
}
