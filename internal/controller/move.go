// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"slices"
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
	// somebody ends the chain before us, with the CNI plugin `bandwidth`, on Calico's
	// interfaces, and where a container is at work when we come. An interface that has been
	// still for a while moves there, too ([roomRule]).
	ModeAuto   Mode = "auto"
	ModeClsact Mode = HookClsact
	ModeTCX    Mode = HookTCX
)

// cniPatience is how long the plugins of a container network may take. It matters only
// where `bandwidth` is one of them and there is no tcx.
const cniPatience = 10 * time.Second

// job is something that takes a grace period of the kernel, or two.
type job struct {
	kind   jobKind
	index  int
	slot   uint16
	from   string // the hook it is on, "" for none
	to     string
	of     *veth // nil for cleaning up
	past   bool  // packets passed our programs where these were
	result error
}

type jobKind int

const (
	jobMove    jobKind = iota // to another hook
	jobRaise                  // to the head of the hook it is on
	jobTakeOff                // it is not to be counted any more
	jobInside                 // off our hooks, to be counted at the other end
	jobLetGo                  // it leads nowhere
	jobCleanUp                // the interface is gone: only pins are left
)

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

// cancel drops what waits for an interface that is gone: another may have its number next.
func (j *jobs) cancel(index int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = slices.DeleteFunc(j.waiting, func(work job) bool { return work.index == index })
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

// do has a job done, which the attachment is in a state of its own for.
func (s *veths) do(v *veth, meanwhile state, j job) {
	j.index, j.slot, j.from, j.of, v.back = v.Ifindex, v.slot, v.hook, v, v.state
	s.become(&v.attachment, meanwhile)
	s.jobs.put(j)
}

// move has an interface moved to another hook.
func (s *veths) move(v *veth, to string) {
	switch v.state {
	case waiting:
		s.do(v, opening, job{kind: jobMove, to: to})
	case shadowed:
		s.do(v, mending, job{kind: jobMove, to: to, past: true})
	default:
		s.do(v, moving, job{kind: jobMove, to: to})
	}
}

// work does the jobs, beside the roster's goroutine: attaching to tcx takes grace periods,
// and containers that start must not wait for them.
func (c *Controller) work(ctx context.Context, hand handing) {
	jobs, m := c.veths.jobs, c.veths.mover()
	for {
		next, ok := jobs.take()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-jobs.more:
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

func (k keeper) mover() mover { return mover{k.Hooks, k.Accounts} }

// on returns one of the two sites of a host veth, without the kernel's counters.
func (m mover) on(hook string, index int) site {
	return hostSite(m.hooks, hook, witnessed{ifindex: index})
}

func (m mover) do(j job) error {
	switch j.kind {
	case jobCleanUp:
		return m.hooks.DetachTCX(j.index)
	case jobRaise:
		return m.hooks.Raise(j.index)
	case jobTakeOff:
		return m.remove(j.index)
	case jobLetGo:
		return m.forget(j.index)
	case jobInside:
		return errors.Join(m.offBoth(j.index), m.accounts.Quiesce())
	}
	return m.move(j)
}

// remove ends the counting of an interface that lives on.
func (m mover) remove(index int) error {
	if err := m.offBoth(index); err != nil {
		return err
	}
	return m.accounts.Close(usage.OnHost(index))
}

// forget is remove for a veth that leads nowhere.
func (m mover) forget(index int) error {
	if err := m.offBoth(index); err != nil {
		return err
	}
	return m.accounts.Forget(usage.OnHost(index))
}

// offBoth takes our programs off both hooks, and leaves the slot as it is.
func (m mover) offBoth(index int) error {
	own := m.accounts.QdiscOwned(usage.OnHost(index))
	return errors.Join(m.on(HookClsact, index).detach(own), m.on(HookTCX, index).detach(false))
}

// offClsact takes our filters off, and our qdisc with them.
func (m mover) offClsact(index int) error {
	if err := m.on(HookClsact, index).detach(m.accounts.QdiscOwned(usage.OnHost(index))); err != nil {
		return err
	}
	return m.accounts.DisownQdisc(usage.OnHost(index))
}

// move takes an interface from one hook to the other, or puts our programs in place of those
// on the same. Each packet is counted exactly once: while both hooks are on, the tcx program,
// which the kernel runs first, marks what it counts and the clsact program leaves that alone.
// Where a step fails the hand-over stays on, and so the counts right; the next move ends it.
func (m mover) move(j job) error {
	target, to := usage.OnHost(j.index), m.on(j.to, j.index)
	begun := m.accounts.InHandover(target)
	if j.to == HookTCX && j.from != HookTCX {
		if err := m.accounts.Bind(target); err != nil {
			return err
		}
	}
	if j.from == "" || j.from == j.to && !begun {
		return put(m.accounts, target, to, j.slot)
	}
	if err := m.accounts.Handover(target, true); err != nil {
		return err
	}
	if err := put(m.accounts, target, to, j.slot); err != nil {
		if !begun {
			err = errors.Join(err, m.accounts.Handover(target, false))
		}
		return err
	}
	if err := errors.Join(m.accounts.Quiesce(), m.offOther(j)); err != nil {
		return err
	}
	return m.endHandover(j.index)
}

// offOther takes our programs off the hook that an interface is not moved to.
func (m mover) offOther(j job) error {
	if j.to == HookTCX {
		return m.offClsact(j.index)
	}
	return m.hooks.DetachTCX(j.index)
}

func (m mover) endHandover(index int) error {
	if err := m.accounts.Quiesce(); err != nil {
		return err
	}
	return m.accounts.Handover(usage.OnHost(index), false)
}

// finish takes in what became of a job. It returns nil where nothing more is to be done.
func (s *veths) finish(j job) *veth {
	v := s.known[j.index]
	switch {
	case j.kind == jobCleanUp:
		s.cleanedUp(j)
		return nil
	case v == nil:
		return nil
	case v != j.of:
		// It is gone, and the job was done to another one that has its number: that begins
		// anew with the next reconcile.
		delete(s.known, j.index)
		s.jobs.put(job{kind: jobTakeOff, index: j.index})
		return nil
	case j.result != nil:
		s.notDone(v, j)
		return nil
	case j.kind == jobTakeOff:
		delete(s.known, j.index)
		return nil
	case j.kind == jobLetGo:
		return s.isAside(v)
	case j.kind == jobInside:
		s.become(&v.attachment, elsewhere)
		return v
	}
	s.moved(v, j)
	return v
}

func (s *veths) moved(v *veth, j job) {
	if j.kind == jobMove {
		v.hook, v.failure = j.to, ""
	}
	at := s.at(v)
	switch v.state {
	case opening:
		s.began(&v.attachment, at, v.hook, &gap{kind: beforeUs})
	case mending:
		s.mended(&v.attachment, at, j.past)
	default:
		s.began(&v.attachment, at, v.hook, nil)
	}
	s.Log.Debug("counting", "interface", v.name, "ifindex", v.Ifindex, "hook", v.hook)
}

// notDone leaves an interface where it is; the next reconcile tries again.
func (s *veths) notDone(v *veth, j job) {
	s.become(&v.attachment, v.back)
	switch {
	case j.kind == jobTakeOff:
		s.Log.Warn("detach excluded interface", "interface", v.name, "err", j.result)
	case j.kind == jobLetGo:
		v.since = time.Now()
		s.Log.Warn("could not detach from a veth that leads nowhere; trying again", "interface", v.name, "err", j.result)
	case v.back == waiting:
		if v.why == busyNow {
			v.why = noReason // better that than not counted
		}
		s.notAttached(v, errors.Join(j.result, s.Accounts.Close(v.Target)))
	default:
		v.noRoom()
		s.Log.Warn("move interface to another hook", "interface", v.name, "from", v.hook, "to", j.to, "err", j.result)
	}
}

func (s *veths) cleanedUp(j job) {
	if j.result == nil || errors.Is(j.result, tcctl.ErrGone) {
		return
	}
	s.Log.Warn("could not clean up after an interface that is gone; trying again", "ifindex", j.index, "err", j.result)
	s.unclean[j.index] = true
}

// moved follows up on what became of a job.
func (c *Controller) moved(j job) (hints []roster.Hint) {
	v := c.veths.finish(j)
	c.gauge()
	if v == nil {
		return nil
	}
	if v.state == elsewhere {
		return c.goInside(v)
	}
	hints = c.veths.wantsOwner(v)
	c.veths.place(v.Ifindex) // elsewhere, if the settings have changed meanwhile
	return hints
}
