// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
)

// TestBusy comes to a host where a container is at work and another is not. The first one
// loses no packet by that, and all of them are counted.
func TestBusy(t *testing.T) {
	need.Root(t)
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	for mode, idle := range map[Mode]string{ModeAuto: HookClsact, ModeTCX: HookTCX} {
		t.Run(string(mode), func(t *testing.T) { testBusy(t, mode, idle) })
	}
}

func testBusy(t *testing.T, mode Mode, hookOfIdle string) {
	host := nettest.Host(t)
	idle := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	busy := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	toBusy := busy.Interfaces[0].HostName
	stop := stream(t, nettest.Agent(t, host), busy.Interfaces[0].IPv4)
	for nettest.Must(host.LinkByName(toBusy))(t).Attrs().Statistics.TxPackets == 0 {
		time.Sleep(time.Millisecond)
	}

	r := start(t, host, "", func(c *Controller) {
		settings := c.Settings
		c.Settings = func() Settings { s := settings(); s.Mode = mode; return s }
	})
	r.wait(busy.ID, "counted by tcx", func(u usage.Container) bool {
		return u.Accounted() && len(u.Interfaces) == 1 && u.Interfaces[0].Hook == HookTCX
	})
	r.wait(idle.ID, "counted by "+hookOfIdle, func(u usage.Container) bool {
		return u.Accounted() && len(u.Interfaces) == 1 && u.Interfaces[0].Hook == hookOfIdle
	})
	stop()
	r.asKernel(busy, "eth0")
	link := nettest.Must(host.LinkByName(toBusy))(t)
	if dropped := link.Attrs().Statistics.TxDropped; dropped != 0 {
		t.Errorf("%d packets to the container at work were dropped", dropped)
	}
}

// stream sends datagrams until it is stopped, or for long.
func stream(t *testing.T, from *testnet.Agent, to netip.Addr) (stop func()) {
	t.Helper()
	var ended atomic.Bool
	var sending errgroup.Group
	sending.Go(func() error {
		for i := 0; i < 10_000 && !ended.Load(); i++ {
			if err := from.SendUDP(netip.AddrPortFrom(to, 9), 1000, 100); err != nil {
				return err
			}
		}
		return nil
	})
	t.Cleanup(func() { ended.Store(true) })
	return func() {
		t.Helper()
		ended.Store(true)
		must(t, sending.Wait())
	}
}
