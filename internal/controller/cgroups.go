// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"time"

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
	Exclusive(dir string) (*cgroupctl.ExclusiveError, error)
	Below(dir string) ([]uint64, error)
}

// CgroupMode says which containers are counted by their cgroups.
type CgroupMode string

// The modes.
const (
	// CgroupAuto is those that no interface tells apart: in the host's network, in a namespace
	// with others, in several, and without an interface of their own. A container that starts
	// is, too, until it is known which it is: the first packets are not missed.
	CgroupAuto CgroupMode = "auto"
	CgroupAll  CgroupMode = "all"
	CgroupOff  CgroupMode = "off"
)

// groups are the cgroups that are counted: their packets, or their connections.
type groups struct {
	keeper
	sockets bool                              // it is the connections
	known   map[roster.Key]*group             // by container
	told    map[cgroupctl.ExclusiveError]bool // others' programs that the log has
}

func newGroups(k keeper, sockets bool) groups {
	return groups{k, sockets, map[roster.Key]*group{}, map[cgroupctl.ExclusiveError]bool{}}
}

// on is where the programs are put, nil where there is no cgroup2 hierarchy.
func (s *groups) on() cgroups { return s.putting(s.sockets) }

func (k keeper) putting(sockets bool) cgroups {
	if sockets {
		return k.Sockets
	}
	return k.Cgroups
}

func (s *groups) hook() string {
	if s.sockets {
		return HookSockOps
	}
	return HookCgroup
}

func (s *groups) target(id uint64) usage.Target { return usage.Target{Cgroup: id, Sockets: s.sockets} }

// group is the cgroup of a container.
type group struct {
	attachment
	container string
	dir       string
	by        *cgroupctl.ExclusiveError // that keeps our programs off, nil for nobody
	settlings int                       // how often its connections were listed in vain
}

func (s *groups) at(g *group) site { return cgroupSite{s.on(), g.dir, g.Cgroup} }

// wants says whether a container is to be counted by its cgroup.
func (s *groups) wants(m *member) bool {
	if s.sockets {
		return s.CountSockets
	}
	switch s.Settings().Cgroup {
	case CgroupAll:
		return true
	case CgroupOff:
		return false
	}
	return m.Reason == usage.Starting || m.Extent == roster.MaybeInMore || s.tells(m)
}

// tells says whether what a container's cgroup counts is told: not while it is open whether
// that is wanted.
func (s *groups) tells(m *member) bool {
	if s.sockets {
		return true
	}
	if m.Reason == usage.Starting {
		return false
	}
	return s.Settings().Cgroup == CgroupAll || !m.Reason.ByInterfaces() || m.Shared || m.Extent == roster.InMore
}

// place begins to count a container's cgroup where that is wanted, and ends it where it is
// not.
func (s *groups) place(m *member) {
	if s.on() == nil {
		return
	}
	if !s.wants(m) {
		s.end(m.Key)
		return
	}
	g := s.known[m.Key]
	if (g == nil || !g.attached()) && !m.Ended && s.deserves(m) {
		g = s.count(m)
	}
	if g != nil && g.attached() && s.tells(m) {
		if err := s.Accounts.Tell(g.Target); err != nil {
			s.Log.Warn("note that a cgroup is told", "container_id", m.ID, "err", err)
		}
	}
}

// deserves says whether a cgroup gets a slot. Those of root's runtimes do from the moment they
// are there, so that nothing is missed. A user can make thousands of directories, so those of
// users need a process.
func (s *groups) deserves(m *member) bool {
	return usage.UserOf(m.ID) == "" || len(s.Host.Processes(m.Found)) > 0
}

// count attaches to a container's cgroup, or goes on with what an earlier process attached.
// What fails is tried again whenever the container is looked at.
func (s *groups) count(m *member) *group {
	dir, ok := s.Host.Unified(m.Found)
	if !ok {
		return nil // its processes are in no cgroup of their own there
	}
	id, err := s.on().ID(dir)
	if errors.Is(err, cgroupctl.ErrGone) {
		return nil // or not made yet
	}
	g := s.known[m.Key]
	if g == nil {
		g = &group{container: m.ID, attachment: attachment{name: dir, since: time.Now()}}
		s.known[m.Key] = g
	}
	g.dir, g.Target = dir, s.target(id)
	if err == nil {
		err = s.attach(g)
	}
	if s.obstructed(g, err); err != nil {
		s.failed(&g.attachment, err, "container_id", m.ID)
		return g
	}
	s.began(&g.attachment, s.at(g), s.hook(), nil)
	if n, ok := s.Accounts.TCPCounted(g.Target); s.sockets && ok && !n.BeforeKnown && len(s.Host.Processes(m.Found)) == 0 {
		s.noteBefore(g, 0) // nobody is there who could have one
	}
	s.Log.Debug("counting cgroup", "container_id", m.ID, "cgroup", dir, "hook", s.hook())
	return g
}

// obstructed notes whether another's program keeps ours off a container's cgroup. It is logged
// once for all containers below the cgroup that has it.
func (s *groups) obstructed(g *group, err error) {
	var by *cgroupctl.ExclusiveError
	if errors.As(err, &by) {
		g.failure = err.Error() // which failed does not log again
		if !s.told[*by] {
			s.told[*by] = true
			s.Log.Error("another's program keeps ours off cgroups, and their containers are not counted there; trying again",
				"cgroup", by.Cgroup, "program", by.Program, "program_id", by.ID, "hook", by.Hook)
		}
	} else if g.by != nil {
		delete(s.told, *g.by)
	}
	g.by = by
	s.obstruct(g.container, by != nil)
}

// obstruct tells whether another's program keeps ours off. Without the connections a container
// is counted all the same.
func (s *groups) obstruct(container string, obstructed bool) {
	if !s.sockets {
		s.Accounts.Obstruct(container, obstructed)
	}
}

// attach puts the programs on, bound to a slot, or leaves neither.
func (s *groups) attach(g *group) (err error) {
	if err := s.Accounts.MayTake(g.Target, g.container); err != nil {
		return err
	}
	if g.slot, _, err = s.Accounts.Open(g.Target, "", s.hook()); err != nil {
		return err
	}
	// Before, where the kernel has kept the element of an earlier time; there may be none.
	_ = s.Accounts.BindCgroup(g.Target)
	if err = s.put(&g.attachment, s.at(g)); err == nil {
		err = errors.Join(s.Accounts.Assign(g.Target, g.container, ""), s.Accounts.BindCgroup(g.Target))
	}
	if err != nil {
		err = errors.Join(err, s.takeOff(g.Target))
	}
	return err
}

// takeOff ends the counting of a cgroup.
func (s *groups) takeOff(t usage.Target) error {
	return errors.Join(cgroupSite{cgroups: s.on(), id: t.Cgroup}.detach(false), s.Accounts.EndCgroup(t))
}

// end ends the counting of a container's cgroup.
func (s *groups) end(of roster.Key) {
	g := s.known[of]
	delete(s.known, of)
	if g == nil {
		return
	}
	s.obstruct(g.container, false)
	if !g.attached() {
		return
	}
	if err := s.takeOff(g.Target); err != nil {
		s.Log.Warn("end counting of cgroup", "container_id", g.container, "err", err)
	}
}

// reconcile puts back what somebody took off, and takes off what is on cgroups of which no
// container can be there any more; there is nil if that is not known.
func (s *groups) reconcile(members map[roster.Key]*member, there func(roster.Key) bool) {
	if s.on() == nil {
		return
	}
	counted := map[uint64]bool{}
	for key, m := range members {
		if s.known[key] == nil && m.Reason == usage.Starting && usage.UserOf(m.ID) != "" {
			continue // there may be thousands, and each has its turns
		}
		if g := s.known[key]; s.inTheWay(g) {
			s.end(key)
		} else {
			s.check(g)
		}
		s.place(m)
		if g := s.known[key]; g != nil && g.attached() {
			counted[g.Cgroup] = true
		}
	}
	if there == nil {
		return
	}
	ids, err := s.on().IDs()
	if err != nil {
		s.Log.Warn("list counted cgroups", "err", err)
	}
	for _, id := range ids {
		owner := roster.Key{ID: s.Accounts.Owner(s.target(id))}
		if counted[id] || members[owner] == nil && there(owner) { // it may be in a directory that can't be read
			continue
		}
		if err := s.takeOff(s.target(id)); err != nil {
			s.Log.Warn("remove stray programs", "cgroup_id", id, "err", err)
		}
	}
}

// inTheWay reports whether our programs run on a cgroup instead of another's that came later and
// allows none beside it. That one may be a firewall, so ours are taken off.
func (s *groups) inTheWay(g *group) bool {
	if g == nil || !g.attached() {
		return false
	}
	by, err := s.on().Exclusive(g.dir)
	return err == nil && by != nil
}

func (s *groups) check(g *group) {
	if g == nil || !g.attached() {
		return
	}
	if on, err := s.at(g).counts(g.slot); on || err != nil {
		return
	}
	if now, err := s.on().ID(g.dir); err != nil || now != g.Cgroup {
		return // it is gone, and its event is on the way
	}
	err := errors.Join(s.putBack(&g.attachment, s.at(g), true), s.Accounts.BindCgroup(g.Target))
	if s.sockets {
		// Connections may have come and gone meanwhile.
		err = errors.Join(err, s.Accounts.NoteTCP(g.Target, func(n *usage.TCPNote) { n.BeforeKnown = false }))
	}
	if err != nil {
		s.failed(&g.attachment, err, "container_id", g.container)
	}
}
