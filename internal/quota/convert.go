// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"encoding/json"
	"slices"
)

// An earlier version had two queues in a row: an alert was noted as owed until it was handed to
// the notifiers' queue, which kept a thread for each notifier and alert. Both are converted at
// the load, and saved as deliveries, or deleted, in one transaction.

// earlierPrefix begins the keys of threads.
const earlierPrefix = "notify/"

// thread is what one notifier was told of one alert, and is still to be told.
type thread struct {
	Notifier string  `json:"notifier"`
	State    bool    `json:"state"` // of an Alertmanager, which needs no queue any more
	Seq      uint64  `json:"seq"`   // orders threads by the age of what is pending
	Told     *Alert  `json:"told"`
	Pending  []Alert `json:"pending"`
}

// latest returns the last that was said in a thread, nil if nothing was.
func (t *thread) latest() *Alert {
	if n := len(t.Pending); n > 0 {
		return &t.Pending[n-1]
	}
	return t.Told
}

// handover is what an earlier version has left.
type handover struct {
	threads []thread
	owed    []*entry // their last change may not have been handed over
}

func (e *restorer) restoreThread(name string, value []byte) error {
	e.outbox.forget(earlierPrefix + name)
	var t thread
	if err := json.Unmarshal(value, &t); err != nil {
		return err
	}
	e.handover.threads = append(e.handover.threads, t)
	return nil
}

// restoreEarlier takes in an alert as an earlier version saved it.
func (e *restorer) restoreEarlier(a *entry, value []byte) {
	var s struct {
		Owed bool `json:"owed"`
	}
	_ = json.Unmarshal(value, &s) // it was read once before
	if s.Owed {
		e.handover.owed = append(e.handover.owed, a)
	}
	a.changedAt = a.StartsAt
	if a.State == Resolved {
		a.changedAt = a.EndsAt
	}
	e.book.mark(a)
}

// convert queues what an earlier version has not told yet. Alerts that fire, and that no thread
// knows, are left to [book.address].
func (e *restorer) convert() {
	threads := e.handover.threads
	slices.SortStableFunc(threads, func(x, y thread) int { return cmp.Compare(x.Seq, y.Seq) })
	known := map[[2]string]bool{} // by notifier and id
	lost := map[string]int{}
	for i := range threads {
		t := &threads[i]
		latest := t.latest()
		if e.outbox.meansOf(t.Notifier) == Nobody {
			lost[t.Notifier] += len(t.Pending)
		}
		if t.State || latest == nil {
			continue
		}
		for _, a := range t.Pending {
			e.outbox.add(t.Notifier, a)
		}
		known[[2]string{t.Notifier, latest.ID}] = true
		e.joinThread(t.Notifier, *latest)
	}
	for _, a := range e.handover.owed {
		for _, name := range a.Notifiers {
			if a.State == Resolved && !known[[2]string{name, a.ID}] {
				e.outbox.add(name, a.Alert)
			}
		}
	}
	for name, dropped := range lost {
		e.Log.Info("notifier removed", "notifier", name, "dropped", dropped)
	}
}

// joinThread joins what a notifier takes for true of an alert with what is.
func (e *restorer) joinThread(notifier string, latest Alert) {
	a := e.book.byID[latest.ID]
	switch {
	case a != nil && a.State == Firing && (latest.State == Firing || !a.StartsAt.After(latest.StartsAt)):
		a.deliveredTo = append(a.deliveredTo, notifier)
	case latest.State == Resolved:
	case a != nil:
		e.outbox.add(notifier, a.Alert)
	default: // nobody knows what it was about
		latest.State, latest.EndsAt = Resolved, e.now.Round(0)
		e.outbox.add(notifier, latest)
	}
}
