// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// quotas are some that do not change, but take note of what they are told.
type quotas struct {
	status []quota.Status
	alerts []quota.Alert
	set    string
	err    error
}

func (q *quotas) Status() []quota.Status { return slices.Clone(q.status) }
func (q *quotas) Alerts() []quota.Alert  { return q.alerts }
func (q *quotas) Set(name, key string, used uint64) error {
	q.set = fmt.Sprint(name, " ", key, " ", used)
	return q.err
}

func someQuotas() *quotas {
	return &quotas{
		status: []quota.Status{{
			Quota: "egress", Key: "web", Name: "web", Per: "name", Count: quota.TransmitBytes, Source: "interface",
			Used: 850, Limit: 1000, Unit: "bytes", Decimal: true, Ratio: 0.85, Every: quota.Monthly, PeriodStart: midnight, PeriodEnd: midnight.AddDate(0, 1, 0),
			Projected: 1700.5, Predictable: true,
			Levels: []quota.Level{{Name: "80", Firing: true}, {Name: "100"}, {Name: "projection", Firing: true}}, Notify: []string{"ops"},
		}, {
			Quota: "syn", Key: "3f\xff", Per: "container", Count: quota.TransmitSYN, Used: 7, Limit: 200, Unit: "requests/s", Ratio: 0.035,
			Levels: []quota.Level{{Name: "rate"}},
		}, {
			Quota: "packets", Key: "all", Per: "all", Count: quota.TotalPackets, Used: 5, Limit: 10, Unit: "packets", Ratio: 0.5,
			Every: quota.Lifetime, PeriodStart: noon,
		}},
		alerts: []quota.Alert{{
			ID: "egress/web/x/80", Quota: "egress", Key: "web", Level: "80", State: quota.Firing, StartsAt: midnight, Used: 801, Limit: 1000,
			Unit: "bytes", Ratio: 0.801, PeriodStart: midnight, PeriodEnd: midnight.AddDate(0, 1, 0), Projected: 1700,
			Labels: map[string]string{"name": "web"}, Summary: "web has used 801B", Notifiers: []string{"ops"},
		}, {
			ID: "syn/3f/y/rate", Quota: "syn", Key: "3f", Level: "rate", State: quota.Resolved, StartsAt: midnight, EndsAt: noon,
			Used: 3, Limit: 200, Unit: "requests/s", Ratio: 0.015,
		}},
	}
}

func withQuotas(opts Options) Options {
	opts.Quotas = someQuotas()
	return opts
}

func TestQuotaMetrics(t *testing.T) {
	status := someQuotas().status
	status = append(status, status[0])                                                           // twice must not fail the scrape
	status = append(status, quota.Status{Quota: "nobody", Per: "name", Limit: 5, Unit: "bytes"}) // it has no series before it has a key
	c := newCollector(everything).of(usage.Snapshot{}, Periods{}, status...)
	want := `
		# HELP nettally_quota_alert_active 1 while the alert of a threshold fires, else 0. A threshold is a percentage of the limit, projection or rate.
		# TYPE nettally_quota_alert_active gauge
		nettally_quota_alert_active{key="3f�",quota="syn",threshold="rate"} 0
		nettally_quota_alert_active{key="web",quota="egress",threshold="100"} 0
		nettally_quota_alert_active{key="web",quota="egress",threshold="80"} 1
		nettally_quota_alert_active{key="web",quota="egress",threshold="projection"} 1
		# HELP nettally_quota_limit_bytes The limit, in bytes.
		# TYPE nettally_quota_limit_bytes gauge
		nettally_quota_limit_bytes{key="web",quota="egress"} 1000
		# HELP nettally_quota_limit_packets The limit, in packets.
		# TYPE nettally_quota_limit_packets gauge
		nettally_quota_limit_packets{key="all",quota="packets"} 10
		# HELP nettally_quota_period_end_seconds When the running period ends, as Unix time.
		# TYPE nettally_quota_period_end_seconds gauge
		nettally_quota_period_end_seconds{key="web",quota="egress"} 1.7960796e+09
		# HELP nettally_quota_period_start_seconds When the running period began, as Unix time.
		# TYPE nettally_quota_period_start_seconds gauge
		nettally_quota_period_start_seconds{key="all",quota="packets"} 1.7723664e+09
		nettally_quota_period_start_seconds{key="web",quota="egress"} 1.7934876e+09
		# HELP nettally_quota_projected_bytes What will be used at the end of the period if it goes on like this, in bytes; there once a tenth of the period was seen since the key began or was set.
		# TYPE nettally_quota_projected_bytes gauge
		nettally_quota_projected_bytes{key="web",quota="egress"} 1700.5
		# HELP nettally_quota_used_bytes What was used in the running period, in bytes.
		# TYPE nettally_quota_used_bytes gauge
		nettally_quota_used_bytes{key="web",quota="egress"} 850
		# HELP nettally_quota_used_packets What was used in the running period, in packets.
		# TYPE nettally_quota_used_packets gauge
		nettally_quota_used_packets{key="all",quota="packets"} 5
		# HELP nettally_quota_used_ratio Used, or the rate now, divided by the limit.
		# TYPE nettally_quota_used_ratio gauge
		nettally_quota_used_ratio{key="3f�",quota="syn"} 0.035
		nettally_quota_used_ratio{key="all",quota="packets"} 0.5
		nettally_quota_used_ratio{key="web",quota="egress"} 0.85
	`
	var names []string
	for line := range strings.Lines(want) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == "TYPE" {
			names = append(names, fields[2])
		}
	}
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	// The scrape has them, next to all others.
	code, _, body := request(t, newExporter(t, withQuotas(options(snapshot()))).Handler(), "GET", "/metrics")
	if code != 200 || !strings.Contains(body, `nettally_quota_used_ratio{key="web",quota="egress"} 0.85`) ||
		!strings.Contains(body, "nettally_container_info{") {
		t.Errorf("%d: %s", code, body)
	}
}

func TestQuotaJSON(t *testing.T) {
	h := newExporter(t, withQuotas(options(snapshot()))).Handler()
	_, _, body := request(t, h, "GET", "/api/v1/quotas")
	want := `{"quota":"egress","key":"web","name":"web","per":"name","count":"transmit_bytes","source":"interface","used":850,"limit":1000,` +
		`"unit":"bytes","decimal":true,"ratio":0.85,"every":"month","period_start":"2026-10-31T23:00:00Z","period_end":"2026-11-30T23:00:00Z","projected":1700.5,` +
		`"levels":[{"level":"80","firing":true},{"level":"100","firing":false},{"level":"projection","firing":true}],"notify":["ops"]}`
	if !strings.HasPrefix(body, `{"quotas":[`+want) {
		t.Errorf("got %s", body)
	}
	_, _, body = request(t, h, "GET", "/api/v1/alerts")
	for _, want := range []string{`"ends_at":null`, `"state":"firing"`, `"state":"resolved"`, `"summary":"web has used 801B"`, `"ends_at":"2026-03-01T12:00:00Z"`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
}

// testChanges tries all ways to change a quota, and hands over the answers.
func testChanges(t *testing.T, answered func(path, code, body string)) {
	t.Helper()
	const set, reset, tried = "/api/v1/quotas/{name}/set", "/api/v1/quotas/{name}/reset", "/api/v1/notifiers/{name}/test"
	unknown := fmt.Errorf("find quota %q: %w", "a b", quota.ErrUnknown)
	early := fmt.Errorf("set quota a b: %w", quota.ErrNotNow)
	for _, test := range []struct {
		path, method, body string
		tcp, none          bool
		err                error
		code               int
		set                string
	}{
		{path: set, method: "POST", body: `{"key":"web","used":5}`, code: 200, set: "a b web 5"},
		{path: set, method: "POST", body: `{"used":0}`, code: 200, set: "a b  0"},
		{path: reset, method: "POST", body: `{"key":"web"}`, code: 200, set: "a b web 0"},
		{path: reset, method: "POST", body: ``, code: 200, set: "a b  0"},
		{path: set, method: "POST", body: ``, code: 400},
		{path: set, method: "POST", body: `{"key":"web"}`, code: 400},
		{path: set, method: "POST", body: `{"key":"web","used":-1}`, code: 400},
		{path: set, method: "POST", body: `{"kye":"web","used":1}`, code: 400},
		{path: reset, method: "POST", body: `{"used":1}`, code: 400},
		{path: set, method: "POST", body: `{"used":1}`, err: errors.New("no"), code: 400, set: "a b  1"},
		{path: set, method: "POST", body: `{"used":1}`, tcp: true, code: 403},
		{path: reset, method: "POST", tcp: true, code: 403},
		{path: set, method: "POST", body: `{"used":1}`, err: unknown, code: 404, set: "a b  1"},
		{path: reset, method: "POST", err: unknown, code: 404, set: "a b  0"},
		{path: set, method: "GET", code: 405},
		{path: reset, method: "PUT", code: 405},
		{path: set, method: "POST", body: `{"used":1}`, err: early, code: 503, set: "a b  1"},
		{path: reset, method: "POST", none: true, code: 503},
		{path: tried, method: "POST", code: 200, set: "test a b"},
		{path: tried, method: "POST", tcp: true, code: 403},
		{path: tried, method: "POST", err: unknown, code: 404, set: "test a b"},
		{path: tried, method: "GET", code: 405},
		{path: tried, method: "POST", err: errors.New("no"), code: 502, set: "test a b"},
		{path: tried, method: "POST", none: true, code: 503},
	} {
		q := &quotas{err: test.err}
		opts := options(snapshot())
		if !test.none {
			opts.Quotas = q
			opts.TestNotifier = func(_ context.Context, name string) error {
				q.set = "test " + name
				return q.err
			}
		}
		r := httptest.NewRequest(test.method, strings.Replace(test.path, "{name}", "a%20b", 1), strings.NewReader(test.body))
		if !test.tcp {
			r = r.WithContext(context.WithValue(r.Context(), frontKey{}, &front{name: frontUnix}))
		}
		w := httptest.NewRecorder()
		newExporter(t, opts).Handler().ServeHTTP(w, r)
		if w.Code != test.code || q.set != test.set {
			t.Errorf("%s %s %s: %d, set %q; want %d, %q: %s", test.method, test.path, test.body, w.Code, q.set, test.code, test.set, w.Body)
		}
		answered(test.path, fmt.Sprint(w.Code), w.Body.String())
	}
}

// Without a key what is set is that of the only one, and of none if there are several.
func TestSetNeedsKeyAmongSeveral(t *testing.T) {
	q := &quotas{status: []quota.Status{{Quota: "egress", Key: "db"}, {Quota: "egress", Key: "web"}, {Quota: "all", Key: "all"}}}
	opts := options(snapshot())
	opts.Quotas = q
	h := newExporter(t, opts).Handler()
	for path, want := range map[string]string{"egress/set": "400 ", "all/set": "200 all  0"} {
		q.set = ""
		r := httptest.NewRequest("POST", "/api/v1/quotas/"+path, strings.NewReader(`{"used":0}`))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), frontKey{}, &front{name: frontUnix})))
		if got := fmt.Sprint(w.Code, " ", q.set); got != want {
			t.Errorf("%s: got %q, want %q: %s", path, got, want, w.Body)
		}
	}
}

// Over the real listeners: TCP is refused, and the socket is not.
func TestChangesOverSocketOnly(t *testing.T) {
	opts := withQuotas(options(snapshot()))
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := Listen("127.0.0.1:0", socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- newExporter(t, opts).Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	answer, err := http.Post("http://"+l.Addr().String()+"/api/v1/quotas/egress/reset", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if got := opts.Quotas.(*quotas).set; answer.StatusCode != http.StatusForbidden || got != "" {
		t.Errorf("over TCP: %d, set %q", answer.StatusCode, got)
	}
	used := uint64(7)
	if err := ChangeQuota(ctx, socket, "egress", QuotaChange{Key: "web", Used: &used}); err != nil {
		t.Error(err)
	}
	if got := opts.Quotas.(*quotas).set; got != "egress web 7" {
		t.Errorf("set %q", got)
	}
	list, err := FetchQuotas(ctx, socket)
	if err != nil || len(list.Quotas) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	if diff := cmp.Diff(quotaOf(someQuotas().status[0]), list.Quotas[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
