// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

	"github.com/nettally/nettally/tcctl"
)

// backoff is when something may be tried again.
type backoff struct {
	wait time.Duration
	next time.Time
}

const (
	firstMend = time.Second
	lastMend  = time.Minute
)

func (b *backoff) due() bool { return !time.Now().Before(b.next) }

func (b *backoff) tried() {
	b.next = time.Now().Add(b.wait)
	b.wait = min(max(2*b.wait, firstMend), lastMend)
}

// forget begins anew once all has been well for long.
func (b *backoff) forget() {
	if time.Since(b.next) > lastMend {
		*b = backoff{}
	}
}

// mendUnseen puts our programs back on a host veth where they are gone, or where they see the
// packets.
func (s *veths) mendUnseen(v *veth) {
	intact, err := s.at(v).counts(v.slot)
	if err != nil {
		s.Log.Warn("look at our programs", "interface", v.name, "err", err)
		return
	}
	due := v.mend.due()
	if intact || !due || v.hook == HookTCX { // else it is mended at once
		s.shadow(&v.attachment)
	}
	if !due {
		return
	}
	v.mend.tried()
	switch {
	case !intact:
		s.putBackOn(v)
	case v.hook == HookTCX:
		s.raise(v)
	case s.tcxAllowed():
		// Whoever ends the chain before us does so after tcx.
		s.toHead(v)
	}
}

func (s *veths) putBackOn(v *veth) {
	if v.hook == HookTCX {
		s.Log.Warn("our programs were removed: putting them back", "interface", v.name, "hook", v.hook)
		s.do(v, mending, job{kind: jobMove, to: HookTCX})
		return
	}
	err := s.putBack(&v.attachment, s.at(v), false)
	if err == nil || errors.Is(err, tcctl.ErrGone) {
		return
	}
	s.shadow(&v.attachment)
	if s.tcxAllowed() {
		s.Log.Warn("put our filters back; going to tcx instead", "interface", v.name, "err", err)
		s.toHead(v)
		return
	}
	s.Log.Error("put our filters back; trying again", "interface", v.name, "err", err)
}

func (s *veths) toHead(v *veth) {
	v.why = inTheWay
	s.move(v, HookTCX)
}

func (s *veths) raise(v *veth) {
	_, first, err := s.Hooks.TCX(v.Ifindex)
	if err == nil && first { // nobody is before us, so they bypass the hook
		s.keepUp(&v.attachment, s.at(v))
	}
	if err != nil || first {
		return
	}
	s.do(v, mending, job{kind: jobRaise, past: true})
}
