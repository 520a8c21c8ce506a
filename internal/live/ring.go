// SPDX-License-Identifier: Apache-2.0

package live

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

const (
	// StepOf and Steps are the length and the number of the steps of a [Recent].
	StepOf = 10 * time.Second
	Steps  = 90
	// cellsMost is how many containers have numbers of their own in a step, and in a [Recent],
	// those that moved most. So a ring takes 90 * 1,000 * 64 bytes at most, which is 5.8 MB, and
	// an answer does not grow with the containers that come and go.
	cellsMost = 1000
)

// Growth is what was used in a step.
type Growth struct{ Receive, Transmit Used }

func (g Growth) bytes() uint64 { return usage.Add(g.Receive.Bytes, g.Transmit.Bytes) }

func (g Growth) plus(o Growth) Growth {
	return Growth{g.Receive.plus(o.Receive), g.Transmit.plus(o.Transmit)}
}

func (u Used) plus(o Used) Used {
	return Used{
		Volume: usage.Volume{Bytes: usage.Add(u.Bytes, o.Bytes), Packets: usage.Add(u.Packets, o.Packets)},
		SYN:    usage.Add(u.SYN, o.SYN),
	}
}

// since returns the growth of a total, without what was seeded. A total that went back has not
// grown.
func (a Amount) since(before Amount) Used {
	return Used{
		Volume: usage.Volume{
			Bytes:   less(a.Bytes-a.Seeded.Bytes, before.Bytes-before.Seeded.Bytes),
			Packets: less(a.Packets-a.Seeded.Packets, before.Packets-before.Seeded.Packets),
		},
		SYN: less(a.SYN, before.SYN),
	}
}

func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// ring is what was used in the last steps. A step is numbered by the time since boot when it
// ends.
type ring struct {
	steps   []ringStep // oldest first
	last    map[string]lastTotal
	at      int64             // the step that ended last, 0 for none
	reading Reading           // of its end
	spans   map[string][]span // oldest first
}

type ringStep struct {
	number int64
	cells  []cell // by bytes, most first
	others Growth
}

type cell struct {
	id string
	Growth
}

type lastTotal struct {
	Total
	by       CountedBy
	recalled bool
}

// span is steps, one after another, of which something is known of a container.
type span struct{ first, last int64 }

// due says whether a step has ended.
func (r *ring) due(boot time.Duration) bool { return int64(boot/StepOf) != r.at }

// take ends a step. After a gap the growth belongs to no step, and the next one begins here. Files
// may have been read before the step ended: such a reading ends none.
func (r *ring) take(reading Reading, containers map[string]*tracked) {
	number := int64(reading.Boot / StepOf)
	if r.at != 0 && number <= r.at {
		return
	}
	whole := r.at != 0 && number == r.at+1
	step := ringStep{number: number}
	last := make(map[string]lastTotal, len(containers))
	if r.spans == nil {
		r.spans = map[string][]span{}
	}
	for id, t := range containers {
		now := lastTotal{t.Total, t.CountedBy, t.Recalled}
		last[id] = now
		before, there := r.last[id]
		if !whole || !there || before.by != now.by || before.recalled != now.recalled {
			continue
		}
		r.know(id, number)
		g := Growth{now.Receive.since(before.Receive), now.Transmit.since(before.Transmit)}
		if g != (Growth{}) {
			step.cells = append(step.cells, cell{id, g})
		}
	}
	r.last, r.at, r.reading = last, number, reading
	if !whole {
		return
	}
	slices.SortFunc(step.cells, func(a, b cell) int {
		return cmp.Or(cmp.Compare(b.bytes(), a.bytes()), cmp.Compare(a.id, b.id))
	})
	for _, c := range step.cells[min(len(step.cells), cellsMost):] {
		step.others = step.others.plus(c.Growth)
	}
	step.cells = slices.Clone(step.cells[:min(len(step.cells), cellsMost)]) // the rest of the array is let go
	r.steps = append(r.steps, step)
	r.drop(number - Steps)
}

// know notes that something is known of a container in a step, the last one.
func (r *ring) know(id string, number int64) {
	spans := r.spans[id]
	if n := len(spans); n > 0 && spans[n-1].last == number-1 {
		spans[n-1].last = number
		return
	}
	r.spans[id] = append(spans, span{number, number})
}

// drop forgets the steps up to a number.
func (r *ring) drop(number int64) {
	r.steps = slices.DeleteFunc(r.steps, func(s ringStep) bool { return s.number <= number })
	for id, spans := range r.spans {
		kept := slices.DeleteFunc(spans, func(s span) bool { return s.last <= number })
		if r.spans[id] = kept; len(kept) == 0 {
			delete(r.spans, id)
		}
	}
}

// Recent is what was used in the last 15 minutes. It belongs to the caller.
type Recent struct {
	Reading               // of that end, zero before there is one
	End     time.Duration // of the last step, since boot
	Series  []Series      // of the 1,000 containers that used most, by id
	Others  Series        // of all others
}

// Series is a number of steps, oldest first.
type Series struct {
	ID    string
	Steps []*Growth // nil where nothing is known
}

// Recent returns what was used in the last 15 minutes, but for the step that has not ended.
// Containers that used nothing are left out. The memory it is kept in is bounded: see cellsMost.
func (h *Hub) Recent() Recent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ring.recent()
}

func (r *ring) recent() Recent {
	if len(r.steps) == 0 {
		return Recent{Reading: r.reading}
	}
	first, end := r.steps[0].number, r.steps[len(r.steps)-1].number
	n := int(end-first) + 1
	out := Recent{Reading: r.reading, End: time.Duration(end) * StepOf, Others: Series{Steps: make([]*Growth, n)}}
	series := map[string][]*Growth{}
	for _, id := range r.busiest() {
		series[id] = make([]*Growth, n)
	}
	for i := range r.steps {
		s := &r.steps[i]
		others := s.others // the ring moves its own
		for j := range s.cells {
			c := &s.cells[j]
			if steps := series[c.id]; steps != nil {
				steps[s.number-first] = &c.Growth
			} else {
				others = others.plus(c.Growth)
			}
		}
		out.Others.Steps[s.number-first] = &others
	}
	for id, steps := range series {
		r.fill(id, steps)
		out.Series = append(out.Series, Series{id, steps})
	}
	slices.SortFunc(out.Series, func(a, b Series) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// busiest returns the containers that used most, by ids.
func (r *ring) busiest() []string {
	used := map[string]uint64{}
	for i := range r.steps {
		for j := range r.steps[i].cells {
			c := &r.steps[i].cells[j]
			used[c.id] = usage.Add(used[c.id], c.bytes())
		}
	}
	ids := slices.SortedFunc(maps.Keys(used), func(a, b string) int {
		return cmp.Or(cmp.Compare(used[b], used[a]), cmp.Compare(a, b))
	})
	return ids[:min(len(ids), cellsMost)]
}

// fill puts nothing into the steps in which a container used that. What it used in a step with
// others may be part of theirs.
func (r *ring) fill(id string, steps []*Growth) {
	none, spans := &Growth{}, r.spans[id]
	for i := range r.steps {
		s := &r.steps[i]
		at := s.number - r.steps[0].number
		for len(spans) > 0 && spans[0].last < s.number {
			spans = spans[1:]
		}
		if steps[at] == nil && len(spans) > 0 && spans[0].first <= s.number && s.others == (Growth{}) {
			steps[at] = none
		}
	}
}
