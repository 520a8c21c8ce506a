// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	bigendian "encoding/binary"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// mostTimes is how many times its own length a frame may count for (docs/METRICS.md).
const mostTimes = 87

// A process with CAP_NET_RAW alone, in a container with Docker's capabilities, sends frames
// that claim absurd segments to another container. They are no more than packets to it, unless
// the kernel's own stack could have made them.
func TestForgedSegmentSize(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	d := p.daemon
	attacker := p.docker.Run("--name", "attacker", "--network", "dual", dockerhost.Image)
	agent := p.docker.Agent(attacker)
	d.counted(attacker, 1)
	mac := nettest.Must(net.ParseMAC(p.docker.CLI("inspect", "--format",
		"{{(index .NetworkSettings.Networks \"dual\").MacAddress}}", p.server)))(t)
	before := d.weigh("before")

	for _, shape := range forgedShapes(mac) {
		t.Run(shape.name, func(t *testing.T) { p.forge(t, agent, shape) })
		d.weigh("after " + shape.name)
	}
	if ratio := d.metric("nettally_completeness_ratio"); ratio != 1 {
		t.Errorf("completeness %v", ratio)
	}
	t.Run("honest transfer", p.testTransfer)
	t.Run("honest segmented UDP", func(t *testing.T) { p.testSegmentedUDP(t, asInterface) })
	d.weigh("at the end").grewBy(t, before, 64<<20, 20)
	p.replacesPrograms(t)
}

// forge sends a frame to the server some times, and looks at what that counts for.
func (p *pair) forge(t *testing.T, agent *testnet.Agent, shape shape) {
	t.Helper()
	const frames = 10
	was, doubted := p.received(t, 0), p.daemon.metric(implausible)
	if err := agent.SendFrame(shape.Frame, frames); err != nil {
		t.Fatal(err)
	}
	now := p.received(t, was.InterfaceBytes+frames*uint64(shape.Size))
	packets, skbs := now.Packets-was.Packets, now.InterfacePackets-was.InterfacePackets
	bytes, length := now.Bytes-was.Bytes, now.InterfaceBytes-was.InterfaceBytes
	t.Logf("%d frames of %d bytes in all are %d packets and %d bytes", skbs, length, packets, bytes)
	if bytes > mostTimes*length {
		t.Errorf("they count for more than %d times their length", mostTimes)
	}
	more := p.daemon.metric(implausible) - doubted
	switch {
	case shape.genuine && (packets <= skbs || bytes <= length || more != 0):
		t.Errorf("they are no super-packets, and %v are in the error cell", more)
	case !shape.genuine && (packets != skbs || bytes != length):
		t.Error("they are not one packet each")
	case !shape.genuine && more != 2*frames: // the sender's interface and the receiver's
		t.Errorf("%v are in the error cell, of %d frames on two interfaces", more, frames)
	}
}

// received returns what the server has received, once that is so many bytes and the
// interface numbers are the kernel's.
func (p *pair) received(t *testing.T, bytes uint64) exporter.Counts {
	t.Helper()
	p.daemon.poll("received", func() error {
		c, err := p.daemon.container(p.server)
		if err == nil && c.Receive.InterfaceBytes < bytes {
			err = fmt.Errorf("%d bytes of %d", c.Receive.InterfaceBytes, bytes)
		}
		return err
	})
	p.likeKernel(t, p.server, asInterface)
	return nettest.Must(p.daemon.container(p.server))(t).Receive
}

const implausible = `nettally_unclassified_packets_total{cause="implausible_gso"}`

// replacesPrograms restarts the daemon: its own programs count then, in place of those of the
// process before, as after an upgrade.
func (p *pair) replacesPrograms(t *testing.T) {
	t.Helper()
	programs := func() (ids []string) {
		for _, hook := range []string{"ingress", "egress"} {
			out := nettest.Must(p.docker.Namespace.Run("tc", "filter", "show", "dev", p.docker.HostVeth(p.server, "eth0"), hook))(t)
			ids = append(ids, regexp.MustCompile(`nettally_\S+.* id \d+`).FindAllString(string(out), -1)...)
		}
		return ids
	}
	before := programs()
	p.daemon.stop()
	p.daemon.start()
	p.daemon.counted(p.server, 1)
	after := programs()
	if len(before) != 2 || len(after) != 2 || slices.ContainsFunc(after, func(id string) bool { return slices.Contains(before, id) }) {
		t.Errorf("programs %q before a restart, %q after it", strings.Join(before, ", "), strings.Join(after, ", "))
	}
}

// shape is a frame that is forged, and whether the kernel could have made it.
type shape struct {
	name    string
	genuine bool
	testnet.Frame
}

// forgedShapes returns frames for a MAC address, and for IP addresses that are nobody's.
func forgedShapes(mac net.HardwareAddr) []shape {
	const tcpv4, tcpv6, udpL4, tcp, udp = 1, 4, 5, 6, 17
	v6 := func(name string, headers, gsoSize, size int, genuine bool) shape {
		data := join6(mac, headers, tcp, size)
		at := len(data)
		data = append(data, make([]byte, 20)...)
		data[at+12], data[at+13] = 0x50, 0x10
		return shape{name, genuine, forgedFrame(data, at, 16, tcpv6, gsoSize, size)}
	}
	v4 := func(name string, number byte, gsoSize, size int, genuine bool) shape {
		data := append(ethernet(mac, 0x0800), make([]byte, 40)...)
		ip := data[14:]
		ip[0], ip[8], ip[9] = 0x45, 64, number
		bigendian.BigEndian.PutUint16(ip[2:], uint16(size-14))
		copy(ip[12:], []byte{240, 0, 0, 1, 240, 0, 0, 2})
		bigendian.BigEndian.PutUint16(ip[10:], checksum(ip[:20])) // bridges look at it
		if number == udp {
			bigendian.BigEndian.PutUint16(ip[24:], uint16(size-34))
			return shape{name, genuine, forgedFrame(data, 34, 6, udpL4, gsoSize, size)}
		}
		ip[32], ip[33] = 0x50, 0x10
		return shape{name, genuine, forgedFrame(data, 34, 16, tcpv4, gsoSize, size)}
	}
	return []shape{
		v6("16 KB of headers and size 1", 8, 1, 65_000, false),
		v6("2 KB of headers and size 1", 1, 1, 65_000, false),
		v6("16 KB of headers and size 1440", 8, 1440, 65_000, false),
		v6("no more headers and size 1", 0, 1, 65_000, false),
		v4("TCP over IPv4 and size 1", tcp, 1, 65_000, false),
		v4("TCP over IPv4 and size 7", tcp, 7, 65_000, false),
		v4("TCP over IPv4 and size 8", tcp, 8, 65_000, true),
		v4("UDP and 128 segments of size 1", udp, 1, 42+128, true),
	}
}

// checksum is that of RFC 1071.
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(bigendian.BigEndian.Uint16(header[i:]))
	}
	return ^uint16(sum>>16 + sum)
}

func ethernet(to net.HardwareAddr, etherType uint16) []byte {
	frame := append(slices.Clone([]byte(to)), 2, 0, 0, 0, 0, 1)
	return bigendian.BigEndian.AppendUint16(frame, etherType)
}

// join6 returns the headers of a frame of some size: IPv6 with destination options of 2 KB
// each, before a transport.
func join6(to net.HardwareAddr, headers int, transport byte, size int) []byte {
	const destination = 60
	frame := append(ethernet(to, 0x86dd), make([]byte, 40)...)
	ip := frame[14:]
	ip[0], ip[7], ip[8], ip[24] = 0x60, 64, 0xfd, 0xfd
	ip[23], ip[39] = 1, 2
	bigendian.BigEndian.PutUint16(ip[4:], uint16(size-54))
	next := &ip[6]
	for range headers {
		*next = destination
		frame = append(frame, make([]byte, 2048)...)
		option := frame[len(frame)-2048:]
		option[1] = 255
		next = &option[0]
	}
	*next = transport
	return frame
}

// forgedFrame is a frame whose checksum is left to the device, which the kernel wants of them.
func forgedFrame(data []byte, transport, offset int, kind uint8, gsoSize, size int) testnet.Frame {
	return testnet.Frame{
		Interface: "eth0", Data: data, Size: size,
		Header: testnet.VirtioHeader{
			Flags: 1, GSOType: kind, HeaderLen: uint16(len(data)), GSOSize: uint16(gsoSize),
			ChecksumStart: uint16(transport), ChecksumOffset: uint16(offset),
		},
	}
}
