// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// A container that shares its pod's interface is in the pod's sum once.
func TestSharedNamespaceIsSummedOnce(t *testing.T) {
	c := usage.Container{ID: "a1", Name: "app", Namespace: "prod", Pod: "web-0", Shares: true}
	for _, test := range []struct {
		rule Rule
		want string
	}{
		{monthly(per(PerPod)), ""},
		{monthly(per(PerAll)), ""},
		{monthly(per(PerNamespace)), ""},
		{monthly(per(PerPod), func(r *Rule) { r.Match.Name = "app" }), "prod/web-0"},
		{monthly(per(PerName)), "prod/web-0/app"},
		{monthly(per(PerContainer)), "a1"},
	} {
		if got := test.rule.key(&c, sourceIP); got != test.want {
			t.Errorf("per %s: %q, want %q", test.rule.Per, got, test.want)
		}
	}
	c.Shares = false // on the host's network
	r := monthly(per(PerAll))
	same(t, r.key(&c, sourceIP), PerAll)
}

// A container that was forgotten is not counted again from its first byte.
func TestForgottenContainer(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("l"), every(Lifetime), per(PerContainer)))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 100)
	b.pass(time.Second)
	c := *b.find("a1")
	b.remove("a1")
	b.pass(time.Second)
	b.restart()
	b.pass(forgetAfter)
	b.pass(2 * time.Second)
	same(t, len(b.engine.containers), 0)
	same(t, b.used(), map[string]uint64{"m/web": 100})
	c.StartedAt = b.now
	b.containers = append(b.containers, c)
	b.pass(time.Second)
	b.transmit("a1", 5)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 105, "l/a1": 5})
}

// Names come a moment late, or much later.
func TestNamedLate(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("only"), func(r *Rule) { r.Match.Name = "web*" }))
	b.pass(0)
	b.start("a1", "a1")
	b.transmit("a1", 100)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{})
	b.find("a1").Name = "web"
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 100, "only/web": 100})

	b.start("b2", "b2")
	b.transmit("b2", 600)
	b.pass(time.Second)
	b.pass(nameWithin)
	same(t, b.used(), map[string]uint64{"m/web": 100, "m/b2": 600, "only/web": 100})
	b.find("b2").Name = "web"
	b.pass(time.Minute)
	same(t, b.used(), map[string]uint64{"m/web": 700, "only/web": 100})
	same(t, b.took(), []string{"m b2 50 firing", "m b2 50 resolved", "m web 50 firing"})
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 700, "only/web": 100})
}

// byCgroup gives a container numbers of its cgroup alone.
func byCgroup(c *usage.Container, since time.Time, n uint64) {
	c.Interfaces, c.IP, c.IPSince = nil, &usage.Traffic{}, since
	c.IP.Transmit.Cells[usage.FamilyIPv4][usage.ProtocolTCP] = usage.Volume{Bytes: n, Packets: n / 100}
}

// A container on the host's network is told by its cgroup some seconds after it has begun,
// and what it sent until then is counted. What it used before it was started again is of
// its own time.
func TestOnHost(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(time.Second)
	c := b.start("a1", "web")
	c.Interfaces = nil
	b.pass(time.Second)
	byCgroup(c, b.now, 900)
	b.pass(time.Second)
	byCgroup(c, c.IPSince, 950)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 950})
	b.restart()
	byCgroup(b.find("a1"), c.IPSince, 960)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 960})

	old := b.start("b2", "old") // whose cgroup is new
	byCgroup(old, noon.AddDate(-1, 0, 0), 1_000_000)
	b.rules = append(b.rules, monthly(named("n")))
	b.pass(time.Second)
	same(t, []uint64{b.used()["m/old"], b.used()["n/old"], b.used()["n/web"]}, []uint64{0, 0, 0})
}

// A container on the host's network that makes interfaces beside that is counted by its
// cgroup, in which all of it is, and without a moment between.
func TestOnHostWithInterfaces(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(time.Second)
	c := b.start("a1", "web")
	own := c.Interfaces
	byCgroup(c, b.now, 900)
	c.OnHost = true
	b.pass(time.Second)
	byCgroup(c, c.IPSince, 1000)
	c.Interfaces, c.OnHost = own, true
	b.transmit("a1", 80) // which is in the 1000
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 1000})
	ip := *c.IP
	byCgroup(c, c.IPSince, 1500)
	c.Interfaces = own
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 1500})
	c.OnHost, c.IP = false, &ip // in several namespaces, none of them the host's
	b.pass(time.Second)
	b.transmit("a1", 30)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 1530})
}

// What a nested container sends passes the interface of the one around it.
func TestNested(t *testing.T) {
	b := newBench(t, monthly(per(PerAll)), monthly(named("each")))
	b.pass(time.Second)
	b.start("a1", "outer")
	b.start("b2", "inner").ParentID = "a1"
	b.transmit("a1", 500)
	byCgroup(b.find("b2"), b.now, 400)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/all": 500, "each/outer": 500, "each/inner": 400})
}

// Containers that were there when a rule began have its initial usage also if they are found
// or named later, and once; others have none.
func TestInitialComesLate(t *testing.T) {
	initial := func(r *Rule) { r.Initial = 600 }
	b := newBench(t, monthly(initial))
	b.now = noon.Add(-time.Hour)
	c := b.start("a1", "")
	b.now = noon
	b.pass(time.Second)
	c.Name = "web"
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 600})
	b.restart()
	b.start("b2", "new")
	b.transmit("b2", 5)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 600, "m/new": 5})
	b.pass(40 * 24 * time.Hour)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 0, "m/new": 0})
}

// What a container used before nettally was started again is unknown while the disk hangs:
// its short total is no step back, after which all would be counted again.
func TestUnrecalled(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(time.Second)
	b.start("a1", "web")
	b.transmit("a1", 400)
	b.pass(time.Second)
	b.restart()
	whole := b.find("a1").Traffic
	b.find("a1").Traffic, b.find("a1").Unrecalled = usage.Traffic{}, true
	b.pass(time.Second)
	b.pass(time.Second)
	b.find("a1").Traffic, b.find("a1").Unrecalled = whole, false
	b.transmit("a1", 30)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 430})
}

// What a container that shares a network uses is in the numbers of that network's owner: it
// is counted once where a rule has both under one key, whatever it chooses them by.
func TestSharedIsCountedOnce(t *testing.T) {
	labelled := func(r *Rule) { r.Match.Labels = []LabelMatch{{Name: "team", Value: "a"}} }
	b := newBench(t, monthly(per(PerLabel+"team")), monthly(named("all"), per(PerAll), labelled), monthly(named("each")))
	b.pass(time.Second)
	for id, name := range map[string]string{"a1": "owner", "b2": "member", "c3": "other"} {
		b.start(id, name).Labels = map[string]string{"team": "a"}
	}
	b.find("c3").Labels = map[string]string{"team": "b"}
	b.transmit("a1", 500)
	for id, n := range map[string]uint64{"b2": 400, "c3": 30} {
		byCgroup(b.find(id), b.now, n)
		b.find(id).Shares, b.find(id).SharesWith = true, "a1"
	}
	slices.SortFunc(b.containers, func(x, y usage.Container) int { return strings.Compare(x.ID, y.ID) })
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{
		"m/a": 500, "m/b": 30, "all/all": 500, "each/owner": 500, "each/member": 400, "each/other": 30,
	})
}

// A container whose total is not whole yet is there: its key goes on into the next period, with
// what it has used by then.
func TestUnrecalledIsThere(t *testing.T) {
	b := newBench(t, monthly(every(Hourly)), monthly(named("life"), every(Lifetime), per(PerContainer)))
	b.pass(time.Second)
	b.start("a1", "web")
	b.transmit("a1", 400)
	b.pass(time.Second)
	whole := b.find("a1").Traffic
	b.find("a1").Traffic, b.find("a1").Unrecalled = usage.Traffic{}, true
	b.pass(time.Hour)
	same(t, b.used(), map[string]uint64{"m/web": 0, "life/a1": 400})
	b.pass(forgetAfter + time.Minute)
	b.pass(time.Second)
	same(t, len(b.engine.containers), 1)
	b.find("a1").Traffic, b.find("a1").Unrecalled = whole, false
	b.transmit("a1", 30)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 30, "life/a1": 430})
}
