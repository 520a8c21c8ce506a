// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// text writes what a series says was received, with - where nothing is known.
func (s Series) text() (out string) {
	for _, g := range s.Steps {
		if g == nil {
			out += "- "
		} else {
			out += fmt.Sprint(g.Receive.Bytes, " ")
		}
	}
	return s.ID + ": " + out
}

// Where files are read now and then, a reading that is older than the end of a step ends none:
// nothing that was used is missing from the steps.
func TestRecentOfFiles(t *testing.T) {
	for name, age := range map[string]func(boot time.Duration) time.Duration{
		"each 5 s": func(boot time.Duration) time.Duration { return (boot + 2*time.Second) % (5 * time.Second) },
		"just now": func(time.Duration) time.Duration { return 20 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.hub.Read = func(context.Context, bool, bool) usage.Snapshot {
				age := age(h.boot)
				h.set("a", uint64((h.boot - age).Milliseconds())) // a byte per millisecond
				now := time.Unix(0, 0).Add(h.boot)
				return usage.Snapshot{TakenAt: now, ReadAt: now.Add(-age), Containers: []usage.Container{h.containers["a"]}}
			}
			h.pass(1)
			v := h.join(time.Second)
			for range 100 {
				h.pass(1)
				for len(v.C) > 0 {
					<-v.C
				}
			}
			r := h.hub.Recent()
			if len(r.Series) != 1 {
				t.Fatalf("%d series", len(r.Series))
			}
			steps := r.Series[0].Steps
			var sum uint64
			for _, g := range steps {
				if g != nil {
					sum += g.bytes()
				}
			}
			// The first step begins at the first reading, and the last one ends at its reading.
			want := uint64(len(steps)) * uint64(StepOf.Milliseconds())
			if len(steps) < 9 || sum < want-5000 || sum > want+5000 {
				t.Errorf("%d steps with %d bytes, want some %d: %s", len(steps), sum, want, r.Series[0].text())
			}
		})
	}
}

// Nothing is known of a step in which a container was counted otherwise, or was not there, also
// where something is known of later steps.
func TestRecentUnknown(t *testing.T) {
	h := newHost(t)
	h.boot -= h.boot % StepOf
	byCgroup := func(c *usage.Container) { c.IP, c.OnHost = &usage.Traffic{}, true }
	h.set("a", 100)
	h.set("b", 100)
	h.pass(1)
	for i, change := range []func(){
		func() { h.set("a", 110); h.set("b", 110) },
		func() { h.set("a", 110, byCgroup); delete(h.containers, "b") },
		func() {},
		func() { h.set("a", 120); h.set("b", 200) },
		func() { h.set("b", 203) },
		func() { h.set("a", 121) },
	} {
		change()
		h.pass(10)
		if got := len(h.hub.Recent().Others.Steps); got != i+1 {
			t.Fatalf("%d steps, want %d", got, i+1)
		}
	}
	r := h.hub.Recent()
	for i, want := range []string{"a: 10 - 0 - 0 1 ", "b: 10 - - - 3 0 "} {
		if got := r.Series[i].text(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	h.pass(1000)
	h.containers = map[string]usage.Container{}
	h.pass(1000)
	if n := len(h.hub.ring.spans); n > 0 {
		t.Errorf("%d containers that are gone are remembered", n)
	}
}

// However many containers come and go, no more than 1,000 have series of their own; the others
// are summed up.
func TestRecentOfManyLives(t *testing.T) {
	h := newHost(t)
	var sum uint64
	for step := range 20 {
		clear(h.containers)
		for i := range 200 {
			h.set(fmt.Sprint(step, "-", i), 0)
		}
		h.pass(10)
		for id := range h.containers {
			n := uint64(100 + step)
			h.set(id, n)
			sum += n
		}
		h.pass(10)
	}
	r := h.hub.Recent()
	got := uint64(0)
	for _, n := range sums(r) {
		got += n
	}
	if len(r.Series) > cellsMost || got != sum {
		t.Errorf("%d series with %d bytes, want %d at most with %d", len(r.Series), got, cellsMost, sum)
	}
	if sums(r)["0-0"] != 0 || sums(r)["19-0"] != 119 {
		t.Error("those that used least have series")
	}
}
