// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// fill makes entries by the kernel's own interface, each of another port or host.
func fill(b *testing.B, netns, n int) {
	b.Helper()
	conn, err := ct.Dial(&netlink.Config{NetNS: netns})
	must(b, err)
	defer conn.Close()
	for i := range n {
		from := netip.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)})
		f := ct.NewFlow(unix.IPPROTO_UDP, 0, from, netip.MustParseAddr(outsideAddress), uint16(1024+i&0xff), 53, 3600, 0)
		must(b, conn.Create(f))
	}
}

// BenchmarkDump lists 200,000 entries of 512 containers: the time, what the process's heap is at
// most meanwhile, and what it is afterwards.
func BenchmarkDump(b *testing.B) {
	const entries = 200_000
	s := newSite(b)
	fill(b, s.host.FD(), entries)
	t := New(Options{NetNS: s.host.FD(), setting: s.get, Retention: func() time.Duration { return time.Hour }, Log: slog.New(slog.DiscardHandler)})
	for i := range 512 {
		t.book.claim(Sandbox{ID: uint64(i), Owner: netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String()},
			[]netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}, time.Now())
	}
	session := &session{Tracker: t, known: map[uint64]Sandbox{}, young: map[uint64]look{}, empty: map[uint64]bool{}}
	var err error
	session.events, err = open(s.host.FD(), unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_DESTROY)
	must(b, err)
	defer session.events.Close()
	session.entries, err = open(s.host.FD())
	must(b, err)
	defer session.entries.Close()
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	highest := uint64(0)
	b.ResetTimer()
	for b.Loop() {
		must(b, session.dump(context.Background()))
		runtime.ReadMemStats(&now)
		highest = max(highest, now.HeapSys-now.HeapReleased)
	}
	b.StopTimer()
	if t.book.all.established != entries {
		b.Fatalf("%d entries", t.book.all.established)
	}
	runtime.GC()
	runtime.ReadMemStats(&now)
	b.ReportMetric(float64(session.took.Milliseconds()), "ms/listing")
	b.ReportMetric(float64(highest)/1e6, "MB-heap")
	b.ReportMetric(float64(int64(now.HeapAlloc)-int64(before.HeapAlloc))/1e3, "kB-kept")
}
