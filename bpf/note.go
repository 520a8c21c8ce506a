// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// ErrTooLong means that a name is too long to be kept with a slot.
var ErrTooLong = errors.New("name is too long to be kept with a slot")

// Target is what a slot counts: an interface, a cgroup, or a network namespace.
type Target struct {
	Ifindex int    `json:"ifindex,omitempty"`
	NetNS   uint64 `json:"netns,omitempty"` // inode of the interface's network namespace, 0 for the host's
	// Cgroup is the id of a cgroup in the cgroup2 hierarchy, the inode of its directory.
	// The others are 0 then.
	Cgroup uint64 `json:"cgroup,omitempty"`
	// Sockets says that it is the TCP connections of the cgroup, not its packets, or those of the
	// network namespace, whose numbers user space notes: [Datapath.ReadTCP] reads either.
	Sockets bool `json:"sockets,omitempty"`
}

func (t Target) String() string {
	switch {
	case t.Sockets && t.Cgroup == 0:
		return fmt.Sprintf("connections in net:[%d]", t.NetNS)
	case t.Sockets:
		return fmt.Sprintf("connections of cgroup %d", t.Cgroup)
	case t.Cgroup != 0:
		return fmt.Sprintf("cgroup %d", t.Cgroup)
	case t.NetNS != 0:
		return fmt.Sprintf("ifindex %d in net:[%d]", t.Ifindex, t.NetNS)
	}
	return fmt.Sprintf("ifindex %d", t.Ifindex)
}

// Slot is the right to a row of counters. A slot that was released and taken again
// has another generation.
type Slot struct {
	Index      uint16
	Generation uint64 // CLOCK_BOOTTIME in ns when it was taken
	Target
	Note
}

// Note is what is kept with a slot for the next process.
type Note struct {
	OwnQdisc bool // we made the interface's clsact qdisc
	// Handover makes the programs for clsact leave alone what those for tcx have
	// counted, so that both can be on the interface: see [Datapath.Quiesce].
	Handover bool
	// Told says of a cgroup that its counts are shown, and so have to go on.
	Told bool
	// Others says that the owner is beyond a bound: what is counted goes to an account that it
	// shares with others.
	Others bool

	Container string // id of the owner, at most 239 bytes; "" while nobody owns it
	Interface string // what the owner calls it, at most 15 bytes

	// What the kernel had counted on the interface before we did.
	SeededReceive, SeededTransmit Volume
	// What it has counted there since, while our programs saw nothing.
	MendedReceive, MendedTransmit Volume

	Lost Lost
}

// Lost is what the kernel has lost of the owner's packets at an interface, as far as its
// counters have been read. The lower 32 bits of each number are kept, and of errors nothing.
type Lost struct {
	Known                           bool // they were, at the container's end
	ReceiveDropped, TransmitDropped uint64
	ReceiveErrors, TransmitErrors   uint64

	Followed    bool   // those of the host's end were
	Undelivered uint64 // packets that it has dropped behind our hook

	Mark Mark // how far
}

// Mark is where counters of the kernel were when they were read, in 32 bits.
type Mark struct {
	ReceiveDropped, TransmitDropped uint32 // of the container's end
	HostDropped                     uint32 // of the host's end, which sends to the container
	Qdisc                           uint32 // the handle of its root qdisc
	QdiscDropped                    uint32
}

// The flags of a pinned slot.
const (
	flagOwnQdisc = uint32(classifierSlotFlagsOWN_QDISC)
	flagHandover = uint32(classifierSlotFlagsHANDOVER)
	flagTold     = uint32(classifierSlotFlagsTOLD)
	flagOthers   = uint32(classifierSlotFlagsOTHERS)
	flagSockets  = uint32(classifierSlotFlagsSOCKETS)

	// The programs don't know these.
	flagLossesKnown    = uint32(1 << 16)
	flagLossesFollowed = uint32(1 << 17)
)

// Keep puts the slot's note in the place of the one that was kept. It is in the kernel
// when Keep returns.
//
// Returns an error wrapping [ErrTooLong] for names that are too long, and [ErrReleased]
// if the slot is no longer the one that was taken.
func (d *Datapath) Keep(s Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return ErrReleased
	}
	kept := d.taken[s.Index]
	kept.Note = s.Note
	return d.remember(kept)
}

func (d *Datapath) remember(s Slot) error {
	pinned, err := s.pinned()
	if err == nil {
		err = d.maps.Slots.Put(uint32(s.Index), pinned)
	}
	if err != nil {
		return fmt.Errorf("remember slot %d: %w", s.Index, err)
	}
	d.taken[s.Index] = s
	return nil
}

// pinned returns the slot as the map has it.
func (s Slot) pinned() (*classifierSlot, error) {
	p := &classifierSlot{Generation: s.Generation, Ifindex: uint32(s.Ifindex), Netns: s.NetNS, Cgroup: s.Cgroup}
	if s.OwnQdisc {
		p.Flags |= flagOwnQdisc
	}
	if s.Handover {
		p.Flags |= flagHandover
	}
	if s.Told {
		p.Flags |= flagTold
	}
	if s.Others {
		p.Flags |= flagOthers
	}
	if s.Sockets {
		p.Flags |= flagSockets
	}
	p.keepLost(s.Lost)
	for direction, v := range []Volume{receive: s.SeededReceive, transmit: s.SeededTransmit} {
		p.Seeded[direction].Bytes, p.Seeded[direction].Packets = v.Bytes, v.Packets
	}
	for direction, v := range []Volume{receive: s.MendedReceive, transmit: s.MendedTransmit} {
		p.Mended[direction].Bytes, p.Mended[direction].Packets = v.Bytes, v.Packets
	}
	// Each ends with a 0.
	for _, name := range []struct {
		text string
		to   []uint8
	}{{s.Container, p.Container[:]}, {s.Interface, p.Interface[:]}} {
		if len(name.text) >= len(name.to) {
			return nil, fmt.Errorf("%w: %.*q has %d bytes, of at most %d", ErrTooLong, len(name.to), name.text, len(name.text), len(name.to)-1)
		}
		copy(name.to, name.text)
	}
	return p, nil
}

// slot is the reverse of [Slot.pinned].
func (p *classifierSlot) slot(index uint32) Slot {
	return Slot{
		Index:      uint16(index),
		Generation: p.Generation,
		Target:     Target{Ifindex: int(p.Ifindex), NetNS: p.Netns, Cgroup: p.Cgroup, Sockets: p.Flags&flagSockets != 0},
		Note: Note{
			OwnQdisc:       p.Flags&flagOwnQdisc != 0,
			Handover:       p.Flags&flagHandover != 0,
			Told:           p.Flags&flagTold != 0,
			Others:         p.Flags&flagOthers != 0,
			Container:      text(p.Container[:]),
			Interface:      text(p.Interface[:]),
			SeededReceive:  Volume{p.Seeded[receive].Bytes, p.Seeded[receive].Packets},
			SeededTransmit: Volume{p.Seeded[transmit].Bytes, p.Seeded[transmit].Packets},
			MendedReceive:  Volume{p.Mended[receive].Bytes, p.Mended[receive].Packets},
			MendedTransmit: Volume{p.Mended[transmit].Bytes, p.Mended[transmit].Packets},
			Lost:           p.lost(),
		},
	}
}

// keepLost notes what was lost in the 32 bytes that are there for it.
func (p *classifierSlot) keepLost(l Lost) {
	if l.Known {
		p.Flags |= flagLossesKnown
	}
	if l.Followed {
		p.Flags |= flagLossesFollowed
	}
	pair := func(a, b uint32) uint64 { return uint64(a) | uint64(b)<<32 }
	p.Reserved = [4]uint64{
		pair(uint32(l.ReceiveDropped), uint32(l.TransmitDropped)),
		pair(l.Mark.ReceiveDropped, l.Mark.TransmitDropped),
		pair(uint32(l.Undelivered), l.Mark.HostDropped),
		pair(l.Mark.Qdisc, l.Mark.QdiscDropped),
	}
}

// lost is the reverse of keepLost.
func (p *classifierSlot) lost() Lost {
	low := func(i int) uint32 { return uint32(p.Reserved[i]) }
	high := func(i int) uint32 { return uint32(p.Reserved[i] >> 32) }
	return Lost{
		Known:           p.Flags&flagLossesKnown != 0,
		ReceiveDropped:  uint64(low(0)),
		TransmitDropped: uint64(high(0)),
		Followed:        p.Flags&flagLossesFollowed != 0,
		Undelivered:     uint64(low(2)),
		Mark: Mark{
			ReceiveDropped: low(1), TransmitDropped: high(1), HostDropped: high(2),
			Qdisc: low(3), QdiscDropped: high(3),
		},
	}
}

func text(b []uint8) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}

// slotsIn reads the map of slots, of this layout or an older one: its slots have the
// first of our fields, and nothing noted in the others.
func slotsIn(m *ebpf.Map) ([]Slot, error) {
	var slots []Slot
	var index uint32
	var value []byte
	all := m.Iterate()
	for all.Next(&index, &value) {
		var pinned classifierSlot
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&pinned)), unsafe.Sizeof(pinned)), value)
		slots = append(slots, pinned.slot(index))
	}
	return slots, all.Err()
}
