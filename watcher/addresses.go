// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"net/netip"

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
	for range listAttempts {
		found, err := listAddresses(conn)
		if !errors.Is(err, ErrPartial) || len(found) == maxAddresses {
			return found, err
		}
	}
	return nil, fmt.Errorf("list addresses in net:[%d]: %w", n.ns.id.inode, ErrPartial)
}

func listAddresses(conn *netlink.Conn) (found []netip.Addr, err error) {
	more := false
	err = dump(conn, unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), make([]byte, dumpBuffer), func(answer []byte) error {
		addr, err := parseAddress(answer)
		switch {
		case err != nil:
			return err
		case !addr.IsValid() || addr.IsLoopback() || addr.IsLinkLocalUnicast() && addr.Is6():
		case len(found) == maxAddresses:
			more = true
		default:
			found = append(found, addr)
		}
		return nil
	})
	if err == nil && more {
		err = ErrPartial
	}
	return found, err
}

// parseAddress reads the payload of a message about an address. Of a point-to-point link it is
// the own one, and not the other end's.
func parseAddress(b []byte) (addr netip.Addr, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return addr, fmt.Errorf("parse address message: %d bytes", len(b))
	}
	attrs, err := netlink.NewAttributeDecoder(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return addr, fmt.Errorf("parse address message: %w", err)
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
	return addr.Unmap(), attrs.Err()
}
