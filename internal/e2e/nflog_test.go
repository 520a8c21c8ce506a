// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// ruled returns what nft has counted by rules with a counter, in a host.
func ruled(t *testing.T, host *testnet.Namespace) (sum uint64) {
	t.Helper()
	var list struct {
		Nftables []struct {
			Rule struct {
				Expr []struct{ Counter struct{ Packets uint64 } }
			}
		}
	}
	if err := json.Unmarshal(nettest.Must(host.Run("nft", "-j", "list", "ruleset"))(t), &list); err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Nftables {
		for _, e := range o.Rule.Expr {
			sum += e.Counter.Packets
		}
	}
	return sum
}

// addRules adds the rules that nettally itself prints for all veths.
func addRules(d *daemon) {
	d.t.Helper()
	command := fmt.Sprintf("%s nflog rules -i 'veth*' --config %s | nft -f -", nettest.Must(d.binary())(d.t), d.config)
	if out, err := (d.at.Command("sh", "-ec", command)).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// What our rules log is what our programs count, and what the rules count.
func TestNFLOG(t *testing.T) {
	need.Root(t)
	need.Commands(t, "nft")
	host := nettest.Host(t)
	d := startDaemon(t, on{host}, "accounting: {nflog: {group: 7}}")
	if out, err := d.run("check"); err != nil || !strings.Contains(out, "warning  nflog        no rule logs connection requests of IPv4 and IPv6 to group 7 in the hook forward: add what `nettally nflog rules` prints\n") {
		t.Errorf("check: %v:\n%s", err, out)
	}
	addRules(d)
	if out, err := d.run("check"); err != nil || !strings.Contains(out, "ok       nflog        rules log to group 7 in ") {
		t.Errorf("check: %v:\n%s", err, out)
	}
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	l := &procLife{t: t, c: c, d: d, peer: nettest.Agent(t, host)}
	d.counted(c.ID, 1)
	if found := nettest.Must(d.container(c.ID))(t); found.NFLOG != nil || strings.Contains(nettest.Must(d.get("/metrics"))(t), "\nnettally_container_nflog") {
		t.Errorf("before the first request: %+v", found.NFLOG)
	}
	l.exchange(10)
	d.poll("counted", func() error {
		found := nettest.Must(d.container(c.ID))(t)
		state := d.list().NFLOG
		if n := ruled(t, host); state == nil || state.Logged != n || found.NFLOG == nil {
			return fmt.Errorf("%+v, and the rules have %d", state, n)
		}
		// One datagram's connection each way, and as many SYNs as our programs saw.
		want := exporter.NFLOG{
			Receive:  exporter.LoggedRequests{Connections: found.Receive.TCPSYN + 1, TCPSYN: found.Receive.TCPSYN},
			Transmit: exporter.LoggedRequests{Connections: found.Transmit.TCPSYN + 1, TCPSYN: found.Transmit.TCPSYN},
			Since:    found.NFLOG.Since,
		}
		if *found.NFLOG != want || found.Receive.TCPSYN != 2 || found.Transmit.TCPSYN != 3 {
			return fmt.Errorf("rules: %+v, programs: %+v", *found.NFLOG, want)
		}
		return nil
	})
	for _, want := range []string{`direction="receive",name="` + c.ID + `",namespace="",pod=""} 3`, `direction="transmit",name="` + c.ID + `",namespace="",pod=""} 4`} {
		if want = `nettally_container_nflog_connections_total{container_id="` + c.ID + `",` + want + "\n"; !strings.Contains(nettest.Must(d.get("/metrics"))(t), want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if lost, bound := d.metric("nettally_nflog_lost_total"), d.metric("nettally_nflog_bound"); lost != 0 || bound != 1 {
		t.Errorf("lost %v, bound %v", lost, bound)
	}
	if out, _ := d.run("nflog", "rules"); !strings.Contains(out, `"veth*" goto requests`) {
		t.Errorf("the rules for what is there:\n%s", out)
	}
}

// Where no program may be loaded the rules' requests are what quotas and history have, instead
// of the connections of /proc.
func TestNFLOGWithoutPrograms(t *testing.T) {
	need.Root(t)
	need.Commands(t, "nft", "setpriv")
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	d := startDaemon(t, without{on{host}, "bpf,-sys_admin"}, "accounting: {nflog: {group: 7}}\nwatch: {include: ["+c.ID+"]}")
	t.Cleanup(func() { d.at = on{host} }) // detach needs them
	addRules(d)
	l := &procLife{t: t, c: c, d: d, peer: nettest.Agent(t, host)}
	d.counted(c.ID, 1)
	if source := d.list().Source; source != "proc" {
		t.Fatalf("source %s", source)
	}
	// A refused attempt is no connection that /proc tells as accepted.
	const refused = 4
	closed := nettest.Must(c.Agent.Listen("udp", c.Interfaces[0].IPv4))(t) // of TCP, nobody
	for range refused {
		_, _ = l.peer.Connect(closed.Addr, 1)
	}
	l.exchange(10)
	l.accepted += refused
	l.check("counted by rules")
	d.stop()
	d.start()
	l.check("counted by rules, after a restart")
	l.exchange(10)
	l.check("counted by rules, by the next process")
}
