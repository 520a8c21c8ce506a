// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"sync"
)

// Viewers stay for as long as they like, so they have seats of their own, beside the places of
// requests that end.
const (
	seatsMost    = 100
	seatsPerPeer = seatsMost * 3 / 4
)

var errSeats = errors.New("watch usage: too many viewers; close one, or try again later")

// seats are where viewers are. It is safe for concurrent use.
type seats struct {
	mu    sync.Mutex
	taken []*seat // the oldest first
}

// seat is that of one viewer.
type seat struct {
	peer func() peer // slow: it may ask the kernel
	cut  func()      // makes the viewer's connection fail
}

// take gives a viewer a seat. When all are taken, the newest viewer of the peer that has the most
// loses its own. Returns [errSeats] where that is the same peer, or it has all that one may have.
func (s *seats) take(wanted *seat) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.taken) >= seatsMost-seatsPerPeer { // nobody is identified before
		held := map[peer]int{}
		for _, t := range s.taken {
			held[t.peer()]++
		}
		own := held[wanted.peer()]
		if own >= seatsPerPeer || len(s.taken) >= seatsMost && !s.free(held, own) {
			return errSeats
		}
	}
	s.taken = append(s.taken, wanted)
	return nil
}

// free takes a seat from a peer that has more than own.
func (s *seats) free(held map[peer]int, own int) bool {
	var most peer
	for p, n := range held {
		if n > held[most] {
			most = p
		}
	}
	if held[most] <= own {
		return false
	}
	for i := len(s.taken) - 1; i >= 0; i-- {
		if s.taken[i].peer() == most {
			s.taken[i].cut()
			s.taken = append(s.taken[:i:i], s.taken[i+1:]...)
			return true
		}
	}
	return false
}

// leave gives a seat up, if it was not taken away.
func (s *seats) leave(left *seat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, t := range s.taken {
		if t == left {
			s.taken = append(s.taken[:i:i], s.taken[i+1:]...)
			return
		}
	}
}

// held returns how many are taken.
func (s *seats) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.taken)
}
