// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
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
	if _, err := c.ListenDrops(1 << 30); err == nil {
		t.Error("the namespace of a process that is not there was read")
	}
}

// snmpText and netstatText are of Linux 6.18, but for lines that nobody reads.
const (
	snmpText = `Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 9876
Icmp: InMsgs InErrors
Icmp: 3 0
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
Tcp: 1 200 120000 -1 36 23 11 4 5 1290 1311 7 0 13 0
Udp: InDatagrams NoPorts
Udp: 18 0
`
	netstatText = `TcpExt: SyncookiesSent SyncookiesRecv ListenOverflows ListenDrops TCPHPHits TCPSynRetrans
TcpExt: 0 0 8 9 120 6
IpExt: InNoRoutes InOctets
IpExt: 0 98765
`
	oldSnmpText = `Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts
Tcp: 1 200 120000 -1 4294967295 0 0 0 0 0 0 0 0 0
`
)

func TestParseNamespaceTCP(t *testing.T) {
	shuffled := strings.NewReplacer("ActiveOpens PassiveOpens", "PassiveOpens ActiveOpens").Replace(snmpText)
	for name, row := range map[string]struct {
		snmp, netstat string
		want          NamespaceTCP
		fails         string
	}{
		"now":                 {snmpText, netstatText, NamespaceTCP{ConnectAttempts: 36, Accepts: 23, Resets: 4, ListenDrops: 9}, ""},
		"another order":       {shuffled, netstatText, NamespaceTCP{ConnectAttempts: 23, Accepts: 36, Resets: 4, ListenDrops: 9}, ""},
		"32 bits, Linux 3":    {oldSnmpText, netstatText, NamespaceTCP{ConnectAttempts: 1<<32 - 1, ListenDrops: 9}, ""},
		"nothing":             {"", netstatText, NamespaceTCP{}, "parse net/snmp: expected ActiveOpens among those of Tcp:"},
		"names only":          {"Tcp: ActiveOpens\n", netstatText, NamespaceTCP{}, "parse net/snmp: expected ActiveOpens among those of Tcp:"},
		"fewer values":        {"Tcp: ActiveOpens PassiveOpens EstabResets\nTcp: 1 2\n", netstatText, NamespaceTCP{}, "parse net/snmp: expected EstabResets among those of Tcp:"},
		"not a number":        {strings.Replace(snmpText, " 36 ", " x ", 1), netstatText, NamespaceTCP{}, `parse net/snmp: ActiveOpens: expected a number, got "x"`},
		"no EstabResets":      {strings.Replace(snmpText, "EstabResets", "Others", 1), netstatText, NamespaceTCP{}, "parse net/snmp: expected EstabResets among those of Tcp:"},
		"no netstat":          {snmpText, "", NamespaceTCP{}, "parse net/netstat: expected ListenDrops among those of TcpExt:"},
		"of another group":    {snmpText, "IpExt: ListenDrops\nIpExt: 1\n", NamespaceTCP{}, "parse net/netstat: expected ListenDrops among those of TcpExt:"},
		"another beside it":   {snmpText, "TcpExt: Other ListenDrops\nTcpExt: 1\n", NamespaceTCP{}, "parse net/netstat: expected ListenDrops among those of TcpExt:"},
		"drops not a number":  {snmpText, "TcpExt: ListenDrops\nTcpExt: -1\n", NamespaceTCP{}, `parse net/netstat: ListenDrops: expected a number, got "-1"`},
		"empty line and such": {"\n\nTcp:\n" + snmpText, netstatText, NamespaceTCP{}, "parse net/snmp: expected ActiveOpens among those of Tcp:"},
	} {
		t.Run(name, func(t *testing.T) {
			var got NamespaceTCP
			err := got.parse([]byte(row.snmp), []byte(row.netstat))
			if got != row.want || fmt.Sprint(err) != cmp.Or(row.fails, "<nil>") {
				t.Errorf("%+v, %v, want %+v, %s", got, err, row.want, row.fails)
			}
		})
	}
}

// kernelHas returns what nstat says of a namespace.
func (c counted) kernelHas(t *testing.T, name string) uint64 {
	t.Helper()
	text := nettest.Must(exec.Command("nsenter", "--net="+c.Namespace.Path(), "--", "nstat", "-asz", name).Output())(t)
	f := strings.Fields(string(text))
	if len(f) < 3 || f[len(f)-3] != name {
		t.Fatalf("nstat says %q of %s", text, name)
	}
	return nettest.Must(strconv.ParseUint(f[len(f)-2], 10, 64))(t)
}

// What a namespace counts is read as nstat does, where the process is still in it.
func TestTCPIn(t *testing.T) {
	c := newCounted(t)
	c.overflow(t)
	out := nettest.Must(c.host.Listen("tcp", c.Interfaces[0].HostIPv4))(t)
	nettest.Must(c.Connect(out.Addr, 5))(t)
	var inode uint64
	for inode = range c.NetworkNamespaces([]int{c.PID()}) {
	}
	eventually(t, func() error {
		got, since, err := c.TCPIn(inode, c.PID())
		if err != nil {
			return err
		}
		want := NamespaceTCP{
			ConnectAttempts: c.kernelHas(t, "TcpActiveOpens"), Accepts: c.kernelHas(t, "TcpPassiveOpens"),
			Resets: c.kernelHas(t, "TcpEstabResets"), ListenDrops: c.kernelHas(t, "TcpExtListenDrops"),
		}
		if got != want || got.ConnectAttempts != 5 || got.Accepts == 0 || got.ListenDrops == 0 || since.IsZero() || since.After(time.Now()) {
			return fmt.Errorf("%+v since %s, want %+v", got, since, want)
		}
		return nil
	})
	if got, _, err := c.TCPIn(inode+1, c.PID()); err == nil {
		t.Errorf("of another namespace: %+v", got)
	}
	if got, _, err := c.TCPIn(inode, 1<<30); err == nil {
		t.Errorf("of no process: %+v", got)
	}
}
