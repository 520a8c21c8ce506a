// SPDX-License-Identifier: Apache-2.0

package view

import "math"

const (
	// StepMS is how long a step of a trace is, in milliseconds.
	StepMS = 10_000
	// Steps is how many steps a trace holds: 15 minutes.
	Steps = 90
)

// Trace is how many bytes a container used in each of the last steps. The zero value knows none.
type Trace struct {
	last  int64          // the number of the newest step since boot
	steps []([2]float32) // the newest last; NaN where it is not known
}

// unknown stands for a step of which nothing is known.
var unknown = float32(math.NaN())

// add spreads bytes that were used between two readings over the steps between them.
func (t *Trace) add(from, to int64, receive, transmit uint64) {
	if to <= from {
		if len(t.steps) > 0 && to/StepMS == t.last {
			t.put(t.last, float64(receive), float64(transmit))
		}
		return
	}
	first := max(from, to-Steps*StepMS)
	for step := first / StepMS; step*StepMS < to; step++ {
		share := float64(min(to, (step+1)*StepMS)-max(from, step*StepMS)) / float64(to-from)
		t.put(step, float64(receive)*share, float64(transmit)*share)
	}
}

// put adds to a step, and forgets the oldest ones.
func (t *Trace) put(step int64, receive, transmit float64) {
	t.reach(step)
	i := len(t.steps) - 1 - int(t.last-step)
	if i < 0 {
		return
	}
	for d, n := range [2]float64{receive, transmit} {
		if math.IsNaN(float64(t.steps[i][d])) {
			t.steps[i][d] = 0
		}
		t.steps[i][d] += float32(n)
	}
}

// reach makes steps up to one, of which nothing is known yet.
func (t *Trace) reach(step int64) {
	switch {
	case len(t.steps) == 0 || step-t.last >= Steps:
		t.steps, t.last = append(t.steps[:0], [2]float32{unknown, unknown}), step
	default:
		for ; t.last < step; t.last++ {
			t.steps = append(t.steps, [2]float32{unknown, unknown})
		}
	}
	if over := len(t.steps) - Steps; over > 0 {
		t.steps = append(t.steps[:0], t.steps[over:]...)
	}
}

// fill takes steps from the daemon, which has seen all of each. What only the trace knows stays.
// end is the number of the step behind the last of them.
func (t *Trace) fill(end int64, receive, transmit []*uint64) {
	filled := Trace{}
	n := min(len(receive), len(transmit))
	for i := range n {
		step := end - int64(n-i)
		filled.reach(step)
		if receive[i] != nil && transmit[i] != nil {
			filled.put(step, float64(*receive[i]), float64(*transmit[i]))
		}
	}
	for i, own := range t.steps {
		step := t.last - int64(len(t.steps)-1-i)
		at := len(filled.steps) - 1 - int(filled.last-step)
		if !math.IsNaN(float64(own[0])) && (at < 0 || at >= len(filled.steps) || math.IsNaN(float64(filled.steps[at][0]))) {
			filled.put(step, float64(own[0]), float64(own[1]))
		}
	}
	*t = filled
}

// Rates returns the bytes per second of the last n steps before the one that a time falls in,
// receive and transmit, oldest first, NaN where they are not known.
func (t *Trace) Rates(n int, boot int64) (receive, transmit []float64) {
	receive, transmit = make([]float64, n), make([]float64, n)
	end := boot / StepMS
	for i := range n {
		at := len(t.steps) - 1 - int(t.last-(end-int64(n-i)))
		if at < 0 || at >= len(t.steps) {
			receive[i], transmit[i] = math.NaN(), math.NaN()
			continue
		}
		receive[i] = float64(t.steps[at][0]) * 1000 / StepMS
		transmit[i] = float64(t.steps[at][1]) * 1000 / StepMS
	}
	return receive, transmit
}
