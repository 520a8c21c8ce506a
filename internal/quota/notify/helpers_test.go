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

	"github.com/prometheus/client_golang/prometheus"

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

// box is a source in memory: of deliveries for those that are told by delivery, and of what
// fires for Alertmanagers.
type box struct {
	mu       sync.Mutex
	number   uint64
	queues   map[string][]quota.Delivery
	dropped  map[string]uint64
	standing []quota.Alert
	changed  chan struct{}
}

func newBox() *box {
	return &box{queues: map[string][]quota.Delivery{}, dropped: map[string]uint64{}, changed: make(chan struct{})}
}

func (x *box) Next(notifier string, after uint64) (quota.Delivery, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, d := range x.queues[notifier] {
		if d.Number > after {
			return d, true
		}
	}
	return quota.Delivery{}, false
}

func (x *box) Done(d quota.Delivery, dropped bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.queues[d.Notifier] = slices.DeleteFunc(x.queues[d.Notifier], func(o quota.Delivery) bool { return o.Number == d.Number })
	if dropped {
		x.dropped[d.Notifier]++
	}
}

func (x *box) Waiting(notifier string) (waiting int, dropped uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.queues[notifier]), x.dropped[notifier]
}

func (x *box) Firing(notifier string) []quota.Alert {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(x.standing), func(a quota.Alert) bool { return !slices.Contains(a.Notifiers, notifier) })
}

func (x *box) Changed() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.changed
}

// send takes an alert for notifiers, of whom some are told by delivery.
func (x *box) send(a quota.Alert, byDelivery map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range a.Notifiers {
		if byDelivery[name] {
			x.number++
			x.queues[name] = append(x.queues[name], quota.Delivery{Notifier: name, Alert: a, Number: x.number})
		}
	}
	x.standing = append(slices.DeleteFunc(x.standing, func(o quota.Alert) bool { return o.ID == a.ID }), a)
	close(x.changed)
	x.changed = make(chan struct{})
}

// forget forgets alerts, as a source does some time after their end.
func (x *box) forget(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.standing = slices.DeleteFunc(x.standing, func(o quota.Alert) bool { return o.ID == id })
	close(x.changed)
	x.changed = make(chan struct{})
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

// bench is a dispatcher with notifiers and a source.
type bench struct {
	*Dispatcher
	t         *testing.T
	box       *box
	log       lines
	mu        sync.Mutex
	configs   []Config
	receivers map[string]*receiver
}

func newBench(t *testing.T, configs ...Config) *bench {
	b := &bench{t: t, box: newBox(), configs: configs}
	b.restart()
	return b
}

// restart makes another dispatcher with the same source.
func (b *bench) restart() {
	b.receivers = map[string]*receiver{}
	b.Dispatcher = New(Options{
		Notifiers: func() []Config {
			b.mu.Lock()
			defer b.mu.Unlock()
			return slices.Clone(b.configs)
		},
		Source:       b.box,
		Log:          slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		GeneratorURL: "http://nettally.example:9819/",
		Instance:     "host-1",
		Version:      "1.2.3",
	})
	b.aim = func(c Config) target {
		b.mu.Lock()
		defer b.mu.Unlock()
		if r := b.receivers[c.Name]; r != nil {
			return r
		}
		return newTarget(c, b.options)
	}
}

// Send gives the source an alert.
func (b *bench) Send(a quota.Alert) {
	byDelivery := map[string]bool{}
	b.mu.Lock()
	for _, c := range b.configs {
		byDelivery[c.Name] = c.Alertmanager == nil
	}
	b.mu.Unlock()
	b.box.send(a, byDelivery)
}

// metric returns a number of a notifier, by the end of its name.
func (b *bench) metric(name, notifier string) float64 {
	b.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Metrics()...)
	families, err := registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "nettally_notify_"+name && m.GetLabel()[0].GetValue() == notifier {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// deliverTo is one attempt, with what is configured for a notifier.
func (b *bench) deliverTo(name string, alerts ...quota.Alert) error {
	b.t.Helper()
	at := slices.IndexFunc(b.configs, func(c Config) bool { return c.Name == name })
	target := newTarget(b.configs[at], b.options)
	defer target.close()
	return target.deliver(b.t.Context(), alerts)
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

// catch makes what goes to a notifier go to a receiver, from the next worker on.
func (b *bench) catch(name string) *receiver {
	r := &receiver{}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.receivers[name] = r
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

// eventually waits for something, much longer than the longest pause between attempts.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	const patience = 5 * pauseLast
	deadline := time.Now().Add(patience)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
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

func managed(name string) Config {
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
