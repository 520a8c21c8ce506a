// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
)

// fakeSockets puts the program for connections on cgroups.
type fakeSockets struct{ *fakeCgroups }

func (g fakeSockets) Attach(_ string, id uint64) error {
	err := g.did("attach sockets %d", id)
	if err == nil {
		g.sockets[id] = true
	}
	return err
}

func (g fakeSockets) Replace(id uint64) error          { return g.did("replace sockets %d", id) }
func (g fakeSockets) Attached(id uint64) (bool, error) { return g.sockets[id], nil }
func (g fakeSockets) IDs() ([]uint64, error)           { return slices.Sorted(maps.Keys(g.sockets)), nil }

func (g fakeSockets) Detach(id uint64) error {
	err := g.did("detach sockets %d", id)
	delete(g.sockets, id)
	return err
}

var _ cgroups = fakeSockets{}

// newSockets is a kernel where connections are counted, or not, and no cgroup's packets.
func newSockets(t *testing.T, on bool) *kernel {
	t.Helper()
	k := newKernel(t)
	k.sockets, k.processes = map[uint64]bool{}, map[string][]int{}
	k.again(on)
	return k
}

func (k *kernel) again(on bool) {
	k.Controller.Cgroups, k.Controller.Sockets, k.CountSockets = nil, fakeSockets{(*fakeCgroups)(k)}, on
	k.Adopt(context.Background())
	k.calls = nil
}

// told returns what is told of a container's connections.
func (k *kernel) told(m roster.Member) usage.Container {
	k.t.Helper()
	for _, c := range k.Accounts.Snapshot().Containers {
		if c.ID == m.ID {
			return c
		}
	}
	k.t.Fatalf("no container %s", m.ID)
	return usage.Container{}
}

// counts has our program see connections come and go.
func (k *kernel) counts(entered, left uint64) {
	for index, s := range k.slots {
		if s.Sockets {
			n := k.tcp[index]
			n.Connects, n.Entered, n.Left = n.Connects+entered, n.Entered+entered, n.Left+left
			k.tcp[index] = n
		}
	}
}

func (k *kernel) establishes(m roster.Member, want uint64) {
	k.t.Helper()
	if c := k.told(m); c.TCP == nil || c.Established == nil || *c.Established != want {
		k.t.Errorf("tcp %+v, established %v, want %d", c.TCP, c.Established, want)
	}
}

// A container that had no process when our program came has no connections that it has not seen.
func TestSocketsOfNewContainer(t *testing.T) {
	k := newSockets(t, true)
	m := k.container("a", 7, 3)
	k.want("bind cgroup 9", "attach sockets 9", "bind cgroup 9", "note tcp 9")
	k.establishes(m, 0)
	k.counts(5, 2)
	k.establishes(m, 3)

	m.Ended = true
	k.Accounts.Stop(m.ID)
	k.Update(m)
	k.want("detach sockets 9")
	if c := k.told(m); c.TCP == nil || c.TCP.Connects != 5 || c.Established != nil {
		t.Errorf("of one that has ended: %+v, established %v", c.TCP, c.Established)
	}
}

// What was established before our program came is asked of the kernel, again as long as there is
// some, and after somebody took our program off. How many are established is not told before.
func TestSocketsFromBefore(t *testing.T) {
	k := newSockets(t, true)
	k.processes["a"] = []int{100}
	m := k.container("a", 7, 3)
	k.counts(2, 1)
	if c := k.told(m); c.TCP == nil || c.Established != nil {
		t.Errorf("told before it is known: %+v, established %v", c.TCP, c.Established)
	}
	k.fails["established 100"] = errInjected
	k.settleUnknown()
	if c := k.told(m); c.Established != nil {
		t.Errorf("%d established, and nobody could know", *c.Established)
	}
	clear(k.fails)
	k.established = map[uint64]uint64{9: 4, 10: 7}
	k.settleUnknown()
	k.establishes(m, 4)
	k.counts(3, 0)
	k.establishes(m, 7)

	k.established = map[uint64]uint64{9: 6} // one from before has ended unseen
	k.Reconcile(nil)
	k.establishes(m, 6)
	k.established = map[uint64]uint64{9: 4}
	k.Reconcile(nil)
	k.establishes(m, 4)
	k.established = nil // all are seen now, and nobody asks any more
	k.Reconcile(nil)
	k.establishes(m, 4)

	delete(k.sockets, 9)
	k.established = map[uint64]uint64{9: 1}
	k.calls = nil
	k.Reconcile(nil)
	if c := k.told(m); c.TCP == nil || c.Established != nil || !k.sockets[9] {
		t.Errorf("after our program was off: %+v, established %v, calls %v", c.TCP, c.Established, k.calls)
	}
	k.settleUnknown()
	k.establishes(m, 1)
}

// What an earlier process attached is gone on with, or taken off where connections are not to be
// counted.
func TestSocketsOfEarlierProcess(t *testing.T) {
	for _, on := range []bool{true, false} {
		k := newSockets(t, true)
		m := k.container("a", 7, 3)
		k.counts(5, 2)
		k.restart()
		k.Controller.Cgroups, k.Controller.Sockets, k.CountSockets = nil, fakeSockets{(*fakeCgroups)(k)}, on
		k.calls = nil
		k.Adopt(context.Background())
		k.Accounts.Start(usage.Container{ID: m.ID})
		k.Update(m)
		if on {
			k.establishes(m, 3)
			k.want("bind cgroup 9", "attach sockets 9", "bind cgroup 9") // ours in place of the old one
			continue
		}
		k.want("detach sockets 9")
		if c := k.told(m); c.TCP != nil || c.Reason == usage.Accounted {
			t.Errorf("told where it is not counted: %+v, %q", c.TCP, c.Reason)
		}
	}
}

// What the kernel has dropped in a namespace is told of a container that has it to itself.
func TestListenDrops(t *testing.T) {
	k := newSockets(t, true)
	m := k.container("a", 7, 3)
	k.processes["a"] = []int{100}
	k.listenDrops = 5
	for _, row := range []struct {
		reason usage.Reason
		shared bool
		known  bool
	}{
		{usage.Starting, false, false},
		{usage.Accounted, false, true},
		{usage.NoHostVeth, false, true},
		{usage.Accounted, true, false},
		{usage.HostNetwork, false, false},
		{usage.SeveralNetworks, false, false},
	} {
		m.Reason, m.Shared = row.reason, row.shared
		k.Update(m)
		k.Reconcile(nil)
		c := k.told(m)
		if known := c.TCP.ListenDropsKnown != 0; known != row.known || known && c.TCP.ListenDrops != 5 {
			t.Errorf("%+v: %d, known %v", row, c.TCP.ListenDrops, known)
		}
	}
}
