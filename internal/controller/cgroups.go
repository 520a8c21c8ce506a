// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"

	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
)

// cgroups puts the programs for cgroups on them and takes them off: *Cgroups.
type cgroups interface {
	ID(dir string) (uint64, error)
	Attach(dir string, id uint64) error
	Replace(id uint64) error
	Attached(id uint64) (bool, error)
	Detach(id uint64) error
	IDs() ([]uint64, error)
}

// CgroupMode says which containers are counted by their cgroups.
type CgroupMode string

// The modes.
const (
	// CgroupAuto is those that no interface tells apart: in the host's network, in a namespace
	// with others, and without an interface of their own. A container that starts is, too,
	// until it is known which it is: the first packets are not missed.
	CgroupAuto CgroupMode = "auto"
	CgroupAll  CgroupMode = "all"
	CgroupOff  CgroupMode = "off"
)

func ofCgroup(id uint64) usage.Target { return usage.Target{Cgroup: id} }

// wantsCgroup says whether a container is to be counted by its cgroup.
func (c *Controller) wantsCgroup(known *member) bool {
	switch c.Settings().Cgroup {
	case CgroupAll:
		return true
	case CgroupOff:
		return false
	}
	return known.Reason != usage.Accounted || known.Shared
}

// placeCgroup begins to count a container's cgroup where that is wanted, and ends it where
// it is not.
func (c *Controller) placeCgroup(known *member) {
	if c.Cgroups == nil {
		return
	}
	wanted := c.wantsCgroup(known)
	if wanted && known.cgroup == 0 && !known.Ended {
		c.countCgroup(known)
	}
	if !wanted {
		c.endCgroup(known)
	}
	if wanted && known.cgroup != 0 && known.Reason != usage.Starting {
		if err := c.Accounts.Tell(ofCgroup(known.cgroup)); err != nil {
			c.Log.Warn("note that a cgroup is told", "container_id", known.ID, "err", err)
		}
	}
}

// countCgroup attaches to a container's cgroup, or goes on with what an earlier process
// attached. What fails is tried again whenever the container is looked at.
func (c *Controller) countCgroup(known *member) {
	dir, ok := c.Host.Unified(known.Found)
	if !ok {
		return // its processes are in no cgroup of their own there
	}
	id, err := c.Cgroups.ID(dir)
	if errors.Is(err, cgroupctl.ErrGone) {
		return // or not made yet
	}
	if err != nil {
		c.cgroupFailed(known, err)
		return
	}
	if _, _, err := c.Accounts.Open(ofCgroup(id), "", HookCgroup); err != nil {
		c.cgroupFailed(known, err)
		return
	}
	// Before, where the kernel has kept the element of an earlier time; there may be none.
	_ = c.Accounts.BindCgroup(ofCgroup(id))
	if err = c.Cgroups.Attach(dir, id); err == nil {
		err = errors.Join(c.Accounts.Assign(ofCgroup(id), known.ID, ""), c.Accounts.BindCgroup(ofCgroup(id)))
	}
	if err != nil {
		c.cgroupFailed(known, errors.Join(err, c.Cgroups.Detach(id), c.Accounts.EndCgroup(ofCgroup(id))))
		return
	}
	known.cgroup, known.cgroupDir, known.cgroupFailure = id, dir, ""
	c.Log.Debug("counting cgroup", "container_id", known.ID, "cgroup", dir)
}

// cgroupFailed notes why a container is not counted by its cgroup.
func (c *Controller) cgroupFailed(known *member, err error) {
	c.metrics.failures.Inc()
	if known.cgroupFailure != err.Error() {
		c.Log.Error("cgroup is not counted; trying again", "container_id", known.ID, "err", err)
	}
	known.cgroupFailure = err.Error()
}

// endCgroup ends the counting of a container's cgroup.
func (c *Controller) endCgroup(known *member) {
	if known.cgroup == 0 {
		return
	}
	if err := errors.Join(c.Cgroups.Detach(known.cgroup), c.Accounts.EndCgroup(ofCgroup(known.cgroup))); err != nil {
		c.Log.Warn("end counting of cgroup", "container_id", known.ID, "err", err)
	}
	known.cgroup = 0
}

// adoptCgroup goes on with a cgroup that an earlier process counted, or retires its slot.
func (c *Controller) adoptCgroup(left usage.Leftover) error {
	if c.Cgroups == nil {
		return c.Accounts.Retire(left)
	}
	attached, err := c.Cgroups.Attached(left.Cgroup)
	if err != nil {
		return err
	}
	if attached && c.Accounts.Bound(left) {
		c.Accounts.Adopt(left, "", HookCgroup)
		return nil
	}
	if err := c.Accounts.Retire(left); err != nil || attached {
		return err // the cgroup is counted on another slot by now
	}
	return c.Cgroups.Detach(left.Cgroup)
}

// reconcileCgroups puts back what somebody took off, and takes off what is on cgroups of
// which no container can be there any more; there is nil if that is not known.
func (c *Controller) reconcileCgroups(there func(roster.Key) bool) {
	if c.Cgroups == nil {
		return
	}
	counted := map[uint64]bool{}
	for _, known := range c.members {
		c.checkCgroup(known)
		c.placeCgroup(known)
		counted[known.cgroup] = true
	}
	if there == nil {
		return
	}
	ids, err := c.Cgroups.IDs()
	if err != nil {
		c.Log.Warn("list counted cgroups", "err", err)
	}
	for _, id := range ids {
		owner := roster.Key{ID: c.Accounts.Owner(ofCgroup(id))}
		if counted[id] || c.members[owner] == nil && there(owner) { // it may be in a directory that can't be read
			continue
		}
		if err := errors.Join(c.Cgroups.Detach(id), c.Accounts.EndCgroup(ofCgroup(id))); err != nil {
			c.Log.Warn("remove stray programs", "cgroup_id", id, "err", err)
		}
	}
}

func (c *Controller) checkCgroup(known *member) {
	if known.cgroup == 0 {
		return
	}
	if on, err := c.Cgroups.Attached(known.cgroup); on || err != nil {
		return
	}
	if now, err := c.Cgroups.ID(known.cgroupDir); err != nil || now != known.cgroup {
		return // it is gone, and its event is on the way
	}
	c.Log.Warn("our programs were removed: putting them back", "container_id", known.ID, "cgroup", known.cgroupDir)
	err := errors.Join(c.Cgroups.Attach(known.cgroupDir, known.cgroup), c.Accounts.BindCgroup(ofCgroup(known.cgroup)))
	if err != nil {
		c.cgroupFailed(known, err)
		return
	}
	c.metrics.reattached.Inc()
}
