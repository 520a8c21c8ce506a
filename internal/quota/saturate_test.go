// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"math"
	"testing"
	"time"
)

// What keys have used stops at the highest number, and others are exact beside it.
func TestUsedSaturates(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("all"), func(r *Rule) { r.Per = PerAll }))
	b.pass(0)
	for _, id := range []string{"a1", "a2", "b1"} {
		b.start(id, map[string]string{"a1": "web", "a2": "web", "b1": "db"}[id])
	}
	b.pass(time.Second)
	b.transmit("a1", math.MaxUint64-1)
	b.transmit("a2", math.MaxUint64/2)
	b.transmit("b1", 700)
	b.pass(time.Second)
	b.transmit("b1", 77)
	b.pass(time.Second)
	b.restart()
	b.pass(time.Second)
	used := map[string]uint64{}
	for _, r := range b.engine.rules {
		for key, st := range r.states {
			used[r.Name+"/"+key] = st.used
		}
	}
	same(t, used, map[string]uint64{"m/web": math.MaxUint64, "m/db": 777, "all/all": math.MaxUint64})
}

// A window that was full knows again what is in it, as soon as that can be said.
func TestWindowSaturates(t *testing.T) {
	st := &state{window: &window{at: 1000}}
	use := func(n, want uint64) {
		t.Helper()
		st.add(n)
		same(t, st.used, want)
	}
	use(math.MaxUint64, math.MaxUint64)
	use(7, math.MaxUint64)
	st.advance(1001)
	use(5, math.MaxUint64)
	st.advance(1002)
	use(math.MaxUint64-1, math.MaxUint64)
	other := &state{window: &window{at: 1002}}
	other.add(9)
	st.merge(other)
	same(t, st.used, uint64(math.MaxUint64))
	st.advance(1000 + buckets + 1) // the first part leaves
	same(t, st.used, uint64(math.MaxUint64))
	st.advance(1002 + buckets) // the second one, of 5
	same(t, st.used, uint64(math.MaxUint64))
	st.advance(1003 + buckets)
	same(t, st.used, uint64(0))
	use(3, 3)
	same(t, st.window.sum(), st.used)
}
