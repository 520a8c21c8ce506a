// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// A user makes a thousand containers at once. Looking at them takes turns, and root's containers
// wait for none.
func TestUsersWaitTheirTurn(t *testing.T) {
	inBubble(t, "all are looked at", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		const many = 1000
		var events []watcher.Event
		for n := range many {
			events = append(events, startedEvent(w.put(fmt.Sprintf("1000~%d", n), 0)))
		}
		r.send(append(events, startedEvent(w.put("web", 7)), watcher.LinkMoved{NetNSID: 3})...)
		want := map[string]usage.Reason{"web": usage.Starting}
		for n := range many {
			want[fmt.Sprintf("1000~%d", n)] = usage.Starting
			if !slices.Contains(w.located, fmt.Sprintf("1000~%d", n)) {
				t.Errorf("%d was not looked at", n)
			}
		}
		r.want(want)
	})
	inBubble(t, "one turn", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		r.stop() // so that each step is the test's
		for n := range 3 * perTurn {
			r.started(watcher.Container{ID: fmt.Sprintf("1000~%d", n), CreatedAt: time.Now()})
			time.Sleep(time.Microsecond)
		}
		if len(w.located) != 0 {
			t.Fatalf("%d were looked at before their turn", len(w.located))
		}
		r.started(watcher.Container{ID: "web", CreatedAt: time.Now()})
		if !slices.Equal(w.located, []string{"web"}) {
			t.Fatalf("%q were looked at, want root's", w.located)
		}
		r.members[Key{ID: "web"}].look.soon()
		w.located = nil
		r.lookAgain()
		if len(w.located) != perTurn+1 || w.located[0] != "1000~0" && w.located[0] != "web" || !slices.Contains(w.located, fmt.Sprintf("1000~%d", perTurn-1)) {
			t.Errorf("%q were looked at in a turn", w.located)
		}
		r.follow([]Hint{{NSID: 3}})
		if len(w.located) != perTurn+2 {
			t.Errorf("%d were looked at by a hint", len(w.located))
		}
	})
}

// An interface that comes into a namespace has root's containers looked at, and those of a user
// who has a few: not those of a crowd.
func TestHintsLeaveCrowdsAlone(t *testing.T) {
	inBubble(t, "hint", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		r.stop() // so that each step is the test's
		for n := range crowdOf {
			r.started(watcher.Container{ID: fmt.Sprintf("1000~%d", n), CreatedAt: time.Now()})
		}
		for _, id := range []string{"web", "2000~a"} {
			r.started(watcher.Container{ID: id, CreatedAt: time.Now()})
		}
		for _, m := range r.members {
			m.look.stop()
		}
		r.follow([]Hint{{NSID: 3}, {Key: Key{ID: "1000~7"}}})
		for id, m := range r.members {
			if want := id.ID == "2000~a" || id.ID == "1000~7" || id.ID == "web"; m.look.planned() != want {
				t.Errorf("%s will be looked at: %t", id.ID, !want)
			}
		}
	})
}

// The more containers a user has, the less often each is looked at while it starts.
func TestCrowd(t *testing.T) {
	inBubble(t, "crowd", func(t *testing.T) {
		looks := func(members int) float64 {
			w := newWorld()
			r := run(t, w)
			defer r.stop()
			var events []watcher.Event
			for n := range members {
				events = append(events, startedEvent(w.put(fmt.Sprintf("1000~%d", n), 0)))
			}
			r.send(events...)
			w.pass(10 * time.Second) // the first looks are close together
			before := len(w.located)
			w.pass(20 * time.Second)
			return float64(len(w.located)-before) / float64(members)
		}
		few, many := looks(crowdOf/2), looks(4*crowdOf)
		if few < 15 || many > few/3 {
			t.Errorf("each of a few is looked at %.1f times in 20 s, each of many %.1f times", few, many)
		}
	})
}
