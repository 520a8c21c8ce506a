// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Take takes a slot, with all its counters at 0.
//
// Returns an error wrapping [ErrFull] if there is none.
func (d *Datapath) Take(t Target) (Slot, error) {
	s, err := d.place(Slot{Target: t}, d.takeLowest)
	if err != nil {
		return Slot{}, fmt.Errorf("take slot for %s: %w", t, err)
	}
	return s, nil
}

// place puts an attachment into the free slot that choose returns, with all its
// counters at 0, and makes the rows for it if they are missing.
func (d *Datapath) place(s Slot, choose func(*Slot) error) (Slot, error) {
	for {
		placed, err := d.tryPlace(s, choose)
		if !errors.Is(err, errNoRows) {
			return placed, err
		}
		chunk := chunkOf(placed.Index)
		if err := d.makeChunk(chunk); err != nil {
			return Slot{}, fmt.Errorf("make rows for slot %d: %w", placed.Index, err)
		}
		// A lower slot may be free by now, and nobody else want the chunk.
		defer d.adjust(chunk)
	}
}

// errNoRows says that the chunk of a slot is missing.
var errNoRows = errors.New("no rows")

func (d *Datapath) tryPlace(s Slot, choose func(*Slot) error) (Slot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return s, ErrReleased
	}
	if err := choose(&s); err != nil {
		return s, err
	}
	rows := d.chunks[chunkOf(s.Index)]
	if rows == nil {
		return s, errNoRows
	}
	rows.clear(s.Index)
	if err := d.remember(s); err != nil {
		return s, err
	}
	d.use(s, 1)
	return s, nil
}

// takeLowest chooses the lowest slot, in a new generation.
func (d *Datapath) takeLowest(s *Slot) error {
	var ok bool
	if s.Index, ok = d.free(); !ok || d.count(s.Sockets) >= d.most(s.Sockets) {
		return fmt.Errorf("%w (bpf.max_interfaces %d)", ErrFull, d.maxSlots)
	}
	s.Generation = d.generation()
	return nil
}

// count returns how many slots are taken for connections, or for packets: neither keeps the other
// from its own.
func (d *Datapath) count(sockets bool) int {
	if sockets {
		return d.connections
	}
	return len(d.taken) - d.connections
}

// most returns how many may be.
func (d *Datapath) most(sockets bool) int {
	if sockets {
		return min(d.maxSlots, MaxSlots/2)
	}
	return d.maxSlots
}

// Release gives a slot back. No program may count on it any more.
func (d *Datapath) Release(s Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return nil
	}
	taken := d.taken[s.Index]
	err := errors.Join(d.unbind(taken), d.unbindCgroup(taken))
	delete(d.taken, s.Index)
	d.lowest = min(d.lowest, int(s.Index))
	d.use(taken, -1)
	if err := d.maps.Slots.Delete(uint32(s.Index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("release slot %d: %w", s.Index, err)
	}
	return err
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

// recall takes over the slots that an earlier process left in use.
func (d *Datapath) recall() error {
	slots, err := slotsIn(d.maps.Slots)
	if err != nil {
		return fmt.Errorf("read slots: %w", err)
	}
	for _, s := range slots {
		if err := d.makeChunk(chunkOf(s.Index)); err != nil {
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

// valid says whether a slot is still the one that was taken.
func (d *Datapath) valid(s Slot) bool {
	now, ok := d.taken[s.Index]
	return ok && now.Generation == s.Generation
}

// free returns the lowest free slot, which keeps the chunks few.
func (d *Datapath) free() (uint16, bool) {
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
