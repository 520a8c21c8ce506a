// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// talker is a container that shares its network with others.
type talker struct {
	name, id string
	mode     string // network_mode in the JSON
	agent    *testnet.Agent
	address  map[string]netip.Addr // by family
	inside   bool                  // in a namespace of its own
	before   exporter.IP

	datagrams, size  int
	upload, download int64
}

// sharing is a Docker host with containers in shared networks, and one alone that they
// talk with, whose packets are captured.
type sharing struct {
	t       *testing.T
	docker  *dockerhost.Docker
	d       *daemon
	talkers []*talker
	peer    string
	peerIPs map[string]netip.Addr
}

// Two containers on the host's network, and two in one namespace, move different amounts
// at the same time: each one's `ip` numbers are exactly what a capture shows of it, from
// the IP header on. What the host itself sends is in none. So it stays when nettally is
// killed, and upgraded to another layout of the counters, and where there is nothing but
// cgroup v2.
func TestSharedNetworks(t *testing.T) {
	need.Root(t)
	t.Parallel()
	for name, o := range map[string]dockerhost.Options{"as the machine is": {}, "cgroup v2 alone": {CgroupV2Only: true}} {
		t.Run(name, func(t *testing.T) {
			s := newSharing(t, o)
			s.settle()
			for _, family := range []string{"IPv4", "IPv6"} {
				s.round(family)
			}
			s.d.kill()
			if o.CgroupV2Only {
				s.d.binary = nextBinary
			}
			s.d.start()
			s.settle()
			s.round("IPv4")
			s.ownersHaveAll()
			s.once()
			s.last()
		})
	}
}

func newSharing(t *testing.T, o dockerhost.Options) *sharing {
	t.Helper()
	docker := dockerhost.Start(t, o)
	s := &sharing{t: t, docker: docker, d: startListening(t, docker, metricsAddress, onlyDocker(docker)+everyFamily+connectQuota)}
	docker.NetworkCreate("dual", "--ipv6", "--subnet", "fd79:1::/64", "--subnet", "10.233.0.0/24")
	s.peer = docker.Run("--name", "peer", "--network", "dual", dockerhost.Image)
	docker.SetOffloads(s.peer, "eth0", false) // so that what is captured is what would be on a wire
	s.peerIPs = s.addresses(s.peer)
	gateway := map[string]netip.Addr{"IPv4": netip.MustParseAddr("10.233.0.1"), "IPv6": netip.MustParseAddr("fd79:1::1")}
	s.add(&talker{name: "one", mode: "host", address: gateway, datagrams: 300, size: 111, upload: 2_000_000, download: 1_000_000}, "--network", "host")
	s.add(&talker{name: "two", mode: "host", address: gateway, datagrams: 500, size: 222, upload: 3_000_000, download: 500_000}, "--network", "host")
	s.add(&talker{name: "owner", mode: "dual", inside: true, datagrams: 200, size: 333, upload: 1_500_000, download: 700_000}, "--network", "dual")
	s.add(&talker{name: "member", mode: "container", inside: true, datagrams: 100, size: 444, upload: 400_000, download: 2_500_000}, "--network", "container:owner")
	docker.SetOffloads("owner", "eth0", false)
	return s
}

func (s *sharing) add(x *talker, network ...string) {
	s.t.Helper()
	x.id = s.docker.Run(append(append([]string{"--name", x.name}, network...), dockerhost.Image)...)
	x.agent = s.docker.Agent(x.id)
	if x.address == nil {
		x.address = s.addresses(s.docker.CLI("inspect", "--format", "{{.Id}}", "owner"))
	}
	s.talkers = append(s.talkers, x)
}

func (s *sharing) addresses(id string) map[string]netip.Addr {
	return map[string]netip.Addr{
		"IPv4": s.docker.IPv4(id, "eth0"),
		"IPv6": netip.MustParseAddr(s.docker.CLI("inspect", "--format", "{{(index .NetworkSettings.Networks \"dual\").GlobalIPv6Address}}", id)),
	}
}

// settle waits until it is known of all how they are counted.
func (s *sharing) settle() {
	s.t.Helper()
	for _, x := range s.talkers {
		s.d.poll("counted by its cgroup", func() error {
			c, err := s.d.container(x.id)
			if err == nil && (!c.Accounted || c.Reason != "" || c.IP == nil || c.NetworkMode != x.mode || c.Name != x.name) {
				err = fmt.Errorf("%s: accounted %v (%s), %s, ip %v", x.name, c.Accounted, c.Reason, c.NetworkMode, c.IP)
			}
			return err
		})
	}
	s.d.counted(s.peer, 1)
	s.d.poll("the only one in its network", func() error {
		c, err := s.d.container(s.peer)
		if err == nil && c.IP != nil {
			err = fmt.Errorf("counted by its cgroup, too: %+v", c.IP)
		}
		return err
	})
}

// round has all of them talk at once, and the host beside them.
func (s *sharing) round(family string) {
	s.t.Helper()
	peer := s.docker.Agent(s.peer)
	for _, x := range s.talkers {
		x.before = *nettest.Must(s.d.container(x.id))(s.t).IP
	}
	// A busy host drops packets between a container and its host veth, so what containers
	// send is captured where they are.
	captures := map[bool]*nettest.Capture{
		false: nettest.StartCapture(s.t, s.docker.Namespace, s.docker.HostVeth(s.peer, "eth0")),
		true:  nettest.StartCapture(s.t, s.docker.ContainerNamespace("owner"), "eth0"),
	}
	var group errgroup.Group
	check := make([]func(), len(s.talkers))
	for i, x := range s.talkers {
		udp := nettest.Must(peer.Listen("udp", s.peerIPs[family]))(s.t)
		up := nettest.Must(peer.Listen("tcp", s.peerIPs[family]))(s.t)
		down := nettest.Must(x.agent.Listen("tcp", x.address[family]))(s.t)
		backer := s.docker.Agent(s.peer)
		group.Go(func() error { return x.agent.SendUDP(udp.Addr, x.datagrams, x.size) })
		group.Go(func() error { return s.docker.Agent(x.id).SendTCP(up.Addr, x.upload, testnet.Write) })
		group.Go(func() error { return backer.SendTCP(down.Addr, x.download, testnet.Write) })
		check[i] = func() {
			nettest.Must(udp.Received(x.datagrams))(s.t)
			s.exact(x, family, captures[x.inside], udp.Addr, up.Addr, down.Addr)
		}
	}
	host := nettest.Agent(s.t, s.docker.Namespace)
	aside := nettest.Must(peer.Listen("tcp", s.peerIPs[family]))(s.t)
	group.Go(func() error { return host.SendTCP(aside.Addr, 1_234_567, testnet.Write) })
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
	for _, capture := range captures {
		capture.Stop()
	}
	for _, check := range check {
		check()
	}
}

// exact compares what a container sent and received with what was captured of it.
func (s *sharing) exact(x *talker, family string, capture *nettest.Capture, udp, up, down netip.AddrPort) {
	s.t.Helper()
	sum := func(filters ...string) (v exporter.Volume) {
		for _, filter := range filters {
			got := capture.Count(filter)
			v.Packets += got.Packets
			v.Bytes += got.Bytes - 14*got.Packets // from the IP header on
		}
		return v
	}
	us := fmt.Sprint(x.address[family])
	sent := sum(fmt.Sprintf("udp dst port %d and src host %s", udp.Port(), us), fmt.Sprintf("tcp dst port %d and src host %s", up.Port(), us),
		fmt.Sprintf("tcp src port %d and src host %s", down.Port(), us))
	received := sum(fmt.Sprintf("tcp src port %d and dst host %s", up.Port(), us), fmt.Sprintf("tcp dst port %d and dst host %s", down.Port(), us))
	if sent.Bytes < uint64(x.upload)+uint64(x.datagrams*x.size) || received.Bytes < uint64(x.download) {
		s.t.Fatalf("%s: captured only %+v and %+v: is this a test of anything?", x.name, sent, received)
	}
	s.d.poll("like the capture", func() error {
		c, err := s.d.container(x.id)
		if err != nil {
			return err
		}
		rx, tx := since(c.IP.Receive, x.before.Receive), since(c.IP.Transmit, x.before.Transmit)
		if diff := cmp.Diff([]exporter.Volume{received, sent}, []exporter.Volume{rx.Volume, tx.Volume}); diff != "" {
			return fmt.Errorf("%s, %s, received and transmitted (-capture +ours):\n%s", x.name, family, diff)
		}
		if rx.TCPSYN != 1 || tx.TCPSYN != 1 || tx.Protocols.UDP.Packets != uint64(x.datagrams) {
			return fmt.Errorf("%s, %s: %d and %d SYN, %d datagrams", x.name, family, rx.TCPSYN, tx.TCPSYN, tx.Protocols.UDP.Packets)
		}
		byFamily := map[string]exporter.Volume{"IPv4": tx.Families.IPv4, "IPv6": tx.Families.IPv6}[family]
		if byFamily.Bytes < sent.Bytes {
			return fmt.Errorf("%s: %+v of %s, of which %+v was captured", x.name, byFamily, family, sent)
		}
		return nil
	})
}

// since is what came since then. What the kernel itself says in a namespace, which counts
// for whoever made that, is left out: it asks for neighbours and routers.
func since(now, then exporter.IPCounts) exporter.IPCounts {
	now.Volume = less(less(now.Volume, now.Protocols.ICMP), less(then.Volume, then.Protocols.ICMP))
	now.TCPSYN -= then.TCPSYN
	now.Protocols.UDP = less(now.Protocols.UDP, then.Protocols.UDP)
	now.Families.IPv4 = less(now.Families.IPv4, then.Families.IPv4)
	now.Families.IPv6 = less(now.Families.IPv6, then.Families.IPv6)
	return now
}

func less(a, b exporter.Volume) exporter.Volume {
	return exporter.Volume{Bytes: a.Bytes - b.Bytes, Packets: a.Packets - b.Packets}
}

// ownersHaveAll expects the interface of the shared namespace to be counted once, for the
// one that made it, and to have what both sent.
func (s *sharing) ownersHaveAll() {
	s.t.Helper()
	owner, member := nettest.Must(s.d.container(s.talkers[2].id))(s.t), nettest.Must(s.d.container(s.talkers[3].id))(s.t)
	if len(owner.Interfaces) != 1 || len(member.Interfaces) != 0 || member.Transmit.Bytes != 0 {
		s.t.Errorf("owner has %d interfaces; member has %d, and %d bytes on them", len(owner.Interfaces), len(member.Interfaces), member.Transmit.Bytes)
	}
	s.t.Logf("transmitted: network of owner %+v, ip of owner %+v, ip of member %+v", owner.Transmit.Volume, owner.IP.Transmit.Volume, member.IP.Transmit.Volume)
	// The same packets, with Ethernet headers; beside them the namespace itself asks for addresses.
	both := owner.IP.Transmit.Packets + member.IP.Transmit.Packets
	headers := owner.Transmit.Bytes - owner.IP.Transmit.Bytes - member.IP.Transmit.Bytes
	if owner.Transmit.Packets < both || owner.Transmit.Packets > both+100 || headers < 14*both {
		s.t.Errorf("on the interface %+v, by cgroup %+v and %+v", owner.Transmit.Volume, owner.IP.Transmit.Volume, member.IP.Transmit.Volume)
	}
}

// once expects the metrics to say the same, once for each container.
func (s *sharing) once() {
	s.t.Helper()
	s.d.agree(s.t, func() (string, error) { return s.d.get("/metrics") })
	if got := s.d.metric(`nettally_attachments{hook="cgroup"}`); got != float64(len(s.talkers)) {
		s.t.Errorf("%v cgroups are counted, want %d", got, len(s.talkers))
	}
}

// last expects what they counted to stay when they have ended, and nothing to be left on
// the host after a detach.
func (s *sharing) last() {
	s.t.Helper()
	want := map[string]exporter.IP{}
	for _, x := range s.talkers {
		want[x.name] = *nettest.Must(s.d.container(x.id))(s.t).IP
		s.docker.CLI("kill", x.id)
	}
	for _, x := range s.talkers {
		s.d.poll("stopped", func() error {
			c, err := s.d.container(x.id)
			if err == nil && (c.State != "stopped" || c.IP == nil || !c.Accounted) {
				err = fmt.Errorf("%s is %s, accounted %v (%s)", x.name, c.State, c.Accounted, c.Reason)
			}
			if err == nil && (c.IP.Transmit.Bytes < want[x.name].Transmit.Bytes || c.IP.Receive.Bytes < want[x.name].Receive.Bytes) {
				err = fmt.Errorf("%s had %+v, and has %+v", x.name, want[x.name], c.IP)
			}
			return err
		})
	}
	s.d.leftWith(1) // the peer's
	s.d.stop()
	if out := nettest.Must(s.d.run("detach"))(s.t); !strings.HasPrefix(out, "took filters off 1 interfaces") {
		s.t.Errorf("detach: %q", out)
	}
}
