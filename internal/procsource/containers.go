// SPDX-License-Identifier: Apache-2.0

package procsource

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/retry"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/watcher"
)

const (
	// A container's process sits in the host's namespace while runc starts it, for
	// some 10 ms. One that is there after this time is there to stay.
	hostNetworkAfter = 2 * time.Second
	// Docker moves the interface into the namespace some 120 ms after it made that.
	noInterfaceAfter = 10 * time.Second
	// The kernel tells of the host veth when the interface is made, before it is set up.
	noVethAfter = 2 * time.Second

	// No runtime takes that long.
	startedAfter = time.Minute

	// Those of a pod that ends end within this time; who is there then goes on.
	succeedAfter = 2 * time.Second

	firstDelay = 5 * time.Millisecond
)

// container is a container that is there.
type container struct {
	watcher.Container
	sandbox *sandbox // nil until its process is in a namespace of its own
	reason  usage.Reason
	since   time.Time // its cgroup was made
	look    retry.Plan
}

// sandbox is a network namespace with the containers in it. The first one owns its
// interfaces; they are counted once.
type sandbox struct {
	number  uint64 // by which the files know the namespace
	netns   uint64 // its inode, or number where that is hidden from us
	nsid    int    // what the host calls it, -1 if nothing yet
	pid     int    // of a process that was in it
	owner   *container
	left    time.Time // the one before it ended, zero if nothing is counted for that any more
	members map[string]*container

	fresh       bool // it began while we ran
	polled      bool
	interfaces  map[int]*iface // by index
	connections *opened        // nil until an interface is counted
	failure     string         // of the last reading, as it stands in the log
}

func (b *sandbox) leadsTo(hostIndex int) bool {
	for _, i := range b.interfaces {
		if i.host == hostIndex {
			return true
		}
	}
	return false
}

// pending says whether interfaces wait for their end in the host to be known.
func (b *sandbox) pending() bool {
	for _, i := range b.interfaces {
		if i.waits {
			return true
		}
	}
	return len(b.interfaces) == 0
}

func (c *Controller) containerStarted(found watcher.Container) {
	if c.containers[found.ID] != nil || !c.Settings().Container(found) {
		return
	}
	known := &container{Container: found, reason: usage.Starting, since: wallclock.Steadily(found.CreatedAt)}
	known.look.From(firstDelay)
	c.containers[found.ID] = known
	c.Accounts.Start(usage.Container{
		ID:        found.ID,
		ParentID:  found.ParentID,
		Runtime:   found.Runtime,
		Pod:       found.PodUID,
		Cgroup:    found.Cgroup,
		StartedAt: found.CreatedAt,
	})
	c.Names.Want(found.ID)
	c.Log.Debug("container started", "container_id", found.ID, "cgroup", found.Cgroup)
	c.resolve(known)
}

// containerStopped takes its final counts, where its interfaces have an end in the host
// that is still there: as a rule its last process has ended by now.
func (c *Controller) containerStopped(id string) {
	known := c.containers[id]
	if known == nil {
		return
	}
	if known.sandbox != nil {
		c.poll(known.sandbox)
	}
	delete(c.containers, id)
	c.leave(known)
	if known.reason == usage.Starting {
		c.settle(known, usage.Ended)
	}
	c.Accounts.Stop(id)
	c.Log.Debug("container stopped", "container_id", id)
}

// resolve works out in which namespace a container is, or plans to look again.
func (c *Controller) resolve(known *container) {
	number, pid := c.find(known.Container)
	switch {
	case pid == 0:
		c.later(known)
	case number == c.host && time.Since(known.since) < hostNetworkAfter:
		c.later(known)
	case number == c.host:
		c.leave(known)
		c.settle(known, usage.HostNetwork)
	case known.ParentID != "":
		// What it sends passes the interface of the container that it is in.
		c.leave(known)
		c.settle(known, usage.NoHostVeth)
	default:
		c.join(known, number, pid)
	}
}

// nests says whether there are containers in those of a sandbox: bridges and veths there
// have what its own interfaces have.
func (c *Controller) nests(box *sandbox) bool {
	for _, known := range c.containers {
		if known.ParentID != "" && box.members[known.ParentID] != nil {
			return true
		}
	}
	return false
}

// find returns the namespace of the first of a container's processes that is not in the
// host's, or else the host's. A pid of 0 says that it has no process.
func (c *Controller) find(in watcher.Container) (number uint64, pid int) {
	for _, p := range c.Host.Processes(in) {
		now, err := c.files.namespace(p)
		if err != nil || !slices.Contains(c.Host.Processes(in), p) {
			continue // it has ended, and its pid may be another's by now
		}
		if number, pid = now, p; number != c.host {
			break
		}
	}
	return number, pid
}

// join puts a container into its sandbox. The sandbox's owner gets its interfaces.
func (c *Controller) join(known *container, number uint64, pid int) {
	box := c.sandboxes[number]
	if box == nil {
		box = &sandbox{
			number: number, netns: cmp.Or(c.files.netns(pid), number), nsid: -1, pid: pid, owner: known,
			members: map[string]*container{}, interfaces: map[int]*iface{},
			// The kernel may forget when a cgroup was made, so what is found first is old.
			fresh: !c.began.IsZero() && (known.since.After(c.began) || known.sandbox != nil),
		}
		c.sandboxes[number] = box
	}
	if known.sandbox != box {
		c.leave(known)
		known.sandbox = box
		box.members[known.ID] = known
	}
	if box.owner != known {
		c.settle(known, usage.SharedNetwork)
		return
	}
	if !c.began.IsZero() { // else the one that owned it when we were here before may be yet to come
		c.poll(box)
	}
}

// own makes a member the owner of a sandbox: so it was before nettally was started again,
// and came to know another one first.
func (c *Controller) own(box *sandbox, member *container) {
	if box.owner != member {
		c.settle(box.owner, usage.SharedNetwork)
		box.owner = member
	}
}

// leave takes a container out of its sandbox. If it was the owner, the oldest of the
// others is from now on. The last one takes the sandbox along.
func (c *Controller) leave(known *container) {
	box := known.sandbox
	if box == nil {
		return
	}
	known.sandbox = nil
	delete(box.members, known.ID)
	if len(box.members) == 0 {
		delete(c.sandboxes, box.number)
		c.closeAll(box)
		return
	}
	if box.owner != known {
		return
	}
	box.owner = nil
	for _, member := range box.members {
		if box.owner == nil || member.CreatedAt.Before(box.owner.CreatedAt) {
			box.owner = member
		}
	}
	box.left = time.Now()
	box.owner.look.From(succeedAfter)
	box.owner.look.Again()
}

// succeed has what is counted for a container that has ended counted for the owner.
func (c *Controller) succeed(box *sandbox) {
	if box.left.IsZero() || time.Since(box.left) < succeedAfter {
		return
	}
	box.left = time.Time{}
	for _, i := range box.interfaces {
		if i.counted {
			i.slot = c.succeedOn(box, i.target, i.slot, i.name)
		}
	}
	if o := box.connections; o != nil {
		o.slot = c.succeedOn(box, o.target, o.slot, o.name)
	}
}

func (c *Controller) succeedOn(box *sandbox, target usage.Target, slot uint16, name string) uint16 {
	if owner := c.Accounts.Owner(target); owner == "" || c.containers[owner] != nil {
		return slot
	}
	next, err := c.Accounts.Succeed(target, func(uint16) error { return nil })
	if next != 0 {
		slot = next
		err = errors.Join(err, c.Accounts.Assign(target, box.owner.ID, name))
	}
	if err != nil {
		c.Log.Warn("count for another container; trying again", "container_id", box.owner.ID, "interface", name, "err", err)
		box.left = time.Now()
		return slot
	}
	c.Log.Info("the container that had an interface has ended: counting for another", "container_id", box.owner.ID, "interface", name)
	return slot
}

// conclude says what became of the owner of a sandbox whose files were read.
func (c *Controller) conclude(box *sandbox) {
	if !box.left.IsZero() {
		box.owner.look.Again()
		return
	}
	counted, failed, waiting := 0, 0, 0
	for _, i := range box.interfaces {
		switch {
		case i.counted:
			counted++
		case i.failed:
			failed++
		case i.waits:
			waiting++
		}
	}
	switch {
	case counted > 0:
		c.settle(box.owner, usage.Accounted)
	case failed > 0:
		c.settle(box.owner, usage.AttachFailed)
	case waiting == 0 && time.Since(box.owner.since) >= noInterfaceAfter:
		c.settle(box.owner, usage.NoHostVeth)
	case waiting == 0:
		c.later(box.owner)
	}
	if waiting > 0 {
		box.owner.look.Again()
	}
}

// settle says what became of a container.
func (c *Controller) settle(known *container, reason usage.Reason) {
	known.look.Stop()
	if known.reason != reason {
		known.reason = reason
		c.Accounts.Explain(known.ID, reason)
	}
}

// later plans another look at a container that is being started. One that does not
// come to be is left to events and the reconcile.
func (c *Controller) later(known *container) {
	known.look.Stop()
	if time.Since(known.since) < startedAfter {
		known.look.Again()
	}
}

func (c *Controller) resolveDue() {
	now := time.Now()
	for _, known := range c.containers {
		if known.look.Due(now) {
			c.resolve(known)
		}
	}
}
