// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKeepTooLong(t *testing.T) {
	d := load(t, Options{})
	s := take(t, d, 1)
	s.Note = Note{OwnQdisc: true, Container: strings.Repeat("c", 239), Interface: "eth0"}
	must(t, d.Keep(s))
	for name, note := range map[string]Note{
		"container": {Container: strings.Repeat("c", 240)},
		"interface": {Interface: "sixteen-bytes-00"},
	} {
		long := s
		long.Note = note
		err := d.Keep(long)
		if !errors.Is(err, ErrTooLong) {
			t.Fatalf("%s: %v, want ErrTooLong", name, err)
		}
		t.Log(err)
	}
	if diff := cmp.Diff([]Slot{s}, d.Slots()); diff != "" {
		t.Errorf("slots after notes that were refused (-want +got):\n%s", diff)
	}
	kept, err := slotsIn(d.maps.Slots)
	must(t, err)
	if diff := cmp.Diff([]Slot{s}, kept); diff != "" {
		t.Errorf("slots in the kernel (-want +got):\n%s", diff)
	}
}

// Keep changes the note alone.
func TestKeepOther(t *testing.T) {
	d := load(t, Options{})
	s := take(t, d, 7)
	changed := s
	changed.Ifindex, changed.Container = 8, "c"
	must(t, d.Keep(changed))
	s.Container = "c"
	if diff := cmp.Diff([]Slot{s}, d.Slots()); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
}

// What is kept of a slot is what was to be kept, whatever that is.
func TestPinnedRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func(most int) string {
		b := make([]byte, r.IntN(most+1))
		for i := range b {
			b[i] = byte(1 + r.IntN(255))
		}
		return string(b)
	}
	for range 10_000 {
		s := Slot{
			Index: uint16(r.Uint32()), Generation: r.Uint64(), Target: Target{Ifindex: int(r.Int32())},
			Note: Note{
				OwnQdisc: r.IntN(2) == 0, Handover: r.IntN(2) == 0, Container: name(239), Interface: name(15),
				SeededReceive: Volume{r.Uint64(), r.Uint64()}, SeededTransmit: Volume{r.Uint64(), r.Uint64()},
				MendedReceive: Volume{r.Uint64(), r.Uint64()}, MendedTransmit: Volume{r.Uint64(), r.Uint64()},
				Lost: Lost{
					Known: r.IntN(2) == 0, ReceiveDropped: uint64(r.Uint32()), TransmitDropped: uint64(r.Uint32()),
					Followed: r.IntN(2) == 0, Undelivered: uint64(r.Uint32()),
					Mark: Mark{r.Uint32(), r.Uint32(), r.Uint32(), r.Uint32(), r.Uint32()},
				},
			},
		}
		pinned, err := s.pinned()
		must(t, err)
		if got := pinned.slot(uint32(s.Index)); got != s {
			t.Fatalf("slot %+v came back as %+v", s, got)
		}
	}
}
