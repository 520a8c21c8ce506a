// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"net/http/httptest"
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

// give returns the answer to a request that the client gives up at once.
func give(t *testing.T, opts Options, target string) (code int, body string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	newExporter(t, opts).Handler().ServeHTTP(w, httptest.NewRequest("GET", target, nil).WithContext(ctx))
	return w.Code, w.Body.String()
}

// Before all that was counted is known there are no numbers, not even some.
func TestNoPartialNumbers(t *testing.T) {
	opts := withHistory(options(snapshot()))
	opts.Snapshot = adopting
	const notYet = `{"error":"take over what was counted before: context canceled"}` + "\n"
	for _, target := range []string{"/metrics", "/api/v1/containers", "/api/v1/containers/web"} {
		if code, body := give(t, opts, target); code != 503 || body != notYet {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
	for _, target := range []string{"/healthz", "/readyz", "/version", "/", "/api/v1/history"} {
		if code, body := give(t, opts, target); code != 200 {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
}

// A request that comes too early waits for its numbers.
func TestWaits(t *testing.T) {
	for _, target := range []string{"/metrics", "/api/v1/containers", "/api/v1/containers/web"} {
		opts := options(snapshot())
		take := opts.Snapshot
		entered, adopted := make(chan struct{}), make(chan struct{})
		opts.Snapshot = func(ctx context.Context) (usage.Snapshot, error) {
			close(entered)
			select {
			case <-adopted:
				return take(ctx)
			case <-ctx.Done():
				return usage.Snapshot{}, ctx.Err()
			}
		}
		h := newExporter(t, opts).Handler()
		answered := make(chan int)
		go func() {
			code, _, _ := request(t, h, "GET", target)
			answered <- code
		}()
		<-entered
		select {
		case code := <-answered:
			t.Fatalf("%s: answered %d at once", target, code)
		default:
		}
		close(adopted)
		if code := <-answered; code != 200 {
			t.Errorf("%s: status %d", target, code)
		}
	}
}
