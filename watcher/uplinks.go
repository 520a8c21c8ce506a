// SPDX-License-Identifier: Apache-2.0

package watcher

import "slices"

// way says whether a link leads out of the namespace that it is in, other than by a host
// veth.
type way int

const (
	staysInside way = iota
	leadsOut
	// leadsOutAlone: it may carry what another link takes out, as a VPN's does, or it is the
	// only way, as slirp's.
	leadsOutAlone
)

// innerKinds are those that join links of one namespace, or lead nowhere.
var innerKinds = []string{"bridge", "bond", "team", "vrf", "dummy", "ifb", "nlmon"}

// way tells by what the link is and where it says that the one below it is. A link on top
// of another one of the same namespace carries what that one carries, too, and names no
// other namespace. Neither do the tunnels that a kernel has in each namespace unasked.
//
// Where the packets have no Ethernet header, as WireGuard's, our programs can't count.
//
// A port of a bridge is the end of an inner container's pair, or of a virtual machine; but
// what leads out by itself does so from a bridge as well.
//
// Open vSwitch' ports name no other namespace, and may be of one in this one.
func (l link) way() way {
	switch {
	case l.loopback || !l.ethernet || slices.Contains(innerKinds, l.kind):
		return staysInside
	case l.kind == "":
		return leadsOut // physical: it has nothing below it
	case l.kind == "tun" && l.outside:
		return leadsOut
	case (l.kind == "tun" || l.kind == "openvswitch") && l.up && !l.bridged:
		return leadsOutAlone
	case l.kind == "tun", !l.elsewhere:
		return staysInside
	case l.pairs() && (l.behind == BehindOwn || l.bridged && l.behind != BehindOutside):
		return staysInside
	}
	return leadsOut
}

// hidden says that a link leads out, but our programs can't count there.
func (l link) hidden() bool {
	return !l.loopback && !l.ethernet && l.up && (l.outside || l.elsewhere && l.kind != "")
}

// markUplinks marks the uplinks among the interfaces of a namespace. It returns whether
// there are any.
func markUplinks(interfaces []Interface, links []link) bool {
	ways := make(map[int]way, len(links))
	for _, l := range links {
		ways[l.index] = l.way()
	}
	least := leadsOut
	if !slices.ContainsFunc(interfaces, func(i Interface) bool { return i.HostIndex != 0 || ways[i.Index] == leadsOut }) {
		least = leadsOutAlone
	}
	found := false
	for n := range interfaces {
		i := &interfaces[n]
		i.Uplink = i.HostIndex == 0 && ways[i.Index] == least
		found = found || i.Uplink
	}
	return found
}
