// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/quota"
)

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"))
		a := b.catch("a")
		a.set(func(quota.Alert) error { return errAway })
		b.queues["a"].full = 10
		stop := b.run()
		for i := range 8 {
			b.Send(firing(fmt.Sprint("f", i), "a"))
		}
		synctest.Wait()
		b.Send(resolved("f3", "a")) // 9
		b.Send(resolved("f5", "a")) // 10
		b.Send(firing("g0", "a"))   // f3 goes: it has ended
		b.Send(firing("g1", "a"))   // fits
		b.Send(firing("g2", "a"))   // f5 goes
		b.Send(firing("g3", "a"))   // fits
		b.Send(firing("g4", "a"))   // f0 goes, the oldest
		if got := testutil.ToFloat64(b.metrics.of("a").dropped); got != 5 {
			t.Errorf("dropped is %v, want 5", got)
		}
		a.set(nil)
		time.Sleep(2 * pauseLast)
		stop()
		wantSaid(t, a, "f1 firing", "f2 firing", "f4 firing", "f6 firing", "f7 firing",
			"g0 firing", "g1 firing", "g2 firing", "g3 firing", "g4 firing")
		if !strings.Contains(b.log.String(), "too many alerts wait") {
			t.Errorf("nothing says that alerts were dropped:\n%s", b.log.String())
		}
	})
}

// Where the end of an alert is given up, an Alertmanager is no longer told that it
// fires, and so ends it by itself.
func TestGivenUpEndIsNotToldAsFiring(t *testing.T) {
	sameLabels := firing("b", "m")
	sameLabels.Level = "a"
	for _, test := range []struct {
		name   string
		hangs  bool // the firing alert is being told while all is said
		refuse bool // the Alertmanager refuses ends for good, and otherwise it is away
		say    []quota.Alert
	}{
		{"too many wait", false, false, []quota.Alert{resolved("a", "m")}},
		{"too many wait while it is told", true, false, []quota.Alert{resolved("a", "m")}},
		{"with what took its place", false, false, []quota.Alert{resolved("a", "m"), sameLabels}},
		{"refused", false, true, []quota.Alert{resolved("a", "m")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				b := newBench(t, store, manager("m"))
				b.queues["m"].full = 2
				m := b.catch("m")
				stay := make(chan struct{})
				if test.hangs {
					m.set(func(quota.Alert) error { <-stay; return nil })
				}
				stop := b.run()
				b.Send(firing("a", "m"))
				synctest.Wait()
				switch {
				case test.refuse:
					m.set(func(a quota.Alert) error {
						if a.State == quota.Resolved {
							return &failure{cause: errors.New("it answered 400"), permanent: true}
						}
						return nil
					})
				case !test.hangs:
					m.set(func(quota.Alert) error { return errAway })
				}
				for _, a := range test.say {
					b.Send(a)
				}
				if !test.refuse {
					for i := range 3 {
						b.Send(firing(fmt.Sprint("f", i), "m"))
					}
				}
				close(stay)
				synctest.Wait()
				if !test.refuse {
					m.set(nil)
				}
				time.Sleep(3 * time.Minute) // an end that is not given up is told by then
				before := count(m, "a firing")
				time.Sleep(time.Hour)
				stop()
				if n := count(m, "a firing") - before; n > 0 {
					t.Errorf("told %d times in an hour that it fires, after its end", n)
				}
				for _, s := range store.threads(t) {
					if s.first().ID == "a" {
						t.Errorf("it is kept: %+v", s)
					}
				}
			})
		})
	}
}

// count returns how often a receiver took something.
func count(r *receiver, what string) int {
	n := 0
	for _, s := range r.said() {
		if s == what {
			n++
		}
	}
	return n
}

// The size of alerts is bounded as well as their number.
func TestQueueIsBoundedInBytes(t *testing.T) {
	b := newBench(t, newMemory(), hook("a"))
	q := b.queues["a"]
	for i := range 100 {
		a := firing(fmt.Sprint(i), "a")
		a.Summary = strings.Repeat("x", 1<<20)
		b.Send(a)
	}
	if q.bytes > bytesMax || q.waiting < 70 || q.waiting > 80 {
		t.Errorf("%d alerts of %d bytes wait, want 80 MiB at most", q.waiting, q.bytes)
	}
}

// What ends at once with a period is no reason to drop anything: the notifier is well,
// and only takes its time, as does the disk.
func TestManyEndAtOnce(t *testing.T) {
	const many = 15_000
	for _, c := range []Config{hook("a"), manager("a")} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, slow{newMemory()}, c)
			b.catch("a")
			stop := b.run()
			for _, state := range []string{quota.Firing, quota.Resolved} {
				for i := range many {
					b.Send(alert(fmt.Sprint(i), state, "a"))
				}
				time.Sleep(againAfter)
			}
			stop()
			if got := testutil.ToFloat64(b.metrics.of("a").dropped); got != 0 {
				t.Errorf("%v of %d were dropped", got, many)
			}
			if got := testutil.ToFloat64(b.metrics.of("a").sent); got != 2*many {
				t.Errorf("sent is %v, want %d", got, 2*many)
			}
		})
	}
}

// slow is a store that takes its time.
type slow struct{ *memory }

func (s slow) Save(put map[string][]byte, drop []string) error {
	time.Sleep(5 * time.Millisecond)
	return s.memory.Save(put, drop)
}

// Sending takes no time to speak of, whatever waits.
func BenchmarkSend(b *testing.B) {
	for _, waiting := range []int{0, waitingMax} {
		b.Run(fmt.Sprint("waiting=", waiting), func(b *testing.B) {
			bench := newBench(&testing.T{}, newMemory(), hook("a"))
			for i := range waiting {
				bench.Send(firing(fmt.Sprint("w", i), "a"))
			}
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				bench.Send(firing(fmt.Sprint(i), "a"))
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	b := newBench(t, newMemory(), hook("a"), manager("m"))
	b.Send(firing("50", "m"))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Metrics()...)
	want := `
# HELP nettally_notify_dropped_total Alerts that were given up: a notifier refused them for good, or too many were waiting for it.
# TYPE nettally_notify_dropped_total counter
nettally_notify_dropped_total{notifier="a"} 0
nettally_notify_dropped_total{notifier="m"} 0
# HELP nettally_notify_failures_total Attempts to tell a notifier that failed. The alerts are tried again, but for those that are dropped.
# TYPE nettally_notify_failures_total counter
nettally_notify_failures_total{notifier="a"} 0
nettally_notify_failures_total{notifier="m"} 0
# HELP nettally_notify_queue Alerts that a notifier is still to be told.
# TYPE nettally_notify_queue gauge
nettally_notify_queue{notifier="a"} 0
nettally_notify_queue{notifier="m"} 1
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
