// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// While a listing takes its time, events are dealt with, and what they say stands: the list is
// older.
func TestListingBesideEvents(t *testing.T) {
	inBubble(t, "slow", func(t *testing.T) {
		w := newWorld()
		ends := w.put("ends", 7)
		w.put("stays", 8)
		w.put("unseen", 9)
		for namespace := range uint64(4) {
			w.device(7 + namespace)
		}
		r := run(t, w)
		defer r.stop()
		all := map[string]usage.Reason{"ends": usage.Accounted, "stays": usage.Accounted, "unseen": usage.Accounted}
		r.want(all)

		w.slowList = 5 * time.Second
		w.pass(every) // a list is made, and is on its way
		if w.lists != 2 {
			t.Fatalf("%d lists", w.lists)
		}
		r.send(stoppedEvent(ends), startedEvent(w.put("comes", 10)))
		w.take("ends")
		w.take("unseen") // without an event
		delete(all, "ends")
		all["comes"] = usage.Accounted
		r.want(all)
		w.pass(5 * time.Second)
		r.want(all) // the list has neither, or both

		w.pass(every + 5*time.Second)
		delete(all, "unseen")
		r.want(all)
		if w.accounts.state["ends"] != usage.Stopped || w.accounts.state["comes"] != usage.Running {
			t.Errorf("%v", w.accounts.state)
		}
	})
	inBubble(t, "overflow meanwhile", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		w.slowList = 5 * time.Second
		r.send(watcher.Overflowed{Source: "inotify"})
		w.put("lost", 7)
		w.device(7)
		r.send(watcher.Overflowed{Source: "inotify"}, watcher.Overflowed{Source: "netlink"})
		w.pass(5 * time.Second)
		r.want(map[string]usage.Reason{})
		w.pass(5 * time.Second)
		r.want(map[string]usage.Reason{"lost": usage.Accounted})
		if w.lists != 3 {
			t.Errorf("%d lists, want the first, that of the overflow, and one for all that came meanwhile", w.lists)
		}
	})
}
