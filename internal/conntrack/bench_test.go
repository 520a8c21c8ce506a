// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"encoding/binary"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// own makes BenchmarkDump list the process's own network namespace, as nettally does: what the
// table's highest number allows can be set in the host's alone.
var own = flag.Int("own", 0, "have BenchmarkDump make so many entries in the process's own network namespace, and not 200,000 in another")

// benchContainers is how many the entries belong to, each to one.
const benchContainers = 512

func benchAddress(container int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 1, byte(container >> 8), byte(container)})
}

// fill makes entries by the kernel's own interface, each of another port or host. Many go in one
// call: one each, as the library makes them, takes ten times as long.
func fill(b *testing.B, netns, n int) {
	b.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	must(b, err)
	defer conn.Close()
	const together = 250
	outside := netip.AddrPortFrom(netip.MustParseAddr(outsideAddress), 53)
	for first := 0; first < n; first += together {
		var batch []netlink.Message
		for i := first; i < min(first+together, n); i++ {
			from := netip.AddrPortFrom(benchAddress(i%benchContainers), uint16(1024+i/benchContainers))
			batch = append(batch, newEntry(b, from, outside))
		}
		batch[len(batch)-1].Header.Flags |= netlink.Acknowledge // errors are told anyway
		_, err := conn.SendMessages(batch)
		must(b, err)
		_, err = conn.Receive()
		must(b, err)
	}
}

// newEntry asks for an entry of UDP for an hour.
func newEntry(b *testing.B, from, to netip.AddrPort) netlink.Message {
	b.Helper()
	const (
		tupleOrig, tupleReply, timeout = 1, 2, 7 // enum ctattr_type
		tupleIP, tupleProto            = 1, 2    // enum ctattr_tuple
		source, destination            = 1, 2    // enum ctattr_ip, of IPv4
		number, sourcePort, destPort   = 1, 2, 3 // enum ctattr_l4proto
	)
	attrs := netlink.NewAttributeEncoder()
	attrs.ByteOrder = binary.BigEndian
	tuple := func(kind uint16, from, to netip.AddrPort) {
		attrs.Nested(kind, func(attrs *netlink.AttributeEncoder) error {
			attrs.Nested(tupleIP, func(attrs *netlink.AttributeEncoder) error {
				attrs.Bytes(source, from.Addr().AsSlice())
				attrs.Bytes(destination, to.Addr().AsSlice())
				return nil
			})
			attrs.Nested(tupleProto, func(attrs *netlink.AttributeEncoder) error {
				attrs.Uint8(number, unix.IPPROTO_UDP)
				attrs.Uint16(sourcePort, from.Port())
				attrs.Uint16(destPort, to.Port())
				return nil
			})
			return nil
		})
	}
	tuple(tupleOrig, from, to)
	tuple(tupleReply, to, from)
	attrs.Uint32(timeout, 3600)
	encoded, err := attrs.Encode()
	must(b, err)
	return netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_CTNETLINK << 8, // IPCTNL_MSG_CT_NEW
			Flags: netlink.Request | netlink.Create | netlink.Excl,
		},
		Data: append([]byte{unix.AF_INET, 0, 0, 0}, encoded...),
	}
}

// BenchmarkDump lists 200,000 entries of 512 containers: the time, what the process's heap and
// its memory are at most meanwhile, and what it keeps of them. All the entries that the kernel
// has must have been seen.
func BenchmarkDump(b *testing.B) {
	need.Root(b)
	entries, host := *own, &site{tb: b}
	o := Options{Retention: func() time.Duration { return time.Hour }, Log: slog.New(slog.DiscardHandler)}
	if entries == 0 {
		entries, host.host = 200_000, namespace(b)
		o.NetNS, o.setting = host.host.FD(), host.get
	}
	fill(b, o.NetNS, entries)
	t := New(o)
	for i := range benchContainers {
		addr := benchAddress(i)
		t.book.claim(Sandbox{ID: uint64(i), Owner: addr.String()}, []netip.Addr{addr}, time.Now())
	}
	session := &session{Tracker: t, known: map[uint64]Sandbox{}, young: map[uint64]look{}, empty: map[uint64]bool{}}
	var err error
	session.events, err = open(o.NetNS, unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_DESTROY)
	must(b, err)
	defer session.events.Close()
	session.entries, err = open(o.NetNS)
	must(b, err)
	defer session.entries.Close()
	debug.FreeOSMemory()                                           // of what filling took
	must(b, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // the highest RSS begins anew
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	highest, listing := uint64(0), time.Duration(0)
	b.ResetTimer()
	for b.Loop() {
		must(b, session.dump(context.Background()))
		listing += session.took
		runtime.ReadMemStats(&now)
		highest = max(highest, now.HeapSys-now.HeapReleased)
	}
	b.StopTimer()
	rss := highestRSS(b)
	runtime.GC()
	runtime.ReadMemStats(&now)
	runtime.KeepAlive(session)
	count, err := t.setting("nf_conntrack_count")
	must(b, err)
	seen := t.book.all.established // of all kinds
	if count != strconv.FormatUint(seen, 10) || seen != uint64(entries) {
		b.Fatalf("%d entries seen, %s in the kernel, %d made", seen, count, entries)
	}
	kept := float64(now.HeapAlloc) - float64(before.HeapAlloc)
	b.ReportMetric(float64(seen), "entries")
	b.ReportMetric(float64(listing.Milliseconds())/float64(b.N), "ms/listing")
	b.ReportMetric(float64(highest)/1e6, "MB-heap")
	b.ReportMetric(rss/1e6, "MB-RSS")
	b.ReportMetric(kept/1e3, "kB-kept")
	b.ReportMetric(kept/float64(seen), "B-kept/entry")
}

// highestRSS returns the most bytes that the process had in memory.
func highestRSS(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(b, err)
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	must(b, err)
	return kib * 1024
}
