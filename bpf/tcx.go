// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Bind says that what the programs for tcx see on the slot's interface counts on the
// slot. It lasts until the slot is released; a packet that finds an interface not bound
// is uncounted.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) Bind(s Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return ErrReleased
	}
	var bound uint32
	ifindex := uint32(d.taken[s.Index].Ifindex)
	if err := d.maps.Routes.Lookup(ifindex, &bound); err == nil && bound == uint32(s.Index) {
		return nil // the kernel puts a new element for the same, which a packet might miss
	}
	if err := d.maps.Routes.Put(ifindex, uint32(s.Index)); err != nil {
		return fmt.Errorf("bind ifindex %d to slot %d: %w", s.Ifindex, s.Index, err)
	}
	return nil
}

// unbind undoes Bind, unless the interface is bound to another slot.
func (d *Datapath) unbind(s Slot) error {
	var index uint32
	err := d.maps.Routes.Lookup(uint32(s.Ifindex), &index)
	if err == nil && index == uint32(s.Index) {
		err = d.maps.Routes.Delete(uint32(s.Ifindex))
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("unbind ifindex %d from slot %d: %w", s.Ifindex, s.Index, err)
	}
	return nil
}

// Quiesce waits until no packet is at a hook that was there when it was called: an RCU
// grace period, some 15 ms.
//
// With it an interface's counting moves from clsact to tcx, or back, with every packet
// counted once:
//
//  1. set the slot's Handover by [Datapath.Keep]; for tcx, Bind it
//  2. attach the new programs
//  3. Quiesce: a packet may have passed their place before they were there
//  4. detach the old programs
//  5. Quiesce: a packet may be between its mark and who looks for it
//  6. clear Handover
//
// A process that finds Handover set by an earlier one goes on at 2.
func (d *Datapath) Quiesce() error {
	d.making.Lock()
	defer d.making.Unlock()
	// The kernel waits for programs after each update of a map of maps, by
	// maybe_wait_bpf_programs in kernel/bpf/syscall.c. The first chunk is always there.
	const first = uint32(0)
	var chunk *ebpf.Map
	if err := d.maps.Chunks.Lookup(first, &chunk); err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	defer chunk.Close()
	if err := d.maps.Chunks.Put(first, chunk); err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	return nil
}
