// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// start is when alerts start.
var start = time.Date(2026, time.March, 10, 12, 30, 0, 0, time.UTC)

// alert returns one with an id, for notifiers.
func alert(id, state string, notifiers ...string) quota.Alert {
	a := quota.Alert{
		ID: id, Quota: "monthly", Key: "web-1", Level: id, State: state, StartsAt: start,
		Used: 80, Limit: 100, Unit: "bytes", Ratio: 0.8, Summary: "web-1 has used " + id, Notifiers: notifiers,
	}
	if state == quota.Resolved {
		a.EndsAt = start.Add(time.Hour)
	}
	return a
}

func firing(id string, notifiers ...string) quota.Alert { return alert(id, quota.Firing, notifiers...) }

func resolved(id string, notifiers ...string) quota.Alert {
	return alert(id, quota.Resolved, notifiers...)
}

// said returns alerts as "id state", in their order.
func said(alerts []quota.Alert) []string {
	var all []string
	for _, a := range alerts {
		all = append(all, a.ID+" "+a.State)
	}
	return all
}

// memory is a store in memory, which may fail or hang.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	err    error
	hang   chan struct{} // until it is closed, if it is not nil
}

func newMemory() *memory { return &memory{values: map[string][]byte{}} }

func (m *memory) wait() error {
	m.mu.Lock()
	hang, err := m.hang, m.err
	m.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func (m *memory) set(err error, hang chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err, m.hang = err, hang
}

func (m *memory) Load() (map[string][]byte, error) {
	if err := m.wait(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.values), nil
}

func (m *memory) Save(put map[string][]byte, drop []string) error {
	if err := m.wait(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(m.values, put)
	for _, key := range drop {
		delete(m.values, key)
	}
	return nil
}

// threads returns what is kept.
func (m *memory) threads(t *testing.T) map[string]saved {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]saved{}
	for key, value := range m.values {
		var s saved
		if err := json.Unmarshal(value, &s); err != nil {
			t.Fatal(err)
		}
		all[key] = s
	}
	return all
}

// file is a store that is written as a whole and renamed, so that it outlives a kill.
type file struct{ path string }

func (f file) Load() (map[string][]byte, error) {
	values := map[string][]byte{}
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return values, nil
	}
	if err != nil {
		return nil, err
	}
	return values, json.Unmarshal(text, &values)
}

func (f file) Save(put map[string][]byte, drop []string) error {
	values, err := f.Load()
	if err != nil {
		return err
	}
	maps.Copy(values, put)
	for _, key := range drop {
		delete(values, key)
	}
	return f.write(values)
}

func (f file) write(values any) error {
	text, err := json.Marshal(values)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(f.path+".new", f.path)
}

// lines is a log that tests can read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// bench is a dispatcher with notifiers and a store.
type bench struct {
	*Dispatcher
	t       *testing.T
	store   Store
	log     lines
	mu      sync.Mutex
	configs []Config
}

func newBench(t *testing.T, store Store, configs ...Config) *bench {
	b := &bench{t: t, store: store, configs: configs}
	b.restart()
	return b
}

// restart makes another dispatcher, which knows what is in the store.
func (b *bench) restart() {
	b.Dispatcher = New(Options{
		Notifiers: func() []Config {
			b.mu.Lock()
			defer b.mu.Unlock()
			return slices.Clone(b.configs)
		},
		Store:        b.store,
		Log:          slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		GeneratorURL: "http://nettally.example:9819/",
		Instance:     "host-1",
		Version:      "1.2.3",
	})
}

func (b *bench) configure(configs ...Config) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.configs = configs
}

// run runs the dispatcher until the function that it returns is called.
func (b *bench) run() (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	return func() {
		b.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}
}

// receiver is a target, or a server, that notes what it takes.
type receiver struct {
	mu     sync.Mutex
	alerts []quota.Alert
	at     []time.Time // of every attempt
	fail   func(quota.Alert) error
	hang   bool
}

func (r *receiver) deliver(ctx context.Context, alerts []quota.Alert) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = append(r.at, time.Now())
	if r.hang {
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return ctx.Err()
	}
	for _, a := range alerts {
		if r.fail != nil {
			if err := r.fail(a); err != nil {
				return err
			}
		}
	}
	r.alerts = append(r.alerts, alerts...)
	return nil
}

func (r *receiver) close() {}

func (r *receiver) set(fail func(quota.Alert) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = fail
}

func (r *receiver) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return said(r.alerts)
}

func (r *receiver) attempts() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.at)
}

// catch has what goes to a notifier go to a receiver.
func (b *bench) catch(name string) *receiver {
	r := &receiver{}
	b.Dispatcher.mu.Lock()
	defer b.Dispatcher.mu.Unlock()
	b.queues[name].target = r
	return r
}

// request is what a server got.
type request struct {
	path   string
	header http.Header
	body   []byte
}

// site is a server that answers as it is told and notes what it took.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	answer   http.HandlerFunc // nil is 200
	requests []request        // all of them
	taken    []request        // answered with 200
}

func newSite(t *testing.T) *site {
	s := &site{}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP implements [http.Handler].
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	got := request{r.URL.Path, r.Header, body}
	s.mu.Lock()
	s.requests = append(s.requests, got)
	answer := s.answer
	if answer == nil {
		s.taken = append(s.taken, got)
	}
	s.mu.Unlock()
	if answer != nil {
		answer(w, r)
	}
}

func (s *site) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *site) got() (all, taken []request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests), slices.Clone(s.taken)
}

// payloads returns the alerts of a webhook that were taken.
func (s *site) payloads(t *testing.T) (all []payload) {
	t.Helper()
	_, taken := s.got()
	for _, r := range taken {
		var p payload
		if err := json.Unmarshal(r.body, &p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func (s *site) said(t *testing.T) (all []string) {
	t.Helper()
	for _, p := range s.payloads(t) {
		all = append(all, p.Alert.ID+" "+p.Alert.State)
	}
	return all
}

// eventually waits for something, longer than the longest pause between attempts.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(pauseLast + 30*time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", pauseLast+30*time.Second, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func write(t *testing.T, name, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func hook(name string) Config {
	return Config{Name: name, Webhook: &Webhook{URL: "http://127.0.0.1:1/"}}
}

func manager(name string) Config {
	return Config{Name: name, Alertmanager: &Alertmanager{URL: "http://127.0.0.1:1"}}
}

var errAway = &failure{cause: fmt.Errorf("connection refused"), everyone: true}

// refuseBad is a target that refuses the alert "bad" for good.
func refuseBad(a quota.Alert) error {
	if a.ID == "bad" {
		return &failure{cause: errors.New("it answered 400"), permanent: true}
	}
	return nil
}
