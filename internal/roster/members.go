// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"errors"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/watcher"
)

const (
	// While runc starts a container, its process sits in the host's network namespace for
	// some 10 ms. A process that is there after this time stays there.
	hostNetworkAfter = 2 * time.Second
	// Docker moves the interface into the namespace some 120 ms after it made that.
	noInterfaceAfter = 10 * time.Second
	// No runtime takes longer to start a container.
	startedAfter = time.Minute
	// firstDelay is the first time that a container is looked at again; each pause doubles the next.
	firstDelay = 2 * time.Millisecond
)

// started takes in a container that may be new.
func (r *Roster[F]) started(found watcher.Container) {
	key := Key{ID: found.ID}
	if r.members[key] != nil || !r.Settings().Container(found) {
		return
	}
	m := &member{Member: Member{Key: key, Found: found, Reason: usage.Starting}, made: wallclock.Steadily(found.CreatedAt)}
	m.look = plan{delay: firstDelay, of: m, in: r.agendaOf(m)}
	m.excluded, m.fresh = r.excluded[key], r.first == nil
	delete(r.excluded, key)
	r.members[key] = m
	if r.listing != nil {
		r.listing.came[key] = true
	}
	r.inside[m.parent()]++
	r.users[m.user()]++
	r.Accounts.Start(usage.Container{
		ID:        found.ID,
		ParentID:  found.ParentID,
		Runtime:   found.Runtime,
		Pod:       found.PodUID,
		Cgroup:    found.Cgroup,
		StartedAt: found.CreatedAt,
	})
	r.Names.Want(found.ID)
	r.Log.Debug("container started", "container_id", found.ID, "cgroup", found.Cgroup)
	r.Backend.Update(m.Member)
	r.look(m)
}

// stopped ends a member whose cgroup is gone. Its interfaces may go before or after that.
func (r *Roster[F]) stopped(m *member) {
	m.Ended = true
	last := r.Backend.Last(m.Member, m.at())
	if m.Reason == usage.Starting {
		m.Reason = usage.Ended
		if last.Counted > 0 {
			m.Reason = usage.Accounted
		}
	}
	r.end(m, m.Reason)
}

// exclude ends a member that is there and is not to be known any more, by the settings. What
// its interfaces count from now on is nobody's, or that of another container in its namespace.
func (r *Roster[F]) exclude(m *member) {
	r.excluded[m.Key] = true
	r.Accounts.Stop(m.ID)
	if err := r.disown(m, m.Key); err != nil {
		r.Log.Warn("could not end the counting for a container that is excluded", "container_id", m.ID, "err", err)
	}
	m.Ended = true
	r.end(m, usage.Excluded)
}

// disown has the interfaces that are counted for a container, which may be the empty key,
// counted on for nobody in a member's namespace.
func (r *Roster[F]) disown(m *member, counted Key) error {
	if m.space == nil || m.space.owner != m {
		return nil
	}
	at, err := r.Backend.Locate(m.Member)
	if err != nil || at.InHost || at.ID != m.space.ID {
		return err
	}
	return r.Backend.Succeed(m.Member, []Key{counted}, at)
}

// end forgets a member.
func (r *Roster[F]) end(m *member, reason usage.Reason) {
	r.settle(m, reason)
	m.look.end()
	delete(r.members, m.Key)
	if r.listing != nil {
		r.listing.gone[m.Found.Cgroup] = true
	}
	if r.inside[m.parent()]--; r.inside[m.parent()] == 0 {
		delete(r.inside, m.parent())
	}
	if r.users[m.user()]--; r.users[m.user()] == 0 {
		delete(r.users, m.user())
	}
	r.leave(m)
	r.Accounts.Stop(m.ID)
	r.Log.Debug("container stopped", "container_id", m.ID)
}

// parent is the container around a member; no container has the key of those without.
func (m *member) parent() Key { return Key{m.Found.ParentID} }

// at returns the namespace that a member is in, the zero value if none is known.
func (m *member) at() Space {
	if m.space == nil {
		return Space{NSID: -1}
	}
	return m.space.Space
}

// resolve finds out where a member is and counts it, or plans another look.
func (r *Roster[F]) resolve(m *member) {
	at, err := r.Backend.Locate(m.Member)
	if err == nil {
		r.Accounts.RunsOn(m.ID, string(at.Kernel))
	}
	switch {
	case errors.Is(err, watcher.ErrNoProcess):
		m.note(watcher.Together)
		r.later(m)
	case err != nil:
		r.Log.Debug("could not locate container", "container_id", m.ID, "err", err)
		r.later(m)
	case !at.InHost:
		m.note(at.Spread)
		r.join(m, at)
	case m.age() < hostNetworkAfter:
		r.later(m)
	default:
		r.inHost(m)
	}
	if m.doubtful() && !m.look.planned() {
		m.look.from(hostNetworkAfter)
		m.look.again()
	}
	if m.look.planned() {
		r.Backend.Update(m.Member) // its cgroup may be there by now
	}
}

// age is how long ago the container's cgroup was made.
func (m *member) age() time.Duration { return time.Since(m.made) }

// settle says what became of a member. Only events and the reconcile look at it again.
func (r *Roster[F]) settle(m *member, reason usage.Reason) {
	m.Reason = reason
	m.look.stop()
	owner := ""
	if box := m.space; box != nil && box.owner != m {
		owner = box.owner.ID
	}
	r.Accounts.Share(m.ID, owner)
	r.Backend.Release(m.Key)
	r.Backend.Update(m.Member)
	r.Accounts.Explain(m.ID, reason)
}

// later plans another look at a member that is starting. If its namespace or interfaces
// never appear, later events or the reconcile handle it.
func (r *Roster[F]) later(m *member) {
	if m.age() < startedAfter {
		m.look.againIn(r.crowd(m))
		return
	}
	m.look.stop()
	r.Backend.Release(m.Key)
}

// Users can make thousands of containers in a second. So theirs are looked at in turns: what else
// happens comes in between.
const (
	perTurn = 16
	// crowdOf is how many containers of one user are looked at as often as root's, while they
	// start. Those of a user who has more share the looks of so many.
	crowdOf = 256
)

// user returns whose container a member is, "" for root's.
func (m *member) user() string { return usage.UserOf(m.ID) }

func (r *Roster[F]) agendaOf(m *member) *agenda {
	if m.user() == "" {
		return &r.rootLooks
	}
	return &r.userLooks
}

// crowd returns how many of a user's containers share a look.
func (r *Roster[F]) crowd(m *member) int {
	if m.user() == "" {
		return 1
	}
	return 1 + r.users[m.user()]/crowdOf
}

// look is resolve, in a turn of its own for a user's container. The first time all are waited
// for.
func (r *Roster[F]) look(m *member) {
	if m.user() != "" && r.first == nil {
		m.look.soon()
		return
	}
	r.resolve(m)
}

// lookAgain looks at the members whose time has come: root's, and then some of the users' that
// have waited longest.
func (r *Roster[F]) lookAgain() {
	now := time.Now()
	for _, m := range append(r.rootLooks.due(now, len(r.rootLooks)), r.userLooks.due(now, perTurn)...) {
		if m.look.due(now) { // not for what became of another one
			r.resolve(m)
		}
	}
}

// follow looks at the members that hints are about. What comes into a namespace is not looked
// for in a crowd: each interface on the host would have thousands looked at.
func (r *Roster[F]) follow(hints []Hint) {
	for _, h := range hints {
		for _, m := range r.members {
			if h.means(m) && (h.Key == m.Key || r.crowd(m) == 1) {
				m.look.from(firstDelay)
				r.look(m)
			}
		}
	}
}

// means reports whether a member may own what a hint is about.
func (h Hint) means(m *member) bool {
	if h.Key != (Key{}) {
		return h.Key == m.Key
	}
	if box := m.space; box != nil {
		return box.owner == m && (box.NSID == h.NSID || box.NSID < 0)
	}
	return m.Reason == usage.Starting
}
