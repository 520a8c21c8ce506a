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
	}
	for _, c := range a.containers {
		if !c.unrecalled || s.TakenAt.Sub(c.since) > recallPatience {
			shown := a.container(c)
			if c.State == Stopped {
				shown.StoppedFor = s.TakenAt.Sub(c.stopped)
			}
			s.Containers = append(s.Containers, shown)
		}
	}
	slices.SortFunc(s.Containers, func(x, y Container) int {
		return cmp.Or(x.StartedAt.Compare(y.StartedAt), cmp.Compare(x.ID, y.ID))
	})
	for target, at := range a.attachments {
		if target.Cgroup != 0 {
			s.Cgroups++
		} else if at.tally == nil {
			s.Unowned = append(s.Unowned, a.show(at))
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

func (a *Accounts) container(c *account) Container {
	a.identify(&c.Container)
	out := c.Container
	out.Name = cmp.Or(out.Name, out.ID)
	out.NetworkMode = cmp.Or(out.NetworkMode, networkModes[out.Reason])
	out.Unrecalled = c.unrecalled
	out.OnHost = out.Reason == HostNetwork
	out.Shares = out.Shares || out.Reason == SharedNetwork
	for _, name := range slices.Sorted(maps.Keys(c.tallies)) {
		t := c.tallies[name]
		i := Interface{
			Name:          name,
			HostInterface: t.host,
			Hook:          t.hook,
			At:            cmp.Or(t.at, AtHost),
			AttachedAt:    t.attachedAt,
			Traffic:       t.final,
		}
		for _, at := range t.live {
			i.Traffic = i.Traffic.Plus(a.mustRead(at))
			i.Attached = i.Attached || at.closedAt.IsZero()
			i.Shadowed = i.Shadowed || at.closedAt.IsZero() && at.shadowed
		}
		out.Interfaces = append(out.Interfaces, i)
		out.Traffic = out.Traffic.Plus(i.Traffic)
		if i.Shadowed && out.Reason == Accounted {
			out.Reason = Shadowed
		}
	}
	if c.tellsCgroup() {
		a.addCgroup(&out, c.cgroup)
	}
	return out
}

// addCgroup adds what was counted of a container's cgroup. Where that is all there can be,
// the container is accounted by it.
func (a *Accounts) addCgroup(out *Container, t *tally) {
	sum := t.final
	attached := out.State == Stopped
	for _, at := range t.live {
		sum = sum.Plus(a.mustRead(at))
		attached = attached || at.closedAt.IsZero()
	}
	out.IP, out.IPSince = &sum, t.attachedAt
	if attached && out.Reason != Shadowed {
		out.Reason = Accounted
	}
}

// identify takes in what a runtime says of a container, and stays with what it said
// last where it does not know it any more.
func (a *Accounts) identify(c *Container) {
	if said, ok := a.Identify(c.ID); ok {
		c.Name, c.Image, c.Labels = said.Name, said.Image, said.Labels
		c.Runtime = cmp.Or(said.Runtime, c.Runtime)
		c.Namespace = cmp.Or(said.Namespace, c.Namespace)
		c.Pod = cmp.Or(said.Pod, c.Pod)
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
	if c.Labels == nil {
		c.Labels = before.Labels
	}
	return c
}

// networkModes are what we can tell of a container's network by ourselves.
var networkModes = map[Reason]string{HostNetwork: "host", SharedNetwork: "container"}

// show is an attachment as an interface that nobody owns.
func (a *Accounts) show(at *attachment) Interface {
	return Interface{
		HostInterface: at.host,
		Hook:          at.hook,
		At:            at.place(),
		AttachedAt:    at.at,
		Attached:      at.closedAt.IsZero(),
		Shadowed:      at.shadowed,
		Traffic:       a.mustRead(at),
	}
}
