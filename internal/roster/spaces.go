// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"cmp"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// succeedAfter is how long a new owner waits for what was counted for the last one: the
// containers of a pod that ends go within this time.
const succeedAfter = 2 * time.Second

// join puts a member into its namespace, and counts that if the member owns it.
func (r *Roster[F]) join(m *member, at Location[F]) {
	box := r.spaces[at.ID]
	if box == nil {
		box = &space{members: map[Key]*member{}, owner: m}
		r.spaces[at.ID] = box
	}
	if m.space != box {
		r.leave(m)
		m.space, box.members[m.Key] = box, m
	}
	at.Nests = r.nests(box)
	box.Space = at.Space
	r.share(box)
	if r.first != nil {
		r.first[at.ID] = at
		m.look.stop() // until all are listed
		return
	}
	r.choose(box, at.CountedFor)
	if box.owner == m {
		r.count(box, at)
	} else {
		r.settle(m, m.why(usage.SharedNetwork))
	}
}

// nests reports whether there are containers inside those of a namespace.
func (r *Roster[F]) nests(box *space) bool {
	for key := range box.members {
		if r.inside[key] > 0 {
			return true
		}
	}
	return false
}

// share marks the members of a namespace as sharing it, once there are several.
func (r *Roster[F]) share(box *space) {
	for _, m := range box.members {
		if !m.Shared && len(box.members) > 1 {
			m.Shared = true
			r.Backend.Update(m.Member)
		}
	}
}

// choose makes the member the owner that was it when its interfaces were counted last:
// before nettally was started again, or before we came to know the members in this order.
func (r *Roster[F]) choose(box *space, countedFor []Key) {
	if slices.Contains(countedFor, box.owner.Key) {
		return
	}
	for _, key := range countedFor {
		if m := box.members[key]; m != nil {
			box.owner = m
			return
		}
	}
}

// count counts a namespace for its owner, and says what became of that.
func (r *Roster[F]) count(box *space, at Location[F]) {
	r.choose(box, at.CountedFor)
	m := box.owner
	ended := r.ended(at.CountedFor)
	waits := len(ended) > 0
	if waits && time.Since(box.left) >= succeedAfter {
		err := r.Backend.Succeed(m.Member, ended, at)
		if err != nil {
			r.Log.Warn("could not count for the next container; trying again", "container_id", m.ID, "err", err)
		}
		waits = err != nil
	}
	if m.excluded {
		m.excluded = false
		if err := r.Backend.Succeed(m.Member, []Key{{}}, at); err != nil {
			r.Log.Warn("could not leave out what passed while a container was excluded", "container_id", m.ID, "err", err)
		}
	}
	r.conclude(m, r.Backend.Count(m.Member, at))
	if waits {
		m.look.again()
	}
}

// ended returns the owners that have ended. All containers have been listed by now.
func (r *Roster[F]) ended(owners []Key) []Key {
	return slices.DeleteFunc(slices.Clone(owners), r.there)
}

// conclude says what became of an owner.
func (r *Roster[F]) conclude(m *member, o Outcome) {
	m.space.given = o.Given
	switch {
	case o.Failed > 0:
		r.settle(m, m.why(usage.AttachFailed))
	case o.Excluded > 0:
		r.settle(m, m.why(usage.InterfaceExcluded))
	case o.Counted > 0 && o.Hidden > 0:
		r.settle(m, m.why(usage.PartlyCounted))
	case o.Counted > 0:
		r.settle(m, m.why(usage.Accounted))
	case o.Waiting > 0:
	case o.Others > 0:
		r.settle(m, m.why(usage.SharedNetwork))
	case m.age() < noInterfaceAfter:
		r.later(m)
	default:
		r.settle(m, m.why(usage.NoHostVeth))
	}
	if o.Waiting > 0 {
		m.look.again()
	}
}

// leave takes a member out of its namespace. If it owned that, the oldest of the others
// does from now on.
func (r *Roster[F]) leave(m *member) {
	box := m.space
	if box == nil {
		return
	}
	m.space = nil
	delete(box.members, m.Key)
	if len(box.members) == 0 {
		delete(r.spaces, box.ID)
		r.Backend.Left(box.Space)
		return
	}
	if box.owner != m {
		return
	}
	box.owner, box.left = oldest(box.members), time.Now()
	box.owner.look.from(succeedAfter)
	box.owner.look.again()
}

// oldest returns the member whose cgroup was made first. Users can set the times of theirs, so
// these come after root's.
func oldest(members map[Key]*member) (first *member) {
	for _, m := range members {
		if first == nil || older(m, first) < 0 {
			first = m
		}
	}
	return first
}

func older(a, b *member) int {
	if mine := usage.UserOf(a.ID) == ""; mine != (usage.UserOf(b.ID) == "") {
		if mine {
			return -1
		}
		return 1
	}
	return cmp.Or(a.Found.CreatedAt.Compare(b.Found.CreatedAt), cmp.Compare(a.ID, b.ID))
}
