// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Bounds on the deliveries that wait for one notifier. When a period ends, tens of thousands
// of alerts may end at once. A delivery takes about 700 bytes of memory.
const (
	waitingMax = 100_000
	bytesMax   = 80 << 20
	// shedEvery is how often the log says that deliveries were dropped.
	shedEvery = time.Minute
	// goneMax bounds the keys that are to be deleted while the disk fails.
	goneMax = 2 * waitingMax
)

// Means is how a notifier is told.
type Means uint8

const (
	// Nobody is a name that no notifier has.
	Nobody Means = iota
	// ByDelivery tells a notifier each change of an alert, once and in order: see [Engine.Next].
	ByDelivery
	// ByState tells a notifier what fires, again and again: see [Engine.Firing].
	ByState
)

// A Delivery is one change of an alert that one notifier is to be told.
type Delivery struct {
	Notifier string
	Alert    Alert
	Number   uint64 // ascending among those that wait, over restarts too

	queued  *Delivery // the one that this is a copy of
	written bool      // it may be on disk
}

func (d *Delivery) key() string {
	return deliveryPrefix + strconv.FormatUint(d.Number, 10) + "/" + d.Notifier
}

// size returns about how many bytes a delivery takes.
func (d *Delivery) size() int {
	size := 400 + len(d.Alert.ID) + len(d.Alert.Quota) + len(d.Alert.Key) + len(d.Alert.Summary)
	for name, value := range d.Alert.Labels {
		size += len(name) + len(value) + 8
	}
	return size
}

// outbox holds the deliveries that are not acknowledged yet. Its methods are safe for
// concurrent use, and wait for nothing but its lock.
type outbox struct {
	log *slog.Logger

	mu      sync.Mutex
	means   map[string]Means
	queues  map[string]*queue
	dropped map[string]uint64 // by notifier, in this process
	number  uint64            // of the last change of an alert, or delivery
	// ready is the number up to which all is on disk, or has waited for the disk for long
	// enough. What is above it is told nobody.
	ready   uint64
	fresh   []*Delivery   // those that wait and are not written yet, in order
	gone    []string      // keys of documents to delete
	changed chan struct{} // closed at the next change
	acks    chan struct{} // holds a token while there may be documents to delete
}

// queue is what waits for one notifier, in order.
type queue struct {
	waiting []*Delivery
	bytes   int
	shed    int       // not logged yet
	logged  time.Time // when the log said so last
}

func newOutbox(log *slog.Logger) *outbox {
	return &outbox{log: log, queues: map[string]*queue{}, dropped: map[string]uint64{}, changed: make(chan struct{}), acks: make(chan struct{}, 1)}
}

// Next returns the first delivery for a notifier whose number is above after, and false while
// there is none. It stays the next one until it is [Engine.Done]. It is on disk, or older than
// half a second.
func (o *outbox) Next(notifier string, after uint64) (Delivery, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[notifier]
	if q == nil {
		return Delivery{}, false
	}
	i, _ := q.find(after + 1)
	if i == len(q.waiting) || q.waiting[i].Number > o.ready {
		return Delivery{}, false
	}
	d := *q.waiting[i]
	d.queued = q.waiting[i]
	return d, true
}

// Done acknowledges a delivery: its notifier took it, or it was dropped, which is counted. That
// is on disk some milliseconds later, many at once; after a kill before that the delivery is
// the next one again.
func (o *outbox) Done(d Delivery, dropped bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[d.Notifier]
	if q == nil || d.queued == nil {
		return
	}
	if i, found := q.find(d.queued.Number); found && q.waiting[i] == d.queued {
		o.remove(q, i)
		if dropped {
			o.dropped[d.Notifier]++
		}
	}
}

// Waiting returns how many deliveries a notifier is still to be told, and how many were
// dropped in this process.
func (o *outbox) Waiting(notifier string) (waiting int, dropped uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if q := o.queues[notifier]; q != nil {
		waiting = len(q.waiting)
	}
	return waiting, o.dropped[notifier]
}

// Changed returns a channel that is closed when [Engine.Next] or [Engine.Firing] may have
// something new.
func (o *outbox) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

func (q *queue) find(number uint64) (int, bool) { return find(q.waiting, number) }

// find returns where the first delivery is whose number is not below another.
func find(in []*Delivery, number uint64) (int, bool) {
	if len(in) > 0 && in[0].Number >= number { // nearly always
		return 0, in[0].Number == number
	}
	return slices.BinarySearchFunc(in, number, func(d *Delivery, n uint64) int { return cmp.Compare(d.Number, n) })
}

// cut takes one out. It is nearly always the first.
func cut(from []*Delivery, i int) []*Delivery {
	if i > 0 {
		return slices.Delete(from, i, i+1)
	}
	from[0] = nil
	return from[1:]
}

// remove takes a delivery out, on disk too. The caller holds mu.
func (o *outbox) remove(q *queue, i int) {
	d := q.waiting[i]
	q.bytes -= d.size()
	q.waiting = cut(q.waiting, i)
	if at, found := find(o.fresh, d.Number); found {
		o.fresh = cut(o.fresh, at)
	}
	// While the disk fails, what was in vain to be written is hardly there.
	if d.written && len(o.gone) < goneMax {
		o.gone = append(o.gone, d.key())
	}
	select {
	case o.acks <- struct{}{}:
	default: // a token is waiting already
	}
}

// draw returns the number of another change.
func (o *outbox) draw() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.number++
	return o.number
}

// add queues a change of an alert for a notifier that is told by delivery.
func (o *outbox) add(notifier string, a Alert) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.means[notifier] != ByDelivery {
		return
	}
	o.number++
	d := &Delivery{Notifier: notifier, Alert: a, Number: o.number}
	o.fresh = append(o.fresh, d)
	o.push(d)
}

// push queues a delivery, and drops the oldest while there are too many. The caller holds mu.
func (o *outbox) push(d *Delivery) {
	q := o.queues[d.Notifier]
	if q == nil {
		q = &queue{}
		o.queues[d.Notifier] = q
	}
	q.waiting = append(q.waiting, d)
	q.bytes += d.size()
	for len(q.waiting) > waitingMax || q.bytes > bytesMax {
		o.remove(q, 0)
		o.dropped[d.Notifier]++
		q.shed++
	}
	if q.shed > 0 && time.Since(q.logged) >= shedEvery {
		o.log.Warn("too many alerts wait for a notifier; the oldest were dropped", "notifier", d.Notifier, "dropped", q.shed)
		q.shed, q.logged = 0, time.Now()
	}
}

// route takes over which notifiers there are, and reports whether that has changed. Whoever is
// not told by delivery any more has no queue.
func (o *outbox) route(means map[string]Means) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, q := range o.queues {
		if means[name] == ByDelivery {
			continue
		}
		if means[name] == Nobody {
			o.log.Info("notifier removed", "notifier", name, "dropped", len(q.waiting))
			delete(o.dropped, name)
		}
		for len(q.waiting) > 0 {
			o.remove(q, 0)
		}
		delete(o.queues, name)
	}
	if maps.Equal(means, o.means) {
		return false
	}
	o.means = maps.Clone(means)
	return true
}

func (o *outbox) meansOf(notifier string) Means {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.means[notifier]
}

// publish lets what is numbered up to a number be told.
func (o *outbox) publish(upTo uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if upTo = min(upTo, o.number); upTo > o.ready {
		o.ready = upTo
		o.wake()
	}
}

// wake wakes whoever waits for a change. The caller holds mu.
func (o *outbox) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// upTo returns the number up to which all may be told, and the last that was drawn.
func (o *outbox) upTo() (ready, last uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ready, o.number
}

// dirty reports whether there is something to write or to delete.
func (o *outbox) dirty() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.fresh)+len(o.gone) > 0
}

// take adds what is to be written and deleted to a batch.
func (o *outbox) take(b *batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b.sequence = o.number
	b.gone, o.gone = o.gone, nil
	b.drop = slices.Clip(b.gone)
	b.deliveries, o.fresh = o.fresh, nil
	for _, d := range b.deliveries {
		d.written = true
		b.add(d.key(), d.Alert)
	}
}

// putBack lets what could not be written be written later.
func (o *outbox) putBack(b *batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	acknowledged := func(d *Delivery) bool {
		q := o.queues[d.Notifier]
		if q == nil {
			return true
		}
		_, waits := q.find(d.Number)
		return !waits
	}
	o.fresh = append(slices.DeleteFunc(b.deliveries, acknowledged), o.fresh...)
	room := max(goneMax-len(b.gone), 0)
	o.gone = append(b.gone, o.gone[:min(room, len(o.gone))]...)
}

// reset begins a restore: nothing was written before.
func (o *outbox) reset(means map[string]Means) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.means, o.gone = maps.Clone(means), nil
}

// forget deletes a document.
func (o *outbox) forget(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = append(o.gone, key)
}

// restore puts saved deliveries before those that were queued while they were not known. last is
// the highest number that was saved, and known reports whether an alert was: what an earlier
// process has queued is not queued again.
func (o *outbox) restore(saved []*Delivery, last uint64, known func(id string) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	queued := o.queues
	o.queues, o.fresh = map[string]*queue{}, nil
	slices.SortFunc(saved, func(a, b *Delivery) int { return cmp.Compare(a.Number, b.Number) })
	for _, d := range saved {
		o.push(d)
	}
	for _, q := range queued {
		for _, d := range q.waiting {
			d.Number += last
			d.written = false
			if !known(d.Alert.ID) {
				o.fresh = append(o.fresh, d)
				o.push(d)
			}
		}
	}
	slices.SortFunc(o.fresh, func(a, b *Delivery) int { return cmp.Compare(a.Number, b.Number) })
	o.number += last
	o.ready += last
	o.wake()
}
