// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// A notifier that is changed gets what waits at its new address; one that is removed is told
// nothing more, and has no series.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"), hook("gone"))
		gone := b.catch("gone")
		b.catch("a").set(func(quota.Alert) error { return errAway })
		gone.set(func(quota.Alert) error { return errAway })
		stop := b.run()
		b.Send(firing("50", "a", "gone"))
		b.Send(firing("80", "gone"))
		time.Sleep(time.Minute)

		b.mu.Lock()
		delete(b.receivers, "a")
		b.mu.Unlock()
		changed := hook("a")
		changed.Log, changed.Webhook = &Log{}, nil
		b.configure(changed, Config{Name: "new", Log: &Log{}})
		time.Sleep(2 * refreshEvery)
		b.Send(firing("100", "new"))
		gone.set(nil)
		time.Sleep(time.Hour)
		stop()
		wantSaid(t, gone)
		for _, want := range []string{
			`msg="quota alert" notifier=a state=firing quota=monthly key=web-1 level=50`,
			`msg="quota alert" notifier=new state=firing quota=monthly key=web-1 level=100`,
			`msg="notifier changed" notifier=a waiting=1`,
		} {
			if !strings.Contains(b.log.String(), want) {
				t.Errorf("the log has no %q:\n%s", want, b.log.String())
			}
		}
		if a, gone := b.metric("sent_total", "a"), b.metric("sent_total", "gone"); a != 1 || gone != -1 {
			t.Errorf("sent is %v, and %v of the notifier that is gone, want 1 and none", a, gone)
		}
	})
}

// Two workers of one notifier are never at work at a time, so that its order is kept.
func TestReloadDuringAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"))
		old := b.catch("a")
		old.set(func(quota.Alert) error { time.Sleep(5 * time.Second); return nil })
		stop := b.run()
		b.Send(firing("50", "a"))
		synctest.Wait()
		b.Send(firing("80", "a"))
		a := b.catch("a")
		again := hook("a")
		again.Timeout = time.Minute
		b.configure() // removed, and there again
		time.Sleep(refreshEvery)
		b.configure(again)
		time.Sleep(2 * refreshEvery)
		wantSaid(t, a)
		time.Sleep(10 * time.Second)
		stop()
		wantSaid(t, old, "50 firing")
		wantSaid(t, a, "80 firing")
	})
}

// A webhook that becomes an Alertmanager is told what fires, and one that was an Alertmanager
// what is delivered to it, while nettally runs.
func TestReloadToAnotherKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, hook("a"))
		first := b.catch("a")
		stop := b.run()
		b.Send(firing("50", "a"))
		b.Send(firing("80", "a"))
		synctest.Wait()
		wantSaid(t, first, "50 firing", "80 firing")
		m := b.catch("a")
		b.configure(managed("a"))
		time.Sleep(2 * refreshEvery)
		wantSaid(t, m, "50 firing", "80 firing")
		time.Sleep(firesAtLeast)
		b.Send(resolved("50", "a"))
		synctest.Wait()
		wantSaid(t, m, "50 firing", "80 firing", "50 firing", "80 firing", "50 resolved")
		last := b.catch("a")
		b.configure(hook("a"))
		b.Send(resolved("80", "a"))
		time.Sleep(2 * refreshEvery)
		stop()
		wantSaid(t, last, "80 resolved")
		if n := len(slices.Compact(first.said())); n != 2 {
			t.Errorf("the first webhook was told %d times, want 2", n)
		}
	})
}
