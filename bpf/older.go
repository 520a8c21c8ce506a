// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Old is a slot that an earlier layout left in use.
type Old struct {
	Slot
	Layout string
}

// older is what a layout before ours left pinned. All of them have the same chunks,
// but for the carry rows that v1 has not.
type older struct {
	layout string
	folder string
	slots  *ebpf.Map  // nil if there is none
	own    ebpf.MapID // of the chunks, 0 without slots
	chunks map[uint16]chunk
	left   map[uint64]Slot // not settled, by generation
}

// openOlder opens what earlier layouts, oldest first, left below the pin path.
func (d *Datapath) openOlder(pinPath string, layouts []string) error {
	for _, s := range d.taken {
		d.heirs[s.Generation] = s.Index
	}
	for _, layout := range layouts {
		o := &older{layout: layout, folder: filepath.Join(pinPath, layout), chunks: map[uint16]chunk{}, left: map[uint64]Slot{}}
		if _, err := os.Stat(o.folder); errors.Is(err, os.ErrNotExist) {
			continue
		}
		d.older = append(d.older, o)
		if err := o.open(); err != nil {
			return fmt.Errorf("open counters in %s: %w: run `nettally detach` to discard them", o.folder, err)
		}
		for generation := range o.left {
			d.newest = max(d.newest, generation)
		}
	}
	return nil
}

// open reads the slots and maps their rows. A folder whose pins were removed in part
// has no slots.
func (o *older) open() (err error) {
	if o.slots, err = openSlots(o.folder); o.slots == nil {
		return err
	}
	slots, err := slotsIn(o.slots)
	if err != nil || len(slots) == 0 {
		return err
	}
	outer, err := ebpf.LoadPinnedMap(filepath.Join(o.folder, classifierMapChunks), nil)
	if err != nil {
		return err
	}
	defer outer.Close()
	info, err := outer.Info()
	if err != nil {
		return err
	}
	o.own, _ = info.ID()
	for _, s := range slots {
		o.left[s.Generation] = s
		if err := o.openChunk(outer, chunkOf(s.Index)); err != nil {
			return fmt.Errorf("open rows of slot %d: %w", s.Index, err)
		}
	}
	return nil
}

func (o *older) openChunk(outer *ebpf.Map, index uint16) error {
	if o.chunks[index] != nil {
		return nil
	}
	var inner *ebpf.Map
	if err := outer.Lookup(uint32(index), &inner); err != nil {
		return err
	}
	defer inner.Close()
	if inner.ValueSize() != uint32(unsafe.Sizeof(classifierRow{})) {
		return fmt.Errorf("%w: rows of %d bytes", ebpf.ErrMapIncompatible, inner.ValueSize())
	}
	rows, err := mapped[classifierRow](inner)
	o.chunks[index] = rows
	return err
}

func (o *older) close() error {
	var errs []error
	for _, rows := range o.chunks {
		errs = append(errs, unmap(rows))
	}
	return errors.Join(append(errs, o.slots.Close())...)
}

// Old returns the slots that earlier layouts left in use, in no order: programs of
// theirs may be counting on them. An attachment that two layouts have, since the settling
// of the one into the other was cut short, is there once, as the newer has it.
//
// What is to be done with them is, before any slot is released: [Datapath.Inherit] each,
// have our programs count on what inherited it, and [Datapath.Settle].
func (d *Datapath) Old() []Old {
	d.mu.RLock()
	defer d.mu.RUnlock()
	newest := map[uint64]Old{}
	for _, o := range d.older {
		for generation, s := range o.left {
			newest[generation] = Old{Slot: s, Layout: o.layout}
		}
	}
	olds := make([]Old, 0, len(newest))
	for _, o := range newest {
		olds = append(olds, o)
	}
	return olds
}

// Inherit takes a slot for the attachment that an old one counted: of the same
// generation, interface and note, and of the same index unless that is taken. Asked
// again, also by a later process, it returns the same slot. Its counters do not have
// what the old one counted before [Datapath.Settle].
//
// Returns an error wrapping [ErrFull] if there is no slot; Options.MaxSlots is no bound.
func (d *Datapath) Inherit(o Old) (Slot, error) {
	s, err := d.place(o.Slot, d.takeSame)
	if err != nil && !errors.Is(err, errInherited) {
		return Slot{}, fmt.Errorf("inherit slot %d of layout %s: %w", o.Index, o.Layout, err)
	}
	return s, nil
}

// errInherited says that a slot has inherited already.
var errInherited = errors.New("inherited already")

// takeSame chooses a slot with the index of an old one, if it can be. The same classid
// then stands for the same attachment, whichever layout's programs a filter has.
func (d *Datapath) takeSame(s *Slot) error {
	if heir, ok := d.heir(s.Generation); ok {
		*s = heir
		return errInherited
	}
	if _, taken := d.taken[s.Index]; taken || s.Index == 0 {
		var ok bool
		if s.Index, ok = d.free(); !ok {
			return ErrFull
		}
	}
	d.heirs[s.Generation] = s.Index
	return nil
}

// heir returns the slot that inherited from an old one, if one has.
func (d *Datapath) heir(generation uint64) (Slot, bool) {
	s, ok := d.taken[d.heirs[generation]]
	return s, ok && s.Generation == generation
}

// Settle moves what old slots counted into the slots that inherited them, and removes
// the pins of the layouts that have no more slots then. No program may be attached any
// more that counts on an old slot; Settle waits for those that are still at it. Old slots
// that nobody inherited stay.
//
// It may be cut short anywhere: to do it again counts nothing twice. What old programs
// said in Uncounted and Unclassified is not taken over.
func (d *Datapath) Settle() error {
	d.mu.RLock()
	none := len(d.older) == 0
	d.mu.RUnlock()
	if none {
		return nil
	}
	if err := d.Quiesce(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var unsettled []*older
	for i, o := range d.older {
		for _, s := range o.left {
			if err := d.settle(o, d.older[i+1:], s); err != nil {
				return fmt.Errorf("settle slot %d of layout %s: %w", s.Index, o.layout, err)
			}
		}
		if len(o.left) > 0 {
			unsettled = append(unsettled, o)
		} else if err := o.remove(); err != nil {
			return fmt.Errorf("remove counters of layout %s: %w", o.layout, err)
		}
	}
	d.older = unsettled
	return nil
}

// settle moves what an old slot counted. That goes to the next layout that has the
// attachment: one of those between may have been about to settle it. Each layout's
// carry row has one source, so to set it is the same the second time.
func (d *Datapath) settle(from *older, between []*older, s Slot) error {
	to, index := d.inheritor(between, s.Generation)
	if to == nil {
		return nil
	}
	from.moveTo(to, index, s)
	return from.forget(s)
}

// inheritor returns the rows of the slot that inherited from an old one, and its index.
func (d *Datapath) inheritor(between []*older, generation uint64) (chunk, uint16) {
	for _, o := range between {
		if s, ok := o.left[generation]; ok {
			return o.chunks[chunkOf(s.Index)], s.Index
		}
	}
	s, ok := d.heir(generation)
	if !ok {
		return nil, 0
	}
	return d.chunks[chunkOf(s.Index)], s.Index
}

// moveTo sets the carry rows of a slot to what an old one counted.
func (o *older) moveTo(rows chunk, index uint16, s Slot) {
	for direction := range directions {
		rows.carry(index, direction, o.chunks[chunkOf(s.Index)].sum(s.Index, direction))
	}
}

// forget ends an old slot, whose counts are elsewhere now.
func (o *older) forget(s Slot) error {
	if err := o.slots.Delete(uint32(s.Index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	delete(o.left, s.Generation)
	return nil
}

// remove removes the pins of a layout without slots.
func (o *older) remove() error {
	err := o.close()
	o.chunks, o.slots = nil, nil
	return errors.Join(err, os.RemoveAll(o.folder))
}
