// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// Containers come, share and go, interfaces come and go, and nettally is started again:
// each byte that passed while somebody was there is counted once, for one of them.
func TestHistories(t *testing.T) {
	for seed := range uint64(need.Tries(60)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &history{world: newWorld(t), random: rand.New(rand.NewPCG(seed, 1)), spaces: map[string]*lived{}, total: map[string]duplex{}}
				h.run()
				h.pass(time.Second)
				for range 40 {
					h.step()
					h.never()
				}
				h.pass(time.Minute)
				h.check()
				h.stop()
			})
		})
	}
}

// history is a world in which things happen, and what should be counted in it.
type history struct {
	*world
	random *rand.Rand
	spaces map[string]*lived
	next   int
	total  map[string]duplex // of each container, as it was shown last
}

// lived is a namespace with containers in it.
type lived struct {
	members []string
	veth    int // the index of its end in the host, 0 if there is none
	device  device
}

func (h *history) step() {
	switch h.random.IntN(8) {
	case 0, 1:
		h.begin()
	case 2: // one more in the same namespace
		if name, s := h.any(); s != nil {
			s.members = append(s.members, h.container(name))
		}
	case 3:
		h.finish()
	case 4, 5, 6:
		if name, s := h.any(); s != nil {
			h.send1(name, s, uint64(h.random.IntN(100)), uint64(h.random.IntN(100)))
		}
	case 7:
		// Where an owner has ended and nobody has succeeded it, a namespace without an end in
		// the host can't be told from another one by the same number: it is seeded again.
		h.pass(time.Minute)
		h.stop()
		for _, name := range slices.Sorted(maps.Keys(h.spaces)) { // the kernel goes on counting
			h.send1(name, h.spaces[name], uint64(h.random.IntN(10)), uint64(h.random.IntN(10)))
		}
		h.run()
	}
	h.pass(time.Duration(h.random.Int64N(int64(8 * time.Second))))
}

func (h *history) any() (string, *lived) {
	names := slices.Sorted(maps.Keys(h.spaces))
	if len(names) == 0 {
		return "", nil
	}
	name := names[h.random.IntN(len(names))]
	return name, h.spaces[name]
}

// begin starts a container in a namespace of its own, with or without an end in the host.
func (h *history) begin() {
	h.next++
	name := fmt.Sprint("space", h.next)
	s := &lived{device: device{name: "eth0", index: 2, up: true}}
	h.spaces[name] = s
	h.write(name, []device{s.device})
	if h.random.IntN(2) == 0 {
		s.veth = 1000 + h.next
		h.veths = append(h.veths, watcher.HostVeth{Index: s.veth, Name: fmt.Sprint("veth", s.veth), PeerIndex: 2, NetNSID: h.next})
		h.send(watcher.HostVethSeen{HostVeth: h.veths[len(h.veths)-1]})
	}
	s.members = append(s.members, h.container(name))
}

// container starts a container in a namespace.
func (h *history) container(name string) string {
	h.next++
	id := fmt.Sprintf("c%03d", h.next)
	if h.random.IntN(4) == 0 {
		h.pass(time.Second)
	}
	h.nextPID++ // as enter will number the process
	if veth := h.spaces[name].veth; veth != 0 {
		h.numbers[h.nextPID] = veth - 1000
	}
	h.nextPID--
	h.start(id, name)
	return id
}

// finish ends a container, and the namespace with the last one in it.
func (h *history) finish() {
	name, s := h.any()
	if s == nil {
		return
	}
	i := h.random.IntN(len(s.members))
	id := s.members[i]
	s.members = append(s.members[:i], s.members[i+1:]...)
	if len(s.members) == 0 {
		h.yield(func() { h.backend.Refresh(h.t.Context()) }) // what passes after the last reading is lost without an end in the host
		h.pass(pollEvery)
		delete(h.spaces, name)
	}
	h.end(id)
}

// send1 has packets pass the interface of a namespace.
func (h *history) send1(name string, s *lived, receive, transmit uint64) {
	more := traffic(receive, transmit)
	s.device.receive.Bytes += more.receive.Bytes
	s.device.receive.Packets += more.receive.Packets
	s.device.transmit.Bytes += more.transmit.Bytes
	s.device.transmit.Packets += more.transmit.Packets
	h.write(name, []device{s.device})
	h.counters[s.veth] = watcher.LinkCounters{
		ReceiveBytes: s.device.receive.Bytes, ReceivePackets: s.device.receive.Packets,
		TransmitBytes: s.device.transmit.Bytes, TransmitPackets: s.device.transmit.Packets,
	}
	h.passed(more)
}

// passed adds to what all containers together should have.
func (h *history) passed(more duplex) {
	all := h.total[""]
	all.receive.Bytes += more.receive.Bytes
	all.receive.Packets += more.receive.Packets
	all.transmit.Bytes += more.transmit.Bytes
	all.transmit.Packets += more.transmit.Packets
	h.total[""] = all
}

// never expects no total to go back.
func (h *history) never() {
	for _, c := range h.backend.Snapshot().Containers {
		now := duplex{receive: c.Receive.Interface, transmit: c.Transmit.Interface}
		if now.less(h.total[c.ID]) {
			h.t.Errorf("%s had %v and has %v", c.ID, h.total[c.ID], now)
		}
		h.total[c.ID] = now
	}
}

// check compares the sum over all containers with what passed, and expects an owner in each
// namespace.
func (h *history) check() {
	var sum duplex
	reasons := map[string]usage.Reason{}
	for _, c := range h.backend.Snapshot().Containers {
		sum.receive.Bytes += c.Receive.Interface.Bytes
		sum.receive.Packets += c.Receive.Interface.Packets
		sum.transmit.Bytes += c.Transmit.Interface.Bytes
		sum.transmit.Packets += c.Transmit.Interface.Packets
		reasons[c.ID] = c.Reason
	}
	if sum != h.total[""] {
		h.t.Errorf("all containers together have %v, and %v passed", sum, h.total[""])
	}
	for name, s := range h.spaces {
		owners := 0
		for _, id := range s.members {
			switch reasons[id] {
			case usage.Accounted:
				owners++
			case usage.SharedNetwork:
			default:
				h.t.Errorf("%s in %s is %q", id, name, reasons[id])
			}
		}
		if owners != 1 {
			h.t.Errorf("%d own %s", owners, name)
		}
	}
}
