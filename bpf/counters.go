// SPDX-License-Identifier: Apache-2.0

package bpf

import "sync/atomic"

// Volume is an amount of packets.
type Volume struct{ Bytes, Packets uint64 }

// Counters is what one direction of a slot counted.
type Counters struct {
	Interface Volume // one packet per socket buffer

	// Cells are the wire numbers, by [Cell] or [NonIP].
	Cells [Cells]Volume

	TCPSYN, TCPSYNACK, TCPRST, TCPFIN uint64
}

// The families of packets and, within each, the transport protocols that are told apart.
const (
	IPv4 = int(classifierFamilyIPV4)
	IPv6 = int(classifierFamilyIPV6)

	TCP       = int(classifierProtocolTCP)
	UDP       = int(classifierProtocolUDP)
	ICMP      = int(classifierProtocolICMP)
	Other     = int(classifierProtocolOTHER)
	Protocols = int(classifierProtocolPROTOCOLS)
)

const (
	// NonIP is the cell of frames that are neither IPv4 nor IPv6.
	NonIP = int(classifierCellNON_IP)
	// Cells is how many cells there are.
	Cells = int(classifierCellCELLS)
)

// Cell returns the index of the cell of a family and a protocol.
func Cell(family, protocol int) int { return family*Protocols + protocol }

// plainCell returns the cell of a kind of plain packets.
func plainCell(plain int) int {
	const protocols = int(classifierPlainPLAIN_PROTOCOLS)
	return Cell(plain/protocols, plain%protocols)
}

// counters adds the plain packets to where the others are.
func counters(row *classifierRow) Counters {
	c := Counters{
		Interface: Volume{row.Interface.Bytes, row.Interface.Packets},
		TCPSYN:    row.TcpSyn,
		TCPSYNACK: row.TcpSynack,
		TCPRST:    row.TcpRst,
		TCPFIN:    row.TcpFin,
	}
	for i, cell := range row.Cells {
		c.Cells[i] = Volume{cell.Bytes, cell.Packets}
	}
	for i, plain := range row.Plain {
		for _, v := range []*Volume{&c.Interface, &c.Cells[plainCell(i)]} {
			v.Bytes += plain.Bytes
			v.Packets += plain.Packets
		}
	}
	return c
}

// uncounted are the causes for a packet to stand nowhere: it found no row or, at tcx, no
// slot.
var uncounted = map[string]classifierTrouble{
	"no_row":  classifierTroubleNO_ROW,
	"no_slot": classifierTroubleNO_SLOT,
}

// unclassified are the causes for a packet to be counted as one, and as "other" where the
// headers before the trouble do not say more.
var unclassified = map[string]classifierTrouble{
	"truncated":        classifierTroubleTRUNCATED,
	"malformed":        classifierTroubleMALFORMED,
	"too_many_headers": classifierTroubleTOO_MANY_HEADERS,
	"implausible_gso":  classifierTroubleIMPLAUSIBLE_GSO,
}

// Uncounted returns the number of packets that found no row or, at tcx, no slot, and so
// stand nowhere.
func (d *Datapath) Uncounted() map[string]uint64 { return d.trouble(uncounted) }

// Unclassified returns the number of packets whose headers could not be read, or that claim
// to be a super-packet the kernel's own stack does not make. They are counted, as one packet
// each, and as "other" where the headers before the trouble do not say more.
func (d *Datapath) Unclassified() map[string]uint64 { return d.trouble(unclassified) }

// trouble sums error cells over CPUs.
func (d *Datapath) trouble(causes map[string]classifierTrouble) map[string]uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	counts := make(map[string]uint64, len(causes))
	for cause, cell := range causes {
		counts[cause] = 0
		for cpu := range d.troubles {
			counts[cause] += atomic.LoadUint64(&d.troubles[cpu].Count[cell])
		}
	}
	return counts
}
