// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// pair is two containers on a Docker host of their own, and a nettally that counts them.
type pair struct {
	docker         *dockerhost.Docker
	daemon         *daemon
	client, server string // ids
	clientAgent    *testnet.Agent
	serverAgent    *testnet.Agent
}

// newPair starts both containers in a network with IPv4 and IPv6.
func newPair(t *testing.T) *pair {
	t.Helper()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	return startPair(t, docker, startDaemon(t, docker, onlyDocker(docker)))
}

func startPair(t *testing.T, docker *dockerhost.Docker, d *daemon) *pair {
	t.Helper()
	p := &pair{docker: docker, daemon: d}
	p.docker.NetworkCreate("dual", "--ipv6", "--subnet", "fd78:1::/64", "--subnet", "10.232.0.0/24")
	p.server = p.docker.Run("--name", "server", "--network", "dual", dockerhost.Image)
	p.client = p.docker.Run("--name", "client", "--network", "dual", dockerhost.Image)
	p.clientAgent, p.serverAgent = p.docker.Agent(p.client), p.docker.Agent(p.server)
	p.daemon.counted(p.server, 1)
	p.daemon.counted(p.client, 1)
	return p
}

// onlyDocker is configuration that knows the containers of a test's Docker, and no
// other test's.
func onlyDocker(docker *dockerhost.Docker) string {
	return fmt.Sprintf("watch: {include: [%q]}\nnames: {docker: %q, podman: \"off\", cri: \"off\"}", docker.CgroupParent+"/*", "unix://"+docker.Socket)
}

// addresses returns the server's addresses by family.
func (p *pair) addresses() map[string]netip.Addr {
	return map[string]netip.Addr{
		"IPv4": p.docker.IPv4(p.server, "eth0"),
		"IPv6": netip.MustParseAddr(p.docker.CLI("inspect", "--format",
			"{{(index .NetworkSettings.Networks \"dual\").GlobalIPv6Address}}", p.server)),
	}
}

// likeKernel compares a container's numbers with the kernel's own, once the traffic has
// come to rest: interface numbers, or wire numbers where offload is off.
func (p *pair) likeKernel(t *testing.T, id string, of func(exporter.Counts) exporter.Volume) {
	t.Helper()
	p.daemon.poll("like the kernel's counters", func() error {
		c, err := p.daemon.container(id)
		if err != nil {
			return err
		}
		rx, tx := of(c.Receive), of(c.Transmit)
		got := testnet.Counters{
			ReceiveBytes: rx.Bytes, ReceivePackets: rx.Packets,
			TransmitBytes: tx.Bytes, TransmitPackets: tx.Packets,
		}
		if diff := cmp.Diff(p.docker.NetDev(id)["eth0"], got); diff != "" {
			return fmt.Errorf("%s (-kernel +ours):\n%s", c.Name, diff)
		}
		return nil
	})
}

func wire(c exporter.Counts) exporter.Volume { return c.Volume }

func asInterface(c exporter.Counts) exporter.Volume {
	return exporter.Volume{Bytes: c.InterfaceBytes, Packets: c.InterfacePackets}
}

const transfer = 100_000_000

// Traffic of all kinds between two containers, with segmentation offload.
func TestWithOffload(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	t.Run("transfer", p.testTransfer)
	t.Run("segmented UDP", func(t *testing.T) { p.testSegmentedUDP(t, asInterface) })
	t.Run("SYN", p.testSYN)
}

// The same without: then it is our wire numbers that are the kernel's.
func TestWithoutOffload(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.offloadsOff()
	t.Run("transfer", p.testWholeTransfer)
	t.Run("segmented UDP", func(t *testing.T) { p.testSegmentedUDP(t, wire) })
}

// With offload on, the interface numbers are the kernel's, to the byte, and the wire
// numbers exceed them by the headers of the segments.
func (p *pair) testTransfer(t *testing.T) {
	for family, address := range p.addresses() {
		t.Run(family, func(t *testing.T) {
			before := nettest.Must(p.daemon.container(p.client))(t)
			p.upload(t, address)
			for _, id := range []string{p.client, p.server} {
				p.likeKernel(t, id, asInterface)
			}
			after := nettest.Must(p.daemon.container(p.client))(t)
			sent := after.Transmit.Bytes - before.Transmit.Bytes
			packets := after.Transmit.Packets - before.Transmit.Packets
			if sent < transfer || packets < transfer/1460 {
				t.Errorf("%d bytes in %d packets on the wire, for a transfer of %d", sent, packets, transfer)
			}
			if packets < 2*(after.Transmit.InterfacePackets-before.Transmit.InterfacePackets) {
				t.Errorf("no super-packets: %d packets on the wire: is offload on?", packets)
			}
		})
	}
}

// Without offload every packet is what would be on a wire: the wire numbers are the
// kernel's and a capture's, to the byte.
func (p *pair) testWholeTransfer(t *testing.T) {
	for family, address := range p.addresses() {
		t.Run(family, func(t *testing.T) {
			before := p.tcp(t)
			capture := nettest.StartCapture(t, p.docker.Namespace, p.docker.HostVeth(p.client, "eth0"))
			p.upload(t, address)
			for _, id := range []string{p.client, p.server} {
				p.likeKernel(t, id, wire)
			}
			capture.Stop()
			seen := capture.Count("tcp or (ip6 and ip6[6] = 6)")
			after := p.tcp(t)
			got := nettest.Volume{Packets: after.Packets - before.Packets, Bytes: after.Bytes - before.Bytes}
			if diff := cmp.Diff(seen, got); diff != "" {
				t.Errorf("TCP of both directions (-capture +ours):\n%s", diff)
			}
		})
	}
}

// UDP segmentation (UDP_SEGMENT): one buffer is many datagrams on the wire, with
// offload on the interface or without.
func (p *pair) testSegmentedUDP(t *testing.T, like func(exporter.Counts) exporter.Volume) {
	for family, address := range p.addresses() {
		t.Run(family, func(t *testing.T) {
			p.segmentedUDP(t, address)
			p.likeKernel(t, p.client, like)
			p.likeKernel(t, p.server, like)
		})
	}
}

func (p *pair) segmentedUDP(t *testing.T, address netip.Addr) {
	t.Helper()
	const buffers, size, segment = 50, 10_000, 1200 // 8 full datagrams and one of 400 bytes
	const datagrams = buffers * 9
	before := nettest.Must(p.daemon.container(p.client))(t).Transmit.Protocols.UDP
	sink := nettest.Must(p.serverAgent.Listen("udp", address))(t)
	if err := p.clientAgent.SendSegmentedUDP(sink.Addr, buffers, size, segment); err != nil {
		t.Fatal(err)
	}
	nettest.Must(sink.Received(datagrams))(t)

	headers := uint64(14 + 20 + 8)
	if address.Is6() {
		headers += 20
	}
	after := nettest.Must(p.daemon.container(p.client))(t).Transmit.Protocols.UDP
	want := exporter.Volume{Packets: datagrams, Bytes: buffers*size + datagrams*headers}
	got := exporter.Volume{Packets: after.Packets - before.Packets, Bytes: after.Bytes - before.Bytes}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("UDP on the wire (-want +got):\n%s", diff)
	}
}

// Connection requests, answered and refused, in both directions, are those that a
// capture shows.
func (p *pair) testSYN(t *testing.T) {
	const connected, refused = 40, 15
	// SYN without ACK, from an address; tcpdump's tcp[] does not reach into IPv6.
	filters := map[string]string{
		"IPv4": "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn and %s host %s",
		"IPv6": "ip6[6] = 6 and ip6[53] & 0x12 = 0x02 and %s host %s",
	}
	for family, address := range p.addresses() {
		t.Run(family, func(t *testing.T) {
			before := p.syn(t)
			capture := nettest.StartCapture(t, p.docker.Namespace, p.docker.HostVeth(p.server, "eth0"))
			p.connect(t, p.clientAgent, nettest.Must(p.serverAgent.Listen("tcp", address))(t).Addr, testnet.Connects{Connected: connected})
			p.connect(t, p.clientAgent, netip.AddrPortFrom(address, 9), testnet.Connects{Refused: refused})
			// The server asks, too: itself it has no listener on port 9, nor has the gateway.
			gateway := netip.MustParseAddr(map[string]string{"IPv4": "10.232.0.1", "IPv6": "fd78:1::1"}[family])
			p.connect(t, p.serverAgent, netip.AddrPortFrom(gateway, 9), testnet.Connects{Refused: refused})
			capture.Stop()

			after := p.syn(t)
			got := requests{receive: after.receive - before.receive, transmit: after.transmit - before.transmit}
			want := requests{
				receive:  capture.Count(fmt.Sprintf(filters[family], "dst", address)).Packets,
				transmit: capture.Count(fmt.Sprintf(filters[family], "src", address)).Packets,
			}
			if got != want || want.receive < connected+refused || want.transmit < refused {
				t.Errorf("SYN %+v, capture %+v, made %d and %d", got, want, connected+refused, refused)
			}
		})
	}
}

// requests counts SYN packets.
type requests struct{ receive, transmit uint64 }

// syn returns the server's connection requests.
func (p *pair) syn(t *testing.T) requests {
	t.Helper()
	c := nettest.Must(p.daemon.container(p.server))(t)
	return requests{receive: c.Receive.TCPSYN, transmit: c.Transmit.TCPSYN}
}

func (p *pair) connect(t *testing.T, from *testnet.Agent, to netip.AddrPort, want testnet.Connects) {
	t.Helper()
	if got := nettest.Must(from.Connect(to, want.Connected+want.Refused))(t); got != want {
		t.Errorf("connections to %s: %+v, want %+v", to, got, want)
	}
}

func (p *pair) upload(t *testing.T, address netip.Addr) {
	t.Helper()
	sink := nettest.Must(p.serverAgent.Listen("tcp", address))(t)
	if err := p.clientAgent.SendTCP(sink.Addr, transfer, testnet.Write); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) offloadsOff() {
	p.docker.SetOffloads(p.client, "eth0", false)
	p.docker.SetOffloads(p.server, "eth0", false)
}

// tcp returns the client's TCP, both directions.
func (p *pair) tcp(t *testing.T) exporter.Volume {
	t.Helper()
	c := nettest.Must(p.daemon.container(p.client))(t)
	return exporter.Volume{
		Bytes:   c.Receive.Protocols.TCP.Bytes + c.Transmit.Protocols.TCP.Bytes,
		Packets: c.Receive.Protocols.TCP.Packets + c.Transmit.Protocols.TCP.Packets,
	}
}
