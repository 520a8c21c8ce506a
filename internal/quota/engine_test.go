// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// Levels fire once each and in order, whatever comes between, and again in the next
// period.
func TestLevels(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.start("a1", "web")
	b.pass(time.Second)
	same(t, b.took(), []string(nil))

	b.transmit("a1", 500)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 50 firing"})
	b.transmit("a1", 299)
	b.pass(time.Second)
	b.restart()
	b.pass(time.Second)
	same(t, b.took(), []string(nil))

	// Its container is made anew, and nettally was down meanwhile.
	b.remove("a1")
	b.start("b2", "web")
	b.transmit("b2", 1)
	b.restart()
	b.pass(time.Minute)
	same(t, b.took(), []string{"m web 80 firing"})
	same(t, b.used(), map[string]uint64{"m/web": 800})

	// Reloads change nothing.
	b.rules = []Rule{monthly()}
	b.transmit("b2", 100)
	b.pass(time.Second)
	b.rules = []Rule{monthly(), monthly(named("other"))}
	b.pass(time.Second)
	b.rules = []Rule{monthly()}
	b.pass(time.Second)
	same(t, b.took(), []string(nil))
	b.transmit("b2", 100)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 100 firing"})
	b.transmit("b2", 5000)
	b.restart()
	b.pass(time.Second)
	b.took()

	b.now = time.Date(2026, time.December, 1, 0, 0, 0, 0, time.UTC).Add(-time.Nanosecond)
	b.pass(0)
	same(t, b.took(), []string(nil))
	b.transmit("b2", 999)
	b.pass(time.Nanosecond)
	same(t, b.took()[:3], []string{"m web 50 resolved", "m web 80 resolved", "m web 100 resolved"})
	same(t, b.used()["m/web"], uint64(999))
}

// All levels that are passed at once fire, in their order.
func TestLevelsAtOnce(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 5000)
	alerts := b.check(time.Second)
	same(t, said(alerts), []string{"m web 50 firing", "m web 80 firing", "m web 100 firing"})
	a := alerts[2]
	same(t, a, Alert{
		ID: "m/web/2026-11-01T00:00:00Z/100", Quota: "m", Key: "web", Level: "100", State: Firing,
		StartsAt: noon.Add(time.Second), Used: 5000, Limit: 1000, Unit: "bytes", Ratio: 5,
		PeriodStart: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), PeriodEnd: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
		Labels:  map[string]string{"name": "web"},
		Summary: "web has used 4.883KiB of 1000B until 2026-12-01 00:00 UTC, 100 % or more (quota m)", Notifiers: []string{"ops"},
	})
	b.save()
	// They are resolved when the period ends, with what was used in it.
	b.transmit("a1", 1)
	alerts = b.check(14 * 24 * time.Hour)
	if len(alerts) != 3 || alerts[0].State != Resolved || !alerts[0].EndsAt.Equal(a.PeriodEnd) || alerts[0].Used != 5000 {
		t.Errorf("resolved: %+v", alerts)
	}
	same(t, b.used(), map[string]uint64{"m/web": 1})
}

// A kill between any two steps of saving and telling loses no alert, and tells none twice but
// where it was taken and that was not saved.
func TestKilledAnywhere(t *testing.T) {
	for step := range 5 {
		b := newBench(t, monthly())
		b.start("a1", "web")
		b.pass(0)
		b.transmit("a1", 600)
		b.check(time.Second)
		kill := func(n int) {
			b.deliverIf(n == 3)
			if n == step {
				b.restart()
				b.check(time.Second)
			}
		}
		kill(0)
		b.keeper.due = time.Now().Add(time.Hour) // the alert alone is saved
		b.keeper.step(time.Now())
		r := <-b.keeper.results
		kill(1)
		if step != 1 {
			b.keeper.done(r)
		}
		kill(2)
		kill(3)
		b.save()
		kill(4)
		b.save()
		ids := map[string]int{}
		for _, a := range b.sent {
			ids[a.ID]++
		}
		want := 1
		if step == 3 {
			want = 2
		}
		same(t, ids, map[string]int{"m/web/2026-11-01T00:00:00Z/50": want})
		same(t, b.used(), map[string]uint64{"m/web": 600})
	}
}

func (b *bench) deliverIf(is bool) {
	if is {
		b.deliver()
	}
}

func TestCounts(t *testing.T) {
	wants := map[Count]uint64{
		ReceiveBytes: 7, TransmitBytes: 1000, TotalBytes: 1007,
		ReceivePackets: 3, TransmitPackets: 10, TotalPackets: 13,
		ReceiveSYN: 2, TransmitSYN: 1, TotalSYN: 3,
	}
	var rules []Rule
	want := map[string]uint64{}
	for count, n := range wants {
		rules = append(rules, monthly(named(string(count)), func(r *Rule) { r.Count = count }))
		want[string(count)+"/web"] = n
	}
	b := newBench(t, rules...)
	b.pass(0)
	c := b.start("a1", "web")
	c.Receive.Cells[usage.FamilyIPv6][usage.ProtocolUDP] = usage.Volume{Bytes: 4, Packets: 2}
	c.Receive.Mended = usage.Volume{Bytes: 3, Packets: 1}
	c.Receive.SYN = 2
	c.Receive.Seeded = usage.Volume{Bytes: 1 << 40, Packets: 1 << 30} // of no period
	b.transmit("a1", 1000)
	b.pass(time.Second)
	same(t, b.used(), want)
}

// Who takes our programs off evades no rule: what was mended counts when that is noticed.
func TestMended(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	c := b.start("a1", "web")
	b.pass(time.Second)
	for range 3 {
		c.Transmit.Mended.Bytes += 100
		b.transmit("a1", 10)
		b.pass(time.Second)
	}
	c.Transmit.Seeded.Bytes += 1 << 40
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 330})
}

func TestKeys(t *testing.T) {
	rules := []Rule{
		monthly(named("container"), per(PerContainer)), monthly(named("name"), per(PerName)),
		monthly(named("pod"), per(PerPod)), monthly(named("namespace"), per(PerNamespace)),
		monthly(named("label"), per(PerLabel+"team")), monthly(named("all"), per(PerAll)),
	}
	b := newBench(t, rules...)
	b.pass(0)
	b.start("a1", "web")
	c := b.start("b2", "web")
	c.Namespace, c.Pod, c.Labels = "prod", "web-0", map[string]string{"team": "x"}
	b.transmit("a1", 1)
	b.transmit("b2", 10)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{
		"container/a1": 1, "container/b2": 10, "name/web": 11, "pod/prod/web-0": 10, "namespace/prod": 10,
		"label/x": 10, "all/all": 11,
	})
	if s := b.engine.Status()[0]; s.Name != "web" || s.Source != "interface" {
		t.Errorf("status %+v", s)
	}
}

// What users run is for rules that name the user, whatever they call it.
func TestUsers(t *testing.T) {
	of := func(user string) func(*Rule) { return func(r *Rule) { r.Match.User = user } }
	web := func(r *Rule) { r.Match.Name = "web" }
	b := newBench(t,
		monthly(named("root"), per(PerName), web), monthly(named("all"), per(PerAll)),
		monthly(named("mine"), per(PerName), web, of("1000")), monthly(named("users"), per(PerAll), of("*")),
		monthly(named("each"), per(PerName), of("*")),
	)
	b.pass(0)
	b.start("a1", "web")
	b.start("1000~a1", "1000~web")
	b.start("1001~b2", "1001~db")
	b.transmit("a1", 1)
	b.transmit("1000~a1", 10)
	b.transmit("1001~b2", 100)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{
		"root/web": 1, "all/all": 1, "mine/1000~web": 10, "users/all": 110, "each/1000~web": 10, "each/1001~db": 100,
	})
}

// What a nested container sends is in the sum of the one around it, if that is of the same user.
func TestNestedOfAnother(t *testing.T) {
	r := Rule{Per: PerAll, Match: Match{User: "*"}}
	for parent, key := range map[string]string{"100000~out": "", "out": PerAll, "": PerAll} {
		if got := r.key(&usage.Container{ID: "100000~in", ParentID: parent}, sourceIP); got != key {
			t.Errorf("in %q: %q, want %q", parent, got, key)
		}
	}
}

func TestMatch(t *testing.T) {
	c := usage.Container{ID: "3f2a", Name: "web-1", Image: "reg/lib/nginx:1", Runtime: "docker", Namespace: "prod", Pod: "p-0",
		Labels: map[string]string{"team": "a", "tier": ""}}
	for _, test := range []struct {
		match Match
		want  bool
	}{
		{Match{}, true},
		{Match{Name: "web-*", ID: "3f*", Image: "*nginx*", Runtime: "docker", Namespace: "p?od", Pod: "p-[0-9]"}, true},
		{Match{Name: "web"}, false},
		{Match{Image: "nginx*"}, false},
		{Match{Name: "web-*", Runtime: "cri*"}, false},
		{Match{Labels: []LabelMatch{{"team", "a"}, {"tier", "*"}}}, true},
		{Match{Labels: []LabelMatch{{"team", "b*"}}}, false},
		{Match{Labels: []LabelMatch{{"none", "*"}}}, false},
	} {
		if got := test.match.matches(&c); got != test.want {
			t.Errorf("%+v: %v", test.match, got)
		}
	}
}

// What containers have counted before a rule is in none of its periods, however old they are: a
// rule that counts lifetimes has it.
func TestFirstStart(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("h"), every(Hourly)), monthly(named("l"), every(Lifetime)),
		monthly(named("i"), func(r *Rule) { r.Initial = 70 }))
	b.now = noon.AddDate(0, -2, 0)
	b.start("o", "old")
	b.transmit("o", 100)
	b.now = noon.Add(-24 * time.Hour)
	b.start("m", "month")
	b.transmit("m", 10)
	b.now = noon.Add(-time.Minute)
	b.start("h", "hour")
	b.transmit("h", 1)
	b.now = noon
	b.pass(0)
	want := map[string]uint64{
		"m/old": 0, "h/old": 0, "l/old": 100, "i/old": 70,
		"m/month": 0, "h/month": 0, "l/month": 10, "i/month": 70,
		"m/hour": 0, "h/hour": 0, "l/hour": 1, "i/hour": 70,
	}
	same(t, b.used(), want)
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), want)

	// A rule that is new later does the same.
	b.rules = append([]Rule{monthly(named("n"))}, b.rules...)
	b.pass(time.Second)
	got := b.used()
	same(t, []uint64{got["n/old"], got["n/month"], got["n/hour"]}, []uint64{0, 0, 0})
}

func TestReload(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 850)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 50 firing", "m web 80 firing"})

	// A higher limit: what is not reached any more is resolved, and fires again.
	b.rules = []Rule{monthly(func(r *Rule) { r.Limit = 1500 })}
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 80 resolved"})
	b.transmit("a1", 400)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 80 firing"})

	// Other levels.
	b.rules = []Rule{monthly(func(r *Rule) { r.Limit, r.AlertAt = 1500, []int{50, 60, 80} })}
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 60 firing"})

	// Dropped, and there again: what was used in between is not counted.
	b.rules = nil
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 50 resolved", "m web 80 resolved", "m web 60 resolved"})
	same(t, b.used(), map[string]uint64{})
	b.transmit("a1", 1000)
	b.restart()
	b.pass(time.Second)
	b.rules = []Rule{monthly(func(r *Rule) { r.Limit = 10_000 })}
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 1250})

	// Something else is counted: anew.
	b.rules = []Rule{monthly(func(r *Rule) { r.Count = TransmitPackets })}
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 0})
	b.rules = []Rule{monthly(per(PerAll))}
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/all": 0})
}

// An alert that fires goes to the notifiers that its rule names now, and is over for those
// that it names no more.
func TestNotifyChanged(t *testing.T) {
	for name, down := range map[string]bool{"running": false, "down": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, monthly())
			b.pass(0)
			b.start("a1", "web")
			b.transmit("a1", 600)
			b.pass(time.Second)
			b.took()
			to := func(names ...string) []string {
				b.rules = []Rule{monthly(func(r *Rule) { r.Notify = names })}
				if down {
					b.restart()
				}
				same(t, said(b.pass(time.Second)), []string(nil))
				var lines []string
				for _, a := range b.sent {
					lines = append(lines, fmt.Sprint(a.Level, " ", a.State, " ", a.Notifiers))
				}
				b.sent = nil
				return lines
			}
			same(t, to("ops"), []string(nil))
			same(t, to("ops", "pager"), []string{"50 firing [ops pager]"})
			same(t, to("pager"), []string{"50 resolved [ops]"})
			same(t, to("pager"), []string(nil))
			same(t, b.engine.Alerts()[0].State, Firing)
			b.pass(20 * 24 * time.Hour)
			same(t, b.sent[0].Notifiers, []string{"pager"})
			same(t, b.took(), []string{"m web 50 resolved"})
		})
	}
}

// A dropped rule is forgotten with its period.
func TestDroppedIsForgotten(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("l"), every(Lifetime)))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 1)
	b.pass(time.Second)
	b.rules = nil
	b.pass(time.Second)
	same(t, len(b.engine.rules), 2)
	b.pass(20 * 24 * time.Hour)
	same(t, len(b.engine.rules), 1)
	b.pass(20 * 24 * time.Hour)
	same(t, len(b.engine.rules), 0)
	b.pass(time.Second)
	same(t, len(b.store.documents), 0)
}

// Without rules nothing is saved, and the first one begins as at the first start.
func TestNoRules(t *testing.T) {
	b := newBench(t)
	b.start("a1", "web")
	b.now = noon.AddDate(0, -2, 0)
	b.start("b2", "old")
	b.now = noon
	b.transmit("a1", 100)
	b.transmit("b2", 100)
	b.pass(0)
	same(t, len(b.store.documents), 0)
	same(t, b.store.saves, 0)
	b.rules = []Rule{monthly()}
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 0, "m/old": 0})
	b.transmit("b2", 5)
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 0, "m/old": 5})
}

func TestSet(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("all"), per(PerAll)), Rule{Name: "rate", Per: PerName, Count: TransmitBytes, Rate: &Rate{Above: 1e9, Clear: 1e9}})
	if err := b.engine.Set("m", "", 0); err == nil || err.Error() != "set quota m: what was used before is not known yet; try again" {
		t.Errorf("before the first check: %v", err)
	}
	b.pass(0)
	b.start("a1", "web")
	b.start("b2", "db")
	b.transmit("a1", 900)
	b.pass(time.Second)
	b.took()
	for _, test := range []struct {
		name, key string
		used      uint64
		want      string
	}{
		{"x", "", 0, "find quota \"x\": there is none; see `nettally quota list`"},
		{"m", "x", 0, "find key \"x\" of quota m: there is none; see `nettally quota list`"},
		{"m", "", 1, "set quota m: it has 2 keys; say which"},
		{"rate", "", 0, "set quota rate: it bounds a rate, and has nothing that was used"},
	} {
		if err := b.engine.Set(test.name, test.key, test.used); err == nil || err.Error() != test.want {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
	if err := b.engine.Set("m", "web", 600); err != nil {
		t.Fatal(err)
	}
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 80 resolved"})
	b.transmit("a1", 200)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 80 firing", "all all 100 firing"})
	if err := b.engine.Set("m", "", 0); err != nil {
		t.Fatal(err)
	}
	if err := b.engine.Set("all", "", 990); err != nil {
		t.Fatal(err)
	}
	b.restart() // killed before the next save, a second later at most
	b.pass(time.Second)
	b.took()
	if err := b.engine.Set("m", "", 0); err != nil {
		t.Fatal(err)
	}
	b.pass(time.Second)
	b.restart()
	b.transmit("a1", 10)
	b.pass(time.Second)
	same(t, b.used()["m/web"], uint64(10))
}

// What is set is saved with the alerts that it ends, and not when usage is due: a kill after
// that brings nothing back, and levels fire again.
func TestSetIsSavedSoon(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 900)
	b.pass(time.Second)
	b.took()
	b.keeper.due = time.Now().Add(time.Hour)
	if err := b.engine.Set("m", "web", 0); err != nil {
		t.Fatal(err)
	}
	b.keeper.step(time.Now())
	b.keeper.done(<-b.keeper.results)
	b.deliver()
	same(t, b.took(), []string{"m web 50 resolved", "m web 80 resolved"})
	b.restart()
	b.check(time.Second)
	b.deliver()
	b.took() // that they are over is told again: it was not saved that it had been
	same(t, b.used(), map[string]uint64{"m/web": 0})
	b.transmit("a1", 600)
	b.pass(time.Second)
	same(t, b.took(), []string{"m web 50 firing"})
}
