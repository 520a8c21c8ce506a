// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics has a series per notifier, from when it is configured.
type metrics struct {
	sent, failures, dropped, queue *prometheus.Desc
	source                         Source

	mu     sync.Mutex
	series map[string]*series
}

// series are the numbers of one notifier. Deliveries that wait or were dropped are the source's.
type series struct {
	sent, failures, dropped, waiting atomic.Uint64
}

func newMetrics(source Source) *metrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("nettally_notify_"+name, help, []string{"notifier"}, nil)
	}
	return &metrics{
		source: source,
		series: map[string]*series{},
		sent: desc("sent_total",
			"Alerts that a notifier took, firing and resolved ones. What an Alertmanager is told again counts once."),
		failures: desc("failures_total",
			"Attempts to tell a notifier that failed. The alerts are tried again, but for those that are dropped."),
		dropped: desc("dropped_total",
			"Alerts that were given up: a notifier refused them for good, failed for an hour on them alone, or too many were waiting for it."),
		queue: desc("queue", "Alerts that a notifier is still to be told."),
	}
}

// of returns the numbers of a notifier, which are 0 if they are new.
func (m *metrics) of(name string) *series {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[name]
	if s == nil {
		s = &series{}
		m.series[name] = s
	}
	return s
}

func (m *metrics) remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.series, name)
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.sent, m.failures, m.dropped, m.queue} {
		descs <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, s := range m.series {
		waiting, dropped := m.source.Waiting(name)
		counter := func(d *prometheus.Desc, n uint64) {
			to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), name)
		}
		counter(m.sent, s.sent.Load())
		counter(m.failures, s.failures.Load())
		counter(m.dropped, s.dropped.Load()+dropped)
		to <- prometheus.MustNewConstMetric(m.queue, prometheus.GaugeValue, float64(s.waiting.Load())+float64(waiting), name)
	}
}
