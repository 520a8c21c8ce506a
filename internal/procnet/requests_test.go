// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"fmt"
	"path/filepath"
	"testing"
)

// open says how many connections a namespace has opened and accepted.
func (w *world) open(namespace string, active, passive int) {
	w.t.Helper()
	w.file(filepath.Join(w.proc, "namespaces", namespace, "net/snmp"),
		fmt.Sprintf("Tcp: ActiveOpens PassiveOpens\nTcp: %d %d\n", active, passive))
}

// wantSYN expects the requests of a container.
func (w *world) wantSYN(what, id string, receive, transmit uint64) {
	w.t.Helper()
	w.pass(pollEvery)
	for _, c := range w.backend.Snapshot().Containers {
		if c.ID == id && (c.Receive.SYN != receive || c.Transmit.SYN != transmit) {
			w.t.Errorf("%s: %d and %d, want %d and %d", what, c.Receive.SYN, c.Transmit.SYN, receive, transmit)
		}
	}
}

// Requests that rules tell stand in the place of connections, and none is counted twice when
// that changes.
func TestRequests(t *testing.T) {
	inBubble(t, "rules and files in turn", func(w *world) {
		w.write("a", eth0(2, traffic(1, 1)))
		w.start("a", "a")
		w.hosted("a", 9, 2)
		w.wantSYN("none", "a", 0, 0)
		w.open("a", 5, 3)
		w.wantSYN("files", "a", 3, 5)

		w.stop()
		w.requests = true
		w.run()
		w.backend.CountSYN(9, 10, 20)
		w.backend.CountSYN(8, 1000, 1000) // nobody's
		w.open("a", 50, 30)
		w.wantSYN("rules", "a", 13, 25)
		w.open("a", 51, 31)
		w.backend.CountSYN(9, 1, 1)
		w.wantSYN("more by rules", "a", 14, 26)

		w.stop()
		w.run()
		w.backend.CountSYN(9, 2, 2)
		w.wantSYN("rules again", "a", 16, 28)

		w.stop()
		w.requests = false
		w.run()
		w.wantSYN("files again", "a", 16, 28)
		w.open("a", 53, 32)
		w.wantSYN("more by files", "a", 17, 30)
	})
	inBubble(t, "no host veth", func(w *world) {
		w.stop()
		w.requests = true
		w.run()
		w.pass(pollEvery)
		w.write("a", eth0(2, traffic(1, 1)))
		w.start("a", "a")
		w.wantSYN("none", "a", 0, 0)
		w.open("a", 5, 3)
		w.wantSYN("files", "a", 3, 5)
	})
}
