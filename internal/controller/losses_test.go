// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// TestLosses says of a container what the kernel does, over an end of the process and over a
// shaper that is replaced.
func TestLosses(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	for name, mode := range map[string]Mode{"clsact": ModeClsact, "tcx": ModeTCX} {
		t.Run(name, func(t *testing.T) { testLosses(t, mode) })
	}
}

// lossy is a container that loses packets.
type lossy struct {
	*testnet.Container
	t     *testing.T
	host  *testnet.Namespace
	local *testnet.Agent
	mac   net.HardwareAddr

	before uint64 // that was refused before we came
}

func newLossy(t *testing.T, host *testnet.Namespace) lossy {
	t.Helper()
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	mac := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs().HardwareAddr
	return lossy{Container: c, t: t, host: host, local: nettest.Agent(t, host), mac: mac}
}

// loses has the container drop so many packets that it receives, and fail to send others,
// since they are too large for the host's end.
func (c lossy) loses(received, transmitted int) {
	c.t.Helper()
	eth0 := c.Interfaces[0]
	nettest.SendUnwanted(c.t, c.local, eth0.HostName, c.mac, received)
	nettest.Must(c.host.Run("ip", "link", "set", eth0.HostName, "mtu", "1000"))(c.t)
	must(c.t, c.Container.SendUDP(nettest.Must(c.local.Listen("udp", eth0.HostIPv4))(c.t).Addr, transmitted, 1200))
	nettest.Must(c.host.Run("ip", "link", "set", eth0.HostName, "mtu", "1500"))(c.t)
}

// shape replaces the root qdisc of the host's end by a shaper, and sends more than it lets pass.
// It returns how many packets it has dropped.
func (c lossy) shape(handle string, count int) uint64 {
	c.t.Helper()
	eth0 := c.Interfaces[0]
	_, _ = c.host.Run("tc", "qdisc", "del", "dev", eth0.HostName, "root") // there may be none
	nettest.Must(c.host.Run("tc", "qdisc", "add", "dev", eth0.HostName, "root", "handle", handle,
		"tbf", "rate", "1mbit", "burst", "4k", "latency", "20ms"))(c.t)
	must(c.t, c.local.SendUDP(nettest.Must(c.Container.Listen("udp", eth0.IPv4))(c.t).Addr, count, 1000))
	return nettest.QdiscDropped(c.t, c.host, eth0.HostName)
}

// refused returns what the host's end itself has dropped: some while its qdisc is changed.
func (c lossy) refused() uint64 {
	c.t.Helper()
	return nettest.Must(testnet.InterfaceLosses(c.local.PID()))(c.t)[c.Interfaces[0].HostName].TransmitDropped
}

// lost waits until what is said of a container's only interface is what the kernel has. shaped
// is what qdiscs have dropped of what we have counted.
func (r *rig) lost(c lossy, shaped uint64) usage.Container {
	r.t.Helper()
	return r.wait(c.ID, "said to have lost what the kernel says", func(u usage.Container) bool {
		kernel := nettest.Must(testnet.InterfaceLosses(c.PID()))(r.t)["eth0"]
		want := usage.Lost{
			Known:    true,
			Receive:  usage.Loss{Dropped: kernel.ReceiveDropped, Errors: kernel.ReceiveErrors},
			Transmit: usage.Loss{Dropped: kernel.TransmitDropped, Errors: kernel.TransmitErrors},
			Followed: true, Undelivered: shaped + c.refused() - c.before,
		}
		return len(u.Interfaces) == 1 && u.Interfaces[0].Lost == want && u.Lost == want
	})
}

func testLosses(t *testing.T, mode Mode) {
	pins := nettest.BPFFS(t) + "/nettally"
	host := nettest.Host(t)
	c := newLossy(t, host)
	c.loses(3, 2)      // before we come, and so of its lifetime
	c.shape("2:", 200) // of which we have seen nothing
	inMode := func(control *Controller) {
		settings := control.Settings
		control.Settings = func() Settings { s := settings(); s.Mode = mode; return s }
	}
	c.before = c.refused()
	r := start(t, host, pins, inMode)
	r.waitCounted(c.ID, 1)
	r.lost(c, 0)
	c.loses(40, 25)
	dropped := c.shape("1:", 300)
	if dropped == 0 {
		t.Fatal("the shaper has dropped nothing: is this a test of anything?")
	}
	u := r.lost(c, dropped)
	if u.Receive.Mended != (usage.Volume{}) {
		t.Errorf("mended %+v", u.Receive.Mended)
	}
	// What was dropped is among what we have counted, and nothing else is missing to the kernel.
	r.wait(c.ID, "counted as the kernel has it, and what was dropped", func(u usage.Container) bool {
		kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(t)["eth0"]
		return u.Receive.Interface.Packets == kernel.ReceivePackets+u.Lost.Undelivered
	})

	r.stop()
	c.loses(7, 5)
	must(t, c.local.SendUDP(nettest.Must(c.Container.Listen("udp", c.Interfaces[0].IPv4))(t).Addr, 300, 1000))
	dropped = nettest.QdiscDropped(t, host, c.Interfaces[0].HostName)
	r = start(t, host, pins, inMode)
	r.waitCounted(c.ID, 1)
	r.lost(c, dropped)
	dropped += c.shape("1:", 100) // another one by the same handle
	c.loses(1, 1)
	r.lost(c, dropped)
}
