// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
)

// Mode says on which hook interfaces are counted.
type Mode string

// The modes.
const (
	// ModeAuto is clsact, except for tcx where clsact would be in somebody's way or can't
	// see everything: beside an `ingress` qdisc, beside others' tcx programs, where
	// somebody ends the chain before us, with the CNI plugin `bandwidth`, and where a
	// container is at work when we come.
	ModeAuto   Mode = "auto"
	ModeClsact Mode = HookClsact
	ModeTCX    Mode = HookTCX
)

// cniPatience is how long the plugins of a container network may take. It matters only
// where `bandwidth` is one of them and there is no tcx.
const cniPatience = 10 * time.Second

// wanted says on which hook an interface is to be counted.
func (c *Controller) wanted(v *veth) string {
	mode := c.Settings().Mode
	if c.TCX && (mode == ModeTCX || mode == ModeAuto && (v.needsTCX || v.busy || v.bandwidth)) {
		return HookTCX
	}
	return HookClsact
}

func (c *Controller) tcxAllowed() bool { return c.TCX && c.Settings().Mode != ModeClsact }

// onlyTCX says that a clsact qdisc would harm: the bandwidth plugin wants to add an
// `ingress` qdisc, which excludes it, and its pod would not start; or packets would be
// dropped. All others are counted on clsact until it is their turn.
func (c *Controller) onlyTCX(v *veth) bool {
	return c.wanted(v) == HookTCX && (v.bandwidth || v.needsTCX || v.busy)
}

// waitsForCNI leaves an interface to the bandwidth plugin where we can't use tcx. What
// the kernel counts meanwhile is seeded.
func (c *Controller) waitsForCNI(v *veth) bool {
	return c.bandwidth && !c.tcxAllowed() && time.Since(v.since) < cniPatience
}

// job is something that takes a grace period of the kernel, or two.
type job struct {
	index  int
	slot   uint16
	from   string // the hook it is on, "" for none
	to     string
	raise  bool // to the head of the hook it is on
	off    bool // it is not to be counted any more
	gone   bool // the interface is: only pins are left
	inside bool // off our hooks, to be counted at the other end
	result error
}

// jobs are done one at a time, and are no more than there are interfaces.
type jobs struct {
	mu      sync.Mutex
	waiting []job
	more    chan struct{}
	done    chan job
}

func newJobs() *jobs { return &jobs{more: make(chan struct{}, 1), done: make(chan job)} }

func (j *jobs) put(work job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = append(j.waiting, work)
	select {
	case j.more <- struct{}{}:
	default:
	}
}

func (j *jobs) take() (work job, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) == 0 {
		return job{}, false
	}
	work, j.waiting = j.waiting[0], j.waiting[1:]
	return work, true
}

// move has an interface moved to another hook.
func (c *Controller) move(v *veth, to string) {
	v.moving = true
	c.jobs.put(job{index: v.Index, slot: v.slot, from: v.hook, to: to})
}

// work does the jobs, besides the controller's own goroutine: attaching to tcx takes
// grace periods, and containers that start must not wait for them.
func (c *Controller) work(ctx context.Context) {
	for {
		next, ok := c.jobs.take()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-c.jobs.more:
			}
			continue
		}
		next.result = c.do(next)
		select {
		case <-ctx.Done():
			return
		case c.jobs.done <- next:
		}
	}
}

func (c *Controller) do(j job) error {
	switch {
	case j.gone:
		return c.Hooks.DetachTCX(j.index)
	case j.raise:
		return c.Hooks.Raise(j.index)
	case j.off:
		return c.remove(j.index)
	case j.inside:
		return c.takeOff(j.index)
	case j.to == HookTCX:
		return c.toTCX(j)
	}
	return c.toClsact(j)
}

// toTCX leaves each packet counted exactly once: while both hooks are on, the tcx program
// marks what it counts and the clsact program leaves that alone.
func (c *Controller) toTCX(j job) error {
	if j.from == HookTCX {
		return c.Hooks.AttachTCX(j.index)
	}
	if err := errors.Join(c.Accounts.Bind(usage.OnHost(j.index)), c.Accounts.Handover(usage.OnHost(j.index), true)); err != nil {
		return err
	}
	if err := c.Hooks.AttachTCX(j.index); err != nil {
		return errors.Join(err, c.Accounts.Handover(usage.OnHost(j.index), false))
	}
	if j.from == HookClsact {
		if err := errors.Join(c.Accounts.Quiesce(), c.detachClsact(j.index)); err != nil {
			return err // the hand-over stays on, and so the counts right
		}
	}
	return c.endHandover(j.index)
}

// toClsact is the way back: tcx runs first in the kernel, so the same rule serves.
func (c *Controller) toClsact(j job) error {
	if err := c.Accounts.Handover(usage.OnHost(j.index), true); err != nil {
		return err
	}
	created, err := c.Hooks.Attach(j.index, j.slot)
	if err != nil {
		return errors.Join(err, c.Accounts.Handover(usage.OnHost(j.index), false))
	}
	if created {
		if err := c.Accounts.OwnQdisc(usage.OnHost(j.index)); err != nil {
			return err
		}
	}
	if err := errors.Join(c.Accounts.Quiesce(), c.Hooks.DetachTCX(j.index)); err != nil {
		return err
	}
	return c.endHandover(j.index)
}

func (c *Controller) endHandover(index int) error {
	if err := c.Accounts.Quiesce(); err != nil {
		return err
	}
	return c.Accounts.Handover(usage.OnHost(index), false)
}

// notMoved leaves an interface where it is; the next reconcile tries again.
func (c *Controller) notMoved(v *veth, j job) {
	if j.off {
		c.Log.Warn("detach excluded interface", "interface", v.Name, "err", j.result)
		return
	}
	if j.from == "" && !j.raise && !j.inside {
		v.busy = false // better that than not counted
		c.failed(v, errors.Join(j.result, c.Accounts.Close(usage.OnHost(v.Index))))
		return
	}
	c.Log.Warn("move interface to another hook", "interface", v.Name, "from", v.hook, "to", j.to, "err", j.result)
}

// moved takes in what became of a job.
func (c *Controller) moved(j job) {
	v := c.veths[j.index]
	if j.gone || v == nil {
		if j.result != nil && !errors.Is(j.result, tcctl.ErrGone) {
			c.Log.Warn("clean up after an interface that is gone", "ifindex", j.index, "err", j.result)
		}
		return
	}
	v.moving = false
	if j.off && j.result == nil {
		delete(c.veths, j.index)
		return
	}
	if j.result != nil {
		c.notMoved(v, j)
		return
	}
	if j.inside {
		c.goInside(v)
		return
	}
	if !j.raise {
		c.counting(v, j.to, j.from != "")
	}
	if v.mending || v.shadowed {
		c.mended(v)
	}
	if !v.owned && v.NetNSID >= 0 {
		c.findOwner(v)
	}
	c.place(v.Index) // elsewhere, if the settings have changed meanwhile
}
