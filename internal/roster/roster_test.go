// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// inBubble runs a test in time that passes at once.
func inBubble(t *testing.T, name string, test func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// What becomes of a container that starts, by where its process and its interface are.
func TestStart(t *testing.T) {
	inBubble(t, "docker", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		c := w.put("a", 0)
		r.send(startedEvent(c))
		r.want(map[string]usage.Reason{"a": usage.Starting})
		w.place("a", inHost) // runc's own process
		w.pass(hostNetworkAfter / 2)
		r.want(map[string]usage.Reason{"a": usage.Starting})
		w.place("a", 7)
		w.pass(time.Second)
		r.want(map[string]usage.Reason{"a": usage.Starting})
		d := w.device(7)
		r.send(watcher.LinkMoved{NetNSID: 3})
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		r.owned(d, "a")
	})
	inBubble(t, "host network", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", inHost)))
		w.pass(hostNetworkAfter - time.Millisecond)
		r.want(map[string]usage.Reason{"a": usage.Starting})
		w.pass(time.Second)
		r.want(map[string]usage.Reason{"a": usage.HostNetwork})
	})
	inBubble(t, "no interface", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", 7)))
		w.pass(noInterfaceAfter - time.Millisecond)
		r.want(map[string]usage.Reason{"a": usage.Starting})
		w.pass(time.Second)
		r.want(map[string]usage.Reason{"a": usage.NoHostVeth})
		w.nsids[7] = 3
		d := w.device(7) // `docker network connect`
		r.send(watcher.LinkMoved{NetNSID: 3})
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		r.owned(d, "a")
	})
	inBubble(t, "no process", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", 0)))
		w.pass(time.Second)
		if w.updates < 5 { // its cgroup is in one hierarchy before it is in another
			t.Errorf("the backend is told of it %d times in a second", w.updates)
		}
		w.pass(startedAfter)
		r.want(map[string]usage.Reason{"a": usage.Starting})
		if r.members[Key{ID: "a"}].look.planned() {
			t.Error("it is looked at again though no runtime takes so long")
		}
		w.place("a", 7)
		d := w.device(7)
		w.pass(every)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		r.owned(d, "a")
	})
	inBubble(t, "not attached at first", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		w.device(7).fails = true
		r.send(startedEvent(w.put("a", 7)))
		r.want(map[string]usage.Reason{"a": usage.AttachFailed})
		w.interfaces[7][0].fails = false
		w.pass(every)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
	})
	inBubble(t, "no final name at first", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		d.waits = true
		r.send(startedEvent(w.put("a", 7)))
		r.want(map[string]usage.Reason{"a": usage.Starting})
		if w.released[Key{ID: "a"}] != 0 {
			t.Error("its namespace is given up while its interface waits")
		}
		d.waits = false
		w.pass(2 * time.Second)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		if w.released[Key{ID: "a"}] == 0 {
			t.Error("its namespace is not given up")
		}
	})
}

// What becomes of a container that ends, by what was known of it.
func TestStop(t *testing.T) {
	inBubble(t, "accounted", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		w.device(7)
		c := w.put("a", 7)
		r.send(startedEvent(c))
		w.take("a")
		r.send(stoppedEvent(c))
		r.want(map[string]usage.Reason{})
		if w.accounts.state["a"] != usage.Stopped || w.accounts.reasons["a"] != usage.Accounted {
			t.Errorf("it is %s, %q", w.accounts.state["a"], w.accounts.reasons["a"])
		}
		if !slices.Equal(w.left, []uint64{7}) || len(w.updated) != 0 {
			t.Errorf("left are the namespaces %d, and members %v remain with the backend", w.left, w.updated)
		}
		if w.names["a"] != 1 {
			t.Error("its name is forgotten while its account is kept")
		}
		w.accounts.expires = []string{"a"}
		w.pass(every)
		if w.names["a"] != 0 {
			t.Error("its name is kept after its account")
		}
	})
	inBubble(t, "before its interface had its final name", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		d.waits = true
		c := w.put("a", 7)
		r.send(startedEvent(c))
		r.send(stoppedEvent(c)) // the backend holds the namespace: Locate still works
		r.owned(d, "a")
		if got := w.accounts.reasons["a"]; got != usage.Accounted {
			t.Errorf("it is %q", got)
		}
	})
	inBubble(t, "after its last process, before its interface had its final name", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		d.waits = true
		c := w.put("a", 7)
		r.send(startedEvent(c))
		w.take("a")
		w.calls = nil
		r.send(stoppedEvent(c))
		r.owned(d, "a")
		if got := w.accounts.reasons["a"]; got != usage.Accounted {
			t.Errorf("it is %q", got)
		}
		if want := []string{"last a", "release a"}; !slices.Equal(w.calls, want) {
			t.Errorf("calls: %q, want %q", w.calls, want)
		}
	})
	inBubble(t, "before it had a process", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		c := w.put("a", 0)
		r.send(startedEvent(c), stoppedEvent(w.take("a")))
		if got := w.accounts.reasons["a"]; got != usage.Ended {
			t.Errorf("it is %q", got)
		}
		w.pass(time.Hour)
		if n := len(r.members) + len(r.spaces) + len(r.inside); n != 0 {
			t.Errorf("%d things stay of it", n)
		}
	})
	inBubble(t, "another cgroup of the same id", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		c := w.put("web", 7)
		other := c
		other.Cgroup = "/elsewhere/web"
		w.containers = append(w.containers, other)
		r.send(startedEvent(c), startedEvent(other), stoppedEvent(other))
		r.want(map[string]usage.Reason{"web": usage.Accounted})
		w.pass(2 * every)
		r.want(map[string]usage.Reason{"web": usage.Accounted})
		r.owned(d, "web")
		w.containers = []watcher.Container{other}
		r.send(stoppedEvent(c))
		w.pass(every) // the other is found by the reconcile
		r.want(map[string]usage.Reason{"web": usage.Accounted})
	})
}

// One owner at a time, whoever comes first and whoever goes.
func TestShared(t *testing.T) {
	inBubble(t, "one owner", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		r.send(startedEvent(w.put("a", 7)))
		if w.updated[Key{ID: "a"}].Shared {
			t.Error("it shares with nobody")
		}
		r.send(startedEvent(w.put("b", 7)))
		r.want(map[string]usage.Reason{"a": usage.Accounted, "b": usage.SharedNetwork})
		r.owned(d, "a")
		if w.accounts.shares["b"] != "a" || w.accounts.shares["a"] != "" {
			t.Errorf("shares %q", w.accounts.shares)
		}
		if !w.updated[Key{ID: "a"}].Shared || !w.updated[Key{ID: "b"}].Shared {
			t.Errorf("the backend is told %+v", w.updated)
		}
		// Who has shared once has numbers of its cgroup that go on.
		r.send(stoppedEvent(w.take("b")))
		if !w.updated[Key{ID: "a"}].Shared {
			t.Error("it does not share any more")
		}
	})
	inBubble(t, "the oldest succeeds, after the others had time to end", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		for _, id := range []string{"a", "c", "b"} {
			r.send(startedEvent(w.put(id, 7)))
			w.pass(time.Second)
		}
		gone := w.take("a")
		r.send(stoppedEvent(gone))
		w.pass(succeedAfter - time.Millisecond)
		r.owned(d, "a")
		// Events meanwhile do not shorten that.
		r.send(watcher.LinkMoved{NetNSID: -1})
		r.owned(d, "a")
		w.pass(2 * time.Second)
		r.owned(d, "c")
		r.want(map[string]usage.Reason{"c": usage.Accounted, "b": usage.SharedNetwork})
		w.pass(2 * every)
		if d.changed != 1 || w.accounts.shares["c"] != "" {
			t.Errorf("the owner changed %d times, and shares with %q", d.changed, w.accounts.shares["c"])
		}
	})
	inBubble(t, "a failed succession is tried again", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		r.send(startedEvent(w.put("a", 7)), startedEvent(w.put("b", 7)))
		w.succeedFails = errInjected
		r.send(stoppedEvent(w.take("a")))
		w.pass(5 * time.Second)
		r.owned(d, "a")
		w.succeedFails = nil
		w.pass(2 * time.Second)
		r.owned(d, "b")
		r.want(map[string]usage.Reason{"b": usage.Accounted})
	})
	inBubble(t, "an owner that moves on is not robbed", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		r.send(startedEvent(w.put("a", 7)), startedEvent(w.put("b", 7)))
		w.place("a", 8)
		r.members[Key{ID: "a"}].look.again()
		r.send(watcher.LinkMoved{NetNSID: -1})
		w.pass(2 * every)
		r.owned(d, "a")
		if d.changed != 0 {
			t.Error("its interface was given away while it runs")
		}
		r.want(map[string]usage.Reason{"a": usage.NoHostVeth, "b": usage.SharedNetwork})
		w.place("a", 7)
		w.pass(every)
		r.want(map[string]usage.Reason{"a": usage.Accounted, "b": usage.SharedNetwork})
		if !slices.Equal(w.left, []uint64{8}) || len(r.spaces) != 1 {
			t.Errorf("left are the namespaces %d, and %d are known", w.left, len(r.spaces))
		}
	})
	inBubble(t, "from its own namespace to the host's", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", 7)))
		w.place("a", inHost)
		w.pass(every + 2*confirmAfter)
		r.want(map[string]usage.Reason{"a": usage.HostNetwork})
		if !slices.Equal(w.left, []uint64{7}) || len(r.spaces) != 0 {
			t.Errorf("left are the namespaces %d, and %d are known", w.left, len(r.spaces))
		}
	})
}

// A restart finds the owners that were there before it, in whatever order it comes to know
// the containers, and ends nobody before it has seen them all.
func TestRestart(t *testing.T) {
	inBubble(t, "a member is listed before the owner", func(t *testing.T) {
		w := newWorld()
		d := w.device(7)
		w.put("older", 7)
		w.put("owner", 7)
		d.owner = Key{ID: "owner"}
		w.accounts.state["owner"], w.accounts.state["gone"] = usage.Running, usage.Running
		r := run(t, w)
		defer r.stop()
		r.owned(d, "owner")
		r.want(map[string]usage.Reason{"older": usage.SharedNetwork, "owner": usage.Accounted})
		if d.changed != 0 || w.accounts.state["gone"] != usage.Stopped || w.accounts.state["owner"] != usage.Running {
			t.Errorf("%d successions, states %q", d.changed, w.accounts.state)
		}
	})
	inBubble(t, "events come before the first list", func(t *testing.T) {
		w := newWorld()
		d := w.device(7)
		a := w.put("older", 7)
		w.put("owner", 7)
		d.owner = Key{ID: "owner"}
		w.accounts.state["owner"] = usage.Running
		w.listFails = errInjected
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(a))
		w.pass(listAgainAfter / 2)
		select {
		case <-r.Ready():
			t.Error("ready without a list")
		default:
		}
		if d.changed != 0 || w.accounts.state["owner"] != usage.Running {
			t.Errorf("%d successions, the owner is %s", d.changed, w.accounts.state["owner"])
		}
		w.listFails = nil
		w.pass(listAgainAfter)
		r.owned(d, "owner")
		r.want(map[string]usage.Reason{"older": usage.SharedNetwork, "owner": usage.Accounted})
		<-r.Ready()
	})
	inBubble(t, "the owner is in a directory that can't be read", func(t *testing.T) {
		w := newWorld()
		d := w.device(7)
		d.owner = Key{ID: "hidden"}
		w.accounts.state["hidden"], w.missed["hidden"] = usage.Running, true
		w.put("a", 7)
		r := run(t, w)
		defer r.stop()
		w.pass(2 * every)
		r.owned(d, "hidden")
		if got := w.accounts.state["hidden"]; got != usage.Running {
			t.Errorf("it is %s", got)
		}
		delete(w.missed, "hidden") // the kernel says that its cgroup has gone
		w.pass(2 * every)
		r.owned(d, "a")
		if got := w.accounts.state["hidden"]; got != usage.Stopped {
			t.Errorf("it is %s", got)
		}
	})
	inBubble(t, "the owner has ended meanwhile", func(t *testing.T) {
		w := newWorld()
		d := w.device(7)
		d.owner = Key{ID: "gone"}
		w.put("a", 7)
		r := run(t, w)
		defer r.stop()
		r.owned(d, "a")
		r.want(map[string]usage.Reason{"a": usage.Accounted})
	})
}

func TestReconcile(t *testing.T) {
	inBubble(t, "after lost events, at once", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		d := w.device(7)
		w.put("a", 7)
		r.send(watcher.Overflowed{Source: "inotify"})
		r.owned(d, "a")
		w.take("a")
		r.send(watcher.Overflowed{Source: "netlink"})
		r.want(map[string]usage.Reason{})
	})
	inBubble(t, "a failed list ends nobody", func(t *testing.T) {
		w := newWorld()
		w.device(7)
		w.put("a", 7)
		r := run(t, w)
		defer r.stop()
		w.listFails, w.containers = errInjected, nil
		w.pass(2 * every)
		if last := w.calls[len(w.calls)-1]; last != "reconcile false" {
			t.Errorf("the last call was %q: what no container has is taken for nobody's", last)
		}
		r.want(map[string]usage.Reason{"a": usage.Accounted})
	})
	inBubble(t, "an excluded container is known no more", func(t *testing.T) {
		w := newWorld()
		w.device(7)
		w.put("a", 7)
		r := run(t, w)
		defer r.stop()
		r.filter = func(c watcher.Container) bool { return c.ID != "a" }
		r.Reload()
		w.pass(0)
		r.want(map[string]usage.Reason{})
		r.filter = nil
		r.Reload()
		w.pass(0)
		r.want(map[string]usage.Reason{"a": usage.Accounted})
	})
	inBubble(t, "processes that have become a kernel", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		w.device(7)
		r.send(startedEvent(w.put("a", 7)))
		r.want(map[string]usage.Reason{"a": usage.Accounted})
		w.kernel["a"] = watcher.GVisor
		w.pass(every)
		if got := w.accounts.kernels["a"]; got != "gvisor" {
			t.Errorf("it runs on %q", got)
		}
		looks := len(w.located)
		w.pass(3 * every)
		if len(w.located) > looks {
			t.Errorf("%d looks at a container to which nothing happens", len(w.located)-looks)
		}
	})
	inBubble(t, "links first, then containers, then repairs", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		r.stop()
		if !slices.Equal(w.calls, []string{"adopt", "relist", "reconcile true", "run ended"}) {
			t.Errorf("calls: %q", w.calls)
		}
	})
	inBubble(t, "hints of the links", func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		w.device(7)
		r.send(startedEvent(w.put("a", 7)))
		w.place("a", inHost)
		w.relistHints = []Hint{{Key: Key{ID: "a"}}}
		w.pass(every + 2*confirmAfter)
		r.want(map[string]usage.Reason{"a": usage.HostNetwork})
	})
}

// The backend's own work runs between the events, and its hints are followed.
func TestBackendWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		r := run(t, w)
		defer r.stop()
		r.send(startedEvent(w.put("a", 7)), startedEvent(w.put("b", 8)))
		w.pass(time.Minute)
		r.want(map[string]usage.Reason{"a": usage.NoHostVeth, "b": usage.NoHostVeth})
		w.yield(func() {
			w.do <- func() []Hint {
				w.device(7)
				w.device(8)
				return []Hint{{Key: Key{ID: "a"}}}
			}
		})
		r.want(map[string]usage.Reason{"a": usage.Accounted, "b": usage.NoHostVeth})
	})
}

// A container that can't be located is looked at again, and holds up no other.
func TestLocateFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		broken := &failing{world: w, fails: "a"}
		r := run(t, w)
		r.Backend = broken
		defer r.stop()
		w.device(7)
		w.device(8)
		r.send(startedEvent(w.put("a", 7)), startedEvent(w.put("b", 8)))
		r.want(map[string]usage.Reason{"a": usage.Starting, "b": usage.Accounted})
		broken.fails = ""
		w.pass(2 * time.Second)
		r.want(map[string]usage.Reason{"a": usage.Accounted, "b": usage.Accounted})
	})
}

// failing is a world in which a container can't be located.
type failing struct {
	*world
	fails string
}

func (f *failing) Locate(m Member) (Location[string], error) {
	f.mu.Lock()
	fails := f.fails
	f.mu.Unlock()
	if m.ID == fails {
		return Location[string]{}, errors.New("permission denied")
	}
	return f.world.Locate(m)
}
