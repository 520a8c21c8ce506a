// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// noon is when tests begin: in the middle of an hour, a day, a week and a month.
var noon = time.Date(2026, time.November, 18, 12, 30, 0, 0, time.UTC)

// memory is a store in memory, of which nothing is there that was not saved.
type memory struct {
	mu        sync.Mutex
	documents map[string][]byte
	err       error
	saves     int
	hang      chan struct{} // not nil: a save waits for it
	silent    int           // as many saves more give up after silence, as a ledger's do
	clock     *wallclock.Clock
	mark      wallclock.Mark // of the last save, as a ledger notes it
	steady    wallclock.Mark
}

func (m *memory) Load() (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.documents), m.err
}

func (m *memory) Save(put map[string][]byte, drop []string) error {
	m.mu.Lock()
	hang, silent := m.hang, m.silent > 0
	if silent {
		m.silent--
	}
	m.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if silent {
		time.Sleep(silence)
		return errSilent
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	for _, key := range drop {
		delete(m.documents, key)
	}
	maps.Copy(m.documents, put)
	clock := m.clock.Look()
	m.mark, m.steady = clock.Mark, clock.Steady
	m.saves++
	return nil
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

var (
	errDisk   = errors.New("disk full")
	errSilent = errors.New("the disk does not answer")
)

// silence is how long a save waits for a disk that does not answer.
const silence = 10 * time.Second

// host is what the host's clocks say.
type host struct {
	off    time.Duration // how far the wall clock is ahead
	booted time.Time
	boots  int64
	synced bool
	lives  bool // its time is the process's
}

// bench is an engine, its store, a clock, and containers that use what a test says.
type bench struct {
	t          testing.TB
	engine     *Engine
	keeper     *keeper
	store      *memory
	now        time.Time // as it is, whatever the host's clock says
	host       host
	rules      []Rule
	containers []usage.Container
	sent       []Alert
	means      map[string]Means
	asked      int // for usage, by Run
	log        bytes.Buffer
}

func newBench(t testing.TB, rules ...Rule) *bench {
	b := &bench{
		t: t, store: &memory{documents: map[string][]byte{}}, now: noon, rules: rules,
		host:  host{booted: noon.Add(-time.Hour), boots: 1},
		means: map[string]Means{"ops": ByDelivery, "pager": ByDelivery, "am": ByState},
	}
	b.restart()
	return b
}

func (b *bench) reading() wallclock.Reading {
	h, now := b.host, b.now
	if h.lives {
		now = time.Now()
	}
	return wallclock.Reading{Wall: now.Add(h.off), Boot: now.Sub(h.booted), BootID: h.boots, Synced: h.synced}
}

// reboot is a host that was off for a while, and boots with a clock that is off.
func (b *bench) reboot(after, off time.Duration) {
	b.now = b.now.Add(after)
	b.host = host{off: off, booted: b.now.Add(-10 * time.Second), boots: b.host.boots + 1}
	b.restart()
}

// restart is what a process does that comes after another, killed or not.
func (b *bench) restart() {
	log := slog.New(slog.NewTextHandler(&b.log, nil))
	clock := wallclock.New(b.reading, log)
	clock.Restore(b.store.mark, b.store.steady)
	b.store.clock = clock
	b.engine = New(Options{
		Rules: func() (rules []Rule) {
			b.beside(func() { rules = b.rules })
			return rules
		},
		Notifiers: func() (means map[string]Means) {
			b.beside(func() { means = b.means })
			return means
		},
		Store: b.store,
		Clock: clock,
		Log:   log,
	})
	b.keeper = &keeper{Engine: b.engine, results: make(chan result, 1)}
	b.keeper.load()
}

// beside does something with what Run uses, too.
func (b *bench) beside(do func()) {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	do()
}

// start adds a container.
func (b *bench) start(id, name string) *usage.Container {
	now := b.engine.Clock.Now()
	b.containers = append(b.containers, usage.Container{
		ID: id, Name: name, Runtime: "docker", Image: "registry/nginx:1", State: usage.Running, StartedAt: now,
		Interfaces: []usage.Interface{{Name: "eth0", AttachedAt: now}},
	})
	return &b.containers[len(b.containers)-1]
}

func (b *bench) remove(id string) {
	b.containers = slices.DeleteFunc(b.containers, func(c usage.Container) bool { return c.ID == id })
}

func (b *bench) find(id string) *usage.Container {
	for i := range b.containers {
		if b.containers[i].ID == id {
			return &b.containers[i]
		}
	}
	b.t.Fatalf("no container %s", id)
	return nil
}

// transmit has a container transmit bytes, in packets of 100 bytes, a tenth of them SYN.
func (b *bench) transmit(id string, n uint64) {
	b.t.Helper()
	t := &b.find(id).Transmit
	cell := &t.Cells[usage.FamilyIPv4][usage.ProtocolTCP]
	cell.Bytes += n
	cell.Packets += n / 100
	t.SYN += n / 1000
}

// check lets time pass, checks, and does not save.
func (b *bench) check(d time.Duration) []Alert {
	b.now = b.now.Add(d)
	return b.engine.Check(usage.Snapshot{TakenAt: b.now, Containers: slices.Clone(b.containers)})
}

// save saves, delivers, and saves what that has acknowledged.
func (b *bench) save() {
	b.keeper.due = time.Time{}
	for b.keeper.step(time.Now()); b.keeper.busy; b.keeper.step(time.Now()) {
		b.keeper.done(<-b.keeper.results)
		b.deliver()
	}
}

// deliver delivers what may be told to all that are told by delivery.
func (b *bench) deliver() {
	for _, name := range []string{"ops", "pager"} {
		for d, ok := b.engine.Next(name, 0); ok; d, ok = b.engine.Next(name, 0) {
			b.sent = append(b.sent, d.Alert)
			b.engine.Done(d, false)
		}
	}
}

// pass checks and saves.
func (b *bench) pass(d time.Duration) []Alert {
	alerts := b.check(d)
	b.save()
	return alerts
}

// used returns what keys have used: "<quota>/<key>" to that.
func (b *bench) used() map[string]uint64 {
	all := map[string]uint64{}
	for _, s := range b.engine.Status() {
		if s.Key != "" {
			all[s.Quota+"/"+s.Key] = uint64(s.Used)
		}
	}
	return all
}

// said is alerts as "<quota> <key> <level> <state>".
func said(alerts []Alert) (lines []string) {
	for _, a := range alerts {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", a.Quota, a.Key, a.Level, a.State))
	}
	return lines
}

// took returns what was delivered since the last time.
func (b *bench) took() []string {
	lines := said(b.sent)
	b.sent = nil
	return lines
}

func same(t testing.TB, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// monthly is a limit of 1000 bytes transmitted per name and month.
func monthly(change ...func(*Rule)) Rule {
	r := Rule{
		Name: "m", Per: PerName, Count: TransmitBytes, Limit: 1000, AlertAt: []int{50, 80, 100},
		Period: Period{Every: Monthly, Day: 1, Location: time.UTC}, Notify: []string{"ops"},
	}
	for _, f := range change {
		f(&r)
	}
	return r
}

func every(e Every) func(*Rule) {
	return func(r *Rule) { r.Period = Period{Every: e, Day: 1, Location: time.UTC} }
}

func per(p string) func(*Rule) { return func(r *Rule) { r.Per = p } }

func named(name string) func(*Rule) { return func(r *Rule) { r.Name = name } }

func logged(b *bench, text string) int { return strings.Count(b.log.String(), text) }
