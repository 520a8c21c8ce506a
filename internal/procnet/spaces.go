// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/watcher"
)

// noVethAfter is how long an interface may be there before the kernel tells of its end in
// the host. It does so when the interface is made, before that is set up.
const noVethAfter = 2 * time.Second

// space is a network namespace that is counted for a container in it.
type space struct {
	number uint64 // by which the files know the namespace
	netns  uint64 // its inode, or number where that is hidden from us
	nsid   int    // the number that the host has for it, -1 if none
	pid    int    // of a process that was in it
	nests  bool   // there are containers inside of one in it
	owner  roster.Member

	fresh       bool // it began while we ran
	polled      bool
	interfaces  map[int]*iface // by index
	connections *opened        // nil until an interface is counted
	failure     string         // of the last reading, as it stands in the log
	tcpFailure  string         // the same of its connections
}

func (s *space) leadsTo(hostIndex int) bool {
	for _, i := range s.interfaces {
		if i.host == hostIndex {
			return true
		}
	}
	return false
}

// hosted reports whether an interface is counted that has an end in the host.
func (s *space) hosted() bool {
	for _, i := range s.interfaces {
		if i.counted && i.host != 0 {
			return true
		}
	}
	return false
}

// pending reports whether interfaces wait for their end in the host to be known.
func (s *space) pending() bool {
	for _, i := range s.interfaces {
		if i.waits {
			return true
		}
	}
	return len(s.interfaces) == 0
}

// Locate implements [roster.Backend]. What it finds is the id of a process in the namespace.
func (b *Backend) Locate(m roster.Member) (at roster.Location[int], err error) {
	number, pid := b.find(m.Found)
	if pid == 0 {
		return at, watcher.ErrNoProcess
	}
	at.Kernel = b.Host.Kernel(m.Found)
	if number == b.host {
		at.InHost = true
		return at, nil
	}
	before, moved := b.in[m.Key]
	b.in[m.Key] = number
	s := b.spaces[number]
	if s == nil {
		s = b.newSpace(m, number, pid, moved && before != number)
	}
	at.Space, at.Found = roster.Space{ID: number, NSID: s.nsid}, pid
	at.CountedFor, at.Spread = b.countedFor(s), b.stand(m.Found).Spread
	return at, nil
}

// Strays implements [roster.Backend].
func (b *Backend) Strays(m roster.Member, from roster.Space) bool {
	now := b.stand(m.Found)
	return now.Spread != watcher.Together || now.NetNS != 0 && now.NetNS != from.ID
}

func (b *Backend) stand(in watcher.Container) watcher.Standing {
	tasks, all := b.Host.Tasks(in)
	return watcher.Eyes{Host: b.host, NetNS: b.files.namespace, Open: b.files.open, Aside: b.Host.Aside}.Stand(tasks, all)
}

// find returns the namespace of a container: of those of its processes that are not the host's
// the first that anything leads out of, else the first, or else the host's. A pid of 0 says that
// it has no process.
func (b *Backend) find(in watcher.Container) (number uint64, pid int) {
	for _, p := range b.Host.Processes(in) {
		now, err := b.files.namespace(p)
		if err != nil || !slices.Contains(b.Host.Processes(in), p) {
			continue // it has ended, and its pid may be another's by now
		}
		if now != b.host && now != number && b.files.open(p, now) {
			return now, p
		}
		if pid == 0 || number == b.host {
			number, pid = now, p
		}
	}
	return number, pid
}

func (b *Backend) newSpace(m roster.Member, number uint64, pid int, moved bool) *space {
	s := &space{
		number: number, netns: cmp.Or(b.files.netns(pid), number), nsid: -1, pid: pid, owner: m,
		interfaces: map[int]*iface{},
		// The kernel may forget when a cgroup was made, so what is found first is old.
		fresh: !b.began.IsZero() && (moved || wallclock.Steadily(m.Found.CreatedAt).After(b.began)),
	}
	b.spaces[number] = s
	return s
}

// countedFor returns the containers that the interfaces of a namespace are counted for, or
// were by an earlier process.
func (b *Backend) countedFor(s *space) (keys []roster.Key) {
	note := func(id string) {
		if key := (roster.Key{ID: id}); id != "" && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	for _, i := range s.interfaces {
		if i.counted {
			note(b.Accounts.Owner(i.target))
		}
	}
	if o := s.connections; o != nil {
		note(b.Accounts.Owner(o.target))
	}
	if s.polled || s.fresh {
		return keys
	}
	now, err := b.files.read(s.pid, s.number)
	if err != nil {
		return keys // Count reads it again, and says why it can't
	}
	for _, r := range now.interfaces {
		v, hosted := b.hostEnd(s, r.index)
		known, ok := b.Accounts.Earlier(s.target(r.index, v, hosted))
		if ok {
			note(known.ID)
		}
	}
	return keys
}

// target returns what is counted of an interface: its end in the host where it has one.
func (s *space) target(index int, v watcher.HostVeth, hosted bool) usage.Target {
	if hosted {
		return usage.OnHost(v.Index)
	}
	return usage.Target{NetNS: s.netns, Ifindex: index}
}

// Count implements [roster.Backend].
func (b *Backend) Count(owner roster.Member, in roster.Location[int]) roster.Outcome {
	s := b.spaces[in.ID]
	if s == nil {
		s = b.newSpace(owner, in.ID, in.Found, false)
	}
	s.owner, s.pid, s.nests = owner, in.Found, in.Nests
	if owner.Found.ParentID != "" {
		return roster.Outcome{} // it is in the numbers of the container that it is in
	}
	b.pollSpace(s)
	return b.outcome(s, owner.Key)
}

// outcome says what is counted of a namespace for a container.
func (b *Backend) outcome(s *space, key roster.Key) (o roster.Outcome) {
	for _, i := range s.interfaces {
		switch {
		case i.counted && b.Accounts.Owner(i.target) == key.ID:
			o.Counted++
			o.Given = o.Given || i.host != 0
		case i.counted:
			o.Others++
		case i.failed:
			o.Failed++
		case i.waits:
			o.Waiting++
		case i.skipped:
			o.Excluded++
		}
	}
	return o
}

// Succeed implements [roster.Backend].
func (b *Backend) Succeed(to roster.Member, ended []roster.Key, in roster.Location[int]) error {
	s := b.spaces[in.ID]
	if s == nil {
		return nil // nothing is counted there
	}
	s.owner, s.pid, s.nests = to, in.Found, in.Nests
	b.pollSpace(s) // what passed until now is the earlier owner's
	var failed error
	for _, i := range s.interfaces {
		if i.counted && slices.Contains(ended, b.owner(i.target)) {
			failed = errors.Join(failed, b.succeedOn(s, i.target, &i.slot, i.name))
		}
	}
	if o := s.connections; o != nil && slices.Contains(ended, b.owner(o.target)) {
		failed = errors.Join(failed, b.succeedOn(s, o.target, &o.slot, o.name))
	}
	return failed
}

// owner returns the container that a target is counted for.
func (b *Backend) owner(target usage.Target) roster.Key {
	return roster.Key{ID: b.Accounts.Owner(target)}
}

// succeedOn counts a target on another slot for the owner of its namespace.
func (b *Backend) succeedOn(s *space, target usage.Target, slot *uint16, name string) error {
	next, err := b.Accounts.Succeed(target, func(uint16) error { return nil })
	if next == 0 {
		return err
	}
	*slot = next
	b.Log.Info("the container that had an interface has ended: counting for another", "container_id", s.owner.ID, "interface", name)
	return errors.Join(err, b.Accounts.Assign(target, s.owner.ID, name))
}

// Last implements [roster.Backend]. As a rule the last process has ended by now, and the
// counters of the ends in the host stand in.
func (b *Backend) Last(m roster.Member, in roster.Space) roster.Outcome {
	s := b.spaces[in.ID]
	if s == nil {
		return roster.Outcome{}
	}
	b.pollSpace(s)
	return b.outcome(s, m.Key)
}

// Left implements [roster.Backend].
func (b *Backend) Left(in roster.Space) {
	if s := b.spaces[in.ID]; s != nil {
		b.closeAll(s)
		delete(b.spaces, in.ID)
	}
}
