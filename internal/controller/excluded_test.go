// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// A container that is excluded while it runs is counted no more, though it is there, and goes
// on when it is taken in again. What passed meanwhile is nobody's.
func TestExcludedContainer(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	l := newLAN(t, host)
	inside := bare(t, host)
	ip := netip.MustParseAddr("10.99.0.10")
	r := start(t, host, "")
	l.macvlan(t, inside.Namespace, "eth0", ip)
	r.waitCounted(c.ID, 1)
	r.waitCounted(inside.ID, 1)
	upload(t, c, peer, c.Interfaces[0], 10)
	l.talk(t, inside, ip, 10, 20)
	r.sent(c.ID, 10)
	r.talked(inside.ID, 10, 20)
	between := func(id string, talk func()) {
		r.unknown.Store(&id)
		r.reload()
		r.wait(id, "excluded", func(u usage.Container) bool {
			return u.Reason == usage.Excluded && !u.Interfaces[0].Attached
		})
		talk()
		r.unknown.Store(nil)
		r.reload()
		r.wait(id, "known again", func(u usage.Container) bool {
			return u.Accounted() && u.State == usage.Running && u.Interfaces[0].Attached
		})
	}
	between(c.ID, func() { upload(t, c, peer, c.Interfaces[0], 5) })
	upload(t, c, peer, c.Interfaces[0], 3)
	r.sent(c.ID, 13)
	between(inside.ID, func() { l.talk(t, inside, ip, 5, 6) })
	l.talk(t, inside, ip, 1, 2)
	r.talked(inside.ID, 11, 22)
	snap := r.accounts.Snapshot()
	if n := snap.Orphaned.Transmit.Protocol(usage.ProtocolUDP).Packets; n != 5+5 {
		t.Errorf("nobody's: %d datagrams, want 10", n)
	}
	must(t, c.Close())
	end(t, inside)
}
