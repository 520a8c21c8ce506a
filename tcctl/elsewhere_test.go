// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// Filters by which another process of ours counts are not ours while it runs: they are not
// listed, replaced or deleted. Then they are, as those of any earlier process.
func TestElsewhere(t *testing.T) {
	h := newHost(t)
	other := open(t, h.Namespace, 2)
	theirs, ours := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attach(t, other, h.ifindex, 3, theirs, theirs)
	info, err := theirs.seen.Info()
	if err != nil {
		t.Fatal(err)
	}
	counting, _ := info.ID()
	running := true
	here, err := Open(Options{NetNS: h.FD(), Priority: 2, Elsewhere: func(maps []ebpf.MapID) (bool, error) {
		return running && slices.Contains(maps, counting), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	c, err := here.In(h.FD()) // the proof goes with it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	before := h.show(t)
	wantFilters(t, c, h.ifindex)
	if _, err := c.Attach(h.ifindex, 4, ours, ours, nil); !errors.Is(err, ErrForeign) {
		t.Errorf("attach: %v, want ErrForeign", err)
	}
	detach(t, c, h.ifindex, true)
	if diff := cmp.Diff(before, h.show(t)); diff != "" {
		t.Errorf("filters (-before +after):\n%s", diff)
	}
	running = false
	attach(t, c, h.ifindex, 4, ours, ours)
	wantFilters(t, c, h.ifindex, h.attached(Ingress, 2, 4, ours), h.attached(Egress, 2, 4, ours))
	detach(t, c, h.ifindex, true)
}
