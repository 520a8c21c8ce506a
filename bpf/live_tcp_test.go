// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// tcpTest is a row of TestLiveTCP.
type tcpTest struct {
	name     string
	network  string // of net.Dial
	prepare  func(*testing.T, *cable)
	vlan     bool
	offloads bool // the link's counters are those of super-packets
	longest  int  // a packet as long as this must have come by
}

// TestLiveTCP moves some MB each way and compares with the kernel's own figures: the
// interface numbers with the link's counters, the wire numbers with what TCP says it
// has sent, which does not depend on offloads.
func TestLiveTCP(t *testing.T) {
	need.Commands(t, "ethtool")
	off := func(t *testing.T, c *cable) {
		c.offload(t, c.container, "eth0", "off")
		c.offload(t, c.host, "veth0", "off")
	}
	big := func(t *testing.T, c *cable) {
		for n, l := range map[*testnet.Namespace]netlink.Link{c.container: c.end, c.host: c.hostEnd} {
			must(t, n.LinkSetGSOMaxSize(l, 200_000))
			must(t, n.LinkSetGSOIPv4MaxSize(l, 200_000))
		}
	}
	tests := []tcpTest{
		{name: "ipv4", network: "tcp4", offloads: true, longest: 60_000},
		{name: "ipv6", network: "tcp6", offloads: true, longest: 60_000},
		{name: "ipv4 without offloads", network: "tcp4", prepare: off, longest: 1514},
		{name: "ipv6 without offloads", network: "tcp6", prepare: off, longest: 1514},
		{name: "ipv4 tagged", network: "tcp4", vlan: true, offloads: true, longest: 60_000},
		{name: "ipv6 tagged", network: "tcp6", vlan: true, offloads: true, longest: 60_000},
	}
	if kernelAtLeast(t, 5, 19) {
		tests = append(tests, tcpTest{name: "ipv6 big tcp", network: "tcp6", prepare: big, offloads: true, longest: 70_000})
	}
	if kernelAtLeast(t, 6, 3) {
		tests = append(tests, tcpTest{name: "ipv4 big tcp", network: "tcp4", prepare: big, offloads: true, longest: 70_000})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCable(t, false)
			header, cell := 14+20+32, tcp4
			if test.network == "tcp6" {
				header, cell = 14+40+32, tcp6
			}
			if test.prepare != nil {
				test.prepare(t, c)
			}
			if test.vlan {
				c.tagAll(t)
				header += 4
			}
			c.addresses(t)
			near, far := c.transfer(t, test.network, 8<<20)
			c.compareTCP(t, cell, header, near, far)
			c.compareLink(t, test.offloads)
			if seen := c.saw(t); seen[longest] < uint64(test.longest) {
				t.Errorf("the longest packet had %d bytes, this test is about %d", seen[longest], test.longest)
			}
		})
	}
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	must(t, unix.Uname(&name))
	var gotMajor, gotMinor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &gotMajor, &gotMinor)
	must(t, err)
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

func (c *cable) offload(t *testing.T, n *testnet.Namespace, name, state string) {
	t.Helper()
	_, err := n.Run("ethtool", "-K", name, "tso", state, "gso", state, "tx-udp-segmentation", state)
	must(t, err)
}

// The addresses of the container's end; the host's ends in 1.
const (
	address4 = "10.9.0.2"
	address6 = "fd09::2"
)

func (c *cable) addresses(t *testing.T) {
	t.Helper()
	address(t, c.host, c.hostEnd, "10.9.0.1/24")
	address(t, c.host, c.hostEnd, "fd09::1/64")
	address(t, c.container, c.end, address4+"/24")
	address(t, c.container, c.end, address6+"/64")
}

// transfer moves some bytes each way through a connection from the host to the
// container and leaves it open. It returns the two ends.
func (c *cable) transfer(t *testing.T, network string, size int64) (near, far *net.TCPConn) {
	t.Helper()
	if network == "tcp6" {
		return c.transferTo(t, network, address6, size)
	}
	return c.transferTo(t, network, address4, size)
}

// transferTo is transfer to an address of the container.
func (c *cable) transferTo(t *testing.T, network, address string, size int64) (near, far *net.TCPConn) {
	t.Helper()
	// A SYN that is sent with its options, and segments with timestamps alone: so
	// that each header has one length. SACK would add to those of some.
	sysctl(t, c.host, "ipv4/tcp_sack", "0")
	sysctl(t, c.container, "ipv4/tcp_sack", "0")
	to := net.JoinHostPort(address, "80")
	var listener net.Listener
	must(t, c.container.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		listener, err = lc.Listen(context.Background(), network, to)
		return err
	}))
	defer listener.Close()
	must(t, c.host.Do(func() error {
		conn, err := net.Dial(network, to)
		near, _ = conn.(*net.TCPConn)
		return err
	}))
	t.Cleanup(func() { near.Close() })
	conn, err := listener.Accept()
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	far = conn.(*net.TCPConn)
	must(t, push(near, far, size))
	must(t, push(far, near, size))
	return near, far
}

func push(from, to *net.TCPConn, size int64) error {
	var g errgroup.Group
	g.Go(func() error { _, err := from.Write(make([]byte, size)); return err })
	g.Go(func() error { _, err := io.CopyN(io.Discard, to, size); return err })
	return g.Wait()
}

func info(t *testing.T, conn *net.TCPConn) (info *unix.TCPInfo) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	must(t, err)
	return info
}

// compareTCP compares the wire numbers with what the two ends say they have sent,
// retransmissions too: segments of some header and their payload. A SYN's header is
// 8 bytes longer.
func (c *cable) compareTCP(t *testing.T, cell, header int, near, far *net.TCPConn) {
	t.Helper()
	eventually(t, func() string {
		host, container := info(t, near), info(t, far)
		rx, tx := c.read(t)
		want := func(i *unix.TCPInfo, unsaid uint32) string {
			segments := uint64(i.Segs_out + unsaid)
			return fmt.Sprint(segments, segments*uint64(header)+8+i.Bytes_sent)
		}
		got := func(r Counters) string { return fmt.Sprint(r.Cells[cell].Packets, r.Cells[cell].Bytes) }
		opens := one(cell == tcp4 || cell == tcp6) // what is in a tunnel is not looked at
		switch {
		case rx.TCPSYN != opens || tx.TCPSYNACK != opens || rx.TCPSYNACK+tx.TCPSYN != 0:
			return fmt.Sprintf("%d SYN received and SYN-ACK sent, not %+v %+v", opens, rx, tx)
		case got(rx) != want(host, 0):
			return fmt.Sprintf("received packets and bytes %s, TCP says %s", got(rx), want(host, 0))
		case got(tx) != want(container, 1): // the SYN-ACK was before its socket
			return fmt.Sprintf("sent packets and bytes %s, TCP says %s", got(tx), want(container, 1))
		}
		return ""
	})
}

// compareLink compares with the counters of the host's end: what it received is what
// the container sent.
func (c *cable) compareLink(t *testing.T, offloads bool) {
	t.Helper()
	eventually(t, func() string {
		rx, tx := c.read(t)
		s := link(t, c.host, "veth0").Attrs().Statistics
		// Without offloads the link gets segments. The container's side has made
		// them before its hook, the host's side makes them behind it.
		wantTx := fmt.Sprint(s.RxPackets, s.RxBytes)
		wantRx := fmt.Sprint(s.TxPackets, s.TxBytes)
		gotTx := fmt.Sprint(tx.Interface.Packets, tx.Interface.Bytes)
		gotRx := fmt.Sprint(rx.Interface.Packets, rx.Interface.Bytes)
		if !offloads {
			gotRx = fmt.Sprint(whole(rx))
			if wire := fmt.Sprint(whole(tx)); wire != gotTx {
				return fmt.Sprintf("sent without offloads: wire %s, interface %s", wire, gotTx)
			}
		}
		if gotTx != wantTx || gotRx != wantRx {
			return fmt.Sprintf("sent packets and bytes %s, the link says %s; received %s, %s", gotTx, wantTx, gotRx, wantRx)
		}
		return ""
	})
}

// whole returns the wire numbers over all cells.
func whole(c Counters) (packets, bytes uint64) {
	for _, cell := range c.Cells {
		packets += cell.Packets
		bytes += cell.Bytes
	}
	return packets, bytes
}
