// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

func eth0(index int, counted duplex) []device {
	return []device{{name: "eth0", index: index, up: true, duplex: counted}}
}

// hosted makes the other end of an interface, in the host.
func (w *world) hosted(id string, index, peer int) {
	w.numbers[w.pids[id][0]] = 3
	v := watcher.HostVeth{Index: index, Name: "veth0", PeerIndex: peer, NetNSID: 3}
	w.veths = append(w.veths, v)
	w.send(watcher.HostVethSeen{HostVeth: v})
}

func TestCount(t *testing.T) {
	inBubble(t, "growth, from the first byte", func(w *world) {
		w.write("a", eth0(2, traffic(1, 2)))
		w.start("a", "a")
		w.pass(pollEvery)
		w.want("a", traffic(1, 2))
		w.write("a", eth0(2, traffic(11, 22)))
		w.pass(pollEvery)
		w.want("a", traffic(11, 22))
	})
	inBubble(t, "what was there before us is seeded", func(w *world) {
		w.stop()
		w.write("a", eth0(2, traffic(5, 7)))
		w.start("a", "a")
		w.run()
		w.want("a", traffic(5, 7))
		if _, seeded := w.counted("a"); seeded != traffic(5, 7) {
			w.t.Errorf("seeded %v", seeded)
		}
	})
	inBubble(t, "another interface by the same index", func(w *world) {
		w.write("a", eth0(2, traffic(10, 10)))
		w.start("a", "a")
		w.pass(pollEvery)
		w.write("a", eth0(2, traffic(3, 4)))
		w.pass(pollEvery)
		w.want("a", traffic(13, 14))
		w.write("a", eth0(2, traffic(30, 40)))
		w.pass(pollEvery)
		w.want("a", traffic(40, 50))
	})
	inBubble(t, "an interface that goes", func(w *world) {
		w.write("a", eth0(2, traffic(10, 10)))
		w.start("a", "a")
		w.pass(pollEvery)
		w.write("a", nil)
		w.pass(pollEvery)
		w.write("a", []device{{name: "eth1", index: 3, up: true, duplex: traffic(1, 1)}})
		w.pass(2 * pollEvery) // it may have an end in the host
		w.want("a", traffic(11, 11))
	})
	inBubble(t, "an excluded interface", func(w *world) {
		w.excluded["veth0"] = true
		w.write("a", eth0(2, traffic(10, 10)))
		w.start("a", "a")
		w.hosted("a", 9, 2)
		w.pass(pollEvery)
		w.want("a", duplex{})
		w.is("a", usage.InterfaceExcluded)
		delete(w.excluded, "veth0")
		w.roster.Reload()
		w.pass(pollEvery)
		w.write("a", eth0(2, traffic(15, 16)))
		w.pass(pollEvery)
		w.want("a", traffic(15, 16))
		if _, seeded := w.counted("a"); seeded != traffic(10, 10) {
			w.t.Errorf("seeded %v: it was excluded then", seeded)
		}
		w.is("a", usage.Accounted)
		w.excluded["veth0"] = true
		w.roster.Reload()
		w.pass(pollEvery)
		w.is("a", usage.InterfaceExcluded)
		w.write("a", eth0(2, traffic(100, 100)))
		w.pass(pollEvery)
		w.want("a", traffic(15, 16))
	})
	inBubble(t, "a snapshot says when the files were read", func(w *world) {
		w.pass(2 * time.Second)
		read := w.backend.Snapshot().ReadAt
		w.yield(func() { time.Sleep(time.Millisecond) })
		if s := w.backend.Snapshot(); !s.ReadAt.Equal(read) || !s.TakenAt.After(read) {
			w.t.Errorf("read at %s, taken at %s; want it read at %s", s.ReadAt, s.TakenAt, read)
		}
		w.yield(func() { w.backend.Refresh(w.t.Context()) })
		if s := w.backend.Snapshot(); !s.ReadAt.Equal(s.TakenAt) {
			w.t.Errorf("read at %s, taken at %s", s.ReadAt, s.TakenAt)
		}
	})
	inBubble(t, "who asks each second, a bit early or late, gets newer numbers each time", func(w *world) {
		last := w.backend.Snapshot().ReadAt
		for i := range 30 {
			w.pass(time.Second + time.Duration(4*(i%2)-2)*time.Millisecond)
			w.yield(func() { w.backend.Refresh(w.t.Context()) })
			at := w.backend.Snapshot().ReadAt
			if !at.After(last) {
				w.t.Errorf("asked %d times: read at %s again", i+1, at)
			}
			last = at
		}
	})
}

func TestEnd(t *testing.T) {
	inBubble(t, "the end in the host has the last word", func(w *world) {
		w.write("a", eth0(2, traffic(10, 20)))
		w.start("a", "a")
		w.hosted("a", 9, 2)
		w.pass(pollEvery)
		w.want("a", traffic(10, 20))
		last := traffic(11, 22)
		w.counters[9] = watcher.LinkCounters{
			ReceiveBytes: last.receive.Bytes, ReceivePackets: last.receive.Packets,
			TransmitBytes: last.transmit.Bytes, TransmitPackets: last.transmit.Packets,
		}
		w.end("a")
		w.want("a", last)
	})
	inBubble(t, "nothing stays", func(w *world) {
		w.write("a", eth0(2, traffic(10, 20)))
		w.start("a", "a")
		w.pass(pollEvery)
		if n := len(w.datapath.Slots()); n != 2 { // the interface's and the connections'
			w.t.Errorf("%d slots", n)
		}
		w.end("a")
		w.pass(time.Minute)
		if n := len(w.datapath.Slots()) + len(w.backend.spaces) + len(w.backend.members) + len(w.backend.in); n != 0 {
			w.t.Errorf("%d things stay", n)
		}
		w.pass(25 * time.Hour)
		if n := len(w.backend.Snapshot().Containers); n != 0 {
			w.t.Errorf("%d containers", n)
		}
	})
}

func TestOwners(t *testing.T) {
	inBubble(t, "counted once, then for the next", func(w *world) {
		w.write("pod", eth0(2, traffic(10, 10)))
		w.start("a", "pod")
		w.start("b", "pod")
		w.pass(pollEvery)
		w.want("a", traffic(10, 10))
		w.want("b", duplex{})
		w.write("pod", eth0(2, traffic(12, 12)))
		w.end("a")
		w.pass(time.Minute)
		w.write("pod", eth0(2, traffic(15, 15)))
		w.pass(pollEvery)
		w.want("a", traffic(12, 12))
		w.want("b", traffic(3, 3))
	})
	inBubble(t, "a running owner keeps what it left behind", func(w *world) {
		w.write("pod", eth0(2, traffic(10, 10)))
		w.start("a", "pod")
		w.start("b", "pod")
		w.pass(pollEvery)
		w.stop()
		b := w.backend.members[roster.Key{ID: "b"}]
		at, err := w.backend.Locate(b)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.backend.Succeed(b, nil, at); err != nil {
			w.t.Error(err)
		}
		w.write("pod", eth0(2, traffic(11, 11)))
		w.backend.pollAll()
		w.want("a", traffic(11, 11))
		w.want("b", duplex{})
		w.run()
	})
	inBubble(t, "the same owner after a restart", func(w *world) {
		w.write("pod", eth0(2, traffic(10, 10)))
		w.start("b", "pod")
		w.start("a", "pod")
		w.pass(pollEvery)
		w.stop()
		w.write("pod", eth0(2, traffic(20, 20)))
		w.containers[0], w.containers[1] = w.containers[1], w.containers[0]
		w.run()
		w.want("b", traffic(20, 20))
		w.want("a", duplex{})
		for _, c := range w.backend.Snapshot().Containers {
			if want := map[string]usage.Reason{"a": usage.SharedNetwork, "b": usage.Accounted}[c.ID]; c.Reason != want {
				w.t.Errorf("%s is %q", c.ID, c.Reason)
			}
		}
	})
	inBubble(t, "the next owner after a restart", func(w *world) {
		w.write("pod", eth0(2, traffic(10, 10)))
		w.start("a", "pod")
		w.hosted("a", 9, 2)
		w.start("b", "pod")
		w.pass(pollEvery)
		w.stop()
		w.end("a")
		w.numbers[w.pids["b"][0]] = 3
		w.write("pod", eth0(2, traffic(12, 12)))
		w.run()
		w.pass(pollEvery)
		w.write("pod", eth0(2, traffic(15, 15)))
		w.pass(time.Minute)
		w.want("a", traffic(12, 12))
		w.want("b", traffic(3, 3))
	})
}
