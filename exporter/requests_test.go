// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nettally/nettally/internal/usage"
)

var allRead = usage.Layer7{HTTP: true, TLS: true, DNS: true}

// requested is a snapshot with requests of one container.
func requested(snap usage.Snapshot, read usage.Layer7) usage.Snapshot {
	r := &usage.Requests{}
	r.Receive.HTTPRequests[2], r.Receive.HTTP2Streams, r.Receive.DNSResponses[3], r.Receive.Resyncs[1] = 1, 2, 3, 4
	r.Transmit.HTTPResponses[1], r.Transmit.HTTPResponses[4], r.Transmit.TLSClientHellos = 5, 6, 7
	r.Transmit.DNSQueries[0], r.Transmit.DNSQueries[7], r.Transmit.Resyncs[1] = 8, 9, 10
	for i := range snap.Containers {
		if c := &snap.Containers[i]; c.ID == "aaa111" {
			c.Requests, c.Layer7, c.TCPSince = r, read, noon.Add(-time.Minute)
		}
	}
	return snap
}

// Of what is counted there are the values that are not 0, and the usual one of each kind.
func TestRequests(t *testing.T) {
	const of = `container_id="aaa111",`
	const name = `name="web",namespace="",pod=""`
	http := []string{
		`http2_receive_streams_total{` + of + name + `} 2`,
		`http2_transmit_streams_total{` + of + name + `} 0`,
		`http_receive_requests_total{` + of + `method="GET",` + name + `} 0`,
		`http_receive_requests_total{` + of + `method="POST",` + name + `} 1`,
		`http_receive_responses_total{` + of + name + `,status_class="2xx"} 0`,
		`http_resyncs_total{cause="gap",` + of + name + `} 14`,
		`http_resyncs_total{cause="joined",` + of + name + `} 0`,
		`http_resyncs_total{cause="malformed",` + of + name + `} 0`,
		`http_resyncs_total{cause="pipelined",` + of + name + `} 0`,
		`http_resyncs_total{cause="too_long",` + of + name + `} 0`,
		`http_transmit_requests_total{` + of + `method="GET",` + name + `} 0`,
		`http_transmit_responses_total{` + of + name + `,status_class="2xx"} 5`,
		`http_transmit_responses_total{` + of + name + `,status_class="5xx"} 6`,
	}
	tls := []string{
		`tls_receive_client_hellos_total{` + of + name + `} 0`,
		`tls_transmit_client_hellos_total{` + of + name + `} 7`,
	}
	dns := []string{
		`dns_receive_queries_total{` + of + name + `,type="A"} 0`,
		`dns_receive_responses_total{` + of + name + `,rcode="NXDomain"} 3`,
		`dns_receive_responses_total{` + of + name + `,rcode="NoError"} 0`,
		`dns_transmit_queries_total{` + of + name + `,type="A"} 8`,
		`dns_transmit_queries_total{` + of + name + `,type="AAAA"} 9`,
		`dns_transmit_responses_total{` + of + name + `,rcode="NoError"} 0`,
	}
	const (
		httpJSON = `{"receive":{"requests":{"GET":0,"POST":1},"responses":{"2xx":0}},"transmit":{"requests":{"GET":0},"responses":{"2xx":5,"5xx":6}},` +
			`"resyncs":{"gap":14,"joined":0,"malformed":0,"pipelined":0,"too_long":0}}`
		http2JSON = `{"receive":{"streams":2},"transmit":{"streams":0}}`
		tlsJSON   = `{"receive":{"client_hellos":0},"transmit":{"client_hellos":7}}`
		dnsJSON   = `{"receive":{"queries":{"A":0},"responses":{"NXDomain":3,"NoError":0}},"transmit":{"queries":{"A":8,"AAAA":9},"responses":{"NoError":0}}}`
	)
	for name, test := range map[string]struct {
		read usage.Layer7
		want []string
		json string
	}{
		"all":  {allRead, slices.Concat(http, tls, dns), `{"http":` + httpJSON + `,"http2":` + http2JSON + `,"tls":` + tlsJSON + `,"dns":` + dnsJSON + `}`},
		"http": {usage.Layer7{HTTP: true}, http, `{"http":` + httpJSON + `,"http2":` + http2JSON + `,"tls":null,"dns":null}`},
		"tls":  {usage.Layer7{TLS: true}, tls, `{"http":null,"http2":null,"tls":` + tlsJSON + `,"dns":null}`},
		"dns":  {usage.Layer7{DNS: true}, dns, `{"http":null,"http2":null,"tls":null,"dns":` + dnsJSON + `}`},
	} {
		t.Run(name, func(t *testing.T) {
			snap := requested(snapshot(), test.read)
			var got []string
			for _, line := range scrapeText(t, collectorOf(snap, Settings{MetricsRetention: 5 * time.Minute})) {
				line = strings.TrimPrefix(line, "nettally_container_")
				if strings.HasPrefix(line, "http") || strings.HasPrefix(line, "tls_") || strings.HasPrefix(line, "dns_") {
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(slices.Sorted(slices.Values(test.want)), slices.Sorted(slices.Values(got))); diff != "" {
				t.Errorf("scrape (-want +got):\n%s", diff)
			}
			i := slices.IndexFunc(snap.Containers, func(c usage.Container) bool { return c.Requests != nil })
			text, err := json.Marshal(requestsOf(&snap.Containers[i]))
			if err != nil || string(text) != test.json {
				t.Errorf("%v\n%s, want\n%s", err, text, test.json)
			}
		})
	}
	if got := requestsOf(&usage.Container{}); got != nil {
		t.Errorf("not counted: %+v", got)
	}
}

// The series of requests began when the container's connections were first counted.
func TestRequestsCreated(t *testing.T) {
	snap := requested(snapshot(), allRead)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectorOf(snap, Settings{MetricsRetention: 5 * time.Minute}))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, family := range families {
		of, ok := strings.CutPrefix(family.GetName(), "nettally_container_")
		if !ok || !strings.HasPrefix(of, "http") && !strings.HasPrefix(of, "dns") && !strings.HasPrefix(of, "tls") {
			continue
		}
		for _, m := range family.GetMetric() {
			seen++
			if at := m.GetCounter().GetCreatedTimestamp().AsTime(); family.GetType() != dto.MetricType_COUNTER || !at.Equal(noon.Add(-time.Minute)) {
				t.Errorf("%s began at %v", family.GetName(), at)
			}
		}
	}
	if seen != 21 {
		t.Errorf("%d series", seen)
	}
}
