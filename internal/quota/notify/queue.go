// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"container/heap"
	"container/list"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// How alerts are delivered.
const (
	againAfter    = time.Minute     // what fires in an Alertmanager is told again
	resolvedFor   = 5 * time.Minute // as long is it told of an end
	rememberFor   = time.Hour       // others' ends are remembered, so that none is told twice
	pauseFirst    = time.Second     // after a failure; doubles with each
	pauseLast     = time.Minute
	pauseLeast    = 100 * time.Millisecond
	retryAfterMax = time.Hour // no server makes us wait longer
	batchMax      = 256       // alerts in one request to an Alertmanager
	skipAfter     = 5         // failures of one alert, before others are tried
	skipFor       = 2 * pauseLast

	// So many alerts wait for one notifier at most, and such is their size. When a period
	// ends, tens of thousands may end at once, which one that is well takes some time to
	// be told. An alert that waits takes some 1.5 kB of memory, its thread included, and
	// so all of them 150 MB.
	waitingMax = 100_000
	bytesMax   = 80 << 20
)

// style is how a kind of notifier is told.
type style struct {
	batch    int           // alerts at a time
	state    bool          // it knows what is, and not what happened
	again    time.Duration // what is is told again after; 0 is never
	remember time.Duration // an end
}

func (c Config) style() style {
	if c.Alertmanager != nil {
		return style{batch: batchMax, state: true, again: againAfter, remember: resolvedFor}
	}
	return style{batch: 1, remember: rememberFor}
}

// queue is what waits for one notifier. The dispatcher's lock guards it, and nothing
// in here waits.
type queue struct {
	config Config
	style  style
	target target
	key    func(quota.Alert) string // of the thread that an alert belongs to
	full   int                      // waitingMax, but for tests
	epoch  int                      // grows when the threads are made anew

	threads map[string]*thread
	due     dueList
	waits   list.List // threads with pending alerts, in the order of seq
	ended   list.List // those that have ended before anyone was told, in the order of that
	seq     uint64
	waiting int // pending alerts
	bytes   int // and about their size

	fails  int       // attempts in a row that failed
	paused time.Time // until then
	alone  int       // how many of the next alerts are told one by one

	lax     *bool            // the disk fails: tell also what is not on it
	changed func(*thread)    // it is to be saved
	shed    func(alerts int) // were dropped because the queue was full
	wake    chan struct{}    // holds a token while there may be something to do
}

// delivery is one alert on its way.
type delivery struct {
	thread *thread
	alert  quota.Alert
	again  bool // it was taken before
	epoch  int
}

// say takes an alert.
func (q *queue) say(a quota.Alert) {
	key := q.key(a)
	t := q.threads[key]
	if t == nil {
		t = &thread{key: key, saved: saved{Notifier: q.config.Name, State: q.style.state}}
		q.threads[key] = t
	}
	waited := len(t.Pending) > 0
	if q.add(t, a) {
		t.news++
		t.unkept = true
		if !waited {
			q.seq++
			t.Seq = q.seq
		}
	}
	q.settled(t)
	q.bound()
	q.poke()
}

// add takes an alert into a thread, and says whether it is news.
func (q *queue) add(t *thread, a quota.Alert) bool {
	if q.style.state {
		return t.merge(a)
	}
	return t.append(a)
}

// poke wakes the worker.
func (q *queue) poke() { wake(q.wake) }

// settled puts a thread that changed into its place, and has it saved.
func (q *queue) settled(t *thread) {
	q.recount(t)
	q.changed(t)
	if t.Told == nil && len(t.Pending) == 0 && !t.delivered {
		delete(q.threads, t.key)
	}
	q.place(t)
}

func (q *queue) recount(t *thread) {
	size := 0
	for i := range t.Pending {
		size += sizeOf(t.Pending[i])
	}
	q.waiting += len(t.Pending) - t.count
	q.bytes += size - t.sizes
	t.count, t.sizes = len(t.Pending), size
	t.waits = enlist(&q.waits, t.waits, t, t.count > 0)
	t.ended = enlist(&q.ended, t.ended, t, t.pair() >= 0)
}

// enlist has a thread be in a list, or not, and returns its place there.
func enlist(in *list.List, at *list.Element, t *thread, is bool) *list.Element {
	switch {
	case is && at == nil:
		return in.PushBack(t)
	case !is && at != nil:
		in.Remove(at)
		return nil
	}
	return at
}

// place has a thread looked at when its next step is due.
func (q *queue) place(t *thread) {
	if t.listed {
		heap.Remove(&q.due, t.place)
	}
	if at, ok := q.dueAt(t); ok {
		t.at = at
		heap.Push(&q.due, t)
	}
}

// dueAt says when the next step of a thread is due, if it has one.
func (q *queue) dueAt(t *thread) (time.Time, bool) {
	switch {
	case t.delivered, t.Told == nil && len(t.Pending) == 0:
		return time.Time{}, false
	case t.unkept && !*q.lax:
		return time.Time{}, false
	case len(t.Pending) > 0:
		// An Alertmanager waits some time for more before it tells anyone, and an alert
		// that has ended by then is never told.
		held := t.Since.Add(q.style.again)
		if q.style.state && t.Told != nil && t.Told.State == quota.Firing && t.Pending[0].State == quota.Resolved && held.After(t.due) {
			return held, true
		}
		return t.due, true
	case t.Told.State == quota.Resolved:
		end := t.Since.Add(q.style.remember)
		if again := t.last.Add(q.style.again); q.style.again > 0 && again.Before(end) {
			return again, true
		}
		return end, true
	}
	return t.last.Add(q.style.again), q.style.again > 0
}

// kept notes that a thread is on disk, as it was when so much had been said. What is
// told is on disk before: otherwise a kill in between could have it told anew as
// something else.
func (q *queue) kept(t *thread, news int) {
	if t.news == news && t.unkept {
		t.unkept = false
		q.place(t)
		q.poke()
	}
}

// next returns what is to be told now, which is then being delivered, and otherwise
// how long to wait for something.
func (q *queue) next(now time.Time) ([]delivery, time.Duration) {
	if now.Before(q.paused) {
		return nil, q.paused.Sub(now)
	}
	most := q.style.batch
	if q.alone > 0 {
		q.alone--
		most = 1
	}
	var batch []delivery
	for len(batch) < most && len(q.due) > 0 && !q.due[0].at.After(now) {
		t := q.due[0]
		if q.done(t, now) {
			t.Told = nil
			q.settled(t)
			continue
		}
		d := delivery{thread: t, again: len(t.Pending) == 0, epoch: q.epoch}
		if d.again {
			d.alert = *t.Told
		} else {
			d.alert = t.Pending[0]
		}
		t.delivered = true
		q.place(t)
		batch = append(batch, d)
	}
	switch {
	case len(batch) > 0:
		return batch, 0
	case len(q.due) > 0:
		return nil, q.due[0].at.Sub(now)
	}
	return nil, time.Hour
}

// done says whether there is nothing more to say in a thread.
func (q *queue) done(t *thread, now time.Time) bool {
	return len(t.Pending) == 0 && t.Told.State == quota.Resolved && !now.Before(t.Since.Add(q.style.remember))
}

// release takes back what could not be told, for another time.
func (q *queue) release(batch []delivery) {
	for _, d := range batch {
		if d.epoch == q.epoch {
			d.thread.delivered = false
			q.settled(d.thread)
		}
	}
}

// took notes that the notifier took what it was told, and returns how much of it was
// new to it.
func (q *queue) took(batch []delivery, now time.Time) int {
	fresh := 0
	outage := q.fails > 1
	q.fails, q.paused = 0, time.Time{}
	for _, d := range batch {
		if !d.again {
			fresh++
		}
		if d.epoch == q.epoch {
			d.thread.delivered, d.thread.due = false, time.Time{}
			d.thread.told(d.alert, now)
		}
	}
	q.release(batch)
	if outage {
		q.forgive()
	}
	return fresh
}

// forgive has everything told in its order again: it was the notifier's fault.
func (q *queue) forgive() {
	for _, t := range q.threads {
		if !t.due.IsZero() {
			t.due = time.Time{}
			q.place(t)
		}
	}
}

// refused notes that the notifier will never take what it was told. Which of several
// it means is found out by telling them one by one. It returns how many it gives up.
func (q *queue) refused(batch []delivery) int {
	q.fails, q.paused = 0, time.Time{}
	if len(batch) > 1 {
		q.alone = len(batch)
		q.release(batch)
		return 0
	}
	d := batch[0]
	if d.epoch == q.epoch {
		t := d.thread
		switch {
		case d.again:
			t.Told = nil
		case len(t.Pending) > 0 && same(&t.Pending[0], d.alert):
			t.giveUp(0, 1)
		}
		t.tries, t.due = 0, time.Time{}
	}
	q.release(batch)
	return 1
}

// failed notes that telling failed, for now. Then nothing is told for a while; after
// that, the same alert is tried again, or another one if it is only this that fails.
func (q *queue) failed(batch []delivery, why error, now time.Time) {
	q.fails++
	pause := backOff(q.fails)
	var f *failure
	if errors.As(why, &f) {
		pause = max(pause, min(f.after, retryAfterMax))
	}
	q.paused = now.Add(pause)
	if q.style.batch == 1 && (f == nil || !f.everyone) {
		if t := batch[0].thread; batch[0].epoch == q.epoch {
			if t.tries++; t.tries >= skipAfter {
				t.due = now.Add(skipFor)
			}
		}
	}
	q.release(batch)
}

// backOff returns how long to wait after so many failures in a row: a random part of
// a time that doubles, so that many hosts do not come back all at once.
func backOff(fails int) time.Duration {
	longest := pauseLast
	if fails < 7 {
		longest = pauseFirst << (fails - 1)
	}
	return pauseLeast + rand.N(longest)
}

// bound drops the oldest while there is too much: what has ended before anyone
// was told, and only then others.
func (q *queue) bound() {
	dropped := 0
	for q.waiting > q.full || q.bytes > bytesMax {
		t, at, n := q.oldest()
		if t == nil {
			break // all that is left is being delivered
		}
		t.giveUp(at, n)
		dropped += n
		q.settled(t)
	}
	if dropped > 0 {
		q.shed(dropped)
	}
}

// oldest returns where the n alerts are that are to be dropped first.
func (q *queue) oldest() (t *thread, at, n int) {
	for e := q.ended.Front(); e != nil; e = e.Next() {
		t := e.Value.(*thread)
		if at := t.pair(); at >= 0 { // it may be being told the first
			return t, at, 2
		}
	}
	for e := q.waits.Front(); e != nil; e = e.Next() {
		t := e.Value.(*thread)
		first := 0
		if t.delivered {
			if t.State {
				continue // it may be told now that it fires, and so needs its end
			}
			first = 1
		}
		if len(t.Pending) > first {
			return t, first, 1
		}
	}
	return nil, 0, 0
}

// sizeOf returns about how many bytes an alert takes.
func sizeOf(a quota.Alert) int {
	size := 400 + len(a.ID) + len(a.Quota) + len(a.Key) + len(a.Summary)
	for name, value := range a.Labels {
		size += len(name) + len(value) + 8
	}
	return size
}

// dueList is a heap of threads: the one whose step is due first, and of those that are
// due at once the one that has waited longest.
type dueList []*thread

func (l dueList) Len() int { return len(l) }

func (l dueList) Less(i, j int) bool {
	if c := l[i].at.Compare(l[j].at); c != 0 {
		return c < 0
	}
	return l[i].Seq < l[j].Seq
}

func (l dueList) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].place, l[j].place = i, j
}

// Push implements [heap.Interface].
func (l *dueList) Push(x any) {
	t := x.(*thread)
	t.listed, t.place = true, len(*l)
	*l = append(*l, t)
}

// Pop implements [heap.Interface].
func (l *dueList) Pop() any {
	last := len(*l) - 1
	t := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	t.listed = false
	return t
}
