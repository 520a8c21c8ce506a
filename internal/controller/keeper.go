// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"slices"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// keeper takes attachments through their lives, wherever they are.
type keeper struct {
	*Options
	metrics *metrics
}

// become takes an attachment to another state.
func (k keeper) become(a *attachment, next state) {
	if !slices.Contains(follows[a.state], next) {
		k.Log.Error(impossible, a.kind(), a.name, "target", a.Target, "from", a.state.String(), "to", next.String())
	}
	a.state = next
}

// impossible is logged where the code takes an attachment along no arrow of [state].
const impossible = "bug: an attachment changes state as none can"

// put has a site count a target on a slot. That the qdisc is ours is noted before it is made,
// so that a process that comes after a kill removes it.
func put(accounts *usage.Accounts, target usage.Target, at site, slot uint16) error {
	noted := false
	made, err := at.attach(slot, func() error {
		noted = true
		return accounts.OwnQdisc(target)
	})
	if noted && !made {
		err = errors.Join(err, accounts.DisownQdisc(target))
	}
	return err
}

func (k keeper) put(a *attachment, at site) error { return put(k.Accounts, a.Target, at, a.slot) }

// began notes that an attachment is counted on a hook now. What was not counted is missing,
// nil if all was.
func (k keeper) began(a *attachment, at site, hook string, missing *gap) {
	a.hook, a.failure = hook, ""
	k.become(a, counting)
	k.show(a)
	var open unsettled
	if missing != nil {
		open = k.fill(a, at, *missing)
	}
	if a.check == nil {
		a.check = k.begin(a, at, open)
	}
}

// show says how an attachment is shown.
func (k keeper) show(a *attachment) {
	shown := usage.Shown{Hook: a.hook, Shadowed: a.unseen()}
	if a.onHost() {
		shown.HostInterface = a.name
	}
	k.Accounts.Show(a.Target, shown)
}

// failed notes why something is not counted. about is for the log.
func (k keeper) failed(a *attachment, err error, about ...any) {
	k.metrics.failures.Inc()
	if a.failure != err.Error() {
		k.Log.Error(a.kind()+" is not counted; trying again", append(about, a.kind(), a.name, "target", a.Target, "err", err)...)
	}
	a.failure = err.Error()
}

// owned says that somebody owns what is counted.
func (k keeper) owned(a *attachment) bool { return k.Accounts.Owner(a.Target) != "" }

// owners returns the containers that targets are counted for.
func (k keeper) owners(targets ...usage.Target) (keys []roster.Key) {
	for _, target := range targets {
		if id := k.Accounts.Owner(target); id != "" {
			keys = append(keys, roster.Key{ID: id})
		}
	}
	return keys
}

// own gives what is counted to a container, which calls it name. It keeps its first owner.
func (k keeper) own(target usage.Target, to roster.Key, name, known string) {
	if err := k.Accounts.Assign(target, to.ID, name); err != nil {
		k.Log.Warn("could not note the owner of an interface", "interface", known, "container_id", to.ID, "err", err)
	}
}

// give is own, and says whose it is now.
func (k keeper) give(target usage.Target, to roster.Key, name, known string) (sum tally) {
	k.own(target, to, name, known)
	if k.Accounts.Owner(target) == to.ID {
		sum.Counted++
	} else {
		sum.Others++
	}
	return sum
}

// succeed counts something on another slot, for the next owner or under another name. What was
// counted so far stays where it was.
func (k keeper) succeed(a *attachment, at site, why string) error {
	swap := func(slot uint16) error {
		_, err := at.attach(slot, nil)
		return err
	}
	if a.hook == HookTCX {
		swap = nil
	}
	slot, err := k.Accounts.Succeed(a.Target, swap)
	if slot == 0 {
		return err // it is tried again
	}
	a.slot, a.check = slot, k.begin(a, at, unsettled{})
	k.Log.Info(why, a.kind(), a.name, "target", a.Target)
	return err
}

// hasEnded is why an interface is counted for another container.
const hasEnded = "the container that had an interface has ended: counting for another"

// rename has an interface that its container calls otherwise by now counted under that name
// from now on. One that is down may be about to be renamed again.
func (k keeper) rename(a *attachment, at site, of roster.Key, i watcher.Interface) {
	if !i.Up || !k.Accounts.Renamed(a.Target, of.ID, i.Name) || k.Accounts.InHandover(a.Target) {
		return
	}
	if err := k.succeed(a, at, "an interface has another name in its container: counting under that"); err != nil {
		k.Log.Warn("could not count an interface under another name", a.kind(), a.name, "target", a.Target, "err", err)
	}
}

// putBack puts our programs back where somebody removed them. What passed meanwhile is seeded,
// unless the kernel's counters witness nothing.
func (k keeper) putBack(a *attachment, at site, blind bool) error {
	k.Log.Warn("our programs were removed: putting them back", a.kind(), a.name, "target", a.Target, "hook", a.hook)
	err := k.put(a, at)
	switch {
	case err != nil:
	case blind:
		k.metrics.reattached.Inc()
		k.see(a)
	default:
		k.mended(a, at, false)
	}
	return err
}

// mended notes that our programs are in a place where they see the packets, as far as can be
// told before some pass. Where packets have passed our programs before, they may do so again: it
// is shadowed until some are seen.
func (k keeper) mended(a *attachment, at site, past bool) {
	k.metrics.reattached.Inc()
	if !past {
		k.catchUp(a, at)
		return
	}
	k.become(a, shadowed)
	k.show(a)
	k.keepUp(a, at)
}

// catchUp adds what passed while it was not seen, and says that packets are seen again.
func (k keeper) catchUp(a *attachment, at site) {
	k.see(a)
	k.keepUp(a, at)
}

// keepUp adds what has passed unseen until now: the kernel's own counters tell.
func (k keeper) keepUp(a *attachment, at site) {
	if a.check != nil {
		k.mendSince(a, at, sinceUs)
	}
}

// shadow notes that packets pass unseen.
func (k keeper) shadow(a *attachment) {
	if a.state == shadowed {
		return
	}
	k.become(a, shadowed)
	k.show(a)
	k.Log.Warn("packets pass that our programs don't see", a.kind(), a.name, "target", a.Target, "hook", a.hook)
}

// see notes that packets are seen again.
func (k keeper) see(a *attachment) {
	if a.state == counting {
		return
	}
	k.become(a, counting)
	k.show(a)
	k.Log.Info("our programs see the packets again", a.kind(), a.name, "target", a.Target)
}

// compare takes in a reading. It returns whether packets pass unseen.
func (k keeper) compare(a *attachment, at site, now reading) (blind bool) {
	moved := now.kernel != a.check.last.kernel
	if a.state == counting {
		k.settle(a, now)
		k.reckon(a, now)
	}
	a.check.take(now)
	if a.check.blind() {
		return true
	}
	if moved && a.state == shadowed {
		k.catchUp(a, at)
	}
	if a.check.leaking() && a.state == counting {
		k.Log.Debug("a few packets pass that our programs don't see", a.kind(), a.name, "target", a.Target, "hook", a.hook)
		k.mendSince(a, at, leaked)
	}
	if moved {
		a.mend.forget()
	}
	return false
}
