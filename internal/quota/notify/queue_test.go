// SPDX-License-Identifier: Apache-2.0

package notify

import (
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

// The size of alerts is bounded as well as their number.
func TestQueueIsBoundedInBytes(t *testing.T) {
	b := newBench(t, newMemory(), hook("a"))
	q := b.queues["a"]
	for i := range 100 {
		a := firing(fmt.Sprint(i), "a")
		a.Summary = strings.Repeat("x", 1<<20)
		b.Send(a)
	}
	if q.bytes > bytesMax || q.waiting < 10 || q.waiting > 16 {
		t.Errorf("%d alerts of %d bytes wait, want 16 MiB at most", q.waiting, q.bytes)
	}
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
