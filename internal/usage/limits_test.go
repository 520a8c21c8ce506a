// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
)

// limited returns accounts with bounds.
func limited(t *testing.T, change func(*Limits)) (*Accounts, *slots, *clock) {
	t.Helper()
	a, kernel, clock := newAccounts(t)
	limits := Unlimited
	change(&limits)
	a.Limits = func() Limits { return limits }
	return a, kernel, clock
}

// sums adds up what is shown and what only the ledger knows: packets in all, by the interface,
// seeded and mended. shown has each container's.
func (m *machine) sums() (sum [4]uint64, shown map[string]uint64) {
	shown = map[string]uint64{}
	add := func(c Container) {
		rx := c.Receive
		for i, n := range []uint64{rx.Wire().Packets, rx.Interface.Packets, rx.Seeded.Packets, rx.Mended.Packets} {
			sum[i] += n
		}
	}
	for _, c := range m.a.Snapshot().Containers {
		add(c)
		shown[c.ID] = c.Receive.Wire().Packets
	}
	for _, r := range m.disk.read(m.t) {
		if _, ok := shown[r.ID]; !ok {
			add(r.Container)
		}
	}
	return sum, shown
}

// However containers come, go and are counted, and nettally ends, with two containers that share
// an account nothing is lost and nothing counted twice, and no total goes back.
func TestNothingIsLostBeyondLimits(t *testing.T) {
	for seed := range uint64(need.Tries(200)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t, seed)
			m.user = "1000"
			m.limits = func() Limits {
				l := Unlimited
				l.PerUser = 1
				return l
			}
			m.start()
			last := map[string]uint64{}
			beyond := false
			for step := range 300 {
				m.step()
				var want [4]uint64
				for id, n := range m.want {
					for i, n := range []uint64{n, n, m.seeded[id], m.mended[id]} {
						want[i] += n
					}
				}
				got, shown := m.sums()
				if got != want {
					t.Fatalf("step %d: %d in all, want %d", step, got, want)
				}
				for id, n := range shown {
					if n < last[id] {
						t.Fatalf("step %d: the total of %s went from %d to %d", step, id, last[id], n)
					}
					last[id] = n
					beyond = beyond || IsOthers(id) && n > 0
				}
			}
			if !beyond {
				t.Error("nothing was counted for others")
			}
		})
	}
}

// Each bound, when it is reached and when there is room again.
func TestLimits(t *testing.T) {
	shown := func(a *Accounts) string {
		var all []string
		for _, c := range a.Snapshot().Containers {
			if c.State == Running {
				all = append(all, fmt.Sprint(c.ID, ":", c.Receive.Wire().Packets))
			}
		}
		return strings.Join(all, " ")
	}
	next := 0
	use := func(a *Accounts, kernel *slots, id string, packets uint64) (ifindex int) {
		next++
		a.Start(Container{ID: id, StartedAt: time.Unix(int64(next), 0)})
		slot := open(t, a, next, "veth")
		assign(t, a, next, id, "eth0")
		a.Explain(id, Accounted)
		kernel.counts[slot] = packets
		return next
	}
	t.Run("per user", func(t *testing.T) {
		a, kernel, clock := limited(t, func(l *Limits) { l.PerUser = 2 })
		for n, id := range []string{"1000~a", "1000~b", "1000~c", "1000~d", "1001~a", "web"} {
			use(a, kernel, id, 10+uint64(n))
		}
		if got := shown(a); !strings.Contains(got, "1000~a:10 1000~b:11") || !strings.Contains(got, "1001~a:14 web:15") ||
			!strings.Contains(got, "1000~~others:25") {
			t.Error(got)
		}
		if b := a.Snapshot().Beyond; b != (Beyond{Users: 2}) {
			t.Errorf("%+v", b)
		}
		if owner := a.Owner(OnHost(next - 2)); owner != "1000~d" {
			t.Errorf("the kernel and the roster hear of %q", owner)
		}
		a.Explain("1000~c", AttachFailed)
		if c := find(t, a, "1000~~others"); c.Reason != AttachFailed || c.User() != "1000" {
			t.Errorf("%+v", c)
		}
		a.Stop("1000~c") // with its failure
		if c := find(t, a, "1000~~others"); c.Reason != Accounted || c.State != Running {
			t.Errorf("%+v", c)
		}
		if running := a.Running(); len(running) != 5 {
			t.Error(running)
		}
		// One that was counted holds its place for an hour.
		a.Stop("1000~a")
		closeInterface(t, a, next-5)
		a.Expire()
		use(a, kernel, "1000~e", 1)
		clock.now = clock.now.Add(lingers + time.Minute)
		a.Expire()
		use(a, kernel, "1000~f", 7)
		if got := shown(a); !strings.Contains(got, "1000~f:7") || strings.Contains(got, "1000~e") {
			t.Error(got)
		}
		for _, id := range []string{"1000~d", "1000~e"} {
			a.Stop(id)
		}
		if c := find(t, a, "1000~~others"); c.State != Stopped || c.Receive.Wire().Packets != 26 {
			t.Errorf("%+v", c)
		}
	})
	t.Run("all", func(t *testing.T) {
		a, kernel, _ := limited(t, func(l *Limits) { l.Containers = 2 })
		for n, id := range []string{"1000~a", "1001~a", "1002~a", "web", "db", "batch"} {
			use(a, kernel, id, 10+uint64(n))
		}
		if got := shown(a); !strings.Contains(got, "web:13 db:14 ~others:15") && !strings.Contains(got, "~others:15") ||
			!strings.Contains(got, "1002~~others:12") || strings.Contains(got, "batch") {
			t.Error(got)
		}
	})
	t.Run("interfaces", func(t *testing.T) {
		a, kernel, _ := limited(t, func(l *Limits) { l.Interfaces = 3 })
		a.Start(Container{ID: "web"})
		for n := range 5 {
			slot := open(t, a, 7+n, "veth")
			assign(t, a, 7+n, "web", fmt.Sprint("eth", n))
			kernel.counts[slot] = 10
		}
		names := ""
		for _, i := range find(t, a, "web").Interfaces {
			names += fmt.Sprint(i.Name, ":", i.Receive.Wire().Packets, " ")
		}
		if names != "eth0:10 eth1:10 eth2:10 ~others:20 " || a.Snapshot().Beyond.Interfaces != 2 {
			t.Error(names, a.Snapshot().Beyond)
		}
		for n := range 3*slotsPerName - 5 {
			if err := a.MayTake(OnHost(9999), "web"); err != nil {
				t.Fatal(n, err)
			}
			open(t, a, 100+n, "veth")
			assign(t, a, 100+n, "web", "eth0")
		}
		if err := a.MayTake(OnHost(9999), "web"); err != ErrContainerFull {
			t.Error(err)
		}
	})
	t.Run("slots", func(t *testing.T) {
		a, kernel, clock := limited(t, func(l *Limits) { l.UserSlots = 2 })
		first := use(a, kernel, "1000~a", 1)
		use(a, kernel, "1001~a", 1)
		use(a, kernel, "web", 1)
		if err := a.MayTake(OnHost(9999), "1002~a"); err != ErrUsersFull {
			t.Error(err)
		}
		if err := a.MayTake(OnHost(9999), "web"); err != nil {
			t.Error(err)
		}
		closeInterface(t, a, first)
		if err := a.MayTake(OnHost(9999), "1002~a"); err != nil {
			t.Error(err)
		}
		for i, target := range []Target{{Cgroup: 7}, {Cgroup: 8}} { // the second one is not told
			if _, _, err := a.Open(target, "", "cgroup"); err != nil {
				t.Fatal(err)
			}
			if err := a.Assign(target, "1001~a", ""); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				if err := a.Tell(target); err != nil {
					t.Fatal(err)
				}
			}
		}
		if a.userSlots != 3 {
			t.Error(a.userSlots)
		}
		for _, id := range []uint64{7, 8} {
			endCgroup(t, a, id)
		}
		clock.now = clock.now.Add(settleAfter)
		if a.Expire(); a.userSlots != 1 {
			t.Error(a.userSlots, "slots after the end of two")
		}
	})
}

// Where many have ended, root's are remembered longer than users'.
func TestEndedOfUsersGoFirst(t *testing.T) {
	a, kernel, clock := limited(t, func(l *Limits) { l.Ended = 3 })
	for n, id := range []string{"web", "1000~a", "db", "1000~b", "1000~c"} {
		a.Start(Container{ID: id})
		kernel.counts[open(t, a, 7+n, "veth")] = 1
		assign(t, a, 7+n, id, "eth0")
		closeInterface(t, a, 7+n)
		a.Stop(id)
		clock.now = clock.now.Add(time.Second)
	}
	if gone := fmt.Sprint(a.Expire()); gone != "[1000~a 1000~b]" {
		t.Error(gone)
	}
}

func TestIsOthers(t *testing.T) {
	for id, want := range map[string]bool{
		Others: true, InScope("1000", Others): true,
		"others": false, "1000~others": false, "k8s.io~others": false, "": false, "1000~": false,
	} {
		if IsOthers(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}
