// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"math"

	"github.com/nettally/nettally/internal/usage"
)

// buckets is how many parts a rolling window has. It is exact to one of them: a window
// holds what was used in its length, and in up to a 120th more.
const buckets = 120

// window is what was used in each part of a rolling window, and in the one that has begun.
type window struct {
	parts [buckets + 1]uint64
	at    int64 // the number of the last part since 1970
}

// add counts into the last part.
func (w *window) add(n uint64) {
	last := &w.parts[w.slot(w.at)]
	*last = usage.Add(*last, n)
}

func (w *window) slot(n int64) int { return int(n % (buckets + 1)) }

// advance begins the part to, and returns what has left the window since.
func (w *window) advance(to int64) (left uint64) {
	for n := max(w.at, to-buckets-1) + 1; n <= to; n++ {
		slot := w.slot(n)
		left = usage.Add(left, w.parts[slot])
		w.parts[slot] = 0
	}
	w.at = max(w.at, to)
	return left
}

// moved is the window with other numbers for its parts.
func (w *window) moved(to int64) window {
	m := window{at: to}
	for i := range int64(buckets + 1) {
		m.parts[w.slot(to-i)] = w.parts[w.slot(w.at-i)]
	}
	return m
}

// merge adds the parts of another window.
func (w *window) merge(from *window) {
	for i := range from.parts {
		w.parts[i] = usage.Add(w.parts[i], from.parts[i])
	}
}

func (w *window) sum() (sum uint64) {
	for _, n := range w.parts {
		sum = usage.Add(sum, n)
	}
	return sum
}

// advance begins another part of a window. Where used is the highest number, it is not known
// how much more there was.
func (st *state) advance(to int64) {
	left := st.window.advance(to)
	if st.used == math.MaxUint64 {
		st.used = st.window.sum()
		return
	}
	st.used -= left
}
