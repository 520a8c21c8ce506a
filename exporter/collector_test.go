// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

// scrapeText returns what a pedantic registry makes of a collector, in the text
// format and without comments.
func scrapeText(t *testing.T, c prometheus.Collector) []string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for line := range strings.Lines(text.String()) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestScrape(t *testing.T) {
	const web = `{container_id="aaa111",interface="eth0",name="web",namespace="",pod=""}`
	const old = `{container_id="bbb333",interface="eth0",name="web",namespace="",pod=""}`
	const vpnLabels, agentLabels = `container_id="ccc444",name="vpn",namespace="",pod=""`, `container_id="aaa222",name="agent",namespace="kube-system",pod="agent-x"`
	const vpn, agent = `{` + vpnLabels + `}`, `{` + agentLabels + `}`
	got := scrapeText(t, collectorOf(snapshot(), Settings{MetricsRetention: 5 * time.Minute}))
	want := []string{
		`nettally_attachments{hook="cgroup"} 1`,
		`nettally_attachments{hook="clsact"} 2`,
		`nettally_attachments{hook="sock_ops"} 2`,
		`nettally_attachments{hook="tcx"} 0`,
		`nettally_beyond_limits{limit="containers"} 0`,
		`nettally_beyond_limits{limit="interfaces"} 0`,
		`nettally_beyond_limits{limit="per_user"} 0`,
		`nettally_beyond_limits{limit="series_per_period"} 0`,
		`nettally_beyond_limits{limit="series_per_quota"} 0`,
		`nettally_container_accounted{container_id="aaa111",name="web",reason=""} 1`,
		`nettally_container_accounted{container_id="aaa222",name="agent",reason="host_network"} 0`,
		`nettally_container_accounted{container_id="bbb333",name="web",reason=""} 1`,
		`nettally_container_accounted{container_id="ccc444",name="vpn",reason=""} 1`,
		`nettally_container_info{cgroup="/docker/aaa111",container_id="aaa111",image="nginx:1",kernel="",name="web",namespace="",network_mode="bridge",parent_id="",pod="",runtime="docker",user=""} 1`,
		`nettally_container_info{cgroup="/docker/aaa111/docker/ccc444",container_id="ccc444",image="",kernel="gvisor",name="vpn",namespace="",network_mode="container",parent_id="aaa111",pod="",runtime="",user=""} 1`,
		`nettally_container_info{cgroup="/docker/bbb333",container_id="bbb333",image="nginx:0",kernel="",name="web",namespace="",network_mode="bridge",parent_id="",pod="",runtime="docker",user=""} 1`,
		`nettally_container_info{cgroup="/kubepods/podx/aaa222",container_id="aaa222",image="",kernel="",name="agent",namespace="kube-system",network_mode="host",parent_id="",pod="agent-x",runtime="containerd",user=""} 1`,
		`nettally_container_ip_receive_bytes_total` + vpn + ` 362700`,
		`nettally_container_ip_receive_packets_total` + vpn + ` 36270`,
		`nettally_container_ip_receive_tcp_syn_total` + vpn + ` 30003`,
		`nettally_container_ip_transmit_bytes_total` + vpn + ` 422700`,
		`nettally_container_ip_transmit_packets_total` + vpn + ` 42270`,
		`nettally_container_ip_transmit_tcp_syn_total` + vpn + ` 35003`,
		`nettally_container_network_receive_bytes_total` + web + ` 122700`,
		`nettally_container_network_receive_bytes_total` + old + ` 0`,
		`nettally_container_network_receive_packets_total` + web + ` 12270`,
		`nettally_container_network_receive_packets_total` + old + ` 0`,
		`nettally_container_network_receive_tcp_syn_total` + web + ` 10003`,
		`nettally_container_network_receive_tcp_syn_total` + old + ` 0`,
		`nettally_container_network_transmit_bytes_total` + web + ` 182700`,
		`nettally_container_network_transmit_bytes_total` + old + ` 0`,
		`nettally_container_network_transmit_packets_total` + web + ` 18270`,
		`nettally_container_network_transmit_packets_total` + old + ` 0`,
		`nettally_container_network_transmit_tcp_syn_total` + web + ` 15003`,
		`nettally_container_network_transmit_tcp_syn_total` + old + ` 0`,
		`nettally_container_nflog_connections_total{container_id="aaa111",direction="receive",name="web",namespace="",pod=""} 8`,
		`nettally_container_nflog_connections_total{container_id="aaa111",direction="transmit",name="web",namespace="",pod=""} 9`,
		`nettally_container_tcp_accepts_total` + agent + ` 50003`,
		`nettally_container_tcp_accepts_total` + vpn + ` 60003`,
		`nettally_container_tcp_connect_attempts_total` + agent + ` 50001`,
		`nettally_container_tcp_connect_attempts_total` + vpn + ` 60001`,
		`nettally_container_tcp_connect_failures_total` + agent + ` 50004`,
		`nettally_container_tcp_connect_failures_total` + vpn + ` 60004`,
		`nettally_container_tcp_connects_total` + agent + ` 50002`,
		`nettally_container_tcp_connects_total` + vpn + ` 60002`,
		`nettally_container_tcp_established` + vpn + ` 17`,
		`nettally_container_tcp_listen_drops_total` + vpn + ` 60008`,
		`nettally_container_tcp_resets_total` + agent + ` 50006`,
		`nettally_container_tcp_resets_total` + vpn + ` 60006`,
		`nettally_container_tcp_retransmitted_segments_total` + agent + ` 50007`,
		`nettally_container_tcp_retransmitted_segments_total` + vpn + ` 60007`,
		`nettally_container_tcp_rtt_seconds_bucket{` + agentLabels + `,le="0.001"} 6`,
		`nettally_container_tcp_rtt_seconds_bucket{` + agentLabels + `,le="0.01"} 15`,
		`nettally_container_tcp_rtt_seconds_bucket{` + agentLabels + `,le="0.1"} 28`,
		`nettally_container_tcp_rtt_seconds_bucket{` + agentLabels + `,le="1"} 45`,
		`nettally_container_tcp_rtt_seconds_bucket{` + agentLabels + `,le="+Inf"} 55`,
		`nettally_container_tcp_rtt_seconds_sum` + agent + ` 1.5`,
		`nettally_container_tcp_rtt_seconds_count` + agent + ` 55`,
		`nettally_container_tcp_rtt_seconds_bucket{` + vpnLabels + `,le="0.001"} 6`,
		`nettally_container_tcp_rtt_seconds_bucket{` + vpnLabels + `,le="0.01"} 15`,
		`nettally_container_tcp_rtt_seconds_bucket{` + vpnLabels + `,le="0.1"} 28`,
		`nettally_container_tcp_rtt_seconds_bucket{` + vpnLabels + `,le="1"} 45`,
		`nettally_container_tcp_rtt_seconds_bucket{` + vpnLabels + `,le="+Inf"} 55`,
		`nettally_container_tcp_rtt_seconds_sum` + vpn + ` 1.5`,
		`nettally_container_tcp_rtt_seconds_count` + vpn + ` 55`,
		`nettally_containers 3`,
		`nettally_nflog_bound 1`,
		`nettally_nflog_ignored_total 2`,
		`nettally_nflog_lost_total 6`,
		`nettally_nflog_overruns_total 1`,
		`nettally_nflog_packets_total 20`,
		`nettally_nflog_unattributed_total 3`,
		`nettally_scrape_troubles_total{cause="duplicate_container"} 0`,
		`nettally_scrape_troubles_total{cause="duplicate_interface"} 0`,
		`nettally_scrape_troubles_total{cause="duplicate_quota"} 0`,
		`nettally_scrape_troubles_total{cause="invalid_text"} 0`,
		`nettally_unclassified_packets_total{cause="truncated"} 7`,
		`nettally_uncounted_packets_total{cause="no_row"} 0`,
		`nettally_unowned_interfaces 1`,
		`nettally_unowned_interfaces_receive_bytes 242700`,
		`nettally_unowned_interfaces_transmit_bytes 302700`,
		`nettally_unowned_receive_bytes_total 482700`,
		`nettally_unowned_receive_packets_total 48270`,
		`nettally_unowned_transmit_bytes_total 542700`,
		`nettally_unowned_transmit_packets_total 54270`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("scrape (-want +got):\n%s", diff)
	}
}

func TestScrapeOptIn(t *testing.T) {
	const series = `container_id="aaa111",interface="eth0",name="web",namespace="",pod=""`
	const cadvisor = `{id="/docker/aaa111",image="nginx:1",interface="eth0",name="web",namespace="",pod=""}`
	tests := []struct {
		name     string
		settings Settings
		prefix   string
		want     []string
	}{
		{"interface", Settings{Families: []string{FamilyInterface}}, "nettally_container_interface_", []string{
			`receive_bytes_total{` + series + `} 10001`,
			`receive_packets_total{` + series + `} 10002`,
			`transmit_bytes_total{` + series + `} 15001`,
			`transmit_packets_total{` + series + `} 15002`,
		}},
		{"protocol", Settings{Families: []string{FamilyProtocol}}, "nettally_container_protocol_receive_bytes_", []string{
			`total{` + series + `,protocol="icmp"} 30690`,
			`total{` + series + `,protocol="other"} 30720`,
			`total{` + series + `,protocol="tcp"} 30630`,
			`total{` + series + `,protocol="udp"} 30660`,
		}},
		{"family", Settings{Families: []string{FamilyFamily}}, "nettally_container_family_transmit_packets_", []string{
			// By label name, "family" comes after "container_id".
			`total{container_id="aaa111",family="ipv4",interface="eth0",name="web",namespace="",pod=""} 6050`,
			`total{container_id="aaa111",family="ipv6",interface="eth0",name="web",namespace="",pod=""} 6090`,
			`total{container_id="aaa111",family="other",interface="eth0",name="web",namespace="",pod=""} 6130`,
		}},
		{"tcp_flags", Settings{Families: []string{FamilyTCPFlags}}, "nettally_container_tcp_flags_receive_packets_", []string{
			`total{container_id="aaa111",flag="fin",interface="eth0",name="web",namespace="",pod=""} 10006`,
			`total{container_id="aaa111",flag="rst",interface="eth0",name="web",namespace="",pod=""} 10005`,
			`total{container_id="aaa111",flag="syn",interface="eth0",name="web",namespace="",pod=""} 10003`,
			`total{container_id="aaa111",flag="synack",interface="eth0",name="web",namespace="",pod=""} 10004`,
		}},
		{"cadvisor", Settings{CompatCAdvisor: true}, "container_network_", []string{
			`receive_bytes_total` + cadvisor + ` 10001`,
			`receive_packets_total` + cadvisor + ` 10002`,
			`transmit_bytes_total` + cadvisor + ` 15001`,
			`transmit_packets_total` + cadvisor + ` 15002`,
		}},
		{"none", Settings{}, "container_network_", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, line := range scrapeText(t, collectorOf(snapshot(), test.settings)) {
				if rest, ok := strings.CutPrefix(line, test.prefix); ok {
					got = append(got, rest)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s… (-want +got):\n%s", test.prefix, diff)
			}
		})
	}
}

func TestScrapeRetention(t *testing.T) {
	tests := []struct {
		retention time.Duration
		shown     bool
	}{
		{0, false},
		{5*time.Minute - 1, false},
		{5 * time.Minute, true},
	}
	for _, test := range tests {
		t.Run(test.retention.String(), func(t *testing.T) {
			text := strings.Join(scrapeText(t, collectorOf(snapshot(), Settings{MetricsRetention: test.retention})), "\n")
			if shown := strings.Contains(text, "bbb333"); shown != test.shown {
				t.Errorf("stopped container shown: %t, want %t", shown, test.shown)
			}
			if !strings.Contains(text, "aaa111") {
				t.Error("running container is not shown")
			}
		})
	}
}

// One bad label set would fail the scrape of everything.
func TestScrapeSurvivesBadLabels(t *testing.T) {
	bad := snapshot()
	web := bad.Containers[1]
	web.Name = "w\xffb"
	web.Interfaces = []usage.Interface{
		{Name: "eth0", Traffic: traffic(0)},
		{Name: "eth0"},
		{Name: "e\xff"},
		{Name: "e\xfe"}, // the same once it is clean
	}
	again := web
	again.Name = "again"
	bad.Containers = []usage.Container{web, again, {ID: "c1", Interfaces: web.Interfaces[:1]}, {ID: "c2", Interfaces: web.Interfaces[:1]}}

	var got []string
	for _, line := range scrapeText(t, collectorOf(bad, everything())) {
		switch {
		case strings.HasPrefix(line, "nettally_scrape_troubles_total"),
			strings.HasPrefix(line, "nettally_container_network_receive_bytes_total"),
			strings.HasPrefix(line, "container_network_receive_bytes_total"):
			got = append(got, line)
		}
	}
	want := []string{
		`container_network_receive_bytes_total{id="",image="",interface="eth0",name="",namespace="",pod=""} 1`,
		`container_network_receive_bytes_total{id="/docker/aaa111",image="nginx:1",interface="eth0",name="w�b",namespace="",pod=""} 1`,
		`container_network_receive_bytes_total{id="/docker/aaa111",image="nginx:1",interface="e�",name="w�b",namespace="",pod=""} 0`,
		`nettally_container_network_receive_bytes_total{container_id="aaa111",interface="eth0",name="w�b",namespace="",pod=""} 2700`,
		`nettally_container_network_receive_bytes_total{container_id="aaa111",interface="e�",name="w�b",namespace="",pod=""} 0`,
		`nettally_container_network_receive_bytes_total{container_id="c1",interface="eth0",name="",namespace="",pod=""} 2700`,
		`nettally_container_network_receive_bytes_total{container_id="c2",interface="eth0",name="",namespace="",pod=""} 2700`,
		`nettally_scrape_troubles_total{cause="duplicate_container"} 1`,
		`nettally_scrape_troubles_total{cause="duplicate_interface"} 3`,
		`nettally_scrape_troubles_total{cause="duplicate_quota"} 0`,
		`nettally_scrape_troubles_total{cause="invalid_text"} 2`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("scrape (-want +got):\n%s", diff)
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.CollectAndLint(collectorOf(requested(snapshot(), allRead), everything()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A scraper takes what /metrics answers, whatever other packages add.
func TestPromtool(t *testing.T) {
	need.Commands(t, "promtool")
	opts := options(requested(tracked(true, true), allRead))
	opts.Settings = everything
	_, _, body := request(t, newExporter(t, opts).Handler(), "GET", "/metrics")
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func TestOpenMetrics(t *testing.T) {
	_, header, body := request(t, newExporter(t, options(snapshot())).Handler(), "GET", "/metrics",
		"Accept", "application/openmetrics-text; version=1.0.0")
	if got := header.Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text; version=1.0.0") {
		t.Errorf("content type %q", got)
	}
	series := `{container_id="aaa111",interface="eth0",name="web",namespace="",pod=""} `
	for _, want := range []string{
		"# TYPE nettally_container_network_receive_bytes counter\n",
		"nettally_container_network_receive_bytes_total" + series + "122700.0\n", // no timestamp
		fmt.Sprintf("nettally_container_network_receive_bytes_created%s%g\n", series, float64(noon.Add(-time.Hour).Unix())),
		"# EOF\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in the scrape", want)
		}
	}
}

// A collector that fails costs its own metrics, and the scrape says so.
func TestExtra(t *testing.T) {
	opts := options(snapshot())
	broken := prometheus.NewDesc("broken", "Always fails.", nil, nil)
	opts.Extra = []prometheus.Collector{
		prometheus.NewGauge(prometheus.GaugeOpts{Name: "nettally_extra", Help: "An extra gauge."}),
		collectFunc{broken, func() prometheus.Metric { return prometheus.NewInvalidMetric(broken, fmt.Errorf("broken")) }},
	}
	h := newExporter(t, opts).Handler()
	request(t, h, "GET", "/metrics")
	code, _, body := request(t, h, "GET", "/metrics")
	if code != 200 {
		t.Fatalf("status %d: %s", code, body)
	}
	for _, want := range []string{
		"nettally_extra 0\n",
		"nettally_containers 3\n",
		`nettally_build_info{goversion="go1.26",revision="abc",version="1.2.3"} 1` + "\n",
		"go_goroutines ",
		"process_open_fds ",
		`promhttp_metric_handler_errors_total{cause="gathering"} 1` + "\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in the scrape", want)
		}
	}

	opts.Extra = []prometheus.Collector{prometheus.NewGauge(prometheus.GaugeOpts{Name: "nettally_containers", Help: "Taken."})}
	if _, err := New(opts); err == nil || !strings.HasPrefix(err.Error(), "register metrics: ") {
		t.Errorf("a metric name that is taken: %v", err)
	}
}

type collectFunc struct {
	desc   *prometheus.Desc
	metric func() prometheus.Metric
}

func (c collectFunc) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }
func (c collectFunc) Collect(ch chan<- prometheus.Metric) { ch <- c.metric() }

// discard is a response that only counts its bytes.
type discard struct {
	header http.Header
	size   int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(p []byte) (int, error) {
	d.size += len(p)
	return len(p), nil
}

func BenchmarkScrape(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := newExporter(b, options(many(n))).Handler()
			r := httptest.NewRequest("GET", "/metrics", nil)
			b.ReportAllocs()
			size := 0
			for b.Loop() {
				w := &discard{header: http.Header{}}
				h.ServeHTTP(w, r)
				size = w.size
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}

// docs/METRICS.md explains every metric.
func TestMetricsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	opts := options(requested(tracked(true, true), allRead))
	opts.Settings = everything
	_, _, body := request(t, newExporter(t, opts).Handler(), "GET", "/metrics")
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, "# TYPE ")
		name, _, _ := strings.Cut(rest, " ")
		if !ok || strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("%s is not documented", name)
		}
	}
}
