// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is an interface of a container: one end of a veth pair.
//
// The link is silent: it carries what agents send and nothing else. There are no
// link-local addresses, and both ends know each other's hardware address, so
// neither ARP nor IPv6's neighbour, router and multicast discovery runs.
type Interface struct {
	Name     string // in the container
	HostName string // of the host veth

	// Addresses of the container and of the host's end.
	IPv4, IPv6         netip.Addr
	HostIPv4, HostIPv6 netip.Addr

	host *Namespace
	peer string // the name while the peer is still in the host
}

// subnets counts the subnets in use: each interface has its own.
var subnets atomic.Uint32

const maxSubnets = 1 << 14

func newInterface(host *Namespace, name string) (Interface, error) {
	n := subnets.Add(1) - 1
	if n >= maxSubnets {
		return Interface{}, fmt.Errorf("add interface %s: all %d subnets are used up", name, maxSubnets)
	}
	// 10.77.x.y/30 and fd77:0:0:n::/64, the host first.
	v4 := netip.AddrFrom4([4]byte{10, 77, byte(n >> 6), byte(n<<2) + 1})
	v6 := netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 6: byte(n >> 8), 7: byte(n), 15: 1})
	return Interface{
		Name: name, HostName: hostName(),
		IPv4: v4.Next(), IPv6: v6.Next(), HostIPv4: v4, HostIPv6: v6,
		host: host, peer: name,
	}, nil
}

func hostName() string { return "veth" + randomHex(4)[:7] }

// create makes the pair, down, with the peer in the container's namespace or,
// under a name for the meantime, in the host's.
func (i *Interface) create(peer *Namespace) error {
	i.peer = i.Name
	if peer == i.host {
		i.peer = hostName()
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: i.HostName},
		PeerName:  i.peer, PeerNamespace: netlink.NsFd(peer.FD()),
	}
	if err := i.host.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth %s: %w", i.HostName, err)
	}
	if peer != i.host {
		return nil
	}
	return i.host.silence(i.HostName) // as Docker: up at once
}

// move moves the peer into the container.
func (i *Interface) move(container *Namespace) error {
	link, err := i.host.LinkByName(i.peer)
	if err == nil {
		err = i.host.LinkSetNsFd(link, container.FD())
	}
	if err != nil {
		return fmt.Errorf("move %s into container: %w", i.peer, err)
	}
	if link, err = container.LinkByName(i.peer); err == nil {
		err = container.LinkSetName(link, i.Name)
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", i.peer, i.Name, err)
	}
	return nil
}

// configure gives both ends their addresses and each other's, and sets them up.
func (i *Interface) configure(container *Namespace) error {
	outer, err := i.host.LinkByName(i.HostName)
	if err != nil {
		return fmt.Errorf("find %s: %w", i.HostName, err)
	}
	inner, err := container.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", i.Name, err)
	}
	for _, end := range []struct {
		namespace    *Namespace
		link, other  netlink.Link
		addrs, peers []netip.Addr
	}{
		{i.host, outer, inner, []netip.Addr{i.HostIPv4, i.HostIPv6}, []netip.Addr{i.IPv4, i.IPv6}},
		{container, inner, outer, []netip.Addr{i.IPv4, i.IPv6}, []netip.Addr{i.HostIPv4, i.HostIPv6}},
	} {
		name := end.link.Attrs().Name
		if err := end.namespace.silence(name); err != nil {
			return err
		}
		if err := end.namespace.address(end.link, end.addrs); err != nil {
			return fmt.Errorf("give %s its addresses: %w", name, err)
		}
		if err := end.namespace.introduce(end.link, end.other, end.peers); err != nil {
			return fmt.Errorf("tell %s its neighbour: %w", name, err)
		}
	}
	return errors.Join(i.host.passes(i.HostName), container.passes(i.Name))
}

// passes waits until an interface passes packets: the kernel drops them until a worker of its
// own has noticed that the other end is up, which takes a while on a busy machine.
func (n *Namespace) passes(name string) error {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		link, err := n.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Since(began) > patience {
			return fmt.Errorf("%s is %s still", name, link.Attrs().OperState)
		}
	}
}

// remove removes the pair by its host end.
func (i *Interface) remove() error {
	link, err := i.host.LinkByName(i.HostName)
	if err == nil {
		err = i.host.LinkDel(link)
	}
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) || errors.Is(err, unix.ENODEV) {
		return nil // with its peer
	}
	if err != nil {
		return fmt.Errorf("remove veth %s: %w", i.HostName, err)
	}
	return nil
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE: no link-local address.
const addrGenModeNone = 1

// silence keeps the kernel from speaking on a link of its own accord, and sets
// it up.
func (n *Namespace) silence(name string) error {
	link, err := n.LinkByName(name)
	if err == nil {
		// No ARP means no multicast group per address either.
		err = n.LinkSetARPOff(link)
	}
	if err == nil {
		err = n.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	}
	if err != nil {
		return fmt.Errorf("silence %s: %w", name, err)
	}
	return n.up(name)
}

func (n *Namespace) address(link netlink.Link, addrs []netip.Addr) error {
	for _, addr := range addrs {
		bits := 64
		if addr.Is4() {
			bits = 30
		}
		a := &netlink.Addr{
			IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())},
			Flags: unix.IFA_F_NODAD, // usable at once
		}
		if err := n.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return nil
}

func (n *Namespace) introduce(link, other netlink.Link, addrs []netip.Addr) error {
	for _, addr := range addrs {
		neighbour := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: addr.AsSlice(), HardwareAddr: other.Attrs().HardwareAddr,
		}
		if err := n.NeighAdd(neighbour); err != nil {
			return err
		}
	}
	return nil
}

// TakeDevice moves a device out of a namespace into the container, under a name
// of its own, gives it addresses and sets it up. It is what Docker does with a
// macvlan, and what a device of one's own is given to a container by: the
// container has no host veth then. The device may be of any type that can be
// moved, which a bridge cannot. It goes with the container, but a network card
// would go back to the machine.
func (c *Container) TakeDevice(from *Namespace, device, name string, addresses ...netip.Prefix) error {
	link, err := from.LinkByName(device)
	if err == nil {
		err = from.LinkSetNsFd(link, c.Namespace.FD())
	}
	if err != nil {
		return fmt.Errorf("move %s into container: %w", device, err)
	}
	if link, err = c.Namespace.LinkByName(device); err == nil {
		err = c.Namespace.LinkSetName(link, name)
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", device, name, err)
	}
	for _, address := range addresses {
		if err := c.Namespace.assign(name, address); err != nil {
			return err
		}
	}
	return c.Namespace.up(name)
}

// assign gives an interface an address that can be used when it is up.
func (n *Namespace) assign(name string, address netip.Prefix) error {
	link, err := n.LinkByName(name)
	if err == nil {
		err = n.AddrAdd(link, &netlink.Addr{
			IPNet: &net.IPNet{
				IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
			},
			Flags: unix.IFA_F_NODAD,
		})
	}
	if err != nil {
		return fmt.Errorf("give %s address %s: %w", name, address, err)
	}
	return nil
}
