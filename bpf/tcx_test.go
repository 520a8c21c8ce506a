// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// Words of struct __sk_buff in linux/bpf.h.
const (
	skbIfindex = 10
	skbCB      = 12
)

// runMarked runs a packet that has a mark on an interface, and returns how often it was
// counted and the mark it has then.
func (l *lab) runMarked(t *testing.T, program *ebpf.Program, ifindex, mark uint32) (counted uint64, after uint32) {
	t.Helper()
	before := l.counted(program).Interface.Packets
	in, out := gso{}.words(), gso{}.words()
	in[skbIfindex], in[skbCB] = ifindex, mark
	verdict, err := program.Run(&ebpf.RunOptions{
		Data: join(eth(ipv4Type), ipv4(udp, datagram(9))), Context: in, ContextOut: out,
	})
	if err != nil || verdict != unspecified {
		t.Fatalf("verdict %d, %v", int32(verdict), err)
	}
	return l.counted(program).Interface.Packets - before, out[skbCB]
}

// While a slot is handed over, the programs for clsact leave alone what those for tcx
// have counted on the same slot, in the same direction, and nothing else.
func TestHandover(t *testing.T) {
	l := newLab(t)
	zero := Slot{Generation: 1, Target: Target{Ifindex: loopback}} // what test runs of clsact programs count on
	l.taken[0] = zero
	must(t, l.maps.Routes.Put(uint32(loopback), uint32(0)))
	programs := map[*ebpf.Program]*ebpf.Program{l.Ingress: l.TCXIngress, l.Egress: l.TCXEgress}
	marks := map[*ebpf.Program]uint32{}
	for filter, tcx := range programs {
		_, marks[filter] = l.runMarked(t, tcx, loopback, 12345)
	}
	if a, b := marks[l.Ingress], marks[l.Egress]; a == b || a == 12345 || b == 12345 {
		t.Fatalf("marks are %#x and %#x", a, b)
	}
	check := func(filter *ebpf.Program, mark uint32, want uint64) {
		t.Helper()
		got, after := l.runMarked(t, filter, loopback, mark)
		if got != want || after != mark {
			t.Errorf("%v counted a packet with mark %#x %d times, want %d, and left mark %#x", filter, mark, got, want, after)
		}
	}
	for filter, mark := range marks {
		check(filter, mark, 1) // as an earlier user of the packet may have left it
	}
	zero.Handover = true
	must(t, l.Keep(zero))
	for filter, mark := range marks {
		check(filter, mark, 0)
		check(filter, mark+1, 1) // of another slot
		check(filter, 0, 1)
	}
	check(l.Ingress, marks[l.Egress], 1)
	check(l.Egress, marks[l.Ingress], 1)
	zero.Handover = false
	must(t, l.Keep(zero))
	for filter, mark := range marks {
		check(filter, mark, 1)
	}
	delete(l.taken, 0)
	must(t, l.maps.Slots.Delete(uint32(0)))
	for filter, mark := range marks {
		check(filter, mark, 1)
	}
}

// A packet of an interface that is not bound passes, without a mark, and is counted as
// uncounted.
func TestNoSlot(t *testing.T) {
	l := newLab(t)
	for _, s := range l.Slots() {
		must(t, l.Release(s))
	}
	for i, program := range []*ebpf.Program{l.TCXIngress, l.TCXEgress} {
		if counted, mark := l.runMarked(t, program, loopback, 12345); counted != 0 || mark != 12345 {
			t.Errorf("counted %d times, and the mark is %#x", counted, mark)
		}
		if diff := cmp.Diff(map[string]uint64{"no_row": 0, "no_slot": uint64(i + 1)}, l.Uncounted()); diff != "" {
			t.Errorf("uncounted (-want +got):\n%s", diff)
		}
	}
}

// What a tcx program cannot count it does not mark: a filter may have the row.
func TestNoMarkWithoutRow(t *testing.T) {
	l := newLab(t)
	must(t, l.maps.Routes.Put(uint32(loopback), uint32(5*slotsPerChunk)))
	if _, mark := l.runMarked(t, l.TCXIngress, loopback, 12345); mark != 12345 {
		t.Errorf("the mark is %#x", mark)
	}
	if diff := cmp.Diff(map[string]uint64{"no_row": 1, "no_slot": 0}, l.Uncounted()); diff != "" {
		t.Errorf("uncounted (-want +got):\n%s", diff)
	}
}

// routes returns what is bound.
func routes(t *testing.T, d *Datapath) map[uint32]uint32 {
	t.Helper()
	all := map[uint32]uint32{}
	var ifindex, index uint32
	each := d.maps.Routes.Iterate()
	for each.Next(&ifindex, &index) {
		all[ifindex] = index
	}
	must(t, each.Err())
	return all
}

// An interface is bound until its slot is released, also by a later process, and its
// next slot takes over from one that is not yet.
func TestBind(t *testing.T) {
	path := pinPath(t)
	first := load(t, Options{PinPath: path})
	a, b, c := take(t, first, 11), take(t, first, 11), take(t, first, 12)
	for _, s := range []Slot{a, a, b, c} {
		must(t, first.Bind(s))
	}
	must(t, first.Release(a))
	if diff := cmp.Diff(map[uint32]uint32{11: 2, 12: 3}, routes(t, first)); diff != "" {
		t.Errorf("bound (-want +got):\n%s", diff)
	}
	must(t, first.Close())
	second := load(t, Options{PinPath: path})
	must(t, second.Release(b))
	if diff := cmp.Diff(map[uint32]uint32{12: 3}, routes(t, second)); diff != "" {
		t.Errorf("bound (-want +got):\n%s", diff)
	}
	must(t, second.Close())
	must(t, Unpin(path))
}

// Waiting changes nothing, also where others make and free chunks.
func TestQuiesce(t *testing.T) {
	d := load(t, Options{})
	s, first := take(t, d, 1), chunkID(t, d, 0)
	d.row(s.Index, 0, receive).TcpSyn = 42
	for range 3 {
		must(t, d.Quiesce())
	}
	if chunkID(t, d, 0) != first {
		t.Error("the first chunk is another")
	}
	if rx, _, err := d.Read(s); err != nil || rx.TCPSYN != 42 {
		t.Errorf("read %+v, %v, want 42 SYN", rx, err)
	}
	must(t, d.Close())
	if err := d.Quiesce(); err == nil {
		t.Error("no error after Close")
	}
}
