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
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/quota"
)

func wantSaid(t *testing.T, r *receiver, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, r.said()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestEachDeliveryIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"), hook("b"))
		a, other := b.catch("a"), b.catch("b")
		b.Send(firing("50", "a")) // before it runs
		stop := b.run()
		b.Send(firing("80", "a", "b"))
		synctest.Wait()
		b.Send(resolved("50", "a"))
		time.Sleep(3 * time.Hour)
		stop()
		wantSaid(t, a, "50 firing", "80 firing", "50 resolved")
		wantSaid(t, other, "80 firing")
		if sent, waiting := b.metric("sent_total", "a"), b.metric("queue", "a"); sent != 3 || waiting != 0 {
			t.Errorf("sent is %v and queue %v, want 3 and 0", sent, waiting)
		}
	})
}

// A target that is away holds its alerts, which then come in their order, and is
// asked at growing intervals.
func TestOutage(t *testing.T) {
	for name, why := range map[string]error{"away": errAway, "fails": errors.New("500")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, hook("a"), hook("well"))
				a, well := b.catch("a"), b.catch("well")
				a.set(func(quota.Alert) error { return why })
				stop := b.run()
				var want []string
				for _, id := range []string{"50", "80", "100"} {
					b.Send(firing(id, "a", "well"))
					want = append(want, id+" firing")
					time.Sleep(time.Minute)
				}
				wantSaid(t, well, want...)
				time.Sleep(3 * time.Hour)
				wantSaid(t, a)
				if got := b.metric("queue", "a"); got != 3 {
					t.Errorf("queue is %v while the target is away, want 3", got)
				}
				if n := len(a.attempts()); n < 180 || n > 1800 {
					t.Errorf("%d attempts in three hours, want one to ten a minute", n)
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
		})
	}
}

// Deliveries that fail alone hold up others for an hour each, and are then dropped. An alert's own
// end is no witness.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"))
		a := b.catch("a")
		a.set(func(a quota.Alert) error {
			if strings.HasPrefix(a.ID, "bad") && a.State == quota.Firing {
				return errors.New("500")
			}
			return nil
		})
		stop := b.run()
		b.Send(firing("bad", "a"))
		b.Send(resolved("bad", "a"))
		b.Send(firing("bad2", "a"))
		time.Sleep(2 * aloneFor)
		wantSaid(t, a)
		if got := b.metric("dropped_total", "a"); got != 0 {
			t.Errorf("dropped is %v with nothing that passes, want 0", got)
		}
		for i := range 4 {
			b.Send(firing(fmt.Sprint(i), "a"))
		}
		time.Sleep(3 * pauseLast)
		wantSaid(t, a, "0 firing", "bad resolved") // and then the other is the first
		time.Sleep(aloneFor + 5*pauseLast)
		wantSaid(t, a, "0 firing", "bad resolved", "1 firing", "2 firing", "3 firing")
		if got := b.metric("dropped_total", "a"); got != 2 {
			t.Errorf("dropped is %v, want 2", got)
		}
		if got := strings.Count(b.log.String(), "an alert fails where others pass"); got != 2 {
			t.Errorf("logged %d times, want 2", got)
		}
		if got := b.metric("queue", "a"); got != 0 {
			t.Errorf("queue is %v, want 0", got)
		}
		stop()
	})
}

// At the end of a long outage the order is kept, and nothing is taken for poisoned.
func TestOrderAfterServerErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"))
		a := b.catch("a")
		a.set(func(quota.Alert) error { return errors.New("500") })
		stop := b.run()
		var want []string
		for i := range 10 {
			b.Send(firing(fmt.Sprint(i), "a"))
			want = append(want, fmt.Sprint(i, " firing"))
		}
		time.Sleep(3 * aloneFor)
		a.set(nil)
		time.Sleep(pauseLast + pauseLeast)
		stop()
		wantSaid(t, a, want...)
	})
}

func TestHangDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("hangs"), hook("well"))
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

// An attempt that has begun may end, and what is ready is told.
func TestStopTellsWhatIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"), hook("away"), managed("m"))
		a, away, m := b.catch("a"), b.catch("away"), b.catch("m")
		a.set(func(quota.Alert) error { time.Sleep(graceful / 4); return nil })
		away.set(func(quota.Alert) error { return errAway })
		stop := b.run()
		synctest.Wait()
		b.Send(firing("50", "a", "away", "m"))
		synctest.Wait()
		b.Send(firing("80", "a", "away", "m"))
		b.Send(firing("100", "a", "away", "m"))
		began := time.Now()
		stop()
		if took := time.Since(began); took != graceful*3/4 {
			t.Errorf("stopping took %s, want %s", took, graceful*3/4)
		}
		wantSaid(t, a, "50 firing", "80 firing", "100 firing")
		if got := b.metric("queue", "a"); got != 0 {
			t.Errorf("queue is %v, want 0", got)
		}
		if n := len(away.attempts()); n != 1 {
			t.Errorf("%d attempts at a target that is away, want 1", n)
		}
		// In one request, as they sort, or in two: the worker may look between the two that came.
		got := slices.Sorted(slices.Values(m.said()))
		if diff := cmp.Diff([]string{"100 firing", "50 firing", "80 firing"}, got); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"))
		a := b.catch("a")
		a.set(func(quota.Alert) error {
			return &failure{cause: errors.New("429"), everyone: true, after: 5 * time.Minute}
		})
		stop := b.run()
		b.Send(firing("50", "a"))
		time.Sleep(4 * time.Minute)
		b.Send(firing("80", "a"))
		time.Sleep(time.Minute - time.Second)
		if n := len(a.attempts()); n != 1 {
			t.Errorf("%d attempts within the time that was asked for, want 1", n)
		}
		a.set(nil)
		time.Sleep(2 * time.Second)
		wantSaid(t, a, "50 firing", "80 firing")
		stop()
	})
}

func TestPermanentRefusalIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"))
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
		if got := b.metric("dropped_total", "a"); got != 1 {
			t.Errorf("dropped is %v, want 1", got)
		}
		if got := strings.Count(b.log.String(), "refuses an alert"); got != 1 {
			t.Errorf("logged %d times, want once:\n%s", got, b.log.String())
		}
	})
}

func TestMetrics(t *testing.T) {
	b := newBench(t, hook("a"), managed("m"))
	b.Send(firing("50", "a"))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Metrics()...)
	want := `
# HELP nettally_notify_dropped_total Alerts that were given up: a notifier refused them for good, failed for an hour on them alone, or too many were waiting for it.
# TYPE nettally_notify_dropped_total counter
nettally_notify_dropped_total{notifier="a"} 0
nettally_notify_dropped_total{notifier="m"} 0
# HELP nettally_notify_failures_total Attempts to tell a notifier that failed. The alerts are tried again, but for those that are dropped.
# TYPE nettally_notify_failures_total counter
nettally_notify_failures_total{notifier="a"} 0
nettally_notify_failures_total{notifier="m"} 0
# HELP nettally_notify_queue Alerts that a notifier is still to be told.
# TYPE nettally_notify_queue gauge
nettally_notify_queue{notifier="a"} 1
nettally_notify_queue{notifier="m"} 0
# HELP nettally_notify_sent_total Alerts that a notifier took, firing and resolved ones. What an Alertmanager is told again counts once.
# TYPE nettally_notify_sent_total counter
nettally_notify_sent_total{notifier="a"} 0
nettally_notify_sent_total{notifier="m"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}
