// SPDX-License-Identifier: Apache-2.0

package controller

import "github.com/prometheus/client_golang/prometheus"

// metrics are about our own work, not about traffic.
type metrics struct {
	attach   prometheus.Histogram
	failures prometheus.Counter

	reattached   prometheus.Counter
	shadowed     prometheus.Gauge
	completeness prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		attach: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "nettally_attach_seconds",
			Help:    "Time from a host veth's link event to both filters being on.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nettally_attach_failures_total",
			Help: "Attempts to attach that failed on an interface that is still there.",
		}),
	}
	m.reattached = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "nettally_reattach_total",
		Help: "Times that our programs were put back on an interface: somebody removed them, or let packets past them.",
	})
	m.shadowed = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nettally_attachment_shadowed",
		Help: "Attachments where the kernel counts packets that our programs don't see.",
	})
	m.completeness = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nettally_completeness_ratio",
		Help: "Bytes that our programs counted, over those that the kernel counted on the same interfaces, since this process attached.",
	})
	m.completeness.Set(1)
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.attach, m.failures, m.reattached, m.shadowed, m.completeness}
}
