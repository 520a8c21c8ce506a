// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/time/rate"

	"github.com/nettally/nettally/internal/usage"
)

// serveTimes is serve with other time-outs.
func serveTimes(t *testing.T, opts Options, webConfig string, change func(*times)) (*Exporter, *Listeners, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen("127.0.0.1:0", socket, webConfig)
	if err != nil {
		t.Fatal(err)
	}
	e := newExporter(t, opts)
	change(&e.times)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return e, l, socket
}

func unchanged(*times) {}

// tcpFront returns the front of the TCP listener, once it is served.
func tcpFront(e *Exporter) *front {
	for ; ; time.Sleep(time.Millisecond) {
		e.fronts.mu.Lock()
		for _, f := range e.fronts.fronts {
			if f.name == frontTCP {
				e.fronts.mu.Unlock()
				return f
			}
		}
		e.fronts.mu.Unlock()
	}
}

func dial(t *testing.T, l *Listeners) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// exchange sends a text and returns all that comes until the server closes.
func exchange(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(c) // a reset is an end, too
	return string(answer)
}

// status is the first line of an answer.
func statusLine(answer string) string {
	line, _, _ := strings.Cut(answer, "\r\n")
	return line
}

// A body that is announced and never sent holds a connection for no time, whatever the
// time-outs are.
func TestUnreadBodies(t *testing.T) {
	_, l, _ := serveTimes(t, options(snapshot()), "", func(t *times) { *t = times{placeWait: time.Hour, slowAnswer: time.Hour} })
	for request, want := range map[string]string{
		"GET /version HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n":                              "HTTP/1.1 200 OK",
		"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n":                           "HTTP/1.1 200 OK",
		"GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n":                       "HTTP/1.1 200 OK",
		"GET / HTTP/1.0\r\nContent-Length: 5\r\n\r\n":                                                          "HTTP/1.0 200 OK",
		"HEAD /version HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n":                             "HTTP/1.1 200 OK",
		"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n":                             "HTTP/1.1 405 Method Not Allowed",
		"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n":                                    "HTTP/1.1 404 Not Found",
		"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n":                                 "HTTP/1.1 400 Bad Request",
		"POST /api/v1/quotas/a/set HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n":                 "HTTP/1.1 403 Forbidden",
		"POST /version HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n":       "HTTP/1.1 405 Method Not Allowed",
		"GET /version HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100\r\n\r\n":                           "HTTP/1.1 421 Misdirected Request",
		"GET /version HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n": "HTTP/1.1 200 OK",
	} {
		answer := exchange(t, dial(t, l), request)
		if got := statusLine(answer); got != want {
			t.Errorf("%q: %s, want %s", request, got, want)
		}
		if strings.Count(answer, "HTTP/1.") != 1 {
			t.Errorf("%q: what came after the header was answered, too:\n%s", request, answer)
		}
	}
}

// A change whose body does not come is given up when the time for it is over, and so are
// headers and handshakes that are never finished.
func TestUnfinished(t *testing.T) {
	short := func(t *times) { t.header, t.body = 20*time.Millisecond, 40*time.Millisecond }
	_, l, _ := serveTimes(t, options(snapshot()), "", short)
	for _, start := range []string{"", "G", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-A: ", "\r\n\r\n\r\n"} {
		if answer := exchange(t, dial(t, l), start); strings.Contains(answer, "200 OK") {
			t.Errorf("%q is answered: %s", start, answer)
		}
	}
	// The headers are there: only the body may take too long, on a slow machine, too.
	_, _, socket := serveTimes(t, options(snapshot()), "", func(t *times) { t.header, t.body = time.Hour, 2*time.Second })
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := exchange(t, c, "POST /api/v1/quotas/a/set HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	if got := statusLine(answer); got != "HTTP/1.1 400 Bad Request" {
		t.Errorf("change without its body: %s", answer)
	}

	_, secure, _ := serveTimes(t, options(snapshot()), tlsConfig(t), short)
	for _, start := range []string{"", "\x16\x03\x01\x02\x00", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		if answer := exchange(t, dial(t, secure), start); strings.Contains(answer, "HTTP") {
			t.Errorf("TLS %q is answered: %s", start, answer)
		}
	}
}

// The time-out of reading does not end a request that waits for its numbers.
func TestWaitsLongerThanReading(t *testing.T) {
	opts := options(snapshot())
	take, over := opts.Snapshot, make(chan struct{})
	opts.Snapshot = func(ctx context.Context) (usage.Snapshot, error) {
		select {
		case <-over:
			return take(ctx)
		case <-ctx.Done():
			return usage.Snapshot{}, ctx.Err()
		}
	}
	const reading = 3 * time.Second // enough for a slow machine to read the request
	_, l, _ := serveTimes(t, opts, "", func(t *times) { t.header, t.body = reading, reading })
	time.AfterFunc(reading+time.Second, func() { close(over) })
	answer, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Error(answer.Status)
	}
}

func TestHeaderLimit(t *testing.T) {
	_, l, _ := serveTimes(t, options(snapshot()), "", unchanged)
	for size, want := range map[int]string{
		15 << 10: "HTTP/1.0 200 OK",
		21 << 10: "HTTP/1.1 431 Request Header Fields Too Large",
		1 << 20:  "HTTP/1.1 431 Request Header Fields Too Large",
	} {
		c := dial(t, l)
		go fmt.Fprintf(c, "GET /version HTTP/1.0\r\nX-Long: %s\r\n\r\n", strings.Repeat("x", size))
		answer, _ := io.ReadAll(c) // what was not read resets the connection
		if got := statusLine(string(answer)); got != want && !(size == 1<<20 && got == "") {
			t.Errorf("%d bytes: %q, want %s", size, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	opts := options(snapshot())
	opts.Hosts = []string{"metrics.example.org", "Box"}
	h := newExporter(t, opts)
	loopback := []string{"127.0.0.1:9819", "[::1]:9819", "[::ffff:127.0.0.1]:9819", "127.3.4.5:1"}
	for host, known := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:9819": true, "[::1]": true, "[::1]:9819": true, "10.0.0.1:80": true, "[fe80::1%25eth0]:1": true,
		"localhost": true, "localhost:80": true, "LocalHost:9819": true, "localhost.:9819": true,
		"metrics.example.org": true, "METRICS.example.org:9819": true, "metrics.example.org.": true, "box:1": true, "": true,
		"evil.example": false, "evil.example:9819": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false,
		"xmetrics.example.org": false, "localhost:80:80": false, "[localhost": false, "127.1": false, "2130706433": false, ":9819": true,
	} {
		for _, local := range append(loopback, "192.0.2.1:9819") {
			here, err := net.ResolveTCPAddr("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("GET", "/version", nil)
			r.Host = host
			w := httptest.NewRecorder()
			h.onlyKnownHosts(h.Handler()).ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, here)))
			want := http.StatusOK
			if !known && here.IP.IsLoopback() {
				want = http.StatusMisdirectedRequest
			}
			if w.Code != want {
				t.Errorf("host %q at %s: status %d, want %d: %s", host, local, w.Code, want, w.Body)
			}
		}
	}
}

// What a browser's page would need, and what it could send.
func TestRebinding(t *testing.T) {
	_, l, socket := serveTimes(t, options(snapshot()), "", unchanged)
	const refusal = `{"error":"serve host \"evil.example:9819\": not known; if it is this host, add it to exporter.hosts"}` + "\n"
	for _, request := range []string{
		"GET /metrics HTTP/1.1\r\nHost: evil.example:9819\r\nConnection: close\r\n\r\n",
		"GET http://evil.example:9819/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
	} {
		if answer := exchange(t, dial(t, l), request); !strings.HasSuffix(answer, refusal) || !strings.HasPrefix(answer, "HTTP/1.1 421 ") {
			t.Errorf("%q: %s", request, answer)
		}
	}
	for request, want := range map[string]string{
		"GET /version HTTP/1.0\r\n\r\n":                               "HTTP/1.0 200 OK",
		"GET /version HTTP/1.1\r\n\r\n":                               "HTTP/1.1 400 Bad Request: missing required Host header",
		"GET /version HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n": "HTTP/1.1 400 Bad Request",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                            "HTTP/1.1 400 Bad Request",
		"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n\x81\x05": "HTTP/1.1 200 OK",
		"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n":                                                     "HTTP/1.1 421 Misdirected Request",
	} {
		if got := statusLine(exchange(t, dial(t, l), request)); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %s, want %s", request, got, want)
		}
	}
	request, err := http.NewRequest("GET", "http://"+l.Addr().String()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Origin", "http://evil.example")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	for name := range answer.Header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("another origin is allowed by %s", name)
		}
	}
	if _, err := Fetch(t.Context(), socket, false); err != nil { // of the host nettally
		t.Error(err)
	}
}

// Pipelined requests are answered one after another, each in full.
func TestPipelining(t *testing.T) {
	_, l, _ := serveTimes(t, options(snapshot()), "", unchanged)
	const one = "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
	answer := exchange(t, dial(t, l), strings.Repeat(one, 50)+"GET /version HTTP/1.0\r\n\r\n")
	if n := strings.Count(answer, `"version":"1.2.3"`); n != 51 {
		t.Errorf("%d of 51 requests are answered", n)
	}
}

// An attacker's uid floods the listener with three times what it holds, and keeps half of
// the places busy. Root's connections stay open, and root is answered.
func TestFloodOverTCP(t *testing.T) {
	e, l, socket := serveTimes(t, options(many(2000)), "", func(t *times) { t.header, t.body, t.idle, t.slowAnswer = 0, 0, 0, time.Hour })
	most := tcpFront(e).max
	root := dial(t, l)
	reader := bufio.NewReader(root)
	ask := func() {
		t.Helper()
		fmt.Fprint(root, "GET /api/v1/containers/k8s-app-7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
		answer, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s, %v", answer.Status, err)
		}
	}
	ask()
	as(t, visitor, func() {
		for i := range 3 * most {
			c := dial(t, l)
			switch {
			case i < placesMost:
				fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n") // and reads nothing
			case i%2 == 0:
				fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
			}
			if i%100 == 0 {
				ask()
			}
		}
	})
	ask()
	if answer, err := http.Get("http://" + l.Addr().String() + "/metrics"); err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("new connection of root: %v, %v", answer, err)
	} else {
		answer.Body.Close()
	}
	if _, err := Fetch(t.Context(), socket, false); err != nil {
		t.Error(err)
	}
	if n := tcpFront(e).held(); n > most {
		t.Errorf("%d connections, want at most %d", n, most)
	}
	evicted := testutil.ToFloat64(e.fronts.evicted.WithLabelValues(frontTCP, "idle")) +
		testutil.ToFloat64(e.fronts.evicted.WithLabelValues(frontTCP, "serving"))
	if want := 3*most + 1 - most; int(evicted) < want {
		t.Errorf("%v evictions, want at least %d", evicted, want)
	}
}

// Readers that do not read keep their own places only, and those not for long.
func TestSlowReaders(t *testing.T) {
	e, l, _ := serveTimes(t, options(many(4000)), "", func(t *times) { t.placeWait, t.slowAnswer = time.Hour, 50*time.Millisecond })
	const ask = "GET /api/v1/containers HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for range placesMost {
		as(t, visitor, func() { fmt.Fprint(dial(t, l), ask) })
	}
	refused := func(cause string) float64 {
		return testutil.ToFloat64(e.fronts.refused.WithLabelValues(frontTCP, cause))
	}
	for refused(refusedSlow) < placesMost-placesPerPeer {
		answer, err := http.Get("http://" + l.Addr().String() + "/api/v1/containers/k8s-app-7")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status)
		}
	}
}

// Who asks for more than there is room for is told when to come again.
func TestBusy(t *testing.T) {
	opts := options(snapshot())
	opts.Snapshot = adopting
	e, l, socket := serveTimes(t, opts, "", func(t *times) { t.placeWait = 10 * time.Millisecond })
	for range placesPerPeer {
		fmt.Fprint(dial(t, l), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	full := func() bool {
		p := tcpFront(e).places
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.taken) == placesPerPeer
	}
	for !full() {
		time.Sleep(time.Millisecond)
	}
	answer, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	got := fmt.Sprint(answer.StatusCode, answer.Header.Get("Retry-After"), string(body), err)
	if want := fmt.Sprint(503, "5", `{"error":"`+errBusy.Error()+`"}`+"\n", nil); got != want {
		t.Errorf("answer %s\nwant %s", got, want)
	}
	// Other pages need no place, and the unix socket has its own.
	if answer, err := http.Get("http://" + l.Addr().String() + "/healthz"); err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("healthz: %v, %v", answer, err)
	} else {
		answer.Body.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Fetch(ctx, socket, false); err == nil || strings.Contains(err.Error(), "too many") {
		t.Errorf("over the unix socket: %v", err)
	}
}

func TestFrontMetrics(t *testing.T) {
	e, l, _ := serveTimes(t, options(snapshot()), "", unchanged)
	exchange(t, dial(t, l), "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
	problems, err := testutil.CollectAndLint(e.fronts)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	_, _, text := request(t, e.Handler(), "GET", "/metrics")
	var got []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "nettally_http_") && strings.Contains(line, `"tcp"`) && !strings.Contains(line, "connections{") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := []string{
		`nettally_http_connections_limit{listener="tcp"} 512`,
		`nettally_http_evicted_connections_total{listener="tcp",state="idle"} 0`,
		`nettally_http_evicted_connections_total{listener="tcp",state="serving"} 0`,
		`nettally_http_refused_requests_total{cause="busy",listener="tcp"} 0`,
		`nettally_http_refused_requests_total{cause="host",listener="tcp"} 1`,
		`nettally_http_refused_requests_total{cause="slow",listener="tcp"} 0`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	explained, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"connections", "connections_limit", "evicted_connections_total", "refused_requests_total"} {
		if !strings.Contains(string(explained), "`nettally_http_"+name+"`") {
			t.Errorf("METRICS.md does not explain nettally_http_%s", name)
		}
	}
}

// Handshakes that fail fill no log.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		c := &calm{to: log.New(&text, "", 0), now: rate.Sometimes{First: 10, Interval: time.Second}}
		for range 3 {
			for range 1000 {
				fmt.Fprintln(c, "handshake failed")
			}
			time.Sleep(time.Second)
		}
		if n := strings.Count(text.String(), "\n"); n != 12 {
			t.Errorf("%d lines of 3000 in 3 s, want 12", n)
		}
	})
}
