// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
)

// id returns the n-th container id.
func id(n int) string { return fmt.Sprintf("%064x", n) }

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("does not happen: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// socketPath returns a path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "names")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "docker.sock")
}

// records keeps the log lines that an operator would see.
type records struct {
	mu    sync.Mutex
	lines []string
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(p))
	return len(p), nil
}

func (r *records) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// newResolver returns a resolver in a hurry, and what it logs.
func newResolver(docker string, labels ...string) (*Resolver, *records) {
	return newResolverOf(Options{Docker: docker, Podman: "off", CRI: "off"}, labels...)
}

// newResolverOf is newResolver with other sources.
func newResolverOf(o Options, labels ...string) (*Resolver, *records) {
	logged := &records{}
	o.Labels = func() []string { return labels }
	o.Log = slog.New(slog.NewTextHandler(logged, nil))
	r := New(o)
	r.refreshEvery, r.retryFirst = 20*time.Millisecond, time.Millisecond
	return r, logged
}

// run runs a resolver until the test or the returned function ends it.
func run(t *testing.T, r *Resolver) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// rests says whether nothing is asked any more.
func rests(r *Resolver) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sources {
		if s.pending != nil {
			return false
		}
	}
	return true
}

func name(r *Resolver, id string) string {
	meta, _ := r.Lookup(id)
	return meta.Name
}

// daemon answers on a socket as Docker does.
type daemon struct {
	path   string
	server *http.Server
	events chan events.Message
	// onEvents answers a subscription in place of the stream.
	onEvents http.HandlerFunc

	mu         sync.Mutex
	containers map[string]container.Summary
	sessions   int      // requests for the version
	lists      []string // filters of the requests for containers
	open, most int      // requests for containers at once
}

func summary(n int, name string) container.Summary {
	s := container.Summary{ID: id(n), Names: []string{"/" + name}, Image: "bb"}
	s.HostConfig.NetworkMode = "default"
	return s
}

func startDaemon(t *testing.T, path string, containers ...container.Summary) *daemon {
	t.Helper()
	d := &daemon{path: path, events: make(chan events.Message), containers: make(map[string]container.Summary)}
	for _, c := range containers {
		d.containers[c.ID] = c
	}
	listener := listen(t, path)
	d.server = &http.Server{Handler: d}
	go func() { _ = d.server.Serve(listener) }()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) stop() { _ = d.server.Close() }

func (d *daemon) put(c container.Summary) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.containers[c.ID] = c
}

func (d *daemon) remove(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.containers, id)
}

// asked counts the requests for a container, and all sessions so far.
func (d *daemon) asked(id string) (lists, sessions int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, filter := range d.lists {
		if strings.Contains(filter, id) {
			lists++
		}
	}
	return lists, d.sessions
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	switch path := strings.TrimPrefix(r.URL.Path, "/v1.41"); path {
	case "/_ping":
	case "/version":
		d.mu.Lock()
		d.sessions++
		d.mu.Unlock()
		_, _ = io.WriteString(w, `{"Version":"20.10.24","ApiVersion":"1.41"}`)
	case "/containers/json":
		d.serveList(w, r)
	case "/events":
		d.serveEvents(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (d *daemon) serveList(w http.ResponseWriter, r *http.Request) {
	filter := r.URL.Query().Get("filters")
	d.mu.Lock()
	d.lists = append(d.lists, filter)
	d.open++
	d.most = max(d.most, d.open)
	found := []container.Summary{}
	for id, c := range d.containers {
		if strings.Contains(filter, id) && r.URL.Query().Get("all") == "1" {
			found = append(found, c)
		}
	}
	d.mu.Unlock()
	_ = json.NewEncoder(w).Encode(found)
	d.mu.Lock()
	d.open--
	d.mu.Unlock()
}

func (d *daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	if d.onEvents != nil {
		d.onEvents(w, r)
		return
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case message := <-d.events:
			_ = json.NewEncoder(w).Encode(message)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// listen makes a socket that takes connections from the moment on that it has its name: one
// that net.Listen is making refuses them for a moment.
func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	made := path + ".new"
	listener, err := net.Listen("unix", made)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(made, path); err != nil {
		t.Fatal(err)
	}
	return &renamed{Listener: listener, path: path}
}

type renamed struct {
	net.Listener
	path string
	once sync.Once
}

func (l *renamed) Close() error {
	l.once.Do(func() { _ = os.Remove(l.path) })
	return l.Listener.Close()
}

// startPeer accepts on a socket and leaves each connection to serve. It returns
// the number of connections so far.
func startPeer(t *testing.T, path string, serve func(net.Conn)) (accepted func() int) {
	t.Helper()
	listener := listen(t, path)
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			go serve(conn)
		}
	}()
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(conns)
	}
}

// endless writes a text over and over until the other side has enough.
func endless(w io.Writer, text string) {
	text = strings.Repeat(text, 4096/len(text)+1)
	for {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
	}
}
