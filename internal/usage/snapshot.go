// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// recallPatience is how long a container may be missing from the snapshot because the
// ledger has not said yet what it counted before: a disk that hangs must not hide it.
const recallPatience = 2 * time.Second

// Snapshot reads the counters of every interface now.
func (a *Accounts) Snapshot() Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Snapshot{
		TakenAt:      a.Now(),
		Containers:   make([]Container, 0, len(a.containers)),
		Uncounted:    a.Datapath.Uncounted(),
		Unclassified: a.Datapath.Unclassified(),
		Beyond:       a.beyond(),
		Orphaned:     a.orphaned,
	}
	for _, c := range a.containers {
		s.add(a, c)
	}
	s.sort()
	for target, at := range a.attachments {
		switch kindOf(target) {
		case ofConnections:
			s.Sockets++
		case ofCgroup:
			s.Cgroups++
		case ofInterface:
			if at.tally == nil {
				s.Unowned = append(s.Unowned, at.unowned(a.Datapath))
			}
		}
	}
	for _, o := range a.orphans {
		s.Unowned = append(s.Unowned, o.Interface)
	}
	slices.SortFunc(s.Unowned, func(x, y Interface) int {
		return cmp.Or(cmp.Compare(x.HostInterface, y.HostInterface), x.AttachedAt.Compare(y.AttachedAt))
	})
	return s
}

// Reader is who reads the accounts often and remembers what it has read: its cost goes by what
// runs. It is for one goroutine.
type Reader struct {
	accounts *Accounts
	bit      uint8 // of [account].final
}

// Reader returns a reader that has read nothing yet. There can be 8.
func (a *Accounts) Reader() *Reader {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.readers++
	return &Reader{a, 1 << (a.readers - 1)}
}

// Changing is [Accounts.Snapshot] without what concerns no container and, unless all is set,
// without the containers that have ended and were in an earlier one of these with their last
// numbers.
func (r *Reader) Changing(all bool) Snapshot {
	a := r.accounts
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Snapshot{TakenAt: a.Now()}
	for _, c := range a.containers {
		final := c.State == Stopped && !c.counting() && !c.unrecalled
		if all || !final || c.final&r.bit == 0 {
			s.add(a, c)
		}
		c.final &^= r.bit
		if final {
			c.final |= r.bit
		}
	}
	s.sort()
	return s
}

// add adds a container, unless what it counted before is not known yet.
func (s *Snapshot) add(a *Accounts, c *account) {
	if c.unrecalled && s.TakenAt.Sub(c.since) <= recallPatience {
		return
	}
	shown := a.container(c)
	if c.State == Stopped {
		shown.StoppedFor = s.TakenAt.Sub(c.stopped)
	}
	s.Containers = append(s.Containers, shown)
}

func (s *Snapshot) sort() {
	slices.SortFunc(s.Containers, func(x, y Container) int {
		return cmp.Or(x.StartedAt.Compare(y.StartedAt), cmp.Compare(x.ID, y.ID))
	})
}

func (a *Accounts) container(c *account) Container {
	a.identify(&c.Container)
	out := c.Container
	out.Name = cmp.Or(out.Name, out.ID)
	out.NetworkMode = cmp.Or(out.NetworkMode, networkModes[out.Reason])
	out.Unrecalled = c.unrecalled
	out.OnHost, out.NoInterface = out.Reason == HostNetwork, out.Reason == NoHostVeth
	out.Shares = out.Shares || out.Reason == SharedNetwork
	if c.obstructed && slices.Contains(byCgroupOnly, out.Reason) {
		out.Reason = CgroupTaken
	}
	for _, name := range slices.Sorted(maps.Keys(c.tallies)) {
		i := c.tallies[name].owned(a.Datapath, name)
		out.Interfaces = append(out.Interfaces, i)
		out.Traffic = out.Traffic.Plus(i.Traffic)
		if i.Shadowed && (out.Reason == Accounted || out.Reason == SeveralNetworks || out.Reason == PartlyCounted) {
			out.Reason = Shadowed
		}
	}
	out.Lost = out.Lost.withoutUnknown(out.Interfaces)
	if c.tellsCgroup() {
		out.addCgroup(c.cgroup.owned(a.Datapath, ""))
	}
	out.addTCP(c.tcp, c.namespace, a.Datapath)
	return out
}

// identify takes in what a runtime says of a container, and stays with what it said
// last where it does not know it any more. What a user calls something is not what root's
// runtimes call so.
func (a *Accounts) identify(c *Container) {
	if said, ok := a.Identify(c.ID); ok {
		user := c.User()
		c.Name, c.Image, c.Labels = InScope(user, said.Name), said.Image, said.Labels
		c.Runtime = cmp.Or(said.Runtime, c.Runtime)
		c.Namespace = cmp.Or(InScope(user, said.Namespace), c.Namespace)
		c.Pod = cmp.Or(InScope(user, said.Pod), c.Pod)
		c.NetworkMode = cmp.Or(said.NetworkMode, c.NetworkMode)
	}
}

// identifiedBy returns c with what was known of it before and c does not say.
func (c Container) identifiedBy(before Container) Container {
	c.Name = cmp.Or(c.Name, before.Name)
	c.Image = cmp.Or(c.Image, before.Image)
	c.Runtime = cmp.Or(c.Runtime, before.Runtime)
	c.Namespace = cmp.Or(c.Namespace, before.Namespace)
	c.Pod = cmp.Or(before.Pod, c.Pod)
	c.Kernel = cmp.Or(c.Kernel, before.Kernel)
	if c.Labels == nil {
		c.Labels = before.Labels
	}
	return c
}

// byCgroupOnly are the reasons of containers that are accounted by their cgroups if at all.
var byCgroupOnly = []Reason{HostNetwork, SharedNetwork, SeveralNetworks, NoHostVeth}

// networkModes are what we can tell of a container's network by ourselves.
var networkModes = map[Reason]string{HostNetwork: "host", SharedNetwork: "container"}
