// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"errors"
	"math"
	"time"
)

// Limits bound what containers can take: accounts, and so series and rows of the ledger, and
// slots. What is beyond a bound is counted on [Others], so that sums stay right.
type Limits struct {
	// Containers is how many containers of root's have an account of their own at a time, and
	// how many of all users together.
	Containers int
	// PerUser is how many of one user's do: those that are there, and those that were counted
	// and have ended within the last hour.
	PerUser int
	// Interfaces is how many names of interfaces an account has. A container has at most
	// 16 times as many slots at a time.
	Interfaces int
	// Ended is how many stopped containers are remembered.
	Ended int
	// UserSlots is how many slots the containers of all users have together.
	UserSlots int
}

// Unlimited are no bounds.
var Unlimited = Limits{math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt}

// Others is the account of root's containers that are beyond a bound, and the interface of a
// container for those that are. Users have accounts of their own, as "1000~~others". No id that
// is found on the host, without its user, begins with "~".
const Others = "~others"

// IsOthers reports whether an id is that of an account for what is beyond a bound.
func IsOthers(id string) bool { return Bare(UserOf(id), id) == Others }

const (
	// lingers is how long a user's container that was counted takes one of the user's accounts
	// after its end: the rows of the ledger are bounded by that, too.
	lingers = time.Hour
	// slotsPerName is how many slots a container may have for each interface it may name. More
	// than one is needed for a moment where interfaces are replaced.
	slotsPerName = 16
)

// Why a target gets no slot.
var (
	ErrUsersFull     = errors.New("the containers of users have all the slots that they may have together: raise bpf.max_interfaces, or lower limits.slots_for_root")
	ErrContainerFull = errors.New("the container has too many interfaces: raise limits.interfaces")
)

// guest is a container beyond a bound: what it uses goes to the account for others.
type guest struct {
	of     *account
	cgroup string
	reason Reason
}

// open is how many containers have accounts of their own, as of the last [Accounts.Expire], and
// those that came since.
type opened struct {
	root  int
	users int // all together
	user  map[string]int
}

// account returns the account for a container, a new one if it has none.
func (a *Accounts) account(id string) *account {
	if known := a.of(id); known != nil {
		return known
	}
	if !IsOthers(id) && a.isFull(UserOf(id)) {
		return a.invite(id, a.othersOf(id))
	}
	return a.open(id)
}

// of returns the account for a container, nil if it has none.
func (a *Accounts) of(id string) *account {
	if g := a.guests[id]; g != nil {
		return g.of
	}
	return a.containers[id]
}

// accountAgain returns the account that an attachment of an earlier process was counted on: its
// owner's own, or that for others.
func (a *Accounts) accountAgain(id string, others bool) *account {
	switch g := a.guests[id]; {
	case others && g == nil && a.containers[id] == nil:
		return a.invite(id, a.othersOf(id))
	case others:
		return a.othersOf(id)
	case g != nil:
		a.dismiss(id, g) // it has been both, one after the other
	}
	return a.open(id)
}

// othersOf returns the account for those that are beyond a bound with a container.
func (a *Accounts) othersOf(id string) *account {
	others := InScope(UserOf(id), Others)
	c := a.open(others)
	if c.ID == "" {
		c.Container = Container{ID: others, StartedAt: a.timeOfDay(), State: Running, Reason: Accounted}
	}
	return c
}

// invite has a container counted on an account for others.
func (a *Accounts) invite(id string, to *account) *account {
	a.guests[id] = &guest{of: to, reason: Starting}
	to.guests++
	to.State, to.StoppedAt, to.stopped = Running, time.Time{}, time.Time{}
	return to
}

// dismiss ends a container of an account for others.
func (a *Accounts) dismiss(id string, g *guest) {
	a.explain(g, Ended)
	delete(a.guests, id)
	if g.of.guests--; g.of.guests == 0 {
		a.stop(g.of)
	}
}

// explain says what became of a container that is counted with others: these are not accounted
// while one of them is not.
func (a *Accounts) explain(g *guest, reason Reason) {
	if g.reason == AttachFailed {
		g.of.failing--
	}
	if g.reason = reason; reason == AttachFailed {
		g.of.failing++
	}
	g.of.Reason = Accounted
	if g.of.failing > 0 {
		g.of.Reason = AttachFailed
	}
}

// isFull reports whether no other container of a user's, or of root's, gets an account.
func (a *Accounts) isFull(user string) bool {
	limits := a.limits()
	if user == "" {
		return a.opened.root >= limits.Containers
	}
	return a.opened.users >= limits.Containers || a.opened.user[user] >= limits.PerUser
}

func (o *opened) count(id string) {
	switch user := UserOf(id); {
	case IsOthers(id):
	case user == "":
		o.root++
	default:
		o.users++
		o.user[user]++
	}
}

// recount finds out how many accounts there are.
func (a *Accounts) recount() {
	a.opened = opened{user: map[string]int{}}
	for id, c := range a.containers {
		if c.State == Running || c.User() != "" && a.Now().Sub(c.stopped) < lingers {
			a.opened.count(id)
		}
	}
}

// within returns the name that an interface goes by in an account.
func (a *Accounts) within(c *account, name string) string {
	if c.tallies[name] != nil {
		return name
	}
	names := len(c.tallies)
	if c.tallies[Others] != nil {
		names--
	}
	if names >= a.limits().Interfaces {
		return Others
	}
	return name
}

// MayTake returns why no slot may be taken for a target of a container, nil if one may or it has
// one.
func (a *Accounts) MayTake(target Target, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.attachments[target] != nil {
		return nil
	}
	limits := a.limits()
	if UserOf(id) != "" && *a.slotsOfUsers(target) >= limits.UserSlots {
		return ErrUsersFull
	}
	if c := a.containers[id]; c != nil && c.live()/slotsPerName >= limits.Interfaces {
		return ErrContainerFull
	}
	return nil
}

func (c *account) live() (n int) {
	for _, t := range c.tallies {
		n += len(t.live)
	}
	return n
}

// elsewhere returns what was counted of a target for a container while it was on the other side
// of a bound.
func (a *Accounts) elsewhere(id string, of *account, target Target) Traffic {
	for _, c := range []*account{a.containers[id], a.containers[InScope(UserOf(id), Others)]} {
		if c == nil || c == of {
			continue
		}
		for _, t := range c.tallies {
			if last, ok := a.last(t, target); ok && cmp.Or(last.Guest, id) == id {
				return last.Counted
			}
		}
	}
	return Traffic{}
}

// hold counts the slots that users' containers have.
func (s *Slots) hold(at *attachment, n int) {
	if at.tally != nil && at.tally.account.User() != "" {
		*s.slotsOfUsers(at.slot.Target) += n
	}
}

// slotsOfUsers is how many slots users' containers have for what a target is: its packets or its
// connections.
func (s *Slots) slotsOfUsers(of Target) *int {
	if of.Sockets {
		return &s.userSockets
	}
	return &s.userSlots
}

// Beyond is how much is counted on accounts for others.
type Beyond struct {
	Root       int // containers of root's
	Users      int // containers of users'
	Interfaces int // that are counted for a container under no name of their own
}

func (a *Accounts) beyond() (b Beyond) {
	for id := range a.guests {
		if UserOf(id) == "" {
			b.Root++
		} else {
			b.Users++
		}
	}
	for _, c := range a.containers {
		if t := c.tallies[Others]; t != nil {
			b.Interfaces += len(t.live)
		}
	}
	return b
}
