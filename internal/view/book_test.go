// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
)

var start = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)

func counts(bytes, packets, syn uint64) (c exporter.StreamCounts) {
	c.Bytes, c.Packets, c.TCPSYN = bytes, packets, syn
	return c
}

func seeded(c exporter.StreamCounts, bytes, packets uint64) exporter.StreamCounts {
	c.SeededBytes, c.SeededPackets = bytes, packets
	return c
}

func container(id string, receive, transmit exporter.StreamCounts, changes ...func(*exporter.StreamContainer)) exporter.StreamContainer {
	c := exporter.StreamContainer{
		ID: id, Name: "name-" + id, State: "running", CountedBy: "interfaces", Accounted: true,
		Receive: receive, Transmit: transmit,
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

func containers(boot int64, replace bool, all ...exporter.StreamContainer) *exporter.StreamContainers {
	e := &exporter.StreamContainers{Replace: replace, Source: "bpf", Containers: all}
	e.BootMS, e.TakenAt = boot, start.Add(time.Duration(boot)*time.Millisecond)
	return e
}

func sample(boot int64, all ...exporter.StreamTotal) *exporter.StreamSample {
	e := &exporter.StreamSample{Containers: all}
	e.BootMS, e.TakenAt = boot, start.Add(time.Duration(boot)*time.Millisecond)
	return e
}

func totals(id string, receive, transmit exporter.StreamCounts) exporter.StreamTotal {
	return exporter.StreamTotal{ID: id, Receive: receive, Transmit: transmit}
}

func mustRow(t *testing.T, b *Book, id string) Row {
	t.Helper()
	r, ok := b.Row(id)
	if !ok {
		t.Fatalf("no container %s", id)
	}
	return r
}

// play takes events in their order.
func play(b *Book, events ...any) {
	for _, e := range events {
		switch e := e.(type) {
		case *exporter.StreamContainers:
			b.Containers(e)
		case *exporter.StreamSample:
			b.Sample(e)
		default:
			panic(fmt.Sprintf("no event: %T", e))
		}
	}
}

func TestRates(t *testing.T) {
	zero := counts(0, 0, 0)
	byCgroup := func(c *exporter.StreamContainer) { c.CountedBy = "cgroup" }
	recalled := func(c *exporter.StreamContainer) { c.Recalled = true }
	renamed := func(c *exporter.StreamContainer) { c.Name = "other" }
	for name, test := range map[string]struct {
		events []any
		known  bool
		want   Rate // receive
		total  Counts
	}{
		"a new container has none": {
			events: []any{containers(1000, true, container("a", counts(5000, 50, 5), zero))},
			total:  Counts{5000, 50, 5},
		},
		"a difference over the time between": {
			events: []any{containers(1000, true, container("a", counts(5000, 50, 5), zero)), sample(3000, totals("a", counts(9000, 60, 7), zero))},
			known:  true, want: Rate{2000, 5, 1}, total: Counts{9000, 60, 7},
		},
		"odd milliseconds": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2003, totals("a", counts(1003, 0, 0), zero))},
			known:  true, want: Rate{Bytes: 1000}, total: Counts{Bytes: 1003},
		},
		"a small difference of huge totals": {
			events: []any{containers(1000, true, container("a", counts(1<<62, 0, 0), zero)), sample(2000, totals("a", counts(1<<62+1, 0, 0), zero))},
			known:  true, want: Rate{Bytes: 1}, total: Counts{Bytes: 1<<62 + 1},
		},
		"what a sample leaves out did not change": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000, totals("a", counts(500, 5, 0), zero)), sample(3000)},
			known:  true, total: Counts{500, 5, 0},
		},
		"and its time goes on": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000), sample(9000), sample(10000, totals("a", counts(500, 5, 0), zero))},
			known:  true, want: Rate{500, 5, 0}, total: Counts{500, 5, 0},
		},
		"seeded amounts belong to no time": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000, totals("a", seeded(counts(1<<40+300, 1<<30+3, 1), 1<<40, 1<<30), zero))},
			known:  true, want: Rate{300, 3, 1}, total: Counts{1<<40 + 300, 1<<30 + 3, 1},
		},
		"counted in another way": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000), containers(2500, false, container("a", counts(1<<40, 1, 1), zero, byCgroup))},
			total:  Counts{1 << 40, 1, 1},
		},
		"and again from there": {
			events: []any{containers(1000, true, container("a", zero, zero)), containers(2000, false, container("a", counts(1<<40, 1, 1), zero, byCgroup)),
				sample(3000, totals("a", counts(1<<40+7, 2, 1), zero))},
			known: true, want: Rate{7, 1, 0}, total: Counts{1<<40 + 7, 2, 1},
		},
		"recalled": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000), containers(3000, false, container("a", counts(1<<40, 1, 1), zero, recalled))},
			total:  Counts{1 << 40, 1, 1},
		},
		"another name changes nothing": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000, totals("a", counts(100, 1, 0), zero)),
				containers(2010, false, container("a", counts(100, 1, 0), zero, renamed))},
			known: true, want: Rate{100, 1, 0}, total: Counts{100, 1, 0},
		},
		"nor the rate after it": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000, totals("a", counts(100, 1, 0), zero)),
				containers(2010, false, container("a", counts(200, 2, 0), zero, renamed)), sample(3000, totals("a", counts(300, 3, 0), zero))},
			known: true, want: Rate{200, 2, 0}, total: Counts{300, 3, 0},
		},
		"the host has booted": {
			events: []any{containers(5000, true, container("a", counts(100, 1, 0), zero)), sample(6000), containers(1000, true, container("a", counts(900, 9, 0), zero))},
			total:  Counts{900, 9, 0},
		},
		"counters that began anew": {
			events: []any{containers(1000, true, container("a", counts(100, 1, 0), zero)), sample(2000, totals("a", counts(50, 1, 0), zero))},
			total:  Counts{50, 1, 0},
		},
		"a reconnect goes on over the gap": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000, totals("a", counts(1000, 10, 0), zero)),
				containers(12000, true, container("a", counts(11000, 110, 0), zero))},
			known: true, want: Rate{1000, 10, 0}, total: Counts{11000, 110, 0},
		},
		"a reconnect at once makes no spike": {
			events: []any{containers(1000, true, container("a", zero, zero)), sample(2000, totals("a", counts(1000, 10, 0), zero)),
				containers(2001, true, container("a", counts(1500, 15, 0), zero)), sample(3000, totals("a", counts(2000, 20, 0), zero))},
			known: true, want: Rate{1000, 10, 0}, total: Counts{2000, 20, 0},
		},
		"not counted": {
			events: []any{containers(1000, true, container("a", zero, zero, func(c *exporter.StreamContainer) { c.CountedBy = "" })), sample(2000)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBook()
			play(b, test.events...)
			r := mustRow(t, b, "a")
			if r.Known != test.known || r.Receive.Rate != test.want || r.Receive.Total != test.total {
				t.Errorf("known %t, rate %+v, total %+v, want %t, %+v, %+v", r.Known, r.Receive.Rate, r.Receive.Total, test.known, test.want, test.total)
			}
		})
	}
}

// A wall clock that jumps changes no rate.
func TestClockThatJumps(t *testing.T) {
	b := NewBook()
	second := sample(2000, totals("a", counts(100, 1, 0), counts(0, 0, 0)))
	second.TakenAt = start.Add(-24 * time.Hour)
	play(b, containers(1000, true, container("a", counts(0, 0, 0), counts(0, 0, 0))), second)
	if r := mustRow(t, b, "a"); !r.Known || r.Receive.Rate.Bytes != 100 {
		t.Errorf("known %t, %v bytes per second, want 100", r.Known, r.Receive.Rate.Bytes)
	}
}

func TestReplaceForgetsOthers(t *testing.T) {
	b, zero := NewBook(), counts(0, 0, 0)
	play(b, containers(1000, true, container("a", zero, zero), container("b", zero, zero)), containers(2000, false, container("c", zero, zero)))
	if b.Len() != 3 {
		t.Fatalf("%d containers, want 3", b.Len())
	}
	play(b, containers(3000, true, container("b", zero, zero)))
	if _, ok := b.Row("b"); !ok || b.Len() != 1 {
		t.Errorf("%d containers, b is there: %t", b.Len(), ok)
	}
	b.Stopped("b", &start)
	if rows := b.Rows(Filter{}, false); len(rows) != 0 {
		t.Errorf("shows %d that have ended", len(rows))
	}
	if rows := b.Rows(Filter{}, true); len(rows) != 1 || rows[0].State() != "stopped" {
		t.Errorf("%d rows", len(rows))
	}
	b.Removed([]string{"b", "unknown"})
	if b.Len() != 0 {
		t.Errorf("%d containers are left", b.Len())
	}
}

func TestCountFromNow(t *testing.T) {
	b, zero := NewBook(), counts(0, 0, 0)
	play(b, containers(1000, true, container("a", counts(500, 5, 1), zero)), sample(2000, totals("a", counts(700, 7, 1), zero)))
	b.Zero()
	later := start.Add(3 * time.Second)
	play(b, sample(3000, totals("a", counts(1000, 10, 2), zero)),
		containers(4000, false, container("new", seeded(counts(90, 9, 0), 50, 5), zero, func(c *exporter.StreamContainer) { c.StartedAt = &later }),
			container("old", counts(90, 9, 0), zero, func(c *exporter.StreamContainer) { c.StartedAt = &start })),
		sample(5000, totals("old", counts(95, 10, 0), zero)))
	for id, want := range map[string]Counts{"a": {300, 3, 1}, "new": {40, 4, 0}, "old": {5, 1, 0}} {
		if got := mustRow(t, b, id).Receive.Total; got != want {
			t.Errorf("%s: %+v, want %+v", id, got, want)
		}
	}
	b.Unzero()
	if got := mustRow(t, b, "a").Receive.Total.Bytes; got != 1000 {
		t.Errorf("%d bytes, want 1000", got)
	}
}

func TestSum(t *testing.T) {
	zero := counts(0, 0, 0)
	partOf := func(id string) func(*exporter.StreamContainer) {
		return func(c *exporter.StreamContainer) { c.PartOf = id }
	}
	project := func(name string) func(*exporter.StreamContainer) {
		return func(c *exporter.StreamContainer) { c.Labels = map[string]string{ProjectLabel: name} }
	}
	b := NewBook()
	play(b, containers(1000, true,
		container("outer", counts(1000, 10, 1), zero, project("x")),
		container("middle", counts(100, 1, 0), zero, partOf("outer"), project("y")),
		container("inner", counts(10, 1, 0), zero, partOf("middle"), project("x")),
		container("other", counts(5, 1, 0), zero),
		container("uncounted", counts(7777, 1, 0), zero, func(c *exporter.StreamContainer) { c.CountedBy = "" }),
		container("huge", counts(math.MaxUint64, 1, 0), zero, project("z")),
		container("huge2", counts(math.MaxUint64, 1, 0), zero, project("z")),
	), sample(2000, totals("outer", counts(2000, 20, 1), zero), totals("inner", counts(510, 2, 0), zero)))
	b.Quotas(map[string]exporter.StreamForemost{"outer": {Quota: "q", Ratio: 0.5}, "inner": {Quota: "q", Ratio: 0.8}})

	by, err := ParseBy("project")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Row{}
	for _, r := range Group(b.Rows(Filter{}, true), by) {
		got[r.Key] = r
	}
	for key, want := range map[string]struct {
		members int
		total   uint64
		rate    float64
	}{
		"x": {2, 2000, 1000}, // inner is in outer, by way of middle
		"y": {1, 100, 0},
		"":  {2, 5, 0},
		"z": {2, math.MaxUint64, 0},
	} {
		if r := got[key]; r.Members != want.members || r.Receive.Total.Bytes != want.total || r.Receive.Rate.Bytes != want.rate || !r.Known {
			t.Errorf("%q: %d members, %d bytes, rate %v, want %+v", key, r.Members, r.Receive.Total.Bytes, r.Receive.Rate.Bytes, want)
		}
	}
	if f := got["x"].Foremost; f == nil || f.Ratio != 0.8 {
		t.Errorf("foremost quota %+v, want that of inner", f)
	}
	only, _ := ParseFilter("uncounted")
	if r := Sum("", b.Rows(only, true)); r.Known || r.Counted || r.Members != 1 {
		t.Errorf("a sum of what is not known is known: %+v", r)
	}
	if r := Sum("", b.Rows(Filter{}, true)); r.Members != 7 || r.Receive.Rate.Bytes != 1000 {
		t.Errorf("of all: %d members, rate %v", r.Members, r.Receive.Rate.Bytes)
	}
}

func TestGroupKeys(t *testing.T) {
	c := container("a", counts(0, 0, 0), counts(0, 0, 0))
	c.Namespace, c.Pod, c.Labels = "prod", "web-0", map[string]string{ProjectLabel: "shop", "tier": "front"}
	for text, want := range map[string]string{"project": "shop", "namespace": "prod", "pod": "prod/web-0", "label:tier": "front", "label:none": "", "": "a"} {
		by, err := ParseBy(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := by.Key(&c); got != want || by.String() != text {
			t.Errorf("%s (%s): %q, want %q", text, by, got, want)
		}
	}
	for _, text := range []string{"label:", "image", "label"} {
		if by, err := ParseBy(text); err == nil {
			t.Errorf("%q is taken: %v", text, by)
		}
	}
}

func TestSort(t *testing.T) {
	zero := counts(0, 0, 0)
	b := NewBook()
	play(b, containers(1000, true,
		container("a", counts(10, 0, 0), zero), container("b", counts(30, 0, 0), zero), container("c", counts(20, 0, 0), zero),
		container("u", zero, zero, func(c *exporter.StreamContainer) { c.CountedBy = "" })),
		sample(2000, totals("a", counts(110, 7, 1), counts(9, 1, 0)), totals("b", counts(80, 8, 0), zero)),
		containers(2000, false, container("n", counts(15, 0, 0), zero)))
	b.Quotas(map[string]exporter.StreamForemost{"c": {Ratio: 0.5}, "b": {Ratio: 0.9}})
	for _, test := range []struct {
		column  Column
		reverse bool
		want    []string
	}{
		{Name, false, []string{"a", "b", "c", "n", "u"}},
		{Name, true, []string{"u", "n", "c", "b", "a"}},
		{ReceiveRate, false, []string{"a", "b", "c", "n", "u"}},
		{ReceiveRate, true, []string{"c", "b", "a", "n", "u"}}, // unknown is last
		{ReceiveTotal, false, []string{"a", "b", "c", "n", "u"}},
		{ReceiveTotal, true, []string{"n", "c", "b", "a", "u"}},
		{TransmitTotal, false, []string{"a", "b", "c", "n", "u"}},
		{PacketRate, false, []string{"a", "b", "c", "n", "u"}},
		{SYNRate, false, []string{"a", "b", "c", "n", "u"}},
		{QuotaUsed, false, []string{"b", "c", "a", "n", "u"}},
		{StateWords, false, []string{"a", "b", "c", "n", "u"}},
	} {
		for _, smooth := range []bool{false, true} {
			rows := b.Rows(Filter{}, true)
			Sort(rows, test.column, test.reverse, smooth)
			var got []string
			for _, r := range rows {
				got = append(got, r.Key)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s, reverse %t (-want +got):\n%s", test.column, test.reverse, diff)
			}
		}
	}
	for _, c := range Columns {
		if got, err := ParseColumn(string(c)); got != c || err != nil {
			t.Errorf("%s: %s, %v", c, got, err)
		}
	}
	if _, err := ParseColumn("nothing"); err == nil {
		t.Error("a column that is none")
	}
}

// A smoothed rate follows in some seconds.
func TestSmoothedRates(t *testing.T) {
	b, zero := NewBook(), counts(0, 0, 0)
	play(b, containers(0, true, container("a", zero, zero)), sample(1000, totals("a", counts(1000, 0, 0), zero)))
	if got := mustRow(t, b, "a").Smooth[0].Bytes; got != 1000 {
		t.Errorf("begins with %v, want 1000", got)
	}
	play(b, sample(2000))
	if got := mustRow(t, b, "a").Smooth[0].Bytes; got < 800 || got > 900 {
		t.Errorf("after a second of nothing: %v", got)
	}
	for at := int64(3000); at <= 30000; at += 1000 {
		play(b, sample(at))
	}
	if got := mustRow(t, b, "a").Smooth[0].Bytes; got > 10 {
		t.Errorf("after half a minute of nothing: %v", got)
	}
}

func TestFilter(t *testing.T) {
	c := container("0123abc", counts(0, 0, 0), counts(0, 0, 0))
	c.Name, c.Namespace, c.Pod, c.Labels = "web-1", "prod", "front/x", map[string]string{"tier": "front/end", "e": ""}
	for text, want := range map[string]bool{
		"": true, "web": true, "eb-": true, "db": false, "web-*": true, "web-?": true, "eb-*": false, "prod": true, "pr*": true,
		"front*": true, "0123": true, "123a": false, "tier=front*": true, "tier=front": false, "tier=*": true, "e=": true, "none=*": false,
		"web prod": true, "web test": false, "[vw]eb-1": true, `web\-1`: true,
	} {
		f, err := ParseFilter(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := f.Matches(&c); got != want {
			t.Errorf("%q matches: %t, want %t", text, got, want)
		}
	}
	for _, text := range []string{"[", "tier=[", `a\`} {
		if _, err := ParseFilter(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestUnits(t *testing.T) {
	for _, test := range []struct {
		bytes float64
		want  [4]string
	}{
		{0, [4]string{"0 B", "0 B", "0 bit", "0 bit"}},
		{0.2, [4]string{"<1 B", "<1 B", "2 bit", "2 bit"}},
		{999, [4]string{"999 B", "999 B", "7.99 kbit", "7.80 Kibit"}},
		{1000, [4]string{"0.98 KiB", "1.00 kB", "8.00 kbit", "7.81 Kibit"}},
		{1024, [4]string{"1.00 KiB", "1.02 kB", "8.19 kbit", "8.00 Kibit"}},
		{1023.9 * 1024, [4]string{"1.00 MiB", "1.05 MB", "8.39 Mbit", "8.00 Mibit"}},
		{123456789, [4]string{"118 MiB", "123 MB", "988 Mbit", "942 Mibit"}},
		{math.MaxUint64, [4]string{"16.0 EiB", "18.4 EB", "148 Ebit", "128 Eibit"}},
	} {
		for i, u := range Units {
			if got := u.Unit.Format(test.bytes); got != test.want[i] {
				t.Errorf("%v in %s: %q, want %q", test.bytes, u.Name, got, test.want[i])
			}
		}
	}
	unit, seen := Unit{}, map[Unit]bool{}
	for range Units {
		parsed, err := ParseUnit(unit.String())
		if parsed != unit || err != nil || seen[unit] {
			t.Errorf("%s: parsed %v, %v, seen %t", unit, parsed, err, seen[unit])
		}
		seen[unit], unit = true, unit.Next()
	}
	if unit != (Unit{}) {
		t.Errorf("the last is followed by %s", unit)
	}
	if _, err := ParseUnit("nibbles"); err == nil {
		t.Error("a unit that is none")
	}
	for n, want := range map[float64]string{0: "0", 0.01: "<0.1", 0.5: "0.5", 3: "3.0", 9.96: "10", 1500: "1.50k"} {
		if got := PerSecond(n); got != want {
			t.Errorf("%v per second: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0", 3: "3", 9.96: "10", 99.6: "100", 999: "999", 1000: "1.00k", 1e6: "1.00M", 123456: "123k"} {
		if got := Number(n); got != want {
			t.Errorf("%v: %q, want %q", n, got, want)
		}
	}
}

func TestText(t *testing.T) {
	for _, test := range []struct {
		text string
		n    int
		want string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"東京都", 6, "東京都"}, {"東京都", 5, "東京…"}, {"東京都", 4, "東…"}, {"e\u0301e\u0301e", 2, "e\u0301…"}, {"abc", 0, ""}, {"", 0, ""},
	} {
		if got := Cut(test.text, test.n, "…"); got != test.want || Width(got) > test.n {
			t.Errorf("%q in %d: %q, want %q", test.text, test.n, got, test.want)
		}
	}
}

func TestTrace(t *testing.T) {
	b, zero := NewBook(), counts(0, 0, 0)
	play(b, containers(100_000, true, container("a", zero, zero)))
	for at := int64(101_000); at <= 125_000; at += 1000 {
		play(b, sample(at, totals("a", counts(uint64(at-100_000), 0, 0), zero)))
	}
	row := mustRow(t, b, "a")
	receive, _ := b.Trace(&row, 4)
	if diff := cmp.Diff("[NaN NaN 1000 1000]", fmt.Sprint(receive)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	ten := uint64(10)
	play(b, sample(126_000))
	b.containers["a"].trace.fill(12, []*uint64{&ten, nil, &ten}, []*uint64{&ten, nil, &ten})
	receive, _ = b.Trace(&row, 5)
	if diff := cmp.Diff("[NaN NaN 1 1000 1]", fmt.Sprint(receive)); diff != "" { // what the daemon does not know stays
		t.Errorf("(-want +got):\n%s", diff)
	}

	for at := int64(130_000); at < 130_000+3*Steps*StepMS; at += 5000 {
		play(b, sample(at))
	}
	if n := len(b.containers["a"].trace.steps); n > Steps {
		t.Errorf("holds %d steps", n)
	}
	receive, _ = b.Trace(&row, Steps-1)
	if slices.ContainsFunc(receive, func(f float64) bool { return f != 0 }) {
		t.Errorf("after a long time of nothing: %v", receive)
	}
	play(b, containers(5000, true, container("a", zero, zero)))
	if n := len(b.containers["a"].trace.steps); n != 0 {
		t.Errorf("knows %d steps of before the boot", n)
	}
}

// What was used in a long time between two readings is spread over it.
func TestTraceOverAGap(t *testing.T) {
	b, zero := NewBook(), counts(0, 0, 0)
	play(b, containers(100_000, true, container("a", zero, zero)), containers(140_000, true, container("a", counts(40_000, 0, 0), zero)))
	row := mustRow(t, b, "a")
	receive, _ := b.Trace(&row, 5)
	if diff := cmp.Diff("[NaN 1000 1000 1000 1000]", fmt.Sprint(receive)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLabelAndState(t *testing.T) {
	long := container("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", counts(0, 0, 0), counts(0, 0, 0))
	long.Name = long.ID
	for want, r := range map[string]Row{
		"0123456789ab": {Container: &long},
		"(none)":       {},
		"shop":         {Key: "shop"},
		"prod/web-0/c": {Container: &exporter.StreamContainer{Name: "c", Namespace: "prod", Pod: "web-0"}},
	} {
		if got := r.Label(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for want, c := range map[string]exporter.StreamContainer{
		"running":                           {State: "running", Accounted: true},
		"running, on kata":                  {State: "running", Accounted: true, Kernel: "kata"},
		"not counted: attach failed":        {State: "running", Reason: "attach_failed"},
		"counted in part: shadowed":         {State: "running", Reason: "shadowed"},
		"excluded":                          {State: "running", Reason: "excluded"},
		"running, counted in part":          {State: "running", Reason: "partly_counted"},
		"running, an interface is excluded": {State: "running", Reason: "interface_excluded"},
	} {
		r := Row{Container: &c}
		if got := r.State(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
