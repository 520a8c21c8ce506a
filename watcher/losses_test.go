// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// TestLosses compares what both ends of a veth have lost with /proc/net/dev there.
func TestLosses(t *testing.T) {
	c := newCounted(t)
	eth0 := c.Interfaces[0]
	veths := nettest.Must(c.HostVeths())(t)
	if len(veths) != 1 {
		t.Fatalf("host veths %+v", veths)
	}
	inner := nettest.Must(c.Namespace.LinkByName("eth0"))(t).Attrs()
	compare := func(received, transmitted uint64) {
		t.Helper()
		eventually(t, func() error {
			inside := nettest.Must(testnet.InterfaceLosses(c.PID()))(t)["eth0"]
			outside := nettest.Must(testnet.InterfaceLosses(c.host.PID()))(t)[eth0.HostName]
			end := nettest.Must(c.CountersIn(veths[0].NetNSID, veths[0].PeerIndex))(t).Losses
			other := nettest.Must(c.AllCounters())(t)[c.index].Losses
			if inside.ReceiveDropped != received || inside.TransmitDropped != transmitted {
				return fmt.Errorf("the kernel has %+v, want %d and %d dropped", inside, received, transmitted)
			}
			want := Losses{inside.ReceiveDropped, inside.ReceiveErrors, inside.TransmitDropped, inside.TransmitErrors}
			if diff := cmp.Diff(want, end); diff != "" {
				return fmt.Errorf("of the container's end (-want +got):\n%s", diff)
			}
			want = Losses{outside.TransmitDropped, outside.TransmitErrors, outside.ReceiveDropped, outside.ReceiveErrors}
			if diff := cmp.Diff(want, other); diff != "" {
				return fmt.Errorf("of the host's end (-want +got):\n%s", diff)
			}
			return nil
		})
	}
	compare(0, 0)
	nettest.SendUnwanted(t, c.host, eth0.HostName, inner.HardwareAddr, 40)
	compare(40, 0)
	// What is too large for the other end: each side drops it.
	nettest.Must(c.hostNS.Run("ip", "link", "set", eth0.HostName, "mtu", "1000"))(t)
	check(t, c.Container.SendUDP(nettest.Must(c.host.Listen("udp", eth0.HostIPv4))(t).Addr, 25, 1200))
	compare(40, 25)
}

// TestRootQdiscs compares what root qdiscs have dropped with what tc says, where one is below
// another, and where one is gone.
func TestRootQdiscs(t *testing.T) {
	need.Commands(t, "tc")
	c := newCounted(t)
	eth0 := c.Interfaces[0]
	sink := nettest.Must(c.Container.Listen("udp", eth0.IPv4))(t)
	dropped := func() uint32 {
		t.Helper()
		q, ok := nettest.Must(c.RootQdiscs())(t)[c.index]
		if !ok {
			t.Fatal("no root qdisc")
		}
		return q.Dropped
	}
	if n := dropped(); n != 0 {
		t.Errorf("%d dropped at first", n)
	}
	tc := func(args ...string) {
		t.Helper()
		nettest.Must(c.hostNS.Run("tc", args...))(t)
	}
	for name, qdiscs := range map[string][][]string{
		"tbf": {{"qdisc", "add", "dev", eth0.HostName, "root", "handle", "5:", "tbf", "rate", "1mbit", "burst", "4k", "latency", "20ms"}},
		"tbf below htb": {
			{"qdisc", "add", "dev", eth0.HostName, "root", "handle", "5:", "htb", "default", "1"},
			{"class", "add", "dev", eth0.HostName, "parent", "5:", "classid", "5:1", "htb", "rate", "1gbit"},
			{"qdisc", "add", "dev", eth0.HostName, "parent", "5:1", "handle", "6:", "tbf", "rate", "1mbit", "burst", "4k", "latency", "20ms"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, args := range qdiscs {
				tc(args...)
			}
			check(t, c.host.SendUDP(sink.Addr, 300, 1000))
			eventually(t, func() error {
				if got, want := uint64(dropped()), nettest.QdiscDropped(t, c.hostNS, eth0.HostName); got != want || got == 0 {
					return fmt.Errorf("%d dropped, tc says %d", got, want)
				}
				return nil
			})
			if q := nettest.Must(c.RootQdiscs())(t)[c.index]; q.Handle != 5<<16 {
				t.Errorf("handle %x", q.Handle)
			}
			tc("qdisc", "del", "dev", eth0.HostName, "root")
			if q := nettest.Must(c.RootQdiscs())(t)[c.index]; q != (RootQdisc{}) {
				t.Errorf("after its end %+v", q)
			}
		})
	}
}
