// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// namespacesEvery is how often the connections of network namespaces are read. Connections that a
// container opens after the last reading are lost.
const namespacesEvery = 5 * time.Second

// readNamespaces counts the connections of network namespaces where no program on cgroups can.
func (c *Controller) readNamespaces(ctx context.Context, hand handing) {
	if !c.CountNamespaces {
		return
	}
	hand.every(ctx, namespacesEvery, c.countNamespaces)
}

func (c *Controller) countNamespaces() {
	for inode, box := range c.spaces {
		c.countNamespace(inode, box)
	}
}

// countNamespace counts the connections in a network namespace while one container has that to
// itself. The connections of a container with others inside are in the namespaces of those, too, so
// the numbers of neither are told.
func (c *Controller) countNamespace(inode uint64, box *space) {
	m := c.members[box.owner]
	if !c.CountNamespaces || m == nil {
		return
	}
	alone, decided := m.Alone()
	nests := m.Found.ParentID != "" || c.inside[m.ID] > 0
	switch {
	case nests, decided && !alone:
		c.endNamespace(inode, true)
		return
	case !decided:
		return
	}
	if pid := c.processIn(inode, box, m); pid != 0 {
		c.namespaceFailed(box, c.readNamespace(inode, pid, m))
	}
}

// processIn returns a process of a container that is in a namespace, 0 for none.
func (c *Controller) processIn(inode uint64, box *space, m *member) int {
	pids := c.Host.Processes(m.Found)
	for _, pid := range append([]int{box.pid}, pids...) {
		if _, there := c.Host.NetworkNamespaces([]int{pid})[inode]; pid != 0 && there {
			box.pid = pid
			return pid
		}
	}
	return 0
}

func (c *Controller) readNamespace(inode uint64, pid int, m *member) error {
	now, since, err := c.Host.TCPIn(inode, pid)
	if err != nil {
		return err
	}
	fresh := !c.began.IsZero() && wallclock.Steadily(m.Found.CreatedAt).After(c.began) && !m.Found.JoinedLate(since)
	return c.Accounts.CountNamespace(inode, m.ID, HookFiles, usage.NamespaceTCP(now), fresh)
}

func (c *Controller) namespaceFailed(box *space, err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != box.tcpFailure {
		c.Log.Warn("TCP connections of a container are not counted; trying again", "container_id", box.owner.ID, "err", err)
	}
	box.tcpFailure = said
}

// endNamespace ends the counting of a namespace's connections. lost says that they are not those of
// one container any more.
func (c *Controller) endNamespace(inode uint64, lost bool) {
	if err := c.Accounts.EndNamespace(inode, lost); err != nil {
		c.Log.Warn("could not end the counting of TCP connections", "netns", inode, "err", err)
	}
}

// retireNamespace ends the counting of a namespace by an earlier process. It is counted on another
// slot from where that was.
func (a adoption) retireNamespace(left usage.Leftover) {
	if err := a.Accounts.Retire(left); err != nil {
		a.Log.Warn("clean up after an earlier run", "target", left.Target, "err", err)
	}
}
