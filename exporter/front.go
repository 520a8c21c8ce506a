// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// front is what stands between one listener's clients and the handler.
type front struct {
	*limitListener
	name   string // frontTCP or frontUnix
	places *places
}

const (
	frontTCP  = "tcp"
	frontUnix = "unix"
)

// newFront makes the front of a listener that holds so many connections.
func (e *Exporter) newFront(name string, l net.Listener, most int, identify func(net.Conn) peer) *front {
	f := &front{name: name}
	f.limitListener = &limitListener{
		Listener: l, max: most, identify: identify, now: time.Now,
		evicted: func(was phase) { e.fronts.evicted.WithLabelValues(name, was.String()).Inc() },
	}
	if name == frontUnix {
		f.favoured = uidPeer(0)
	}
	f.places = &places{
		most: placesMost, perPeer: placesPerPeer, wait: e.times.placeWait, slow: e.times.slowAnswer, now: time.Now,
	}
	e.fronts.add(f)
	return f
}

// frontKey and connKey mark the context of a request with its front, and with its
// connection.
type (
	frontKey struct{}
	connKey  struct{}
)

// frontOf returns the front that a request came through, or nil.
func frontOf(r *http.Request) *front {
	f, _ := r.Context().Value(frontKey{}).(*front)
	return f
}

// overSocket reports whether a request came over the unix socket.
func overSocket(r *http.Request) bool {
	f := frontOf(r)
	return f != nil && f.name == frontUnix
}

// times are how long clients may take. Tests have shorter ones.
type times struct {
	header, body, answer, idle time.Duration
	placeWait, slowAnswer      time.Duration
	viewer                     time.Duration
}

// maxHeader is far more than Prometheus or a browser sends. net/http adds 4 KiB.
const maxHeader = 16 << 10

// maxStreams is how many requests a connection of HTTP/2 carries at a time. More would be
// more requests that wait for a place.
const maxStreams = 4

// server returns the server of a front.
func (e *Exporter) server(f *front) *http.Server {
	return &http.Server{
		Handler:           bodiless(e.onlyKnownHosts(e.handler)),
		ReadHeaderTimeout: e.times.header, // of the TLS handshake, too
		ReadTimeout:       e.times.body,
		WriteTimeout:      e.times.answer,
		IdleTimeout:       e.times.idle,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: e.times.slowAnswer},
		ErrorLog:          log.New(&calm{to: errorLog(e.log), now: rate.Sometimes{First: 10, Interval: time.Second}}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(context.Background(), frontKey{}, f) },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, limited(c))
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateActive:
				limited(c).enter(serving)
			case http.StateIdle:
				limited(c).enter(idle)
			}
		},
		// OPTIONS * is answered by the handler, as all that is not read.
		DisableGeneralOptionsHandler: true,
	}
}

// calm writes a line a second once it has written some: clients can make any number of them,
// by handshakes that fail.
type calm struct {
	to  *log.Logger
	now rate.Sometimes
}

func (c *calm) Write(line []byte) (int, error) {
	c.now.Do(func() { c.to.Print(string(line)) })
	return len(line), nil
}

// bodiless keeps a client from holding its connection by a body that it has announced and
// that nobody reads: net/http would wait for it before and after the answer. Only changes
// have a body. All other requests are free of the time-out of reading once they are there,
// which would end those that wait for their numbers.
func bodiless(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var limit time.Time // none
		switch {
		case r.Method == http.MethodPost && overSocket(r): // see readBody
			next.ServeHTTP(w, r)
			return
		case r.ContentLength != 0:
			w.Header().Set("Connection", "close")
			limit = time.Now()
		}
		_ = http.NewResponseController(w).SetReadDeadline(limit) // only fails where nothing is read
		next.ServeHTTP(w, r)
	})
}

// changeMax is far more than a change of a quota takes, in bytes.
const changeMax = 64 << 10

// readBody reads the body of a change within the time-out of reading, which then ends, as
// what the change waits for may take longer.
func readBody(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, changeMax))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // only fails where nothing is read
	return nil
}

// onlyKnownHosts refuses requests that came to a loopback address for a host that is not
// known to be this one. A page in a browser on this host could read what is answered if
// its name's address became 127.0.0.1 after it was loaded (DNS rebinding); its requests
// have that name in Host. IP addresses and localhost are nobody's to rebind. A browser
// never leaves Host out, so the probes of HTTP/1.0 that do are answered.
//
// 421 is the status for a host that is not served (RFC 9110, 7.4). A 403 would send people
// looking for a password.
func (e *Exporter) onlyKnownHosts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		here, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		if ok && here.IP.IsLoopback() && !e.knowsHost(r.Host) {
			e.fronts.refuse(r, refusedHost)
			e.fail(w, http.StatusMisdirectedRequest,
				fmt.Errorf("serve host %.100q: not known; if it is this host, add it to exporter.hosts", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (e *Exporter) knowsHost(header string) bool {
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(bare); err == nil || host == "" {
		return true
	}
	host = strings.TrimSuffix(host, ".")
	return strings.EqualFold(host, "localhost") ||
		slices.ContainsFunc(e.hosts, func(known string) bool { return strings.EqualFold(host, strings.TrimSuffix(known, ".")) })
}

// inPlace answers a request in one of its front's places, or 503 where none can be had.
func (e *Exporter) inPlace(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := frontOf(r)
		if f == nil {
			next(w, r)
			return
		}
		control := http.NewResponseController(w)
		here := &place{peer: peerOf(r), cut: func() {
			e.fronts.refuse(r, refusedSlow)
			_ = control.SetWriteDeadline(time.Now()) // only fails where the client has gone
		}}
		if err := f.places.take(r.Context(), here); err != nil {
			if errors.Is(err, errBusy) {
				e.fronts.refuse(r, refusedBusy)
			}
			w.Header().Set("Retry-After", "5")
			e.fail(w, http.StatusServiceUnavailable, err)
			return
		}
		defer f.places.leave(here)
		next(&answerWriter{ResponseWriter: w, begin: func() { f.places.answers(here) }}, r)
	})
}

func peerOf(r *http.Request) func() peer {
	if c, _ := r.Context().Value(connKey{}).(*limitConn); c != nil {
		return c.peer
	}
	return func() peer { return stranger }
}
