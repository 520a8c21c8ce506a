// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSocketCounters(t *testing.T) {
	var row words
	for i := range row {
		row[i] = uint64(i)
	}
	want := SocketCounters{Send: [3]SocketCalls{{0, 6}, {1, 7}, {2, 8}}, Receive: [3]SocketCalls{{3, 9}, {4, 10}, {5, 11}}}
	if diff := cmp.Diff(want, socketCounters(&row)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
