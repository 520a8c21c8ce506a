// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"container/list"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// A thread is what one notifier has been told of one alert and what it is still to
// be told, in order. Of an Alertmanager it is one set of labels, by which that knows
// an alert; of all others it is one id.
type thread struct {
	key string // within the queue
	saved

	count     int       // of the pending alerts, as the queue has it
	sizes     int       // and their size
	tries     int       // attempts at the first pending alert that failed
	due       time.Time // not before then is a pending alert told; zero is at once
	last      time.Time // the last time that it was told, in this process
	delivered bool      // is being told something
	news      int       // grows with each alert
	unkept    bool      // the last of them is not on disk

	at     time.Time // the next step is due
	listed bool      // in the queue's heap
	place  int       // there

	waits, ended *list.Element // in the queue's lists, nil if it is not there
}

// saved is what of a thread is kept over restarts.
type saved struct {
	Notifier string `json:"notifier"`
	State    bool   `json:"state,omitempty"` // of an Alertmanager
	// Seq orders threads by the age of what they wait with.
	Seq uint64 `json:"seq"`
	// Told is the last alert that the notifier took, nil if it took none.
	Told *quota.Alert `json:"told,omitempty"`
	// Since is when it first took the state of Told.
	Since   time.Time     `json:"since,omitzero"`
	Pending []quota.Alert `json:"pending,omitempty"`
}

// latest returns the last that was said, nil if nothing was.
func (t *thread) latest() *quota.Alert {
	if n := len(t.Pending); n > 0 {
		return &t.Pending[n-1]
	}
	return t.Told
}

// same says whether an alert in a state is another one: what is said twice is
// delivered once.
func same(a *quota.Alert, b quota.Alert) bool {
	return a != nil && a.ID == b.ID && a.State == b.State
}

// over says whether an alert fires that is known to have ended: whoever says so has
// forgotten the end in a crash. One that fires anew has started anew.
func over(latest *quota.Alert, a quota.Alert) bool {
	return latest != nil && latest.ID == a.ID && latest.State == quota.Resolved && a.State == quota.Firing &&
		!a.StartsAt.After(latest.StartsAt)
}

// append takes an alert that is to be told after all others. It returns false if
// that has been said.
func (t *thread) append(a quota.Alert) bool {
	if latest := t.latest(); same(latest, a) || over(latest, a) {
		return false
	}
	t.Pending = append(t.Pending, a)
	return true
}

// merge takes an alert for an Alertmanager, which knows only what is: of what is
// pending there is at most one firing alert and its end. An alert that fires anew
// before the end of the last one was told goes on. It returns false if nothing is
// to be told.
func (t *thread) merge(a quota.Alert) bool {
	latest := t.latest()
	switch {
	case over(latest, a):
		return false
	case same(latest, a):
		*latest = a // newer numbers, for the next time it is told
		return false
	case a.State == quota.Firing:
		t.Pending = []quota.Alert{a}
	case latest == nil:
		t.Pending = []quota.Alert{a}
	case latest.ID != a.ID:
		return false // the end of an alert that another has taken the place of
	default:
		t.Pending = append(t.Pending, a)
	}
	return true
}

// told notes that the notifier took an alert. It may have been replaced meanwhile.
func (t *thread) told(a quota.Alert, now time.Time) {
	if t.Told == nil || t.Told.State != a.State {
		t.Since = now
	}
	t.Told, t.last = &a, now
	if len(t.Pending) > 0 && same(&t.Pending[0], a) {
		t.Pending = t.Pending[1:]
	}
	t.tries = 0
}

// giveUp removes n pending alerts, which will never be told. If an Alertmanager takes
// for firing what they have ended or taken the place of, it is forgotten: told again
// every minute it would fire for ever, and otherwise the Alertmanager ends it by itself.
func (t *thread) giveUp(at, n int) {
	last := t.Pending[at+n-1]
	t.Pending = slices.Delete(slices.Clone(t.Pending), at, at+n)
	if t.State && t.Told != nil && t.Told.State == quota.Firing && !same(t.Told, last) {
		t.Told = nil
	}
}

// pair returns where in pending an alert is that fires and is resolved at once
// afterwards, and -1 if nowhere.
func (t *thread) pair() int {
	first := 0
	if t.delivered {
		first = 1
	}
	for i := first; i+1 < len(t.Pending); i++ {
		if t.Pending[i].State == quota.Firing && t.Pending[i+1].State == quota.Resolved {
			return i
		}
	}
	return -1
}
