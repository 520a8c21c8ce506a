// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nettally/nettally/internal/usage"
)

// split is a count by the values of a label. Most containers never have most values, so there is a
// series only for those that are not 0, and for a few from the start.
type split struct {
	label  string
	values []string
	always []string
}

var (
	byMethod = split{"method", usage.HTTPMethods[:], usage.HTTPMethods[:1]}
	byClass  = split{"status_class", usage.StatusClasses[:], usage.StatusClasses[1:2]}
	byType   = split{"type", usage.DNSTypes[:], usage.DNSTypes[:1]}
	byCode   = split{"rcode", usage.DNSCodes[:], usage.DNSCodes[:1]}
	byCause  = split{"cause", usage.ResyncCauses[:], usage.ResyncCauses[:]}
)

// labels are those of the series of a split.
func (p split) labels() []string {
	return slices.Sorted(slices.Values(append(slices.Clone(ipLabels), p.label)))
}

// shown returns the numbers to be shown, by value.
func (p split) shown(numbers []uint64) map[string]uint64 {
	shown := map[string]uint64{}
	for i, value := range p.values {
		if numbers[i] != 0 || slices.Contains(p.always, value) {
			shown[value] = numbers[i]
		}
	}
	return shown
}

// requestDescs are of what containers' sockets say at layer 7.
type requestDescs struct {
	by      [2]saidDescs
	resyncs *prometheus.Desc
}

// saidDescs are of one direction.
type saidDescs struct{ requests, responses, streams, hellos, queries, answers *prometheus.Desc }

func (d *descs) addRequests() (r requestDescs) {
	for i, dir := range [...]struct{ name, verb string }{
		receive:  {"receive", "received"},
		transmit: {"transmit", "transmitted"},
	} {
		add := func(family, what, help string, labels []string) *prometheus.Desc {
			return d.add("nettally_container_"+family+"_"+dir.name+"_"+what+"_total", help+" that the container "+dir.verb+".", labels...)
		}
		r.by[i] = saidDescs{
			requests:  add("http", "requests", "HTTP/1 requests, by method,", byMethod.labels()),
			responses: add("http", "responses", "HTTP/1 responses, by class of status,", byClass.labels()),
			streams:   add("http2", "streams", "Requests by streams of HTTP/2 without TLS", ipLabels),
			hellos:    add("tls", "client_hellos", "TLS ClientHellos at the beginning of TCP connections", ipLabels),
			queries:   add("dns", "queries", "DNS questions, by type,", byType.labels()),
			answers:   add("dns", "responses", "DNS answers, by code,", byCode.labels()),
		}
	}
	r.resyncs = d.add("nettally_container_http_resyncs_total",
		"Times that bytes of HTTP messages of the container were not read, in either direction, by cause.", byCause.labels()...)
	return r
}

// requests sends what a container's sockets said at layer 7, of what is counted.
func (s *scrape) requests(c *usage.Container, labels []*dto.LabelPair) {
	since := created(c.TCPSince)
	for i, n := range [2]*usage.RequestCounters{receive: &c.Requests.Receive, transmit: &c.Requests.Transmit} {
		to := &s.descs.requests.by[i]
		if c.Layer7.HTTP {
			s.split(to.requests, labels, byMethod, n.HTTPRequests[:], since)
			s.split(to.responses, labels, byClass, n.HTTPResponses[:], since)
			s.counter(to.streams, labels, n.HTTP2Streams, since)
		}
		if c.Layer7.TLS {
			s.counter(to.hellos, labels, n.TLSClientHellos, since)
		}
		if c.Layer7.DNS {
			s.split(to.queries, labels, byType, n.DNSQueries[:], since)
			s.split(to.answers, labels, byCode, n.DNSResponses[:], since)
		}
	}
	if c.Layer7.HTTP {
		s.split(s.descs.requests.resyncs, labels, byCause, resyncs(c.Requests), since)
	}
}

// split sends a counter for each value that is shown.
func (s *scrape) split(desc *prometheus.Desc, labels []*dto.LabelPair, p split, numbers []uint64, since *timestamppb.Timestamp) {
	for value, n := range p.shown(numbers) {
		all := append(slices.Clone(labels), &dto.LabelPair{Name: &p.label, Value: &value})
		slices.SortFunc(all, func(x, y *dto.LabelPair) int { return cmp.Compare(x.GetName(), y.GetName()) })
		s.counter(desc, all, n, since)
	}
}

// resyncs are those of both directions.
func resyncs(r *usage.Requests) []uint64 {
	sum := r.Receive.Resyncs
	for i, n := range r.Transmit.Resyncs {
		sum[i] = usage.Add(sum[i], n)
	}
	return sum[:]
}

// Requests is what a container's sockets said at layer 7, in JSON. A part is nil where it is not
// counted.
type Requests struct {
	HTTP  *HTTP  `json:"http"`
	HTTP2 *HTTP2 `json:"http2"`
	TLS   *TLS   `json:"tls"`
	DNS   *DNS   `json:"dns"`
}

// HTTP is HTTP/1.
type HTTP struct {
	Receive  HTTPMessages      `json:"receive"`
	Transmit HTTPMessages      `json:"transmit"`
	Resyncs  map[string]uint64 `json:"resyncs"` // by cause, of both directions
}

// HTTPMessages are those of one direction.
type HTTPMessages struct {
	Requests  map[string]uint64 `json:"requests"`  // by method
	Responses map[string]uint64 `json:"responses"` // by class of status
}

// HTTP2 is HTTP/2 without TLS.
type HTTP2 struct {
	Receive  HTTP2Streams `json:"receive"`
	Transmit HTTP2Streams `json:"transmit"`
}

// HTTP2Streams are those that the requests of one direction opened.
type HTTP2Streams struct {
	Streams uint64 `json:"streams"`
}

// TLS is the beginnings of TLS.
type TLS struct {
	Receive  TLSHellos `json:"receive"`
	Transmit TLSHellos `json:"transmit"`
}

// TLSHellos are those of one direction.
type TLSHellos struct {
	ClientHellos uint64 `json:"client_hellos"`
}

// DNS is questions and answers.
type DNS struct {
	Receive  DNSMessages `json:"receive"`
	Transmit DNSMessages `json:"transmit"`
}

// DNSMessages are those of one direction.
type DNSMessages struct {
	Queries   map[string]uint64 `json:"queries"`   // by type
	Responses map[string]uint64 `json:"responses"` // by code
}

func requestsOf(c *usage.Container) *Requests {
	if c.Requests == nil {
		return nil
	}
	in, out, shown := &c.Requests.Receive, &c.Requests.Transmit, &Requests{}
	if c.Layer7.HTTP {
		of := func(n *usage.RequestCounters) HTTPMessages {
			return HTTPMessages{Requests: byMethod.shown(n.HTTPRequests[:]), Responses: byClass.shown(n.HTTPResponses[:])}
		}
		shown.HTTP = &HTTP{Receive: of(in), Transmit: of(out), Resyncs: byCause.shown(resyncs(c.Requests))}
		shown.HTTP2 = &HTTP2{Receive: HTTP2Streams{in.HTTP2Streams}, Transmit: HTTP2Streams{out.HTTP2Streams}}
	}
	if c.Layer7.TLS {
		shown.TLS = &TLS{Receive: TLSHellos{in.TLSClientHellos}, Transmit: TLSHellos{out.TLSClientHellos}}
	}
	if c.Layer7.DNS {
		of := func(n *usage.RequestCounters) DNSMessages {
			return DNSMessages{Queries: byType.shown(n.DNSQueries[:]), Responses: byCode.shown(n.DNSResponses[:])}
		}
		shown.DNS = &DNS{Receive: of(in), Transmit: of(out)}
	}
	return shown
}
