// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// running runs an engine, and who is told of its alerts, in a bubble of its own time. The
// returned function ends both.
func (b *bench) running(sent chan<- Alert) (stop func()) {
	b.host.lives = true
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	ended, drained := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(drained)
		for last := false; !last; {
			changed := b.engine.Changed()
			select {
			case <-ended:
				last = true
			default:
			}
			for d, ok := b.engine.Next("ops", 0); ok; d, ok = b.engine.Next("ops", 0) {
				sent <- d.Alert
				b.engine.Done(d, false)
			}
			select {
			case <-changed:
			case <-ended:
			}
		}
	}()
	go func() {
		done <- b.engine.Run(ctx, func(bool) (snap usage.Snapshot) {
			b.beside(func() {
				b.asked++
				snap = usage.Snapshot{TakenAt: time.Now(), Containers: slices.Clone(b.containers)}
			})
			return snap
		})
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
		close(ended)
		<-drained
		b.engine.Flush()
	}
}

// cross has the first container pass a level.
func (b *bench) cross() time.Time {
	b.beside(func() { b.transmit("a1", 600) })
	return time.Now()
}

// An alert is handed over within two seconds, whatever the disk does.
func TestAlertsLeaveInTime(t *testing.T) {
	for name, prepare := range map[string]func(*memory) (end func()){
		"good":  func(*memory) func() { return func() {} },
		"fails": func(m *memory) func() { m.fail(errDisk); return func() { m.fail(nil) } },
		"hangs": func(m *memory) func() {
			hang := make(chan struct{})
			m.mu.Lock()
			m.hang = hang
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				m.hang = nil
				m.mu.Unlock()
				close(hang)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, monthly())
				b.now = time.Now()
				b.start("a1", "web")
				sent := make(chan Alert, 100)
				stop := b.running(sent)
				time.Sleep(5500 * time.Millisecond)
				end := prepare(b.store)
				for n := range 2 {
					at := b.cross()
					a := <-sent
					if took := time.Since(at); took > 1500*time.Millisecond {
						t.Errorf("alert %d took %v", n, took)
					}
					same(t, a.Level, []string{"50", "80"}[n])
					if n == 1 {
						same(t, (<-sent).Level, "100")
					}
					time.Sleep(30 * time.Second)
				}
				end()
				time.Sleep(30 * time.Second)
				stop()
				same(t, len(sent), 0)
				if name == "good" != (logged(b, "quotas are not kept on disk") == 0) && name != "hangs" {
					t.Errorf("log: %s", b.log.String())
				}
				if n := logged(b, "quotas are not kept on disk"); n > 1 {
					t.Errorf("said %d times that quotas are not kept", n)
				}
				// All is on disk, and nothing is said again.
				b.restart()
				b.now = time.Now()
				b.pass(time.Second)
				same(t, b.took(), []string(nil))
				same(t, b.used(), map[string]uint64{"m/web": 1200})
			})
		})
	}
}

// Who is stopped while the disk hangs ends once the store has given up: on the save that is under
// way, on the last one and on that of Flush. What is not on disk is told half a second after it
// was reached, as at other times, and not before. With a disk that works nothing is lost after
// the next start, and what was saved is not told again.
func TestStopWithHangingDisk(t *testing.T) {
	for name, test := range map[string]struct {
		crosses int           // levels that are reached while the disk hangs, a second apart
		after   time.Duration // is the stop, half a second less after the check that finds the last one
	}{
		"nothing waits":     {0, 700 * time.Millisecond},
		"an alert waits":    {1, 700 * time.Millisecond},
		"an alert was told": {1, 1200 * time.Millisecond},
		"the next waits":    {2, 700 * time.Millisecond},
	} {
		for _, silent := range []int{1, 2, 3} {
			t.Run(fmt.Sprint(name, ", ", silent, " saves"), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					to := func(name, notifier string) Rule {
						return monthly(named(name), func(r *Rule) {
							r.Limit, r.AlertAt, r.Notify = 2400, []int{25, 50, 75}, []string{notifier}
						})
					}
					b := newBench(t, to("told", "ops"), to("waits", "pager")) // nobody tells pager for now
					b.now = time.Now()
					b.start("a1", "web")
					sent := make(chan Alert, 10)
					stop := b.running(sent)
					time.Sleep(1500 * time.Millisecond)
					b.cross()
					time.Sleep(time.Second)
					saves := 0
					b.beside(func() { saves, b.store.silent = b.store.saves, silent })
					b.beside(func() { b.transmit("a1", 100) })
					for n := range test.crosses {
						if n > 0 {
							time.Sleep(time.Second)
						}
						b.cross()
					}
					time.Sleep(test.after)

					took := make(chan time.Duration)
					began := time.Now()
					go func() { stop(); took <- time.Since(began) }()
					early := 1 + test.crosses
					if test.crosses > 0 && test.after < time.Second {
						early--
					}
					time.Sleep(patience - 201*time.Millisecond)
					synctest.Wait()
					same(t, len(sent), early)
					time.Sleep(2 * time.Millisecond)
					synctest.Wait()
					same(t, len(sent), 1+test.crosses)
					if took := <-took; took > time.Duration(silent)*silence {
						t.Errorf("stopping took %s while %d saves got no answer", took, silent)
					}
					same(t, len(sent), 1+test.crosses)

					saved := b.store.saves > saves
					same(t, saved, silent < 3 && (test.crosses > 0 || silent < 2))
					b.store.silent = 0
					b.restart()
					b.now = time.Now()
					b.check(time.Second)
					b.deliver() // what was saved
					b.save()
					want := []string{"waits web 25 firing"}
					for _, level := range []string{"50", "75"}[:test.crosses] {
						want = append(want, "waits web "+level+" firing")
						if !saved {
							want = append(want, "told web "+level+" firing")
						}
					}
					same(t, slices.Sorted(slices.Values(b.took())), slices.Sorted(slices.Values(want)))
					used := uint64(700 + 600*test.crosses)
					same(t, b.used(), map[string]uint64{"told/web": used, "waits/web": used})
					same(t, len(b.kept(alertPrefix)), 2*(1+test.crosses))
					same(t, b.kept(deliveryPrefix), []string(nil))
				})
			})
		}
	}
}

// A disk that can't be read at the start stops no checks, and what was saved is found
// again when it can.
func TestLoadedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, monthly())
		b.now = time.Now()
		b.start("a1", "web")
		b.pass(0)
		b.transmit("a1", 700)
		b.pass(time.Second)
		same(t, b.took(), []string{"m web 50 firing"})

		b.store.fail(errDisk)
		b.restart()
		sent := make(chan Alert, 100)
		b.rules = append(b.rules, monthly(named("new"), func(r *Rule) { r.Limit = 500 }))
		stop := b.running(sent)
		time.Sleep(3 * time.Second)
		if err := b.engine.Set("m", "", 0); err == nil || !strings.Contains(err.Error(), "not known yet") {
			t.Errorf("set: %v", err)
		}
		b.cross()
		time.Sleep(3 * time.Second)
		b.store.fail(nil)
		time.Sleep(20 * time.Second)
		stop()
		same(t, b.used(), map[string]uint64{"m/web": 1300, "new/web": 600})
		close(sent)
		levels := map[string]int{}
		for a := range sent {
			levels[a.Quota+" "+a.Level+" "+a.State]++
		}
		for _, once := range []string{"m 80 firing", "m 100 firing"} {
			if levels[once] != 1 {
				t.Errorf("%s: %d times in %v", once, levels[once], levels)
			}
		}
		// Of the rule that nothing was kept of, what had fired is over with the load. It is true
		// again at once, which must not be kept quiet.
		if levels["new 100 firing"] != levels["new 100 resolved"]+1 {
			t.Errorf("new 100 does not fire in the end: %v", levels)
		}
	})
}

// What is saved can be read as it was: a round trip by way of JSON.
func TestSavedIsWhatWasKnown(t *testing.T) {
	b := newBench(t, monthly(func(r *Rule) { r.Projection = true }), rolling(time.Hour), syn(0))
	b.rules[1].Name = "window"
	b.pass(0)
	b.start("a1", "web/ü \x01")
	b.transmit("a1", 123)
	b.pass(time.Minute)
	b.transmit("a1", 1<<62)
	b.pass(time.Minute)
	for key, value := range b.store.documents {
		if !json.Valid(value) {
			t.Errorf("%s: %s", key, value)
		}
	}
	before := b.engine.Status()
	b.restart()
	b.pass(0)
	after := b.engine.Status()
	for i := range after {
		if after[i].Unit == "requests/s" {
			after[i].Used, before[i].Used, after[i].Ratio, before[i].Ratio = 0, 0, 0, 0
		}
		// The bounds have lost their monotonic reading and location.
		same(t, after[i].PeriodEnd.Equal(before[i].PeriodEnd), true)
		after[i].PeriodStart, after[i].PeriodEnd = before[i].PeriodStart, before[i].PeriodEnd
	}
	same(t, after, before)
}

// A document that makes no sense costs what is in it, and no more.
func TestUnreadableDocuments(t *testing.T) {
	for key, want := range map[string]uint64{"used/m/web": 5, "last/a1": 700, "alert/x": 705, "other": 705} {
		b := newBench(t, monthly())
		b.pass(0)
		b.start("a1", "web")
		b.start("b2", "web")
		b.transmit("a1", 600)
		b.transmit("b2", 100)
		b.pass(time.Second)
		b.store.documents[key] = []byte("{")
		b.transmit("a1", 5)
		b.restart()
		b.pass(time.Second)
		same(t, b.used(), map[string]uint64{"m/web": want})
		same(t, logged(b, "document="+key), map[bool]int{true: 1, false: 0}[key != "other"])
	}
}

// Nobody is asked for usage while there is no rule, and all is as at the first start when
// one comes.
func TestNobodyIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.now = time.Now()
		b.start("a1", "web")
		b.transmit("a1", 300)
		stop := b.running(nil)
		time.Sleep(5500 * time.Millisecond)
		synctest.Wait()
		b.beside(func() {
			same(t, b.asked, 0)
			b.rules = []Rule{monthly()}
		})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.beside(func() { same(t, b.asked, 2) })
		same(t, b.used(), map[string]uint64{"m/web": 0})
		stop()
	})
}
