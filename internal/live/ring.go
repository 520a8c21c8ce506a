// SPDX-License-Identifier: Apache-2.0

package live

import (
	"cmp"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

const (
	// StepOf and Steps are the length and the number of the steps of a [Recent].
	StepOf = 10 * time.Second
	Steps  = 90
	// cellsMost is how many containers have numbers of their own in a step, those that moved
	// most. So a ring takes 90 * 1,000 * 64 bytes at most, which is 5.8 MB.
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
	steps []ringStep // oldest first
	last  map[string]lastTotal
	at    int64 // the step that ended last, 0 for none
	spans map[string]span
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

// span is the steps of which something is known of a container.
type span struct{ first, last int64 }

// due says whether a step has ended.
func (r *ring) due(boot time.Duration) bool { return int64(boot/StepOf) != r.at }

// take ends a step. After a gap the growth belongs to no step, and the next one begins here.
func (r *ring) take(boot time.Duration, containers map[string]*tracked) {
	number := int64(boot / StepOf)
	whole := r.at != 0 && number == r.at+1
	step := ringStep{number: number}
	last := make(map[string]lastTotal, len(containers))
	if r.spans == nil {
		r.spans = map[string]span{}
	}
	for id, t := range containers {
		now := lastTotal{t.Total, t.CountedBy, t.Recalled}
		last[id] = now
		before, there := r.last[id]
		if !whole || !there || before.by != now.by || before.recalled != now.recalled {
			continue
		}
		s, known := r.spans[id]
		if !known {
			s.first = number
		}
		s.last = number
		r.spans[id] = s
		g := Growth{now.Receive.since(before.Receive), now.Transmit.since(before.Transmit)}
		if g != (Growth{}) {
			step.cells = append(step.cells, cell{id, g})
		}
	}
	r.last, r.at = last, number
	if !whole {
		return
	}
	slices.SortFunc(step.cells, func(a, b cell) int {
		return cmp.Or(cmp.Compare(b.bytes(), a.bytes()), cmp.Compare(a.id, b.id))
	})
	for _, c := range step.cells[min(len(step.cells), cellsMost):] {
		step.others = step.others.plus(c.Growth)
	}
	step.cells = slices.Clip(step.cells[:min(len(step.cells), cellsMost)])
	r.steps = append(r.steps, step)
	r.drop(number - Steps)
}

// drop forgets the steps up to a number.
func (r *ring) drop(number int64) {
	r.steps = slices.DeleteFunc(r.steps, func(s ringStep) bool { return s.number <= number })
	for id, s := range r.spans {
		if s.last <= number {
			delete(r.spans, id)
		}
	}
}

// Recent is what was used in the last 15 minutes. It belongs to the caller.
type Recent struct {
	End    time.Duration // of the last step, since boot
	Series []Series      // of containers that used something, by id
	Others Series        // of what is beyond 1,000 containers in a step
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
		return Recent{}
	}
	first, end := r.steps[0].number, r.steps[len(r.steps)-1].number
	n := int(end-first) + 1
	out := Recent{End: time.Duration(end) * StepOf, Others: Series{Steps: make([]*Growth, n)}}
	series := map[string][]*Growth{}
	for i := range r.steps {
		s := &r.steps[i]
		others := s.others // the ring moves its own
		out.Others.Steps[s.number-first] = &others
		for j := range s.cells {
			c := &s.cells[j]
			if series[c.id] == nil {
				series[c.id] = make([]*Growth, n)
			}
			series[c.id][s.number-first] = &c.Growth
		}
	}
	none := &Growth{}
	for id, steps := range series {
		for i := range r.steps {
			number := r.steps[i].number
			at := number - first
			if s := r.spans[id]; steps[at] == nil && s.first <= number && number <= s.last {
				steps[at] = none
			}
		}
		out.Series = append(out.Series, Series{id, steps})
	}
	slices.SortFunc(out.Series, func(a, b Series) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
