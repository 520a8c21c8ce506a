// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// What a container sends in another namespace than the one that is counted can't be told
// here. So it is said.
func TestSpread(t *testing.T) {
	const looks = time.Minute
	inBubble(t, "a process stays in the host's", func(w *world) {
		w.start("a", "host")
		w.pass(looks)
		w.is("a", usage.HostNetwork)
		w.write("own", eth0(2, traffic(1, 2)))
		w.fork("a", "own")
		for range 60 {
			w.pass(time.Second)
			w.is("a", usage.HostNetwork)
		}
		w.want("a", traffic(1, 2)) // what can be told is
		w.enter("a", "host")
		w.pass(looks)
		w.is("a", usage.HostNetwork)
	})
	inBubble(t, "from the start", func(w *world) {
		w.write("own", eth0(2, traffic(1, 2)))
		w.start("a", "own")
		w.fork("a", "host")
		w.pass(looks)
		w.is("a", usage.HostNetwork)
	})
	inBubble(t, "a process that only passes through the host's", func(w *world) {
		w.write("own", eth0(2, traffic(1, 2)))
		w.start("a", "own")
		w.pass(looks)
		w.fork("a", "host")
		w.roster.Reload()
		w.pass(time.Second)
		w.is("a", usage.Accounted)
		w.enter("a", "own")
		w.pass(looks)
		w.is("a", usage.Accounted)
	})
	inBubble(t, "in two", func(w *world) {
		w.write("own", eth0(2, traffic(1, 2)))
		w.write("other", eth0(2, traffic(10, 20)))
		w.start("a", "own")
		w.pass(looks)
		w.is("a", usage.Accounted)
		w.fork("a", "other")
		w.pass(looks)
		w.is("a", usage.SeveralNetworks)
		w.want("a", traffic(1, 2))
		w.enter("a", "own")
		w.pass(looks)
		w.is("a", usage.Accounted)
	})
	inBubble(t, "in two, of which one has nothing", func(w *world) {
		w.write("own", eth0(2, traffic(1, 2)))
		w.write("empty", nil)
		w.start("a", "empty")
		w.fork("a", "own")
		w.pass(looks)
		w.is("a", usage.Accounted)
		w.want("a", traffic(1, 2))
		w.write("empty", eth0(2, traffic(10, 20)))
		w.pass(looks)
		w.is("a", usage.SeveralNetworks)
	})
	inBubble(t, "a supervisor in the host's, and an end there", func(w *world) {
		w.write("own", eth0(2, traffic(1, 2)))
		w.start("a", "own")
		w.numbers[w.pids["a"][0]] = 3
		v := watcher.HostVeth{Index: 9, Name: "veth0", PeerIndex: 2, NetNSID: 3}
		w.veths = append(w.veths, v)
		w.send(watcher.HostVethSeen{HostVeth: v})
		w.pass(looks)
		w.fork("a", "host")
		w.pass(looks)
		w.is("a", usage.SeveralNetworks)
	})
}
