// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// queue takes places in a bubble of synctest, whose clock it uses.
type queue struct {
	t *testing.T
	*places
	cut []string
}

func newQueue(t *testing.T) *queue {
	return &queue{t: t, places: &places{most: 4, perPeer: 2, wait: 5 * time.Second, slow: 10 * time.Second, now: time.Now}}
}

func (q *queue) place(who peer) *place {
	p := &place{peer: func() peer { return who }}
	p.cut = func() {
		q.cut = append(q.cut, string(who))
		go q.leave(p) // as the request does, whose write fails
	}
	return p
}

// takes takes a place for a peer that must get one after so long.
func (q *queue) takes(who peer, after time.Duration) *place {
	q.t.Helper()
	began, p := time.Now(), q.place(who)
	if err := q.take(q.t.Context(), p); err != nil || time.Since(began) != after {
		q.t.Errorf("%s after %v: %v, want a place after %v", who, time.Since(began), err, after)
	}
	return p
}

// waitsInVain expects that a peer gets no place.
func (q *queue) waitsInVain(who peer) {
	q.t.Helper()
	began := time.Now()
	if err := q.take(q.t.Context(), q.place(who)); !errors.Is(err, errBusy) || time.Since(began) != q.wait {
		q.t.Errorf("%s after %v: %v, want %v", who, time.Since(began), err, errBusy)
	}
}

func TestPlaces(t *testing.T) {
	tests := map[string]func(q *queue){
		"one peer has half of them": func(q *queue) {
			q.takes("a", 0)
			q.takes("a", 0)
			q.waitsInVain("a")
			q.takes("b", 0)
			q.takes("c", 0)
			q.waitsInVain("d")
		},
		"one that is given up is taken": func(q *queue) {
			q.takes("a", 0)
			held := q.takes("a", 0)
			time.AfterFunc(2*time.Second, func() { q.leave(held) })
			q.takes("a", 2*time.Second)
		},
		"a slow reader is cut for another": func(q *queue) {
			for _, who := range []peer{"a", "a", "b", "c"} {
				q.answers(q.takes(who, 0))
				time.Sleep(time.Second)
			}
			time.Sleep(3 * time.Second) // the first has been answered for 7 s
			q.takes("root", 3*time.Second)
			if len(q.cut) != 1 || q.cut[0] != "a" {
				q.t.Errorf("cut %q", q.cut)
			}
		},
		"but not while nobody waits": func(q *queue) {
			q.answers(q.takes("a", 0))
			time.Sleep(time.Minute)
			q.takes("b", 0)
			if len(q.cut) != 0 {
				q.t.Errorf("cut %q", q.cut)
			}
		},
		"who has half cuts its own only": func(q *queue) {
			q.answers(q.takes("b", 0))
			time.Sleep(time.Second)
			q.answers(q.takes("a", 0))
			q.answers(q.takes("a", 0))
			time.Sleep(time.Minute)
			q.takes("a", 0)
			if len(q.cut) != 1 || q.cut[0] != "a" {
				q.t.Errorf("cut %q", q.cut)
			}
		},
		"what computes is not cut": func(q *queue) {
			q.takes("a", 0)
			q.takes("a", 0)
			time.Sleep(time.Minute)
			q.waitsInVain("a")
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(newQueue(t)) })
		})
	}
}

// A client that goes away waits no longer.
func TestPlacesContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.takes("a", 0)
		q.takes("a", 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.take(ctx, q.place("a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// Nobody is identified while half of the places are free.
func TestPlacesIdentifyLate(t *testing.T) {
	q := newQueue(t)
	for range 2 {
		p := &place{peer: func() peer { panic("identified") }}
		if err := q.take(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}
