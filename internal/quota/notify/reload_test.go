// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/quota"
)

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBench(t, store, hook("a"), hook("gone"))
		b.catch("a").set(func(quota.Alert) error { return errAway })
		b.catch("gone").set(func(quota.Alert) error { return errAway })
		stop := b.run()
		b.Send(firing("50", "a", "gone"))
		b.Send(firing("80", "gone", "unheard-of"))
		time.Sleep(time.Minute)

		changed := hook("a")
		changed.Log, changed.Webhook = &Log{}, nil
		b.configure(changed, Config{Name: "new", Log: &Log{}})
		time.Sleep(2 * refreshEvery)
		b.Send(firing("100", "new"))
		time.Sleep(time.Second)
		stop()
		for _, want := range []string{
			`msg="quota alert" notifier=a state=firing quota=monthly key=web-1 level=50`,
			`msg="quota alert" notifier=new state=firing quota=monthly key=web-1 level=100`,
			`msg="notifier changed" notifier=a waiting=1`,
			`msg="notifier removed" notifier=gone dropped=2`,
			`msg="an alert is for a notifier that does not exist" notifier=unheard-of alert=80`,
		} {
			if !strings.Contains(b.log.String(), want) {
				t.Errorf("the log has no %q:\n%s", want, b.log.String())
			}
		}
		for _, s := range store.threads(t) {
			if s.Notifier == "gone" {
				t.Errorf("a notifier that was removed is kept: %+v", s)
			}
		}
		if n := testutil.CollectAndCount(b.metrics.queue); n != 2 {
			t.Errorf("%d series, want those of the two notifiers that there are", n)
		}
	})
}

// A notifier may be removed while nettally is down, or become another kind.
func TestRestartWithAnotherConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), hook("a"), hook("gone"), manager("m"))
		for _, name := range []string{"gone", "m"} {
			b.catch(name).set(func(quota.Alert) error { return errAway })
		}
		a := b.catch("a")
		stop := b.run()
		b.Send(firing("50", "a", "gone", "m"))
		synctest.Wait()
		wantSaid(t, a, "50 firing")
		a.set(func(quota.Alert) error { return errAway })
		b.Send(firing("80", "a", "m"))
		b.Send(resolved("80", "a", "m"))
		time.Sleep(time.Second)
		stop()

		// Both change places: an Alertmanager is to know what fires, also of what the
		// webhook has been told.
		b.configure(manager("a"), hook("m"))
		b.restart()
		a, m := b.catch("a"), b.catch("m")
		stop = b.run()
		synctest.Wait()
		wantSaid(t, a, "50 firing", "80 firing")
		wantSaid(t, m, "50 firing", "80 firing", "80 resolved")
		if !strings.Contains(b.log.String(), `msg="notifier removed" notifier=gone dropped=1`) {
			t.Errorf("nothing says what was dropped:\n%s", b.log.String())
		}
		b.configure(hook("a"), hook("m"))
		time.Sleep(2 * refreshEvery)
		stop()

		b.restart()
		a = b.catch("a")
		stop = b.run()
		synctest.Wait()
		stop()
		wantSaid(t, a, "80 resolved")
	})
}
