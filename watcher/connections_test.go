// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// The established connections of a namespace are found by the cgroups that they were made in,
// as many as ss has.
func TestEstablished(t *testing.T) {
	c := newCounted(t)
	eth0 := c.Interfaces[0]
	beside := nettest.Container(t, c.hostNS, testnet.ContainerOptions{Join: c.Namespace})
	out := nettest.Must(c.host.Listen("tcp", eth0.HostIPv4))(t)
	in := nettest.Must(c.Agent.Listen("tcp", eth0.IPv6))(t)
	check(t, c.Agent.Hold(out.Addr, 3))
	check(t, c.host.Hold(in.Addr, 4))
	check(t, beside.Hold(out.Addr, 2))
	nettest.Must(c.Connect(out.Addr, 5))(t) // which are over
	id := func(of *testnet.Container) uint64 {
		var st unix.Stat_t
		check(t, unix.Stat(filepath.Join(hierarchies(t)["v2"], of.Cgroup), &st))
		return st.Ino
	}
	namespaces := c.NetworkNamespaces([]int{c.PID(), beside.PID(), 1 << 30})
	if len(namespaces) != 1 {
		t.Fatalf("namespaces %v, want one", namespaces)
	}
	for _, pid := range namespaces {
		eventually(t, func() error { // accepting takes a moment
			found, err := c.Established(pid)
			if err != nil {
				return err
			}
			if found[id(c.Container)] != 7 || found[id(beside)] != 2 || len(found) != 2 {
				return fmt.Errorf("%v, want 7 of cgroup %d and 2 of %d", found, id(c.Container), id(beside))
			}
			return nil
		})
	}
	text := nettest.Must(exec.Command("nsenter", "--net="+c.Namespace.Path(), "--", "ss", "-tnH", "state", "established").Output())(t)
	if lines := strings.Count(string(text), "\n"); lines != 9 {
		t.Errorf("ss has %d:\n%s", lines, text)
	}
	if _, err := c.Established(1 << 30); err == nil {
		t.Error("the namespace of a process that is not there was read")
	}
}

// overflow has more connections come to the container than a listener there takes that accepts
// none.
func (c counted) overflow(t *testing.T) {
	t.Helper()
	address := c.Interfaces[0].IPv4
	var port uint16
	check(t, c.Namespace.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: address.As4()}), unix.Listen(fd, 1)); err != nil {
			return err
		}
		bound, err := unix.Getsockname(fd)
		if err == nil {
			port = uint16(bound.(*unix.SockaddrInet4).Port)
		}
		return err
	}))
	check(t, c.host.Hold(netip.AddrPortFrom(address, port), 2))
	got := nettest.Must(c.host.ConnectWithin(netip.AddrPortFrom(address, port), 3, 1500*time.Millisecond))(t)
	if got.TimedOut != 3 {
		t.Fatalf("%+v: the listener takes more than it should", got)
	}
}

// What the kernel dropped for want of an accept is read as nstat does.
func TestListenDrops(t *testing.T) {
	c := newCounted(t)
	if drops := nettest.Must(c.ListenDrops(c.PID()))(t); drops != 0 {
		t.Errorf("%d drops in a new namespace", drops)
	}
	c.overflow(t)
	kernels := nettest.Must(exec.Command("nsenter", "--net="+c.Namespace.Path(), "--", "nstat", "-asz", "TcpExtListenDrops").Output())(t)
	drops := nettest.Must(c.ListenDrops(c.PID()))(t)
	if f := strings.Fields(string(kernels)); drops == 0 || len(f) < 3 || f[len(f)-2] != fmt.Sprint(drops) {
		t.Errorf("%d drops, nstat says %q", drops, kernels)
	}
	const netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPHPHits\nTcpExt: 1 2 3 4\nIpExt: InOctets\nIpExt: 7\n"
	if drops, err := parseListenDrops([]byte(netstat)); err != nil || drops != 3 {
		t.Errorf("%d, %v", drops, err)
	}
	for _, wrong := range []string{"", "TcpExt: ListenDrops\n", "TcpExt: ListenDrops\nTcpExt: x\n", "TcpExt: Other ListenDrops\nTcpExt: 1\n", "IpExt: ListenDrops\nIpExt: 1\n"} {
		if drops, err := parseListenDrops([]byte(wrong)); err == nil {
			t.Errorf("%q has %d", wrong, drops)
		}
	}
	if _, err := c.ListenDrops(1 << 30); err == nil {
		t.Error("the namespace of a process that is not there was read")
	}
}
