// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"math"
	"testing"
)

// Sums stop at the highest number: one that began again at 0 would look like a new container.
func TestSumsSaturate(t *testing.T) {
	const top = math.MaxUint64
	for _, test := range [][3]uint64{{1, 2, 3}, {top - 1, 1, top}, {top, 1, top}, {1, top, top}, {top, top, top}, {1 << 63, 1 << 63, top}} {
		if got := Add(test[0], test[1]); got != test[2] {
			t.Errorf("%d + %d is %d, want %d", test[0], test[1], got, test[2])
		}
	}
	var full Counts
	for _, n := range full.fields() {
		*n = top
	}
	sum := Traffic{Receive: full}.Plus(Traffic{Receive: full, Transmit: full})
	if sum.Receive != full || sum.Transmit != full {
		t.Errorf("the sum of full counters is %+v", sum)
	}
	want := Volume{top, top}
	for name, got := range map[string]Volume{
		"wire": full.Wire(), "counted": full.Counted(), "timed": full.Timed(), "family": full.Family(FamilyIPv6), "protocol": full.Protocol(ProtocolTCP),
	} {
		if got != want {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
}
