// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"testing"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// rename calls interfaces of a container otherwise while they are up, one after the other.
func rename(t *testing.T, c *testnet.Container, pairs ...[2]string) {
	t.Helper()
	for _, p := range pairs {
		must(t, c.Namespace.LinkSetName(nettest.Must(c.Namespace.LinkByName(p[0]))(t), p[1]))
	}
}

// sentBy waits until a container is said to have sent datagrams by its interfaces.
func (r *rig) sentBy(id string, want map[string]uint64) (u usage.Container) {
	r.t.Helper()
	return r.wait(id, "as it has sent", func(u usage.Container) bool {
		if len(u.Interfaces) != len(want) {
			return false
		}
		sum := uint64(0)
		for _, i := range u.Interfaces {
			n := i.Transmit.Protocol(usage.ProtocolUDP).Packets
			if n != want[i.Name] || i.Transmit.Seeded.Packets+i.Transmit.Mended.Packets > 0 {
				return false
			}
			sum += n
		}
		return u.Transmit.Protocol(usage.ProtocolUDP).Packets == sum
	})
}

// Interfaces that are renamed in their container go on under the names that they have now, and
// what was counted under the old ones stays there: no series goes back, and the sum is right.
func TestRenamed(t *testing.T) {
	need.Root(t)
	pins := t.TempDir() + "/bpf"
	t.Cleanup(func() { must(t, bpf.Unpin(pins)) })
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	second := nettest.Must(c.AddInterface(host, "eth1"))(t)
	first := c.Interfaces[0]
	r := start(t, host, pins)
	r.waitCounted(c.ID, 2)
	upload(t, c, peer, first, 10)
	upload(t, c, peer, second, 20)
	r.sentBy(c.ID, map[string]uint64{"eth0": 10, "eth1": 20})

	rename(t, c, [2]string{"eth0", "x"}, [2]string{"eth1", "eth0"}, [2]string{"x", "eth1"})
	r.stop()
	r = start(t, host, pins)
	u := r.wait(c.ID, "counted under the new names", func(u usage.Container) bool {
		return len(u.Interfaces) == 2 && u.Interfaces[0].HostInterface == second.HostName && u.Interfaces[1].HostInterface == first.HostName
	})
	if !u.Interfaces[0].Attached || !u.Interfaces[1].Attached {
		t.Errorf("not counted: %+v", u.Interfaces)
	}
	r.sentBy(c.ID, map[string]uint64{"eth0": 10, "eth1": 20})
	upload(t, c, peer, first, 1)
	upload(t, c, peer, second, 2)
	r.sentBy(c.ID, map[string]uint64{"eth0": 12, "eth1": 21})
	must(t, c.Close())
}

// The same where an interface is counted inside; there a reconcile is enough.
func TestRenamedInside(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	l := newLAN(t, host)
	c := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	r := start(t, host, "")
	l.macvlan(t, c.Namespace, "eth0", ip)
	r.waitCounted(c.ID, 1)
	l.talk(t, c, ip, 10, 20)
	r.talked(c.ID, 10, 20)
	rename(t, c, [2]string{"eth0", "wan0"})
	r.reload()
	r.wait(c.ID, "counted as wan0", func(u usage.Container) bool {
		return len(u.Interfaces) == 2 && !u.Interfaces[0].Attached && u.Interfaces[1].Name == "wan0" && u.Interfaces[1].Attached
	})
	l.talk(t, c, ip, 1, 2)
	u := r.talked(c.ID, 11, 22)
	if old := u.Interfaces[0].Transmit.Wire().Packets + u.Interfaces[0].Receive.Wire().Packets; old != 30 {
		t.Errorf("%d packets under the old name, want 30", old)
	}
	end(t, c)
}
