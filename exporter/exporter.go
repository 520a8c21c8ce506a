// SPDX-License-Identifier: Apache-2.0

// Package exporter shows usage as Prometheus metrics, as JSON and on a web page, on a TCP
// address and on a unix socket. It computes nothing: every number is one of a
// [usage.Snapshot], and both formats are made of the same snapshot function. Those
// of the history are the ledger's, and those of quotas are the quotas'.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// The metric families that are off by default, as Settings.Families names them.
const (
	FamilyInterface = "interface" // one packet per socket buffer, as the kernel counts
	FamilyProtocol  = "protocol"  // wire numbers by tcp, udp, icmp, other
	FamilyFamily    = "family"    // wire numbers by ipv4, ipv6, other
	FamilyTCPFlags  = "tcp_flags" // SYN, SYN-ACK, RST, FIN packets
)

// Settings are the parts of the configuration that may change while the
// exporter runs. They are read once per scrape.
type Settings struct {
	// Families are the opt-in metric families to show.
	Families []string
	// CompatCAdvisor shows cAdvisor's container_network_* metrics too.
	CompatCAdvisor bool
	// MetricsRetention is how long a stopped container stays in the metrics.
	MetricsRetention time.Duration
	// Labels are the keys of the containers' labels that nettally_container_info has.
	Labels []string
	// SeriesPerQuota is how many keys of a quota are in the metrics, 0 for all.
	SeriesPerQuota int
	// PeriodBy is what totals of periods are added up by now: see [PeriodTotal.Key].
	PeriodBy []string
}

func (s Settings) shows(family string) bool { return slices.Contains(s.Families, family) }

// BuildInfo says which nettally this is.
type BuildInfo struct {
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	GoVersion string `json:"go_version"`
}

// waitTimeout is how long a request waits for what can't be had yet. It leaves the
// time to say so within the time for an answer.
const waitTimeout = 30 * time.Second

// Options is what an exporter shows. All fields but History, Live, Quotas, Periods, TestNotifier,
// Checks, Extra, Hosts and Ready are needed.
type Options struct {
	// Snapshot reads the usage. It is called once per request, from several
	// goroutines at a time. It may wait until the usage is complete; when the
	// context ends it returns an error, and the request is answered 503.
	Snapshot func(ctx context.Context) (usage.Snapshot, error)
	// History reads usage over time, by start and then by key. It is called
	// concurrently too. An error that wraps [ErrBadHistory] is answered 400, any other
	// 503, as everything is if History is nil.
	History func(ctx context.Context, q HistoryQuery) ([]HistoryRow, error)
	// Live tells viewers what has changed; nil where nobody can watch, which is answered 503.
	Live Live
	// Quotas are shown, and changed over the unix socket; nil for none.
	Quotas Quotas
	// Periods returns the totals of periods; nil for none. Like Snapshot it is called concurrently.
	Periods func() Periods
	// TestNotifier sends a test alert by a notifier, at once; nil where there are no
	// notifiers. An error that wraps quota.ErrUnknown is answered 404, any other 502.
	TestNotifier func(ctx context.Context, name string) error
	// Checks checks what the host can do, and stops when the context ends. It is called at most
	// once per minute, and by one goroutine at a time. Nil is answered 503.
	Checks func(ctx context.Context) []Check
	// Settings returns the settings in force. Like Snapshot it is called
	// concurrently.
	Settings func() Settings
	// Source is where the numbers come from, as the JSON says it: "bpf" or "proc".
	Source string
	// Build is what /version and nettally_build_info say.
	Build BuildInfo
	// Ready returns nil, or why /readyz is to answer 503. A nil Ready is always
	// ready.
	Ready func() error
	// Now is what time it is, for history until now; nil is time.Now.
	Now func() time.Time
	// Boot is CLOCK_BOOTTIME, which rates go by; nil is the host's.
	Boot func() time.Duration
	// Distrust says in one line why the host's clock is not trusted, "" while it is; nil: it
	// always is.
	Distrust func() string
	// Extra are metrics of other packages. They are shown as they are.
	Extra []prometheus.Collector
	// Hosts are the names, beside localhost, that requests over loopback may be for.
	Hosts []string
	// Log gets what a client is not told: a collector that failed, a TLS
	// handshake that broke.
	Log *slog.Logger
}

// Exporter answers HTTP requests about usage. It is safe for concurrent use.
type Exporter struct {
	snapshot func(context.Context) (usage.Snapshot, error)
	rows     func(context.Context, HistoryQuery) ([]HistoryRow, error)
	live     Live
	quotas   Quotas
	periods  func() Periods
	checker  *checker
	seats    seats

	notifierTest func(context.Context, string) error

	ready     func() error
	now       func() time.Time
	boot      func() time.Duration
	distrust  func() string
	source    string
	build     BuildInfo
	log       *slog.Logger
	registry  *prometheus.Registry // of the metrics that are of no snapshot
	collector *collector
	handler   http.Handler
	hosts     []string
	fronts    *frontCounts
	times     times
}

// New makes an exporter. It starts no goroutine and opens nothing.
//
// Returns an error if a collector of opts.Extra can not be registered beside
// the others, for example because a metric name is taken.
func New(opts Options) (*Exporter, error) {
	e := &Exporter{
		snapshot: opts.Snapshot, rows: opts.History, live: opts.Live, quotas: opts.Quotas, periods: opts.Periods, notifierTest: opts.TestNotifier,
		ready: opts.Ready, source: opts.Source, build: opts.Build, log: opts.Log,
		now: opts.Now, boot: opts.Boot, distrust: opts.Distrust,
		registry: prometheus.NewRegistry(), collector: newCollector(opts.Settings),
		hosts: opts.Hosts, fronts: newFrontCounts(), times: defaultTimes,
	}
	if e.now == nil {
		e.now = time.Now
	}
	if e.periods == nil {
		e.periods = func() Periods { return Periods{} }
	}
	if e.boot == nil {
		e.boot = bootTime
	}
	e.checker = newChecker(opts.Checks, e.boot)
	if e.distrust == nil {
		e.distrust = func() string { return "" }
	}
	if err := e.register(opts.Extra); err != nil {
		return nil, err
	}
	e.handler = e.routes()
	return e, nil
}

// Handler returns the handler of all paths, without TLS and authentication.
func (e *Exporter) Handler() http.Handler { return e.handler }

func (e *Exporter) register(extra []prometheus.Collector) error {
	own := []prometheus.Collector{
		reserved{e.collector},
		buildInfo(e.build),
		e.fronts,
		e.viewers(),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
	for _, c := range slices.Concat(own, extra) {
		if err := e.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (e *Exporter) viewers() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nettally_stream_viewers",
		Help: "Clients that watch usage live, by /api/v1/stream.",
	}, func() float64 { return float64(e.seats.held()) })
}

func buildInfo(b BuildInfo) prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nettally_build_info",
		Help: "1, labelled by the version, source revision and Go version of this nettally.",
		ConstLabels: prometheus.Labels{
			"version": b.Version, "revision": b.Revision, "goversion": b.GoVersion,
		},
	})
	info.Set(1)
	return info
}

// metrics answers a scrape of one snapshot, or 503: part of the metrics would look
// like all of them. A failing collector costs its own metrics only. The failure is
// logged and counted in promhttp_metric_handler_errors_total. A client that does not read to
// the end is no failure of ours.
func (e *Exporter) metrics(w http.ResponseWriter, r *http.Request) {
	snap, ok := e.take(w, r)
	if !ok {
		return
	}
	var quotas []quota.Status
	if e.quotas != nil {
		quotas = e.quotas.Status()
	}
	reader := &leaving{ResponseWriter: w}
	promhttp.HandlerFor(gatherer{e.registry, e.collector.of(snap, e.periods(), quotas...)}, promhttp.HandlerOpts{
		ErrorLog:                            errorLog(e.log),
		ErrorHandling:                       promhttp.ContinueOnError,
		Registry:                            e.registry,
		EnableOpenMetrics:                   true,
		EnableOpenMetricsTextCreatedSamples: true,
	}).ServeHTTP(reader, r)
	if reader.err != nil {
		e.log.Debug("a scrape was not read to the end", "remote", r.RemoteAddr, "err", reader.err)
	}
}

// leaving is an answer whose client may leave before its end. What is written after that is
// dropped without an error: promhttp would log and count one for each metric family.
type leaving struct {
	http.ResponseWriter
	err error
}

// Write implements [io.Writer].
func (l *leaving) Write(text []byte) (int, error) {
	if l.err == nil {
		_, l.err = l.ResponseWriter.Write(text)
	}
	return len(text), nil
}

// Unwrap is for [http.ResponseController].
func (l *leaving) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// gatherer gathers the metrics of a snapshot and all others, of which none has the same
// name: see [reserved]. That saves a scrape the second look at every series which
// prometheus.Gatherers takes.
type gatherer struct {
	others   *prometheus.Registry
	snapshot prometheus.Collector
}

// Gather implements [prometheus.Gatherer].
func (g gatherer) Gather() ([]*dto.MetricFamily, error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(g.snapshot); err != nil {
		return nil, err
	}
	own, ownErr := registry.Gather()
	others, otherErr := g.others.Gather()
	families := append(own, others...)
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families, errors.Join(ownErr, otherErr)
}

// errorLog is a logger for libraries that want one of package log.
func errorLog(logger *slog.Logger) *log.Logger {
	return slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
}
