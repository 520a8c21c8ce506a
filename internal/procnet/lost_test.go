// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

// lossy is eth0 of which so many packets were lost.
func lossy(index int, lost losses) []device {
	d := eth0(index, traffic(1, 1))
	d[0].lost = lost
	return d
}

// lost expects what is said to be lost of a container.
func (w *world) lost(id string, want losses) {
	w.t.Helper()
	for _, c := range w.backend.Snapshot().Containers {
		if c.ID == id && c.Lost != (usage.Lost{Known: true, Receive: want.receive, Transmit: want.transmit}) {
			w.t.Errorf("%s has lost %+v, want %+v", id, c.Lost, want)
		}
	}
}

// What an interface has lost goes on over a restart, and over an interface that goes and comes.
func TestLost(t *testing.T) {
	of := func(n uint64) losses {
		return losses{receive: usage.Loss{Errors: n, Dropped: 2 * n}, transmit: usage.Loss{Errors: 3 * n, Dropped: 4 * n}}
	}
	inBubble(t, "a container of ours", func(w *world) {
		w.write("a", lossy(2, of(1)))
		w.start("a", "a")
		w.hosted("a", 9, 2)
		w.pass(pollEvery)
		w.lost("a", of(1))
		w.write("a", lossy(2, of(5)))
		w.pass(pollEvery)
		w.lost("a", of(5))
		w.stop()
		w.write("a", lossy(2, of(7)))
		w.run()
		w.lost("a", of(7))
		w.write("a", nil)
		w.pass(pollEvery)
		w.lost("a", of(7))
		w.write("a", lossy(3, of(2)))
		w.pass(2 * pollEvery) // it may have an end in the host
		w.lost("a", of(9))
	})
}
