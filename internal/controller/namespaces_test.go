// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// newNamespaces is a kernel where connections are counted by network namespaces, for want of a
// cgroup2 hierarchy.
func newNamespaces(t *testing.T) *kernel {
	t.Helper()
	k := newKernel(t)
	k.processes = map[string][]int{}
	k.andAgain()
	return k
}

func (k *kernel) andAgain() {
	k.Controller.Cgroups, k.Controller.Sockets, k.CountNamespaces = nil, nil, true
	k.adoptAll()
}

func (k *kernel) adoptAll() { k.Adopt(k.t.Context()) }

// has says what each namespace has counted: so many attempts, twice as many accepts, and so on.
func (k *kernel) has(n uint64) {
	k.namespace = watcher.NamespaceTCP{ConnectAttempts: n, Accepts: 2 * n, Resets: 3 * n, ListenDrops: 4 * n}
}

// tells expects what is told of a container's connections, nothing for -1.
func (k *kernel) tells(what string, m roster.Member, n int) {
	k.t.Helper()
	got := k.told(m)
	if got.TCP == nil || n < 0 {
		if got.TCP != nil || n >= 0 {
			k.t.Errorf("%s: told %+v, want %d", what, got.TCP, n)
		}
		return
	}
	t, want := got.TCP, uint64(n)
	if !t.InPart || got.Established != nil || t.ConnectAttempts != want || t.Accepts != 2*want || t.Resets != 3*want || t.ListenDrops != 4*want {
		k.t.Errorf("%s: told %+v, %v established, want %d", what, t, got.Established, n)
	}
}

// alone starts a container that has the namespace 1003 to itself, where process 1003 is, and the
// process 50, which is elsewhere.
func (k *kernel) alone(id string) roster.Member {
	k.t.Helper()
	k.processes[id] = []int{50, 1003}
	m := k.container(id, 7, 3)
	k.count(m)
	m.Reason = usage.Accounted
	k.Update(m)
	return m
}

// Where no program can be put on cgroups, the counters of a namespace tell the connections of the
// container that has it to itself.
func TestNamespaces(t *testing.T) {
	k := newNamespaces(t)
	k.has(5)
	k.processes["a"] = []int{1003}
	m := k.container("a", 7, 3)
	k.count(m)
	k.tells("starting", m, -1)
	m.Reason = usage.Accounted
	k.Update(m)
	k.tells("what was there before us is left out", m, 0)
	k.has(7)
	k.countNamespaces()
	k.tells("since", m, 2)

	m.Extent = roster.MaybeInMore // somebody enters it, which takes a moment
	k.Update(m)
	k.has(9)
	k.countNamespaces()
	k.tells("while that is open", m, 2)
	m.Extent = roster.InOne
	k.Update(m)
	k.tells("then", m, 4)

	k.fails["tcp in 1003 by 1003"] = errInjected
	k.countNamespaces()
	k.tells("what can't be read now stays", m, 4)
	clear(k.fails)

	m.Shared = true
	k.Update(m)
	k.tells("with others", m, -1)
	k.has(90)
	k.countNamespaces()
	m.Ended = true
	k.Accounts.Stop(m.ID)
	k.Update(m)
	k.Left(roster.Space{ID: 1003})
	k.tells("ended", m, 4)
}

// A container that starts while we run has all that its namespace has counted, unless the
// namespace is older.
func TestNamespaceOfNewContainer(t *testing.T) {
	for name, row := range map[string]struct {
		since time.Duration // of the namespace, to the container's beginning
		want  int
	}{"made for it": {-time.Second, 5}, "made by who looks": {time.Hour, 5}, "kept from another one": {-time.Minute, 0}} {
		t.Run(name, func(t *testing.T) {
			k := newNamespaces(t)
			k.Reconcile(func(roster.Key) bool { return true })
			k.has(5)
			k.processes["a"] = []int{1003}
			m := k.container("a", 7, 3)
			m.Found.CreatedAt = time.Now().Add(time.Second)
			k.since = m.Found.CreatedAt.Add(row.since)
			k.count(m)
			m.Reason = usage.Accounted
			k.Update(m)
			k.tells("told", m, row.want)
		})
	}
}

// The next process goes on from where this one has read.
func TestNamespaceOfEarlierProcess(t *testing.T) {
	k := newNamespaces(t)
	k.has(100)
	m := k.alone("a")
	k.has(104)
	k.countNamespaces()
	k.tells("counted", m, 4)
	k.restart() // without a ledger, as after kill -9 before anything was written
	k.andAgain()
	k.Accounts.Start(usage.Container{ID: m.ID})
	k.tells("not read yet", m, -1)
	k.has(110)
	k.Update(m)
	k.count(m)
	k.Update(m)
	k.tells("counted on", m, 10)
	if len(k.tcp) != 1 {
		t.Errorf("slots with connections: %+v", k.tcp)
	}
}

// A container with others inside has connections in their namespaces, too.
func TestNamespaceOfNests(t *testing.T) {
	k := newNamespaces(t)
	k.has(5)
	m := k.alone("a")
	k.tells("alone", m, 0)
	inner := roster.Member{Key: roster.Key{ID: "b"}, Found: watcher.Container{ID: "b", ParentID: "a"}, Reason: usage.Starting}
	k.Accounts.Start(usage.Container{ID: "b"})
	k.Update(inner)
	k.countNamespaces()
	k.tells("with one inside", m, -1)
	inner.Ended = true
	k.Update(inner)
	if len(k.Controller.inside) != 1 { // of those that are in none
		t.Errorf("inside of containers: %v", k.Controller.inside)
	}
}
