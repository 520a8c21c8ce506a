// SPDX-License-Identifier: Apache-2.0

package view

import (
	"math"
	"slices"
	"time"

	"github.com/nettally/nettally/exporter"
)

// Counts is an amount of traffic in one direction, as the container sees it.
type Counts struct{ Bytes, Packets, SYN uint64 }

// Rate is an amount of traffic per second.
type Rate struct{ Bytes, Packets, SYN float64 }

// Flow is one direction: the total, and its rate.
type Flow struct {
	Total Counts
	Rate  Rate
}

const (
	// shortest is the least time, in milliseconds, that a rate is computed over. Two events
	// of one turn of the daemon may be closer together, and their quotient would be noise.
	shortest = 500

	// mostContainers bounds a book. A daemon counts on at most 65,535 interfaces.
	mostContainers = 1 << 16
)

// Book holds the containers that a stream tells of. Its methods take the stream's events in
// their order, over any number of connections.
type Book struct {
	boot       int64 // of the last reading, in milliseconds of CLOCK_BOOTTIME
	takenAt    time.Time
	zeroed     time.Time // when totals began to count from 0, the zero time if never
	source     string
	containers map[string]*entry
	foremost   map[string]exporter.StreamForemost
}

// entry is one container of a book.
type entry struct {
	identity exporter.StreamContainer // its totals are the last ones read
	boot     int64                    // when they were read
	base     reading                  // what the rate is computed from
	known    bool                     // whether the rates are known
	rates    [2]Rate                  // receive, transmit
	smooth   [2]Rate
	smoothed bool
	counted  [2]Counts // since zeroed
	tcp      tcpEntry
	trace    Trace
}

// reading is the totals of a container at a time.
type reading struct {
	boot              int64
	receive, transmit exporter.StreamCounts
	tcp               *exporter.StreamTCP
}

// NewBook returns an empty book.
func NewBook() *Book {
	return &Book{containers: map[string]*entry{}, foremost: map[string]exporter.StreamForemost{}}
}

// TakenAt returns the daemon's wall clock at the last reading, the zero time before the first.
func (b *Book) TakenAt() time.Time { return b.takenAt }

// Source returns what the daemon counts by: "bpf" or "proc", "" before the first event.
func (b *Book) Source() string { return b.source }

// Len returns the number of containers, with those that have ended.
func (b *Book) Len() int { return len(b.containers) }

// Take takes any event of a stream. Those that a book has no use for change nothing.
func (b *Book) Take(e exporter.StreamEvent) {
	switch e := e.(type) {
	case *exporter.StreamContainers:
		b.Containers(e)
	case *exporter.StreamSample:
		b.Sample(e)
	case *exporter.StreamStopped:
		b.Stopped(e.ID, e.StoppedAt)
	case *exporter.StreamRemoved:
		b.Removed(e.IDs)
	case *exporter.StreamQuota:
		b.Quotas(e.Foremost)
	}
}

// Recent takes what was used in the last 15 minutes, for [Book.Trace]. Containers that are not
// in the book, and steps of another length than [StepMS], are left out.
func (b *Book) Recent(r *exporter.Recent) {
	if r.StepMS != StepMS {
		return
	}
	for i := range r.Containers {
		used := &r.Containers[i]
		if c, ok := b.containers[used.ID]; ok {
			c.trace.fill(r.EndBootMS/StepMS, used.ReceiveBytes, used.TransmitBytes)
		}
	}
}

// Containers takes an event of that name.
//
// A container that is known goes on, also where the event replaces all after a reconnect: its
// rate is then the average over the gap. A container that is new has no rate yet, and neither
// has one that is counted in another way than before.
func (b *Book) Containers(e *exporter.StreamContainers) {
	b.read(e.BootMS, e.TakenAt)
	before := b.containers
	if e.Replace {
		b.containers = make(map[string]*entry, len(e.Containers))
	}
	b.source = e.Source
	for i := range e.Containers {
		c := &e.Containers[i]
		now := reading{e.BootMS, c.Receive, c.Transmit, c.TCP}
		known, ok := before[c.ID]
		switch {
		case ok:
			known.identify(c, now)
		case len(b.containers) < mostContainers:
			known = b.open(c, now)
		default:
			continue
		}
		b.containers[c.ID] = known
	}
}

// Sample takes an event of that name. A container that it leaves out did not change.
func (b *Book) Sample(e *exporter.StreamSample) {
	boot := e.BootMS
	b.read(boot, e.TakenAt)
	changed := make(map[string]reading, len(e.Containers))
	for i := range e.Containers {
		c := &e.Containers[i]
		changed[c.ID] = reading{boot, c.Receive, c.Transmit, c.TCP}
	}
	for id, c := range b.containers {
		now, ok := changed[id]
		if !ok {
			now = reading{boot, c.identity.Receive, c.identity.Transmit, c.identity.TCP}
		}
		c.take(now)
	}
}

// Stopped takes an event of that name: the container has ended, and is kept.
func (b *Book) Stopped(id string, at *time.Time) {
	if c, ok := b.containers[id]; ok {
		c.identity.State, c.identity.StoppedAt = stopped, at
	}
}

// Removed takes an event of that name.
func (b *Book) Removed(ids []string) {
	for _, id := range ids {
		delete(b.containers, id)
	}
}

// Quotas takes the foremost quota of each container, by its id, from an event quota.
func (b *Book) Quotas(foremost map[string]exporter.StreamForemost) { b.foremost = foremost }

// Zero makes totals count from now, until [Book.Unzero].
func (b *Book) Zero() {
	b.zeroed = b.takenAt
	for _, c := range b.containers {
		c.counted, c.tcp.counted = [2]Counts{}, Connections{}
	}
}

// Unzero makes totals what the daemon says again.
func (b *Book) Unzero() { b.zeroed = time.Time{} }

// ZeroedAt returns since when totals count, the zero time if that is from the beginning.
func (b *Book) ZeroedAt() time.Time { return b.zeroed }

// read notes when the events' numbers were read. A host that has booted since has other
// counters, and a clock that begins at 0.
func (b *Book) read(boot int64, at time.Time) {
	if boot < b.boot {
		for _, c := range b.containers {
			c.trace = Trace{}
		}
	}
	b.boot, b.takenAt = boot, at
}

// open returns the entry of a container that was not known. If it has started since [Book.Zero],
// all that it has used counts from then, but for what was seeded.
func (b *Book) open(c *exporter.StreamContainer, now reading) *entry {
	e := &entry{identity: *c, boot: now.boot, base: now, tcp: tcpEntry{base: now.tcp}}
	if !b.zeroed.IsZero() && c.StartedAt != nil && c.StartedAt.After(b.zeroed) {
		e.counted = [2]Counts{organic(c.Receive), organic(c.Transmit)}
		e.tcp.counted = connections(c.TCP)
	}
	return e
}

// identify takes who a container is now, with its totals.
func (e *entry) identify(c *exporter.StreamContainer, now reading) {
	sameCount := e.identity.CountedBy == c.CountedBy && e.identity.Recalled == c.Recalled
	receive, transmit, tcp := e.identity.Receive, e.identity.Transmit, e.identity.TCP
	e.identity = *c
	e.identity.Receive, e.identity.Transmit, e.identity.TCP = receive, transmit, tcp
	if sameCount {
		e.take(now)
		return
	}
	e.restart(now)
}

// take takes new totals.
func (e *entry) take(now reading) {
	step, stepOK := growth(reading{e.boot, e.identity.Receive, e.identity.Transmit, nil}, now)
	if !stepOK {
		e.restart(now)
		return
	}
	for i := range e.counted {
		e.counted[i] = e.counted[i].plus(step[i])
	}
	e.tcp.count(e.identity.TCP, now.tcp)
	e.trace.add(e.boot, now.boot, step[0].Bytes, step[1].Bytes)
	e.note(now)

	elapsed := now.boot - e.base.boot
	if elapsed < shortest {
		return
	}
	grown, _ := growth(e.base, now)
	e.base, e.known = now, true
	for i := range e.rates {
		e.rates[i] = grown[i].over(elapsed)
	}
	weight := 1 - math.Exp(-float64(elapsed)/memory)
	e.smoothen(weight)
	e.tcp.measure(now.tcp, elapsed, weight)
}

// note takes down the totals of a reading.
func (e *entry) note(now reading) {
	e.identity.Receive, e.identity.Transmit, e.identity.TCP, e.boot = now.receive, now.transmit, now.tcp, now.boot
}

// restart takes totals that can't be compared with those before.
func (e *entry) restart(now reading) {
	e.note(now)
	e.base, e.known, e.rates = now, false, [2]Rate{}
	e.tcp.restart(now.tcp)
}

// memory is the time in milliseconds after which a smoothed rate has forgotten two thirds.
const memory = 5000

// smoothen moves the smoothed rates towards the rates.
func (e *entry) smoothen(weight float64) {
	if !e.smoothed {
		e.smoothed, weight = true, 1
	}
	for i := range e.smooth {
		s, r := &e.smooth[i], &e.rates[i]
		s.Bytes += weight * (r.Bytes - s.Bytes)
		s.Packets += weight * (r.Packets - s.Packets)
		s.SYN += weight * (r.SYN - s.SYN)
	}
}

// growth returns what was used between two readings, in receive and transmit direction. It
// reports false where they can't be compared: the host has booted, or the counters began anew.
func growth(before, now reading) (grown [2]Counts, ok bool) {
	receive, okReceive := organic(now.receive).minus(organic(before.receive))
	transmit, okTransmit := organic(now.transmit).minus(organic(before.transmit))
	return [2]Counts{receive, transmit}, okReceive && okTransmit && now.boot >= before.boot
}

// organic is what was counted while somebody looked: seeded amounts belong to no time.
func organic(c exporter.StreamCounts) Counts {
	return Counts{less(c.Bytes, c.SeededBytes), less(c.Packets, c.SeededPackets), c.TCPSYN}
}

func total(c exporter.StreamCounts) Counts { return Counts{c.Bytes, c.Packets, c.TCPSYN} }

// less returns a - b, and 0 instead of less than that.
func less(a, b uint64) uint64 { return a - min(a, b) }

// plus returns a sum that stops at the highest number.
func (c Counts) plus(other Counts) Counts {
	return Counts{add(c.Bytes, other.Bytes), add(c.Packets, other.Packets), add(c.SYN, other.SYN)}
}

func add(a, b uint64) uint64 { return a + min(b, math.MaxUint64-a) }

func (c Counts) minus(other Counts) (Counts, bool) {
	ok := c.Bytes >= other.Bytes && c.Packets >= other.Packets && c.SYN >= other.SYN
	return Counts{c.Bytes - other.Bytes, c.Packets - other.Packets, c.SYN - other.SYN}, ok
}

// over returns the rate of an amount over milliseconds. The amount is an exact difference; only
// the quotient is rounded.
func (c Counts) over(milliseconds int64) Rate {
	per := func(n uint64) float64 { return float64(n) * 1000 / float64(milliseconds) }
	return Rate{per(c.Bytes), per(c.Packets), per(c.SYN)}
}

func (r Rate) plus(other Rate) Rate {
	return Rate{r.Bytes + other.Bytes, r.Packets + other.Packets, r.SYN + other.SYN}
}

// Clone returns a copy that later events don't change.
func (b *Book) Clone() *Book {
	clone := *b
	clone.containers = make(map[string]*entry, len(b.containers))
	for id, c := range b.containers {
		copied := *c
		copied.trace.steps = slices.Clone(c.trace.steps)
		clone.containers[id] = &copied
	}
	return &clone
}

// Ended returns how many containers have stopped.
func (b *Book) Ended() (n int) {
	for _, c := range b.containers {
		if c.identity.State == stopped {
			n++
		}
	}
	return n
}
