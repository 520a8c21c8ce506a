// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Checks load programs and read the whole host: however many ask, they are made once per minute,
// and one after the other.
func TestChecksOncePerMinute(t *testing.T) {
	var boot, made, at atomic.Int64
	opts := options(snapshot())
	opts.Boot = func() time.Duration { return time.Duration(boot.Load()) }
	opts.Checks = func(context.Context) []Check {
		if at.Add(1) != 1 {
			t.Error("two checks at a time")
		}
		defer at.Add(-1)
		return []Check{{"kernel", VerdictWarning, fmt.Sprint("made ", made.Add(1))}}
	}
	h := newExporter(t, opts).Handler()
	for minute := range int64(3) {
		boot.Store(minute * int64(time.Minute))
		var askers sync.WaitGroup
		for range 20 {
			askers.Go(func() {
				want := fmt.Sprintf(`"checks":[{"name":"kernel","verdict":"warning","found":"made %d"}]`, minute+1)
				if code, _, body := request(t, h, "GET", "/api/v1/checks"); code != 200 || !strings.Contains(body, want) {
					t.Errorf("answer %d %s, want %s", code, body, want)
				}
			})
		}
		askers.Wait()
		boot.Add(int64(time.Minute) - 1)
		if _, _, body := request(t, h, "GET", "/api/v1/checks"); !strings.Contains(body, fmt.Sprint("made ", minute+1)) {
			t.Errorf("checked again before a minute had passed: %s", body)
		}
	}
}

// A client that leaves gives its check up, and nobody is told what was found by then.
func TestChecksGivenUp(t *testing.T) {
	opts := options(snapshot())
	opts.Checks = func(ctx context.Context) []Check {
		if ctx.Err() != nil {
			return []Check{{"names.docker", VerdictWarning, "given up"}}
		}
		return []Check{{"names.docker", VerdictOK, "asked"}}
	}
	e := newExporter(t, opts)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.checker.checks(ctx); err == nil {
		t.Error("what was given up was answered")
	}
	if _, _, body := request(t, e.Handler(), "GET", "/api/v1/checks"); !strings.Contains(body, `"found":"asked"`) {
		t.Errorf("afterwards: %s", body)
	}
}
