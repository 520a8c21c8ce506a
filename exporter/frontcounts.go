// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Causes of refused requests.
const (
	refusedBusy = "busy"
	refusedHost = "host"
	refusedSlow = "slow"
)

// frontCounts are the metrics of all fronts. It is safe for concurrent use.
type frontCounts struct {
	held, most       *prometheus.Desc
	evicted, refused *prometheus.CounterVec

	mu     sync.Mutex
	fronts []*front
}

func newFrontCounts() *frontCounts {
	return &frontCounts{
		held: prometheus.NewDesc("nettally_http_connections",
			"Connections that are open, by listener.", []string{"listener"}, nil),
		most: prometheus.NewDesc("nettally_http_connections_limit",
			"How many connections may be open, by listener; a further one closes another.", []string{"listener"}, nil),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nettally_http_evicted_connections_total",
			Help: "Connections that were closed because a new one came to a full listener, by what they were doing: " +
				"idle, which is all before a whole request, or serving.",
		}, []string{"listener", "state"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nettally_http_refused_requests_total",
			Help: "Requests that were not answered, or not wholly, by cause: busy (503, too many at a time), " +
				"host (421, see exporter.hosts), slow (cut off while others waited, or watched and did not keep up).",
		}, []string{"listener", "cause"}),
	}
}

// add shows a front from now on, with all its counters at 0.
func (c *frontCounts) add(f *front) {
	for _, was := range []phase{idle, serving} {
		c.evicted.WithLabelValues(f.name, was.String())
	}
	for _, cause := range []string{refusedBusy, refusedHost, refusedSlow} {
		c.refused.WithLabelValues(f.name, cause)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fronts = append(c.fronts, f)
}

// refuse counts a request that came through a front.
func (c *frontCounts) refuse(r *http.Request, cause string) {
	if f := frontOf(r); f != nil {
		c.refused.WithLabelValues(f.name, cause).Inc()
	}
}

// Describe implements [prometheus.Collector].
func (c *frontCounts) Describe(to chan<- *prometheus.Desc) {
	to <- c.held
	to <- c.most
	c.evicted.Describe(to)
	c.refused.Describe(to)
}

// Collect implements [prometheus.Collector].
func (c *frontCounts) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.fronts {
		to <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(f.held()), f.name)
		to <- prometheus.MustNewConstMetric(c.most, prometheus.GaugeValue, float64(f.max), f.name)
	}
	c.evicted.Collect(to)
	c.refused.Collect(to)
}
