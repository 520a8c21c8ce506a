// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A user runs more containers than the user may have accounts. Those beyond the bound are
// counted together, exactly, over a stop, a kill and a restart; all others have their own.
func TestHostileMany(t *testing.T) {
	need.Root(t)
	need.Commands(t, "setpriv", "find")
	s := newSiege(t, "+all")
	const bound, each = 3, 200
	s.begin = func() *daemon {
		return startDaemon(t, on{s.host}, fmt.Sprintf(`
watch: {reconcile: 1s, include: [%q, %q]}
limits: {per_user: %d}
quotas:
  - {name: victims, match: {}, per: all, count: total_packets, limit: 1G, period: {every: month}}
  - {name: users, match: {user: "%d"}, per: all, count: total_packets, limit: 1G, period: {every: month}}
`, s.cgroup[:strings.LastIndex(s.cgroup, "/")]+"/*", fmt.Sprintf("/nettally-testnet-%d/*", os.Getpid()), bound, s.attacker.uid))
	}
	s.attacker.run("mkdir", s.in("own")...) // which keeps the directory around it
	s.victim = s.container("")
	s.d = s.begin()
	s.d.counted(s.victim.ID, 1)
	s.exact(s.victim)

	sent := map[string]uint64{}
	others := fmt.Sprintf("%d~~others", s.attacker.uid)
	var many []*testnet.Container
	sends := func() {
		sink := nettest.Must(s.victim.Listen("udp", s.victim.Interfaces[0].IPv4))(t)
		for i, c := range many {
			if err := c.SendUDP(sink.Addr, each, 100); err != nil {
				t.Fatal(err)
			}
			nettest.Must(sink.Received(each * (i + 1)))(t)
			account := s.id(c)
			if _, err := s.d.container(account); err != nil {
				account = others
			}
			sent[account] += each
		}
	}
	add := func(n int) {
		for range n {
			many = append(many, s.claim(fmt.Sprintf("%064x", lives.Add(1))))
		}
		s.d.poll("all are counted", func() error {
			if n := s.d.metric(`nettally_attachments{hook="cgroup"}`); int(n) < len(many) {
				return fmt.Errorf("%v cgroups", n)
			}
			if n := s.d.metric(`nettally_beyond_limits{limit="per_user"}`); int(n) < len(many)-bound {
				return fmt.Errorf("%v beyond the bound, of %d", n, len(many))
			}
			return nil
		})
	}
	check := func(when string) {
		t.Helper()
		s.d.poll(when, func() error {
			sum := uint64(0)
			for account, want := range sent {
				c, err := s.d.container(account)
				if err != nil || c.IP == nil || c.IP.Transmit.Packets != want || c.User != fmt.Sprint(s.attacker.uid) {
					return fmt.Errorf("%s has %+v, want %d: %w", account, c.IP, want, err)
				}
				sum += want
			}
			if len(sent) != bound+1 || sum != uint64(each*len(many)) && when == "first" {
				return fmt.Errorf("%v", sent)
			}
			return nil
		})
		all := uint64(0)
		for _, n := range sent {
			all += n
		}
		s.used("users", "all", all)
		s.exact(s.victim)
		s.used("victims", "all", s.packets(s.victim.ID))
	}
	add(bound) // which have accounts of their own
	add(3)
	sends()
	check("first")
	for when, again := range map[string]func(){
		"after a stop":                           func() { s.d.stop(); s.d.start() },
		"after a kill":                           func() { s.d.kill(); s.d.start() },
		"after a kill that no flush came before": func() { sends(); s.d.kill(); s.d.start() },
	} {
		again()
		check(when)
		sends()
		check(when)
	}
	own := nettest.Must(s.d.container(others))(t)
	if !own.Accounted || own.State != "running" || own.Name != others {
		t.Errorf("%+v", own)
	}
	for _, c := range many {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	s.stopped(others)
	check("when they have ended")
}
