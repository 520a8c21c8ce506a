// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/live"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

// scene is a host whose containers a test changes, and a hub that reads it when the test says so.
type scene struct {
	hub  *live.Hub
	tick chan time.Time

	mu   sync.Mutex
	snap usage.Snapshot
	boot time.Duration
}

// foremost are quotas that say which of them is used most.
type foremost struct{ *quotas }

func (foremost) Foremost() map[string]quota.Foremost {
	return map[string]quota.Foremost{"aaa111": {Quota: "q", Key: "web", Ratio: 0.25}}
}

// newScene returns the options of an exporter that shows a snapshot live, and ends the hub with
// the test.
func newScene(t testing.TB, snap usage.Snapshot) (*scene, Options) {
	t.Helper()
	s := &scene{tick: make(chan time.Time), snap: snap, boot: 1000 * time.Second}
	opts := withQuotas(options(snap))
	ready := make(chan struct{})
	close(ready)
	s.hub = live.New(live.Options{
		Read: func(context.Context, bool, bool) usage.Snapshot {
			s.mu.Lock()
			defer s.mu.Unlock()
			read := s.snap
			read.Containers = append([]usage.Container(nil), s.snap.Containers...)
			return read
		},
		Ready:  ready,
		Quotas: foremost{opts.Quotas.(*quotas)},
		Boot: func() time.Duration {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.boot
		},
		Tick: s.tick,
	})
	opts.Live = s.hub
	opts.Snapshot = func(context.Context) (usage.Snapshot, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		read := s.snap
		read.Containers = append([]usage.Container(nil), s.snap.Containers...)
		return read, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.hub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	for {
		if v, err := s.hub.Join(time.Second, func() {}); err == nil {
			v.Leave()
			return s, opts
		}
		time.Sleep(time.Millisecond)
	}
}

// change changes the host and lets a second pass.
func (s *scene) change(f func(*usage.Snapshot)) {
	s.mu.Lock()
	f(&s.snap)
	s.boot += time.Second
	s.mu.Unlock()
	s.tick <- time.Time{}
}

// used adds what a container has received.
func used(snap *usage.Snapshot, id string, bytes uint64) {
	for i := range snap.Containers {
		if c := &snap.Containers[i]; c.ID == id {
			c.Receive.Cells[0][0].Bytes += bytes
		}
	}
}

// opened lets a container open a connection, and fail to open two.
func opened(snap *usage.Snapshot, id string) {
	for i := range snap.Containers {
		if c := &snap.Containers[i]; c.ID == id {
			now := usage.TCP{}
			if c.TCP != nil {
				now = *c.TCP
			}
			now.Connects, now.ConnectFailures, now.Resets = now.Connects+1, now.ConnectFailures+2, now.Resets+3
			c.TCP = &now
		}
	}
}

// Each event is as it is documented, and the client reads it back.
func TestStreamIsAsDocumented(t *testing.T) {
	doc := readDocument(t)
	s, opts := newScene(t, snapshot())
	l, _, _ := serve(t, opts, "")
	response, err := http.Get(fmt.Sprintf("http://%s/api/v1/stream", l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no",
	} {
		if got := response.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	seen := map[string]string{}
	next := func() (name string) {
		t.Helper()
		for lines.Scan() {
			line := lines.Text()
			if kind, ok := strings.CutPrefix(line, "event: "); ok {
				name = kind
			} else if data, ok := strings.CutPrefix(line, "data: "); ok {
				seen[name] = data
			} else if line == "" && name != "" {
				return name
			}
		}
		t.Fatalf("the stream has ended: %v", lines.Err())
		return ""
	}
	until := func(name string) {
		t.Helper()
		for next() != name {
		}
	}
	until(EventAlert)
	s.change(func(snap *usage.Snapshot) {
		used(snap, "aaa111", 500)
		snap.Containers = append(snap.Containers, usage.Container{ID: "new", State: usage.Running})
	})
	until(EventSample)
	s.change(func(snap *usage.Snapshot) {
		snap.Containers[len(snap.Containers)-1].State = usage.Stopped
	})
	until(EventSample)
	s.change(func(snap *usage.Snapshot) { snap.Containers = snap.Containers[1:] }) // one that had ended
	for range 60 {                                                                 // until all are read again
		s.change(func(*usage.Snapshot) {})
		until(EventSample)
	}
	for name, schemaName := range map[string]string{
		EventContainers: "StreamContainers", EventSample: "StreamSample", EventStarted: "StreamStarted",
		EventStopped: "StreamStopped", EventRemoved: "StreamRemoved", EventQuota: "StreamQuota", EventAlert: "Alert",
	} {
		data, there := seen[name]
		if !there {
			t.Errorf("no event %s", name)
			continue
		}
		if err := doc.check(name, doc.Components.Schemas[schemaName], decode(t, data), true); err != nil {
			t.Error(err)
		}
		event := newEvent(name)
		strict := json.NewDecoder(strings.NewReader(data))
		strict.DisallowUnknownFields()
		if err := strict.Decode(event); err != nil {
			t.Errorf("read %s: %v", name, err)
		}
	}
}

// follow returns what is followed until it ends, event by event.
func follow(ctx context.Context, t *testing.T, o ClientOptions) func() (StreamEvent, error) {
	t.Helper()
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		event StreamEvent
		err   error
	}
	results := make(chan result)
	ctx, cancel := context.WithCancel(ctx)
	var followers sync.WaitGroup
	followers.Go(func() {
		defer close(results)
		for event, err := range c.Follow(ctx, time.Second) {
			select {
			case results <- result{event, err}:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		followers.Wait()
		c.Close()
	})
	return func() (StreamEvent, error) {
		r := <-results
		return r.event, r.err
	}
}

// expect follows up to an event of a type.
func expect[E any](t *testing.T, next func() (StreamEvent, error)) E {
	t.Helper()
	for {
		event, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := event.(E); ok {
			return e
		}
	}
}

// The numbers of the stream are those of /api/v1/containers, exactly, on both listeners.
func TestStreamEqualsContainers(t *testing.T) {
	s, opts := newScene(t, snapshot())
	l, socket, _ := serve(t, opts, "")
	for _, o := range []ClientOptions{{Socket: socket}, {URL: "http://" + l.Addr().String() + "/"}} {
		next := follow(t.Context(), t, o)
		first := expect[*StreamContainers](t, next)
		if !first.Replace || first.Source != "bpf" {
			t.Errorf("the first event is %+v", first)
		}
		told := map[string]StreamTotal{}
		by := map[string]string{}
		for _, c := range first.Containers {
			told[c.ID] = StreamTotal{c.ID, c.Receive, c.Transmit, c.TCP}
			by[c.ID] = c.CountedBy
		}
		if diff := cmp.Diff(map[string]string{"aaa111": "interfaces", "aaa222": "", "bbb333": "interfaces", "ccc444": "cgroup"}, by); diff != "" {
			t.Errorf("counted by (-want +got):\n%s", diff)
		}
		for range 3 {
			s.change(func(snap *usage.Snapshot) {
				used(snap, "aaa111", 12345)
				opened(snap, "aaa111")
			})
			sample := expect[*StreamSample](t, next)
			if len(sample.Containers) != 1 {
				t.Errorf("%d in a sample where one has changed", len(sample.Containers))
			}
			for _, c := range sample.Containers {
				told[c.ID] = c
			}
		}
		containers, err := Fetch(t.Context(), socket, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range containers.Containers {
			want := StreamTotal{ID: c.ID}
			for from, to := range map[*Counts]*StreamCounts{&c.Receive: &want.Receive, &c.Transmit: &want.Transmit} {
				*to = StreamCounts{from.Volume, from.TCPSYN, from.SeededBytes, from.SeededPackets}
			}
			if by[c.ID] == "cgroup" {
				want.Receive = StreamCounts{Volume: c.IP.Receive.Volume, TCPSYN: c.IP.Receive.TCPSYN}
				want.Transmit = StreamCounts{Volume: c.IP.Transmit.Volume, TCPSYN: c.IP.Transmit.TCPSYN}
			}
			if c.TCP != nil {
				want.TCP = &StreamTCP{*c.TCP.Connects, c.TCP.Accepts, *c.TCP.ConnectFailures, c.TCP.Resets}
			}
			if diff := cmp.Diff(want, told[c.ID]); diff != "" {
				t.Errorf("%s (-containers +stream):\n%s", c.Name, diff)
			}
		}
	}
}

// Whoever follows again after nettally was restarted has all totals.
func TestFollowAgain(t *testing.T) {
	s, opts := newScene(t, snapshot())
	l, socket, stop := serve(t, opts, "")
	next := follow(t.Context(), t, ClientOptions{Socket: socket})
	expect[*StreamContainers](t, next)
	s.mu.Lock()
	used(&s.snap, "aaa111", 7)
	want := s.snap.Containers[1].Receive.Wire().Bytes
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { // streams end with the hub, as they do in the daemon
		defer close(ended)
		stop()
	}()
	for {
		event, err := next()
		if event == nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) && err == nil {
				t.Errorf("the end is told as %v", err)
			}
			break
		}
	}
	<-ended
	if _, err := follow(t.Context(), t, ClientOptions{Socket: socket})(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a nettally: %v", err)
	}
	again, opts := newScene(t, s.snap)
	_ = again
	_, socket, _ = serve(t, opts, "")
	for _, c := range expect[*StreamContainers](t, follow(t.Context(), t, ClientOptions{Socket: socket})).Containers {
		if c.ID == "aaa111" && c.Receive.Bytes != want {
			t.Errorf("%d bytes after it was followed again, want %d", c.Receive.Bytes, want)
		}
	}
	_ = l
}

// A viewer that never reads is cut off; others get every sample meanwhile, and their number has a
// bound.
func TestViewerThatNeverReads(t *testing.T) {
	snap := many(200)
	s, opts := newScene(t, snap)
	l, socket, _ := serve(t, opts, "")
	lazy, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	if err := lazy.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(lazy, "GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	for s.hub.Viewers() == 0 {
		time.Sleep(time.Millisecond)
	}
	next := follow(t.Context(), t, ClientOptions{Socket: socket})
	expect[*StreamContainers](t, next)
	for i := range 400 {
		s.change(func(snap *usage.Snapshot) {
			for j := range snap.Containers {
				snap.Containers[j].Receive.Cells[0][0].Bytes += uint64(i + 1)
			}
		})
		if got := len(expect[*StreamSample](t, next).Containers); got != 200 {
			t.Fatalf("a sample of %d, want 200", got)
		}
		if s.hub.Viewers() == 1 {
			return
		}
	}
	t.Error("a viewer that never reads is still there")
}

// An hour with 64 viewers and one that never reads: all of the 64 know the same totals in the end,
// and nothing has grown.
func TestAnHourOfViewers(t *testing.T) {
	const viewers = 64
	hour := need.Tries(3600)
	s, opts := newScene(t, many(10))
	l, socket, _ := serve(t, opts, "")
	lazy, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	fmt.Fprintf(lazy, "GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	c, err := NewClient(ClientOptions{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var watching sync.WaitGroup
	received := make(chan map[string]uint64, viewers) // at a sample
	begun := make(chan struct{}, viewers)             // who has been told everything
	ctx, cancel := context.WithCancel(t.Context())
	defer watching.Wait()
	defer cancel()
	for range viewers {
		watching.Go(func() {
			totals := map[string]uint64{}
			for event, err := range c.Follow(ctx, time.Second) {
				if err != nil {
					return
				}
				switch e := event.(type) {
				case *StreamContainers:
					for _, c := range e.Containers {
						totals[c.ID] = c.Receive.Bytes
					}
					if e.Replace {
						begun <- struct{}{}
					}
				case *StreamSample:
					for _, c := range e.Containers {
						totals[c.ID] = c.Receive.Bytes
					}
					select {
					case received <- maps.Clone(totals):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	for s.hub.Viewers() < viewers+1 {
		time.Sleep(time.Millisecond)
	}
	for range viewers { // one that is told after a change gets no sample of it
		<-begun
	}
	var heap []uint64
	for second := range hour {
		s.change(func(snap *usage.Snapshot) { used(snap, snap.Containers[second%10].ID, 1500) })
		want := map[string]uint64{}
		s.mu.Lock()
		for i := range s.snap.Containers {
			want[s.snap.Containers[i].ID] = s.snap.Containers[i].Receive.Wire().Bytes
		}
		s.mu.Unlock()
		for range viewers {
			if got := <-received; !maps.Equal(got, want) {
				t.Fatalf("second %d (-want +got):\n%s", second, cmp.Diff(want, got))
			}
		}
		if second == hour/4 || second == hour-1 {
			var memory runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&memory)
			heap = append(heap, memory.HeapAlloc)
		}
	}
	if heap[1] > heap[0]+heap[0]/4 {
		t.Errorf("the heap has grown from %d bytes in a quarter of the hour to %d in all of it", heap[0], heap[1])
	}
}

func TestStreamRefuses(t *testing.T) {
	_, opts := newScene(t, snapshot())
	handler := newExporter(t, opts).Handler()
	for target, want := range map[string]string{
		"/api/v1/stream?interval=500ms":  `query parameter interval: \"500ms\" is not a whole number of seconds from 1s to 60s`,
		"/api/v1/stream?interval=1500ms": `query parameter interval: \"1500ms\" is not`,
		"/api/v1/stream?interval=61s":    `query parameter interval: \"61s\" is not`,
		"/api/v1/stream?interval=fast":   `query parameter interval: \"fast\" is not`,
		"/api/v1/stream?x=1":             `query parameter \"x\": unknown; there are interval`,
		"/api/v1/recent?x=1":             `query parameter \"x\": unknown`,
	} {
		if code, _, body := request(t, handler, "GET", target); code != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
	opts.Live = nil
	handler = newExporter(t, opts).Handler()
	for _, target := range []string{"/api/v1/stream", "/api/v1/recent"} {
		if code, _, body := request(t, handler, "GET", target); code != 503 {
			t.Errorf("%s where nobody can watch: %d %s", target, code, body)
		}
	}
}

// A HEAD tells what a GET would answer, and waits for nothing.
func TestStreamHead(t *testing.T) {
	_, opts := newScene(t, snapshot())
	code, header, body := request(t, newExporter(t, opts).Handler(), "HEAD", "/api/v1/stream?interval=60s")
	if code != 200 || header.Get("Content-Type") != "text/event-stream" || body != "" {
		t.Errorf("%d %v %q", code, header, body)
	}
}

// One user can't keep another one from watching, and has a bound.
func TestSeats(t *testing.T) {
	var s seats
	var cut atomic.Int32
	sit := func(who peer) error {
		return s.take(&seat{peer: func() peer { return who }, cut: func() { cut.Add(1) }})
	}
	for i := range seatsPerPeer {
		if err := sit("greedy"); err != nil {
			t.Fatalf("viewer %d: %v", i, err)
		}
	}
	if err := sit("greedy"); err == nil {
		t.Error("one user has more seats than it may")
	}
	for i := range seatsMost - seatsPerPeer {
		if err := sit("second"); err != nil {
			t.Fatalf("viewer %d of another user: %v", i, err)
		}
	}
	mine := &seat{peer: func() peer { return "third" }, cut: func() { t.Error("cut the newest user off") }}
	if err := s.take(mine); err != nil || cut.Load() != 1 || s.held() != seatsMost {
		t.Errorf("a third user: %v; %d cut off, %d seats taken", err, cut.Load(), s.held())
	}
	s.leave(mine)
	s.leave(mine)
	if s.held() != seatsMost-1 {
		t.Errorf("%d seats taken after one has left", s.held())
	}
}

func TestNewClient(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]ClientOptions{
		`parse URL "host:9819": expected http`:  {URL: "host:9819"},
		`parse URL "ftp://host": expected http`: {URL: "ftp://host"},
		"no such file":                          {URL: "https://host", CAFile: "/nowhere.pem"},
		"has none in PEM":                       {URL: "https://host", CAFile: empty},
	} {
		if _, err := NewClient(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}

// A client behind a proxy's path, with credentials, gets what it asks for, and an error says where
// and why.
func TestClientGets(t *testing.T) {
	handler := newExporter(t, options(snapshot())).Handler()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		http.StripPrefix("/tally", handler).ServeHTTP(w, r)
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	o := ClientOptions{URL: server.URL + "/tally/", CAFile: ca, User: "ann", Password: "secret"}
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got Container
	if err := c.Get(t.Context(), "/api/v1/containers/aaa111", &got); err != nil || got.Name != "web" {
		t.Errorf("got %q, %v", got.Name, err)
	}
	if err := c.Get(t.Context(), "/api/v1/containers/nobody", &got); err == nil || !strings.Contains(err.Error(), "404 Not Found: find container") {
		t.Errorf("one that is not there: %v", err)
	}
	o.Password = "wrong"
	wrong, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	if err := wrong.Get(t.Context(), "/version", &got); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") {
		t.Errorf("with a wrong password: %v", err)
	}
}
