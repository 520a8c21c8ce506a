// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// datagrams returns a UDP socket in a namespace that is bound to one address and
// connected to another.
func datagrams(t *testing.T, n *testnet.Namespace, local, remote string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	at := func(ip string) *net.UDPAddr { return &net.UDPAddr{IP: net.ParseIP(ip), Port: 99} }
	must(t, n.Do(func() (err error) {
		conn, err = net.DialUDP("udp", at(local), at(remote))
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A datagram that the kernel is asked to segment counts as its segments, whoever
// does it.
func TestLiveUDPSegment(t *testing.T) {
	need.Commands(t, "ethtool")
	const payload, size, segments = 9500, 1000, 10
	for _, test := range []struct {
		name, host, container string
		cell, header          int
	}{
		{"ipv4", "10.9.0.1", address4, udp4, 14 + 20 + 8},
		{"ipv6", "fd09::1", address6, udp6, 14 + 40 + 8},
	} {
		for _, state := range []string{"on", "off"} {
			t.Run(test.name+" offload "+state, func(t *testing.T) {
				c := newCable(t, false)
				c.addresses(t)
				c.offload(t, c.container, "eth0", state)
				c.offload(t, c.host, "veth0", state)
				near := datagrams(t, c.host, test.host, test.container)
				far := datagrams(t, c.container, test.container, test.host)
				for _, conn := range []*net.UDPConn{near, far} {
					must(t, segmented(conn, size))
					_, err := conn.Write(make([]byte, payload))
					must(t, err)
				}
				want := fmt.Sprint(segments, payload+segments*test.header)
				eventually(t, func() string {
					rx, tx := c.read(t)
					for _, cell := range []struct{ Packets, Bytes uint64 }{
						{rx.Cells[test.cell].Packets, rx.Cells[test.cell].Bytes},
						{tx.Cells[test.cell].Packets, tx.Cells[test.cell].Bytes},
					} {
						if got := fmt.Sprint(cell.Packets, cell.Bytes); got != want {
							return fmt.Sprintf("packets and bytes %s, want %s", got, want)
						}
					}
					return ""
				})
				c.compareLink(t, c.segmentsUDP(t))
			})
		}
	}
}

// segmentsUDP says whether the host's end takes super-packets of UDP.
func (c *cable) segmentsUDP(t *testing.T) bool {
	t.Helper()
	out, err := c.host.Run("ethtool", "-k", "veth0")
	must(t, err)
	return strings.Contains(string(out), "tx-udp-segmentation: on")
}

func segmented(conn *net.UDPConn, size int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		return err
	}
	return failed
}

// A VLAN tag that the kernel keeps beside the packet is on the wire: tcpdump sees it
// too. The kernel's own counters leave it out.
func TestLiveVLANAgainstTcpdump(t *testing.T) {
	need.Commands(t, "tcpdump")
	c := newCable(t, true)
	captured := c.capture(t)
	c.tagAll(t)
	address(t, c.host, c.hostEnd, "10.9.0.1/24")
	address(t, c.container, c.end, address4+"/24")
	near, far := datagrams(t, c.host, "10.9.0.1", address4), datagrams(t, c.container, address4, "10.9.0.1")
	const packets = 40
	for i := range packets {
		for _, conn := range []*net.UDPConn{near, far} {
			_, err := conn.Write(make([]byte, 30*i))
			must(t, err)
		}
	}
	eventually(t, func() string {
		rx, tx := c.read(t)
		rxPackets, rxBytes := whole(rx)
		txPackets, txBytes := whole(tx)
		got := fmt.Sprint(rxPackets+txPackets, rxBytes+txBytes)
		if want := fmt.Sprint(captured.packets.Load(), captured.bytes.Load()); got != want || rxPackets < packets || txPackets < packets {
			return fmt.Sprintf("packets and bytes %s, tcpdump says %s", got, want)
		}
		if rx.Interface.Bytes != rxBytes-4*rxPackets || tx.Interface.Bytes != txBytes-4*txPackets {
			return fmt.Sprintf("tags count on the wire alone: %+v %+v", rx, tx)
		}
		return ""
	})
	c.compareLink(t, true)
}

// capture is what tcpdump says goes by.
type capture struct{ packets, bytes atomic.Uint64 }

func (c *cable) capture(t *testing.T) *capture {
	t.Helper()
	cmd := exec.Command("tcpdump", "-i", "veth0", "-U", "--immediate-mode", "-s", "64", "-B", "16384", "-Z", "root", "-w", "-")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, c.host.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	// tcpdump writes the file's header when it captures.
	r, err := pcapgo.NewReader(out)
	must(t, err)
	seen := &capture{}
	go func() {
		for {
			_, ci, err := r.ReadPacketData()
			if err != nil {
				_, _ = io.Copy(io.Discard, out)
				return
			}
			seen.bytes.Add(uint64(ci.Length))
			seen.packets.Add(1)
		}
	}()
	return seen
}
