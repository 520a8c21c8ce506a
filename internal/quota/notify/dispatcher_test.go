// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/quota"
)

func wantSaid(t *testing.T, r *receiver, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, r.said()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestEachStateIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"), hook("b"))
		a, other := b.catch("a"), b.catch("b")
		b.Send(firing("50", "a")) // before it runs
		stop := b.run()
		for range 3 {
			b.Send(firing("50", "a"))
			b.Send(firing("80", "a", "b"))
			synctest.Wait()
		}
		b.Send(resolved("50", "a"))
		b.Send(resolved("50", "a"))
		synctest.Wait()
		b.Send(firing("50", "a")) // by someone who has forgotten the end
		synctest.Wait()
		wantSaid(t, a, "50 firing", "80 firing", "50 resolved")
		anew := firing("50", "a") // as a projection may
		anew.StartsAt = start.Add(2 * time.Hour)
		b.Send(anew)
		synctest.Wait()
		stop()
		wantSaid(t, a, "50 firing", "80 firing", "50 resolved", "50 firing")
		wantSaid(t, other, "80 firing")
	})
}

// A target that is away holds its alerts, which then come in their order, and is
// asked at growing intervals.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"), hook("well"))
		a, well := b.catch("a"), b.catch("well")
		a.set(func(quota.Alert) error { return errAway })
		stop := b.run()
		var want []string
		for _, id := range []string{"50", "80", "100"} {
			b.Send(firing(id, "a", "well"))
			want = append(want, id+" firing")
			time.Sleep(time.Minute)
		}
		wantSaid(t, well, want...)
		time.Sleep(time.Hour)
		wantSaid(t, a)
		if got := testutil.ToFloat64(b.metrics.of("a").queue); got != 3 {
			t.Errorf("queue is %v while the target is away, want 3", got)
		}
		if n := len(a.attempts()); n < 60 || n > 600 {
			t.Errorf("%d attempts in an hour, want one to ten a minute", n)
		}
		a.set(nil)
		time.Sleep(pauseLast + pauseLeast)
		wantSaid(t, a, want...)
		stop()
		if got := strings.Count(b.log.String(), "level=WARN"); got != 1 {
			t.Errorf("%d warnings of one outage, want 1:\n%s", got, b.log.String())
		}
		if !strings.Contains(b.log.String(), "takes alerts again") {
			t.Errorf("nothing says that the outage is over:\n%s", b.log.String())
		}
	})
}

// What fails alone is overtaken; it is tried for ever, and does not slow down others.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"))
		a := b.catch("a")
		a.set(func(a quota.Alert) error {
			if a.ID == "bad" {
				return errors.New("500")
			}
			return nil
		})
		stop := b.run()
		b.Send(firing("bad", "a"))
		time.Sleep(time.Second)
		var want []string
		for i := range 20 {
			id := fmt.Sprint(i)
			b.Send(firing(id, "a"))
			want = append(want, id+" firing")
		}
		time.Sleep(3 * time.Minute)
		wantSaid(t, a, want...)
		a.set(nil)
		time.Sleep(skipFor + pauseLast)
		wantSaid(t, a, append(want, "bad firing")...)
		stop()
	})
}

// After five failures others are tried too, but once the target is back the oldest
// come first, all but the one that found out.
func TestOrderAfterServerErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"))
		a := b.catch("a")
		a.set(func(quota.Alert) error { return errors.New("500") })
		stop := b.run()
		for _, id := range []string{"1", "2", "3", "4"} {
			b.Send(firing(id, "a"))
		}
		time.Sleep(10 * time.Minute)
		a.set(nil)
		time.Sleep(pauseLast + pauseLeast)
		stop()
		got := a.said()
		if len(got) != 4 {
			t.Fatalf("told %v, want all four", got)
		}
		for i := 2; i < len(got); i++ {
			if got[i-1] > got[i] {
				t.Errorf("told %v, want all but the first in order", got)
			}
		}
	})
}

func TestHangDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("hangs"), hook("well"))
		hangs, well := b.catch("hangs"), b.catch("well")
		hangs.hang = true
		stop := b.run()
		began := time.Now()
		for i := range 100 {
			b.Send(firing(fmt.Sprint(i), "hangs", "well"))
		}
		synctest.Wait()
		if len(well.said()) != 100 || time.Since(began) != 0 {
			t.Errorf("told %d after %s, want 100 at once", len(well.said()), time.Since(began))
		}
		time.Sleep(defaultTimeout + pauseFirst + 2*pauseLeast)
		if n := len(hangs.attempts()); n != 2 {
			t.Errorf("%d attempts, want a second one after the timeout", n)
		}
		began = time.Now()
		stop()
		if took := time.Since(began); took > graceful {
			t.Errorf("stopping took %s, want %s at most", took, graceful)
		}
	})
}

// What is told anew after an orderly end was not under way then.
func TestStopLetsAnAttemptEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBench(t, store, hook("a"))
		a := b.catch("a")
		a.set(func(quota.Alert) error { time.Sleep(graceful / 2); return nil })
		stop := b.run()
		b.Send(firing("50", "a"))
		synctest.Wait()
		stop()
		wantSaid(t, a, "50 firing")
		b.restart()
		a = b.catch("a")
		stop = b.run()
		b.Send(firing("50", "a"))
		time.Sleep(time.Minute)
		stop()
		wantSaid(t, a)
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"))
		a := b.catch("a")
		a.set(func(quota.Alert) error {
			return &failure{cause: errors.New("429"), everyone: true, after: 5 * time.Minute}
		})
		stop := b.run()
		b.Send(firing("50", "a"))
		time.Sleep(5*time.Minute - time.Second)
		if n := len(a.attempts()); n != 1 {
			t.Errorf("%d attempts within the time that was asked for, want 1", n)
		}
		a.set(nil)
		time.Sleep(2 * time.Second)
		wantSaid(t, a, "50 firing")
		stop()
	})
}

func TestPermanentRefusalIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"))
		a := b.catch("a")
		a.set(refuseBad)
		stop := b.run()
		b.Send(firing("bad", "a"))
		b.Send(firing("good", "a"))
		time.Sleep(time.Hour)
		stop()
		wantSaid(t, a, "good firing")
		if n := len(a.attempts()); n != 2 {
			t.Errorf("%d attempts, want 2", n)
		}
		if got := testutil.ToFloat64(b.metrics.of("a").dropped); got != 1 {
			t.Errorf("dropped is %v, want 1", got)
		}
		if got := strings.Count(b.log.String(), "refuses an alert"); got != 1 {
			t.Errorf("logged %d times, want once:\n%s", got, b.log.String())
		}
	})
}

// A disk that fails or hangs delays no alert, and gets everything once it is back.
func TestDisk(t *testing.T) {
	for name, hangs := range map[string]bool{"fails": false, "hangs": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				b := newBench(t, store, hook("a"), hook("away"))
				a, away := b.catch("a"), b.catch("away")
				away.set(func(quota.Alert) error { return errAway })
				back := func() { store.set(nil, nil) }
				if hangs {
					hang := make(chan struct{})
					store.set(nil, hang)
					back = func() { store.set(nil, nil); close(hang) }
				} else {
					store.set(errors.New("input/output error"), nil)
				}
				stop := b.run()
				b.Send(firing("50", "a", "away"))
				time.Sleep(loadWithin + time.Second)
				wantSaid(t, a, "50 firing")
				b.Send(firing("80", "a"))
				time.Sleep(time.Minute)
				wantSaid(t, a, "50 firing", "80 firing")
				back()
				time.Sleep(saveAgain + time.Second)
				if n := len(store.threads(t)); n != 3 {
					t.Errorf("%d threads are kept once the disk is back, want 3", n)
				}
				stop()
				if n := strings.Count(b.log.String(), "input/output error"); n > 1 {
					t.Errorf("one outage of the disk is logged %d times", n)
				}
			})
		})
	}
}

// A disk that hangs does not keep the process from ending.
func TestStopWithHangingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBench(t, store, hook("a"))
		b.catch("a")
		stop := b.run()
		synctest.Wait()
		hang := make(chan struct{})
		store.set(nil, hang)
		b.Send(firing("50", "a"))
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took != stopWithin {
			t.Errorf("stopping took %s, want %s", took, stopWithin)
		}
		close(hang)
	})
}

// What waited before the disk could be read comes before what was said since.
func TestLateLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBench(t, store, hook("a"))
		b.catch("a").set(func(quota.Alert) error { return errAway })
		stop := b.run()
		b.Send(firing("50", "a"))
		time.Sleep(time.Second)
		stop()

		b.restart()
		a := b.catch("a")
		hang := make(chan struct{})
		store.set(nil, hang)
		stop = b.run()
		b.Send(resolved("50", "a"))
		time.Sleep(loadWithin / 2)
		wantSaid(t, a)
		store.set(nil, nil)
		close(hang)
		synctest.Wait()
		wantSaid(t, a, "50 firing", "50 resolved")
		stop()
	})
}

// Whatever its caller remembers after a crash, a notifier ends up with what fires.
func TestReconcile(t *testing.T) {
	for _, early := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, newMemory(), hook("a"))
			b.catch("a")
			stop := b.run()
			b.Send(firing("50", "a"))
			b.Send(firing("80", "a"))
			synctest.Wait()
			stop()

			b.restart()
			a := b.catch("a")
			if early {
				b.Reconcile([]quota.Alert{firing("80", "a"), firing("100", "a")})
			}
			stop = b.run()
			if !early {
				synctest.Wait()
				b.Reconcile([]quota.Alert{firing("80", "a"), firing("100", "a")})
			}
			synctest.Wait()
			stop()
			got := a.said()
			slices.Sort(got) // they are different alerts
			if diff := cmp.Diff([]string{"100 firing", "50 resolved"}, got); diff != "" {
				t.Errorf("told after the restart (-want +got):\n%s", diff)
			}
		})
	}
}

// Ends are remembered for a while, and then nothing is left of an alert.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBench(t, store, hook("a"), manager("m"))
		b.catch("a")
		b.catch("m")
		stop := b.run()
		for i := range 300 {
			b.Send(firing(fmt.Sprint(i), "a", "m"))
			b.Send(resolved(fmt.Sprint(i), "a", "m"))
		}
		time.Sleep(time.Minute)
		if n := len(store.threads(t)); n != 600 {
			t.Errorf("%d threads are kept, want 600", n)
		}
		time.Sleep(rememberFor + time.Second)
		stop()
		if n := len(store.threads(t)) + len(b.queues["a"].threads) + len(b.queues["m"].threads); n != 0 {
			t.Errorf("%d threads are left", n)
		}
	})
}
