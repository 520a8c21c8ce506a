// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Volume is an amount of packets.
type Volume struct{ Bytes, Packets uint64 }

// Counters is what one direction of a slot counted.
type Counters struct {
	Interface Volume // one packet per socket buffer

	// Cells are the wire numbers: IPv4 0 to 3, IPv6 4 to 7, neither 8; within a family
	// TCP, UDP, ICMP, other.
	Cells [9]Volume

	TCPSYN, TCPSYNACK, TCPRST, TCPFIN uint64
}

// Slot is the right to a row of counters. A slot that was released and taken again
// has another generation.
type Slot struct {
	Index      uint16
	Generation uint64 // CLOCK_BOOTTIME in ns when it was taken
	Ifindex    int
	OwnQdisc   bool // we made the interface's clsact qdisc
}

// flagOwnQdisc is Slot.OwnQdisc in the flags of a pinned slot.
const flagOwnQdisc = 1

// Take takes a slot for an interface, with all its counters at 0.
//
// Returns an error wrapping [ErrFull] if there is none.
func (d *Datapath) Take(ifindex int) (Slot, error) {
	for {
		s, missing, err := d.take(ifindex)
		if err != nil {
			return Slot{}, fmt.Errorf("take slot for ifindex %d: %w", ifindex, err)
		}
		if !missing {
			return s, nil
		}
		if err := d.makeChunk(s.Index / slotsPerChunk); err != nil {
			return Slot{}, fmt.Errorf("make rows for slot %d: %w", s.Index, err)
		}
	}
}

// take takes the lowest free slot, or says that its chunk is missing.
func (d *Datapath) take(ifindex int) (s Slot, missing bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return s, false, ErrReleased
	}
	var ok bool
	if s.Index, ok = d.free(); !ok {
		return s, false, fmt.Errorf("%w (bpf.max_interfaces %d)", ErrFull, d.maxSlots)
	}
	if d.chunks[s.Index/slotsPerChunk] == nil {
		return s, true, nil
	}
	for cpu := range d.cpus {
		*d.row(s.Index, cpu, receive) = classifierRow{}
		*d.row(s.Index, cpu, transmit) = classifierRow{}
	}
	s.Generation, s.Ifindex = d.generation(), ifindex
	if err := d.remember(s); err != nil {
		return s, false, err
	}
	d.use(s, 1)
	return s, false, nil
}

// Own notes that we made the qdisc of the slot's interface, over restarts.
func (d *Datapath) Own(s Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return ErrReleased
	}
	s.OwnQdisc = true
	return d.remember(s)
}

// Release gives a slot back. No filter may use it any more.
func (d *Datapath) Release(s Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return nil
	}
	delete(d.taken, s.Index)
	d.lowest = min(d.lowest, int(s.Index))
	d.use(s, -1)
	if err := d.maps.Slots.Delete(uint32(s.Index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("release slot %d: %w", s.Index, err)
	}
	return nil
}

// Slots returns the slots in use, in no order.
func (d *Datapath) Slots() []Slot {
	d.mu.RLock()
	defer d.mu.RUnlock()
	slots := make([]Slot, 0, len(d.taken))
	for _, s := range d.taken {
		slots = append(slots, s)
	}
	return slots
}

// Read returns what a slot has counted so far, as the container sees it. Each
// number only grows; numbers that are read while packets pass may be a packet
// apart.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) Read(s Slot) (rx, tx Counters, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.valid(s) {
		return rx, tx, ErrReleased
	}
	return d.sum(s.Index, receive), d.sum(s.Index, transmit), nil
}

// Uncounted returns the number of packets that found no row, and so stand nowhere.
func (d *Datapath) Uncounted() map[string]uint64 {
	return d.trouble(map[string]int{"no_row": 1})
}

// Unclassified returns the number of packets whose headers could not be read: they
// are counted, as "other" where the headers before the trouble do not say more.
func (d *Datapath) Unclassified() map[string]uint64 {
	return d.trouble(map[string]int{"truncated": 2, "malformed": 3, "too_many_headers": 4})
}

// trouble sums error cells over CPUs, by the numbers of enum trouble in
// classifier.c.
func (d *Datapath) trouble(cells map[string]int) map[string]uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	counts := make(map[string]uint64, len(cells))
	for cause, cell := range cells {
		counts[cause] = 0
		for cpu := range d.troubles {
			counts[cause] += atomic.LoadUint64(&d.troubles[cpu].Count[cell])
		}
	}
	return counts
}

// recall takes over the slots that an earlier process left in use.
func (d *Datapath) recall() error {
	slots, err := slotsIn(d.maps.Slots)
	if err != nil {
		return fmt.Errorf("read slots: %w", err)
	}
	for _, s := range slots {
		if err := d.makeChunk(s.Index / slotsPerChunk); err != nil {
			return fmt.Errorf("open rows of slot %d: %w", s.Index, err)
		}
		d.mu.Lock()
		d.taken[s.Index] = s
		d.newest = max(d.newest, s.Generation)
		d.use(s, 1)
		d.mu.Unlock()
	}
	return nil
}

// slotsIn reads the map of slots.
func slotsIn(m *ebpf.Map) ([]Slot, error) {
	var slots []Slot
	var index uint32
	var pinned classifierSlot
	all := m.Iterate()
	for all.Next(&index, &pinned) {
		slots = append(slots, Slot{
			Index:      uint16(index),
			Generation: pinned.Generation,
			Ifindex:    int(pinned.Ifindex),
			OwnQdisc:   pinned.Flags&flagOwnQdisc != 0,
		})
	}
	return slots, all.Err()
}

// valid says whether a slot is still the one that was taken.
func (d *Datapath) valid(s Slot) bool {
	now, ok := d.taken[s.Index]
	return ok && now.Generation == s.Generation
}

// free returns the lowest free slot, which keeps the chunks few.
func (d *Datapath) free() (uint16, bool) {
	if len(d.taken) >= d.maxSlots {
		return 0, false
	}
	for ; d.lowest <= MaxSlots; d.lowest++ {
		if _, ok := d.taken[uint16(d.lowest)]; !ok {
			return uint16(d.lowest), true
		}
	}
	return 0, false
}

// generation returns a number that no slot had since the host booted.
func (d *Datapath) generation() uint64 {
	var now unix.Timespec
	// Cannot fail: the clock is there since Linux 2.6.39 and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	d.newest = max(d.newest+1, uint64(now.Nano()))
	return d.newest
}

func (d *Datapath) remember(s Slot) error {
	pinned := classifierSlot{Generation: s.Generation, Ifindex: uint32(s.Ifindex)}
	if s.OwnQdisc {
		pinned.Flags |= flagOwnQdisc
	}
	if err := d.maps.Slots.Put(uint32(s.Index), pinned); err != nil {
		return fmt.Errorf("remember slot %d: %w", s.Index, err)
	}
	d.taken[s.Index] = s
	return nil
}
