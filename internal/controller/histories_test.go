// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// history is a random life of a few host veths: they come, go and flow, are moved and excluded,
// calls fail, and the process is killed between any two calls.
type history struct {
	*kernel
	*rand.Rand
	kills  bool              // or packets that pass unseen: after a kill nobody knows of these
	owners map[int]string    // of the host veths that are there
	lost   map[int][2]uint64 // packets that a process had not noted when it was killed
	unseen map[int][2]uint64 // packets that passed where no program was on
	born   int
	done   []job // whose results the roster's goroutine has not taken in yet
	log    []string
}

const someVeths = 4

// TestHistories lets host veths live at random. In the end each is counted on the hook that it
// is wanted on, by one slot, and its owner has what the kernel says, but for what a process
// that was killed had not seeded yet. No total was ever more than that.
func TestHistories(t *testing.T) {
	for seed := range uint64(need.Tries(300)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &history{kernel: newKernel(t), Rand: rand.New(rand.NewPCG(seed, 1)), owners: map[int]string{}, lost: map[int][2]uint64{}, unseen: map[int][2]uint64{}, kills: seed%2 == 0}
				h.guarded(h.first)
				for range 100 {
					h.step()
					h.within()
				}
				h.heal()
				h.ended()
				if t.Failed() {
					for _, line := range h.log {
						t.Log(line)
					}
				}
			})
		})
	}
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// step does one thing at random.
func (h *history) step() {
	there := slices.Sorted(maps.Keys(h.owners))
	index := 0
	if len(there) > 0 {
		index = there[h.IntN(len(there))]
	}
	time.Sleep(time.Duration(h.IntN(2000)) * time.Millisecond)
	if h.kills && h.IntN(6) == 0 {
		h.killIn = 1 + h.IntN(8)
		h.note("kill in %d calls", h.killIn)
	}
	switch n := h.IntN(14); {
	case n <= 2 && len(there) < someVeths:
		h.comes()
	case index == 0:
	case n == 0:
		h.goes(index)
	case n == 3:
		h.mode = []Mode{ModeAuto, ModeClsact, ModeTCX}[h.IntN(3)]
		h.note("mode %s", h.mode)
		h.guarded(func() { h.Relist() })
	case n == 4:
		h.excluded = []string{"", fmt.Sprint("veth", index)}[h.IntN(2)]
		h.note("excluded %q", h.excluded)
		h.guarded(func() { h.Relist() })
	case n == 5:
		h.failIn = 1 + h.IntN(4)
		h.note("fails in %d calls", h.failIn)
	case n == 6 && !h.kills && h.excluded == "":
		h.note("our programs are removed from %d", index)
		delete(h.filters, index)
		delete(h.tcx, index)
		h.flows(index, 0, 0)
		h.check()
	case n <= 9:
		h.work(1)
	case n == 10:
		h.note("check")
		h.guarded(h.check)
	case h.excluded != fmt.Sprint("veth", index): // where it is not said what counts
		h.flows(index, h.Uint64N(300), h.Uint64N(300))
	}
}

// guarded does something that the process may not survive.
func (h *history) guarded(do func()) {
	defer func() {
		if r := recover(); r == nil {
			return
		} else if r != errKilled {
			panic(r)
		}
		h.note("killed; restarted")
		h.killIn, h.failIn, h.done = 0, 0, nil
		h.restart()
		h.first()
	}()
	do()
}

// first looks at everything once, as a new process does.
func (h *history) first() {
	h.Adopt(context.Background())
	h.claimAll()
	h.Relist()
	h.claimAll()
	h.Reconcile(nil)
}

func (h *history) comes() {
	h.born++
	index := h.born
	h.note("%d comes", index)
	h.owners[index] = fmt.Sprint("c", index)
	h.counters[index] = watcher.LinkCounters{}
	h.veths = append(h.veths, watcher.HostVeth{Index: index, Name: fmt.Sprint("veth", index), PeerIndex: 2, NetNSID: index})
	h.flows(index, 0, 0)
	h.Controller.veths.busy = map[int]bool{index: h.IntN(3) == 0}
	h.guarded(func() {
		h.Link(watcher.HostVethSeen{HostVeth: h.veths[len(h.veths)-1], SeenAt: time.Now()})
		h.claimAll()
	})
}

func (h *history) goes(index int) {
	h.note("%d goes", index)
	delete(h.owners, index)
	delete(h.counters, index)
	delete(h.filters, index)
	h.veths = slices.DeleteFunc(h.veths, func(v watcher.HostVeth) bool { return v.Index == index })
	h.guarded(func() { h.Link(watcher.HostVethGone{Index: index}) })
}

func (h *history) claimAll() {
	for _, index := range slices.Sorted(maps.Keys(h.owners)) {
		h.claim(index, h.owners[index])
	}
}

// claim counts a veth for its container.
func (h *history) claim(index int, id string) { h.count(h.container(id, index, index)) }

// work does some jobs, and takes in the results of some.
func (h *history) work(most int) {
	for range most {
		h.guarded(func() {
			if next, ok := h.Controller.veths.jobs.take(); ok {
				next.result = h.mover().do(next)
				h.note("job %+v", next)
				h.done = append(h.done, next)
			}
		})
		if len(h.done) > 0 && (most > 1 || h.IntN(2) == 0) {
			h.guarded(func() {
				next := h.done[0]
				h.done = h.done[1:]
				h.moved(next)
				h.claimAll()
			})
		}
	}
}

// flows has packets pass a host veth, as the hooks on it see them.
func (h *history) flows(index int, receive, transmit uint64) {
	if _, there := h.counters[index]; !there {
		return
	}
	if h.filters[index] == 0 && !h.tcx[index] {
		receive, transmit = 2000, 2000 // of a few the self-check says nothing
		h.unseen[index] = [2]uint64{h.unseen[index][0] + 2000, h.unseen[index][1] + 2000}
	}
	h.note("%d and %d packets pass %d: clsact %d, tcx %t slot %d", receive, transmit, index, h.filters[index], h.tcx[index], h.bound[index])
	h.passes(index, false, receive, transmit)
	if h.tcx[index] {
		h.row(h.bound[index], receive, transmit)
	}
	if slot := h.filters[index]; slot != 0 && !(h.tcx[index] && h.slots[slot].Handover) {
		h.row(slot, receive, transmit)
	}
}

// total returns a container's packets.
func (h *history) of(id string) (packets [2]uint64, ok bool) {
	for _, c := range h.Accounts.Snapshot().Containers {
		if c.ID == id {
			return [2]uint64{c.Receive.Interface.Packets, c.Transmit.Interface.Packets}, true
		}
	}
	return packets, false
}

// within expects that nobody has more than the kernel counted on his interface.
func (h *history) within() {
	h.t.Helper()
	for index, id := range h.owners {
		now, _ := h.of(id)
		if c := h.counters[index]; now[0] > c.ReceivePackets || now[1] > c.TransmitPackets {
			h.t.Fatalf("%s on %d has %v packets, the kernel %d and %d, after:\n%s", id, index, now, c.ReceivePackets, c.TransmitPackets, strings.Join(h.log, "\n"))
		}
	}
}

// heal lets all failures end, and time pass.
func (h *history) heal() {
	killed := h.kills
	h.killIn, h.failIn, h.excluded = 0, 0, ""
	h.note("heal")
	for round := range 8 {
		time.Sleep(2 * time.Minute)
		if round == 4 && killed {
			for index, id := range h.owners {
				now, _ := h.of(id)
				c := h.counters[index]
				h.lost[index] = [2]uint64{c.ReceivePackets - now[0], c.TransmitPackets - now[1]}
			}
		}
		h.Relist()
		h.claimAll()
		h.work(20)
		for index := range h.owners {
			h.flows(index, 200, 200)
		}
		h.check()
		h.work(20)
		h.check()
	}
}

// ended expects each host veth to be counted once, and nothing else.
func (h *history) ended() {
	h.t.Helper()
	for index := 1; index <= h.born; index++ {
		id, there := h.owners[index]
		if !there {
			if h.tcx[index] || h.Controller.veths.known[index] != nil {
				h.t.Errorf("%d is gone; on tcx: %t, known: %v", index, h.tcx[index], h.Controller.veths.known[index])
			}
			continue
		}
		v := h.Controller.veths.known[index]
		if v == nil || v.state != counting {
			h.t.Errorf("%d is %+v", index, v)
			continue
		}
		if wanted := h.Controller.veths.wanted(v); v.hook != wanted || (h.filters[index] != 0) != (wanted == HookClsact) || h.tcx[index] != (wanted == HookTCX) {
			h.t.Errorf("%d is on %s, with clsact slot %d and tcx %t", index, v.hook, h.filters[index], h.tcx[index])
		}
		if slot := h.slots[v.slot]; slot.Target != usage.OnHost(index) || slot.Handover {
			h.t.Errorf("%d: slot %+v", index, slot)
		}
		c := h.counters[index]
		lost := h.lost[index]
		if most := h.unseen[index]; lost[0] > most[0]+h.released[index][0] || lost[1] > most[1]+h.released[index][1] {
			h.t.Errorf("%v packets of %d are lost, and %v passed unseen or were to be noted", lost, index, most)
		}
		if now, ok := h.of(id); !ok || now != [2]uint64{c.ReceivePackets - lost[0], c.TransmitPackets - lost[1]} {
			h.t.Errorf("%s on %d has %v packets, the kernel %d and %d", id, index, now, c.ReceivePackets, c.TransmitPackets)
		}
	}
	used := 0
	for _, s := range h.slots {
		if s.Cgroup == 0 {
			used++
		}
	}
	if used != len(h.owners) {
		h.t.Errorf("%d slots for %d interfaces", used, len(h.owners))
	}
}
