// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// received is a reading of packets received, of 100 bytes: by the kernel, by us one per
// socket buffer, and by us on the wire.
func received(kernel, ours, wire uint64) reading {
	now := counted{receive: oneWay{
		asKernel: usage.Volume{Bytes: 100 * ours, Packets: ours},
		wire:     usage.Volume{Bytes: 100 * wire, Packets: wire},
	}}
	return reading{before: now, kernel: watcher.LinkCounters{ReceiveBytes: 100 * kernel, ReceivePackets: kernel}, after: now}
}

func TestBlind(t *testing.T) {
	since := received(1000, 900, 950)
	for name, test := range map[string]struct {
		kernel, ours, wire uint64 // since then
		was, blind         bool
	}{
		"nothing passed":                         {0, 0, 0, false, false},
		"nothing passed, and none was seen":      {0, 0, 0, true, true},
		"all were seen":                          {10, 10, 10, true, false},
		"more by now than the kernel had":        {10, 12, 12, false, false},
		"super-packets, counted as one":          {10, 10, 70, false, false},
		"super-packets, cut up behind our hook":  {70, 10, 70, false, false},
		"dropped behind our hook":                {0, 10, 10, false, false},
		"none was seen":                          {1, 0, 0, false, true},
		"many passed and few were seen":          {10_000, 100, 100, false, true},
		"a few more than we saw, of many":        {10_000, 9_990, 9_990, false, false},
		"a few more than we saw, as in a moment": {90, 50, 50, false, false},
	} {
		k := check{sound: since, last: since, blindReceive: test.was, blindTransmit: test.was}
		k.take(received(1000+test.kernel, 900+test.ours, 950+test.wire))
		if k.blindReceive != test.blind || k.blindTransmit != test.was {
			t.Errorf("%s: blind %v, and in the direction that nothing is said of %v", name, k.blindReceive, k.blindTransmit)
		}
	}
}

// A packet that passes while a reading is taken is counted, whenever the kernel had it.
func TestPassesDuringReading(t *testing.T) {
	last := received(1000, 1000, 1000)
	last.after = received(0, 1001, 1001).after
	k := check{sound: last, last: last}
	k.take(received(1001, 1001, 1001))
	if k.blind() {
		t.Error("blind, and it was counted before the kernel was asked again")
	}
}

// What is missing now was there in the reading that is kept for that.
func TestSound(t *testing.T) {
	k := &check{}
	steps := []struct{ kernel, ours, sound uint64 }{
		{100, 100, 0},
		{200, 200, 100},
		{300, 295, 100}, // too few to be noticed
		{300, 295, 100},
		{400, 295, 100}, // noticed
	}
	for i, s := range steps {
		k.take(received(s.kernel, s.ours, s.ours))
		if got := k.sound.kernel.ReceivePackets; got != s.sound || k.blind() != (i == len(steps)-1) {
			t.Errorf("step %d: sound at %d, want %d; blind %v", i, got, s.sound, k.blind())
		}
	}
}

func TestCompleteness(t *testing.T) {
	var s completeness
	if s.ratio() != 1 {
		t.Errorf("%v before anything passed", s.ratio())
	}
	s.add(received(100, 100, 150), reading{}) // all, and the wire has more
	s.add(received(200, 50, 50), received(100, 0, 0))
	if want := 150.0 / 200; s.ratio() != want {
		t.Errorf("%v, want %v", s.ratio(), want)
	}
}
