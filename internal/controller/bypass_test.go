// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// redirectPeer hands all that an interface of the host receives over to a container, past
// its host veth, as Cilium's host routing does.
func redirectPeer(t *testing.T, host *testnet.Namespace, from, veth string) {
	t.Helper()
	to := nettest.Must(host.LinkByName(veth))(t).Attrs().Index
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(to)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return(),
	}}))(t)
	t.Cleanup(func() { _ = program.Close() })
	must(t, host.Do(func() error {
		made, err := link.AttachTCX(link.TCXOptions{
			Interface: nettest.Must(host.LinkByName(from))(t).Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress,
		})
		if err == nil {
			t.Cleanup(func() { _ = made.Close() })
		}
		return err
	}))
}

// reaches gives a container's eth0 an address in the network beyond nic, and tells that network
// whose it is.
func (l lan) reaches(t *testing.T, c *testnet.Container) netip.Addr {
	t.Helper()
	ip := netip.MustParseAddr("10.99.0.10")
	inner := nettest.Must(c.Namespace.LinkByName("eth0"))(t)
	address(t, c.Namespace, inner, ip)
	l.introduce(t, l.far, nettest.Must(l.far.LinkByName("far"))(t), ip, inner.Attrs().HardwareAddr)
	return ip
}

// TestRedirectPeer goes where packets are that no hook of the host veth sees, and counts none
// twice, over a restart too.
func TestRedirectPeer(t *testing.T) {
	need.Root(t)
	for name, mode := range map[string]Mode{"from clsact": ModeClsact, "from tcx": ModeTCX} {
		t.Run(name, func(t *testing.T) { testRedirectPeer(t, mode) })
	}
}

func testRedirectPeer(t *testing.T, mode Mode) {
	pins := nettest.BPFFS(t) + "/nettally"
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	nic, local := c.Interfaces[0], nettest.Agent(t, host)
	r := start(t, host, pins, func(c *Controller) {
		settings := c.Settings
		c.Settings = func() Settings { s := settings(); s.Mode = mode; return s }
	})
	r.wait(c.ID, "counted", func(u usage.Container) bool {
		return u.Accounted() && len(u.Interfaces) == 1 && u.Interfaces[0].Hook == string(mode)
	})
	ip := l.reaches(t, c)
	redirectPeer(t, host, "nic", nic.HostName)
	bypass := func(count int) {
		t.Helper()
		here := nettest.Must(c.Listen("udp", ip))(t)
		must(t, l.peer.SendUDP(here.Addr, count, 100))
		nettest.Must(here.Received(count))(t)
	}
	straight := func(out, in int) { t.Helper(); talk(t, c, nic.IPv4, local, nic.HostIPv4, out, in) }

	straight(10, 20)
	r.talked(c.ID, 10, 20)
	bypass(50)
	r.reload()
	u := r.wait(c.ID, "counted inside", func(u usage.Container) bool {
		return u.Interfaces[0].At == usage.AtContainer && u.Interfaces[0].Attached
	})
	if i := u.Interfaces[0]; len(u.Interfaces) != 1 || i.HostInterface != "" || !u.Accounted() {
		t.Errorf("counted as %+v", u.Interfaces)
	}
	r.asKernel(c, "eth0")
	straight(1, 2)
	bypass(100)
	r.asKernel(c, "eth0")
	u = r.talked(c.ID, 11, 122)
	if u.Receive.Mended != datagrams(50) || u.Transmit.Mended != datagrams(0) || u.Receive.Seeded != datagrams(0) {
		t.Errorf("mended %+v and %+v, seeded %+v", u.Receive.Mended, u.Transmit.Mended, u.Receive.Seeded)
	}

	r.stop()
	straight(5, 5)
	bypass(5)
	r = start(t, host, pins)
	r.waitCounted(c.ID, 1)
	straight(4, 3)
	bypass(2)
	r.reload()
	// Without a ledger, what was counted on the host veth is gone.
	u = r.talked(c.ID, 1+5+4, 102+10+5)
	if u.Receive.Mended != datagrams(50) || u.Transmit.Mended != datagrams(0) || u.Receive.Seeded != datagrams(0) {
		t.Errorf("mended %+v and %+v, seeded %+v", u.Receive.Mended, u.Transmit.Mended, u.Receive.Seeded)
	}
	must(t, c.Close())
	u = r.wait(c.ID, "ended", func(u usage.Container) bool { return u.State == usage.Stopped && !u.Interfaces[0].Attached })
	if u.Receive.Counted() != datagrams(117) {
		t.Errorf("at last %+v", u.Receive.Counted())
	}
}

// TestRedirected counts what a filter redirects to a host veth (mirred) as what is sent there.
func TestRedirected(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	ip := l.reaches(t, c)
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)
	_, _ = host.Run("tc", "qdisc", "add", "dev", "nic", "clsact") // it has ours, if it is counted by now
	nettest.Must(host.Run("tc", "filter", "add", "dev", "nic", "ingress", "protocol", "ip", "u32", "match", "u32", "0", "0",
		"action", "mirred", "egress", "redirect", "dev", c.Interfaces[0].HostName))(t)
	here := nettest.Must(c.Listen("udp", ip))(t)
	must(t, l.peer.SendUDP(here.Addr, 50, 100))
	nettest.Must(here.Received(50))(t)
	r.talked(c.ID, 0, 50)
}

// What a container has lost is said once, though its interface is counted inside by then.
func TestLossesGoInside(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := newLossy(t, host)
	ip := l.reaches(t, c.Container)
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)
	sent := uint64(0)
	loses := func(at usage.Place) {
		t.Helper()
		nettest.SendUnwanted(t, c.local, c.Interfaces[0].HostName, c.mac, 10)
		sent += 10
		r.wait(c.ID, "said to have lost what the kernel says, there", func(u usage.Container) bool {
			kernel := nettest.Must(testnet.InterfaceLosses(c.PID()))(t)["eth0"].ReceiveDropped
			return kernel >= sent && u.Interfaces[0].At == at && u.Lost.Known && u.Lost.Receive.Dropped == kernel
		})
	}
	loses(usage.AtHost)
	redirectPeer(t, host, "nic", c.Interfaces[0].HostName)
	here := nettest.Must(c.Listen("udp", ip))(t)
	must(t, l.peer.SendUDP(here.Addr, 50, 100))
	nettest.Must(here.Received(50))(t)
	r.reload()
	r.wait(c.ID, "counted inside", func(u usage.Container) bool {
		return u.Interfaces[0].At == usage.AtContainer && u.Interfaces[0].Attached
	})
	loses(usage.AtContainer)
}
