// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// The host's end of a running container's veth is moved to another namespace, as of a virtual
// router, and back, again and again: each packet is counted once, by the kernel's own counters in
// the container.
func TestHostEndMoves(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ip")
	host, router := nettest.Host(t), nettest.Host(t)
	d := startDaemon(t, on{host}, "")
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	d.counted(c.ID, 1)
	nic := c.Interfaces[0]
	mac := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs().HardwareAddr.String()
	sends := func(from *testnet.Agent) {
		t.Helper()
		sink := nettest.Must(c.Listen("udp", nic.IPv4))(t)
		if err := from.SendUDP(sink.Addr, 500, 1000); err != nil {
			t.Fatal(err)
		}
		nettest.Must(sink.Received(500))(t)
	}
	exact := func(when string) {
		t.Helper()
		d.poll(when, func() error {
			found, err := d.container(c.ID)
			if err != nil {
				return err
			}
			kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(t)["eth0"]
			if diff := cmp.Diff(kernel, interfaceCounters(found)); diff != "" || !found.Accounted {
				return fmt.Errorf("accounted %v (-kernel +nettally):\n%s", found.Accounted, diff)
			}
			return nil
		})
	}
	run := func(in *testnet.Namespace, args ...string) {
		t.Helper()
		if out, err := in.Run("ip", args...); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	peers := map[*testnet.Namespace]*testnet.Agent{host: nettest.Agent(t, host), router: nettest.Agent(t, router)}
	sends(peers[host])
	exact("on the host")
	for from, to := range map[*testnet.Namespace]*testnet.Namespace{host: router} {
		for round := range 3 {
			run(from, "link", "set", nic.HostName, "netns", to.Path())
			run(to, "link", "set", nic.HostName, "up")
			run(to, "addr", "add", fmt.Sprintf("%s/24", nic.HostIPv4), "dev", nic.HostName)
			run(to, "neigh", "replace", nic.IPv4.String(), "lladdr", mac, "dev", nic.HostName)
			sends(peers[to])
			exact(fmt.Sprint("moved, round ", round))
			sends(peers[to])
			exact(fmt.Sprint("and again, round ", round))
			if round == 1 {
				d.kill()
				sends(peers[to])
				d.start()
				exact("after a kill")
			}
			from, to = to, from
		}
	}
}
