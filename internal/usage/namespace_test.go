// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// spaces is a host whose network namespaces are counted for one container.
type spaces struct {
	t *testing.T
	*Accounts
	kernel  *slots // keeps its slots over the end of a process, if durable is set
	durable bool
	records []Record
	now     time.Time
}

func (s *spaces) begin(boot string) {
	s.t.Helper()
	if before := s.kernel; !s.durable || boot != s.boot() {
		s.kernel = newSlots()
		if before != nil {
			s.kernel.next = before.next // generations are no other's, as in a kernel
		}
	}
	s.Accounts = New(Options{
		Datapath: s.kernel, Boot: boot, Kept: true, Now: func() time.Time { return s.now }, Retention: func() time.Duration { return time.Hour },
	})
	s.Restore(s.records)
	for _, left := range s.Leftovers() {
		if err := s.Retire(left); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Start(Container{ID: "web"})
	s.Recall("web", nil)
}

func (s *spaces) boot() string {
	if s.Accounts == nil {
		return ""
	}
	return s.Boot
}

// keep has all written down, as it is read again.
func (s *spaces) keep() {
	s.t.Helper()
	s.records = nil
	for _, r := range s.Pending(true) {
		s.Written([]Record{r})
		text, err := json.Marshal(r.Tallies)
		if err != nil {
			s.t.Fatal(err)
		}
		r.Tallies = nil
		if err := json.Unmarshal(text, &r.Tallies); err != nil {
			s.t.Fatal(err)
		}
		r.Total()
		s.records = append(s.records, r)
	}
}

// four are the same number of each kind: 1 attempt, 2 accepts, 3 resets and 4 drops.
func four(n uint64) NamespaceTCP {
	return NamespaceTCP{ConnectAttempts: n, Accepts: 2 * n, Resets: 3 * n, ListenDrops: 4 * n}
}

func (s *spaces) count(inode, kernels uint64, fresh bool) {
	s.t.Helper()
	if err := s.CountNamespace(inode, "web", "proc", four(kernels), fresh); err != nil {
		s.t.Fatal(err)
	}
}

func (s *spaces) end(inode uint64, lost bool) {
	s.t.Helper()
	if err := s.EndNamespace(inode, lost); err != nil {
		s.t.Fatal(err)
	}
}

// want expects what is told of the container's connections, -1 for nothing.
func (s *spaces) want(what string, n int) {
	s.t.Helper()
	var got *TCP
	for _, c := range s.Snapshot().Containers {
		if c.ID == "web" {
			got = c.TCP
		}
	}
	if n < 0 {
		if got != nil {
			s.t.Errorf("%s: %+v is told", what, got)
		}
		return
	}
	m := uint64(n)
	want := &TCP{ConnectAttempts: m, Accepts: 2 * m, Resets: 3 * m, ListenDrops: 4 * m, InPart: true}
	if got != nil {
		want.ListenDropsKnown = got.ListenDropsKnown
	}
	if diff := cmp.Diff(want, got); diff != "" || got.ListenDropsKnown == 0 {
		s.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// The kernel's counters of a namespace are the container's from the moment when it is known to have
// the namespace to itself, over ends of nettally, of the container and of the host. The total
// never goes back.
func TestNamespaces(t *testing.T) {
	for name, test := range map[string]func(*spaces){
		"what had passed is left out": func(s *spaces) {
			s.count(7, 100, false)
			s.want("first", 0)
			s.count(7, 103, false)
			s.want("then", 3)
		},
		"all of a fresh one": func(s *spaces) {
			s.count(7, 5, true)
			s.want("first", 5)
			s.count(7, 8, true)
			s.want("then", 8)
		},
		"others come": func(s *spaces) {
			s.count(7, 5, true)
			s.end(7, true)
			s.want("while others are there", -1)
			s.keep()
			s.begin("boot")
			s.want("in another process", -1)
			s.count(7, 50, false)
			s.want("they have left", 5)
			s.count(7, 51, false)
			s.want("since", 6)
		},
		"end of the process": func(s *spaces) {
			s.count(7, 100, false)
			s.count(7, 110, false)
			s.keep()
			s.count(7, 120, false)
			s.begin("boot") // killed
			s.want("not read yet", -1)
			if r := s.Pending(true)[0]; r.TCP == nil || !r.TCP.InPart {
				s.t.Errorf("kept before it is read: %+v", r.TCP)
			}
			s.count(7, 130, false)
			s.want("over kill -9", 30)
			s.keep()
			s.count(7, 140, false)
			s.begin("boot") // before the slots of those that were killed were given up
			s.count(7, 150, false)
			s.begin("boot")
			s.count(7, 151, false)
			s.want("over two more", 51)
			s.now = s.now.Add(time.Minute)
			s.keep()
			s.begin("boot")
			s.count(7, 152, false)
			s.want("when they are given up", 52)
		},
		"next life of the container": func(s *spaces) {
			s.count(7, 5, true)
			s.end(7, false)
			s.Stop("web")
			s.want("ended", 5)
			s.Start(Container{ID: "web"})
			s.want("starting", -1)
			s.count(8, 2, true)
			s.want("in another namespace", 7)
			s.end(8, false)
			s.count(8, 4, true) // the number is another one's by now
			s.want("in a third one by the same number", 11)
			s.now = s.now.Add(time.Minute)
			s.keep()
			s.begin("boot")
			s.count(8, 6, false)
			s.want("in another process", 13)
		},
		"next life in the same namespace": func(s *spaces) {
			s.count(7, 5, true)
			s.end(7, false)
			s.count(7, 9, false) // as it is older than the container
			s.want("counted once", 9)
		},
		"next boot": func(s *spaces) {
			s.count(7, 5, true)
			s.keep()
			s.begin("next")
			s.count(7, 100, false)
			s.want("another namespace by the same number", 5)
			s.count(7, 101, false)
			s.want("since", 6)
		},
		"32 bits": func(s *spaces) {
			s.count(7, 1000, false)
			s.count(7, 1001, false)
			s.count(7, 3, false)
			s.want("began again", 4)
			s.count(7, 4, false)
			s.want("since", 5)
		},
		"another owner": func(s *spaces) {
			s.count(7, 5, true)
			s.Start(Container{ID: "next"})
			s.Recall("next", nil)
			if err := s.CountNamespace(7, "next", "proc", four(9), false); err != nil {
				s.t.Fatal(err)
			}
			s.Stop("web")
			s.want("its own", 5)
			if err := s.CountNamespace(7, "next", "proc", four(10), false); err != nil {
				s.t.Fatal(err)
			}
			for _, c := range s.Snapshot().Containers {
				if c.ID == "next" && c.TCP.ConnectAttempts != 1 {
					s.t.Errorf("the next one has %+v", c.TCP)
				}
			}
		},
	} {
		for _, durable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, slots outlive the process %v", name, durable), func(t *testing.T) {
				s := &spaces{t: t, durable: durable, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
				s.begin("boot")
				s.want("nothing is counted", -1)
				test(s)
			})
		}
	}
}

// The counts of the program and of namespaces add up. While the program counts, all is known.
func TestProgramAndNamespaces(t *testing.T) {
	s := &spaces{t: t, durable: true, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	s.begin("boot")
	told := func() TCP {
		t.Helper()
		c := s.Snapshot().Containers[0]
		if c.TCP == nil {
			t.Fatal("nothing is told")
		}
		return *c.TCP
	}
	s.count(7, 5, true)
	s.end(7, false)
	slot := countSockets(t, s.Accounts, s.kernel, 9, "web", 3)
	n := s.kernel.tcp[slot]
	n.ConnectAttempts = 4
	s.kernel.tcp[slot] = n
	if got := told(); got.InPart || got.Connects != 3 || got.ConnectAttempts != 9 || got.Accepts != 10 {
		t.Errorf("by the program: %+v", got)
	}
	s.now = s.now.Add(time.Minute)
	s.keep() // the namespace's slot is folded
	if err := s.NoteListenDrops(Target{Cgroup: 9, Sockets: true}, 26, true); err != nil {
		t.Fatal(err)
	}
	if got := told(); got.ListenDrops != 26 {
		t.Errorf("%d listen drops, 20 of which the namespace has told; want 26", got.ListenDrops)
	}
	if err := s.EndCgroup(Target{Cgroup: 9, Sockets: true}); err != nil {
		t.Fatal(err)
	}
	s.count(7, 8, false) // since nobody says what the program counted of it
	if got := told(); !got.InPart || got.ConnectAttempts != 12 {
		t.Errorf("by the namespace again: %+v", got)
	}
	s.keep()
	if r := s.records[0]; r.TCP == nil || r.TCP.ConnectAttempts != 12 || r.TCP.Connects != 3 {
		t.Errorf("kept: %+v", r.TCP)
	}
	s.Stop("web")
	if got := told(); got.InPart || got.Connects != 3 {
		t.Errorf("ended: %+v", got)
	}
}
