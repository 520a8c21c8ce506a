// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

const clsact = 0xffff << 16

// cable is a veth pair from a host to a container, counted on the host's end from
// its first packet on.
type cable struct {
	*Datapath
	slot            Slot
	host, container *testnet.Namespace
	hostEnd, end    netlink.Link // veth0 in the host, eth0 in the container
	witness         *ebpf.Map
}

// newCable makes a cable whose ends have no addresses, and speak only when told to
// if it is quiet.
func newCable(tb testing.TB, quiet bool) *cable {
	tb.Helper()
	c := newCableUncounted(tb, quiet)
	c.Datapath = load(tb, Options{})
	c.attach(tb)
	c.up(tb)
	return c
}

// newCableUncounted makes a cable that is down, with nothing on it.
func newCableUncounted(tb testing.TB, quiet bool) *cable {
	tb.Helper()
	need.Root(tb)
	c := &cable{host: namespace(tb), container: namespace(tb)}
	if quiet {
		sysctl(tb, c.host, "ipv6/conf/default/disable_ipv6", "1")
		sysctl(tb, c.container, "ipv6/conf/default/disable_ipv6", "1")
	}
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: "veth0", MTU: 9000},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(c.container.FD()),
		PeerMTU:       9000,
	}
	must(tb, c.host.LinkAdd(pair))
	c.hostEnd, c.end = link(tb, c.host, "veth0"), link(tb, c.container, "eth0")
	return c
}

// up sets both ends up, and waits until they carry packets: before the kernel's link
// watch has been there it drops what is sent, without a word.
func (c *cable) up(tb testing.TB) {
	tb.Helper()
	must(tb, c.container.LinkSetUp(c.end))
	must(tb, c.host.LinkSetUp(c.hostEnd))
	eventually(tb, func() string {
		for n, name := range map[*testnet.Namespace]string{c.host: "veth0", c.container: "eth0"} {
			if state := link(tb, n, name).Attrs().OperState; state != netlink.OperUp {
				return fmt.Sprintf("%s is %v", name, state)
			}
		}
		return ""
	})
}

func namespace(tb testing.TB) *testnet.Namespace {
	tb.Helper()
	n, err := testnet.NewNamespace()
	must(tb, err)
	tb.Cleanup(func() { must(tb, n.Close()) })
	return n
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func link(tb testing.TB, n *testnet.Namespace, name string) netlink.Link {
	tb.Helper()
	l, err := n.LinkByName(name)
	must(tb, err)
	return l
}

func sysctl(tb testing.TB, n *testnet.Namespace, name, value string) {
	tb.Helper()
	must(tb, n.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }))
}

// attach puts the classifiers on the host's end, and behind them a witness: it sees
// what they let pass.
func (c *cable) attach(tb testing.TB) {
	tb.Helper()
	for range 100 { // so that the slot is in the middle of a second chunk
		take(tb, c.Datapath, 0)
	}
	c.slot = take(tb, c.Datapath, c.hostEnd.Attrs().Index)
	c.addQdiscs(tb)
	witness := c.newWitness(tb)
	c.attachFilters(tb)
	c.filter(tb, c.host, c.hostEnd, netlink.HANDLE_MIN_INGRESS, 3, witness)
	c.filter(tb, c.host, c.hostEnd, netlink.HANDLE_MIN_EGRESS, 3, witness)
}

func (c *cable) addQdiscs(tb testing.TB) {
	tb.Helper()
	for n, l := range map[*testnet.Namespace]netlink.Link{c.host: c.hostEnd, c.container: c.end} {
		must(tb, n.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: clsact,
		}}))
	}
}

// attachFilters puts the classifiers on the host's end, or in the place of others.
func (c *cable) attachFilters(tb testing.TB) {
	tb.Helper()
	c.filter(tb, c.host, c.hostEnd, netlink.HANDLE_MIN_INGRESS, 2, c.Ingress)
	c.filter(tb, c.host, c.hostEnd, netlink.HANDLE_MIN_EGRESS, 2, c.Egress)
}

func (c *cable) filter(tb testing.TB, n *testnet.Namespace, l netlink.Link, hook uint32, priority uint16, program *ebpf.Program) {
	tb.Helper()
	must(tb, n.FilterReplace(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: hook, Handle: 1, Priority: priority, Protocol: unix.ETH_P_ALL},
		ClassId:      0x6e74<<16 | uint32(c.slot.Index), // the minor number is what counts
		Fd:           program.FD(),
		Name:         "test",
		DirectAction: true,
	}))
}

// tagAll puts a VLAN tag on all that is on the cable, beside the packets as a VLAN
// device does (which not every kernel has).
func (c *cable) tagAll(t *testing.T) {
	t.Helper()
	load := func(name string, call ...asm.Instruction) *ebpf.Program {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL",
			Instructions: append(call, asm.Mov.Imm(asm.R0, -1), asm.Return())})
		must(t, err)
		t.Cleanup(func() { must(t, program.Close()) })
		return program
	}
	bigEndian := int32(binary.NativeEndian.Uint16(be16(ctag)))
	push := load("push", asm.Mov.Imm(asm.R2, bigEndian), asm.Mov.Imm(asm.R3, 7), asm.FnSkbVlanPush.Call())
	pop := load("pop", asm.FnSkbVlanPop.Call())
	for n, l := range map[*testnet.Namespace]netlink.Link{c.host: c.hostEnd, c.container: c.end} {
		c.filter(t, n, l, netlink.HANDLE_MIN_EGRESS, 1, push)
		c.filter(t, n, l, netlink.HANDLE_MIN_INGRESS, 4, pop)
	}
}

// What the witness keeps.
const (
	longest  = iota // bytes of the longest packet
	shortest        // packets with less than an IPv4 header in the linear part
	passed          // packets
)

// newWitness returns a program that notes what the packets look like.
func (c *cable) newWitness(tb testing.TB) *ebpf.Program {
	tb.Helper()
	var err error
	c.witness, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	must(tb, err)
	tb.Cleanup(func() { must(tb, c.witness.Close()) })
	const skbLen, skbData, skbDataEnd = 0, 76, 80
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "witness", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, skbData, asm.Word),
		asm.LoadMem(asm.R8, asm.R1, skbDataEnd, asm.Word),
		asm.LoadMem(asm.R6, asm.R1, skbLen, asm.Word),
		asm.LoadMapPtr(asm.R1, c.witness.FD()),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 8*passed, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 8*passed, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 8*longest, asm.DWord),
		asm.JGE.Reg(asm.R1, asm.R6, "linear"),
		asm.StoreMem(asm.R0, 8*longest, asm.R6, asm.DWord),
		asm.Add.Imm(asm.R7, 34).WithSymbol("linear"),
		asm.JLE.Reg(asm.R7, asm.R8, "out"),
		asm.LoadMem(asm.R1, asm.R0, 8*shortest, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 8*shortest, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}})
	must(tb, err)
	tb.Cleanup(func() { must(tb, program.Close()) })
	return program
}

func (c *cable) saw(t *testing.T) (seen [3]uint64) {
	t.Helper()
	must(t, c.witness.Lookup(uint32(0), &seen))
	return seen
}

func (c *cable) read(tb testing.TB) (rx, tx Counters) {
	tb.Helper()
	rx, tx, err := c.Read(c.slot)
	must(tb, err)
	return rx, tx
}

// eventually waits until there is no problem left: packets are on their way for a
// moment after they were sent.
func eventually(tb testing.TB, problem func() string) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		p := problem()
		if p == "" {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatal(p)
		}
	}
}

// rawSocket returns a packet socket on a link.
func rawSocket(tb testing.TB, n *testnet.Namespace, l netlink.Link) int {
	tb.Helper()
	fd := -1
	must(tb, n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
		}
		return err
	}))
	tb.Cleanup(func() { must(tb, unix.Close(fd)) })
	return fd
}

// compareLive sends frames through both hooks, one at a time, and compares what is
// counted with what gopacket says.
func (c *cable) compareLive(t *testing.T, frames [][]byte, g gso, send func(fd int, frame []byte) error) {
	t.Helper()
	in, out := rawSocket(t, c.container, c.end), rawSocket(t, c.host, c.hostEnd)
	for _, frame := range frames {
		want, _ := expect(frame, g)
		if want.Interface.Packets != 1 {
			t.Fatal("a frame is one packet")
		}
		rx, tx := c.read(t)
		must(t, send(out, frame))
		c.awaitCounted(t, frame, want, func() Counters { now, _ := c.read(t); return minus(now, rx) })
		if tagged(frame) { // the kernel takes the outer tag out of what it receives
			want.Interface.Bytes -= 4
		}
		must(t, send(in, frame))
		c.awaitCounted(t, frame, want, func() Counters { _, now := c.read(t); return minus(now, tx) })
	}
	if got, want := c.saw(t)[passed], uint64(2*len(frames)); got != want {
		t.Errorf("the filter behind ours saw %d packets of %d", got, want)
	}
}

func (c *cable) awaitCounted(t *testing.T, frame []byte, want Counters, got func() Counters) {
	t.Helper()
	eventually(t, func() string {
		if diff := cmp.Diff(want, got()); diff != "" {
			return fmt.Sprintf("frame %.200x (-gopacket +classifier):\n%s", frame, diff)
		}
		return ""
	})
}

func plainSend(fd int, frame []byte) error {
	_, err := unix.Write(fd, frame)
	return err
}

// Through the real hooks, samples and what is left of them when they are cut give
// what they give in test runs.
func TestLiveSamples(t *testing.T) {
	for name, attach := range map[string]func(*testing.T, *cable){
		"clsact": func(*testing.T, *cable) {},
		"tcx": func(t *testing.T, c *cable) {
			c.detachFilters(t)
			c.attachTCX(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCable(t, true)
			attach(t, c)
			c.compareSamples(t)
		})
	}
}

func (c *cable) compareSamples(t *testing.T) {
	t.Helper()
	var frames [][]byte
	for _, s := range samples() {
		if s.GSOSize != 0 {
			continue
		}
		frames = append(frames, s.packet)
		for size := 14; size < 90 && size < len(s.packet) && !tagged(s.packet); size++ {
			frames = append(frames, s.packet[:size])
		}
	}
	c.compareLive(t, frames, gso{}, plainSend)
}

// vnetHeader is struct virtio_net_hdr of linux/virtio_net.h.
type vnetHeader struct {
	Flags, GSOType                            uint8
	HeaderLen, GSOSize, ChecksumStart, Offset uint16
}

func (h vnetHeader) send(fd int, frame []byte) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	b, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		return err
	}
	return plainSend(fd, append(b, frame...))
}

// Headers that are not in the linear part of a packet are read all the same. A
// packet socket puts what is behind "the header" into pages if it fills one.
func TestLiveNonLinear(t *testing.T) {
	for _, linear := range []uint16{14, 20, 33} {
		t.Run(fmt.Sprint(linear), func(t *testing.T) {
			c := newCable(t, true)
			var frames [][]byte
			for _, s := range samples() {
				if s.GSOSize == 0 {
					frames = append(frames, join(s.packet, make([]byte, 6000-len(s.packet))))
				}
			}
			c.compareLive(t, frames, gso{}, vnetHeader{HeaderLen: linear}.send)
			if got, least := c.saw(t)[shortest], uint64(len(frames)); got < least {
				t.Errorf("%d packets of %d were non-linear, which this test is about", got, 2*least)
			}
		})
	}
}

// The kernel leaves gso_segs at 0 where a super-packet comes from outside of it.
func TestLiveForeignSuperPackets(t *testing.T) {
	const tcpv4, tcpv6 = 1, 4
	for _, test := range []struct {
		name    string
		gsoType uint8
		frame   []byte
	}{
		{"ipv4", tcpv4, join(eth(ipv4Type), ipv4(tcp, segment(ackFlag, 3, 60_001)))},
		{"ipv6", tcpv6, join(eth(ipv6Type), ipv6(tcp, segment(ackFlag, 3, 60_001)))},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCable(t, true)
			header := vnetHeader{
				Flags: 1, GSOType: test.gsoType, HeaderLen: uint16(len(test.frame) - 60_001), GSOSize: 1000,
				ChecksumStart: uint16(len(test.frame) - 60_001 - 32), Offset: 16, // virtio wants a checksum to be left to the device
			}
			c.compareLive(t, [][]byte{test.frame}, gso{GSOSize: 1000}, header.send)
		})
	}
}

// address gives a link an address that works at once.
func address(t *testing.T, n *testnet.Namespace, l netlink.Link, cidr string) {
	t.Helper()
	ip, network, err := net.ParseCIDR(cidr)
	must(t, err)
	must(t, n.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: network.Mask}, Flags: unix.IFA_F_NODAD}))
}
