// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// pair joins two namespaces by a silent veth with an address at each end.
func pair(t *testing.T, a *testnet.Namespace, nameA string, ipA netip.Addr, b *testnet.Namespace, nameB string, ipB netip.Addr) {
	t.Helper()
	must(t, a.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.FD())}))
	endA, endB := silent(t, a, nameA), silent(t, b, nameB)
	address(t, a, endA, ipA)
	address(t, b, endB, ipB)
	(lan{}).introduce(t, a, endA, ipB, endB.Attrs().HardwareAddr)
	(lan{}).introduce(t, b, endB, ipA, endA.Attrs().HardwareAddr)
}

// inner makes a namespace with a process of a container in it, joined to it by a veth i0.
func inner(t *testing.T, c *testnet.Container) (own *testnet.Namespace, agent *testnet.Agent) {
	t.Helper()
	own = nettest.Host(t)
	agent = nettest.Agent(t, own)
	adopt(t, c, agent.PID())
	pair(t, c.Namespace, "i0", innerIP, own, "i1", ownIP)
	return own, agent
}

var innerIP, ownIP = netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.96.0.2")

// counts waits until a container is counted on just some interfaces, and has sent by them as
// many datagrams as are given for each, which are in history and quotas.
func (r *rig) counts(id string, want map[string]int) usage.Container {
	r.t.Helper()
	return r.wait(id, fmt.Sprintf("counted as %v", want), func(u usage.Container) bool {
		attached := 0
		for _, i := range u.Interfaces {
			if !i.Attached {
				continue
			}
			attached++
			if sent, ok := want[i.Name]; !ok || i.Transmit.Timed() != datagrams(sent) {
				return false
			}
		}
		return attached == len(want)
	})
}

// countLooks counts how often it is asked whether an interface is to be counted.
func countLooks(looks *atomic.Int64, name string) func(*Controller) {
	return func(c *Controller) {
		settings := c.Settings
		c.Settings = func() Settings {
			s := settings()
			included := s.Interface
			s.Interface = func(is string) bool {
				if is == name {
					looks.Add(1)
				}
				return included(is)
			}
			return s
		}
	}
}

// looked has a container looked at, and waits until that is done: the next look has begun.
func (r *rig) looked(looks *atomic.Int64) {
	r.t.Helper()
	for range 2 {
		before := looks.Load()
		r.reload()
		for deadline := time.Now().Add(time.Minute); looks.Load() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				r.t.Fatal("nobody looks")
			}
		}
	}
}

// TestOwnNamespace has a container route to a namespace that it has made itself: what passes
// there passes its way out, too, or stays with it. Where that namespace gets a way out of its own,
// the veth to it counts, with what has passed since and nothing before that.
func TestOwnNamespace(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	own, agent := inner(t, c)
	talk(t, c, innerIP, agent, ownIP, 5, 5)
	var looks atomic.Int64
	r := start(t, host, "", countLooks(&looks, "i0"))
	upload(t, c, peer, c.Interfaces[0], 3)
	r.counts(c.ID, map[string]int{"eth0": 3})

	overlay := newLAN(t, c.Namespace) // with a stranger in it
	ip := netip.MustParseAddr("10.99.0.10")
	overlay.configure(t, c.Namespace, "nic", "nic", ip)
	r.reload()
	r.counts(c.ID, map[string]int{"eth0": 3, "nic": 0})
	talk(t, c, innerIP, agent, ownIP, 10, 10)
	overlay.talk(t, c, ip, 20, 20)
	r.looked(&looks)
	r.counts(c.ID, map[string]int{"eth0": 3, "nic": 20})

	far := nettest.Host(t) // to which the namespace leads by a device that somebody gave it
	must(t, far.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan"}, PeerName: "end"}))
	must(t, far.LinkAdd(&netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: nettest.Must(far.LinkByName("wan"))(t).Attrs().Index},
		Mode:      netlink.MACVLAN_MODE_BRIDGE,
	}))
	must(t, far.LinkSetNsFd(nettest.Must(far.LinkByName("mac0"))(t), own.FD()))
	talk(t, c, innerIP, agent, ownIP, 7, 7)
	r.reload()
	r.counts(c.ID, map[string]int{"eth0": 3, "nic": 20, "i0": 7})
	talk(t, c, innerIP, agent, ownIP, 1, 1)
	r.counts(c.ID, map[string]int{"eth0": 3, "nic": 20, "i0": 8})

	must(t, own.LinkDel(nettest.Must(own.LinkByName("mac0"))(t)))
	r.reload()
	r.counts(c.ID, map[string]int{"eth0": 3, "nic": 20})
}

// TestLooksInner has a container try to make its way out look like a veth to a namespace of
// its own: it puts a process of its own there, and makes the interface a port of a bridge.
func TestLooksInner(t *testing.T) {
	need.Root(t)
	for name, beyond := range map[string]bool{"the way ends there": false, "the way goes on": true} {
		t.Run(name, func(t *testing.T) { testLooksInner(t, beyond) })
	}
}

func testLooksInner(t *testing.T, beyond bool) {
	host, overlay := nettest.Host(t), nettest.Host(t)
	if beyond {
		newLAN(t, host)
		nic := nettest.Must(host.LinkByName("nic"))(t)
		must(t, host.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: nic.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}))
		must(t, host.LinkSetNsFd(nettest.Must(host.LinkByName("mac0"))(t), overlay.FD()))
	} else {
		pair(t, overlay, "on", netip.MustParseAddr("10.95.0.1"), nettest.Host(t), "far", netip.MustParseAddr("10.95.0.2"))
	}
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	pair(t, c.Namespace, "eth1", innerIP, overlay, "port", ownIP)
	var looks atomic.Int64
	r := start(t, host, "", countLooks(&looks, "eth1"))
	agent := nettest.Agent(t, overlay)
	adopt(t, c, agent.PID())
	r.looked(&looks)
	talk(t, c, innerIP, agent, ownIP, 5, 5)
	r.asKernel(c, "eth1")

	must(t, c.Namespace.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	must(t, c.Namespace.LinkSetMaster(nettest.Must(c.Namespace.LinkByName("eth1"))(t), nettest.Must(c.Namespace.LinkByName("br0"))(t)))
	r.looked(&looks)
	must(t, agent.SendUDP(netip.AddrPortFrom(innerIP, 9), 10, 100))
	r.asKernel(c, "eth1")
	r.wait(c.ID, "counted on both", func(u usage.Container) bool {
		return len(u.Interfaces) == 2 && u.Interfaces[0].Attached && u.Interfaces[1].Attached
	})
}

// TestMovedByContainer has a container move its interface to a namespace of its own before we
// come. It is said that no interface is known.
func TestMovedByContainer(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	phys := nettest.Host(t)
	must(t, c.Namespace.LinkSetNsFd(nettest.Must(c.Namespace.LinkByName("eth0"))(t), phys.FD()))
	start(t, host, "").wait(c.ID, "without an interface", func(u usage.Container) bool {
		return u.NoInterface && u.Reason == usage.NoHostVeth && len(u.Interfaces) == 0
	})
}

// tap makes a tap device in a namespace, or a tun device, and returns its other end.
func tap(t *testing.T, in *testnet.Namespace, name string, mode uint16) *os.File {
	t.Helper()
	var f *os.File
	must(t, in.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "tap")
		request := nettest.Must(unix.NewIfreq(name))(t)
		request.SetUint16(mode | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}))
	t.Cleanup(func() { _ = f.Close() }) // fails if it was closed before
	return f
}

// frames has frames enter a container by a tap device.
func frames(t *testing.T, f *os.File, count int) {
	t.Helper()
	frame := bytes.Repeat([]byte{0xff}, 1000) // to all, of no protocol
	for range count {
		nettest.Must(f.Write(frame))(t)
	}
}

// holds starts a process in a container that holds the other end of a tap device.
func holds(t *testing.T, c *testnet.Container, f *os.File) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.ExtraFiles = []*os.File{f}
	must(t, c.Namespace.Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	adopt(t, c, cmd.Process.Pid)
}

// TestTap has somebody move a tap device into a container, which is one more way out, and the
// container make others, of which the frames leave by its way out. One of those has the same name,
// in another namespace.
func TestTap(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	vpn := tap(t, c.Namespace, "vpn0", unix.IFF_TAP)
	holds(t, c, vpn)
	silent(t, c.Namespace, "vpn0")
	holds(t, c, tap(t, nettest.Host(t), "lan0", unix.IFF_TAP))
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)

	given := tap(t, host, "lan0", unix.IFF_TAP)
	must(t, host.LinkSetNsFd(nettest.Must(host.LinkByName("lan0"))(t), c.Namespace.FD()))
	silent(t, c.Namespace, "lan0")
	frames(t, given, 10)
	frames(t, vpn, 10)
	r.reload()
	r.waitCounted(c.ID, 2)
	frames(t, given, 20)
	frames(t, vpn, 20)
	r.asKernel(c, "lan0")
	u := r.wait(c.ID, "counted", usage.Container.Accounted)
	if i := u.Interfaces[1]; i.Name != "lan0" || i.At != usage.AtContainer || u.Receive.Wire().Packets != 30 {
		t.Errorf("%d packets in all, and %+v", u.Receive.Wire().Packets, i)
	}
}

// TestTun has somebody move a tun device into a container, where our programs can't count: it is
// counted in part.
func TestTun(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)
	tap(t, host, "tun0", unix.IFF_TUN)
	holds(t, c, tap(t, c.Namespace, "vpn0", unix.IFF_TUN))
	must(t, c.Namespace.LinkSetUp(nettest.Must(c.Namespace.LinkByName("vpn0"))(t)))
	must(t, host.LinkSetNsFd(nettest.Must(host.LinkByName("tun0"))(t), c.Namespace.FD()))
	must(t, c.Namespace.LinkSetUp(nettest.Must(c.Namespace.LinkByName("tun0"))(t)))
	r.reload()
	r.waitReason(c.ID, usage.PartlyCounted)
	must(t, c.Namespace.LinkDel(nettest.Must(c.Namespace.LinkByName("tun0"))(t)))
	r.reload()
	r.waitReason(c.ID, usage.Accounted)
}
