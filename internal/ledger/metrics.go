// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/wallclock"
)

// metrics are about our own work, not about traffic.
type metrics struct {
	seconds  prometheus.Histogram
	failures prometheus.Counter
	damaged  prometheus.Counter
}

func newMetrics() metrics {
	return metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "nettally_ledger_flush_seconds",
			Help:    "Time that a flush took, successful or not.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nettally_ledger_flush_failures_total",
			Help: "Flushes that failed. What they were to write stays pending.",
		}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nettally_ledger_damaged_total",
			Help: "Damaged files that were set aside.",
		}),
	}
}

// Metrics returns the ledger's own metrics.
func (l *Ledger) Metrics() []prometheus.Collector {
	gauge := func(name, help string, value func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(l.Status()) })
	}
	return []prometheus.Collector{
		l.metrics.seconds, l.metrics.failures, l.metrics.damaged,
		gauge("nettally_ledger_up", "Whether usage is kept on disk.",
			func(s Status) float64 { return oneIf(s.Up) }),
		gauge("nettally_ledger_clock_set_back", "Whether the clock is behind the last write; nothing is pruned then.",
			func(Status) float64 { return oneIf(l.Clock.State() == wallclock.Behind) }),
		gauge("nettally_ledger_last_flush_timestamp_seconds", "When usage was last kept on disk, 0 if not yet.",
			func(s Status) float64 {
				if s.LastFlush.IsZero() {
					return 0
				}
				return float64(s.LastFlush.UnixNano()) / 1e9
			}),
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
