// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// extent is what the backend was told last of a container.
func (w *world) extent(id string) Extent { return w.updated[Key{ID: id}].Extent }

// Where the processes of a container are in several namespaces, all of them say what becomes
// of it: after time to find out, and then at every reconcile.
func TestSpread(t *testing.T) {
	for _, row := range []struct {
		name    string
		spread  watcher.Spread
		ownOnly bool
		want    usage.Reason
	}{
		{"together", watcher.Together, true, usage.Accounted},
		{"apart", watcher.Apart, true, usage.SeveralNetworks},
		{"apart, with an end in the host", watcher.Apart, false, usage.SeveralNetworks},
		{"one in the host's", watcher.AlsoInHost, true, usage.HostNetwork},
		{"a supervisor in the host's", watcher.AlsoInHost, false, usage.SeveralNetworks},
		{"too many", watcher.Unsure, true, usage.HostNetwork},
		{"too many, with an end in the host", watcher.Unsure, false, usage.SeveralNetworks},
	} {
		for _, when := range []string{"from the start", "later"} {
			inBubble(t, row.name+" "+when, func(t *testing.T) {
				w := newWorld()
				w.ownOnly = row.ownOnly
				d := w.device(7)
				c := w.put("a", 7)
				if when == "from the start" {
					w.spread["a"] = row.spread
				}
				r := run(t, w)
				defer r.stop()
				r.send(startedEvent(c))
				w.pass(startedAfter)
				w.spread["a"] = row.spread
				w.pass(every + confirmAfter)
				r.want(map[string]usage.Reason{"a": row.want})
				r.owned(d, "a")
				if now := w.extent("a"); (now == InMore) != (row.want != usage.Accounted) {
					t.Errorf("its extent is %v", now)
				}
				w.pass(3 * every)
				r.want(map[string]usage.Reason{"a": row.want})
			})
		}
	}
}

// A process that only passes through the host's namespace, at one look or at several that are
// not in a row, changes nothing but that the cgroup is counted meanwhile.
func TestPassingThrough(t *testing.T) {
	inBubble(t, "helper", func(t *testing.T) {
		w := newWorld()
		w.device(7)
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", 7)))
		w.pass(time.Second)
		for range 5 {
			w.spread["a"] = watcher.AlsoInHost
			r.Reload()
			w.pass(0)
			r.want(map[string]usage.Reason{"a": usage.Accounted})
			if w.extent("a") != MaybeInMore {
				t.Fatalf("extent %v: what it sends there may be missed", w.extent("a"))
			}
			w.spread["a"] = watcher.Together
			w.pass(confirmAfter)
			if w.extent("a") != InOne || r.members[Key{ID: "a"}].look.planned() {
				t.Fatalf("extent %v after it has left", w.extent("a"))
			}
			w.spread["a"] = watcher.AlsoInHost // and no look sees it
			w.pass(time.Second)
			w.spread["a"] = watcher.Together
			w.pass(every)
			r.want(map[string]usage.Reason{"a": usage.Accounted})
		}
	})
	inBubble(t, "all at once", func(t *testing.T) {
		w := newWorld()
		d := w.device(7)
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", 7)))
		w.pass(time.Minute)
		w.place("a", inHost) // it is started anew in its cgroup
		r.Reload()
		w.pass(confirmAfter / 2)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		w.place("a", 7)
		w.pass(2 * every)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		r.owned(d, "a")
		w.place("a", inHost) // and stays there
		w.pass(every + confirmAfter)
		r.want(map[string]usage.Reason{"a": usage.HostNetwork})
	})
}

// A container in the host's network that makes a namespace of its own stays one of the host's
// network without a moment between, and what is in that namespace is its, too.
func TestLeavingHost(t *testing.T) {
	start := func(t *testing.T, w *world) *running {
		r := run(t, w)
		r.send(startedEvent(w.put("a", inHost)))
		w.pass(time.Minute)
		r.want(map[string]usage.Reason{"a": usage.HostNetwork})
		return r
	}
	// never counted by its interfaces alone, at any moment of some reconciles
	stays := func(w *world, r *running) {
		for range 3 * every / time.Second {
			w.pass(time.Second)
			r.want(map[string]usage.Reason{"a": usage.HostNetwork})
		}
	}
	for _, given := range []bool{false, true} {
		inBubble(t, "some of it", func(t *testing.T) {
			w := newWorld()
			w.ownOnly = !given
			r := start(t, w)
			defer r.stop()
			d := w.device(7)
			w.place("a", 7)
			w.spread["a"] = watcher.AlsoInHost
			stays(w, r)
			r.owned(d, "a")
			w.place("a", inHost)
			delete(w.spread, "a")
			stays(w, r)
			if len(r.spaces) != 0 || len(w.left) != 1 {
				t.Errorf("spaces %v, left %v", r.spaces, w.left)
			}
		})
	}
	inBubble(t, "all of it, perhaps without its sockets", func(t *testing.T) {
		w := newWorld()
		w.ownOnly = true
		r := start(t, w)
		defer r.stop()
		d := w.device(7)
		w.place("a", 7)
		stays(w, r)
		r.owned(d, "a")
		w.ownOnly = false // it gets an interface: its runtime was slow
		w.pass(every)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		if w.extent("a") != InMore {
			t.Errorf("extent %v: it may have left sockets in the host's network", w.extent("a"))
		}
	})
	inBubble(t, "in another one's", func(t *testing.T) {
		w := newWorld()
		w.ownOnly = true
		d := w.device(7)
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("b", 7)))
		r.send(startedEvent(w.put("a", inHost)))
		w.pass(time.Minute)
		w.place("a", 7)
		w.spread["a"] = watcher.AlsoInHost
		w.pass(every)
		r.want(map[string]usage.Reason{"a": usage.HostNetwork, "b": usage.Accounted})
		r.owned(d, "b")
	})
}
