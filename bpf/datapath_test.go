// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func TestSlots(t *testing.T) {
	d := load(t, Options{})
	a, b := take(t, d, 11), take(t, d, 12)
	if a.Index != 1 || b.Index != 2 || a.Generation >= b.Generation || a.Ifindex != 11 {
		t.Errorf("slots %+v and %+v, want the lowest, in order", a, b)
	}
	b.OwnQdisc = true
	must(t, d.Keep(b))
	slots := d.Slots()
	slices.SortFunc(slots, func(x, y Slot) int { return int(x.Index) - int(y.Index) })
	if diff := cmp.Diff([]Slot{a, b}, slots); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}

	must(t, d.Release(a))
	must(t, d.Release(a)) // nothing left to do
	again := take(t, d, 13)
	if again.Index != a.Index || again.Generation <= b.Generation {
		t.Errorf("slot %+v, want the one given back, of a new generation", again)
	}
	must(t, d.Release(a)) // not the one that was taken since
	if _, _, err := d.Read(again); err != nil {
		t.Errorf("read: %v", err)
	}
	if _, _, err := d.Read(a); !errors.Is(err, ErrReleased) {
		t.Errorf("read a slot that was released: %v, want ErrReleased", err)
	}
	if err := d.Keep(a); !errors.Is(err, ErrReleased) {
		t.Errorf("keep a note of a slot that was released: %v, want ErrReleased", err)
	}
	if err := d.Bind(a); !errors.Is(err, ErrReleased) {
		t.Errorf("bind a slot that was released: %v, want ErrReleased", err)
	}
}

func TestFull(t *testing.T) {
	d := load(t, Options{MaxSlots: 2})
	take(t, d, 1)
	b := take(t, d, 2)
	_, err := d.Take(Target{Ifindex: 3})
	if !errors.Is(err, ErrFull) {
		t.Fatalf("third slot of two: %v, want ErrFull", err)
	}
	if want := "take slot for ifindex 3: every slot is taken (bpf.max_interfaces 2)"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	must(t, d.Release(b))
	take(t, d, 3)
}

// A slot starts at 0 whatever its rows counted for another.
func TestTakeClears(t *testing.T) {
	d := load(t, Options{})
	keep := take(t, d, 1)
	s := take(t, d, 2)
	rows := d.cpus + 1 // with the carry rows
	for cpu := range rows {
		d.row(s.Index, cpu, receive).TcpSyn = uint64(cpu + 1)
		d.row(s.Index, cpu, transmit).TcpSyn = uint64(rows + cpu + 1)
	}
	rx, tx, err := d.Read(s)
	must(t, err)
	if n := uint64(rows); rx.TCPSYN != n*(n+1)/2 || tx.TCPSYN != n*(3*n+1)/2 {
		t.Errorf("sums over %d rows are %d and %d", n, rx.TCPSYN, tx.TCPSYN)
	}
	must(t, d.Release(s))
	rx, tx, err = d.Read(take(t, d, 3))
	must(t, err)
	if rx != (Counters{}) || tx != (Counters{}) {
		t.Errorf("a new slot starts at %+v %+v", rx, tx)
	}
	if rx, tx, _ = d.Read(keep); rx != (Counters{}) || tx != (Counters{}) {
		t.Errorf("the neighbour has %+v %+v", rx, tx)
	}
}

func TestReadAfterClose(t *testing.T) {
	d := load(t, Options{})
	s := take(t, d, 1)
	must(t, d.Close())
	if _, _, err := d.Read(s); !errors.Is(err, ErrReleased) {
		t.Errorf("read: %v, want ErrReleased", err)
	}
	if _, err := d.Take(Target{Ifindex: 2}); err == nil {
		t.Error("a slot was taken of a datapath that is closed")
	}
	d.Uncounted()
}

// chunkID returns the id of the map that holds a chunk's rows, 0 if there is none.
func chunkID(t *testing.T, d *Datapath, index uint32) ebpf.MapID {
	t.Helper()
	var id uint32
	err := d.maps.Chunks.Lookup(index, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0
	}
	must(t, err)
	return ebpf.MapID(id)
}

func gone(id ebpf.MapID) bool {
	m, err := ebpf.NewMapFromID(id)
	if err == nil {
		m.Close()
	}
	return errors.Is(err, os.ErrNotExist)
}

// mappings counts the maps that are mapped into the process.
func mappings(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	must(t, err)
	return strings.Count(string(maps), "anon_inode:bpf-map")
}

// Memory follows the slots in use, with the first chunk always and one more in time.
func TestChunks(t *testing.T) {
	d := load(t, Options{})
	first, before := chunkID(t, d, 0), mappings(t)
	if first == 0 {
		t.Error("the first chunk is not there from the start")
	}
	var slots []Slot
	takeUpTo := func(n int) {
		for len(slots) < n {
			slots = append(slots, take(t, d, len(slots)))
		}
		d.background.Wait()
	}
	there := func(want ...bool) {
		t.Helper()
		for index, want := range want {
			if got := chunkID(t, d, uint32(index)) != 0; got != want {
				t.Errorf("with %d slots: chunk %d is there: %v", len(d.Slots()), index, got)
			}
		}
	}
	takeUpTo(slotsPerChunk / 2)
	there(true, false)
	takeUpTo(slotsPerChunk/2 + 1) // more than half of chunk 0, which has no slot 0 to take
	there(true, true, false)
	takeUpTo(slotsPerChunk + slotsPerChunk/2 - 1)
	there(true, true, false)
	takeUpTo(2*slotsPerChunk + 1)
	there(true, true, true, false)
	if n := mappings(t); n != before+2 {
		t.Errorf("%d mappings for two more chunks", n-before)
	}

	second := chunkID(t, d, 1)
	for _, s := range slots[slotsPerChunk-1:] { // 64 on
		must(t, d.Release(s))
	}
	d.background.Wait()
	there(true, true, false) // the second as the one in time
	for _, s := range slots[:slotsPerChunk-1] {
		must(t, d.Release(s))
	}
	d.background.Wait()
	there(true, false, false)
	if chunkID(t, d, 0) != first || mappings(t) != before {
		t.Errorf("without slots %d mappings are left", mappings(t)-before)
	}
	eventually(t, func() string {
		if !gone(second) {
			return "the second chunk's map lives on"
		}
		return ""
	})
}

// Slots are taken and released from everywhere at once, across chunks.
func TestTakeConcurrently(t *testing.T) {
	d := load(t, Options{})
	var g errgroup.Group
	for worker := range 8 {
		g.Go(func() error {
			for round := range 20 {
				var mine []Slot
				for i := range 20 {
					s, err := d.Take(Target{Ifindex: 1000*worker + i})
					if err != nil {
						return err
					}
					mine = append(mine, s)
				}
				for _, s := range mine {
					if _, _, err := d.Read(s); err != nil {
						return fmt.Errorf("round %d: read slot %d: %w", round, s.Index, err)
					}
					if err := d.Release(s); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	must(t, g.Wait())
	d.background.Wait()
	if n := len(d.Slots()); n != 0 {
		t.Errorf("%d slots are still taken", n)
	}
	if chunkID(t, d, 0) == 0 || chunkID(t, d, 1) != 0 || chunkID(t, d, 2) != 0 {
		t.Error("chunks are not as before")
	}
}

// After Close nothing is left: no descriptor, no mapping, no map, no program.
func TestCloseLeavesNothing(t *testing.T) {
	d := load(t, Options{})
	descriptors, before := openMaps(t), mappings(t)
	take(t, d, 1)
	info, err := d.Ingress.Info()
	must(t, err)
	program, _ := info.ID()
	chunk := chunkID(t, d, 0)
	if n := openMaps(t); n != descriptors {
		t.Errorf("%d descriptors more for a chunk", n-descriptors)
	}
	must(t, d.Close())
	must(t, d.Close())
	if n := mappings(t); n >= before {
		t.Errorf("%d mappings after Close, %d before the chunk's", n, before)
	}
	if n := openMaps(t); n >= descriptors {
		t.Errorf("%d descriptors after Close, %d before", n, descriptors)
	}
	eventually(t, func() string {
		p, err := ebpf.NewProgramFromID(program)
		if err == nil {
			p.Close()
		}
		if !errors.Is(err, os.ErrNotExist) || !gone(chunk) {
			return "the program or the chunk lives on"
		}
		return ""
	})
}

// openMaps counts descriptors of maps and programs.
func openMaps(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	n := 0
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "anon_inode:bpf-") {
			n++
		}
	}
	return n
}

// Packets that two CPUs count at once are all counted.
func TestTwoCPUs(t *testing.T) {
	l := newLab(t)
	var cpus unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &cpus))
	const packets = 50_000
	packet := join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 0, 0)))
	odd := join(eth(ipv6Type), ipv6(hopByHop, extension(udp, 0, datagram(9))))
	var g errgroup.Group
	threads := 0
	for cpu := 0; cpu < l.cpus && threads < 2; cpu++ {
		if !cpus.IsSet(cpu) {
			continue
		}
		threads++
		g.Go(func() error {
			// Never unlocked: the thread ends with the goroutine.
			runtime.LockOSThread()
			var one unix.CPUSet
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return err
			}
			for range packets {
				if _, err := l.Ingress.Run(&ebpf.RunOptions{Data: packet}); err != nil {
					return err
				}
				if _, err := l.Ingress.Run(&ebpf.RunOptions{Data: odd}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, g.Wait())
	n := uint64(threads * packets)
	var want Counters
	want.Interface.Packets, want.Interface.Bytes = 2*n, n*uint64(len(packet)+len(odd))
	want.Cells[tcp4].Packets, want.Cells[tcp4].Bytes = n, n*uint64(len(packet))
	want.Cells[udp6].Packets, want.Cells[udp6].Bytes = n, n*uint64(len(odd))
	want.TCPSYN = n
	if diff := cmp.Diff(want, l.counted(l.Ingress)); diff != "" {
		t.Errorf("%d threads (-want +got):\n%s", threads, diff)
	}
}
