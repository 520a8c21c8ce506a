// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

func wantStrays(tb testing.TB, c *Controller, want ...int) {
	tb.Helper()
	got, err := c.DetachStrays()
	if err != nil {
		tb.Error(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("interfaces with strays (-want +got):\n%s", diff)
	}
}

// Links whose pins can't be seen are taken off, and nobody else's, nor those whose pins can.
func TestDetachStrays(t *testing.T) {
	h, before := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, before, h.ifindex, ingress, egress)
	wantStrays(t, before) // its own pins lead there
	foreign := loadVerdict(t, -1)
	h.addTCX(t, Ingress, foreign, link.Tail())
	others := func() (ids []ebpf.ProgramID) {
		for _, one := range onTCX(t, h.Namespace, h.ifindex, Ingress) {
			if one.ID != ebpf.ProgramID(ingress.id) {
				ids = append(ids, one.ID)
			}
		}
		return ids
	}

	// Another host's interface may have the same number.
	elsewhere := openPins(t, nettest.Host(t), newPins(t))
	wantStrays(t, elsewhere)
	h.wantOnTCX(t, Egress, egress)

	hidden := newPins(t) // where the pins of before can't be seen
	after := openPins(t, h.Namespace, hidden)
	newIngress, newEgress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, after, h.ifindex, newIngress, newEgress)
	if n := len(onTCX(t, h.Namespace, h.ifindex, Egress)); n != 2 {
		t.Fatalf("%d programs, want both", n)
	}
	wantStrays(t, after, h.ifindex)
	h.wantOnTCX(t, Egress, newEgress)
	if got := others(); len(got) != 2 || got[1] == ebpf.ProgramID(newIngress.id) {
		t.Errorf("programs %v", got)
	}
	wantStrays(t, after)
	h.exchange(t)
	newIngress.want(t, noted{Packets: 1})
	ingress.want(t, noted{})

	// The pins of before come to light: their links are dead.
	wantTCX(t, before, h.ifindex, false, false)
	wantTCXInterfaces(t, before)
	wantPins(t, before)
	wantTCX(t, after, h.ifindex, true, true)
}

// A process that runs counts by its links, wherever its pins are.
func TestStraysElsewhere(t *testing.T) {
	h, theirs := newTCXHost(t)
	ingress := load(t, "nettally_ingress")
	attachTCX(t, theirs, h.ifindex, ingress, ingress)
	info, err := ingress.seen.Info()
	if err != nil {
		t.Fatal(err)
	}
	counting, _ := info.ID()
	running, failure := true, error(nil)
	c, err := Open(Options{NetNS: h.FD(), Pins: newPins(t), Elsewhere: func(maps []ebpf.MapID) (bool, error) {
		return running && slices.Contains(maps, counting), failure
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantStrays(t, c)
	h.wantOnTCX(t, Ingress, ingress)
	running, failure = false, errors.New("not now")
	if got, err := c.DetachStrays(); !errors.Is(err, failure) || got != nil {
		t.Errorf("%v, %v; want the error", got, err)
	}
	h.wantOnTCX(t, Ingress, ingress)
	failure = nil
	wantStrays(t, c, h.ifindex)
	h.wantOnTCX(t, Ingress)
}
