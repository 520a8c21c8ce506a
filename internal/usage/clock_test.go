// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/wallclock"
)

// Whatever the wall clock does, at boot or later: containers are shown for as long as they are
// to be, and what is kept of them has times that are trusted.
func TestWrongClock(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, off := range map[string][]time.Duration{
		"behind": {-2 * year, -2 * year}, "ahead": {2 * year, 2 * year}, "jumped once": {2 * year, 0},
		"stands still": {-2 * time.Hour, -150 * time.Minute},
	} {
		for _, booted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, booted %v", name, booted), func(t *testing.T) {
				kernel, real := newSlots(), &clock{now: time.Now()}
				saved := real.now.Round(0).Add(-time.Minute)
				const up = 10 * time.Minute
				mark := wallclock.Mark{Wall: saved, BootID: 2, Boot: up - time.Minute}
				if booted {
					mark = wallclock.Mark{Wall: saved.Add(-up + time.Minute), BootID: 1}
				}
				now, began := off[0], real.now
				read := func() wallclock.Reading {
					return wallclock.Reading{Wall: real.now.Add(now), BootID: 2, Boot: up + real.now.Sub(began)}
				}
				host := wallclock.New(read, slog.New(slog.DiscardHandler))
				host.Restore(mark, wallclock.Mark{})
				a := New(Options{
					Datapath: kernel, Retention: func() time.Duration { return time.Hour }, Boot: "boot", Kept: true,
					Now: func() time.Time { return real.now }, Clock: host,
				})
				a.Restore([]Record{{Container: Container{ID: "old", State: Stopped, StoppedAt: saved.Add(-29 * time.Minute)}}})
				a.Start(Container{ID: "web", StartedAt: read().Wall.Add(-time.Second)})
				a.Recall("web", nil)
				open(t, a, 7, "veth7")
				assign(t, a, 7, "web", "eth0")
				c := find(t, a, "web")
				if at := c.Interfaces[0].AttachedAt; at.Sub(began).Abs() > time.Minute {
					t.Errorf("attached at %s, and it is %s", at, began)
				}
				if at := c.StartedAt; at.Sub(began.Add(-time.Second)).Abs() > time.Minute {
					t.Errorf("started at %s, and it is %s", at, began)
				}
				closeInterface(t, a, 7)
				a.Stop("web")
				a.Written(a.Pending(true))

				real.now, now = real.now.Add(30*time.Minute), off[1]
				a.Written(a.Pending(true))
				if gone := a.Expire(); len(gone) > 0 {
					t.Fatalf("%v are forgotten after half of their time", gone)
				}
				if c := find(t, a, "web"); c.StoppedFor != 30*time.Minute {
					t.Errorf("stopped for %s", c.StoppedFor)
				}
				real.now = real.now.Add(time.Minute)
				if diff := cmp.Diff([]string{"old"}, a.Expire()); diff != "" {
					t.Errorf("forgotten (-want +got):\n%s", diff)
				}
				now = 0 // it is put right
				real.now = real.now.Add(30 * time.Minute)
				if diff := cmp.Diff([]string{"web"}, a.Expire()); diff != "" {
					t.Errorf("forgotten (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func find(t *testing.T, a *Accounts, id string) Container {
	t.Helper()
	for _, c := range a.Snapshot().Containers {
		if c.ID == id {
			return c
		}
	}
	t.Fatalf("container %s is not shown", id)
	return Container{}
}
