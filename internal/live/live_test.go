// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is what a hub reads, and its clock.
type host struct {
	t          *testing.T
	hub        *Hub
	boot       time.Duration
	containers map[string]usage.Container
	final      map[string]bool
	reads      int
	watched    bool // at the last reading
	alerts     []quota.Alert
	standing   []quota.Status
}

func newHost(t *testing.T) *host {
	h := &host{t: t, boot: 1000 * time.Second, containers: map[string]usage.Container{}, final: map[string]bool{}}
	h.hub = New(Options{Read: h.read, Quotas: h, Boot: func() time.Duration { return h.boot }})
	h.hub.run(true)
	return h
}

// read leaves out what has ended and was read, as usage.Reader does.
func (h *host) read(_ context.Context, all, watched bool) usage.Snapshot {
	h.reads++
	h.watched = watched
	s := usage.Snapshot{TakenAt: time.Unix(0, 0).Add(h.boot)}
	for id, c := range h.containers {
		if all || !h.final[id] {
			s.Containers = append(s.Containers, c)
		}
		h.final[id] = c.State == usage.Stopped
	}
	return s
}

func (h *host) Status() []quota.Status { return slices.Clone(h.standing) }
func (h *host) Alerts() []quota.Alert  { return slices.Clone(h.alerts) }
func (h *host) Foremost() map[string]quota.Foremost {
	return map[string]quota.Foremost{"a": {Quota: "q", Ratio: 0.5}}
}

// set puts a container into the host, with an interface.
func (h *host) set(id string, received uint64, change ...func(*usage.Container)) {
	c := usage.Container{ID: id, Name: "name-" + id, State: usage.Running, Interfaces: []usage.Interface{{Name: "eth0"}}}
	c.Receive.Cells[0][0] = usage.Volume{Bytes: received, Packets: received / 100}
	for _, f := range change {
		f(&c)
	}
	h.containers[id] = c
	h.final[id] = false
}

func stopped(c *usage.Container) { c.State = usage.Stopped }

// pass lets time pass, in seconds.
func (h *host) pass(seconds int) {
	for range seconds {
		h.boot += time.Second
		h.hub.step(h.t.Context())
	}
}

func (h *host) join(interval time.Duration) *Viewer {
	h.t.Helper()
	v, err := h.hub.Join(interval, func() {})
	if err != nil {
		h.t.Fatal(err)
	}
	h.hub.step(h.t.Context())
	return v
}

// seen is what a viewer has been told.
type seen struct {
	containers map[string]Container
	events     []string // all but samples
	samples    int
	quotas     QuotaState
}

// take applies what has come for a viewer.
func (s *seen) take(v *Viewer) {
	for {
		select {
		case batch, open := <-v.C:
			if !open {
				return
			}
			for _, m := range batch {
				s.apply(m.Event)
			}
		default:
			return
		}
	}
}

func (s *seen) apply(event any) {
	switch e := event.(type) {
	case Containers:
		if e.Replace {
			s.containers = map[string]Container{}
			s.events = append(s.events, "all")
		}
		for _, c := range e.Containers {
			s.containers[c.ID] = c
		}
	case Sample:
		s.samples++
		for _, t := range e.Totals {
			c := s.containers[t.ID]
			c.Total = t
			s.containers[t.ID] = c
		}
	case Started:
		s.events = append(s.events, "started "+e.ID)
	case Stopped:
		s.events = append(s.events, "stopped "+e.ID)
	case Removed:
		for _, id := range e.IDs {
			delete(s.containers, id)
			s.events = append(s.events, "removed "+id)
		}
	case Alert:
		s.events = append(s.events, "alert "+e.ID+" "+e.State)
	case QuotaState:
		s.quotas = e
		s.events = append(s.events, "quotas")
	default:
		panic(fmt.Sprintf("an event of type %T", event))
	}
}

func (s *seen) expect(t *testing.T, events ...string) {
	t.Helper()
	if diff := cmp.Diff(events, s.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	s.events = nil
}

// A new viewer is told everything, and then what has changed: totals once they have, and each
// beginning, end and alert once.
func TestWhatAViewerIsTold(t *testing.T) {
	h := newHost(t)
	h.set("a", 100)
	h.alerts = []quota.Alert{{ID: "1", State: quota.Firing}, {ID: "0", State: quota.Resolved}}
	h.pass(1)
	v := h.join(time.Second)
	var s seen
	s.take(v)
	s.expect(t, "all", "quotas", "alert 1 firing")
	if got := s.containers["a"]; got.Receive.Bytes != 100 || got.CountedBy != ByInterfaces || !got.Recalled || s.samples != 0 {
		t.Errorf("told %+v and %d samples", got, s.samples)
	}
	h.pass(1)
	s.take(v)
	s.expect(t)
	if s.samples != 1 {
		t.Errorf("%d samples, want one though nothing has changed", s.samples)
	}

	h.set("a", 250)
	h.set("b", 7)
	h.pass(1)
	s.take(v)
	s.expect(t, "started b")
	if s.containers["a"].Receive.Bytes != 250 || s.containers["b"].Receive.Bytes != 7 {
		t.Errorf("told %+v", s.containers)
	}

	h.set("b", 9, stopped)
	h.alerts[0].State = quota.Resolved
	h.pass(1)
	s.take(v)
	s.expect(t, "stopped b", "alert 1 resolved")
	if got := s.containers["b"]; got.Receive.Bytes != 9 || got.State != usage.Stopped {
		t.Errorf("b is %+v", got)
	}

	h.pass(2 * wholeEvery)
	s.take(v)
	if s.containers["b"].ID == "" {
		t.Error("one that has ended is gone before it is forgotten")
	}
	s.events = nil
	v.Leave()
	v = h.join(time.Second)
	s.take(v)
	s.expect(t, "all", "quotas")
	delete(h.containers, "b")
	for range wholeEvery {
		h.pass(1)
		s.take(v)
	}
	s.expect(t, "removed b")

	h.set("b", 10)
	h.pass(1)
	s.take(v)
	s.expect(t, "started b")
	delete(h.containers, "b") // it ran when it was seen last
	h.pass(1)
	s.take(v)
	s.expect(t, "removed b")
}

// What begins and ends between two readings has done both.
func TestShortLives(t *testing.T) {
	h := newHost(t)
	at := func(second int64) func(*usage.Container) {
		return func(c *usage.Container) { c.StartedAt = time.Unix(second, 0) }
	}
	h.set("a", 1, at(1))
	v := h.join(time.Second)
	var s seen
	s.take(v)
	s.events = nil
	for _, step := range []struct {
		change func()
		want   []string
	}{
		{func() { h.set("a", 1, at(2)) }, []string{"stopped a", "started a"}},
		{func() { h.set("a", 1, at(2)) }, nil},
		{func() { h.set("a", 1, at(3), stopped) }, []string{"started a", "stopped a"}},
		{func() { h.set("a", 1, at(4), stopped) }, []string{"started a", "stopped a"}},
		{func() { h.set("a", 1, at(5)) }, []string{"started a"}},
		{func() { h.set("a", 1, at(5), stopped) }, []string{"stopped a"}},
		{func() { h.set("b", 1, at(6), stopped) }, []string{"started b", "stopped b"}},
	} {
		step.change()
		h.pass(1)
		s.take(v)
		s.expect(t, step.want...)
	}
}

// Nothing is read without a viewer but a step of 10 s, and once per tick for any number of them.
func TestOneReadingForAll(t *testing.T) {
	h := newHost(t)
	h.set("a", 100)
	h.pass(1)
	h.reads = 0
	h.pass(100)
	if h.reads != 10 || h.watched {
		t.Errorf("%d readings in 100 s without a viewer, want 10", h.reads)
	}
	h.boot += StepOf - h.boot%StepOf
	h.pass(1)
	var viewers []*Viewer
	h.reads = 0
	for range 64 {
		viewers = append(viewers, h.join(time.Second))
	}
	if h.reads > 1 {
		t.Errorf("%d readings for 64 who come at once, want 1", h.reads)
	}
	h.reads = 0
	for range 100 {
		h.pass(1)
		for _, v := range viewers {
			if got := len(v.C); got == 0 {
				t.Fatal("a viewer was told nothing")
			}
			(&seen{containers: map[string]Container{}}).take(v)
		}
	}
	if h.reads != 100 || !h.watched {
		t.Errorf("%d readings in 100 s for 64 viewers, want 100", h.reads)
	}
	for _, v := range viewers {
		v.Leave()
	}
	slow := h.join(time.Minute)
	defer slow.Leave()
	h.reads = 0
	h.pass(120)
	if h.reads > 14 {
		t.Errorf("%d readings in 120 s for one with an interval of 60 s, want 14", h.reads)
	}
}

// Messages are the same for all who lack the same, so that they are encoded once.
func TestMessagesAreShared(t *testing.T) {
	h := newHost(t)
	h.set("a", 100)
	v, w := h.join(time.Second), h.join(time.Second)
	encoded := 0
	encode := func(any) []byte { encoded++; return []byte("x") }
	for range 2 {
		for _, m := range append(<-v.C, <-w.C...) {
			m.Text(encode)
		}
		h.pass(1)
	}
	if encoded != 3 { // containers, quotas, a sample
		t.Errorf("encoded %d times, want 3", encoded)
	}
}

// A viewer that does not read is dropped and cut off; it keeps nobody waiting, and what waits for
// it is bounded.
func TestSlowViewerIsDropped(t *testing.T) {
	h := newHost(t)
	h.set("a", 1)
	cut := 0
	lazy, err := h.hub.Join(time.Second, func() { cut++ })
	if err != nil {
		t.Fatal(err)
	}
	v := h.join(time.Second)
	var s seen
	for i := range 3600 {
		h.set("a", uint64(i))
		h.pass(1)
		s.take(v)
		if got := s.containers["a"].Receive.Bytes; got != uint64(i) {
			t.Fatalf("told %d, want %d", got, i)
		}
	}
	if cut != 1 || len(lazy.C) != behind || h.hub.Viewers() != 1 {
		t.Errorf("cut %d times, %d batches wait, %d viewers", cut, len(lazy.C), h.hub.Viewers())
	}
	lazy.Leave()
	if n := len(h.hub.gone); n > 0 {
		t.Errorf("%d forgotten containers are kept for nobody", n)
	}
}

// Whoever joins, and with whatever interval, has after each batch what the host has.
func TestViewersAgreeWithTheHost(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		h := newHost(t)
		type watching struct {
			*Viewer
			seen
		}
		var viewers []*watching
		for range 400 {
			for range random.IntN(4) {
				id := fmt.Sprint(random.IntN(12))
				switch c, there := h.containers[id]; {
				case there && random.IntN(4) == 0:
					delete(h.containers, id)
				case there && random.IntN(3) == 0:
					h.set(id, c.Receive.Wire().Bytes, stopped)
				default:
					h.set(id, c.Receive.Wire().Bytes+uint64(random.IntN(1000)))
				}
			}
			switch random.IntN(10) {
			case 0:
				v := &watching{Viewer: h.join(time.Duration(1+random.IntN(5)) * time.Second)}
				v.take(v.Viewer) // of a reading a moment ago
				viewers = append(viewers, v)
			case 1:
				if len(viewers) > 0 {
					at := random.IntN(len(viewers))
					viewers[at].Leave()
					viewers = slices.Delete(viewers, at, at+1)
				}
			}
			h.pass(1)
			for _, v := range viewers {
				if len(v.C) == 0 {
					continue
				}
				v.take(v.Viewer)
				agree(t, h, v.containers)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// agree compares what a viewer has with the host: those that have ended and are gone may still be
// there, until all are read.
func agree(t *testing.T, h *host, told map[string]Container) {
	t.Helper()
	for id, c := range h.containers {
		got, there := told[id]
		if !there || got.Receive.Bytes != c.Receive.Wire().Bytes || got.State != c.State {
			t.Errorf("told of %s: %+v, want %d bytes, %s", id, got, c.Receive.Wire().Bytes, c.State)
		}
	}
	for id, c := range told {
		if _, there := h.containers[id]; !there && c.State == usage.Running {
			t.Errorf("%s is told and not there", id)
		}
	}
}

// Who was told before the list of forgotten containers was cut is told everything.
func TestManyForgotten(t *testing.T) {
	h := newHost(t)
	h.boot = 17 * time.Minute
	v := h.join(time.Minute)
	var s seen
	s.take(v)
	quick := h.join(time.Second)
	defer quick.Leave()
	for round := range 12 {
		for i := range 1000 {
			h.set(fmt.Sprint(round, "-", i), 1)
		}
		h.pass(1)
		clear(h.containers)
		h.pass(1)
		(&seen{containers: map[string]Container{}}).take(quick)
	}
	if n := len(h.hub.gone); n > goneMost {
		t.Errorf("%d are kept", n)
	}
	s.events = nil
	h.pass(60)
	s.take(v)
	if !slices.Contains(s.events, "all") || len(s.containers) > 0 {
		t.Errorf("told of %d events, knows %d", len(s.events), len(s.containers))
	}
}

// A runtime names the container whose network is shared by its id, and we find the owner of a
// pod's; people know names.
func TestNetworkInWords(t *testing.T) {
	h := newHost(t)
	mode := func(m string) func(*usage.Container) { return func(c *usage.Container) { c.NetworkMode = m } }
	id := fmt.Sprintf("%064d", 7)
	h.set(id, 1, mode("bridge"))
	h.set("side", 1, mode("container:"+id))
	h.set("pod", 1, func(c *usage.Container) { c.NetworkMode, c.Shares, c.SharesWith = "container", true, id })
	h.set("stray", 1, mode("container:"+strings.Repeat("ab", 32)))
	h.set("host", 1, func(c *usage.Container) { c.OnHost = true })
	h.set("none", 1, mode("none"))
	v := h.join(time.Second)
	var s seen
	s.take(v)
	got := map[string]string{}
	for id, c := range s.containers {
		got[id] = c.Network
	}
	want := map[string]string{
		id: "bridge", "side": "container:name-" + id, "pod": "container:name-" + id,
		"stray": "container:abababababab", "host": "host", "none": "none",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
	h.set(id, 1, mode("bridge"), func(c *usage.Container) { c.Name = "web" })
	h.pass(1)
	s.take(v)
	if got := s.containers["side"].Network; got != "container:web" {
		t.Errorf("after it was named: %s", got)
	}
	h.pass(1)
	if n := len((<-v.C)[0].Event.(Sample).Totals); n > 0 {
		t.Errorf("%d told of where nothing has changed", n)
	}
}

// What quotas say is told every 10 s where it has changed, the highest ratios of many.
func TestQuotas(t *testing.T) {
	h := newHost(t)
	for i := range 2 * quotasMost {
		h.standing = append(h.standing, quota.Status{Quota: "q", Key: fmt.Sprint(i), Ratio: float64(i)})
	}
	v := h.join(time.Second)
	var s seen
	s.take(v)
	s.expect(t, "all", "quotas")
	if n := len(s.quotas.Quotas); n != quotasMost || s.quotas.Quotas[0].Key != "999" {
		t.Errorf("told of %d, first %v", n, s.quotas.Quotas[0])
	}
	if diff := cmp.Diff(map[string]quota.Foremost{"a": {Quota: "q", Ratio: 0.5}}, s.quotas.Foremost); diff != "" {
		t.Errorf("foremost (-want +got):\n%s", diff)
	}
	for range 20 {
		h.pass(1)
		s.take(v)
	}
	s.expect(t)
	h.standing[999].Ratio = 5000
	for range 10 {
		h.pass(1)
		s.take(v)
	}
	s.expect(t, "quotas")
}

// The time of a reading of files is that of the files.
func TestReadEarlier(t *testing.T) {
	h := newHost(t)
	read := h.hub.Read
	h.hub.Read = func(ctx context.Context, all, watched bool) usage.Snapshot {
		s := read(ctx, all, watched)
		s.ReadAt = s.TakenAt.Add(-3 * time.Second)
		return s
	}
	h.set("a", 1)
	v := h.join(time.Second)
	got := (<-v.C)[0].Event.(Containers).Reading
	want := Reading{TakenAt: time.Unix(0, 0).Add(h.boot - 3*time.Second), Boot: h.boot - 3*time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reading (-want +got):\n%s", diff)
	}
}

// Run tells who joins at once, whatever the interval is, and ends its viewers with itself.
func TestRun(t *testing.T) {
	ready := make(chan struct{})
	h := New(Options{
		Read:  func(context.Context, bool, bool) usage.Snapshot { return usage.Snapshot{TakenAt: time.Now()} },
		Ready: ready,
		Tick:  make(chan time.Time),
	})
	if _, err := h.Join(time.Second, nil); err != ErrEnded {
		t.Errorf("join before it runs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	close(ready)
	var v *Viewer
	for {
		var err error
		if v, err = h.Join(time.Minute, nil); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, is := (<-v.C)[0].Event.(Containers); !is {
		t.Error("the first event is no list of containers")
	}
	cancel()
	if _, open := <-v.C; open {
		t.Error("told something at the end")
	}
	v.Leave()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := h.Join(time.Second, nil); err != ErrEnded {
		t.Errorf("join after the end: %v", err)
	}
}

// sums are the bytes of all known steps.
func sums(r Recent) map[string]uint64 {
	all := map[string]uint64{}
	for _, s := range append(slices.Clone(r.Series), r.Others) {
		for _, g := range s.Steps {
			if g != nil {
				all[s.ID] += g.bytes()
			}
		}
	}
	maps.DeleteFunc(all, func(_ string, n uint64) bool { return n == 0 })
	return all
}

// The last 15 minutes have what was used in them, by steps; what was seeded is of no step, and
// nothing is known of the time before a container came and of a gap.
func TestRecent(t *testing.T) {
	h := newHost(t)
	seeded := func(n uint64) func(*usage.Container) {
		return func(c *usage.Container) { c.Receive.Seeded.Bytes = n }
	}
	h.boot -= h.boot % StepOf
	h.set("a", 100)
	h.set("still", 5)
	h.pass(1)
	h.set("a", 150)
	h.pass(10)
	h.set("a", 400, seeded(1000))
	h.set("b", 70)
	h.pass(10)
	h.set("b", 75)
	h.pass(10)
	r := h.hub.Recent()
	if want := time.Duration(1030) * time.Second; r.End != want {
		t.Errorf("the end is %s, want %s", r.End, want)
	}
	if diff := cmp.Diff(map[string]uint64{"a": 300, "b": 5}, sums(r)); diff != "" {
		t.Errorf("used (-want +got):\n%s", diff)
	}
	text := func(s Series) (out string) {
		for _, g := range s.Steps {
			if g == nil {
				out += "- "
			} else {
				out += fmt.Sprint(g.Receive.Bytes, " ")
			}
		}
		return s.ID + ": " + out
	}
	for i, want := range []string{"a: 50 250 0 ", "b: - - 5 "} {
		if got := text(r.Series[i]); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}

	h.boot += 45 * time.Second // the host was suspended
	h.set("a", 9000, seeded(1000))
	h.pass(1)
	h.set("a", 9001, seeded(1000))
	h.pass(10)
	if got, want := text(h.hub.Recent().Series[0]), "a: 50 250 0 - - - - 1 "; got != want {
		t.Errorf("after a gap %q, want %q", got, want)
	}

	h.set("a", 5, func(c *usage.Container) { c.IP, c.OnHost = &usage.Traffic{}, true })
	h.pass(10)
	if got := text(h.hub.Recent().Series[0]); got != "a: 50 250 0 - - - - 1 - " {
		t.Errorf("counted otherwise: %q", got)
	}
	h.pass(900)
	if got := h.hub.Recent(); len(got.Series) > 0 || len(got.Others.Steps) != Steps {
		t.Errorf("after 15 minutes: %d steps, %v", len(got.Others.Steps), sums(got))
	}
}

// Beyond 1,000 containers in a step those that moved least are summed up.
func TestRecentIsBounded(t *testing.T) {
	h := newHost(t)
	const n = cellsMost + 500
	for i := range n {
		h.set(fmt.Sprint(i), 0)
	}
	h.pass(10)
	for step := range Steps + 5 {
		for i := range n {
			h.set(fmt.Sprint(i), uint64((step+1)*(i+1)))
		}
		h.pass(10)
	}
	boundedRecent(t, h, n)
	heap := func() uint64 {
		var memory runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&memory)
		return memory.HeapAlloc
	}
	before := heap()
	h.hub.ring.steps = nil
	const stated = Steps * cellsMost * 64
	freed := before - heap()
	runtime.KeepAlive(h)
	if freed < stated/2 || freed > stated+stated/5 {
		t.Errorf("the steps took %d bytes, want some %d", freed, stated)
	}
}

// boundedRecent expects 1,000 of n containers by themselves, and the rest in others.
func boundedRecent(t *testing.T, h *host, n int) {
	t.Helper()
	r := h.hub.Recent()
	got := sums(r)
	if others, most := uint64(Steps*500*501/2), uint64(Steps*n); got[""] != others || got[fmt.Sprint(n-1)] != most {
		t.Errorf("others %d, want %d; the busiest %d, want %d", got[""], others, got[fmt.Sprint(n-1)], most)
	}
	if len(h.hub.ring.spans) != n || len(r.Series) != cellsMost {
		t.Errorf("%d spans, %d series", len(h.hub.ring.spans), len(r.Series))
	}
}
