// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// crowd is a host of many containers under many rules. With all set every rule has a key
// for every container; otherwise each rule is about a hundredth of them.
func crowd(b *testing.B, containers, rules int, all bool) *bench {
	var list []Rule
	for i := range rules {
		r := monthly(named(fmt.Sprint("rule", i)), per(PerContainer), func(r *Rule) { r.Limit = 1 << 60 })
		if !all {
			r.Match.Name = fmt.Sprintf("app-%02d-*", i%100)
		}
		switch i % 5 {
		case 3:
			r.Projection = true
		case 4:
			r.Period, r.Limit, r.AlertAt, r.Rate = Period{}, 0, nil, &Rate{Above: 1e12, Clear: 1e12}
		}
		list = append(list, r)
	}
	c := newBench(b, list...)
	for i := range containers {
		c.start(fmt.Sprintf("%064x", i), fmt.Sprintf("app-%02d-%d", i%100, i))
	}
	return c
}

// use has a part of the containers use something.
func (b *bench) use(n, part int) {
	for i := range b.containers {
		if (i+n)%part == 0 {
			cell := &b.containers[i].Transmit.Cells[usage.FamilyIPv4][usage.ProtocolTCP]
			cell.Bytes += 1500
			cell.Packets++
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkCheck(b *testing.B) {
	for _, size := range []struct {
		containers, rules, part int
		all                     bool
	}{
		{1000, 100, 1, false}, {1000, 100, 10, false}, {1000, 100, 1, true},
		{10_000, 100, 1, false}, {10_000, 100, 10, false}, {10_000, 100, 1, true},
	} {
		b.Run(fmt.Sprintf("containers=%d/rules=%d/active=1:%d/all=%v", size.containers, size.rules, size.part, size.all), func(b *testing.B) {
			c := crowd(b, size.containers, size.rules, size.all)
			before := heap()
			c.check(0)
			c.use(0, size.part)
			c.check(time.Second)
			used := float64(heap()-before) / 1e6
			n := 0
			for b.Loop() {
				n++
				b.StopTimer()
				c.use(n, size.part)
				c.now = c.now.Add(time.Second)
				snap := usage.Snapshot{TakenAt: c.now, Containers: c.containers}
				b.StartTimer()
				c.engine.Check(snap)
			}
			b.ReportMetric(used, "MB")
			b.ReportMetric(float64(len(c.engine.Status())), "keys")
		})
	}
}

// BenchmarkSave is what one save has to write when everybody has used something.
func BenchmarkSave(b *testing.B) {
	c := crowd(b, 10_000, 100, false)
	c.check(0)
	for b.Loop() {
		b.StopTimer()
		c.use(0, 1)
		c.check(time.Second)
		b.StartTimer()
		batch := c.keeper.collect(true)
		b.StopTimer()
		size := 0
		for key, value := range batch.put {
			size += len(key) + len(value)
		}
		b.ReportMetric(float64(len(batch.put)), "documents")
		b.ReportMetric(float64(size)/1e6, "MB")
		b.StartTimer()
	}
}

// BenchmarkKeys is what a key of a container that has ended takes for the rest of its period.
func BenchmarkKeys(b *testing.B) {
	for b.Loop() {
		c := newBench(b, monthly(func(r *Rule) { r.Limit = 1 << 60 }))
		c.pass(0)
		before, keys := heap(), 100_000
		for i := range keys {
			id := fmt.Sprintf("%064x", i)
			c.start(id, fmt.Sprint("job-", i))
			c.transmit(id, 100)
			if i%1000 == 999 {
				c.check(time.Second)
				c.containers = nil
			}
		}
		c.check(time.Second)
		c.now = c.now.Add(forgetAfter)
		c.pass(time.Second)
		size := 0
		for key, value := range c.store.documents {
			size += len(key) + len(value)
		}
		c.store.documents = nil
		b.ReportMetric(float64(heap()-before)/float64(keys), "B/key")
		b.ReportMetric(float64(size)/float64(keys), "document-B/key")
		b.ReportMetric(float64(len(c.engine.Status())), "keys")
	}
}
