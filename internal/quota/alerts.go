// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"
)

const (
	// resolvedMax is how many resolved alerts are remembered, to be looked up.
	resolvedMax = 1000
	// endedFor is how long an alert is remembered after its end for those who are told by
	// state. An Alertmanager takes it for firing for up to five minutes, and is told of the end
	// for five more.
	endedFor = 15 * time.Minute
	// endedMax bounds how many are.
	endedMax = waitingMax
)

// entry is an alert as it is known.
type entry struct {
	Alert
	fired     uint64    // number of its beginning, 0 if an earlier process has saved it
	sequence  uint64    // number of its last change
	changedAt time.Time // that
	// moved is the key that the alert is about now, "" where that is Key: it ends as what it began.
	moved string
	// deliveredTo are the notifiers that have a delivery, taken or not, which says that it fires.
	deliveredTo []string
	dirty       bool
}

// keyNow returns the key that an alert is about.
func (a *entry) keyNow() string { return cmp.Or(a.moved, a.Key) }

// book is all alerts that are known.
type book struct {
	out    *outbox
	byID   map[string]*entry
	firing map[*state][]*entry // those that fire
	said   []Alert             // by the check that runs
	dirty  []*entry            // not written as they are
}

func newBook(out *outbox) book {
	return book{out: out, byID: map[string]*entry{}, firing: map[*state][]*entry{}}
}

// active returns the alert of a level that fires, or nil.
func (b *book) active(st *state, level string) *entry {
	for _, a := range b.firing[st] {
		if a.Level == level {
			return a
		}
	}
	return nil
}

// of returns the alerts of a key that fire, which may be resolved meanwhile.
func (b *book) of(st *state) []*entry { return slices.Clone(b.firing[st]) }

// levels counts the first levels of a key that fire.
func (b *book) levels(st *state) (n uint8) {
	for _, percent := range st.rule.AlertAt {
		if b.active(st, strconv.Itoa(percent)) == nil {
			break
		}
		n++
	}
	return n
}

// begin takes in an alert that fires from now on.
func (b *book) begin(a *entry, st *state, notifiers []string, now time.Time) {
	b.byID[a.ID] = a
	b.firing[st] = append(b.firing[st], a)
	b.note(a, now)
	a.fired = a.sequence
	b.address(a, notifiers, now)
	b.say(a)
}

// end takes note that an alert of a key, nil if that is gone, is over.
func (b *book) end(a *entry, st *state, when, now time.Time) {
	b.firing[st] = slices.DeleteFunc(b.firing[st], func(other *entry) bool { return other == a })
	if len(b.firing[st]) == 0 {
		delete(b.firing, st)
	}
	a.State, a.EndsAt = Resolved, latest(when, a.StartsAt).Round(0)
	b.note(a, now)
	for _, name := range a.deliveredTo {
		b.out.add(name, a.Alert)
	}
	a.deliveredTo = nil
	b.say(a)
}

// say logs a change of an alert, which the check that runs returns.
func (b *book) say(a *entry) {
	b.said = append(b.said, a.Alert)
	b.out.log.Info("quota alert", "quota", a.Quota, "key", a.Key, "level", a.Level, "state", a.State, "used", Whole(a.Used), "limit", Whole(a.Limit), "unit", a.Unit)
}

// note numbers a change of an alert.
func (b *book) note(a *entry, now time.Time) {
	a.sequence, a.changedAt = b.out.draw(), now.Round(0)
	b.mark(a)
}

// mark marks an alert as not written.
func (b *book) mark(a *entry) {
	if !a.dirty {
		a.dirty = true
		b.dirty = append(b.dirty, a)
	}
}

// address makes an alert that fires go to the notifiers that its rule names now. Those that are
// told by delivery, and were not yet, are told that it fires; to those that are not named any
// more it is over, since nobody would tell them later.
func (b *book) address(a *entry, named []string, now time.Time) {
	var deliver []string
	for _, name := range named {
		switch b.out.meansOf(name) {
		case ByDelivery:
			deliver = append(deliver, name)
		case Nobody:
			b.out.log.Warn("an alert is for a notifier that does not exist", "notifier", name, "alert", a.ID)
		}
	}
	if slices.Equal(a.Notifiers, named) && slices.Equal(a.deliveredTo, deliver) {
		return
	}
	a.Notifiers = slices.Clone(named)
	end := a.Alert
	end.State, end.EndsAt = Resolved, latest(now, a.StartsAt).Round(0)
	end.Notifiers = without(a.deliveredTo, named)
	for _, name := range end.Notifiers {
		b.out.add(name, end)
	}
	for _, name := range without(deliver, a.deliveredTo) {
		b.out.add(name, a.Alert)
	}
	a.deliveredTo = deliver
	b.out.draw() // once it is published, those that are told by state look again
	b.mark(a)
}

// without returns the names that are not among others.
func without(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(others, name) })
}

// inOrder returns the alerts by the order of their last change.
func (b *book) inOrder() []*entry {
	return slices.SortedFunc(maps.Values(b.byID), func(x, y *entry) int { return cmp.Compare(x.sequence, y.sequence) })
}

// list returns the alerts that fire, and the last thousand that were resolved.
func (b *book) list() []Alert {
	alerts, resolved := []Alert{}, 0
	for _, a := range slices.Backward(b.inOrder()) {
		if a.State == Resolved {
			resolved++
		}
		if a.State == Firing || resolved <= resolvedMax {
			alerts = append(alerts, a.Alert)
		}
	}
	slices.Reverse(alerts)
	return alerts
}

// standing returns what a notifier may know of the alerts that name it: those that fire, and
// those that ended a short time ago.
func (b *book) standing(notifier string, now time.Time) (alerts []Alert) {
	ready, _ := b.out.upTo()
	for _, a := range b.inOrder() {
		if a.fired > ready || a.State == Resolved && now.Sub(a.changedAt) > endedFor || !slices.Contains(a.Notifiers, notifier) {
			continue
		}
		told := a.Alert
		if a.State == Resolved && a.sequence > ready {
			told.State, told.EndsAt = Firing, time.Time{}
		}
		alerts = append(alerts, told)
	}
	return alerts
}

// prune forgets resolved alerts, the oldest first, and returns their ids.
func (b *book) prune(now time.Time) (ids []string) {
	old := slices.DeleteFunc(b.inOrder(), func(a *entry) bool { return a.State == Firing })
	for i, a := range old {
		newer := len(old) - i - 1
		if newer >= resolvedMax && now.Sub(a.changedAt) > endedFor || newer >= endedMax {
			delete(b.byID, a.ID)
			ids = append(ids, a.ID)
		}
	}
	return ids
}

// take adds the alerts that are to be written to a batch.
func (b *book) take(to *batch) {
	to.alerts, b.dirty = b.dirty, nil
	for _, a := range to.alerts {
		a.dirty = false
		if b.byID[a.ID] == a {
			to.add(alertKey(a.ID), savedAlert{a.Alert, a.sequence, a.changedAt, a.deliveredTo, a.moved})
		}
	}
}
