// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// Requests that read a snapshot or the history cost CPU time and memory for as long as they
// last, so each listener answers a few at a time. One peer gets half of the places, so that
// the others are left to everybody else.
const (
	placesMost    = 8
	placesPerPeer = placesMost / 2
	// placeWait is half of the time that Prometheus waits for a scrape by default. Prometheus
	// does not try again before the next scrape, so waiting serves it better than an error.
	placeWait = 5 * time.Second
	// slowAnswer is the whole of that time: an answer that takes longer is hardly of use.
	slowAnswer = 10 * time.Second
)

var errBusy = errors.New("answer: too many requests at a time; try again in some seconds")

// places are where requests are answered. It is safe for concurrent use.
type places struct {
	most, perPeer int
	wait, slow    time.Duration
	now           func() time.Time

	mu    sync.Mutex
	taken map[*place]struct{}
	freed chan struct{} // closed when a place is given up
}

// place is where one request is answered.
type place struct {
	peer func() peer // slow: it may ask the kernel
	cut  func()      // makes the client's connection fail

	answering time.Time // guarded by places.mu; zero before the answer begins, and once cut
}

// take waits for a place. Returns [errBusy] when that takes too long, or the context's
// error. A request that waits ends those that have been answered for too long: readers that
// take their time keep nobody out.
func (p *places) take(ctx context.Context, wanted *place) error {
	patience := time.NewTimer(p.wait)
	defer patience.Stop()
	for {
		freed, again := p.try(wanted)
		if freed == nil {
			return nil
		}
		later := time.NewTimer(again)
		select {
		case <-freed:
		case <-later.C:
		case <-patience.C:
			later.Stop()
			return errBusy
		case <-ctx.Done():
			later.Stop()
			return ctx.Err()
		}
		later.Stop()
	}
}

// try takes a place, and else returns what to wait for and when to try again without it.
// Nobody is identified while half of the places are free.
func (p *places) try(wanted *place) (freed <-chan struct{}, again time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken == nil {
		p.taken, p.freed = map[*place]struct{}{}, make(chan struct{})
	}
	own := 0
	if len(p.taken) >= p.perPeer {
		for t := range p.taken {
			if t.peer() == wanted.peer() {
				own++
			}
		}
	}
	if len(p.taken) < p.most && own < p.perPeer {
		p.taken[wanted] = struct{}{}
		return nil, 0
	}
	return p.freed, p.cutSlow(wanted, own >= p.perPeer)
}

// cutSlow ends the request that has been answered for longest, if that is too long, and
// returns when to look again. A peer that has all it may have ends its own only.
func (p *places) cutSlow(wanted *place, ownOnly bool) time.Duration {
	var slowest *place
	for t := range p.taken {
		if t.answering.IsZero() || ownOnly && t.peer() != wanted.peer() {
			continue
		}
		if slowest == nil || t.answering.Before(slowest.answering) {
			slowest = t
		}
	}
	if slowest == nil {
		return p.slow
	}
	if left := p.slow - p.now().Sub(slowest.answering); left > 0 {
		return left
	}
	slowest.cut()
	slowest.answering = time.Time{}
	return p.slow
}

// answers says that a request begins to be answered.
func (p *places) answers(t *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.answering = p.now()
}

// leave gives a place up.
func (p *places) leave(t *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, t)
	close(p.freed)
	p.freed = make(chan struct{})
}

// answerWriter writes the answer of a request in a place.
type answerWriter struct {
	http.ResponseWriter
	begin func() // when the first byte is there
}

// Write ends the request when the client has gone or was cut off: nobody is left to answer,
// and a handler that goes on writing would log an error for each metric.
func (w *answerWriter) Write(b []byte) (int, error) {
	if w.begin != nil {
		w.begin()
		w.begin = nil
	}
	n, err := w.ResponseWriter.Write(b)
	if err != nil && !errors.Is(err, http.ErrBodyNotAllowed) { // the latter is the answer to HEAD
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// Unwrap is for [http.ResponseController].
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
