// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/nettally/nettally/internal/quota"
)

// frail is an exporter whose history, quotas and notifiers fail where the request says so.
type frail struct {
	*Exporter
	failed bool // in the request that was answered last
}

// Names in requests that make something fail.
const (
	unknown = "unknown"
	bad     = "bad"
	broken  = "broken"
)

// fail returns the error that a name asks for.
func (f *frail) fail(name string) error {
	switch name {
	case unknown:
		return fmt.Errorf("find %q: %w", name, quota.ErrUnknown)
	case bad:
		return fmt.Errorf("find %q: %w", name, ErrBadHistory)
	case broken:
		f.failed = true
		return fmt.Errorf("set %q: %w", name, quota.ErrNotNow)
	}
	return nil
}

// Set implements [Quotas].
func (f *frail) Set(name, key string, _ uint64) error { return errors.Join(f.fail(name), f.fail(key)) }

// Status implements [Quotas].
func (f *frail) Status() []quota.Status { return someQuotas().status }

// Alerts implements [Quotas].
func (f *frail) Alerts() []quota.Alert { return someQuotas().alerts }

func newFrail(tb testing.TB) *frail {
	tb.Helper()
	f := &frail{}
	opts := options(snapshot())
	opts.Settings, opts.Quotas, opts.Hosts = everything, f, []string{"box.example.org"}
	opts.History = func(_ context.Context, q HistoryQuery) ([]HistoryRow, error) { return historyRows(), f.fail(q.Name) }
	opts.TestNotifier = func(_ context.Context, name string) error { return f.fail(name) }
	f.Exporter = newExporter(tb, opts)
	return f
}

// serve answers a request as the server of a front does, with what stands before the handler.
func (f *frail) serve(front *front, r *http.Request) *httptest.ResponseRecorder {
	f.failed = false
	ctx := context.WithValue(r.Context(), frontKey{}, front)
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}))
	w := httptest.NewRecorder()
	f.server(front).Handler.ServeHTTP(w, r.WithContext(ctx))
	return w
}

// fault returns what is wrong with an answer, whatever was asked.
func (f *frail) fault(w *httptest.ResponseRecorder) error {
	body := w.Body.Bytes()
	if w.Code >= 500 && !f.failed {
		return errors.New("nothing has failed")
	}
	for name, values := range w.Header() {
		if text := name + strings.Join(values, ""); strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
			return fmt.Errorf("header %q", text)
		}
	}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "text/csv") {
		_, err := csv.NewReader(bytes.NewReader(body)).ReadAll()
		return err
	}
	if other := func(r rune) bool { return unicode.IsControl(r) && r != '\n' }; bytes.ContainsFunc(body, other) {
		return errors.New("control characters")
	}
	if w.Code >= 400 {
		var said failure
		if err := json.Unmarshal(body, &said); err != nil || said.Error == "" || w.Header().Get("Content-Type") != "application/json" {
			return fmt.Errorf("no error as JSON: %w", err)
		}
		if strings.ContainsFunc(said.Error, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }) {
			return errors.New("control characters in the error")
		}
	}
	if w.Header().Get("Content-Type") == "application/json" && !json.Valid(body) {
		return errors.New("not JSON")
	}
	return nil
}

// apiSeeds are requests of all kinds: method, target, host and body.
var apiSeeds = [][4]string{
	{"GET", "/", "localhost:9476"},
	{"GET", "/metrics", "[::1]:9476"},
	{"GET", "/api/v1/containers?all=true&name=w*&state=running&runtime=docker&namespace=%5B", "127.0.0.1"},
	{"HEAD", "/api/v1/containers/aaa", ""},
	{"GET", "/api/v1/containers/aaa111?x=%1b", "box.example.org."},
	{"GET", "/api/v1/containers/%1b%5b31m%c2%9b%ff%00", "evil.example.org"},
	{"GET", "/api/v1/history?by=label:team&step=hour&from=2026-11-01&to=2026-11-02T00:00:00%2b01:00&format=csv", "localhost"},
	{"GET", "/api/v1/history?step=month&name=bad&user=1000&label=a=b&container=aaa", "localhost"},
	{"GET", "/api/v1/history?name=broken", "localhost"},
	{"GET", "/api/v1/history?from=-1&to=999999999999", "localhost"},
	{"GET", "/api/v1/quotas?%zz", "localhost"},
	{"GET", "/api/v1/alerts?a=1;b=2", "localhost"},
	{"POST", "/api/v1/quotas/egress/set", "localhost", `{"key":"web","used":5}`},
	{"POST", "/api/v1/quotas/unknown/reset", "localhost", ``},
	{"POST", "/api/v1/quotas/egress/set?x", "localhost", `{"k` + "\x1b\u009b" + `y":` + "\x01"},
	{"POST", "/api/v1/quotas/broken/reset", "localhost", `{"key":"unknown"}`},
	{"POST", "/api/v1/notifiers/broken/test", "localhost", ``},
	{"POST", "/api/v1/notifiers/%0a/test", "localhost", ``},
	{"OPTIONS", "*", "localhost"},
	{"CONNECT", "a:1", "localhost"},
	{"GET", "//api/../metrics?\u009b<script>", "localhost"},
	{"GET", "http://box.example.org/version?a=%c2%9b", "localhost\u009b"},
	{"B\u009bREW", "/healthz", "localhost"},
	{"TRACE", "/readyz", "localhost"},
}

// FuzzAPI asks for anything, over TCP and over the unix socket. HTTP/2 takes methods and hosts
// that are no tokens, so those are set as they are; what net/http refuses by itself is not
// tried.
func FuzzAPI(f *testing.F) {
	for _, s := range apiSeeds {
		f.Add(s[0], s[1], s[2], s[3], s[0] == "POST")
	}
	e := newFrail(f)
	fronts := map[bool]*front{false: e.newFront(frontTCP, nil, 1, nil), true: e.newFront(frontUnix, nil, 1, nil)}
	f.Fuzz(func(t *testing.T, method, target, host, body string, unix bool) {
		if method == "" || strings.ContainsFunc(method+host, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return // neither version of HTTP carries them
		}
		line := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", target, len(body), body)
		if method == "CONNECT" {
			line = "CONNECT" + strings.TrimPrefix(line, "GET")
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line)))
		if err != nil {
			return
		}
		r.Method, r.Host = method, host
		w := e.serve(fronts[unix], r)
		if err := e.fault(w); err != nil {
			t.Errorf("%q %q of %q, body %q: %d %v: %v\n%q", method, target, host, body, w.Code, w.Header(), err, w.Body)
		}
	})
}

// FuzzParseOwner feeds what no kernel sends. Whoever is named owns the flow that was asked for.
func FuzzParseOwner(f *testing.F) {
	asked := flow{local: netip.MustParseAddrPort("127.0.0.1:1"), remote: netip.MustParseAddrPort("127.0.0.1:2")}
	answer := make([]byte, diagAnswerSize)
	copy(answer[diagID:], diagAddresses(asked))
	f.Add(answer)
	answer[diagAnswerSize-1] = 1
	f.Add(answer)
	f.Add(answer[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		_, ok := parseOwner(b, asked)
		if ok && !bytes.Equal(b[diagID:diagID+4], diagAddresses(asked)[:4]) {
			t.Errorf("%x has an owner", b)
		}
	})
}
