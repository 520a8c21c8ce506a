// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
)

// Datapath has slots in memory, and counts what it is told: it stands in for
// [bpf.Datapath] where no program may be loaded. What it has goes with the process.
//
// Its methods are safe for concurrent use.
type Datapath struct {
	max int

	mu     sync.Mutex
	slots  map[uint16]*slot
	tcp    int    // of those, for the connections of namespaces
	lowest int    // no slot below it is free
	newest uint64 // generation
}

type slot struct {
	bpf.Slot
	receive, transmit bpf.Counters
	tcp               bpf.TCPNote
}

// NewDatapath returns a datapath with so many slots for interfaces, [bpf.MaxSlots] at most, and as
// many for the connections of namespaces, half of that at most.
func NewDatapath(maxSlots int) *Datapath {
	return &Datapath{max: min(maxSlots, bpf.MaxSlots), slots: map[uint16]*slot{}, lowest: 1}
}

// Take takes a slot, with all its counters at 0.
//
// Returns an error wrapping [bpf.ErrFull] if there is none.
func (d *Datapath) Take(t bpf.Target) (bpf.Slot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	count, most := len(d.slots)-d.tcp, d.max
	if t.Sockets {
		count, most = d.tcp, min(d.max, bpf.MaxSlots/2)
	}
	for ; count < most && d.lowest <= bpf.MaxSlots; d.lowest++ {
		if d.slots[uint16(d.lowest)] != nil {
			continue
		}
		taken := bpf.Slot{Index: uint16(d.lowest), Generation: d.generation(), Target: t}
		d.use(taken, 1)
		d.slots[taken.Index] = &slot{Slot: taken}
		return taken, nil
	}
	return bpf.Slot{}, fmt.Errorf("take slot for %s: %w (bpf.max_interfaces %d)", t, bpf.ErrFull, d.max)
}

// use notes that a slot was taken or released. The caller holds mu.
func (d *Datapath) use(s bpf.Slot, count int) {
	if s.Sockets {
		d.tcp += count
	}
}

// generation returns a number that no slot had since the host booted, of another process
// and of bpf neither.
func (d *Datapath) generation() uint64 {
	var now unix.Timespec
	// Cannot fail: the clock is there since Linux 2.6.39 and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	d.newest = max(d.newest+1, uint64(now.Nano()))
	return d.newest
}

// valid returns a slot if it is still the one that was taken, or nil. The caller holds mu.
func (d *Datapath) valid(s bpf.Slot) *slot {
	if known := d.slots[s.Index]; known != nil && known.Generation == s.Generation {
		return known
	}
	return nil
}

// Keep puts the slot's note in the place of the one that was kept.
//
// Returns [bpf.ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) Keep(s bpf.Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.valid(s)
	if known == nil {
		return bpf.ErrReleased
	}
	known.Note = s.Note
	return nil
}

// Release gives a slot back.
func (d *Datapath) Release(s bpf.Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.valid(s) != nil {
		d.use(s, -1)
		delete(d.slots, s.Index)
		d.lowest = min(d.lowest, int(s.Index))
	}
	return nil
}

// Slots returns the slots in use, in no order.
func (d *Datapath) Slots() []bpf.Slot {
	d.mu.Lock()
	defer d.mu.Unlock()
	slots := make([]bpf.Slot, 0, len(d.slots))
	for s := range maps.Values(d.slots) {
		slots = append(slots, s.Slot)
	}
	return slots
}

// Read returns what a slot has counted so far, as the container sees it.
//
// Returns [bpf.ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) Read(s bpf.Slot) (rx, tx bpf.Counters, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.valid(s)
	if known == nil {
		return rx, tx, bpf.ErrReleased
	}
	return known.receive, known.transmit, nil
}

// ReadTCP returns what was noted of the connections of a namespace.
//
// Returns [bpf.ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) ReadTCP(s bpf.Slot) (bpf.TCPCounters, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.valid(s)
	if known == nil {
		return bpf.TCPCounters{}, bpf.ErrReleased
	}
	return known.tcp.Counters(), nil
}

// ReadSockets returns nothing: what processes send and receive is not counted here.
func (*Datapath) ReadSockets(bpf.Slot) (bpf.SocketCounters, error) { return bpf.SocketCounters{}, nil }

// CountsSockets reports that it is not.
func (*Datapath) CountsSockets() bool { return false }

// ReadRequests returns nothing: requests are not counted here.
func (*Datapath) ReadRequests(bpf.Slot) (receive, transmit bpf.RequestCounters, err error) {
	return receive, transmit, nil
}

// RequestsCounted reports that none are.
func (*Datapath) RequestsCounted() bpf.RequestOptions { return bpf.RequestOptions{} }

// NoteTCP notes what the kernel says of the connections of a namespace.
//
// Returns [bpf.ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) NoteTCP(s bpf.Slot, n bpf.TCPNote) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.valid(s)
	if known == nil {
		return bpf.ErrReleased
	}
	known.tcp = n
	return nil
}

// count adds to the slot of a number. It must be in use.
func (d *Datapath) count(index uint16, receive, transmit bpf.Counters) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.slots[index]; known != nil {
		add(&known.receive, receive)
		add(&known.transmit, transmit)
	}
}

// countSYN adds to a slot, unless it is not the one any more that was taken.
func (d *Datapath) countSYN(s bpf.Slot, receive, transmit uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.valid(s); known != nil {
		known.receive.TCPSYN += receive
		known.transmit.TCPSYN += transmit
	}
}

func add(to *bpf.Counters, more bpf.Counters) {
	to.Interface.Bytes += more.Interface.Bytes
	to.Interface.Packets += more.Interface.Packets
	for i := range to.Cells {
		to.Cells[i].Bytes += more.Cells[i].Bytes
		to.Cells[i].Packets += more.Cells[i].Packets
	}
	to.TCPSYN += more.TCPSYN
}

// Uncounted returns nothing: no program is there that could miss a packet.
func (*Datapath) Uncounted() map[string]uint64 { return map[string]uint64{} }

// Unclassified returns nothing: nobody looks at packets.
func (*Datapath) Unclassified() map[string]uint64 { return map[string]uint64{} }

// Quiesce has nothing to wait for.
func (*Datapath) Quiesce() error { return nil }

// Old returns nothing: slots in memory have no older layout.
func (*Datapath) Old() []bpf.Old { return nil }

// Settle has nothing to move.
func (*Datapath) Settle() error { return nil }

// Inherit refuses: there is nothing in [Datapath.Old].
func (*Datapath) Inherit(bpf.Old) (bpf.Slot, error) { return bpf.Slot{}, errors.ErrUnsupported }

// Bind refuses: there are no programs to count on a slot.
func (*Datapath) Bind(bpf.Slot) error { return errors.ErrUnsupported }

// BindCgroup refuses: there are no programs to count on a slot.
func (*Datapath) BindCgroup(bpf.Slot) error { return errors.ErrUnsupported }

// CgroupBound is false: there are no programs.
func (*Datapath) CgroupBound(bpf.Slot) bool { return false }
