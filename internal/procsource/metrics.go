// SPDX-License-Identifier: Apache-2.0

package procsource

import "github.com/prometheus/client_golang/prometheus"

// metrics are about our own work, not about traffic.
type metrics struct {
	poll      prometheus.Histogram
	overflows *prometheus.CounterVec
}

func newMetrics() metrics {
	m := metrics{
		poll: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "nettally_proc_poll_seconds",
			Help:    "Time to read the kernel's files of all network namespaces once.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12),
		}),
		overflows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nettally_watch_overflows_total",
			Help: "Times that the kernel dropped events, each followed by a look at everything.",
		}, []string{"source"}),
	}
	m.overflows.WithLabelValues("inotify")
	m.overflows.WithLabelValues("netlink")
	return m
}

func (m metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.poll, m.overflows}
}
