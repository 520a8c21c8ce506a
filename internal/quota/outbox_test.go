// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
)

// kept returns the keys of documents that begin with a prefix, without it.
func (b *bench) kept(prefix string) (keys []string) {
	b.beside(func() {
		for key := range b.store.documents {
			if rest, ok := strings.CutPrefix(key, prefix); ok {
				keys = append(keys, rest)
			}
		}
	})
	return keys
}

// next returns the next delivery as "level state", "" for none.
func (b *bench) next(notifier string) string {
	d, ok := b.engine.Next(notifier, 0)
	if !ok {
		return ""
	}
	return d.Alert.Level + " " + d.Alert.State
}

// standing is what fires, or did, for those told by state.
func (b *bench) standing(notifier string) (lines []string) {
	for _, a := range b.engine.Firing(notifier) {
		lines = append(lines, a.Level+" "+a.State)
	}
	return lines
}

// begin begins a save of the alerts alone, whose result is returned.
func (b *bench) begin() result {
	b.keeper.due = time.Now().Add(time.Hour)
	b.keeper.step(time.Now())
	return <-b.keeper.results
}

// Nobody is told of what is not on disk, nor of what came while that was written.
func TestSavedBeforeTold(t *testing.T) {
	b := newBench(t, monthly(func(r *Rule) { r.Notify = []string{"ops", "am"} }))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 500)
	changed := b.engine.Changed()
	b.check(time.Second)
	same(t, b.next("ops"), "")
	same(t, b.standing("am"), []string(nil))
	r := b.begin()
	b.transmit("a1", 300)
	b.check(time.Second)
	select {
	case <-changed:
		t.Error("changed before the save has ended")
	default:
	}
	b.keeper.done(r)
	<-changed
	same(t, len(b.kept(deliveryPrefix)), 1)
	b.deliver()
	same(t, b.took(), []string{"m web 50 firing"})
	same(t, b.standing("am"), []string{"50 firing"})
	b.keeper.done(b.begin())
	same(t, b.next("ops"), "80 firing")
	same(t, b.standing("am"), []string{"50 firing", "80 firing"})

	// An end that is not saved has not come yet.
	if err := b.engine.Set("m", "web", 600); err != nil {
		t.Fatal(err)
	}
	same(t, b.standing("am"), []string{"50 firing", "80 firing"})
	b.keeper.done(b.begin())
	same(t, b.standing("am"), []string{"50 firing", "80 resolved"})
	b.check(endedFor + time.Second)
	same(t, b.standing("am"), []string{"50 firing"})
}

// What a save could not write the next one does, though it was told meanwhile.
func TestFailedSaveIsSavedLater(t *testing.T) {
	b := newBench(t, monthly(func(r *Rule) { r.Notify = []string{"ops", "pager"} }))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 500)
	b.check(time.Second)
	b.store.fail(errDisk)
	b.keeper.done(b.begin())
	b.store.fail(nil)
	same(t, b.told("pager"), []string{"m/web/2026-11-01T00:00:00Z/50 firing"})
	b.keeper.due, b.keeper.trouble = time.Time{}, ""
	b.keeper.step(time.Now())
	b.keeper.done(<-b.keeper.results)
	same(t, b.kept(alertPrefix), []string{"m/web/2026-11-01T00:00:00Z/50"})
	keys := b.kept(deliveryPrefix)
	if len(keys) != 1 || !strings.HasSuffix(keys[0], "/ops") {
		t.Errorf("kept %q, want what waits for ops alone", keys)
	}
	b.restart()
	b.check(time.Second)
	same(t, b.told("ops"), []string{"m/web/2026-11-01T00:00:00Z/50 firing"})
	same(t, b.told("pager"), []string(nil))
}

// Acknowledgements that a save could not write are written later, and those that come while one
// is written by the next.
func TestAcknowledged(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 5000)
	b.check(time.Second)
	b.keeper.done(b.begin())
	ack := func() {
		d, _ := b.engine.Next("ops", 0)
		b.engine.Done(d, false)
	}
	ack()
	r := b.begin()
	ack()
	b.store.fail(errDisk)
	b.keeper.done(r)
	b.keeper.done(b.begin())
	same(t, len(b.kept(deliveryPrefix)), 2)
	b.store.fail(nil)
	b.save()
	same(t, b.took(), []string{"m web 100 firing"})
	same(t, b.kept(deliveryPrefix), []string(nil))
	waiting, dropped := b.engine.Waiting("ops")
	same(t, []int{waiting, int(dropped)}, []int{0, 0})
}

// What is reached just before the end, also while the disk hangs, is told, and what that
// acknowledges is not told again.
func TestToldAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, monthly())
		b.now = time.Now()
		b.start("a1", "web")
		sent := make(chan Alert, 10)
		stop := b.running(sent)
		time.Sleep(1500 * time.Millisecond)
		hang := make(chan struct{})
		b.beside(func() { b.store.hang = hang })
		b.cross()
		time.Sleep(1200 * time.Millisecond)
		same(t, (<-sent).Level, "50") // it has waited long enough
		b.cross()
		time.Sleep(500 * time.Millisecond)
		same(t, len(sent), 0)
		b.beside(func() { b.store.hang = nil })
		time.AfterFunc(100*time.Millisecond, func() { close(hang) })
		stop()
		close(sent)
		var levels []string
		for a := range sent {
			levels = append(levels, a.Level)
		}
		same(t, levels, []string{"80", "100"})
		same(t, b.kept(deliveryPrefix), []string(nil))
		b.restart()
		b.now = time.Now()
		b.pass(0)
		same(t, b.took(), []string(nil))
	})
}

// A notifier that becomes another kind: the webhook that an Alertmanager has become is told what
// fires, and its ends; of what waits for a webhook that becomes an Alertmanager nothing is left.
func TestMeansChanged(t *testing.T) {
	for _, down := range []bool{false, true} {
		b := newBench(t, monthly(func(r *Rule) { r.Notify = []string{"n"} }))
		become := func(m Means) {
			b.means = map[string]Means{"n": m}
			if down {
				b.restart()
			}
			b.pass(time.Second)
		}
		b.means = map[string]Means{"n": ByState}
		b.pass(0)
		b.start("a1", "web")
		b.transmit("a1", 850)
		b.pass(time.Second)
		same(t, b.standing("n"), []string{"50 firing", "80 firing"})
		same(t, b.kept(deliveryPrefix), []string(nil))

		become(ByDelivery)
		same(t, len(b.kept(deliveryPrefix)), 2)
		same(t, b.next("n"), "50 firing")
		b.told("n")
		if err := b.engine.Set("m", "web", 600); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Second)
		same(t, b.next("n"), "80 resolved")
		become(ByState)
		same(t, b.next("n"), "")
		same(t, b.kept(deliveryPrefix), []string(nil))
		same(t, b.standing("n"), []string{"50 firing", "80 resolved"})
		become(ByDelivery)
		same(t, b.told("n"), []string{"m/web/2026-11-01T00:00:00Z/50 firing"})
		b.transmit("a1", 300)
		b.pass(time.Second)
		become(Nobody)
		same(t, b.next("n"), "")
		same(t, b.kept(deliveryPrefix), []string(nil))
		same(t, logged(b, "msg=\"notifier removed\" notifier=n dropped=1"), 1)
	}
}

// The number of deliveries that wait is bounded, and their size.
func TestOutboxIsBounded(t *testing.T) {
	for name, test := range map[string]struct{ summary, send, want int }{
		"number": {0, waitingMax + 10, waitingMax},
		"size":   {1 << 20, 100, 79},
	} {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			o := newOutbox(slog.New(slog.NewTextHandler(&log, nil)))
			o.route(map[string]Means{"n": ByDelivery, "other": ByDelivery})
			o.add("other", Alert{ID: "first"})
			summary := strings.Repeat("x", test.summary)
			for i := range test.send {
				o.add("n", Alert{ID: fmt.Sprint(i), Summary: summary})
			}
			o.publish(everything)
			waiting, dropped := o.Waiting("n")
			same(t, []int{waiting, int(dropped)}, []int{test.want, test.send - test.want})
			first, _ := o.Next("n", 0)
			same(t, first.Alert.ID, fmt.Sprint(test.send-test.want))
			second, _ := o.Next("n", first.Number)
			o.Done(second, true)
			o.Done(second, true)
			if waiting, dropped := o.Waiting("n"); waiting != test.want-1 || int(dropped) != test.send-test.want+1 {
				t.Errorf("%d wait and %d were dropped", waiting, dropped)
			}
			b := &batch{put: map[string][]byte{}}
			o.take(b)
			same(t, len(b.put), test.want) // with that of other
			same(t, strings.Count(log.String(), "too many alerts wait for a notifier"), 1)
		})
	}
}

// While the disk fails, what was told leaves nothing behind but a bounded number of keys.
func TestOutboxIsBoundedWhileDiskFails(t *testing.T) {
	need.Native(t)
	o := newOutbox(slog.New(slog.DiscardHandler))
	o.route(map[string]Means{"n": ByDelivery})
	for i := range goneMax + goneMax/4 {
		o.add("n", Alert{ID: fmt.Sprint(i)})
		o.publish(everything)
		if i%8 > 0 { // a save that fails, mostly with an acknowledgement in between
			b := &batch{put: map[string][]byte{}}
			o.take(b)
			if d, ok := o.Next("n", 0); ok && i%8 > 1 {
				o.Done(d, false)
			}
			o.putBack(b)
		}
		for d, ok := o.Next("n", 0); ok; d, ok = o.Next("n", 0) {
			o.Done(d, false)
		}
	}
	same(t, len(o.fresh), 0)
	if len(o.gone) > goneMax {
		t.Errorf("%d keys are kept", len(o.gone))
	}
}

// What a change of an alert and its acknowledgement cost does not grow with what waits.
func TestOutboxCostsNoMoreWhenFull(t *testing.T) {
	cost := func(waiting int) time.Duration {
		const rounds = 1000
		o := newOutbox(slog.New(slog.DiscardHandler))
		o.route(map[string]Means{"n": ByDelivery})
		for i := range waiting {
			o.add("n", Alert{ID: fmt.Sprint(i)})
		}
		o.take(&batch{put: map[string][]byte{}})
		least := time.Duration(math.MaxInt64)
		for range 10 { // the others were disturbed
			began := time.Now()
			for range rounds {
				o.add("n", Alert{ID: "more"})
				o.publish(everything)
				d, _ := o.Next("n", 0)
				o.Done(d, false)
			}
			least = min(least, time.Since(began))
			o.take(&batch{put: map[string][]byte{}})
		}
		return least
	}
	few, many := cost(10), cost(waitingMax-10)
	if many > 20*few {
		t.Errorf("%s while %d wait, and %s while 10 do", many, waitingMax-10, few)
	}
}

// BenchmarkAdd is a change of an alert, while nothing or very much waits.
func BenchmarkAdd(b *testing.B) {
	for _, waiting := range []int{0, waitingMax} {
		b.Run(fmt.Sprint("waiting=", waiting), func(b *testing.B) {
			o := newOutbox(slog.New(slog.DiscardHandler))
			o.route(map[string]Means{"n": ByDelivery})
			for i := range waiting {
				o.add("n", Alert{ID: fmt.Sprint(i)})
			}
			for b.Loop() {
				o.add("n", Alert{ID: "more"})
				d, _ := o.Next("n", 0)
				o.Done(d, false)
				o.fresh, o.gone = o.fresh[:0], o.gone[:0]
			}
		})
	}
}

// Alerts of the time in which the disk could not be read are told once: not again when it can
// be, also if they are under way then, nor if the earlier process had told them.
func TestOutboxLoadedLate(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("other"), func(r *Rule) { r.Limit = 2000 }))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 500)
	b.pass(time.Second)
	b.transmit("a1", 300)
	b.check(time.Second)
	b.keeper.done(b.begin())
	same(t, b.took(), []string{"m web 50 firing"})
	same(t, b.next("ops"), "80 firing") // it waits

	b.store.fail(errDisk)
	b.restart()
	b.rules = append(b.rules, monthly(named("new"), every(Lifetime)))
	b.transmit("a1", 300)
	b.check(time.Second)
	b.keeper.retry = time.Time{}
	b.keeper.step(time.Now())
	b.keeper.done(<-b.keeper.results)
	var levels []string
	d, ok := b.engine.Next("ops", 0)
	for ; ok && d.Alert.Quota != "new"; d, ok = b.engine.Next("ops", 0) {
		levels = append(levels, d.Alert.Quota+" "+d.Alert.Level)
		b.engine.Done(d, false)
	}
	same(t, d.Alert.Quota+" "+d.Alert.Level, "new 50") // and is under way
	b.store.fail(nil)
	b.keeper.retry = time.Time{}
	b.keeper.step(time.Now())
	b.keeper.done(<-b.keeper.results)
	b.engine.Done(d, false)
	b.check(time.Second)
	b.save()
	for _, a := range b.sent {
		levels = append(levels, a.Quota+" "+a.Level)
	}
	counts := map[string]int{}
	for _, level := range levels {
		counts[level]++
	}
	same(t, counts["m 100"], 1)
	if counts["m 80"] == 0 || counts["other 50"] != 1 {
		t.Errorf("told %v", counts)
	}
	same(t, b.kept(deliveryPrefix), []string(nil))
}
