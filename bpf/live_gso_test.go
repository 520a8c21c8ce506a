// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Types of virtio_net_hdr in linux/virtio_net.h.
const (
	needsChecksum = 1
	gsoNone       = 0
	gsoTCPv4      = 1
	gsoUDP        = 3 // fragments
	gsoTCPv6      = 4
	gsoUDPL4      = 5 // datagrams
	gsoECN        = 0x80
)

// TestLiveForged sends random frames under random headers of virtio-net, which is what
// whoever may open a packet socket can do, through both hooks. What the kernel lets through is
// compared with what gopacket makes of a capture, no frame counts for more than the bound, and
// the interface numbers are the kernel's.
func TestLiveForged(t *testing.T) {
	const seed, frames = 3, 4000
	onOneCPU(t)
	f := newForging(t)
	m := newMutator(seed)
	for i := range frames {
		frame, header := m.forge()
		if problem := f.both(frame, header); problem != "" {
			t.Fatalf("seed %d, frame %d, %s\n%+v %.300x", seed, i, problem, header, frame)
		}
	}
	t.Logf("%d frames: %v", frames, f.seen)
	for _, kind := range []string{"refused", "packets", "super-packets", "implausible", "tunnels"} {
		if f.seen[kind] == 0 {
			t.Errorf("none of %d frames was %s", frames, kind)
		}
	}
}

// What [FuzzVirtio] has found the kernel to do with a frame, and we had not thought of.
func TestLiveFound(t *testing.T) {
	onOneCPU(t)
	f := newForging(t)
	for _, test := range []struct {
		name   string
		frame  []byte
		header vnetHeader
	}{
		{"tag without an EtherType behind it", eth(ctag), vnetHeader{GSOSize: 1, ChecksumStart: 48, Offset: 2}},
		{"one byte too short for its tag", join(eth(stag), make([]byte, 5)), vnetHeader{}},
		{"no EtherType, said to be UDP", join(eth(0), make([]byte, 28)),
			vnetHeader{Flags: needsChecksum, GSOType: gsoUDPL4, GSOSize: 3049, ChecksumStart: 34, Offset: 6}},
		{"no EtherType, said to be TCP in IPv6", join(eth(0), ipv6(tcp, segment(ackFlag, 0, 3000))),
			vnetHeader{Flags: needsChecksum, GSOType: gsoTCPv6, GSOSize: 1000, ChecksumStart: 54, Offset: 16}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.TB = t
			if problem := f.both(test.frame, test.header); problem != "" {
				t.Error(problem)
			}
		})
	}
}

// FuzzVirtio is [TestLiveForged] with frames and headers of a fuzzer, which learns from where
// gopacket's decoders get to.
func FuzzVirtio(f *testing.F) {
	forging := newForging(f)
	m := newMutator(4)
	for range 200 {
		frame, h := m.forge()
		if len(frame) <= largestRun { // what is longer is slow to mutate
			f.Add(frame, h.Flags, h.GSOType, h.HeaderLen, h.GSOSize, h.ChecksumStart, h.Offset)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte, flags, gsoType uint8, headerLen, size, start, offset uint16) {
		onOneCPU(t)
		forging.TB = t
		header := vnetHeader{Flags: flags, GSOType: gsoType, HeaderLen: headerLen, GSOSize: size, ChecksumStart: start, Offset: offset}
		frame = affordable(frame, header)
		if problem := forging.both(frame, header); problem != "" {
			forging.captured() // the next frame does not meet what is left of this one
			forging.records.next(t)
			t.Fatalf("%s\n%+v %x", problem, header, frame)
		}
	})
}

// onOneCPU keeps a test on its thread, and that on one CPU: what it sends is received in
// that order.
func onOneCPU(tb testing.TB) {
	tb.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	must(tb, unix.SchedGetaffinity(0, &all))
	for cpu := 0; ; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	must(tb, unix.SchedSetaffinity(0, &one))
	tb.Cleanup(func() {
		must(tb, unix.SchedSetaffinity(0, &all))
		runtime.UnlockOSThread()
	})
}

// forge returns a frame and what is claimed of it: both fit together, or neither does.
func (m *mutator) forge() ([]byte, vnetHeader) {
	frame, c := m.next()
	header := vnetHeader{
		Flags:   uint8(m.IntN(8) & m.IntN(8)),
		GSOType: []uint8{gsoNone, gsoTCPv4, gsoUDP, gsoTCPv6, gsoUDPL4, 2}[m.IntN(6)],
		GSOSize: uint16(c.GSOSize), HeaderLen: uint16(m.IntN(1 << m.IntN(17))),
		ChecksumStart: uint16(m.IntN(1 << m.IntN(12))), Offset: uint16(m.IntN(1 << m.IntN(6))),
	}
	if m.IntN(3) > 0 {
		frame, header = m.fit()
	}
	if m.IntN(4) == 0 {
		header.GSOType |= gsoECN
	}
	if m.IntN(2) == 0 {
		header.GSOSize = []uint16{1, 2, 7, 8, 9, 100, 1448, 9000, byFrags - 1, byFrags}[m.IntN(10)]
	}
	if m.IntN(3) == 0 {
		frame = append(frame, make([]byte, m.IntN(longestFrame-len(frame)))...)
	}
	return affordable(frame, header), header
}

// longestFrame is the longest frame that is sent.
const longestFrame = 65_000

// affordable cuts a frame that the kernel would divide into more packets than its queue, of
// 1000, has room for.
func affordable(frame []byte, header vnetHeader) []byte {
	frame = frame[:min(len(frame), longestFrame)]
	if header.GSOType&^gsoECN == gsoUDP {
		frame = frame[:min(len(frame), max(100, 300*int(header.GSOSize)))]
	}
	return frame
}

// fit returns a packet of a transport, behind any headers, and a header that fits it.
func (m *mutator) fit() ([]byte, vnetHeader) {
	payload := m.IntN(1 << m.IntN(16))
	number, transport := byte(tcp), segment(ackFlag, m.IntN(11), payload)
	header := vnetHeader{Flags: needsChecksum, GSOType: gsoTCPv4, GSOSize: uint16(1 + m.IntN(1<<m.IntN(15))), Offset: 16}
	if m.IntN(2) == 0 {
		number, transport = udp, datagram(payload)
		header.GSOType, header.Offset = []uint8{gsoUDP, gsoUDPL4}[m.IntN(2)], 6
		if m.IntN(2) == 0 { // what looks like a tunnel's
			form := tunnelForms()[m.IntN(overUDP)]
			transport = form.wrap(ipv4Type, ipv4(tcp, segment(ackFlag, m.IntN(11), payload)))
		}
	}
	size := len(transport)
	frame := join(eth(ipv4Type), m.ipv4(number, transport))
	if m.IntN(2) == 0 {
		if header.GSOType == gsoTCPv4 {
			header.GSOType = gsoTCPv6
		}
		for range m.IntN(9) {
			transport, number = extension(number, m.IntN(1<<m.IntN(9)), transport), destination
		}
		frame = join(eth(ipv6Type), ipv6(number, transport))
	}
	for range max(0, m.IntN(5)-2) {
		frame = slices.Insert(frame, 12, append(be16(ctag), be16(m.IntN(1<<12))...)...)
	}
	header.ChecksumStart = uint16(len(frame) - size)
	header.HeaderLen = uint16(len(frame) - payload)
	return frame, header
}

// forging sends frames, and knows what the kernel made of them.
type forging struct {
	*cable
	testing.TB
	in, out, tap int
	records      *recorder
	seen         map[string]int
	last         uint32 // sentinel
}

// newForging makes a cable to send frames on.
func newForging(tb testing.TB) *forging {
	tb.Helper()
	c := newCable(tb, true)
	f := &forging{cable: c, TB: tb, records: c.record(tb), seen: map[string]int{}}
	f.in, f.out = rawSocket(tb, c.container, c.end), rawSocket(tb, c.host, c.hostEnd)
	f.tap = c.tap(tb)
	return f
}

// both sends a frame through both hooks.
func (f *forging) both(frame []byte, header vnetHeader) string {
	if problem := f.receive(frame, header); problem != "" {
		return "received: " + problem
	}
	if problem := f.transmit(frame, header); problem != "" {
		return "sent: " + problem
	}
	return ""
}

// sentinel sends a frame of a type for experiments behind the others, and returns it.
func (f *forging) sentinel() []byte {
	f.Helper()
	f.last++
	frame := binary.BigEndian.AppendUint32(join(eth(0x88b5), make([]byte, 42)), f.last)
	if err := (vnetHeader{}).send(f.in, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
		f.Fatal(err)
	}
	return frame
}

// receive sends a frame out of the host, where our hook sees it as it was made.
func (f *forging) receive(frame []byte, header vnetHeader) string {
	rx, _ := f.read(f)
	troubles, before := f.troubles(), linkStatistics(f, f.cable)
	sent := header.send(f.out, frame)
	records := f.records.next(f)
	if len(records) > 1 || len(records) == 0 && sent == nil {
		return fmt.Sprintf("seen as %d packets (%v)", len(records), sent)
	}
	frames := [][]byte{header.typed(frame)}[:len(records)]
	now, _ := f.read(f)
	if problem := f.compare(frames, records, nil, minus(now, rx), troubles); problem != "" || sent != nil {
		return problem
	}
	// What is cut up behind our hook, or dropped, has other lengths there.
	after := linkStatistics(f, f.cable)
	bytes := after.TxBytes - before.TxBytes
	whole := after.TxPackets-before.TxPackets == 1 && after.TxDropped == before.TxDropped
	if ours := now.Interface.Bytes - rx.Interface.Bytes; whole && bytes != ours {
		return fmt.Sprintf("the link says %d bytes, we %d", bytes, ours)
	}
	return ""
}

// transmit sends a frame out of the container: our hook sees what the kernel has made of it
// by then, and so does a capture.
func (f *forging) transmit(frame []byte, header vnetHeader) string {
	_, tx := f.read(f)
	troubles, before := f.troubles(), linkStatistics(f, f.cable)
	sent := header.send(f.in, frame)
	if sent != nil {
		f.seen["refused"]++
	}
	frames, tags := f.captured()
	var records []record
	eventually(f, func() string {
		if records = append(records, f.records.next(f)...); len(records) < len(frames) {
			return fmt.Sprintf("%d packets of %d at the hook", len(records), len(frames))
		}
		return ""
	})
	_, now := f.read(f)
	grown := minus(now, tx)
	if problem := f.compare(frames, records, tags, grown, troubles); problem != "" {
		return problem
	}
	after := linkStatistics(f, f.cable)
	packets, bytes := grown.Interface.Packets, grown.Interface.Bytes
	if sent == nil && halfTagged(frame) { // the link counts it, and no hook sees it
		packets, bytes = packets+1, bytes+uint64(len(frame))
	}
	for _, tagged := range tags { // the link counts the tag, which the kernel takes out then
		bytes += 4 * one(tagged)
	}
	if p, b := after.RxPackets-before.RxPackets, after.RxBytes-before.RxBytes; p != packets || b != bytes {
		return fmt.Sprintf("the link says %d packets and %d bytes, we %d and %d", p, b, packets, bytes)
	}
	return ""
}

// typed returns a frame as it is on its way out. If its EtherType is 0, the kernel goes by
// what is claimed of it (virtio_net_hdr_set_proto). UFO says nothing of the family: what is no
// IPv4 header is tried as IPv6 (virtio_net_hdr_to_skb), where no checksum is asked for.
func (h vnetHeader) typed(frame []byte) []byte {
	if len(frame) < ethernet || binary.BigEndian.Uint16(frame[12:]) != 0 {
		return frame
	}
	isIPv4 := len(frame) >= ethernet+20 && frame[ethernet]&0xf >= 5
	switch claimed := h.GSOType &^ gsoECN; claimed {
	case gsoTCPv4, gsoUDP, gsoUDPL4:
		if claimed == gsoUDP && h.Flags&needsChecksum == 0 && !isIPv4 {
			return patched(frame, 12, 0x86, 0xdd)
		}
		return patched(frame, 12, 0x08, 0x00)
	case gsoTCPv6:
		return patched(frame, 12, 0x86, 0xdd)
	}
	return frame
}

// halfTagged says whether a frame ends before the EtherType behind its tag: the kernel drops
// such a one on receipt, before all hooks (skb_vlan_untag).
func halfTagged(frame []byte) bool { return len(frame) < ethernet+6 && tagged(frame) }

func linkStatistics(tb testing.TB, c *cable) *netlink.LinkStatistics {
	tb.Helper()
	return link(tb, c.host, "veth0").Attrs().Statistics
}

func (f *forging) troubles() map[string]uint64 { return (&lab{Datapath: f.Datapath}).troubles() }

// compare says where the counters differ from what gopacket makes of some frames. A frame
// whose tag the kernel has taken out is given with it.
func (f *forging) compare(frames [][]byte, records []record, tags []bool, got Counters, before map[string]uint64) string {
	if len(frames) != len(records) {
		drops, err := unix.GetsockoptTpacketStats(f.tap, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		return fmt.Sprintf("%d packets captured, %d seen by a program (%+v, %v)", len(frames), len(records), drops, err)
	}
	var want Counters
	doubts := map[doubt]uint64{}
	for i, frame := range frames {
		f.note(records[i])
		if g := (gso{GSOSize: records[i].Size, GSOSegs: records[i].Segments}); readAll(frame, g, 0).headers != read(frame, g).headers {
			f.seen["tunnels"]++
		}
		counted, d := expect(frame, gso{GSOSize: records[i].Size, GSOSegs: records[i].Segments})
		if tags != nil && tags[i] {
			counted.Interface.Bytes -= 4
		}
		if counted.Interface.Bytes != uint64(records[i].Length) {
			return fmt.Sprintf("captured %d bytes, a program saw %d", counted.Interface.Bytes, records[i].Length)
		}
		want = minus(want, minus(Counters{}, counted))
		if doubts[d]++; d == super {
			f.seen["implausible"]++
		}
	}
	for cause, n := range f.troubles() {
		for _, d := range []doubt{header, super} {
			if d.is(cause) {
				doubts[d] -= n - before[cause]
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || doubts[header] != 0 || doubts[super] != 0 {
		return fmt.Sprintf("%+v: doubts missed %v (-gopacket +classifier):\n%s", records, doubts, diff)
	}
	if _, bytes := whole(got); bytes > mostTimes*got.Interface.Bytes || bytes < got.Interface.Bytes {
		return fmt.Sprintf("%d bytes count as %d", got.Interface.Bytes, bytes)
	}
	return ""
}

func (f *forging) note(r record) {
	f.seen["packets"]++
	if r.Size != 0 {
		f.seen["super-packets"]++
	}
}

// tap returns a socket that captures what the host's end receives, with the tags that the
// kernel has taken out.
func (c *cable) tap(tb testing.TB) int {
	tb.Helper()
	fd := -1
	must(tb, c.host.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	tb.Cleanup(func() { must(tb, unix.Close(fd)) })
	must(tb, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(tb, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	must(tb, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	must(tb, unix.Bind(fd, &unix.SockaddrLinklayer{
		Protocol: binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL)), Ifindex: c.hostEnd.Attrs().Index,
	}))
	return fd
}

// captured returns the frames up to a sentinel, and which of them had a tag that the kernel
// has taken out: they have it again. Where the kernel has dropped the sentinel, another one
// follows.
func (f *forging) captured() (frames [][]byte, tags []bool) {
	f.Helper()
	buffer, control := make([]byte, 1<<17), make([]byte, 128)
	sentinel := f.sentinel()
	for {
		n, oob, _, from, err := unix.Recvmsg(f.tap, buffer, control, 0)
		if errors.Is(err, unix.EAGAIN) {
			sentinel = f.sentinel()
			continue
		}
		must(f, err)
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		frame := slices.Clone(buffer[:n])
		messages, err := unix.ParseSocketControlMessage(control[:oob])
		must(f, err)
		// struct tpacket_auxdata of linux/if_packet.h: the tag's two halves are at its end.
		aux := messages[0].Data
		tagged := binary.NativeEndian.Uint32(aux)&unix.TP_STATUS_VLAN_VALID != 0
		if tagged {
			tci, tpid := binary.NativeEndian.Uint16(aux[16:]), binary.NativeEndian.Uint16(aux[18:])
			frame = slices.Insert(frame, 12, append(be16(int(tpid)), be16(int(tci))...)...)
		}
		frames, tags = append(frames, frame), append(tags, tagged)
		if slices.Equal(frame, sentinel) {
			return frames, tags
		}
	}
}

// record is what a program saw of a packet in its struct __sk_buff.
type record struct{ Length, Size, Segments, _ uint32 }

// recorder has a record of each packet that has passed our filters.
type recorder struct {
	log  *ebpf.Map // of the last ones
	end  *ebpf.Map // how many there were
	read uint64
}

// record puts a program behind our filters that notes what it sees.
func (c *cable) record(tb testing.TB) *recorder {
	tb.Helper()
	makeMap := func(size, entries uint32) *ebpf.Map {
		made, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: entries})
		must(tb, err)
		tb.Cleanup(func() { must(tb, made.Close()) })
		return made
	}
	r := &recorder{log: makeMap(16, recordsKept), end: makeMap(8, 1)}
	const skbLen, skbSegs, skbSize = 0, 41 * 4, 44 * 4
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "record", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, r.end.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R1, asm.R7, 0, asm.DWord),
		asm.And.Imm(asm.R1, recordsKept-1),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, r.log.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R6, skbLen, asm.Word),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, skbSize, asm.Word),
		asm.StoreMem(asm.R0, 4, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, skbSegs, asm.Word),
		asm.StoreMem(asm.R0, 8, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R7, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R7, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}})
	must(tb, err)
	tb.Cleanup(func() { must(tb, program.Close()) })
	c.filter(tb, c.host, c.hostEnd, netlink.HANDLE_MIN_INGRESS, 5, program)
	c.filter(tb, c.host, c.hostEnd, netlink.HANDLE_MIN_EGRESS, 5, program)
	return r
}

// recordsKept is more than the packets that one frame becomes.
const recordsKept = 1 << 14

// next returns what was recorded since it was called last.
func (r *recorder) next(tb testing.TB) (records []record) {
	tb.Helper()
	var end uint64
	must(tb, r.end.Lookup(uint32(0), &end))
	for ; r.read < end; r.read++ {
		var one record
		must(tb, r.log.Lookup(uint32(r.read%recordsKept), &one))
		records = append(records, one)
	}
	return records
}
