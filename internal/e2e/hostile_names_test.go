// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A user gives a cgroup the name of somebody else's container, and an age above that one's. It
// is a container of the user's own, whatever is restarted: the victim keeps its numbers, its
// quota and its history.
func TestHostileNames(t *testing.T) {
	need.Root(t)
	need.Commands(t, "setpriv", "find")
	s := newSiege(t, "+all")
	victim := fmt.Sprintf("%064x", lives.Add(1))
	s.begin = func() *daemon {
		return startDaemon(t, on{s.host}, fmt.Sprintf(`
watch: {reconcile: 1s, include: [%q, %q]}
quotas:
  - {name: victims, match: {id: %q}, per: container, count: total_packets, limit: 1G, period: {every: month}}
  - {name: users, match: {user: "%d"}, per: container, count: total_packets, limit: 1G, period: {every: month}}
`, s.cgroup[:strings.LastIndex(s.cgroup, "/")]+"/*", fmt.Sprintf("/nettally-testnet-%d/*", os.Getpid()), victim, s.attacker.uid))
	}
	s.attacker.run("mkdir", s.in("own")...) // which keeps the directory around it
	claim := s.claim(victim)
	s.d = s.begin()
	s.d.keyed("users", s.id(claim))
	s.victim = s.containerWith(testnet.ContainerOptions{ID: victim}, "")
	s.d.counted(s.victim.ID, 1)
	s.exact(s.victim)
	sent := uint64(0)
	sends := func() {
		sent += 200
		s.sends(claim, sent)
	}
	sends()
	s.exact(s.victim)
	s.used("victims", s.victim.ID, s.packets(s.victim.ID))
	s.used("users", s.id(claim), sent)

	for _, again := range []func(){
		func() { s.d.stop(); s.d.start(); sends(); s.exact(s.victim) },
		func() { s.d.kill(); s.d.start(); sends(); s.exact(s.victim) },
		func() {
			before := s.packets(s.victim.ID)
			if err := s.victim.Restart(); err != nil {
				t.Fatal(err)
			}
			s.d.counted(s.victim.ID, 1)
			sends()
			s.d.poll("what it had and what it has", func() error {
				kernel := nettest.Must(testnet.InterfaceCounters(s.victim.PID()))(t)["eth0"]
				if now, want := s.packets(s.victim.ID), before+kernel.ReceivePackets+kernel.TransmitPackets; now != want {
					return fmt.Errorf("%d packets, want %d", now, want)
				}
				return nil
			})
		},
	} {
		again()
		if found := nettest.Must(s.d.container(s.victim.ID))(t); found.Cgroup != s.victim.Cgroup || found.User != "" {
			t.Errorf("the victim is %s of user %q", found.Cgroup, found.User)
		}
		if found := nettest.Must(s.d.container(s.id(claim)))(t); found.Cgroup != claim.Cgroup || found.User != fmt.Sprint(s.attacker.uid) {
			t.Errorf("the claim is %s of user %q", found.Cgroup, found.User)
		}
		s.used("victims", s.victim.ID, s.packets(s.victim.ID))
	}
	s.used("users", s.id(claim), sent)
	s.d.stop()
	s.d.start()
	if rows := s.history("by=container&user=*"); len(rows) != 1 || rows[0] != s.id(claim) {
		t.Errorf("history of users: %v", rows)
	}
	if rows := s.history("by=container"); len(rows) != 1 || rows[0] != s.victim.ID {
		t.Errorf("history: %v", rows)
	}
}

// claim makes a container of the attacker's on the host's network, as old as can be, in a
// cgroup that Docker would name so.
func (s *siege) claim(id string) *testnet.Container {
	s.t.Helper()
	name := "docker-" + id + ".scope"
	c := nettest.Container(s.t, s.host, testnet.ContainerOptions{ID: id, Cgroup: s.cgroup + "/" + name, Join: s.host})
	for _, dir := range s.in(name) {
		if err := os.Chown(dir, s.attacker.uid, s.attacker.uid); err != nil {
			s.t.Fatal(err)
		}
		s.attacker.run("touch", "-d", "2001-01-01", dir)
	}
	return c
}

// packets is what a container has received and sent.
func (s *siege) packets(id string) uint64 {
	s.t.Helper()
	c := nettest.Must(s.d.container(id))(s.t)
	return c.Receive.Packets + c.Transmit.Packets
}

// used expects a quota to have counted so many packets for a key.
func (s *siege) used(name, key string, want uint64) {
	s.t.Helper()
	s.d.poll("used", func() error {
		var found exporter.QuotaList
		if err := json.Unmarshal([]byte(nettest.Must(s.d.get("/api/v1/quotas"))(s.t)), &found); err != nil {
			return err
		}
		for _, q := range found.Quotas {
			if q.Quota == name && (q.Key != key || q.Used != float64(want)) {
				return fmt.Errorf("%s: key %s used %v, want %s %d", name, q.Key, q.Used, key, want)
			}
		}
		return nil
	})
}

// history returns the keys that there is history of.
func (s *siege) history(query string) (keys []string) {
	s.t.Helper()
	var found exporter.History
	if err := json.Unmarshal([]byte(nettest.Must(s.d.get("/api/v1/history?"+query))(s.t)), &found); err != nil {
		s.t.Fatal(err)
	}
	for _, row := range found.History {
		keys = append(keys, row.Key)
	}
	return keys
}

// Directories without a process take no slot, whatever their names are, and leave nothing when
// they go.
func TestHostileEmptyNames(t *testing.T) {
	need.Root(t)
	need.Commands(t, "setpriv", "find")
	s := newSiege(t, "+all")
	s.victim = s.container("")
	s.d = s.begin()
	s.d.counted(s.victim.ID, 1)
	before := s.d.weigh("before")
	const empty = 1000
	s.attacker.run("sh", "-c", fmt.Sprintf(`cd %q && mkdir own && i=0
		while [ $i -lt %d ]; do mkdir docker-$(printf %%064x $i).scope || exit 1; i=$((i+1)); done`, s.watched, empty))
	s.d.poll("seen", func() error {
		if n := s.d.metric("nettally_containers"); n < empty {
			return fmt.Errorf("%v containers", n)
		}
		return nil
	})
	if n := s.d.metric(`nettally_attachments{hook="cgroup"}`); n >= 10 {
		t.Errorf("%v cgroups are counted", n)
	}
	s.exact(s.victim)
	s.d.weigh("beside empty directories").grewBy(t, before, 32<<20, 32)
	s.attacker.run("find", s.watched, "-name", "docker-*", "-delete")
	s.d.poll("forgotten", func() error {
		if n := len(s.d.list().Containers); n > 10 {
			return fmt.Errorf("%d containers", n)
		}
		return nil
	})
	s.exact(s.victim)
}
