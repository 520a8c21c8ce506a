// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
)

const slotsPerChunk = int(classifierCapacitySLOTS_PER_CHUNK)

// chunkOf returns the index of the chunk that has a slot.
func chunkOf(slot uint16) uint16 { return slot / uint16(slotsPerChunk) }

// The directions index the two results of [Datapath.Read], and the rows in a chunk.
const (
	receive    = int(classifierDirectionRECEIVE)
	transmit   = int(classifierDirectionTRANSMIT)
	directions = int(classifierDirectionDIRECTIONS)
)

// chunk is the mapped rows of 64 slots: by CPU, then slot, then direction. Behind those
// of the last CPU are carry rows, which no program counts on: what an older layout had
// counted.
type chunk []classifierRow

// row returns the row of a slot for one CPU and direction, laid out as the classifiers
// have it.
func (c chunk) row(index uint16, cpu, direction int) *classifierRow {
	return &c[(cpu*slotsPerChunk+int(index)%slotsPerChunk)*directions+direction]
}

// cpus is how many rows a slot has per direction.
func (c chunk) cpus() int { return len(c) / (slotsPerChunk * directions) }

// words is a row as the numbers it consists of.
type words [unsafe.Sizeof(classifierRow{}) / 8]uint64

// sum adds the rows of all CPUs. Each number is read whole: the kernel adds to
// them meanwhile.
func (c chunk) sum(index uint16, direction int) (total classifierRow) {
	to := (*words)(unsafe.Pointer(&total))
	for cpu := range c.cpus() {
		from := (*words)(unsafe.Pointer(c.row(index, cpu, direction)))
		for w := range from {
			to[w] += atomic.LoadUint64(&from[w])
		}
	}
	return total
}

// carry puts what was counted elsewhere into a slot's carry row.
func (c chunk) carry(index uint16, direction int, total classifierRow) {
	*c.row(index, c.cpus()-1, direction) = total
}

// clear sets a slot's counters to 0.
func (c chunk) clear(index uint16) {
	for cpu := range c.cpus() {
		*c.row(index, cpu, receive) = classifierRow{}
		*c.row(index, cpu, transmit) = classifierRow{}
	}
}

// wanted says whether a chunk is to be there: the first always is, so that a lone
// container's restart costs nothing, and one more than is needed when that is half full.
func (d *Datapath) wanted(index int) bool {
	return index == 0 || d.used[index] > 0 || d.used[index-1] > slotsPerChunk/2
}

// use notes that slots of a chunk were taken or released, and has chunks made or freed
// behind the caller's back where that is due.
func (d *Datapath) use(s Slot, count int) {
	index := int(chunkOf(s.Index))
	d.used[index] += count
	if s.Sockets {
		d.connections += count
	}
	for i := index; i <= index+1 && i < len(d.used) && !d.closed; i++ {
		if d.wanted(i) != (d.chunks[uint16(i)] != nil) {
			d.background.Go(func() { d.adjust(uint16(i)) })
		}
	}
}

// adjust makes or frees a chunk, as is due by then, until it is as it is wanted: that may
// change while a chunk is made. A chunk that can't be made here is made by Take, which then
// says why not.
func (d *Datapath) adjust(index uint16) {
	for {
		d.mu.RLock()
		wanted, there := d.wanted(int(index)), d.chunks[index] != nil
		d.mu.RUnlock()
		switch {
		case wanted == there:
			return
		case !wanted:
			d.freeChunk(index)
		case d.makeChunk(index) != nil:
			return
		}
	}
}

// makeChunk maps the rows of a chunk, which it makes if the kernel has none.
func (d *Datapath) makeChunk(index uint16) error {
	d.making.Lock()
	defer d.making.Unlock()
	if d.has(index) {
		return nil
	}
	var made *ebpf.Map
	err := d.maps.Chunks.Lookup(uint32(index), &made)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		if made, err = ebpf.NewMap(d.chunk); err == nil {
			err = d.maps.Chunks.Put(uint32(index), made)
		}
	}
	if made != nil {
		defer made.Close() // the outer map and our mapping hold it
	}
	if err != nil {
		return err
	}
	rows, err := mapped[classifierRow](made)
	if err != nil {
		return fmt.Errorf("map rows: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.chunks[index] = rows
	return nil
}

func (d *Datapath) has(index uint16) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.chunks[index] != nil
}

// freeChunk frees a chunk that is not wanted.
func (d *Datapath) freeChunk(index uint16) {
	d.making.Lock()
	defer d.making.Unlock()
	d.mu.Lock()
	rows := d.chunks[index]
	if rows == nil || d.wanted(int(index)) {
		d.mu.Unlock()
		return
	}
	delete(d.chunks, index)
	d.mu.Unlock()
	// Neither fails for a mapping and a map of our own; if one did, the memory would
	// stay until the process or the pin ends.
	_ = unmap(rows)
	_ = d.maps.Chunks.Delete(uint32(index))
}

// row returns one of a slot's rows.
func (d *Datapath) row(index uint16, cpu, direction int) *classifierRow {
	return d.chunks[chunkOf(index)].row(index, cpu, direction)
}

// sum returns what a slot has counted in one direction.
func (d *Datapath) sum(index uint16, direction int) Counters {
	total := d.chunks[chunkOf(index)].sum(index, direction)
	return counters(&total)
}
