// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

func TestBridge(t *testing.T) {
	need.Commands(t, "ethtool")
	docker := Start(t, Options{})
	server, client := docker.Run(Image), docker.Run("--name", "client", Image)
	address := docker.IPv4(server, "eth0")
	to, from := docker.Agent(server), docker.Agent(client)

	t.Run("ping", func(t *testing.T) {
		out := docker.Exec("client", "ping", "-c", "2", "-W", "5", address.String())
		if !strings.Contains(out, " 0% packet loss") {
			t.Error(out)
		}
	})
	t.Run("connect", func(t *testing.T) {
		sink := nettest.Must(to.Listen("tcp", address))(t)
		capture := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(client, "eth0"))
		if got := nettest.Must(from.Connect(sink.Addr, 20))(t); got.Connected != 20 {
			t.Errorf("connects: %+v", got)
		}
		if got := capture.Count("tcp[13] & 0x12 = 0x02").Packets; got != 20 {
			t.Errorf("%d SYN packets, want 20", got)
		}
	})
	t.Run("segmented", func(t *testing.T) { testSegmented(t, docker, server, client) })
	t.Run("second network", func(t *testing.T) { testSecondNetwork(t, docker, server, client) })
	t.Run("counters", func(t *testing.T) { testCounters(t, docker, server, client) })
	t.Run("restart", func(t *testing.T) {
		pid, veth := docker.PID(client), docker.HostVeth(client, "eth0")
		docker.Restart(client)
		if docker.PID(client) == pid || docker.HostVeth(client, "eth0") == veth {
			t.Error("process or host veth is still the same")
		}
	})
}

// testSegmented sees super-packets, larger than the MTU, on the sender's veth,
// and with offloads off the datagrams they stand for.
func testSegmented(t *testing.T, docker *Docker, server, client string) {
	sink := nettest.Must(docker.Agent(server).Listen("udp", docker.IPv4(server, "eth0")))(t)
	from := docker.Agent(client)
	veth := docker.HostVeth(client, "eth0")
	const buffers, segment, segments = 5, 1200, 40
	for i, test := range []struct {
		offloads bool
		want     nettest.Volume
	}{
		{true, nettest.Volume{Packets: buffers, Bytes: buffers * (42 + segment*segments)}},
		{false, nettest.Volume{Packets: buffers * segments, Bytes: buffers * segments * (42 + segment)}},
	} {
		docker.SetOffloads(client, "eth0", test.offloads)
		capture := nettest.StartCapture(t, docker.Namespace, veth)
		if err := from.SendSegmentedUDP(sink.Addr, buffers, segment*segments, segment); err != nil {
			t.Fatal(err)
		}
		nettest.Must(sink.Received((i + 1) * buffers * segments))(t)
		if diff := cmp.Diff(test.want, capture.Count("udp")); diff != "" {
			t.Errorf("offloads %v: captured (-want +got):\n%s", test.offloads, diff)
		}
	}
	docker.SetOffloads(client, "eth0", true)
}

func testSecondNetwork(t *testing.T, docker *Docker, server, client string) {
	docker.NetworkCreate("second", "--subnet", "10.232.0.0/24")
	docker.NetworkConnect("second", server)
	docker.NetworkConnect("second", client)
	sink := nettest.Must(docker.Agent(server).Listen("tcp", docker.IPv4(server, "eth1")))(t)
	capture := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(client, "eth1"))
	if err := docker.Agent(client).SendTCP(sink.Addr, 100_000, testnet.ZeroCopy); err != nil {
		t.Fatal(err)
	}
	if got := nettest.Must(sink.Received(1))(t).Bytes; got != 100_000 {
		t.Errorf("received %d bytes, want 100000", got)
	}
	if got := capture.Count("tcp").Bytes; got < 100_000 {
		t.Errorf("captured %d bytes on the second veth", got)
	}
}

// testCounters compares tcpdump with the kernel's counters of the same link.
func testCounters(t *testing.T, docker *Docker, server, client string) {
	sink := nettest.Must(docker.Agent(server).Listen("udp", docker.IPv4(server, "eth0")))(t)
	from := docker.Agent(client)
	capture := nettest.StartCapture(t, docker.Namespace, docker.HostVeth(client, "eth0"))
	before := docker.NetDev(client)["eth0"]
	if err := from.SendUDP(sink.Addr, 1000, 958); err != nil {
		t.Fatal(err)
	}
	after := docker.NetDev(client)["eth0"]
	want := nettest.Volume{Packets: 1000, Bytes: 1_000_000}
	if diff := cmp.Diff(want, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	// Neighbours may have been asked for meanwhile.
	if got := after.TransmitPackets - before.TransmitPackets; got < 1000 || got > 1010 {
		t.Errorf("the kernel counts %d packets, want 1000 and some ARP", got)
	}
}

func TestCgroups(t *testing.T) {
	for _, v2only := range []bool{false, true} {
		t.Run(fmt.Sprintf("v2only=%v", v2only), func(t *testing.T) {
			docker := Start(t, Options{CgroupV2Only: v2only})
			id := docker.Run(Image)
			path := docker.CgroupParent + "/" + id
			// By name: other tests' cgroups go while one would look for it in all.
			out := nettest.Must(docker.Command("sh", "-c",
				`stat -fc %T /sys/fs/cgroup; for dir in "/sys/fs/cgroup$0" /sys/fs/cgroup/*"$0"; do [ ! -d "$dir" ] || echo "$dir"; done`, path).Output())(t)
			if v2only {
				if want := "cgroup2fs\n/sys/fs/cgroup" + path + "\n"; string(out) != want {
					t.Errorf("in the daemon's view: %s, want %s", out, want)
				}
			} else if !strings.Contains(string(out), path) {
				t.Errorf("no cgroup %s: %s", path, out)
			}
			inside := nettest.Must(docker.Command("readlink", "/proc/self/ns/net").Output())(t)
			want := nettest.Must(os.Readlink(docker.Namespace.Path()))(t)
			if got := strings.TrimSpace(string(inside)); got != want {
				t.Errorf("a command is in %s, want %s", got, want)
			}
		})
	}
}

// Whichever way a test ends, nothing of the daemon stays.
func TestNothingIsLeftBehind(t *testing.T) {
	need.Root(t)
	for name, end := range map[string]func(*Docker){
		"clean-up": func(*Docker) {},
		"death of dockerd": func(d *Docker) {
			pid := nettest.Must(d.Command("cat", "/run/nettally-docker/pid").Output())(d.tb)
			d.enclosure.Crash(nettest.Must(strconv.Atoi(string(pid)))(d.tb))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var docker *Docker
			var namespaces []string
			parent := t
			started := t.Run("daemon", func(t *testing.T) {
				docker = startSome(t)
				namespaces = nettest.HoldNamespaces(parent, docker.enclosure.PID())
				if n := len(nettest.NamespaceUsers(t, namespaces[0])); n < 4 {
					t.Errorf("%d processes in the mount namespace, want dockerd and more", n)
				}
				end(docker)
			})
			if started {
				nothingIsLeft(t, docker.enclosure.Dir, docker.CgroupParent, namespaces)
			}
		})
	}
}

// startSome starts a daemon with a bit of everything.
func startSome(t *testing.T) *Docker {
	docker := Start(t, Options{})
	docker.Run(Image)
	docker.Run("--network", "host", Image)
	docker.NetworkCreate("second")
	return docker
}

func nothingIsLeft(t *testing.T, dir, parent string, namespaces []string) {
	t.Helper()
	for _, namespace := range namespaces {
		nettest.AwaitNobody(t, namespace)
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{
		Paths: []string{dir, "/run/nettally-docker"}, Cgroups: []string{parent},
	})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

func TestVictim(t *testing.T) {
	if !nettest.IsVictim() {
		return // the other tests are not about being killed
	}
	docker := startSome(t)
	nettest.Victim(docker.enclosure.Dir, docker.CgroupParent, docker.enclosure.PID())
}

// A test that is killed can clean nothing up, and the script does.
func TestDeathOfTheTest(t *testing.T) {
	need.Root(t)
	var said, namespaces []string
	nettest.KillTest(t, "TestVictim", func(words []string) {
		said = words
		namespaces = nettest.HoldNamespaces(t, nettest.Must(strconv.Atoi(words[2]))(t))
	})
	nothingIsLeft(t, said[0], said[1], namespaces)
}
