// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
)

// What is counted at sockets is on the slot of a container's connections, adds up over its lives,
// and is told where it is counted.
func TestSockets(t *testing.T) {
	a, kernel, _ := newAccounts(t)
	told := func() *Sockets {
		t.Helper()
		for _, c := range a.Snapshot().Containers {
			if c.ID == "web" {
				return c.Sockets
			}
		}
		t.Fatal("no container")
		return nil
	}
	a.Start(Container{ID: "web"})
	slot := countSockets(t, a, kernel, 9, "web", 5)
	if got := told(); got != nil {
		t.Errorf("not counted, and told: %+v", got)
	}
	kernel.sockets = map[uint16]bpf.SocketCounters{}
	count := func(slot uint16, calls uint64) {
		var n bpf.SocketCounters
		n.Send[SocketUDP] = bpf.SocketCalls{Calls: calls, Bytes: 10 * calls}
		n.Receive[SocketUnix] = bpf.SocketCalls{Calls: 2 * calls, Bytes: math.MaxUint64}
		kernel.sockets[slot] = n
	}
	count(slot, 3)
	if err := a.Close(Target{Cgroup: 9, Sockets: true}); err != nil {
		t.Fatal(err)
	}
	count(countSockets(t, a, kernel, 10, "web", 1), 4)
	var want Sockets
	want.Send[SocketUDP] = SocketCalls{Calls: 7, Bytes: 70}
	want.Receive[SocketUnix] = SocketCalls{Calls: 14, Bytes: math.MaxUint64}
	if diff := cmp.Diff(&want, told()); diff != "" {
		t.Errorf("(-want +told):\n%s", diff)
	}

	var kept Traffic
	text, err := json.Marshal(Traffic{Sockets: want})
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil || kept.Sockets != want {
		t.Errorf("kept as %s: %+v, %v", text, kept.Sockets, err)
	}
}
