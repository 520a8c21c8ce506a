// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// orders are the two ways to make a container; all tests hold for both.
var orders = map[string]testnet.ContainerOptions{
	"podman": {},
	"docker": {LikeDocker: true},
}

func TestDatagramsAreCountedExactly(t *testing.T) {
	need.Root(t)
	for name, options := range orders {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			c := nettest.Container(t, host, options)
			peer := nettest.Agent(t, host)
			eth0 := c.Interfaces[0]
			for _, flow := range []struct {
				name     string
				from, to *testnet.Agent
				addr     netip.Addr
				overhead uint64
			}{
				{"out4", c.Agent, peer, eth0.HostIPv4, 14 + 20 + 8},
				{"out6", c.Agent, peer, eth0.HostIPv6, 14 + 40 + 8},
				{"in4", peer, c.Agent, eth0.IPv4, 14 + 20 + 8},
				{"in6", peer, c.Agent, eth0.IPv6, 14 + 40 + 8},
			} {
				t.Run(flow.name, func(t *testing.T) {
					const count, size = 1000, 100
					sink := nettest.Must(flow.to.Listen("udp", flow.addr))(t)
					capture := nettest.StartCapture(t, host, eth0.HostName)
					if err := flow.from.SendUDP(sink.Addr, count, size); err != nil {
						t.Fatal(err)
					}
					got := nettest.Must(sink.Received(count))(t)
					if want := (testnet.Received{Count: count, Bytes: count * size}); got != want {
						t.Errorf("received %+v, want %+v", got, want)
					}
					// Nothing but the datagrams: the link is silent.
					want := nettest.Volume{Packets: count, Bytes: count * (size + flow.overhead)}
					if diff := cmp.Diff(want, capture.Count("")); diff != "" {
						t.Errorf("captured (-want +got):\n%s", diff)
					}
				})
			}
		})
	}
}

func TestKernelCountersOfContainer(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true, Interface: "net1"})
	peer := nettest.Agent(t, host)
	sink := nettest.Must(peer.Listen("udp", c.Interfaces[0].HostIPv4))(t)
	if err := c.SendUDP(sink.Addr, 10, 58); err != nil {
		t.Fatal(err)
	}
	got := nettest.Must(testnet.InterfaceCounters(c.PID()))(t)["net1"]
	if diff := cmp.Diff(testnet.Counters{TransmitBytes: 1000, TransmitPackets: 10}, got); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestConnect(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	peer := nettest.Agent(t, host)
	eth0 := c.Interfaces[0]
	const n = 50
	for name, ends := range map[string]struct {
		from, to *testnet.Agent
		addr     netip.Addr
	}{
		"out": {c.Agent, peer, eth0.HostIPv6},
		"in":  {peer, c.Agent, eth0.IPv4},
	} {
		t.Run(name, func(t *testing.T) {
			sink := nettest.Must(ends.to.Listen("tcp", ends.addr))(t)
			capture := nettest.StartCapture(t, host, eth0.HostName)
			got := nettest.Must(ends.from.Connect(sink.Addr, n))(t)
			if got != (testnet.Connects{Connected: n}) {
				t.Errorf("connects to a listener: %+v", got)
			}
			nobody := netip.AddrPortFrom(ends.addr, 1)
			got = nettest.Must(ends.from.Connect(nobody, n))(t)
			if got != (testnet.Connects{Refused: n}) {
				t.Errorf("connects to nobody: %+v", got)
			}
			if took := nettest.Must(sink.Received(n))(t); took.Count != n {
				t.Errorf("accepted %d, want %d", took.Count, n)
			}
			// Two CPUs may swap the last packets of a connection that was accepted, which the
			// kernel answers with an RST of its own: only those of the refusals are known.
			for kind, want := range map[string]uint64{"SYN": 2 * n, "SYN-ACK": n, "RST": n, "FIN": 2 * n} {
				filter := flags(ends.addr, kind)
				if kind == "RST" {
					filter += fmt.Sprintf(" and src port %d", nobody.Port())
				}
				if got := capture.Count(filter).Packets; got != want {
					t.Errorf("%d packets with %s, want %d", got, kind, want)
				}
			}
		})
	}
}

// flags is a filter for TCP flags. tcpdump's tcp[tcpflags] is for IPv4 only.
func flags(addr netip.Addr, kind string) string {
	flags := "tcp[13]"
	if addr.Is6() {
		flags = "ip6[40+13]"
	}
	return map[string]string{
		"SYN":     flags + " & 0x12 = 0x02",
		"SYN-ACK": flags + " & 0x12 = 0x12",
		"RST":     flags + " & 0x04 != 0",
		"FIN":     flags + " & 0x01 != 0",
	}[kind]
}

func TestSendTCP(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ethtool")
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	peer := nettest.Agent(t, host)
	const size = 5_000_003
	for _, method := range []testnet.Method{testnet.Write, testnet.SendFile, testnet.ZeroCopy} {
		t.Run(string(method), func(t *testing.T) {
			sink := nettest.Must(peer.Listen("tcp", c.Interfaces[0].HostIPv4))(t)
			if err := c.SendTCP(sink.Addr, size, method); err != nil {
				t.Fatal(err)
			}
			got := nettest.Must(sink.Received(1))(t)
			if want := (testnet.Received{Count: 1, Bytes: size}); got != want {
				t.Errorf("received %+v, want %+v", got, want)
			}
		})
	}
}

func TestSegmentationOffload(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ethtool")
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	peer := nettest.Agent(t, host)
	eth0 := c.Interfaces[0]
	sink := nettest.Must(peer.Listen("udp", eth0.HostIPv4))(t)
	const buffers, segment, segments = 3, 1000, 20
	for i, test := range []struct {
		offload bool
		want    nettest.Volume
	}{
		{true, nettest.Volume{Packets: buffers, Bytes: buffers * (42 + segment*segments)}},
		{false, nettest.Volume{Packets: buffers * segments, Bytes: buffers * segments * (42 + segment)}},
	} {
		t.Run(fmt.Sprint("offload ", test.offload), func(t *testing.T) {
			if err := c.Namespace.SetOffloads("eth0", test.offload); err != nil {
				t.Fatal(err)
			}
			capture := nettest.StartCapture(t, host, eth0.HostName)
			err := c.SendSegmentedUDP(sink.Addr, buffers, segment*segments, segment)
			if err != nil {
				t.Fatal(err)
			}
			// The receiver's socket gets datagrams in either case.
			nettest.Must(sink.Received((i + 1) * buffers * segments))(t)
			if diff := cmp.Diff(test.want, capture.Count("udp")); diff != "" {
				t.Errorf("captured (-want +got):\n%s", diff)
			}
		})
	}
}

func TestContainerIsInAllHierarchies(t *testing.T) {
	need.Root(t)
	for name, options := range orders {
		t.Run(name, func(t *testing.T) {
			options.ID = strings.Repeat("c", 64)
			options.Cgroup = fmt.Sprintf("/nettally-test-%d/pod1/%s", os.Getpid(), options.ID)
			c := nettest.Container(t, nettest.Host(t), options)
			data := nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID())))(t)
			for line := range strings.Lines(string(data)) {
				if !strings.HasSuffix(line, ":"+options.Cgroup+"\n") {
					t.Errorf("in cgroup %q, want %s", line, options.Cgroup)
				}
			}
			inside := nettest.Must(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.PID())))(t)
			if want := nettest.Must(os.Readlink(c.Namespace.Path()))(t); inside != want {
				t.Errorf("in namespace %s, want %s", inside, want)
			}
		})
	}
}

func TestAddInterfaceAndRestart(t *testing.T) {
	need.Root(t)
	for name, options := range orders {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			c := nettest.Container(t, host, options)
			peer := nettest.Agent(t, host)
			second := nettest.Must(c.AddInterface(host, "eth1"))(t)
			reach(t, c, peer, second)
			pid, veth, id := c.PID(), c.Interfaces[0].HostName, c.ID
			if err := c.Restart(); err != nil {
				t.Fatal(err)
			}
			if c.PID() == pid || c.Interfaces[0].HostName == veth || c.ID != id {
				t.Errorf("after restart: pid %d, veth %s, id %s", c.PID(), c.Interfaces[0].HostName, c.ID)
			}
			reach(t, c, peer, c.Interfaces[0])
			reach(t, c, peer, c.Interfaces[1])
		})
	}
}

func reach(t *testing.T, c *testnet.Container, peer *testnet.Agent, by testnet.Interface) {
	t.Helper()
	sink := nettest.Must(peer.Listen("tcp", by.HostIPv4))(t)
	if got := nettest.Must(c.Connect(sink.Addr, 1))(t); got.Connected != 1 {
		t.Errorf("connect by %s: %+v", by.Name, got)
	}
}

func TestJoin(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	first := nettest.Container(t, host, testnet.ContainerOptions{})
	shared := nettest.Container(t, host, testnet.ContainerOptions{Join: first.Namespace})
	inHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host, LikeDocker: true})
	sink := nettest.Must(inHost.Listen("tcp", first.Interfaces[0].HostIPv4))(t)
	if got := nettest.Must(shared.Connect(sink.Addr, 2))(t); got.Connected != 2 {
		t.Errorf("connect through the other's interface: %+v", got)
	}
	if len(shared.Interfaces) != 0 {
		t.Errorf("interfaces of its own: %+v", shared.Interfaces)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	need.Root(t)
	for name, options := range orders {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			options.ID = strings.Repeat("d", 64)
			parent := fmt.Sprintf("/nettally-test-%d-left", os.Getpid())
			options.Cgroup = parent + "/" + options.ID
			look := func() []any {
				links := nettest.Must(host.LinkList())(t)
				scope := nettest.Scope{
					Cgroups: []string{parent}, Executable: nettest.Must(os.Executable())(t),
				}
				return []any{len(links), nettest.TakeSnapshot(t, scope)}
			}
			before := look()
			c := nettest.Must(testnet.NewContainer(host, options))(t)
			if _, err := c.AddInterface(host, "eth1"); err != nil {
				t.Error(err)
			}
			if cmp.Equal(before, look()) {
				t.Error("the snapshot does not see the container")
			}
			for range 2 {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff(before, look()); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

// A start that fails halfway leaves nothing either, and does not take away what
// another one made.
func TestFailedStart(t *testing.T) {
	need.Root(t)
	for name, options := range orders {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			c := nettest.Container(t, host, options)
			same := options
			same.Cgroup = c.Cgroup
			again, err := testnet.NewContainer(host, same)
			if err == nil {
				_ = again.Close()
				t.Fatal("made a container in the cgroup of another")
			}
			if links := nettest.Must(host.LinkList())(t); len(links) != 2 {
				t.Errorf("%d links in the host, want lo and one veth", len(links))
			}
			roots := nettest.Must(testnet.CgroupRoots())(t)
			if _, err := os.Stat(filepath.Join(roots[0], c.Cgroup)); err != nil {
				t.Error(err)
			}
		})
	}
}
