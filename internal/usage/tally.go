// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"slices"
	"time"
)

// tally is the usage of one interface of a container, over all host veths it had, or of
// its cgroup, over its lives.
type tally struct {
	account    *account
	host       string // the last one's name
	hook       string
	at         Place     // the last one's
	attachedAt time.Time // the first time
	final      Traffic   // of the veths that are gone, and written
	live       []*attachment
	told       bool // of a cgroup: its numbers have been shown
	// priors is what final holds of the last targets: nettally may come back to one.
	priors []Attachment
}

// tally returns the tally of an interface, a new one if there is none.
func (c *account) tally(name string) *tally {
	t := c.tallies[name]
	if t == nil {
		t = &tally{account: c}
		c.tallies[name] = t
	}
	return t
}

// kind is what a tally is of.
type kind int

const (
	ofInterface kind = iota
	ofCgroup
	ofConnections
	ofNamespace // connections, by the kernel's counters of network namespaces
)

func kindOf(t Target) kind {
	switch {
	case t.Sockets && t.Cgroup == 0:
		return ofNamespace
	case t.Sockets:
		return ofConnections
	case t.Cgroup != 0:
		return ofCgroup
	}
	return ofInterface
}

// tallyOf returns the tally of an interface, of the cgroup, or of connections by either way, a new
// one if there is none.
func (c *account) tallyOf(of kind, name string) *tally {
	switch of {
	case ofCgroup:
		if c.cgroup == nil {
			c.cgroup = &tally{account: c}
		}
		return c.cgroup
	case ofConnections:
		if c.tcp == nil {
			c.tcp = &tally{account: c}
		}
		return c.tcp
	case ofNamespace:
		if c.namespace == nil {
			c.namespace = &tally{account: c}
		}
		return c.namespace
	}
	return c.tally(name)
}

// own gives an attachment, and all it has counted, to the tally.
func (t *tally) own(at *attachment) {
	t.told = t.told || at.slot.Told
	if t.attachedAt.IsZero() {
		t.attachedAt = at.at
	}
	if at.shown.HostInterface != "" || at.place() == AtContainer {
		t.show(at)
	}
	t.live = append(t.live, at)
	at.tally = t
}

// show takes over where and how its last attachment is counted.
func (t *tally) show(at *attachment) {
	t.host, t.hook, t.at = at.shown.HostInterface, at.shown.Hook, at.place()
}

// let takes an attachment from the tally.
func (t *tally) let(at *attachment) {
	t.live = slices.DeleteFunc(t.live, func(other *attachment) bool { return other == at })
}

// fold adds the last counts of an attachment for good.
func (t *tally) fold(at *attachment, last Attachment) {
	last.Folded = true
	t.final = t.final.Plus(last.Counted)
	t.let(at)
	before, _ := t.priorOn(last.Boot, last.Target)
	t.remember(last.after(before))
}

// owned is a tally as the interface of a container.
func (t *tally) owned(d Datapath, name string) Interface {
	i := Interface{
		Name:          name,
		HostInterface: t.host,
		Hook:          t.hook,
		At:            cmp.Or(t.at, AtHost),
		AttachedAt:    t.attachedAt,
		Traffic:       t.final,
	}
	for _, at := range t.live {
		i.Traffic = i.Traffic.Plus(at.read(d))
		i.Attached = i.Attached || at.closedAt.IsZero()
		i.Shadowed = i.Shadowed || at.closedAt.IsZero() && at.shown.Shadowed
	}
	return i
}
