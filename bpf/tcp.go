// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// RTTBounds are the upper bounds of [TCPCounters.RTTs] in microseconds; the last one has none.
var RTTBounds = [...]uint64{100, 500, 1000, 5000, 10_000, 50_000, 100_000, 500_000, 1_000_000}

// TCPCounters counts the TCP connections of a cgroup, or of a network namespace: see
// [TCPNote.Counters].
type TCPCounters struct {
	ConnectAttempts, Connects, Accepts, ConnectFailures uint64
	Closes, Resets, RetransmittedSegments               uint64
	// Entered and Left are how often a connection came to be established, and ceased to be.
	Entered, Left uint64
	// RTTMicroseconds is the sum of the observations of the smoothed round trip time, and RTTs
	// how many there were in each bucket.
	RTTMicroseconds uint64
	RTTs            [len(RTTBounds) + 1]uint64
	TCPNote
}

// TCPNote is what user space found out beside the program, and keeps with a slot.
type TCPNote struct {
	// Before is how many connections were established before the program came and still are,
	// and how many more ceased to be than it saw: it may be less than 0, modulo 2^64.
	Before      uint64
	BeforeKnown bool
	// ListenDrops is the number of the network namespace, where it is the slot's alone.
	ListenDrops      uint64
	ListenDropsKnown bool

	// Of the slot of a network namespace: what the kernel said of that last, and what of it is not
	// counted since it had passed before, or was others'. Neither is known before ListenDropsKnown.
	Told, Passed NamespaceTCP
}

// NamespaceTCP is what the kernel counts of TCP for a network namespace: ActiveOpens, PassiveOpens,
// EstabResets and ListenDrops.
type NamespaceTCP struct {
	ConnectAttempts uint64 `json:"connect_attempts,omitempty"`
	Accepts         uint64 `json:"accepts,omitempty"`
	Resets          uint64 `json:"resets,omitempty"`
	ListenDrops     uint64 `json:"listen_drops,omitempty"`
}

// Minus returns the difference of each two numbers, modulo 2^64.
func (n NamespaceTCP) Minus(m NamespaceTCP) NamespaceTCP {
	return NamespaceTCP{n.ConnectAttempts - m.ConnectAttempts, n.Accepts - m.Accepts, n.Resets - m.Resets, n.ListenDrops - m.ListenDrops}
}

// Plus returns the sum of each two numbers, modulo 2^64.
func (n NamespaceTCP) Plus(m NamespaceTCP) NamespaceTCP { return n.Minus(NamespaceTCP{}.Minus(m)) }

// Restarted returns the numbers that have begun at 0 again by now, and 0 for the others: they have
// 32 bits where unsigned long does.
func (n NamespaceTCP) Restarted(now NamespaceTCP) NamespaceTCP {
	for _, c := range [...]struct {
		then *uint64
		now  uint64
	}{
		{&n.ConnectAttempts, now.ConnectAttempts}, {&n.Accepts, now.Accepts}, {&n.Resets, now.Resets}, {&n.ListenDrops, now.ListenDrops},
	} {
		if c.now >= *c.then {
			*c.then = 0
		}
	}
	return n
}

// Counters returns what is counted on the slot of a network namespace, whose note it is.
func (n TCPNote) Counters() TCPCounters {
	counted := n.Told.Minus(n.Passed)
	n.ListenDrops = counted.ListenDrops
	return TCPCounters{ConnectAttempts: counted.ConnectAttempts, Accepts: counted.Accepts, Resets: counted.Resets, TCPNote: n}
}

// LoadTCP puts the program for the connections of cgroups into the kernel, [Datapath.TCP]. It
// counts on the slots of targets that say Sockets.
//
// It needs what [Load] needs.
func (d *Datapath) LoadTCP() error {
	members, err := openMembers(d.pinPath, tcpMapTcpMembers, loadTcp)
	if err != nil {
		return err
	}
	defer members.Close() // what is loaded has it by another descriptor
	spec, err := loadTcp()
	if err != nil {
		return err
	}
	options := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{tcpMapChunks: d.maps.Chunks}}
	if members != nil {
		options.MapReplacements[tcpMapTcpMembers] = members
	}
	var objects tcpObjects
	if err := spec.LoadAndAssign(&objects, options); err != nil {
		return fmt.Errorf("load the program for connections: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.TCP, d.tcp = objects.NettallyTcp, objects.tcpMaps
	return nil
}

// ReadTCP returns what a slot for connections has counted so far. Each number only grows, but
// those of the note.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) ReadTCP(s Slot) (TCPCounters, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.valid(s) {
		return TCPCounters{}, ErrReleased
	}
	sum := d.chunks[chunkOf(s.Index)].sum(s.Index, receive)
	row := (*words)(unsafe.Pointer(&sum))
	if s.Cgroup == 0 {
		return namespaceCounters(row), nil
	}
	return tcpCounters(row), nil
}

// NoteTCP keeps what user space found out with a slot for connections. Of the slot of a network
// namespace that is all there is.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) NoteTCP(s Slot, n TCPNote) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return ErrReleased
	}
	rows := d.chunks[chunkOf(s.Index)]
	to := (*words)(unsafe.Pointer(rows.row(s.Index, rows.cpus()-1, receive)))
	if s.Cgroup == 0 {
		noteNamespace(to, n)
		return nil
	}
	to[tcpTcpCounterBEFORE], to[tcpTcpCounterBEFORE_KNOWN] = n.Before, number(n.BeforeKnown)
	to[tcpTcpCounterLISTEN_DROPS], to[tcpTcpCounterLISTEN_DROPS_KNOWN] = n.ListenDrops, number(n.ListenDropsKnown)
	return nil
}

// noteNamespace writes the note of a network namespace. The word that makes it valid is written
// last, since the process may end in between.
func noteNamespace(to *words, n TCPNote) {
	c := n.Counters()
	to[tcpTcpCounterPASSED], to[tcpTcpCounterPASSED+1] = n.Passed.ConnectAttempts, n.Passed.Accepts
	to[tcpTcpCounterPASSED+2], to[tcpTcpCounterPASSED+3] = n.Passed.Resets, n.Passed.ListenDrops
	to[tcpTcpCounterCONNECT_ATTEMPTS], to[tcpTcpCounterACCEPTS] = c.ConnectAttempts, c.Accepts
	to[tcpTcpCounterRESETS], to[tcpTcpCounterLISTEN_DROPS] = c.Resets, c.ListenDrops
	to[tcpTcpCounterLISTEN_DROPS_KNOWN] = number(n.ListenDropsKnown)
}

// namespaceCounters is the reverse of [noteNamespace].
func namespaceCounters(row *words) TCPCounters {
	n := TCPNote{
		ListenDropsKnown: row[tcpTcpCounterLISTEN_DROPS_KNOWN] != 0,
		Passed: NamespaceTCP{
			row[tcpTcpCounterPASSED], row[tcpTcpCounterPASSED+1], row[tcpTcpCounterPASSED+2], row[tcpTcpCounterPASSED+3],
		},
	}
	n.Told = n.Passed.Plus(NamespaceTCP{
		row[tcpTcpCounterCONNECT_ATTEMPTS], row[tcpTcpCounterACCEPTS], row[tcpTcpCounterRESETS], row[tcpTcpCounterLISTEN_DROPS],
	})
	return n.Counters()
}

func number(known bool) uint64 {
	if known {
		return 1
	}
	return 0
}

// tcpCounters reads a row that the program for connections has.
func tcpCounters(row *words) TCPCounters {
	c := TCPCounters{
		ConnectAttempts:       row[tcpTcpCounterCONNECT_ATTEMPTS],
		Connects:              row[tcpTcpCounterCONNECTS],
		Accepts:               row[tcpTcpCounterACCEPTS],
		ConnectFailures:       row[tcpTcpCounterCONNECT_FAILURES],
		Closes:                row[tcpTcpCounterCLOSES],
		Resets:                row[tcpTcpCounterRESETS],
		RetransmittedSegments: row[tcpTcpCounterRETRANSMITTED_SEGMENTS],
		Entered:               row[tcpTcpCounterENTERED],
		Left:                  row[tcpTcpCounterLEFT],
		RTTMicroseconds:       row[tcpTcpCounterRTT_MICROSECONDS],
		TCPNote: TCPNote{
			Before: row[tcpTcpCounterBEFORE], BeforeKnown: row[tcpTcpCounterBEFORE_KNOWN] != 0,
			ListenDrops: row[tcpTcpCounterLISTEN_DROPS], ListenDropsKnown: row[tcpTcpCounterLISTEN_DROPS_KNOWN] != 0,
		},
	}
	copy(c.RTTs[:], row[tcpTcpCounterRTT_BUCKETS:tcpTcpCounterTCP_COUNTERS])
	return c
}
