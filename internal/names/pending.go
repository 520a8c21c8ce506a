// SPDX-License-Identifier: Apache-2.0

package names

import (
	"os"
	"strconv"
	"syscall"
	"time"
)

// What a source has to ask for, and what it was told. The resolver's mu guards
// all of it.

// worth says whether a container is worth asking for: the source has not said
// often enough that it does not know it, and nobody else is believed first.
func (s *source) worth(e *entry) bool {
	return e.replies[s.rank].misses < missesMax && e.before(s.rank) == nil
}

// ask makes run ask for an id if it is worth it. The caller holds mu.
func (s *source) ask(id string, e *entry) {
	if !s.worth(e) {
		return
	}
	if s.pending != nil {
		s.pending[id] = struct{}{}
	}
	select {
	case s.wake <- struct{}{}:
	default: // a token is waiting already
	}
}

// open makes every wanted container pending that is worth it. It returns false,
// and nothing is pending from then on, if none is.
func (s *source) open() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.pending = nil
	clear(s.missed)
	for id, e := range s.r.wanted {
		if !s.worth(e) {
			continue
		}
		if s.pending == nil {
			s.pending = make(map[string]struct{})
		}
		s.pending[id] = struct{}{}
	}
	return s.pending != nil
}

// renamed has a container asked for if it is wanted. The id is as the runtime knows it.
func (s *source) renamed(id string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.user != "" {
		id = s.user + "~" + id
	}
	if e, ok := s.r.wanted[id]; ok {
		s.ask(id, e)
	}
}

// askMissed has the containers asked for again for which it is time.
func (s *source) askMissed() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	now := time.Now()
	for id, at := range s.missed {
		if at.After(now) {
			continue
		}
		delete(s.missed, id)
		if e, ok := s.r.wanted[id]; ok {
			s.ask(id, e)
		}
	}
}

// nextMissed returns how long it is until [source.askMissed] has something to do.
func (s *source) nextMissed() time.Duration {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	next := time.Now().Add(s.r.refreshEvery) // everything is asked for by then
	for _, at := range s.missed {
		if at.Before(next) {
			next = at
		}
	}
	return time.Until(next)
}

// take removes at most so many ids from those to ask for.
func (s *source) take(most int) []string {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	var ids []string
	for id := range s.pending {
		if len(ids) == most {
			break
		}
		delete(s.pending, id)
		if user, _ := userAndID(id); user == s.user {
			ids = append(ids, id)
		} else if e, ok := s.r.wanted[id]; ok {
			e.replies[s.rank].misses = missesMax
		}
	}
	return ids
}

// serves notes whose containers are asked for at a socket.
func (s *source) serves(path string) {
	user := ""
	if info, err := os.Stat(path); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			user = strconv.FormatUint(uint64(st.Uid), 10)
		}
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.user = user
}

// store keeps the answer for the ids that were asked for.
func (s *source) store(ids []string, told map[string]Meta) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for _, id := range ids {
		e, ok := s.r.wanted[id]
		if !ok {
			continue // forgotten meanwhile
		}
		a := &e.replies[s.rank]
		meta, ok := told[id]
		if !ok {
			if a.misses < len(missedAgain) {
				s.missed[id] = time.Now().Add(missedAgain[a.misses])
			}
			a.misses++
			continue
		}
		if a.meta != nil {
			meta = merge(*a.meta, meta)
		}
		*a = reply{meta: &meta}
	}
}

// giveUp stops asking for an id until it is wanted again.
func (s *source) giveUp(id string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if e, ok := s.r.wanted[id]; ok {
		e.replies[s.rank].misses = missesMax
	}
}

// merge returns new with what it should keep of old. Docker takes the name away
// before it removes a container, and shows an image by its hash once the tag
// has moved to another one.
func merge(old, new Meta) Meta {
	if new.Name == "" {
		new.Name = old.Name
	}
	if old.Image != "" {
		new.Image = old.Image
	}
	return new
}
