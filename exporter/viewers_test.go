// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// http2Client is a client that speaks HTTP/2, whoever has signed the certificate.
func http2Client(t *testing.T) *http.Client {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// A viewer may be told nothing for longer than it may take to read something, by HTTP/2, too.
func TestSilenceIsNotSlow(t *testing.T) {
	s, opts := newScene(t, snapshot())
	_, l, _ := serveTimes(t, opts, tlsConfig(t), func(t *times) { t.viewer = 2 * time.Second })
	response, err := http2Client(t).Get("https://" + l.Addr().String() + "/api/v1/stream?interval=60s")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.ProtoMajor != 2 {
		t.Fatal(response.Proto)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	until := func(event string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == "event: "+event {
				return
			}
		}
		t.Fatalf("the stream has ended before %s: %v", event, lines.Err())
	}
	until(EventAlert) // the last of the first batch
	time.Sleep(3 * time.Second)
	s.mu.Lock()
	s.boot += time.Minute
	s.mu.Unlock()
	s.tick <- time.Time{}
	until(EventSample)
}

// Whoever leaves gives up its seat and is told nothing more, by whatever protocol and however
// early it goes.
func TestViewersLeave(t *testing.T) {
	s, opts := newScene(t, snapshot())
	e, l, _ := serveTimes(t, opts, tlsConfig(t), unchanged)
	url := "https://" + l.Addr().String() + "/api/v1/stream"
	for name, client := range map[string]*http.Client{
		"HTTP/2": http2Client(t),
		"HTTP/1.1": {Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}},
	} {
		for i, method := range []string{"GET", "HEAD", "GET", "GET"} {
			ctx, cancel := context.WithCancel(t.Context())
			request, err := http.NewRequestWithContext(ctx, method, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if i == 3 {
				time.AfterFunc(time.Millisecond, cancel) // maybe before it has joined
			}
			response, err := client.Do(request)
			switch {
			case err == nil:
				if i == 2 {
					_, _ = io.CopyN(io.Discard, response.Body, 10)
				}
				response.Body.Close()
			case i != 3:
				t.Errorf("%s: %v", name, err)
			}
			cancel()
		}
		client.CloseIdleConnections()
	}
	for e.seats.held() > 0 || s.hub.Viewers() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// A viewer that loses its seat is cut off at once, by whatever protocol, also while it reads all
// that comes.
func TestSeatIsLost(t *testing.T) {
	_, opts := newScene(t, snapshot())
	e, l, _ := serveTimes(t, opts, tlsConfig(t), unchanged)
	for name, client := range map[string]*http.Client{
		"HTTP/2": http2Client(t),
		"HTTP/1.1": {Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}},
	} {
		response, err := client.Get("https://" + l.Addr().String() + "/api/v1/stream")
		if err != nil {
			t.Fatal(err)
		}
		e.seats.mu.Lock()
		e.seats.taken[0].cut()
		e.seats.mu.Unlock()
		if _, err := io.Copy(io.Discard, response.Body); err == nil && response.ProtoMajor == 2 {
			t.Errorf("%s: the stream has ended well", name)
		}
		response.Body.Close()
		for e.seats.held() > 0 {
			time.Sleep(time.Millisecond)
		}
		client.CloseIdleConnections()
	}
}

// A password goes to the address that it is for, and to none that answer sends on to.
func TestPasswordIsNotSentOn(t *testing.T) {
	asked := make(chan string, 10)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Authorization")
	}))
	defer other.Close()
	server := httptest.NewServer(http.RedirectHandler(other.URL+"/api/v1/quotas", http.StatusTemporaryRedirect))
	defer server.Close()
	c, err := NewClient(ClientOptions{URL: server.URL, User: "ann", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var list QuotaList
	err = c.Get(t.Context(), "/api/v1/quotas", &list)
	if err == nil || !strings.Contains(err.Error(), "307 Temporary Redirect: ") || !strings.Contains(err.Error(), other.URL) {
		t.Errorf("sent on: %v", err)
	}
	for _, err := range c.Follow(t.Context(), time.Second) {
		if err == nil || !strings.Contains(err.Error(), other.URL) {
			t.Errorf("followed and sent on: %v", err)
		}
	}
	close(asked)
	for password := range asked {
		t.Errorf("another address was asked, with %q", password)
	}
}

// An error about an address has no password of it.
func TestErrorsKeepPasswords(t *testing.T) {
	for url, want := range map[string]string{
		"ftp://ann:secret@host": "ftp://host", "https://ann:sec@ret@ho st:1": "https://ho st:1",
		"ann:secret@host": "host", "https://ann:secret@:x": "https://:x", "//ann:secret@host": "//host",
	} {
		_, err := NewClient(ClientOptions{URL: url})
		if err == nil || strings.Contains(err.Error(), "sec") || !strings.HasPrefix(err.Error(), fmt.Sprintf("parse URL %q: ", want)) {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, o := range []ClientOptions{
		{URL: "http://ann:secret@127.0.0.1:1"},
		{URL: "http://ann@127.0.0.1:1", Password: "secret"},
		{URL: "http://ann:other@127.0.0.1:1", User: "ann", Password: "secret"},
	} {
		c, err := NewClient(o)
		if err != nil {
			t.Fatal(err)
		}
		if c.user != "ann" || c.password != "secret" {
			t.Errorf("%+v: asks as %s:%s", o, c.user, c.password)
		}
		if err := c.Get(t.Context(), "/version", new(BuildInfo)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A stream that has fallen silent, as when a host is gone, ends with an error that says so.
func TestFollowSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := NewClient(ClientOptions{URL: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.silentFor = 50 * time.Millisecond
	for _, err := range c.Follow(t.Context(), time.Second) {
		if !errors.Is(err, errSilent) {
			t.Errorf("told %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range c.Follow(ctx, time.Second) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// What was used in the last 15 minutes has the time of its last reading.
func TestRecentSaysWhen(t *testing.T) {
	s, opts := newScene(t, snapshot())
	handler := newExporter(t, opts).Handler()
	for range 30 {
		s.change(func(snap *usage.Snapshot) { snap.TakenAt = snap.TakenAt.Add(time.Second) })
	}
	_, _, body := request(t, handler, "GET", "/api/v1/recent")
	if !strings.Contains(body, `"boot_ms":`) || !strings.Contains(body, `"taken_at":"20`) {
		t.Error(body)
	}
}
