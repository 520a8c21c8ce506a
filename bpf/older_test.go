// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

// former is what a daemon of an older layout has in the kernel, by its own classifiers.
type former struct {
	*ebpf.Collection
	layout string
	inner  *ebpf.MapSpec
	chunks map[uint16]chunk
	rows   int // of a slot, per direction
}

// noted is how many bytes of a slot the older layouts have.
var noted = map[string]uint32{"v1": 16, "v2": 320}

func newFormer(t *testing.T, path, layout string) *former {
	t.Helper()
	must(t, ensureBPFFS(path))
	folder := filepath.Join(path, layout)
	must(t, os.MkdirAll(folder, 0o700))
	spec, err := ebpf.LoadCollectionSpec("testdata/classifier_" + layout + "_bpfel.o")
	must(t, err)
	if size := spec.Maps["slots"].ValueSize; size != noted[layout] {
		t.Fatalf("slots of %d bytes, want %d", size, noted[layout])
	}
	o := &former{layout: layout, inner: spec.Maps["chunks"].InnerMap, chunks: map[uint16]chunk{}}
	cpus, err := ebpf.PossibleCPU()
	must(t, err)
	if o.rows = cpus; layout != "v1" {
		o.rows++ // the carry row
	}
	spec.Maps["troubles"].MaxEntries = uint32(cpus)
	o.inner.MaxEntries = uint32(slotsPerChunk * directions * o.rows)
	o.Collection, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: folder}})
	must(t, err)
	t.Cleanup(o.close)
	return o
}

func (o *former) close() {
	for _, rows := range o.chunks {
		_ = unmap(rows)
	}
	o.chunks = nil
	o.Close()
}

// take takes a slot as that layout did, and makes its rows.
func (o *former) take(t *testing.T, s Slot) Slot {
	t.Helper()
	index := chunkOf(s.Index)
	if o.chunks[index] == nil {
		rows, err := ebpf.NewMap(o.inner)
		must(t, err)
		defer rows.Close()
		must(t, o.Maps["chunks"].Put(uint32(index), rows))
		o.chunks[index], err = mapped[classifierRow](rows)
		must(t, err)
	}
	pinned, err := s.pinned()
	must(t, err)
	value := unsafe.Slice((*byte)(unsafe.Pointer(pinned)), unsafe.Sizeof(*pinned))[:noted[o.layout]]
	must(t, o.Maps["slots"].Put(uint32(s.Index), value))
	return s
}

// total is what a slot is to have counted.
type total struct{ RX, TX Counters }

// count makes a slot have counted something, on every CPU.
func (o *former) count(s Slot, seed uint64) total {
	r := rand.New(rand.NewPCG(seed, 0))
	var sums [directions]words
	for direction := range directions {
		for cpu := range o.rows {
			row := (*words)(unsafe.Pointer(o.chunks[chunkOf(s.Index)].row(s.Index, cpu, direction)))
			for w := range row {
				row[w] = r.Uint64N(1 << 50)
				sums[direction][w] += row[w]
			}
		}
	}
	return total{
		counters((*classifierRow)(unsafe.Pointer(&sums[receive]))),
		counters((*classifierRow)(unsafe.Pointer(&sums[transmit]))),
	}
}

// slots are those of a state, in several chunks.
func (o *former) slots() []Slot {
	var slots []Slot
	for i, index := range []uint16{3, 5, 70, 700} {
		s := Slot{Index: index, Generation: uint64(1000 + i), Target: Target{Ifindex: 50 + i}, Note: Note{OwnQdisc: i == 2}}
		if o.layout != "v1" && i > 0 {
			s.NetNS, s.Container, s.Interface = uint64(i), "former", "eth0"
			s.SeededReceive, s.SeededTransmit = Volume{uint64(10 * i), 1}, Volume{1 << 63, 2}
		}
		slots = append(slots, s)
	}
	return slots
}

// state makes a state. What each slot has counted is by generation.
func (o *former) state(t *testing.T) map[uint64]total {
	t.Helper()
	totals := map[uint64]total{}
	for i, s := range o.slots() {
		totals[s.Generation] = o.count(o.take(t, s), uint64(i))
	}
	return totals
}

// eachFormer runs a test on what each older layout left.
func eachFormer(t *testing.T, test func(t *testing.T, path string, old *former)) {
	for _, layout := range olderLayouts() {
		if noted[layout] == 0 {
			continue // one that only tests have
		}
		t.Run(layout, func(t *testing.T) {
			path := pinPath(t)
			test(t, path, newFormer(t, path, layout))
		})
	}
}

func totals(t *testing.T, d *Datapath) map[uint64]total {
	t.Helper()
	all := map[uint64]total{}
	for _, s := range d.Slots() {
		rx, tx, err := d.Read(s)
		must(t, err)
		all[s.Generation] = total{rx, tx}
	}
	return all
}

func inherit(t *testing.T, d *Datapath) map[uint64]Slot {
	t.Helper()
	heirs := map[uint64]Slot{}
	for _, o := range d.Old() {
		s, err := d.Inherit(o)
		must(t, err)
		heirs[s.Generation] = s
	}
	return heirs
}

func TestUpgrade(t *testing.T) { eachFormer(t, testUpgrade) }

func testUpgrade(t *testing.T, path string, old *former) {
	want, slots := old.state(t), old.slots()
	// The classifiers themselves count on slot 0 in a test run.
	zero := old.take(t, Slot{Generation: 999, Target: Target{Ifindex: 49}})
	slots = append(slots, zero)
	packet := join(eth(ipv4Type), ipv4(udp, datagram(9)))
	for range 3 {
		_, err := old.Programs["nettally_ingress"].Run(&ebpf.RunOptions{Data: packet})
		must(t, err)
	}
	var counted total
	counted.TX.Interface = Volume{uint64(3 * len(packet)), 3}
	counted.TX.Cells[udp4] = counted.TX.Interface
	want[zero.Generation] = counted
	old.close()

	pinned, err := PinnedSlots(path)
	must(t, err)
	d := load(t, Options{PinPath: path, MaxSlots: 2})
	if n := len(d.Slots()); n != 0 {
		t.Errorf("%d slots of ours before any is inherited", n)
	}
	heirs := inherit(t, d)
	if diff := cmp.Diff(heirs, inherit(t, d)); diff != "" {
		t.Errorf("asked again, others inherit (-first +again):\n%s", diff)
	}
	slices.SortFunc(pinned, func(a, b Slot) int { return int(a.Index) - int(b.Index) })
	slices.SortFunc(slots, func(a, b Slot) int { return int(a.Index) - int(b.Index) })
	if diff := cmp.Diff(slots, pinned); diff != "" {
		t.Errorf("slots without loading (-want +got):\n%s", diff)
	}
	for _, s := range slots {
		h := heirs[s.Generation]
		if s.Index == 0 { // belongs to nobody now
			s.Index = h.Index
		}
		if h != s || h.Index == 0 { // with what was seeded, and nothing mended
			t.Errorf("slot %+v inherited %+v", h, s)
		}
	}
	for generation, has := range totals(t, d) {
		if has != (total{}) {
			t.Errorf("slot of generation %d has %+v before it is settled", generation, has)
		}
	}
	must(t, d.Settle())
	must(t, d.Settle()) // nothing left to do
	if diff := cmp.Diff(want, totals(t, d)); diff != "" {
		t.Errorf("counts (-before +after):\n%s", diff)
	}
	if len(d.Old()) != 0 || exists(filepath.Join(path, old.layout)) {
		t.Errorf("left of %s: %+v", old.layout, d.Old())
	}
	must(t, d.Close())
	again := load(t, Options{PinPath: path})
	if diff := cmp.Diff(want, totals(t, again)); diff != "" {
		t.Errorf("counts in the next process (-before +after):\n%s", diff)
	}
	for _, s := range again.Slots() {
		must(t, again.Release(s))
	}
	if s := take(t, again, 1); s.Index != 1 || totals(t, again)[s.Generation] != (total{}) {
		t.Errorf("slot %+v after all were released starts at %+v", s, totals(t, again)[s.Generation])
	}
	must(t, again.Close())
	must(t, Unpin(path))
}

// settleAll settles all slots and removes no pins.
func settleAll(t *testing.T, d *Datapath) {
	t.Helper()
	for _, s := range d.older[0].left {
		must(t, d.settle(d.older[0], nil, s))
	}
}

// cutShort is what a process may have done of an upgrade when it ends.
var cutShort = map[string]func(t *testing.T, d *Datapath){
	"nothing":   func(*testing.T, *Datapath) {},
	"inherited": func(t *testing.T, d *Datapath) { inherit(t, d) },
	"inherited one": func(t *testing.T, d *Datapath) {
		_, err := d.Inherit(d.Old()[0])
		must(t, err)
	},
	"settled one": func(t *testing.T, d *Datapath) {
		_, err := d.Inherit(d.Old()[0])
		must(t, err)
		must(t, d.Settle())
		if n := len(d.Old()); n != 3 {
			t.Errorf("%d old slots are left, want the 3 that nobody inherited", n)
		}
	},
	"moved, not forgotten": func(t *testing.T, d *Datapath) {
		inherit(t, d)
		for _, s := range d.older[0].left {
			to, index := d.inheritor(nil, s.Generation)
			d.older[0].moveTo(to, index, s)
		}
	},
	"moved, one forgotten": func(t *testing.T, d *Datapath) {
		inherit(t, d)
		for _, s := range d.older[0].left {
			must(t, d.settle(d.older[0], nil, s))
			break
		}
	},
	"all forgotten": func(t *testing.T, d *Datapath) {
		inherit(t, d)
		settleAll(t, d)
	},
	"chunks removed": func(t *testing.T, d *Datapath) {
		inherit(t, d)
		settleAll(t, d)
		must(t, os.Remove(filepath.Join(d.older[0].folder, "chunks")))
	},
	"chunks and slots removed": func(t *testing.T, d *Datapath) {
		inherit(t, d)
		settleAll(t, d)
		must(t, os.Remove(filepath.Join(d.older[0].folder, "chunks")))
		must(t, os.Remove(filepath.Join(d.older[0].folder, "slots")))
	},
	"all": func(t *testing.T, d *Datapath) {
		inherit(t, d)
		must(t, d.Settle())
	},
}

// However little or much of an upgrade a process has done when it ends, the next one
// has every count once.
func TestUpgradeCutShort(t *testing.T) {
	for name, done := range cutShort {
		t.Run(name, func(t *testing.T) {
			eachFormer(t, func(t *testing.T, path string, old *former) { testCutShort(t, path, old, done) })
		})
	}
}

func testCutShort(t *testing.T, path string, old *former, done func(*testing.T, *Datapath)) {
	want := old.state(t)
	old.close()

	first := load(t, Options{PinPath: path})
	done(t, first)
	// Meanwhile the slots that have inherited count.
	for _, s := range first.Slots() {
		first.row(s.Index, 0, transmit).TcpSyn += s.Generation
		sum := want[s.Generation]
		sum.TX.TCPSYN += s.Generation
		want[s.Generation] = sum
	}
	must(t, first.Close())
	pinned, err := PinnedSlots(path)
	if err != nil || len(pinned) != len(want) {
		t.Errorf("%d slots without loading, %v, want %d", len(pinned), err, len(want))
	}

	second := load(t, Options{PinPath: path})
	inherit(t, second)
	must(t, second.Settle())
	if diff := cmp.Diff(want, totals(t, second)); diff != "" {
		t.Errorf("counts (-before +after):\n%s", diff)
	}
	if exists(filepath.Join(path, old.layout)) {
		t.Error("pins of the older layout are left")
	}
	must(t, second.Close())
	must(t, Unpin(path))
}

// An upgrade that was cut short may be followed by one to the layout after that: what
// the first layout counted gets there through the second.
func TestUpgradeOverTwo(t *testing.T) {
	for name, done := range cutShort {
		t.Run(name, func(t *testing.T) {
			path := pinPath(t)
			old := newFormer(t, path, "v1")
			want := old.state(t)
			old.close()
			first := load(t, Options{PinPath: path})
			done(t, first)
			for _, s := range first.Slots() {
				s.Container = "c"
				must(t, first.Keep(s))
				first.row(s.Index, 0, transmit).TcpSyn += s.Generation
				sum := want[s.Generation]
				sum.TX.TCPSYN += s.Generation
				want[s.Generation] = sum
			}
			inherited := totals(t, first)
			must(t, first.Close())
			must(t, os.Rename(filepath.Join(path, Layout), filepath.Join(path, "between")))

			second := load(t, Options{PinPath: path})
			for _, o := range second.older {
				must(t, o.close())
			}
			second.older = nil
			must(t, second.openOlder(path, []string{"v1", "between"}))
			for generation, s := range inherit(t, second) {
				if _, ok := inherited[generation]; ok != (s.Container == "c") {
					t.Errorf("slot %+v has not the note of the last layout that had it", s)
				}
			}
			must(t, second.Settle())
			if diff := cmp.Diff(want, totals(t, second)); diff != "" {
				t.Errorf("counts (-before +after):\n%s", diff)
			}
			must(t, second.Close())
			if exists(filepath.Join(path, "v1")) || exists(filepath.Join(path, "between")) {
				t.Error("pins of older layouts are left")
			}
			must(t, Unpin(path))
		})
	}
}

func TestInheritConcurrently(t *testing.T) { eachFormer(t, testInheritConcurrently) }

func testInheritConcurrently(t *testing.T, path string, old *former) {
	want := old.state(t)
	old.close()
	d := load(t, Options{PinPath: path})
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for _, o := range d.Old() {
				if _, err := d.Inherit(o); err != nil {
					return err
				}
			}
			return d.Settle()
		})
	}
	must(t, g.Wait())
	if diff := cmp.Diff(want, totals(t, d)); diff != "" {
		t.Errorf("counts (-before +after):\n%s", diff)
	}
	must(t, d.Close())
	must(t, Unpin(path))
}

// Slots that others took meanwhile keep their index.
func TestInheritBesideOthers(t *testing.T) { eachFormer(t, testInheritBesideOthers) }

func testInheritBesideOthers(t *testing.T, path string, old *former) {
	want := old.state(t)
	old.close()
	d := load(t, Options{PinPath: path})
	for range 4 { // slot 3, which v1 had too
		want[take(t, d, 9).Generation] = total{}
	}
	inherit(t, d)
	must(t, d.Settle())
	if diff := cmp.Diff(want, totals(t, d)); diff != "" {
		t.Errorf("counts (-before +after):\n%s", diff)
	}
	must(t, d.Close())
	must(t, Unpin(path))
}
