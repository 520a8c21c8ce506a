// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

func counting(c Count) func(*Rule) { return func(r *Rule) { r.Count = c } }

// connect lets a container establish connections.
func (b *bench) connect(id string, n uint64) {
	c := b.find(id)
	counted := usage.TCP{}
	if c.TCP != nil {
		counted = *c.TCP
	}
	counted.ConnectAttempts, counted.Connects = counted.ConnectAttempts+n, counted.Connects+n
	c.TCP = &counted
}

// Connections count while bytes do not, whatever the bytes are counted by. Where they are not
// counted for a while, that costs no other number and none of them twice.
func TestConnections(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("c"), counting(TCPConnects)))
	b.pass(time.Second)
	b.start("a1", "web")
	b.transmit("a1", 100)
	b.connect("a1", 499)
	same(t, said(b.pass(time.Second)), []string(nil))
	b.connect("a1", 1)
	alerts := b.pass(time.Second)
	same(t, said(alerts), []string{"c web 50 firing"})
	same(t, alerts[0].Unit, "connections")
	same(t, alerts[0].Summary, "web has used 500 connections of 1000 connections until 2026-12-01 00:00 UTC, 50 % or more (quota c)")
	same(t, b.used(), map[string]uint64{"m/web": 100, "c/web": 500})

	was := b.find("a1").TCP
	b.find("a1").TCP = nil
	b.transmit("a1", 30)
	b.pass(time.Second)
	b.find("a1").TCP = was
	b.connect("a1", 7)
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 130, "c/web": 507})

	byCgroup(b.find("a1"), b.now, 20) // the numbers of another kind
	b.connect("a1", 5)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 130, "c/web": 512})
	sources := map[string]string{}
	for _, s := range b.engine.Status() {
		sources[s.Quota] = s.Source
	}
	same(t, sources, map[string]string{"m": "mixed", "c": sourceTCP})
}

// Of a container that is counted by its network namespaces alone, attempts are counted, and what
// becomes of them is not known: no key has it as 0.
func TestConnectionsInPart(t *testing.T) {
	b := newBench(t, monthly(named("attempts"), counting(TCPConnectAttempts)), monthly(named("connects"), counting(TCPConnects)),
		monthly(named("failures"), counting(TCPConnectFailures)), monthly(named("accepts"), counting(TCPAccepts)))
	b.pass(time.Second)
	b.start("a1", "web").TCP = &usage.TCP{ConnectAttempts: 5, Accepts: 6, InPart: true}
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"attempts/web": 5, "accepts/web": 6})
	b.find("a1").TCP = &usage.TCP{ConnectAttempts: 8, Connects: 2, ConnectFailures: 1, Accepts: 6}
	b.pass(time.Second)
	b.find("a1").TCP = &usage.TCP{ConnectAttempts: 9, Connects: 4, ConnectFailures: 1, Accepts: 6}
	b.pass(time.Second)
	used := b.used()
	if used["attempts/web"] != 9 || used["accepts/web"] != 6 || used["connects/web"] < 2 || used["connects/web"] > 4 || used["failures/web"] > 1 {
		t.Errorf("while a program counts: %v", used)
	}
	before := used["connects/web"]
	b.find("a1").TCP = &usage.TCP{ConnectAttempts: 12, Connects: 4, ConnectFailures: 1, Accepts: 7, InPart: true}
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"attempts/web": 12, "accepts/web": 7, "connects/web": before, "failures/web": used["failures/web"]})
}

// A container on the host's network opens connections before its bytes are told.
func TestConnectionsBeforeBytes(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("c"), counting(TCPConnects)))
	b.pass(time.Second)
	b.start("a1", "web").Interfaces = nil
	b.connect("a1", 3)
	b.pass(time.Second)
	byCgroup(b.find("a1"), b.now, 900)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 900, "c/web": 3})
}

// The connections of a container that shares a network are its own. Those of a nested one are in
// the numbers of the outer one already.
func TestConnectionsOfMembersAndNested(t *testing.T) {
	b := newBench(t, monthly(named("all"), per(PerAll), counting(TCPConnects)), monthly(named("each"), counting(TCPConnects)))
	b.pass(time.Second)
	for i, id := range []string{"a1", "b2", "c3"} {
		b.start(id, "n"+id)
		b.connect(id, []uint64{100, 20, 3}[i])
	}
	byCgroup(b.find("b2"), b.now, 0)
	b.find("b2").Shares, b.find("b2").SharesWith = true, "a1"
	b.find("c3").ParentID = "a1"
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"all/all": 120, "each/na1": 100, "each/nb2": 20, "each/nc3": 3})
}

func TestRateOfConnectFailures(t *testing.T) {
	b := newBench(t, Rule{Name: "refused", Per: PerContainer, Count: TCPConnectFailures, Rate: &Rate{Above: 50, Clear: 50, For: 2 * time.Second}})
	b.pass(0)
	b.start("a1", "web")
	fail := func(n uint64) []Alert {
		b.find("a1").TCP = &usage.TCP{ConnectFailures: n}
		return b.pass(time.Second)
	}
	fail(0)
	same(t, said(fail(51)), []string(nil))
	alerts := fail(102)
	same(t, said(alerts), []string{"refused a1 rate firing"})
	same(t, alerts[0].Unit, "connections/s")
	fail(152)
	same(t, said(fail(202)), []string{"refused a1 rate resolved"})
}

// A version before this one saved six numbers of each container.
func TestConnectionsAfterAnUpgrade(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(time.Second)
	b.start("a1", "web")
	b.transmit("a1", 300)
	b.pass(time.Second)
	b.store.documents[containerKey("a1")] = []byte(`{"t":[0,0,0,300,3,0],"s":"interface"}`)
	b.rules = []Rule{monthly(), monthly(named("c"), counting(TCPConnects))}
	b.restart()
	b.transmit("a1", 100)
	b.connect("a1", 8)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 400, "c/web": 8})
}

// Where a container's connections are not counted it has no key, which would say 0.
func TestConnectionsNotCounted(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("c"), counting(TCPConnects)))
	b.pass(time.Second)
	b.start("a1", "web")
	b.transmit("a1", 100)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 100})
	b.connect("a1", 6)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 100, "c/web": 6})
}
