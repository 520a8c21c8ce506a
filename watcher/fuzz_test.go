// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// FuzzTake feeds a subscription what no kernel sends. Each message becomes the events of its
// type, of the interface or namespace that it names.
func FuzzTake(f *testing.F) {
	const known = 7
	header := func(family byte, index uint32) []byte {
		b := make([]byte, unix.SizeofIfInfomsg)
		b[0] = family
		native.PutUint32(b[4:], index)
		return b
	}
	info := append([]byte{12, 0, unix.IFLA_LINKINFO, 0, 8, 0, unix.IFLA_INFO_KIND, 0}, "veth"...)
	nsid := []byte{8, 0, unix.IFLA_LINK_NETNSID, 0, 3, 0, 0, 0}
	moved := []byte{8, 0, unix.IFLA_NEW_NETNSID, 0, 5, 0, 0, 0}
	f.Add(uint16(unix.RTM_NEWLINK), slices.Concat(header(unix.AF_UNSPEC, 8), info, nsid))
	f.Add(uint16(unix.RTM_NEWLINK), slices.Concat(header(unix.AF_UNSPEC, known), info, nsid))
	f.Add(uint16(unix.RTM_DELLINK), header(unix.AF_UNSPEC, known))
	f.Add(uint16(unix.RTM_DELLINK), header(unix.AF_BRIDGE, known))
	f.Add(uint16(unix.RTM_DELLINK), slices.Concat(header(unix.AF_UNSPEC, 9), moved))
	f.Add(uint16(unix.RTM_DELLINK), slices.Concat(header(unix.AF_UNSPEC, 9), info, nsid, moved))
	f.Add(uint16(unix.RTM_DELNSID), []byte{0, 0, 0, 0, 8, 0, unix.NETNSA_NSID, 0, 3, 0, 0, 0})
	f.Add(uint16(unix.RTM_NEWNSID), []byte{0, 0, 0, 0, 8, 0, unix.NETNSA_NSID, 0, 3, 0, 0, 0})
	f.Add(uint16(unix.RTM_DELNSID), []byte{0})
	f.Fuzz(func(t *testing.T, kind uint16, b []byte) {
		told, err := parseLink(b)
		if err == nil && told.moved && told.kind == "veth" && !told.elsewhere {
			return // asks the kernel: TestMovedHostEnd does
		}
		l := &links{known: map[int]HostVeth{known: {Index: known, NetNSID: -1}}}
		m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: b}
		for _, e := range l.take([]netlink.Message{m}, time.Now()) {
			ok := false
			switch e := e.(type) {
			case HostVethSeen:
				ok = kind == unix.RTM_NEWLINK && e.Index == told.index && l.known[e.Index] == e.HostVeth
			case HostVethGone:
				ok = kind == unix.RTM_DELLINK && e.Index == told.index && e.Index == known && len(l.known) == 0
			case LinkMoved:
				ok = kind == unix.RTM_DELLINK && told.moved && e.NetNSID == told.movedTo
			case NamespaceGone:
				number, found := parseNumber(b)
				ok = kind == unix.RTM_DELNSID && found && e.NetNSID == number
			}
			if !ok {
				t.Errorf("a message of type %d about %+v: %T %+v", kind, told, e, e)
			}
		}
	})
}
