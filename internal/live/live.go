// SPDX-License-Identifier: Apache-2.0

// Package live tells viewers what containers use while they use it. One goroutine, that of
// [Hub.Run], reads the usage once per tick for all of them, and works out what has changed since
// each of them was told last. Numbers are exact totals: rates are the viewer's to compute.
//
// A viewer that does not keep up is dropped, so that nothing waits for it and nothing grows.
// While there is no viewer nothing is read, but for a reading every 10 s, of which [Hub.Recent]
// has the last 15 minutes.
package live

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

const (
	// Shortest and Longest bound the interval of a viewer.
	Shortest = time.Second
	Longest  = time.Minute

	// behind is how many batches may wait for a viewer before it is dropped.
	behind = 8
	// wholeEvery is after how many readings all containers are read, those that have ended, too,
	// to find those that are forgotten.
	wholeEvery = 60
	// goneMost bounds the list of containers that were forgotten. Who was told before it was
	// cut is told everything anew.
	goneMost = 10_000
	// quotasEvery is how long a viewer waits at most for what quotas say.
	quotasEvery = 10 * time.Second
	// quotasMost is how many keys of quotas are told, those with the highest ratios.
	quotasMost = 500
)

// ErrEnded is the error of Join before Run has begun and after it has ended.
var ErrEnded = errors.New("watch usage: nettally is starting or stopping; try again")

// Quotas is what the hub tells of quotas: *quota.Engine.
type Quotas interface {
	Status() []quota.Status
	Alerts() []quota.Alert
	Foremost() map[string]quota.Foremost
}

// Options is what a hub reads.
type Options struct {
	// Read reads the usage: [usage.Reader.Changing]. It is called by one goroutine. watched says
	// that there are viewers.
	Read func(ctx context.Context, all, watched bool) usage.Snapshot
	// Ready is closed when all that was counted before is known.
	Ready <-chan struct{}
	// Quotas is nil where there are none.
	Quotas Quotas
	// Boot is CLOCK_BOOTTIME; nil is the host's.
	Boot func() time.Duration
	// Tick sends when the hub is to look whether something is due; nil is once a second.
	Tick <-chan time.Time
}

// Hub reads for viewers. It is safe for concurrent use.
type Hub struct {
	Options
	joined chan struct{}

	mu      sync.Mutex
	running bool
	viewers map[*Viewer]struct{}
	ring    ring

	// The rest is of Run's goroutine.
	state
}

// Viewer gets what has changed.
type Viewer struct {
	// C gets a batch of messages per interval. It is closed when the viewer was dropped, when it
	// has left and when the hub ends.
	C <-chan []*Message

	hub      *Hub
	c        chan []*Message
	interval time.Duration
	cut      func()
	sent     uint64 // the reading of which it was told last, 0 for none
	told     int64  // its interval in which that was, counted since boot
}

// New returns a hub that does nothing before it runs.
func New(o Options) *Hub {
	if o.Boot == nil {
		o.Boot = bootTime
	}
	return &Hub{Options: o, joined: make(chan struct{}, 1), viewers: map[*Viewer]struct{}{}, state: newState()}
}

func bootTime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // only fails for clocks that there are not
	return time.Duration(now.Nano())
}

// Join adds a viewer. Its first batch has everything there is, and comes at once; the others come
// once per interval, which is rounded to seconds between [Shortest] and [Longest]. cut is called when the viewer is dropped, to
// end what keeps it; it must not block.
//
// Returns [ErrEnded] while the hub does not run.
func (h *Hub) Join(interval time.Duration, cut func()) (*Viewer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running {
		return nil, ErrEnded
	}
	interval = min(max(interval.Round(time.Second), Shortest), Longest)
	c := make(chan []*Message, behind)
	v := &Viewer{C: c, hub: h, c: c, interval: interval, cut: cut}
	h.viewers[v] = struct{}{}
	select {
	case h.joined <- struct{}{}:
	default: // Run looks anyway
	}
	return v, nil
}

// Leave ends the viewer.
func (v *Viewer) Leave() {
	v.hub.mu.Lock()
	defer v.hub.mu.Unlock()
	v.hub.remove(v)
}

// remove needs the hub's lock.
func (h *Hub) remove(v *Viewer) {
	if _, there := h.viewers[v]; there {
		delete(h.viewers, v)
		close(v.c)
	}
}

// Viewers returns how many there are.
func (h *Hub) Viewers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.viewers)
}

// Run reads and tells until ctx ends, and returns nil.
func (h *Hub) Run(ctx context.Context) error {
	select {
	case <-h.Ready:
	case <-ctx.Done():
		return nil
	}
	ticks := h.Tick
	if ticks == nil {
		ticker := time.NewTicker(Shortest)
		defer ticker.Stop()
		ticks = ticker.C
	}
	h.run(true)
	defer h.run(false)
	for {
		h.step(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
		case <-h.joined:
		}
	}
}

func (h *Hub) run(running bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = running
	for v := range h.viewers {
		h.remove(v)
	}
}

// step reads if something is due, and tells those whose turn it is.
func (h *Hub) step(ctx context.Context) {
	boot := h.Options.Boot()
	h.mu.Lock()
	due, fresh := h.due(boot)
	watched := len(h.viewers) > 0
	ringDue := h.ring.due(boot)
	h.mu.Unlock()
	if len(due) == 0 && !ringDue {
		return
	}
	// Who has just joined is content with a reading of the last second, if it is of quotas, too.
	if fresh || ringDue || !h.watched || boot-h.Reading.Boot >= Shortest || boot < h.Reading.Boot {
		h.read(ctx, watched)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if ringDue {
		h.ring.take(h.Reading.Boot, h.containers)
	}
	h.tell(due, boot)
}

// due returns the viewers whose turn it is, and whether one of them had an earlier turn.
func (h *Hub) due(boot time.Duration) (due []*Viewer, fresh bool) {
	for v := range h.viewers {
		if v.sent != 0 && int64(boot/v.interval) == v.told {
			continue
		}
		due = append(due, v)
		fresh = fresh || v.sent != 0
	}
	return due, fresh
}

// tell sends each viewer what it lacks. Viewers that lack the same get the same messages, which
// are encoded once.
func (h *Hub) tell(due []*Viewer, boot time.Duration) {
	batches := map[uint64][]*Message{}
	for _, v := range due {
		if _, there := h.viewers[v]; !there {
			continue // it has left
		}
		batch, made := batches[v.sent]
		if !made {
			batch = h.since(v.sent)
			batches[v.sent] = batch
		}
		select {
		case v.c <- batch:
			v.sent, v.told = h.seq, int64(boot/v.interval)
		default:
			h.remove(v)
			v.cut()
		}
	}
	least := h.seq
	for v := range h.viewers {
		least = min(least, v.sent)
	}
	h.forget(least)
}
