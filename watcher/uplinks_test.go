// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

func TestMarkUplinks(t *testing.T) {
	loopback := linkNamed("lo", "", func(l *link) { l.loopback = true })
	for name, test := range map[string]struct {
		links     []link
		hostVeths []string
		want      []string
	}{
		"only loopback":               {links: []link{loopback}},
		"host veth":                   {[]link{loopback, elsewhere("eth0", "veth")}, []string{"eth0"}, nil},
		"macvlan":                     {links: []link{loopback, elsewhere("eth0", "macvlan")}, want: []string{"eth0"}},
		"macvtap":                     {links: []link{elsewhere("eth0", "macvtap")}, want: []string{"eth0"}},
		"ipvlan":                      {links: []link{elsewhere("eth0", "ipvlan")}, want: []string{"eth0"}},
		"ipvtap":                      {links: []link{elsewhere("eth0", "ipvtap")}, want: []string{"eth0"}},
		"netkit":                      {links: []link{elsewhere("eth0", "netkit")}, want: []string{"eth0"}},
		"vxlan moved in":              {links: []link{elsewhere("eth0", "vxlan")}, want: []string{"eth0"}},
		"vlan moved in":               {links: []link{elsewhere("eth0", "vlan")}, want: []string{"eth0"}},
		"physical":                    {links: []link{linkNamed("eth0", "")}, want: []string{"eth0"}},
		"physical, in a bond":         {links: []link{linkNamed("ens1", "", bridged), linkNamed("bond0", "bond")}, want: []string{"ens1"}},
		"InfiniBand":                  {links: []link{linkNamed("ib0", "", func(l *link) { l.ethernet = false })}},
		"veth to a third namespace":   {[]link{elsewhere("eth0", "veth"), elsewhere("eth1", "veth")}, []string{"eth1"}, []string{"eth0"}},
		"both ends inside":            {links: []link{linkNamed("a", "veth", onTop), linkNamed("b", "veth", onTop)}},
		"an inner container's veth":   {[]link{elsewhere("eth0", "veth"), linkNamed("docker0", "bridge"), elsewhere("veth1", "veth", bridged)}, []string{"eth0"}, nil},
		"an inner container's netkit": {[]link{elsewhere("eth0", "veth"), elsewhere("nk1", "netkit", bridged)}, []string{"eth0"}, nil},
		"macvlan of the inside":       {[]link{elsewhere("eth0", "veth"), linkNamed("mac0", "macvlan", onTop)}, []string{"eth0"}, nil},
		"vlan of the inside":          {links: []link{elsewhere("eth0", "macvlan"), linkNamed("eth0.5", "vlan", onTop)}, want: []string{"eth0"}},
		"vxlan of the inside":         {[]link{elsewhere("eth0", "veth"), linkNamed("vx0", "vxlan", onTop)}, []string{"eth0"}, nil},
		"macvlan in a bridge":         {links: []link{linkNamed("br0", "bridge"), elsewhere("mac0", "macvlan", bridged)}, want: []string{"mac0"}},
		"kernel's own tunnels":        {links: []link{linkNamed("tunl0", "ipip", notEthernet), linkNamed("gretap0", "gretap"), linkNamed("erspan0", "erspan"), linkNamed("sit0", "sit", notEthernet), linkNamed("ip6tnl0", "ip6tnl", notEthernet)}},
		"joins of the inside":         {links: []link{linkNamed("a", "bridge"), linkNamed("b", "dummy"), linkNamed("c", "ifb"), linkNamed("d", "team"), linkNamed("e", "vrf")}},
		"slirp's tap":                 {links: []link{loopback, linkNamed("tap0", "tun")}, want: []string{"tap0"}},
		"slirp's tap, not up yet":     {links: []link{linkNamed("tap0", "tun", down)}},
		"a machine's tap":             {links: []link{elsewhere("eth0", "macvlan"), linkNamed("tap0", "tun")}, want: []string{"eth0"}},
		"a tap beside a host veth":    {[]link{elsewhere("eth0", "veth"), linkNamed("tap0", "tun")}, []string{"eth0"}, nil},
		"a tap held outside":          {[]link{elsewhere("eth0", "veth"), linkNamed("tap0", "tun", outside)}, []string{"eth0"}, []string{"tap0"}},
		"the same in a bridge":        {[]link{elsewhere("eth0", "veth"), linkNamed("tap0", "tun", outside, bridged)}, []string{"eth0"}, []string{"tap0"}},
		"a veth to its own":           {[]link{elsewhere("eth0", "veth"), elsewhere("i0", "veth", leading(BehindOwn))}, []string{"eth0"}, nil},
		"a tap beside such a veth":    {links: []link{elsewhere("i0", "veth", leading(BehindOwn)), linkNamed("tap0", "tun")}, want: []string{"tap0"}},
		"a bridged veth that goes on": {[]link{elsewhere("eth0", "veth"), elsewhere("eth1", "veth", bridged, leading(BehindOutside))}, []string{"eth0"}, []string{"eth1"}},
		"a switch's port":             {links: []link{linkNamed("eth0", "openvswitch")}, want: []string{"eth0"}},
		"a switch's port beside eth0": {[]link{elsewhere("eth0", "veth"), linkNamed("gw0", "openvswitch")}, []string{"eth0"}, nil},
		"a bridged tap":               {links: []link{linkNamed("tap0", "tun", bridged)}},
		"WireGuard":                   {links: []link{elsewhere("wg0", "wireguard", notEthernet)}},
		"a tunnel of IP":              {links: []link{linkNamed("tun0", "tun", notEthernet)}},
		"more than one":               {[]link{elsewhere("eth0", "veth"), elsewhere("net1", "macvlan"), linkNamed("net2", "")}, []string{"eth0"}, []string{"net1", "net2"}},
		"a kind that is yet to come":  {links: []link{elsewhere("eth0", "zzz")}, want: []string{"eth0"}},
		"the same, of this namespace": {links: []link{linkNamed("eth0", "zzz", onTop)}},
		"the same, without Ethernet":  {links: []link{elsewhere("eth0", "zzz", notEthernet)}},
	} {
		var interfaces []Interface
		for n := range test.links {
			l := &test.links[n]
			l.index = n + 1
			if l.loopback {
				continue
			}
			i := Interface{Name: l.name, Index: l.index, Kind: l.kind}
			if slices.Contains(test.hostVeths, l.name) {
				i.HostIndex = 100 + n
			}
			interfaces = append(interfaces, i)
		}
		any := markUplinks(interfaces, test.links)
		var got []string
		for _, i := range interfaces {
			if i.Uplink {
				got = append(got, i.Name)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" || any != (len(test.want) > 0) {
			t.Errorf("%s: any %v (-want +got):\n%s", name, any, diff)
		}
	}
}

// linkNamed is a link that says nothing of another one.
func linkNamed(name, kind string, but ...func(*link)) link {
	l := link{name: name, kind: kind, ethernet: true, up: true}
	for _, change := range but {
		change(&l)
	}
	return l
}

// elsewhere is a link whose other end, or the one below it, is in another namespace.
func elsewhere(name, kind string, but ...func(*link)) link {
	l := linkNamed(name, kind, but...)
	l.peer, l.elsewhere = 7, true
	return l
}

func leading(to Behind) func(*link) { return func(l *link) { l.behind = to } }

func outside(l *link)     { l.outside = true }
func onTop(l *link)       { l.peer = 1 }
func bridged(l *link)     { l.bridged = true }
func down(l *link)        { l.up = false }
func notEthernet(l *link) { l.ethernet = false }

func macvlan(name string, parent netlink.Link) *netlink.Macvlan {
	return &netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: parent.Attrs().Index},
		Mode:      netlink.MACVLAN_MODE_BRIDGE,
	}
}

func vxlan(name string) *netlink.Vxlan {
	return &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name}, VxlanId: 7, Port: 4789}
}

// moveTo makes a link in one namespace and moves it to another.
func moveTo(t *testing.T, from, to *testnet.Namespace, l netlink.Link) {
	t.Helper()
	check(t, from.LinkAdd(l))
	check(t, from.LinkSetNsFd(linkIn(t, from, l.Attrs().Name), to.FD()))
}

// TestInspectUplinks has real devices say what the predicate goes by.
func TestInspectUplinks(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		startIn(t, c.inner, c.dir())
		third := newNamespace(t)
		check(t, c.host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "nic"}, PeerName: "wire"}))
		parent := linkIn(t, c.host, "nic")
		moveTo(t, c.host, c.inner, macvlan("macvlan0", parent))
		moveTo(t, c.host, c.inner, vxlan("vxlan0"))
		check(t, c.inner.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge0"}}))
		veth(t, third, "far", c.inner, "third0")
		port := veth(t, c.inner, "port0", newNamespace(t), "eth0")
		check(t, c.inner.LinkSetMaster(port, linkIn(t, c.inner, "bridge0")))
		check(t, c.inner.LinkAdd(macvlan("inner0", linkIn(t, c.inner, "third0"))))
		check(t, c.inner.LinkAdd(vxlan("inner1")))
		check(t, c.inner.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pair0"}, PeerName: "pair1"}))
		_, err := c.inner.Run("ip", "tuntap", "add", "tap0", "mode", "tap")
		check(t, err)
		check(t, c.inner.LinkSetUp(linkIn(t, c.inner, "tap0")))

		uplinks := func() (names []string) {
			s := c.inspect(t)
			for _, i := range s.Interfaces {
				if i.Uplink {
					names = append(names, i.Name)
				}
			}
			slices.Sort(names)
			if s.NetNSID < 0 {
				t.Errorf("the namespace has no number: %+v", s)
			}
			return names
		}
		if diff := cmp.Diff([]string{"macvlan0", "third0", "vxlan0"}, uplinks()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for _, name := range []string{"inner0", "macvlan0", "third0", "vxlan0", "port0"} {
			check(t, c.inner.LinkDel(linkIn(t, c.inner, name)))
		}
		if diff := cmp.Diff([]string{"tap0"}, uplinks()); diff != "" {
			t.Errorf("with nothing else to lead out (-want +got):\n%s", diff)
		}
	})
}

// TestNumbered gives a namespace a number where nothing else has made the kernel do so.
func TestNumbered(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		startIn(t, c.inner, c.dir())
		veth(t, newNamespace(t), "far", c.inner, "eth0")
		first := c.inspect(t).NetNSID
		if again := c.inspect(t).NetNSID; first < 0 || again != first {
			t.Errorf("number %d, then %d", first, again)
		}
		if there, err := c.NamespaceThere(first); err != nil || !there {
			t.Errorf("number %d is there: %v, error %v", first, there, err)
		}
		if there, err := c.NamespaceThere(first + 1000); err != nil || there {
			t.Errorf("number %d is there: %v, error %v", first+1000, there, err)
		}
	})
}

// TestLinkMoved follows a macvlan into a namespace, and that to its end.
func TestLinkMoved(t *testing.T) {
	host, r := watchHost(t)
	inner := closableNamespace(t)
	check(t, host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "nic"}, PeerName: "wire"}))
	moveTo(t, host, inner, macvlan("mac0", linkIn(t, host, "nic")))
	nsid, err := host.GetNetNsIdByFd(inner.FD())
	check(t, err)
	if moved := next[LinkMoved](t, r); moved.NetNSID != nsid {
		t.Errorf("moved to %d, want %d", moved.NetNSID, nsid)
	}
	check(t, inner.Close())
	if gone := next[NamespaceGone](t, r); gone.NetNSID != nsid {
		t.Errorf("namespace %d is gone, want %d", gone.NetNSID, nsid)
	}
	eventually(t, func() error {
		if there, err := r.NamespaceThere(nsid); err != nil || there {
			return errors.Join(err, errors.New("the namespace is there"))
		}
		return nil
	})
}

// closableNamespace makes a namespace that the test closes.
func closableNamespace(t *testing.T) *testnet.Namespace {
	t.Helper()
	ns, err := testnet.NewNamespace()
	check(t, err)
	return ns
}

// TestVisitNamespaces finds namespaces by a process in them, and no others.
func TestVisitNamespaces(t *testing.T) {
	need.Root(t)
	root := newCgroup(t, hierarchies(t)["v2"])
	c := newInspected(t, root)
	startIn(t, c.inner, c.dir())
	startIn(t, c.host, c.dir())
	startIn(t, newNamespace(t), c.dir())
	empty := newNamespace(t)
	veth(t, c.host, "outer", c.inner, "eth0")
	files := openFiles(t)
	var got []uint64
	err := c.VisitNamespaces(map[uint64]bool{inode(t, c.inner): true, inode(t, c.host): true, inode(t, empty): true}, func(n *Namespace) error {
		got = append(got, n.Inode())
		want, err := c.host.GetNetNsIdByFd(c.inner.FD())
		check(t, err)
		if nsid, err := n.Number(); err != nil || nsid != want {
			t.Errorf("number %d, error %v, want %d", nsid, err, want)
		}
		_, err = n.Counters(linkIn(t, c.inner, "eth0").Attrs().Index, nil)
		return err
	})
	if diff := cmp.Diff([]uint64{inode(t, c.inner)}, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d open files, %d before", n, files)
	}
	want := errors.New("mine")
	err = c.VisitNamespaces(map[uint64]bool{inode(t, c.inner): true}, func(*Namespace) error { return want })
	if !errors.Is(err, want) {
		t.Errorf("error %v, want that of the visit", err)
	}
}

// TestCountersIn compares what the host is told of the other end with what the namespace
// itself says.
func TestCountersIn(t *testing.T) {
	need.Root(t)
	c := newInspected(t, newCgroup(t, hierarchies(t)["v2"]))
	startIn(t, c.inner, c.dir())
	outer := veth(t, c.host, "outer", c.inner, "eth0") // both ends have something to say
	held, err := c.Hold(c.container)
	check(t, err)
	defer held.Close()
	inner := linkIn(t, c.inner, "eth0").Attrs().Index
	nsid, err := held.Number()
	check(t, err)
	eventually(t, func() error {
		got, err := c.CountersIn(nsid, inner)
		check(t, err)
		same, err := held.Counters(inner, nil)
		check(t, err)
		opposite, err := c.Counters(outer.Attrs().Index, nil)
		check(t, err)
		if got.ReceivePackets == 0 || got.TransmitPackets == 0 || got.LinkCounters != same || got.LinkCounters != opposite {
			return fmt.Errorf("from outside %+v, from inside %+v, of the host's end %+v", got, same, opposite)
		}
		return nil
	})
	if _, err := c.CountersIn(nsid+1000, inner); !errors.Is(err, ErrGone) {
		t.Errorf("in no namespace: error %v", err)
	}
	if _, err := c.CountersIn(nsid, inner+1000); !errors.Is(err, ErrGone) {
		t.Errorf("of no interface: error %v", err)
	}
}
