// SPDX-License-Identifier: Apache-2.0

package watcher

import "time"

const (
	// recoverEvery is the least time between two looks at everything after lost
	// notifications. Users can make the kernel lose them at any rate: each write to a file of
	// a cgroup of theirs is one. What began meanwhile is found that much later.
	recoverEvery = 2 * time.Second
	// recoverShare bounds the part of the time that such looks take.
	recoverShare = 10
)

// recovery says when everything is to be looked at because notifications were lost. The first
// time it is at once; losses that come before the next look are one.
type recovery struct {
	timer *time.Timer
	due   bool
	next  time.Time // not before
}

func newRecovery() *recovery {
	r := &recovery{timer: time.NewTimer(time.Hour)}
	r.timer.Stop()
	return r
}

// want asks for a look.
func (r *recovery) want(now time.Time) {
	if !r.due {
		r.due = true
		r.timer.Reset(max(0, r.next.Sub(now)))
	}
}

// done says that everything was looked at, and how long that took.
func (r *recovery) done(now time.Time, took time.Duration) {
	r.due, r.next = false, now.Add(max(recoverEvery, (recoverShare-1)*took))
}
