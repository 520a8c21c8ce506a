// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// Whatever happens on a host, in whatever order its events come, if they come at all, and
// whenever nettally is started again: within two reconciles the roster is right.
func TestHistories(t *testing.T) {
	for seed := range uint64(need.Tries(300)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &history{t: t, world: newWorld(), random: rand.New(rand.NewPCG(seed, 1))}
				h.world.hint = true
				h.running = run(t, h.world)
				for range 60 {
					h.step()
				}
				h.world.pass(2*every + noInterfaceAfter)
				h.check()
				h.stop()
			})
		})
	}
}

// history is a host on which things happen.
type history struct {
	*running
	t       *testing.T
	world   *world
	random  *rand.Rand
	pending []watcher.Event
	next    int
}

// namespaces of a history are the numbers from here on.
const firstNamespace, namespaces = 7, 4

func (h *history) namespace() uint64 { return firstNamespace + uint64(h.random.IntN(namespaces)) }

// step lets something happen.
func (h *history) step() {
	w := h.world
	switch h.random.IntN(12) {
	case 0, 1, 2:
		h.next++
		where := []uint64{0, inHost, h.namespace(), h.namespace()}[h.random.IntN(4)]
		user := []string{"", "1000"}[h.random.IntN(2)]
		h.pending = append(h.pending, startedEvent(w.put(usage.InScope(user, fmt.Sprint("c", h.next)), where)))
	case 3, 4:
		if len(w.containers) > 0 {
			id := w.containers[h.random.IntN(len(w.containers))].ID
			h.pending = append(h.pending, stoppedEvent(w.take(id)))
		}
	case 5: // a container's process leaves the host's namespace
		for _, c := range w.containers {
			if n := w.in[c.ID]; n == 0 || n == inHost {
				w.place(c.ID, h.namespace())
				break
			}
		}
	case 6, 7:
		n := h.namespace()
		d := w.device(n)
		d.waits, d.fails = h.random.IntN(4) == 0, h.random.IntN(6) == 0
		h.pending = append(h.pending, watcher.LinkMoved{NetNSID: int(n)})
	case 8:
		for _, n := range w.interfaces {
			for _, d := range n {
				d.waits, d.fails = false, false
			}
		}
	case 9:
		w.slowList = []time.Duration{0, 2 * time.Second}[h.random.IntN(2)]
		w.listFails = []error{nil, errInjected}[h.random.IntN(2)]
		w.succeedFails = []error{nil, errInjected}[h.random.IntN(2)]
	case 10: // killed, and started again
		h.running.stop()
		h.pending = nil
		clear(w.updated)
		clear(w.owners)
		h.running = run(h.t, w)
	case 11:
		h.world.pass(time.Duration(h.random.Int64N(int64(every))))
	}
	h.deliver()
	h.never()
}

// deliver sends some of the events that wait, in any order, some twice, and loses others.
func (h *history) deliver() {
	for len(h.pending) > 0 && h.random.IntN(3) > 0 {
		i := h.random.IntN(len(h.pending))
		e := h.pending[i]
		h.pending = slices.Delete(h.pending, i, i+1)
		switch h.random.IntN(5) {
		case 0: // lost
		case 1:
			h.send(e, e)
		default:
			h.send(e)
		}
	}
	h.world.pass(time.Duration(h.random.Int64N(int64(3 * time.Second))))
}

// never expects what may not be at any time.
func (h *history) never() {
	for _, n := range h.world.robbed {
		h.t.Errorf("%s lost its interface while it ran", n)
	}
	for id, box := range h.spaces {
		if box.owner == nil || box.members[box.owner.Key] != box.owner {
			h.t.Errorf("namespace %d is owned by nobody in it", id)
		}
		for _, m := range box.members {
			if m.space != box || h.members[m.Key] != m {
				h.t.Errorf("%s is in namespace %d and does not know it", m.ID, id)
			}
		}
	}
	for id := range h.world.updated {
		if h.members[id] == nil {
			h.t.Errorf("the backend goes on with %s, which nobody knows", id.ID)
		}
	}
}

// check compares the roster with the host, after time to find out.
func (h *history) check() {
	w := h.world
	w.listFails, w.succeedFails = nil, nil
	for _, n := range w.interfaces {
		for _, d := range n {
			d.waits, d.fails = false, false
		}
	}
	h.world.pass(2*every + startedAfter)
	h.never()
	if len(h.members) != len(w.containers) || len(w.accounts.running()) != len(w.containers) {
		h.t.Errorf("%d members and %d accounts run, and %d containers are there", len(h.members), len(w.accounts.running()), len(w.containers))
	}
	owners := map[uint64]int{}
	for _, c := range w.containers {
		m := h.members[Key{ID: c.ID}]
		if m == nil {
			h.t.Errorf("%s is not known", c.ID)
			continue
		}
		n := w.in[c.ID]
		if told := w.accounts.reasons[c.ID]; n != 0 && told != m.Reason {
			h.t.Errorf("%s is %q, and the accounts were told %q", c.ID, m.Reason, told)
		}
		switch {
		case n == 0 && m.Reason == usage.Starting, n == inHost && m.Reason == usage.HostNetwork:
		case n > inHost && m.space != nil && m.space.ID == n:
			if m.Reason == usage.Accounted || m.Reason == usage.NoHostVeth {
				owners[n]++
			} else if m.Reason != usage.SharedNetwork {
				h.t.Errorf("%s in namespace %d is %q", c.ID, n, m.Reason)
			}
		default:
			h.t.Errorf("%s, whose processes are in %d, is %q", c.ID, n, m.Reason)
		}
	}
	h.checkInterfaces(owners)
}

// checkInterfaces expects each namespace with containers to have one owner, for which all
// its interfaces are counted.
func (h *history) checkInterfaces(owners map[uint64]int) {
	for id, box := range h.spaces {
		if owners[id] != 1 {
			h.t.Errorf("namespace %d has %d owners", id, owners[id])
		}
		for _, d := range h.world.interfaces[id] {
			if d.owner != box.owner.Key {
				h.t.Errorf("an interface in namespace %d, owned by %s, is counted for %q", id, box.owner.ID, d.owner.ID)
			}
		}
		if want := []usage.Reason{usage.NoHostVeth, usage.Accounted}[min(1, len(h.world.interfaces[id]))]; box.owner.Reason != want {
			h.t.Errorf("%s owns %d interfaces and is %q", box.owner.ID, len(h.world.interfaces[id]), box.owner.Reason)
		}
	}
}
