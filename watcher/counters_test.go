// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// counted is a container with its host, whose counters are read.
type counted struct {
	*Watcher
	*testnet.Container
	hostNS *testnet.Namespace
	host   *testnet.Agent
	index  int // of the host veth
}

func newCounted(t *testing.T) counted {
	t.Helper()
	need.Root(t)
	host := nettest.Host(t)
	c := counted{
		Container: nettest.Container(t, host, testnet.ContainerOptions{}),
		hostNS:    host,
		host:      nettest.Agent(t, host),
	}
	c.index = linkIn(t, host, c.Interfaces[0].HostName).Attrs().Index
	c.Watcher = newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	return c
}

// exchange sends datagrams of 100 bytes with their Ethernet headers: as many to the host
// as out says, and to the container as in does.
func (c counted) exchange(t *testing.T, out, in int) {
	t.Helper()
	eth0 := c.Interfaces[0]
	for _, flow := range []struct {
		from, to *testnet.Agent
		addr     netip.Addr
		count    int
	}{
		{c.Agent, c.host, eth0.HostIPv4, out},
		{c.host, c.Agent, eth0.IPv4, in},
	} {
		sink := nettest.Must(flow.to.Listen("udp", flow.addr))(t)
		check(t, flow.from.SendUDP(sink.Addr, flow.count, 58))
		nettest.Must(sink.Received(flow.count))(t)
	}
}

// both reads the counters of the host veth in both ways.
func (c counted) both(t *testing.T) (one LinkCounters) {
	t.Helper()
	eventually(t, func() error {
		one = nettest.Must(c.Counters(c.index, nil))(t)
		all := nettest.Must(c.AllCounters())(t)
		if diff := cmp.Diff(one, all[c.index].LinkCounters); diff != "" {
			return fmt.Errorf("one and all (-one +all):\n%s", diff)
		}
		return nil
	})
	return one
}

// TestCounters compares them with what was sent, and with /proc/net/dev on both ends.
func TestCounters(t *testing.T) {
	c := newCounted(t)
	if got := c.both(t); got != (LinkCounters{}) {
		t.Errorf("at first %+v", got)
	}
	c.exchange(t, 7, 30)
	got := c.both(t)
	want := LinkCounters{ReceiveBytes: 3000, ReceivePackets: 30, TransmitBytes: 700, TransmitPackets: 7}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after 7 datagrams out and 30 in (-want +got):\n%s", diff)
	}

	sink := nettest.Must(c.Container.Listen("tcp", c.Interfaces[0].IPv6))(t)
	check(t, c.host.SendTCP(sink.Addr, 20<<20, testnet.Write))
	nettest.Must(sink.Received(1))(t)
	// The container's last acknowledgement may still be on its way.
	eventually(t, func() error {
		inside := nettest.Must(testnet.InterfaceCounters(c.PID()))(t)["eth0"]
		outside := nettest.Must(testnet.InterfaceCounters(c.host.PID()))(t)[c.Interfaces[0].HostName]
		got := c.both(t)
		if diff := cmp.Diff(inside, testnet.Counters(got)); diff != "" {
			return fmt.Errorf("/proc/net/dev of the container (-want +got):\n%s", diff)
		}
		swapped := testnet.Counters{
			ReceiveBytes: got.TransmitBytes, ReceivePackets: got.TransmitPackets,
			TransmitBytes: got.ReceiveBytes, TransmitPackets: got.ReceivePackets,
		}
		if diff := cmp.Diff(outside, swapped); diff != "" {
			return fmt.Errorf("/proc/net/dev of the host (-want +got):\n%s", diff)
		}
		if got.ReceiveBytes < 20<<20 {
			return fmt.Errorf("after 20 MiB: %+v", got)
		}
		return nil
	})
}

// TestGlance compares what is read at a glance with what is asked for before and after.
func TestGlance(t *testing.T) {
	need.Root(t)
	w := &Watcher{}
	defer w.stats.close()
	before := nettest.Must(w.Counters(1, nil))(t)
	got, err := w.Glance("lo")
	after := nettest.Must(w.Counters(1, nil))(t)
	if err != nil || got.ReceiveBytes < before.ReceiveBytes || got.ReceiveBytes > after.ReceiveBytes {
		t.Errorf("%+v between %+v and %+v: %v", got, before, after, err)
	}
	if _, err := w.Glance("nettally-none"); !errors.Is(err, ErrGone) {
		t.Errorf("an interface that is not there: %v", err)
	}
}

func TestFindCounters(t *testing.T) {
	const file = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    0    0    0     0          0         0        3       4    0    0    0     0       0          0
  veth1: 100 10    0    0    0     0          0         0 700 7    0    0    0     0       0          0
veth12:8 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0
 short: 1 2 3
odd: a 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
`
	for name, want := range map[string]LinkCounters{
		"veth1":  {ReceiveBytes: 700, ReceivePackets: 7, TransmitBytes: 100, TransmitPackets: 10},
		"veth12": {ReceiveBytes: 9, ReceivePackets: 1, TransmitBytes: 8, TransmitPackets: 1},
	} {
		if got, err := findCounters(strings.NewReader(file), name); err != nil || got != want {
			t.Errorf("%s: %+v, want %+v: %v", name, got, want, err)
		}
	}
	for name, want := range map[string]string{
		"veth":  ErrGone.Error(),
		"short": `parse net/dev: expected 16 numbers, got " 1 2 3"`,
		"odd":   `parse net/dev: strconv.ParseUint: parsing "a": invalid syntax`,
	} {
		if got, err := findCounters(strings.NewReader(file), name); err == nil || err.Error() != want || got != (LinkCounters{}) {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, want)
		}
	}
}

// TestCountersWithGRO shows which counter lacks the Ethernet headers, and when.
func TestCountersWithGRO(t *testing.T) {
	need.Commands(t, "ethtool")
	for name, want := range map[string]LinkCounters{
		"container": {ReceiveBytes: 30 * (100 - 14), ReceivePackets: 30, TransmitBytes: 700, TransmitPackets: 7},
		"host":      {ReceiveBytes: 3000, ReceivePackets: 30, TransmitBytes: 7 * (100 - 14), TransmitPackets: 7},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCounted(t)
			outer := c.Interfaces[0].HostName
			if name == "container" {
				nettest.Must(c.Namespace.Run("ethtool", "-K", "eth0", "gro", "on"))(t)
				nettest.Must(c.hostNS.Run("ethtool", "-K", outer, "tso", "off"))(t)
			} else {
				nettest.Must(c.hostNS.Run("ethtool", "-K", outer, "gro", "on"))(t)
				nettest.Must(c.Namespace.Run("ethtool", "-K", "eth0", "tso", "off"))(t)
			}
			c.exchange(t, 7, 30)
			// The NAPI thread counts when it has delivered.
			eventually(t, func() error {
				if diff := cmp.Diff(want, c.both(t)); diff != "" {
					return fmt.Errorf("(-want +got):\n%s", diff)
				}
				return nil
			})
		})
	}
}

// TestCountersOfGone asks for an interface that is removed, before and after.
func TestCountersOfGone(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	w := newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	outer := veth(t, host, "vethhost", container, "eth0")
	index := outer.Attrs().Index
	if _, err := w.Counters(index, nil); err != nil {
		t.Error(err)
	}
	check(t, host.LinkDel(outer))
	for _, gone := range []int{index, 1 << 30, -1} {
		c, err := w.Counters(gone, nil)
		if !errors.Is(err, ErrGone) || c != (LinkCounters{}) {
			t.Errorf("counters of %d: %+v, error %v", gone, c, err)
		}
	}
	if _, err := w.Counters(0, nil); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("counters of no index: error %v", err)
	}
	lo := linkIn(t, host, "lo").Attrs().Index
	if _, err := w.Counters(lo, nil); err != nil {
		t.Errorf("after an error: %v", err)
	}
	all, err := w.AllCounters()
	if diff := cmp.Diff(map[int]LinkReading{lo: {}}, all); err != nil || diff != "" {
		t.Errorf("all, error %v (-want +got):\n%s", err, diff)
	}
}

// TestCountersOfManyAmidChanges reads from many goroutines while links come and go:
// nobody gets another one's answer, and what stays is in every list that claims to be
// whole.
func TestCountersOfManyAmidChanges(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	stay := addPairs(t, host, 150) // a dump of several reads
	w := newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	stop := flap(t, host, container)
	defer stop()

	var tasks sync.WaitGroup
	var partial, whole atomic.Int32
	for range 4 {
		tasks.Go(func() {
			for i := 0; i < 50 || partial.Load() == 0 && i < 10000; i++ {
				all, err := w.AllCounters()
				switch {
				case errors.Is(err, ErrPartial):
					partial.Add(1)
				case err != nil:
					t.Error(err)
				default:
					whole.Add(1)
					for _, index := range stay {
						if _, ok := all[index]; !ok {
							t.Errorf("interface %d is missing among %d", index, len(all))
						}
					}
				}
				if _, err := w.Counters(stay[i%len(stay)], nil); err != nil {
					t.Error(err)
				}
				if _, err := w.Counters(1<<30, nil); !errors.Is(err, ErrGone) {
					t.Errorf("counters of none: %v", err)
				}
			}
		})
	}
	tasks.Wait()
	t.Logf("%d lists were whole, %d partial", whole.Load(), partial.Load())
	if partial.Load() == 0 {
		t.Error("no list was partial")
	}
}

// addPairs adds veth pairs within a namespace and returns the indexes of one end each.
func addPairs(t *testing.T, host *testnet.Namespace, n int) []int {
	t.Helper()
	var indexes []int
	for i := range n {
		name := fmt.Sprintf("pair%d", i)
		check(t, host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "x"}))
		indexes = append(indexes, linkIn(t, host, name).Attrs().Index)
	}
	return indexes
}

// TestCountersSocket opens one socket, not one each time, and another one where that
// breaks.
func TestCountersSocket(t *testing.T) {
	need.Root(t)
	files := openFiles(t)
	w, err := New(Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"])})
	check(t, err)
	read := func() {
		t.Helper()
		if all, err := w.AllCounters(); err != nil || len(all) == 0 {
			t.Errorf("%d counters, error %v", len(all), err)
		}
	}
	for range 3 {
		read()
	}
	if n := openFiles(t); n != files+1 {
		t.Errorf("%d open files, want one more than %d", n, files)
	}
	check(t, w.stats.conn.Close())
	if _, err := w.AllCounters(); err == nil {
		t.Error("no error from a closed socket")
	}
	read()
	check(t, w.Close())
	if n := openFiles(t); n != files {
		t.Errorf("%d open files at the end, %d before", n, files)
	}
}

// FuzzParseStats feeds what no kernel sends.
func FuzzParseStats(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Add(append(make([]byte, 12), append([]byte{132, 0, 1, 0}, make([]byte, 128)...)...))
	f.Add(append(make([]byte, 12), 5, 0, 2, 0, 1))
	f.Add(append(make([]byte, 16), append([]byte{132, 0, unix.IFLA_STATS64, 0}, make([]byte, 128)...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = parseStats(b)
		_, _ = parseStatsIn(b)
		_, _, _, _ = parseQdisc(b)
	})
}

// FuzzCutMessage takes everything apart and comes to an end.
func FuzzCutMessage(f *testing.F) {
	f.Add(append([]byte{18, 0, 0, 0}, make([]byte, 32)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := cutMessage(b)
			if err != nil {
				return
			}
			_ = dumpResult(m.Data, false)
			if len(rest) >= len(b) {
				t.Fatalf("%d bytes left of %d", len(rest), len(b))
			}
			b = rest
		}
	})
}

// BenchmarkCounters reads the counters of 500 host veths: all at once, one of them, and
// what all would cost by a list of the links.
func BenchmarkCounters(b *testing.B) {
	need.Root(b)
	host, container := nettest.Host(b), nettest.Host(b)
	const veths = 500
	for i := range veths {
		check(b, testnet.Veth(host, fmt.Sprintf("veth%d", i), container, fmt.Sprintf("eth%d", i)))
	}
	w, err := New(Options{CgroupRoot: hierarchies(b)["v2"], NetNS: host.FD()})
	check(b, err)
	b.Cleanup(func() { check(b, w.Close()) })
	perLink := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/veths, "ns/link")
	}
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if all, err := w.AllCounters(); err != nil || len(all) != veths+1 {
				b.Fatal(len(all), err)
			}
		}
		perLink(b)
	})
	b.Run("qdiscs", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if all, err := w.RootQdiscs(); err != nil || len(all) < veths {
				b.Fatal(len(all), err)
			}
		}
		perLink(b)
	})
	b.Run("other end", func(b *testing.B) {
		b.ReportAllocs()
		found := nettest.Must(w.HostVeths())(b)[0]
		for b.Loop() {
			_, err := w.CountersIn(found.NetNSID, found.PeerIndex)
			check(b, err)
		}
	})
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		index := linkIn(b, host, "veth0").Attrs().Index
		for b.Loop() {
			if _, err := w.Counters(index, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("links", func(b *testing.B) {
		b.ReportAllocs()
		conn, err := dial(host.FD(), 0)
		check(b, err)
		defer conn.Close()
		buf := make([]byte, dumpBuffer)
		for b.Loop() {
			n := 0
			err := dump(conn, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), buf, func([]byte) error {
				n++
				return nil
			})
			if err != nil || n != veths+1 {
				b.Fatal(n, err)
			}
		}
		perLink(b)
	})
}
