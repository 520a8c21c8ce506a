// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/quota"
)

// rewrite changes a file, and its time as well where the clock is too coarse for it.
func rewrite(t *testing.T, path, text string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	next := info.ModTime().Add(time.Second)
	if err := os.Chtimes(path, next, next); err != nil {
		t.Fatal(err)
	}
}

func webhookTo(url string) Config { return Config{Name: "hook", Webhook: &Webhook{URL: url}} }

// A receiver can tell from a request alone that it is ours and new.
func TestWebhookRequest(t *testing.T) {
	site := newSite(t)
	secret := write(t, "secret", "swordfish\n", 0o600)
	b := newBench(t, Config{Name: "hook", Webhook: &Webhook{URL: site.URL + "/in?token=x", SecretFile: secret}})
	tell := func(a quota.Alert) request {
		t.Helper()
		if err := b.deliverTo("hook", a); err != nil {
			t.Fatal(err)
		}
		_, taken := site.got()
		return taken[len(taken)-1]
	}
	first := tell(firing("80", "hook"))
	for name, want := range map[string]string{"Content-Type": "application/json", "User-Agent": "nettally/1.2.3"} {
		if got := first.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	var got map[string]any
	if err := json.Unmarshal(first.body, &got); err != nil {
		t.Fatal(err)
	}
	delivery := first.header.Get("X-Nettally-Delivery")
	want := map[string]any{"version": 1.0, "instance": "host-1", "delivery": delivery, "alert": map[string]any{
		"id": "80", "quota": "monthly", "key": "web-1", "level": "80", "state": "firing", "starts_at": "2026-03-10T12:30:00Z",
		"used": 80.0, "limit": 100.0, "unit": "bytes", "ratio": 0.8, "projected": 0.0, "summary": "web-1 has used 80",
		"notifiers": []any{"hook"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	if again := tell(firing("80", "hook")).header.Get("X-Nettally-Delivery"); again != delivery || len(delivery) != 32 {
		t.Errorf("told again it is delivery %q, and was %q", again, delivery)
	}
	if other := tell(resolved("80", "hook")).header.Get("X-Nettally-Delivery"); other == delivery {
		t.Error("firing and resolved are the same delivery")
	}
	wantSigned(t, first, "swordfish")
	rewrite(t, secret, "marlin")
	wantSigned(t, tell(firing("80", "hook")), "marlin")
}

// wantSigned checks a signature as a receiver does.
func wantSigned(t *testing.T, r request, secret string) {
	t.Helper()
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%s.%s", r.header.Get("X-Nettally-Timestamp"), r.body)
	want := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	if got := r.header.Get("X-Nettally-Signature"); got != want {
		t.Errorf("signature is %q, want %q", got, want)
	}
	var at int64
	if _, err := fmt.Sscan(r.header.Get("X-Nettally-Timestamp"), &at); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
		t.Errorf("timestamp is %q, want now", r.header.Get("X-Nettally-Timestamp"))
	}
}

func TestSecretRefused(t *testing.T) {
	site := newSite(t)
	for _, test := range []struct{ name, path, want string }{
		{"missing", filepath.Join(t.TempDir(), "none"), "read secret: open "},
		{"a folder", t.TempDir(), "it is not a file"},
		{"readable by everyone", write(t, "open", "x", 0o644), "everyone can read it; chmod o-rwx it"},
		{"empty", write(t, "empty", "\n", 0o600), "it is empty"},
		{"huge", write(t, "huge", strings.Repeat("x", 5000), 0o600), "longer than 4096 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, Config{Name: "hook", Webhook: &Webhook{URL: site.URL, SecretFile: test.path}})
			err := b.Test(t.Context(), "hook")
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.path) {
				t.Errorf("error is %v, want %q with %s", err, test.want, test.path)
			}
			if f := (*failure)(nil); !errors.As(err, &f) || f.permanent {
				t.Errorf("error is %#v, want one that may pass", err)
			}
		})
	}
	if all, _ := site.got(); len(all) > 0 {
		t.Errorf("%d requests were sent unsigned", len(all))
	}
}

// What a server answers, and what becomes of the alert.
func TestWebhookAnswers(t *testing.T) {
	for _, test := range []struct {
		code                int
		body, want          string
		permanent, everyone bool
	}{
		{200, "", "", false, false},
		{204, "", "", false, false},
		{301, "", "names another address, which is not followed", false, true},
		{400, "no\nthanks", "it answered 400 Bad Request: no thanks", true, false},
		{401, "", "it answered 401 Unauthorized", false, true},
		{403, "", "it answered 403 Forbidden", false, true},
		{404, "", "it answered 404 Not Found", false, true},
		{408, "", "it answered 408 Request Timeout", false, true},
		{410, "", "it answered 410 Gone", true, false},
		{413, "", "it answered 413", true, false},
		{422, "", "it answered 422", true, false},
		{429, "", "it answered 429 Too Many Requests", false, true},
		{500, "\x1b[31m" + strings.Repeat("x", 9999), "it answered 500 Internal Server Error: [31mxxx", false, false},
		{502, "", "it answered 502 Bad Gateway", false, true},
		{503, "", "it answered 503 Service Unavailable", false, true},
	} {
		t.Run(fmt.Sprint(test.code), func(t *testing.T) {
			site := newSite(t)
			site.set(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://elsewhere.example/")
				w.WriteHeader(test.code)
				if test.code != 204 {
					fmt.Fprint(w, test.body)
				}
			})
			b := newBench(t, webhookTo(site.URL))
			err := b.Test(t.Context(), "hook")
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
				t.Errorf("error is %v, want one short line with %q", err, test.want)
			}
			if f := (*failure)(nil); !errors.As(err, &f) || f.permanent != test.permanent || f.everyone != test.everyone {
				t.Errorf("error is %+v, want permanent=%t, everyone=%t", f, test.permanent, test.everyone)
			}
		})
	}
}

func TestRetryAfterHeader(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "soon": 0, "-5": 0, "7": 7 * time.Second, "99999999": retryAfterMax,
		"Wed, 21 Oct 2015 07:28:00 GMT": 0,
		time.Now().Add(100*time.Second + 500*time.Millisecond).UTC().Format(http.TimeFormat): 100 * time.Second,
	} {
		if got := retryAfter(text); (got - want).Abs() > 2*time.Second {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

// A redirection is followed on the same host if it is still a POST there.
func TestWebhookRedirects(t *testing.T) {
	other := newSite(t)
	for _, test := range []struct {
		name string
		code int
		to   string
		path string // where it arrives
	}{
		{"same host", http.StatusTemporaryRedirect, "/new", "/new"},
		{"same host, as a GET", http.StatusFound, "/new", ""},
		{"another host", http.StatusPermanentRedirect, other.URL + "/new", ""},
		{"loop", http.StatusPermanentRedirect, "/old", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			site := newSite(t)
			var arrived atomic.Value
			site.set(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/old" {
					http.Redirect(w, r, test.to, test.code)
					return
				}
				arrived.Store(r.Method + " " + r.URL.Path)
			})
			b := newBench(t, webhookTo(site.URL+"/old"))
			err := b.Test(t.Context(), "hook")
			if got := arrived.Load(); test.path != "" && (err != nil || got != "POST "+test.path) {
				t.Errorf("arrived: %v, error: %v", got, err)
			}
			if test.path == "" && (err == nil || arrived.Load() != nil) {
				t.Errorf("arrived: %v, error: %v", arrived.Load(), err)
			}
		})
	}
	if all, _ := other.got(); len(all) > 0 {
		t.Errorf("another host got %d alerts", len(all))
	}
}

// A server that is down, fails, hangs or is slow gets everything in the end, once and
// in order. An address may be secret, but for the host.
func TestWebhookOutages(t *testing.T) {
	hangs := make(chan struct{})
	t.Cleanup(func() { close(hangs) })
	for name, answer := range map[string]http.HandlerFunc{
		"500":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"hang": func(_ http.ResponseWriter, r *http.Request) { wait(r.Context(), hangs) },
		"slow": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			for range 100 {
				fmt.Fprint(w, "x")
				_ = http.NewResponseController(w).Flush()
				if wait(r.Context(), time.After(50*time.Millisecond)) != nil {
					return
				}
			}
		},
		"closes": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"429": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			site := newSite(t)
			site.set(answer)
			config := webhookTo(site.URL + "/s3cret")
			config.Timeout = 2 * time.Second // which "slow" takes longer than
			b := newBench(t, config)
			stop := b.run()
			var want []string
			for _, id := range []string{"50", "80", "100"} {
				b.Send(firing(id, "hook"))
				want = append(want, id+" firing")
			}
			eventually(t, "two attempts failed", func() bool { return b.metric("failures_total", "hook") >= 2 })
			site.set(nil)
			eventually(t, "all alerts arrive", func() bool { return len(site.said(t)) >= 3 })
			stop()
			if diff := cmp.Diff(want, site.said(t)); diff != "" {
				t.Errorf("arrived (-want +got):\n%s", diff)
			}
			if strings.Contains(b.log.String(), "s3cret") {
				t.Errorf("the log has the whole address:\n%s", b.log.String())
			}
		})
	}
}

// wait waits for a channel, or the end of a request, whose error it returns.
func wait[T any](ctx context.Context, c <-chan T) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c:
		return nil
	}
}

func TestWebhookDown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	b := newBench(t, webhookTo("http://"+address+"/s3cret"))
	stop := b.run()
	b.Send(firing("80", "hook"))
	eventually(t, "an attempt fails", func() bool { return strings.Contains(b.log.String(), "connection refused") })
	stop()
	if strings.Contains(b.log.String(), "s3cret") {
		t.Errorf("the log has the whole address:\n%s", b.log.String())
	}

	site := &site{}
	server := &http.Server{Handler: site}
	if listener, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }() // it ends with Close
	t.Cleanup(func() { server.Close() })
	b.restart()
	stop = b.run()
	eventually(t, "it arrives", func() bool { return len(site.said(t)) == 1 })
	stop()
}

func TestTestAlert(t *testing.T) {
	site := newSite(t)
	b := newBench(t, webhookTo(site.URL), Config{Name: "m", Alertmanager: &Alertmanager{URL: site.URL}}, Config{Name: "log", Log: &Log{}})
	for _, name := range []string{"hook", "m", "log"} {
		if err := b.Test(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	requests, _ := site.got()
	if len(requests) != 2 || !strings.Contains(string(requests[0].body), `"test":true`) || !strings.Contains(string(requests[1].body), `"test":"true"`) {
		t.Errorf("requests: %s", requests)
	}
	if !strings.Contains(b.log.String(), "This is a test of the notifier log") {
		t.Errorf("log:\n%s", b.log.String())
	}
	err := b.Test(t.Context(), "nobody")
	if want := `send test alert: there is no notifier "nobody", only hook, m, log`; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	site.Close()
	err = b.Test(t.Context(), "hook")
	if err == nil || !strings.HasPrefix(err.Error(), "send test alert to hook: post to 127.0.0.1:") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %v, want one line that names the server", err)
	}
}
