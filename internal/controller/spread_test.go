// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// adopt puts a process into a container's cgroups.
func adopt(t *testing.T, c *testnet.Container, pid int) {
	t.Helper()
	for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
		must(t, os.WriteFile(filepath.Join(root, c.Cgroup, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644))
	}
}

// unshare starts a process of a container that makes a user and a network namespace of its
// own, as whoever is in there may do, and returns that one.
func unshare(t *testing.T, host *testnet.Namespace, c *testnet.Container) (own *testnet.Namespace, end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
	must(t, host.Start(cmd))
	end = func() {
		_ = cmd.Process.Kill() // fails if ended before
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	adopt(t, c, cmd.Process.Pid)
	own = nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)))(t)
	return own, end
}

// TestUnshare: a container in the host's network makes a network namespace of its own, with
// a veth. What it sends in the host's is counted all the same, and what passes the veth, too,
// as its.
func TestUnshare(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	far := nettest.Container(t, host, testnet.ContainerOptions{})
	sink := nettest.Must(far.Listen("udp", far.Interfaces[0].IPv4))(t)
	r := startCounting(t, host, "", CgroupAuto)
	if r.unified == "" {
		need.Kernel(t, "cgroup2", os.ErrNotExist)
	}
	c := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	r.sentByIP(c.ID, 0)
	must(t, c.SendUDP(sink.Addr, 10, 100))
	r.sentByIP(c.ID, 10)

	own, end := unshare(t, host, c)
	hostIP, ownIP := netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("10.97.0.2")
	must(t, host.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "mine"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(own.FD()),
	}))
	outer, inner := silent(t, host, "mine"), silent(t, own, "eth0")
	address(t, host, outer, hostIP)
	address(t, own, inner, ownIP)
	(lan{}).introduce(t, own, inner, hostIP, outer.Attrs().HardwareAddr)
	r.reload()
	r.waitCounted(c.ID, 1)
	must(t, c.SendUDP(sink.Addr, 20, 100))
	r.onHost(c.ID, 30, 0)

	agent := nettest.Agent(t, own)
	adopt(t, c, agent.PID())
	hosts := nettest.Must(nettest.Agent(t, host).Listen("udp", hostIP))(t)
	must(t, agent.SendUDP(hosts.Addr, 7, 100))
	r.onHost(c.ID, 37, 7)
	for range 3 {
		r.reload()
		must(t, c.SendUDP(sink.Addr, 10, 100))
	}
	r.onHost(c.ID, 67, 7)

	must(t, agent.Close())
	end()
	must(t, own.Close())
	r.wait(c.ID, "without its veth", func(u usage.Container) bool { return len(u.Interfaces) == 1 && !u.Interfaces[0].Attached })
	r.reload()
	must(t, c.SendUDP(sink.Addr, 5, 100))
	r.onHost(c.ID, 72, 7)
}

// onHost waits until a container in the host's network is seen to have sent datagrams, some
// of them by an interface of its own.
func (r *rig) onHost(id string, byIP, byInterface int) {
	r.t.Helper()
	r.sentByIP(id, uint64(byIP))
	r.wait(id, "in the host's network", func(c usage.Container) bool {
		return c.OnHost && c.Accounted() && c.Transmit.Protocol(usage.ProtocolUDP) == datagrams(byInterface)
	})
}

// TestOneInHost: a container with an interface has a process in the host's network, which is
// counted by its cgroup beside that.
func TestOneInHost(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	r := startCounting(t, host, "", CgroupAuto)
	if r.unified == "" {
		need.Kernel(t, "cgroup2", os.ErrNotExist)
	}
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(c.ID, 1)
	r.withoutIP(c.ID)
	far := nettest.Container(t, host, testnet.ContainerOptions{})
	sink := nettest.Must(far.Listen("udp", far.Interfaces[0].IPv4))(t)

	outside := nettest.Agent(t, host)
	adopt(t, c, outside.PID())
	r.reload()
	r.attachedTo(c)
	must(t, outside.SendUDP(sink.Addr, 15, 100))
	r.sentByIP(c.ID, 15)
	upload(t, c, peer, c.Interfaces[0], 4)
	r.sentByIP(c.ID, 19)
	r.sent(c.ID, 4)
	if u := r.wait(c.ID, "there", func(usage.Container) bool { return true }); u.OnHost {
		t.Error("it is taken for one in the host's network, and its interface for none")
	}
	r.setCgroup(CgroupOff)
	r.waitReason(c.ID, usage.SeveralNetworks)
	must(t, outside.Close())
	r.reload()
	r.waitReason(c.ID, usage.Accounted)
}

// TestMaybeSpread: while it is open whether a container is in several namespaces its cgroup
// is counted, and that is told only if it is so.
func TestMaybeSpread(t *testing.T) {
	k := newKernel(t)
	k.Adopt(context.Background())
	k.veth(7, 3)
	m := k.container("a", 7, 3)
	if o := k.count(m); o.Counted != 1 {
		t.Fatalf("outcome %+v", o)
	}
	told := func() bool {
		all := k.Accounts.Snapshot().Containers
		i := slices.IndexFunc(all, func(c usage.Container) bool { return c.ID == "a" })
		return all[i].IP != nil
	}
	m.Reason = usage.Accounted
	for _, row := range []struct {
		extent        roster.Extent
		counted, told bool
	}{
		{roster.InOne, false, false}, {roster.MaybeInMore, true, false}, {roster.InOne, false, false},
		{roster.MaybeInMore, true, false}, {roster.InMore, true, true}, {roster.InOne, false, true},
	} {
		m.Extent = row.extent
		k.Update(m)
		if len(k.cgroups) == 1 != row.counted || told() != row.told {
			t.Errorf("%+v: cgroups %v, told %t", row, k.cgroups, told())
		}
	}
}

// TestStrays: where processes are elsewhere than the container was located, there is
// something to look at.
func TestStrays(t *testing.T) {
	k := newKernel(t)
	m := k.container("a", 7, 3)
	at := roster.Space{ID: k.inside["a"].NetNS}
	for _, row := range []struct {
		netns  uint64
		spread watcher.Spread
		want   bool
	}{
		{at.ID, watcher.Together, false}, {at.ID + 1, watcher.Together, true}, {0, watcher.Together, false},
		{at.ID, watcher.Apart, true}, {at.ID, watcher.AlsoInHost, true}, {at.ID, watcher.Unsure, true},
	} {
		k.inside["a"] = watcher.Sandbox{NetNS: row.netns, Spread: row.spread}
		if got := k.Strays(m, at); got != row.want {
			t.Errorf("%+v: %t", row, got)
		}
	}
}
