// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

const loopback = "127.0.0.1"

// tracks has a namespace track its connections itself.
func (s *site) tracks(n *testnet.Namespace) {
	s.tb.Helper()
	_, err := n.Run("nft", `
table inet own {
	chain out {
		type filter hook output priority 0;
		ct state new counter
	}
}`)
	must(s.tb, err)
}

// listens waits until events of a container's own table are heard.
func (s *site) listens(t *Tracker, owner string) {
	s.tb.Helper()
	s.poll(owner+"'s own table is known", func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		tally := t.book.tallies[owner]
		return tally != nil && tally.inner != nil && tally.begun
	}, func() any { return t.Counted() })
}

// A container that tracks itself has two tables, that of the host and its own. What is in both
// counts once, and what only its own has counts, too.
func TestInside(t *testing.T) {
	s := newSite(t)
	s.serve(s.outside, 80)
	s.serve(s.client, 80)
	s.tracks(s.client)
	s.connect(s.client, outsideAddress+":80", 1, true)
	tracker := s.track(Options{})
	s.found(tracker)
	s.listens(tracker, "client")

	s.connect(s.client, outsideAddress+":80", 4, true)
	s.connect(s.client, outsideAddress+":80", 40, false)
	s.connect(s.client, loopback+":80", 6, true)
	s.connect(s.web, clientAddress+":80", 3, true) // of web the host alone tells
	s.send(s.client, outsideAddress+":9", 30)
	// The first one was there before.
	wantOpened := [directions]uint64{receive: 3 + 6, transmit: 4 + 40 + 6}
	same := func() bool {
		all := tracker.Counted()
		tcp, udp := s.listIn(s.client, "tcp", clientAddress, loopback), s.listIn(s.client, "udp", clientAddress)
		return shownList(all["client"], usage.ProtocolTCP) == tcp && shownList(all["client"], usage.ProtocolUDP) == udp
	}
	says := func() any {
		return []any{tracker.Counted(), s.listIn(s.client, "tcp", clientAddress, loopback), s.listIn(s.client, "udp", clientAddress), s.list(clientAddress, "tcp")}
	}
	s.poll("entries are what conntrack -L has inside", func() bool {
		tcp := s.listIn(s.client, "tcp", clientAddress, loopback)
		return same() && tcp.established == [directions]uint64{receive: 3 + 6, transmit: 5 + 6} && tcp.other[transmit] == 40
	}, says)
	all := tracker.Counted()
	if opened, closed := changes(all["client"], usage.ProtocolTCP); opened != wantOpened || closed != [directions]uint64{} {
		t.Errorf("client opened %d, closed %d", opened, closed)
	}
	if opened, _ := changes(all["client"], usage.ProtocolUDP); opened != [directions]uint64{transmit: 30} {
		t.Errorf("client opened %d of UDP", opened)
	}
	web := all["web"]
	want := usage.Conntrack{Since: web.Since, Listed: true, Told: true}
	want.Transmit[usage.ProtocolTCP] = usage.Connections{Established: 3, Opened: 3}
	if web != want {
		t.Errorf("web: %+v", web)
	}

	s.run("conntrack", "-F")
	_, err := s.client.Run("conntrack", "-F")
	must(t, err)
	s.poll("all are closed", func() bool {
		all := tracker.Counted()
		_, tcp := changes(all["client"], usage.ProtocolTCP)
		_, udp := changes(all["client"], usage.ProtocolUDP)
		return same() && tcp[transmit] >= wantOpened[transmit] && tcp[receive] >= wantOpened[receive] && udp[transmit] == 30
	}, says)
	if n := tracker.overflown(t); n != 0 {
		t.Errorf("%d overflows", n)
	}
}

// Where the host tracks nothing, who tracks itself has numbers, and nobody else.
func TestInsideAlone(t *testing.T) {
	s := newSite(t)
	s.run("nft", "flush ruleset")
	s.serve(s.client, 80)
	s.serve(s.outside, 80)
	tracker := s.track(Options{})
	s.found(tracker)
	s.poll("both are looked at", func() bool {
		tracker.mu.Lock()
		defer tracker.mu.Unlock()
		return len(tracker.book.tallies) == 2
	}, func() any { return nil })
	s.tracks(s.client)
	s.connect(s.client, outsideAddress+":80", 7, true)
	s.connect(s.outside, clientAddress+":80", 5, true)
	s.send(s.web, outsideAddress+":9", 3)
	is := func(opened [directions]uint64) func() bool {
		return func() bool {
			all := tracker.Counted()
			got, _ := changes(all["client"], usage.ProtocolTCP)
			tcp := s.listIn(s.client, "tcp", clientAddress)
			return got == opened && all["client"].Listed && all["client"].Told && shownList(all["client"], usage.ProtocolTCP) == tcp &&
				tcp.established[transmit] >= 7
		}
	}
	s.poll("the first ones are counted", is([directions]uint64{receive: 5, transmit: 7}), func() any { return tracker.Counted() })
	s.connect(s.client, outsideAddress+":80", 20, false)
	s.poll("the next ones are", is([directions]uint64{receive: 5, transmit: 27}), func() any { return tracker.Counted() })
	if _, ok := tracker.Counted()["web"]; ok {
		t.Error("there are numbers of a container of which nothing is known")
	}
}

// What a container forwards with NAT from others within is its own, once, whether the host tracks
// it or not.
func TestInsideNested(t *testing.T) {
	t.Run("both track", func(t *testing.T) { nested(t, newSite(t)) })
	t.Run("the container tracks", func(t *testing.T) {
		s := newSite(t)
		s.run("nft", "flush ruleset")
		nested(t, s)
	})
}

func nested(t *testing.T, s *site) {
	t.Helper()
	s.serve(s.outside, 80)
	within := &site{tb: t, host: s.client}
	nested := within.behind("nested0", "172.30.0.1", "172.30.0.2")
	within.serve(nested, 81)
	must(t, s.client.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	within.run("nft", `
table ip nat {
	chain before { type nat hook prerouting priority dstnat; iifname "eth0" tcp dport 8081 dnat to 172.30.0.2:81; }
	chain after { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}`)
	s.connect(nested, outsideAddress+":80", 1, true)
	tracker := s.track(Options{})
	s.found(tracker)
	s.listens(tracker, "client")
	s.connect(nested, outsideAddress+":80", 9, true)
	s.connect(s.web, clientAddress+":8081", 5, true)
	s.poll("each counts once", func() bool {
		c := tracker.Counted()["client"]
		return c.Listed && c.Transmit[usage.ProtocolTCP] == usage.Connections{Established: 10, Opened: 9} &&
			c.Receive[usage.ProtocolTCP] == usage.Connections{Established: 5, Opened: 5}
	}, func() any { return tracker.Counted() })
}

// A socket keeps a namespace alive, and must not do so when the container has ended.
func TestInsideLetsGo(t *testing.T) {
	s := newSite(t)
	n, err := testnet.NewNamespace()
	must(t, err)
	must(t, testnet.Veth(s.host, "short0", n, "eth0"))
	_, err = n.Run("ip", "address", "add", "10.88.3.2/24", "dev", "eth0")
	must(t, err)
	s.tracks(n)
	s.send(n, "10.88.3.1:9", 1)
	s.send(n, loopback+":9", 1)
	tracker := s.track(Options{})
	process := exec.Command("sleep", "infinity") // by which the namespace is entered
	must(t, n.Start(process))
	tracker.Found(Sandbox{
		ID: 3, Owner: "short", Since: time.Now(),
		Addresses: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.88.3.2")}, nil },
		Enter: func(visit func(int) error) error {
			file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", process.Process.Pid))
			if err != nil {
				return err
			}
			defer file.Close()
			return visit(int(file.Fd()))
		},
	})
	s.listens(tracker, "short")
	tracker.Ended("short")
	tracker.Left(3)
	must(t, process.Process.Kill())
	_ = process.Wait() // it was killed
	must(t, n.Close())
	s.poll("its interface is gone with it", func() bool {
		_, err := s.host.LinkByName("short0")
		return err != nil
	}, func() any { return tracker.Counted() })
}

// The numbers of two tables are never added, and one that is behind does not hold the other back.
func TestInner(t *testing.T) {
	of := func(established, other, opened, closed uint64) cell {
		return cell{established: established, other: other, opened: opened, closed: closed}
	}
	for _, c := range []struct {
		name                  string
		host, outward, within cell
		want                  usage.Connections
	}{
		{"both", of(2, 1, 9, 6), of(2, 1, 9, 6), cell{}, usage.Connections{Established: 2, Other: 1, Opened: 9, Closed: 6}},
		{"another state", of(1, 0, 1, 0), of(0, 1, 1, 0), cell{}, usage.Connections{Established: 1, Opened: 1}},
		{"the host has more", of(5, 2, 9, 2), of(2, 3, 6, 1), of(1, 1, 4, 2), usage.Connections{Established: 6, Other: 3, Opened: 13, Closed: 4}},
		{"the container has more", cell{}, of(2, 3, 6, 1), cell{}, usage.Connections{Established: 2, Other: 3, Opened: 6, Closed: 1}},
	} {
		got := usage.Connections{Established: c.host.established, Other: c.host.other, Opened: c.host.opened, Closed: c.host.closed}
		i := inner{outward: cells{transmit: {c.outward}}, within: cells{transmit: {c.within}}}
		if i.add(&got, transmit, 0); got != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	for _, c := range []struct {
		name           string
		fresh          bool
		there          uint64
		opened, closed uint64 // of the host
		want           [2]uint64
	}{
		{"as the host", false, 10, 100, 90, [2]uint64{100, 90}},
		{"the host is ahead with endings", false, 10, 100, 95, [2]uint64{100, 90}},
		{"began later", false, 10, 100, 50, [2]uint64{100, 50}},
		{"the host has none", false, 10, 0, 0, [2]uint64{0, 0}},
		{"the host has none, all are new", true, 10, 0, 0, [2]uint64{10, 0}},
	} {
		i := inner{fresh: c.fresh}
		i.begin()
		i.outward[transmit][0].next.other, i.seen.established, i.here = c.there, c.there, int64(c.there)
		i.end(&cells{transmit: {of(0, 0, c.opened, c.closed)}})
		if got := [2]uint64{i.outward[transmit][0].opened, i.outward[transmit][0].closed}; got != c.want {
			t.Errorf("%s: opened and closed are %d, want %d", c.name, got, c.want)
		}
	}
}

// Tables beyond a bound are not listened to, and such beyond a look's budget not listed.
func TestInsideIsBounded(t *testing.T) {
	s := newSite(t)
	s.tracks(s.client)
	s.send(s.client, outsideAddress+":9", 3)
	tracker := New(Options{NetNS: s.host.FD(), Log: slog.New(slog.DiscardHandler)})
	session := &session{Tracker: tracker, known: map[uint64]Sandbox{}, empty: map[uint64]bool{}}
	var err error
	session.events, err = open(s.host.FD())
	must(t, err)
	defer session.events.Close()
	session.entries = &socket{buf: make([]byte, readBuffer)}
	box := Sandbox{ID: maxTables, Owner: "client", Addresses: addresses(s.client), Enter: enter(s.client)}
	tracker.book.claim(box, []netip.Addr{netip.MustParseAddr(clientAddress)}, time.Now())
	tally := tracker.book.tallies["client"]
	for i := range uint64(maxTables) {
		tracker.tables[i] = nil
	}
	budget := int64(maxListed)
	if session.inside(t.Context(), box, &budget); tracker.tables[box.ID] != nil || tally.inner != nil {
		t.Fatalf("one more than %d tables", maxTables)
	}
	clear(tracker.tables)
	budget = 2
	if session.inside(t.Context(), box, &budget); !tally.left || tally.seen.established != 0 || budget != 2 {
		t.Errorf("listed %d, left %d: %v", tally.seen.established, budget, tally.left)
	}
	budget = maxListed
	if session.inside(t.Context(), box, &budget); tally.seen.established != 3 || budget != maxListed-3 {
		t.Errorf("listed %d, left %d", tally.seen.established, budget)
	}
	tracker.shut(box.ID)
}

// BenchmarkInside looks into the namespaces of 1,000 containers that track nothing themselves.
func BenchmarkInside(b *testing.B) {
	need.Root(b)
	host := namespace(b)
	const containers, namespaces = 1000, 20
	t := New(Options{NetNS: host.FD(), Log: slog.New(slog.DiscardHandler)})
	s := &session{Tracker: t, known: map[uint64]Sandbox{}, empty: map[uint64]bool{}, entries: &socket{buf: make([]byte, readBuffer)}}
	var all []*testnet.Namespace
	for range namespaces {
		all = append(all, namespace(b))
	}
	for i := range uint64(containers) {
		s.known[i] = Sandbox{ID: i, Owner: netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String(), Enter: enter(all[i%namespaces])}
	}
	began := cpuTime(b)
	for b.Loop() {
		for _, box := range s.known {
			s.inside(context.Background(), box, nil)
		}
	}
	if len(s.tables) != 0 || len(s.empty) != containers {
		b.Fatalf("%d tables, %d empty", len(s.tables), len(s.empty))
	}
	b.ReportMetric(float64((cpuTime(b)-began).Microseconds())/float64(b.N)/containers, "CPU-µs/container")
}

// cpuTime is what the process has used.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var all unix.Rusage
	must(tb, unix.Getrusage(unix.RUSAGE_SELF, &all))
	return time.Duration(all.Utime.Nano() + all.Stime.Nano())
}
