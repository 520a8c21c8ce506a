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
	c := newCable(t, true)
	f := &forging{cable: c, t: t, records: c.record(t), seen: map[string]int{}}
	f.in, f.out = rawSocket(t, c.container, c.end), rawSocket(t, c.host, c.hostEnd)
	f.tap = c.tap(t)
	m := newMutator(seed)
	for i := range frames {
		frame, header := m.forge()
		if problem := f.receive(frame, header); problem != "" {
			t.Fatalf("seed %d, frame %d, received: %s\n%+v %.300x", seed, i, problem, header, frame)
		}
		if problem := f.transmit(frame, header); problem != "" {
			t.Fatalf("seed %d, frame %d, sent: %s\n%+v %.300x", seed, i, problem, header, frame)
		}
	}
	t.Logf("%d frames: %v", frames, f.seen)
	for _, kind := range []string{"refused", "packets", "super-packets", "implausible"} {
		if f.seen[kind] == 0 {
			t.Errorf("none of %d frames was %s", frames, kind)
		}
	}
}

// onOneCPU keeps a test on its thread, and that on one CPU: what it sends is received in
// that order.
func onOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &all))
	for cpu := 0; ; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	must(t, unix.SchedSetaffinity(0, &one))
	t.Cleanup(func() {
		must(t, unix.SchedSetaffinity(0, &all))
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
		frame = append(frame, make([]byte, m.IntN(65_000-len(frame)))...)
	}
	if header.GSOType&^gsoECN == gsoUDP { // cut up by the kernel, whose queue has room for 1000
		frame = frame[:min(len(frame), max(100, 300*int(header.GSOSize)))]
	}
	return frame, header
}

// fit returns a packet of a transport, behind any headers, and a header that fits it.
func (m *mutator) fit() ([]byte, vnetHeader) {
	payload := m.IntN(1 << m.IntN(16))
	number, transport := byte(tcp), segment(ackFlag, m.IntN(11), payload)
	header := vnetHeader{Flags: needsChecksum, GSOType: gsoTCPv4, GSOSize: uint16(1 + m.IntN(1<<m.IntN(15))), Offset: 16}
	if m.IntN(2) == 0 {
		number, transport = udp, datagram(payload)
		header.GSOType, header.Offset = []uint8{gsoUDP, gsoUDPL4}[m.IntN(2)], 6
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
	t            *testing.T
	in, out, tap int
	records      *recorder
	seen         map[string]int
	last         uint32 // sentinel
}

// sentinel sends a frame of a type for experiments behind the others, and returns it.
func (f *forging) sentinel() []byte {
	f.t.Helper()
	f.last++
	frame := binary.BigEndian.AppendUint32(join(eth(0x88b5), make([]byte, 42)), f.last)
	if err := (vnetHeader{}).send(f.in, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
		f.t.Fatal(err)
	}
	return frame
}

// receive sends a frame out of the host, where our hook sees it as it was made.
func (f *forging) receive(frame []byte, header vnetHeader) string {
	rx, _ := f.read(f.t)
	troubles, before := f.troubles(), linkStatistics(f.t, f.cable)
	sent := header.send(f.out, frame)
	records := f.records.next(f.t)
	if len(records) > 1 || len(records) == 0 && sent == nil {
		return fmt.Sprintf("seen as %d packets (%v)", len(records), sent)
	}
	frames := [][]byte{frame}[:len(records)]
	now, _ := f.read(f.t)
	if problem := f.compare(frames, records, nil, minus(now, rx), troubles); problem != "" || sent != nil {
		return problem
	}
	// What is cut up behind our hook, or dropped, has other lengths there.
	after := linkStatistics(f.t, f.cable)
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
	_, tx := f.read(f.t)
	troubles, before := f.troubles(), linkStatistics(f.t, f.cable)
	if header.send(f.in, frame) != nil {
		f.seen["refused"]++
	}
	frames, tags := f.captured()
	var records []record
	eventually(f.t, func() string {
		if records = append(records, f.records.next(f.t)...); len(records) < len(frames) {
			return fmt.Sprintf("%d packets of %d at the hook", len(records), len(frames))
		}
		return ""
	})
	_, now := f.read(f.t)
	grown := minus(now, tx)
	if problem := f.compare(frames, records, tags, grown, troubles); problem != "" {
		return problem
	}
	after := linkStatistics(f.t, f.cable)
	bytes := grown.Interface.Bytes
	for _, tagged := range tags { // the link counts the tag, which the kernel takes out then
		bytes += 4 * one(tagged)
	}
	if p, b := after.RxPackets-before.RxPackets, after.RxBytes-before.RxBytes; p != grown.Interface.Packets || b != bytes {
		return fmt.Sprintf("the link says %d packets and %d bytes, we %d and %d", p, b, grown.Interface.Packets, bytes)
	}
	return ""
}

func linkStatistics(t *testing.T, c *cable) *netlink.LinkStatistics {
	t.Helper()
	return link(t, c.host, "veth0").Attrs().Statistics
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
func (c *cable) tap(t *testing.T) int {
	t.Helper()
	fd := -1
	must(t, c.host.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{
		Protocol: binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL)), Ifindex: c.hostEnd.Attrs().Index,
	}))
	return fd
}

// captured returns the frames up to a sentinel, and which of them had a tag that the kernel
// has taken out: they have it again. Where the kernel has dropped the sentinel, another one
// follows.
func (f *forging) captured() (frames [][]byte, tags []bool) {
	f.t.Helper()
	buffer, control := make([]byte, 1<<17), make([]byte, 128)
	sentinel := f.sentinel()
	for {
		n, oob, _, from, err := unix.Recvmsg(f.tap, buffer, control, 0)
		if errors.Is(err, unix.EAGAIN) {
			sentinel = f.sentinel()
			continue
		}
		must(f.t, err)
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		frame := slices.Clone(buffer[:n])
		messages, err := unix.ParseSocketControlMessage(control[:oob])
		must(f.t, err)
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
func (c *cable) record(t *testing.T) *recorder {
	t.Helper()
	makeMap := func(size, entries uint32) *ebpf.Map {
		made, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: entries})
		must(t, err)
		t.Cleanup(func() { must(t, made.Close()) })
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
	must(t, err)
	t.Cleanup(func() { must(t, program.Close()) })
	c.filter(t, c.host, c.hostEnd, netlink.HANDLE_MIN_INGRESS, 5, program)
	c.filter(t, c.host, c.hostEnd, netlink.HANDLE_MIN_EGRESS, 5, program)
	return r
}

// recordsKept is more than the packets that one frame becomes.
const recordsKept = 1 << 14

// next returns what was recorded since it was called last.
func (r *recorder) next(t *testing.T) (records []record) {
	t.Helper()
	var end uint64
	must(t, r.end.Lookup(uint32(0), &end))
	for ; r.read < end; r.read++ {
		var one record
		must(t, r.log.Lookup(uint32(r.read%recordsKept), &one))
		records = append(records, one)
	}
	return records
}
