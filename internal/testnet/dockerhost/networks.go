// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Macvlan is a network whose containers are on a link of the host, each with a
// MAC address of its own and without a host veth.
type Macvlan struct {
	// Parent is the link in [Docker.Namespace]: one end of a cable.
	Parent string
	// Peer is the machine at the other end of the cable, and Address is where
	// containers reach it. The host itself cannot be reached. What containers
	// send each other is seen on the parent as if it came in, and stays there.
	Peer    *testnet.Namespace
	Address netip.Addr
}

// MacvlanNetwork makes a network of the driver macvlan in bridge mode, with the
// cable below it. The first address of the subnet is the peer's.
func (d *Docker) MacvlanNetwork(name string, subnet netip.Prefix) Macvlan {
	d.tb.Helper()
	m := Macvlan{Parent: name + "-up", Peer: nettest.Host(d.tb), Address: subnet.Masked().Addr().Next()}
	if err := testnet.Veth(d.Namespace, m.Parent, m.Peer, "eth0"); err != nil {
		d.tb.Fatal(err)
	}
	link := nettest.Must(m.Peer.LinkByName("eth0"))(d.tb)
	address := &netlink.Addr{IPNet: &net.IPNet{
		IP: m.Address.AsSlice(), Mask: net.CIDRMask(subnet.Bits(), m.Address.BitLen()),
	}}
	if err := m.Peer.AddrAdd(link, address); err != nil {
		d.tb.Fatalf("give the peer of %s its address: %v", m.Parent, err)
	}
	d.NetworkCreate(name, "--driver", "macvlan", "--opt", "parent="+m.Parent,
		"--subnet", subnet.Masked().String(), "--gateway", m.Address.String())
	return m
}

// OnlyIPv6 takes a container's IPv4 addresses away, but for loopback's, and
// returns when all of its IPv6 addresses can be used. Docker gives each
// container an IPv4 address, whatever its networks have; so make the network
// with --ipv6 and a subnet of each family.
func (d *Docker) OnlyIPv6(id string) {
	d.tb.Helper()
	n := d.ContainerNamespace(id)
	for _, link := range nettest.Must(n.LinkList())(d.tb) {
		if link.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, address := range nettest.Must(n.AddrList(link, netlink.FAMILY_V4))(d.tb) {
			if err := n.AddrDel(link, &address); err != nil {
				d.tb.Fatalf("take address %s off %s: %v", address.IP, link.Attrs().Name, err)
			}
		}
		d.awaitIPv6(n, link)
	}
}

// awaitIPv6 waits until the kernel knows that nobody else has the addresses of
// an interface, which takes a second or two.
func (d *Docker) awaitIPv6(n *testnet.Namespace, link netlink.Link) {
	d.tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		waiting := false
		for _, address := range nettest.Must(n.AddrList(link, netlink.FAMILY_V6))(d.tb) {
			waiting = waiting || address.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !waiting {
			return
		}
		if time.Now().After(deadline) {
			d.tb.Fatalf("%s cannot use its IPv6 addresses", link.Attrs().Name)
		}
	}
}

// ConnectMany puts a running container into so many new networks, at most 250,
// each with a bridge of its own, and returns what its interfaces there are
// called. The networks are internal, which spares them many rules of iptables.
func (d *Docker) ConnectMany(id string, count int) []string {
	d.tb.Helper()
	before := d.NetDev(id)
	// By the API: so many calls of the command line client take far longer.
	api := nettest.Must(client.New(client.WithHost("unix://" + d.Socket)))(d.tb)
	defer api.Close()
	for i := range count {
		if err := connectNew(api, id, i); err != nil {
			d.tb.Fatal(err)
		}
	}
	var added []string
	for name := range d.NetDev(id) {
		if _, ok := before[name]; !ok {
			added = append(added, name)
		}
	}
	return added
}

func connectNew(api *client.Client, id string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	name := fmt.Sprintf("many-%.12s-%d", id, n)
	// Docker's own choice of subnets ends with the 31st network.
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 234, byte(n), 0}), 24)
	_, err := api.NetworkCreate(ctx, name, client.NetworkCreateOptions{
		Internal: true, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet}}},
	})
	if err != nil {
		return fmt.Errorf("make network %s: %w", name, err)
	}
	if _, err := api.NetworkConnect(ctx, name, client.NetworkConnectOptions{Container: id}); err != nil {
		return fmt.Errorf("connect container %.12s to network %s: %w", id, name, err)
	}
	return nil
}
