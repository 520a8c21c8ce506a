// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// attachTCX puts the programs for tcx on the host's end, before all others. It returns
// how to take them off.
func (c *cable) attachTCX(t *testing.T) (detach func()) {
	t.Helper()
	must(t, c.Bind(c.slot))
	var links []ebpflink.Link
	detach = func() {
		t.Helper()
		for _, l := range links {
			must(t, l.Close())
		}
		links = nil
	}
	t.Cleanup(detach)
	must(t, c.host.Do(func() error {
		for hook, program := range map[ebpf.AttachType]*ebpf.Program{
			ebpf.AttachTCXIngress: c.TCXIngress, ebpf.AttachTCXEgress: c.TCXEgress,
		} {
			l, err := ebpflink.AttachTCX(ebpflink.TCXOptions{
				Interface: c.hostEnd.Attrs().Index, Program: program, Attach: hook, Anchor: ebpflink.Head(),
			})
			if err != nil {
				return err
			}
			links = append(links, l)
		}
		return nil
	}))
	return detach
}

func (c *cable) detachFilters(t *testing.T) {
	t.Helper()
	for _, hook := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		must(t, c.host.FilterDel(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: c.hostEnd.Attrs().Index, Parent: hook, Handle: 1, Priority: 2, Protocol: unix.ETH_P_ALL,
		}}))
	}
}

// Both ways of counting, each on a slot of its own, count the same at the same time.
func TestLiveTCXAgainstClsact(t *testing.T) {
	c := newCableUncounted(t, false)
	c.Datapath = load(t, Options{})
	c.attach(t)
	byFilter := c.slot
	c.slot = take(t, c.Datapath, byFilter.Ifindex)
	c.attachTCX(t)
	c.up(t)
	c.addresses(t)
	c.transfer(t, "tcp4", 10<<20)
	c.transfer(t, "tcp6", 10<<20)
	for _, ends := range [][2]string{{"10.9.0.1", address4}, {"fd09::1", address6}} {
		for _, conn := range []*net.UDPConn{datagrams(t, c.host, ends[0], ends[1]), datagrams(t, c.container, ends[1], ends[0])} {
			for size := range 100 {
				_, err := conn.Write(make([]byte, 30*size))
				must(t, err)
			}
		}
	}
	c.compareLink(t, true)
	eventually(t, func() string {
		rx, tx := c.read(t)
		rxByFilter, txByFilter, err := c.Read(byFilter)
		must(t, err)
		if diff := cmp.Diff([]Counters{rxByFilter, txByFilter}, []Counters{rx, tx}); diff != "" {
			return fmt.Sprintf("counts (-clsact +tcx):\n%s", diff)
		}
		return ""
	})
	if rx, tx := c.read(t); rx.Interface.Packets < 300 || tx.Interface.Packets < 300 {
		t.Errorf("%d and %d packets are less than were sent", rx.Interface.Packets, tx.Interface.Packets)
	}
}

// flood sends datagrams both ways, as fast as it can, until it is told to stop and at
// least some number were sent.
func (c *cable) flood(t *testing.T, least uint64) (stop func()) {
	t.Helper()
	address(t, c.host, c.hostEnd, "10.9.0.1/24")
	address(t, c.container, c.end, address4+"/24")
	var g errgroup.Group
	var sent atomic.Uint64
	var stopped atomic.Bool
	for _, conn := range []*net.UDPConn{
		datagrams(t, c.host, "10.9.0.1", address4), datagrams(t, c.container, address4, "10.9.0.1"),
	} {
		g.Go(func() error {
			payload := make([]byte, 22)
			for !stopped.Load() || sent.Load() < least {
				if _, err := conn.Write(payload); err != nil {
					return err
				}
				sent.Add(1)
			}
			return nil
		})
	}
	return func() {
		t.Helper()
		stopped.Store(true)
		must(t, g.Wait())
		t.Logf("%d datagrams sent", sent.Load())
	}
}

// compareEach says that no packet is counted twice or not at all. What the link has
// dropped had passed the hook.
func (c *cable) compareEach(t *testing.T) {
	t.Helper()
	eventually(t, func() string {
		rx, tx := c.read(t)
		s := link(t, c.host, "veth0").Attrs().Statistics
		got := fmt.Sprint(rx.Interface.Packets, tx.Interface.Packets)
		if want := fmt.Sprint(s.TxPackets+s.TxDropped, s.RxPackets); got != want {
			return fmt.Sprintf("packets received and sent %s, the link says %s", got, want)
		}
		return ""
	})
	for cause, n := range c.Uncounted() {
		if n > 0 {
			t.Errorf("%d packets are uncounted: %s", n, cause)
		}
	}
}

// handOver sets the slot's flag.
func (c *cable) handOver(t *testing.T, on bool) {
	t.Helper()
	c.slot.Handover = on
	must(t, c.Keep(c.slot))
}

// An interface moves between clsact and tcx, back and forth, in the midst of traffic.
func TestLiveHandover(t *testing.T) {
	const switches, least = 24, 300_000
	c := newCable(t, true)
	stop := c.flood(t, least)
	detach := func() {}
	for i := range switches {
		c.handOver(t, true)
		if i%2 == 0 {
			detach = c.attachTCX(t)
			must(t, c.Quiesce())
			c.detachFilters(t)
		} else {
			c.attachFilters(t)
			must(t, c.Quiesce())
			detach()
		}
		must(t, c.Quiesce())
		c.handOver(t, false)
	}
	stop()
	c.compareEach(t)
}

// A host whose packets the classifiers of an older layout count goes on being counted by
// ours: none is lost or counted twice.
func TestLiveUpgrade(t *testing.T) { eachFormer(t, testLiveUpgrade) }

func testLiveUpgrade(t *testing.T, path string, old *former) {
	c := newCableUncounted(t, true)
	c.slot = old.take(t, Slot{Index: 70, Generation: 1000, Target: Target{Ifindex: c.hostEnd.Attrs().Index}})
	c.addQdiscs(t)
	c.Datapath = &Datapath{Ingress: old.Programs["nettally_ingress"], Egress: old.Programs["nettally_egress"]}
	c.attachFilters(t)
	old.close()
	c.up(t)

	stop := c.flood(t, 100_000)
	c.Datapath = load(t, Options{PinPath: path})
	c.slot = inherit(t, c.Datapath)[c.slot.Generation]
	c.attachFilters(t)
	must(t, c.Settle())
	if exists(filepath.Join(path, old.layout)) {
		t.Errorf("pins of %s are left", old.layout)
	}
	stop()
	c.compareEach(t)
	must(t, c.Close())
	must(t, Unpin(path))
}
