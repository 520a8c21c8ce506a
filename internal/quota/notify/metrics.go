// SPDX-License-Identifier: Apache-2.0

package notify

import "github.com/prometheus/client_golang/prometheus"

// metrics has a series per notifier, from when it is configured.
type metrics struct {
	sent, failures, dropped *prometheus.CounterVec
	queue                   *prometheus.GaugeVec
}

func newMetrics() metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"notifier"})
	}
	return metrics{
		sent: counter("nettally_notify_sent_total",
			"Alerts that a notifier took, firing and resolved ones. What an Alertmanager is told again counts once."),
		failures: counter("nettally_notify_failures_total",
			"Attempts to tell a notifier that failed. The alerts are tried again, but for those that are dropped."),
		dropped: counter("nettally_notify_dropped_total",
			"Alerts that were given up: a notifier refused them for good, or too many were waiting for it."),
		queue: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nettally_notify_queue",
			Help: "Alerts that a notifier is still to be told.",
		}, []string{"notifier"}),
	}
}

func (m metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.sent, m.failures, m.dropped, m.queue}
}

// series are the metrics of one notifier.
type series struct {
	sent, failures, dropped prometheus.Counter
	queue                   prometheus.Gauge
}

// of returns the series of a notifier, which are 0 if they are new.
func (m metrics) of(name string) series {
	return series{
		sent:     m.sent.WithLabelValues(name),
		failures: m.failures.WithLabelValues(name),
		dropped:  m.dropped.WithLabelValues(name),
		queue:    m.queue.WithLabelValues(name),
	}
}

func (m metrics) remove(name string) {
	m.sent.DeleteLabelValues(name)
	m.failures.DeleteLabelValues(name)
	m.dropped.DeleteLabelValues(name)
	m.queue.DeleteLabelValues(name)
}
