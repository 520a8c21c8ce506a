// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

const (
	// settleEvery is how often the connections are looked at that were there before us.
	settleEvery = time.Second
	// perSettling is of how many containers at a time.
	perSettling = 64
	// settlings is how often a container is looked at whose connections come and go meanwhile.
	settlings = 5
)

// settleSockets has it found out which connections were there before our program came: it sees
// their ends only where another's had asked for that.
func (c *Controller) settleSockets(ctx context.Context, hand handing) {
	if !c.CountSockets || c.Sockets == nil {
		return
	}
	hand.every(ctx, settleEvery, c.settleUnknown)
}

// unsettledSockets is a cgroup whose connections from before us are to be counted.
type unsettledSockets struct {
	*group
	of     *member
	before usage.TCPCounters // what was counted right before the kernel was asked
}

// settleUnknown settles some of those that were not looked at yet.
func (c *Controller) settleUnknown() {
	c.settleThose(perSettling, func(n usage.TCPCounters) bool { return !n.BeforeKnown })
}

// settleAgain settles those that still had connections at the last look: they end unseen.
func (c *Controller) settleAgain() {
	c.settleThose(len(c.members), func(n usage.TCPCounters) bool { return n.BeforeKnown && n.Before != 0 })
}

func (c *Controller) settleThose(most int, due func(usage.TCPCounters) bool) {
	var those []unsettledSockets
	for key, m := range c.members {
		g := c.sockets.known[key]
		if g == nil || !g.attached() || len(those) == most {
			continue
		}
		if n, ok := c.Accounts.TCPCounted(g.Target); ok && due(n) {
			those = append(those, unsettledSockets{g, m, n})
		}
	}
	lists := connectionLists{Controller: c, by: map[uint64]map[uint64]uint64{}}
	for _, u := range those {
		c.settleOne(u, lists)
	}
}

// connectionLists are the established connections of network namespaces, by cgroup. A list is of
// the moment when it was first asked for.
type connectionLists struct {
	*Controller
	by map[uint64]map[uint64]uint64
}

func (l connectionLists) of(inode uint64, pid int) (map[uint64]uint64, error) {
	if known := l.by[inode]; known != nil {
		return known, nil
	}
	found, err := l.Host.Established(pid)
	if err == nil {
		l.by[inode] = found
	}
	return found, err
}

// settleOne compares what the kernel has of a cgroup's connections with what our program has
// seen to come and go. Where that changes meanwhile it is tried again, some times.
func (c *Controller) settleOne(u unsettledSockets, lists connectionLists) {
	ids, err := c.Sockets.Below(u.dir)
	if err != nil {
		return // it is gone
	}
	there := uint64(0)
	for inode, pid := range c.Host.NetworkNamespaces(c.Host.Processes(u.of.Found)) {
		found, err := lists.of(inode, pid)
		if err != nil {
			u.unsettled(c.keeper, err)
			return
		}
		for _, id := range ids {
			there += found[id]
		}
	}
	now, _ := c.Accounts.TCPCounted(u.Target)
	if u.settlings++; (now.Entered != u.before.Entered || now.Left != u.before.Left) && u.settlings < settlings {
		return
	}
	u.settlings = 0
	c.noteBefore(u.group, there-(now.Entered-now.Left))
}

func (u unsettledSockets) unsettled(k keeper, err error) {
	if u.failure != err.Error() {
		k.Log.Debug("could not list the connections of a container", "container_id", u.container, "err", err)
	}
	u.failure = err.Error()
}

// noteBefore notes how many connections there are that our program has not seen to come.
func (k keeper) noteBefore(g *group, before uint64) {
	err := k.Accounts.NoteTCP(g.Target, func(n *usage.TCPNote) { n.Before, n.BeforeKnown = before, true })
	if err != nil {
		k.Log.Warn("could not note the connections of a container", "container_id", g.container, "err", err)
	}
}

// readListenDrops notes what the kernel has dropped in the namespaces of containers that are
// alone there.
func (c *Controller) readListenDrops() {
	for key, m := range c.members {
		if g := c.sockets.known[key]; g != nil && g.attached() {
			c.noteListenDrops(g, m)
		}
	}
}

func (c *Controller) noteListenDrops(g *group, m *member) {
	known := false
	var drops uint64
	alone, _ := m.Alone()
	if pids := c.Host.Processes(m.Found); alone && len(pids) > 0 {
		var err error
		drops, err = c.Host.ListenDrops(pids[0])
		known = err == nil
	}
	if err := c.Accounts.NoteListenDrops(g.Target, drops, known); err != nil {
		c.Log.Warn("could not note the listen drops of a container", "container_id", g.container, "err", err)
	}
}
