// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nettally/nettally/internal/usage"
)

// tcpDescs are of what became of a container's TCP connections.
type tcpDescs struct {
	attempts, connects, accepts, failures, resets, retransmitted, drops *prometheus.Desc
	established, rtt                                                    *prometheus.Desc
}

func (d *descs) addTCP() tcpDescs {
	add := func(name, help string) *prometheus.Desc {
		return d.add("nettally_container_tcp_"+name, help, ipLabels...)
	}
	return tcpDescs{
		attempts: add("connect_attempts_total", "TCP connections that the container began to open."),
		connects: add("connects_total", "TCP connections that the container opened and that were established."),
		accepts:  add("accepts_total", "TCP connections that others opened to the container and that were established."),
		failures: add("connect_failures_total",
			"TCP connections that the container began to open and that were never established: refused, not answered in time, or given up."),
		resets: add("resets_total",
			"Established TCP connections of the container that ended without both sides closing them, as the kernel counts EstabResets: "+
				"by a reset from either side, or since nobody answered any more."),
		retransmitted: add("retransmitted_segments_total",
			"TCP segments that the container sent again, SYNs too. SYN-ACKs are not in it."),
		drops: add("listen_drops_total",
			"TCP connections to the container that the kernel dropped since it did not accept those before them in time, as the kernel counts "+
				"ListenDrops. There is none where the container shares its network namespace."),
		established: add("established", "TCP connections of the container that are established now."),
		rtt: add("rtt_seconds",
			"Smoothed round trip time of the container's TCP connections, observed once per round trip of each."),
	}
}

// tcp sends what became of a container's connections.
func (s *scrape) tcp(c *usage.Container, labels []*dto.LabelPair) {
	t, to, since := c.TCP, &s.descs.tcp, created(c.TCPSince)
	for _, counter := range [...]struct {
		desc  *prometheus.Desc
		n     uint64
		known bool
	}{
		{to.attempts, t.ConnectAttempts, true},
		{to.connects, t.Connects, !t.InPart},
		{to.accepts, t.Accepts, true},
		{to.failures, t.ConnectFailures, !t.InPart},
		{to.resets, t.Resets, true},
		{to.retransmitted, t.RetransmittedSegments, !t.InPart},
		{to.drops, t.ListenDrops, t.ListenDropsKnown != 0},
	} {
		if counter.known {
			s.counter(counter.desc, labels, counter.n, since)
		}
	}
	if c.Established != nil {
		s.gauge(to.established, labels, float64(*c.Established))
	}
	if !t.InPart {
		s.ch <- &sample{desc: to.rtt, labels: labels, histogram: histogramOf(t, shownBounds, since)}
	}
}

const microseconds = 1e6 // in a second

// shownBounds are those of usage.RTTBounds that are series of their own, a few for each container.
// The JSON has all.
var shownBounds = []uint64{1000, 10_000, 100_000, 1_000_000}

// histogramOf returns the observations by bounds of usage.RTTBounds.
func histogramOf(t *usage.TCP, bounds []uint64, since *timestamppb.Timestamp) *dto.Histogram {
	count, sum := t.Observations(), float64(t.RTTMicroseconds)/microseconds
	h := &dto.Histogram{SampleCount: &count, SampleSum: &sum, CreatedTimestamp: since}
	upTo := uint64(0)
	for i, bound := range usage.RTTBounds {
		upTo = usage.Add(upTo, t.RTTs[i])
		if !slices.Contains(bounds, bound) {
			continue
		}
		cumulative, le := upTo, float64(bound)/microseconds
		h.Bucket = append(h.Bucket, &dto.Bucket{CumulativeCount: &cumulative, UpperBound: &le})
	}
	return h
}

// TCP is what became of a container's TCP connections, in JSON. What is nil is not known.
type TCP struct {
	ConnectAttempts       uint64  `json:"connect_attempts"`
	Connects              *uint64 `json:"connects"`
	Accepts               uint64  `json:"accepts"`
	ConnectFailures       *uint64 `json:"connect_failures"`
	Closes                *uint64 `json:"closes"` // established before
	Resets                uint64  `json:"resets"` // part of closes
	RetransmittedSegments *uint64 `json:"retransmitted_segments"`
	ListenDrops           *uint64 `json:"listen_drops"`
	Established           *uint64 `json:"established"` // now
	RTT                   *RTT    `json:"rtt"`
}

// RTT is the observations of the smoothed round trip time.
type RTT struct {
	Count      uint64      `json:"count"`
	SumSeconds float64     `json:"sum_seconds"`
	Buckets    []RTTBucket `json:"buckets"` // but the last, which has all
}

// RTTBucket is how many observations there were up to a time.
type RTTBucket struct {
	Le    float64 `json:"le"` // seconds
	Count uint64  `json:"count"`
}

func tcpOf(c *usage.Container) *TCP {
	t := c.TCP
	if t == nil {
		return nil
	}
	out := &TCP{ConnectAttempts: t.ConnectAttempts, Accepts: t.Accepts, Resets: t.Resets, Established: c.Established}
	if t.ListenDropsKnown != 0 {
		out.ListenDrops = &t.ListenDrops
	}
	if t.InPart {
		return out
	}
	out.Connects, out.ConnectFailures, out.Closes, out.RetransmittedSegments = &t.Connects, &t.ConnectFailures, &t.Closes, &t.RetransmittedSegments
	out.RTT = &RTT{Count: t.Observations(), SumSeconds: float64(t.RTTMicroseconds) / microseconds}
	for _, b := range histogramOf(t, usage.RTTBounds[:], nil).Bucket {
		out.RTT.Buckets = append(out.RTT.Buckets, RTTBucket{Le: b.GetUpperBound(), Count: b.GetCumulativeCount()})
	}
	return out
}
