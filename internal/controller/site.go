// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"

	"github.com/nettally/nettally/watcher"
)

// site is where our programs are put to count an attachment.
type site interface {
	// attach has the programs count on a slot, in place of our own where they are on already.
	// making is called before a qdisc is made for that; it may be nil.
	attach(slot uint16, making func() error) (madeQdisc bool, err error)
	// detach takes our programs off, and our own empty qdisc. What is missing is no error.
	detach(ownQdisc bool) error
	// counts says whether our programs are there and count on a slot.
	counts(slot uint16) (bool, error)
	// counters returns what the kernel has counted in the same place. asked is called when the
	// kernel has answered; it may be nil.
	counters(asked func()) (watcher.LinkCounters, error)
}

// witnessed is an interface with counters of the kernel's.
type witnessed struct {
	ifindex int
	read    func(ifindex int, asked func()) (watcher.LinkCounters, error)
}

func (w witnessed) counters(asked func()) (watcher.LinkCounters, error) {
	return w.read(w.ifindex, asked)
}

// clsactSite is the clsact qdisc of an interface, in the host's namespace or another.
type clsactSite struct {
	witnessed
	hooks clsactHooks
}

func (s clsactSite) attach(slot uint16, making func() error) (bool, error) {
	return s.hooks.Attach(s.ifindex, slot, making)
}

func (s clsactSite) detach(ownQdisc bool) error { return s.hooks.Detach(s.ifindex, ownQdisc) }

func (s clsactSite) counts(slot uint16) (bool, error) {
	on, ok, err := s.hooks.Current(s.ifindex)
	return ok && on == slot, err
}

// tcxSite is the tcx hooks of a host veth. The programs there find the slot by the interface,
// as it was bound.
type tcxSite struct {
	witnessed
	hooks hooks
}

func (s tcxSite) attach(uint16, func() error) (bool, error) {
	return false, s.hooks.AttachTCX(s.ifindex)
}

func (s tcxSite) detach(bool) error { return s.hooks.DetachTCX(s.ifindex) }

func (s tcxSite) counts(uint16) (bool, error) {
	attached, _, err := s.hooks.TCX(s.ifindex)
	return attached, err
}

// hostSite is one of the two sites of a host veth.
func hostSite(on hooks, hook string, w witnessed) site {
	if hook == HookTCX {
		return tcxSite{w, on}
	}
	return clsactSite{w, on}
}

// visit is the network namespace of a container that is open for a while.
type visit struct {
	*watcher.Namespace
	clsact clsactHooks
}

// visiting opens what a visit needs. The namespace stays open when it is left.
func visiting(on hooks, ns *watcher.Namespace) (visit, error) {
	clsact, err := on.Inside(ns.FD())
	return visit{ns, clsact}, err
}

func (v visit) site(ifindex int) site {
	return clsactSite{witnessed{ifindex, v.Counters}, v.clsact}
}

// errNoWitness says that the kernel counts nothing in a place.
var errNoWitness = errors.New("the kernel has no counters of its own here")

// cgroupSite is a cgroup. The programs there find the slot by the cgroup, as it was bound.
type cgroupSite struct {
	cgroups cgroups
	dir     string
	id      uint64
}

func (s cgroupSite) attach(uint16, func() error) (bool, error) {
	return false, s.cgroups.Attach(s.dir, s.id)
}

func (s cgroupSite) detach(bool) error           { return s.cgroups.Detach(s.id) }
func (s cgroupSite) counts(uint16) (bool, error) { return s.cgroups.Attached(s.id) }

func (s cgroupSite) counters(func()) (watcher.LinkCounters, error) {
	return watcher.LinkCounters{}, errNoWitness
}
