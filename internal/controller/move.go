// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nettally/nettally/internal/roster"
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
}

func newJobs() *jobs { return &jobs{more: make(chan struct{}, 1)} }

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

// work does the jobs, beside the roster's goroutine: attaching to tcx takes grace periods,
// and containers that start must not wait for them.
func (c *Controller) work(ctx context.Context, hand func(func() []roster.Hint) bool) {
	m := c.mover()
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
		next.result = m.do(next)
		if !hand(func() []roster.Hint { return c.moved(next) }) {
			return
		}
	}
}

// mover takes programs from one hook to another. It is safe for use beside the roster's
// goroutine.
type mover struct {
	hooks    hooks
	accounts *usage.Accounts
}

func (c *Controller) mover() mover { return mover{c.Hooks, c.Accounts} }

func (m mover) do(j job) error {
	switch {
	case j.gone:
		return m.hooks.DetachTCX(j.index)
	case j.raise:
		return m.hooks.Raise(j.index)
	case j.off:
		return m.remove(j.index)
	case j.inside:
		return m.takeOff(j.index)
	case j.to == HookTCX:
		return m.toTCX(j)
	}
	return m.toClsact(j)
}

// remove ends the counting of an interface that lives on.
func (m mover) remove(index int) error {
	own := m.accounts.QdiscOwned(usage.OnHost(index))
	if err := errors.Join(m.hooks.Detach(index, own), m.hooks.DetachTCX(index)); err != nil {
		return err
	}
	return m.accounts.Close(usage.OnHost(index))
}

// takeOff takes our programs off both hooks, and leaves the slot as it is.
func (m mover) takeOff(index int) error {
	err := errors.Join(m.hooks.Detach(index, m.accounts.QdiscOwned(usage.OnHost(index))), m.hooks.DetachTCX(index))
	if err != nil {
		return err
	}
	return m.accounts.Quiesce()
}

// detachClsact takes our filters off, and our qdisc with them.
func (m mover) detachClsact(ifindex int) error {
	if err := m.hooks.Detach(ifindex, m.accounts.QdiscOwned(usage.OnHost(ifindex))); err != nil {
		return err
	}
	return m.accounts.DisownQdisc(usage.OnHost(ifindex))
}

func (m mover) attachClsact(ifindex int, slot uint16) error {
	return m.owning(usage.OnHost(ifindex), func(making func() error) (bool, error) {
		return m.hooks.Attach(ifindex, slot, making)
	})
}

// owning attaches. That the qdisc is ours is noted before it is made, so that a process
// that comes after a kill removes it.
func (m mover) owning(target usage.Target, attach func(making func() error) (createdQdisc bool, err error)) error {
	noted := false
	created, err := attach(func() error {
		noted = true
		return m.accounts.OwnQdisc(target)
	})
	if noted && !created {
		err = errors.Join(err, m.accounts.DisownQdisc(target))
	}
	return err
}

// toTCX leaves each packet counted exactly once: while both hooks are on, the tcx program
// marks what it counts and the clsact program leaves that alone.
func (m mover) toTCX(j job) error {
	if j.from == HookTCX {
		return m.hooks.AttachTCX(j.index)
	}
	if err := errors.Join(m.accounts.Bind(usage.OnHost(j.index)), m.accounts.Handover(usage.OnHost(j.index), true)); err != nil {
		return err
	}
	if err := m.hooks.AttachTCX(j.index); err != nil {
		return errors.Join(err, m.accounts.Handover(usage.OnHost(j.index), false))
	}
	if j.from == HookClsact {
		if err := errors.Join(m.accounts.Quiesce(), m.detachClsact(j.index)); err != nil {
			return err // the hand-over stays on, and so the counts right
		}
	}
	return m.endHandover(j.index)
}

// toClsact is the way back: tcx runs first in the kernel, so the same rule serves.
func (m mover) toClsact(j job) error {
	if err := m.accounts.Handover(usage.OnHost(j.index), true); err != nil {
		return err
	}
	if err := m.attachClsact(j.index, j.slot); err != nil {
		return errors.Join(err, m.accounts.Handover(usage.OnHost(j.index), false))
	}
	if err := errors.Join(m.accounts.Quiesce(), m.hooks.DetachTCX(j.index)); err != nil {
		return err
	}
	return m.endHandover(j.index)
}

func (m mover) endHandover(index int) error {
	if err := m.accounts.Quiesce(); err != nil {
		return err
	}
	return m.accounts.Handover(usage.OnHost(index), false)
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
func (c *Controller) moved(j job) (hints []roster.Hint) {
	v := c.veths[j.index]
	if j.gone || v == nil {
		if j.result != nil && !errors.Is(j.result, tcctl.ErrGone) {
			c.Log.Warn("could not clean up after an interface that is gone", "ifindex", j.index, "err", j.result)
		}
		return nil
	}
	v.moving = false
	switch {
	case j.off && j.result == nil:
		delete(c.veths, j.index)
		return nil
	case j.result != nil:
		c.notMoved(v, j)
		return nil
	case j.inside:
		return c.goInside(v)
	case !j.raise:
		c.counting(v, j.to, j.from != "")
	}
	if v.mending || v.shadowed {
		c.mended(v)
	}
	hints = v.wantsOwner()
	c.place(v.Index) // elsewhere, if the settings have changed meanwhile
	return hints
}
