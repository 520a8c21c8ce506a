// SPDX-License-Identifier: Apache-2.0

// Package nflog counts connection requests of containers by what the host's own nftables or
// iptables rules log to a group of NFLOG. It is for hosts where no program may be loaded, and
// for a second opinion where one may.
//
// [Rules] prints the rules, [Find] says which hooks have some, and a [Counter] counts what they log.
package nflog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/nettally/nettally/internal/usage"
)

const (
	defaultBuffer = 8 << 20 // some 20,000 requests
	tryAgainAfter = 5 * time.Second
)

// Options are what a counter works with. Group, Owner and Log are needed.
type Options struct {
	Group uint16 // of NFLOG, not 0
	// Owner returns the id of the account that an interface in the host is counted for, or "".
	Owner func(ifindex int) string
	// Count is told how many requests of TCP an interface of [Options.Owner] has passed, in
	// the words of its container; nil where nobody wants to know.
	Count func(ifindex int, receive, transmit uint64)
	Log   *slog.Logger

	NetNS  int    // a descriptor of the network namespace, 0 for the current one
	Net    string // that namespace's directory in /proc, by default /proc/thread-self/net
	Buffer int    // bytes of the receive buffer, 8 MiB by default
}

// Counter counts what a group logs. Its methods are safe for concurrent use.
type Counter struct {
	Options
	said rate.Sometimes // that the queue was full
	wake chan struct{}  // somebody is to be found

	patience time.Duration // for which somebody is looked for

	mu      sync.Mutex
	index   *index
	tallies map[string]*tally // by account
	pending map[end]*waiting
	bound   bool
	since   time.Time // the group was bound first
	totals  totals
}

// totals are about the group as a whole. They only grow.
type totals struct {
	logged       uint64    // packets that came
	lost         uint64    // that the numbers of those tell of
	overruns     uint64    // times that the receive buffer was full
	ignored      uint64    // that are no requests
	unattributed [2]uint64 // ends of containers that were not found, by direction
}

// New returns a counter that has counted nothing. It opens and starts nothing.
func New(o Options) *Counter {
	if o.Net == "" {
		o.Net = "/proc/thread-self/net"
	}
	if o.Buffer == 0 {
		o.Buffer = defaultBuffer
	}
	return &Counter{
		Options:  o,
		said:     rate.Sometimes{Interval: time.Minute},
		wake:     make(chan struct{}, 1),
		patience: patience,
		index:    &index{},
		tallies:  map[string]*tally{},
		pending:  map[end]*waiting{},
	}
}

// Run counts until the context ends. While the group can't be had it tries again, and says
// each reason once.
//
// Requires CAP_NET_ADMIN, and nfnetlink_log in the kernel. The group is given up at the end.
func (c *Counter) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { c.find(ctx); return nil })
	group.Go(func() error { c.supervise(ctx); return nil })
	return group.Wait()
}

func (c *Counter) supervise(ctx context.Context) {
	last := ""
	for ctx.Err() == nil {
		bound, err := c.listen(ctx)
		if bound {
			last = ""
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != last {
			last = err.Error()
			c.Log.Error("connection requests are not counted; trying again", "group", c.Group, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tryAgainAfter):
		}
	}
}

// began notes whether the group is ours.
func (c *Counter) began(bound bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bound = bound; bound && c.since.IsZero() {
		c.since = time.Now()
	}
}

// Fill adds what was counted to a snapshot: to each container that had a request.
func (c *Counter) Fill(s *usage.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	there := make(map[string]bool, len(c.tallies))
	for i := range s.Containers {
		to := &s.Containers[i]
		t := c.tallies[to.ID]
		if t == nil {
			continue
		}
		there[to.ID] = true
		if t.began.IsZero() {
			if t.began = c.since; to.StartedAt.After(t.began) && to.StartedAt.Before(t.first) {
				t.began = to.StartedAt
			}
		}
		to.Logged = &usage.Logged{Receive: t.requests[receive], Transmit: t.requests[transmit], Since: t.began}
	}
	for id, t := range c.tallies {
		if !there[id] && time.Since(t.last) > keepUnseen {
			delete(c.tallies, id)
		}
	}
	s.Log = &usage.LogState{
		Group: c.Group, Bound: c.bound, Logged: c.totals.logged, Lost: c.totals.lost, Overruns: c.totals.overruns,
		Ignored: c.totals.ignored, Unattributed: c.totals.unattributed[receive] + c.totals.unattributed[transmit],
	}
}
