// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// A viewer gets a sample in each second, however close to its end the hub began, and though
// timers are a bit late.
func TestASamplePerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		began := time.Now()
		ready := make(chan struct{})
		close(ready)
		h := New(Options{
			Read:  func(context.Context, bool, bool) usage.Snapshot { return usage.Snapshot{TakenAt: time.Now()} },
			Ready: ready,
			Boot: func() time.Duration {
				time.Sleep(time.Duration(random.Int64N(int64(time.Millisecond))))
				return 1000*time.Second - 500*time.Microsecond + time.Since(began)
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		synctest.Wait()
		time.Sleep(10 * time.Millisecond)
		v, err := h.Join(time.Second, func() {})
		if err != nil {
			t.Fatal(err)
		}
		last := (<-v.C)[0].Event.(Containers).Boot
		for range 200 {
			for _, m := range <-v.C {
				if s, is := m.Event.(Sample); is {
					if gap := s.Boot - last; gap > 1500*time.Millisecond {
						t.Fatalf("no sample for %s, at %s", gap, s.Boot)
					}
					last = s.Boot
				}
			}
		}
		cancel()
		<-ended
	})
}

// A reading that the end has cut short is told to nobody.
func TestNothingIsToldOfHalfAReading(t *testing.T) {
	h := newHost(t)
	v := h.join(time.Second)
	<-v.C
	ctx, cancel := context.WithCancel(t.Context())
	read := h.hub.Read
	h.hub.Read = func(ctx context.Context, all, watched bool) usage.Snapshot {
		cancel()
		return read(ctx, all, watched)
	}
	h.boot += StepOf
	h.hub.step(ctx)
	if len(v.C) > 0 {
		t.Errorf("told %+v", (<-v.C)[0].Event)
	}
}

// Whoever comes and goes all the time has no more read than one that stays.
func TestComingAndGoing(t *testing.T) {
	h := newHost(t)
	h.set("a", 1)
	h.reads = 0
	for range 1000 {
		h.boot += 10 * time.Millisecond
		h.join(time.Second).Leave()
	}
	if h.reads > 12 {
		t.Errorf("%d readings in 10 s", h.reads)
	}
}

// An alert that ends is told to each viewer once, also where so many end that quotas do not list
// it any more.
func TestAlertsThatAreListedNoMore(t *testing.T) {
	h := newHost(t)
	h.boot = 1020 * time.Second
	h.alerts = []quota.Alert{{ID: "1", State: quota.Firing}, {ID: "2", State: quota.Firing}}
	quick, slow := h.join(time.Second), h.join(20*time.Second)
	var q, s seen
	q.take(quick)
	s.take(slow)
	q.events, s.events = nil, nil
	h.alerts[0].State = quota.Resolved
	h.pass(1)
	q.take(quick)
	q.expect(t, "alert 1 resolved")
	h.alerts = nil
	for range 19 {
		h.pass(1)
		q.take(quick)
	}
	q.expect(t, "alert 2 resolved")
	s.take(slow)
	s.expect(t, "alert 1 resolved", "alert 2 resolved")
	h.pass(1)
	if n := len(h.hub.alerts); n > 0 {
		t.Errorf("%d alerts are remembered", n)
	}
	h.alerts = []quota.Alert{{ID: "2", State: quota.Firing}}
	h.pass(1)
	q.take(quick)
	q.expect(t, "alert 2 firing")
}
