// SPDX-License-Identifier: Apache-2.0

package podmanhost

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

func TestPodman(t *testing.T) {
	podman := Start(t, Options{})
	server, client := podman.Run(Image), podman.Run("--name", "client", Image)
	t.Run("bridge", func(t *testing.T) { testBridge(t, podman, server, client) })
	t.Run("pod", func(t *testing.T) { testPod(t, podman, server) })
	t.Run("second network", func(t *testing.T) { testSecondNetwork(t, podman, server) })
	t.Run("host", func(t *testing.T) {
		id := podman.Run("--network", "host", Image)
		want := nettest.Must(os.Readlink(podman.Namespace.Path()))(t)
		if got := podman.NetworkNamespace(id); got != want {
			t.Errorf("the container is in %s, the host is %s", got, want)
		}
		exchange(t, podman.Agent(id), podman.Agent(server), podman.IPv4(server, "eth0"))
	})
	t.Run("none", func(t *testing.T) {
		id := podman.Run("--network", "none", Image)
		if got := podman.NetDev(id); len(got) != 1 {
			t.Errorf("interfaces %v, want lo alone", got)
		}
		agent := podman.Agent(id)
		exchange(t, agent, agent, netip.MustParseAddr("127.0.0.1"))
	})
	t.Run("service", func(t *testing.T) { testService(t, podman) })
	t.Run("restart", func(t *testing.T) {
		pid := podman.PID("client")
		podman.Restart("client")
		if podman.PID("client") == pid {
			t.Error("the process is still the same")
		}
	})
}

// exchange sends 100 datagrams from one container to another.
func exchange(t *testing.T, from, to *testnet.Agent, address netip.Addr) {
	t.Helper()
	const count, size = 100, 58
	sink := nettest.Must(to.Listen("udp", address))(t)
	if err := from.SendUDP(sink.Addr, count, size); err != nil {
		t.Fatal(err)
	}
	want := testnet.Received{Count: count, Bytes: count * size}
	if got := nettest.Must(sink.Received(count))(t); got != want {
		t.Errorf("received %+v, want %+v", got, want)
	}
}

// exchanged is what a capture sees of it.
var exchanged = nettest.Volume{Packets: 100, Bytes: 10_000}

func testBridge(t *testing.T, podman *Podman, server, client string) {
	inCgroup(t, podman, client, podman.CgroupParent+"/libpod-"+client)
	capture := nettest.StartCapture(t, podman.Namespace, podman.HostVeth(client, "eth0"))
	before := podman.NetDev(client)["eth0"]
	exchange(t, podman.Agent(client), podman.Agent(server), podman.IPv4(server, "eth0"))
	if diff := cmp.Diff(exchanged, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	// Neighbours may have been asked for meanwhile, and routers.
	got := podman.NetDev(client)["eth0"].TransmitPackets - before.TransmitPackets
	if got < 100 || got > 120 {
		t.Errorf("the kernel counts %d packets, want 100 and some ARP", got)
	}
}

// inCgroup looks where a container's first process is.
func inCgroup(t *testing.T, podman *Podman, id, want string) {
	t.Helper()
	data := nettest.Must(podman.Command("cat", fmt.Sprintf("/proc/%d/cgroup", podman.PID(id))).Output())(t)
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":"+want) && !strings.HasSuffix(line, ":/\n") {
			t.Errorf("container %.12s is in %s, want %s", id, line, want)
		}
	}
	if !strings.Contains(string(data), want) {
		t.Errorf("container %.12s is in %s, want %s", id, data, want)
	}
}

// testPod shows two containers behind one veth, which is that of neither.
func testPod(t *testing.T, podman *Podman, server string) {
	pod := podman.PodCreate("web")
	a, b := podman.Run("--pod", pod, Image), podman.Run("--pod", pod, Image)
	infra := podman.Infra(pod)
	for _, id := range []string{a, b, infra} {
		inCgroup(t, podman, id, podman.CgroupParent+"/"+pod+"/libpod-"+id)
		if got, want := podman.NetworkNamespace(id), podman.NetworkNamespace(infra); got != want {
			t.Errorf("container %.12s is in %s, the pod in %s", id, got, want)
		}
	}
	capture := nettest.StartCapture(t, podman.Namespace, podman.HostVeth(infra, "eth0"))
	address := podman.IPv4(server, "eth0")
	exchange(t, podman.Agent(a), podman.Agent(server), address)
	exchange(t, podman.Agent(b), podman.Agent(server), address)
	want := nettest.Volume{Packets: 2 * exchanged.Packets, Bytes: 2 * exchanged.Bytes}
	if diff := cmp.Diff(want, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	podman.RemovePod(pod)
	after := nettest.TakeSnapshot(t, nettest.Scope{Cgroups: []string{podman.CgroupParent + "/" + pod}})
	for _, left := range after.Cgroups {
		if strings.Contains(left, "libpod-") {
			t.Errorf("left of the pod's containers: %s", left)
		}
	}
}

// testSecondNetwork has a network with names, which another program serves.
func testSecondNetwork(t *testing.T, podman *Podman, server string) {
	podman.NetworkCreate("second", "--subnet", "10.236.0.0/24")
	podman.NetworkConnect("second", server)
	id := podman.Run("--network", "second", Image)
	capture := nettest.StartCapture(t, podman.Namespace, podman.HostVeth(server, "eth1"))
	exchange(t, podman.Agent(id), podman.Agent(server), podman.IPv4(server, "eth1"))
	if diff := cmp.Diff(exchanged, capture.Count("udp and not port 53")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
}

// testService asks the service as a program that knows Docker would.
func testService(t *testing.T, podman *Podman) {
	socket := podman.Service()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	answer := nettest.Must(client.Get("http://podman/v1.40/containers/client/json"))(t)
	defer answer.Body.Close()
	body := string(nettest.Must(io.ReadAll(answer.Body))(t))
	if want := fmt.Sprintf(`"Pid":%d,`, podman.PID("client")); !strings.Contains(body, want) {
		t.Errorf("%s without %s: %s", answer.Status, want, body)
	}
}

func TestCgroupV2Only(t *testing.T) {
	podman := Start(t, Options{CgroupV2Only: true})
	pod := podman.PodCreate("web")
	member, single := podman.Run("--pod", pod, Image), podman.Run(Image)
	for _, path := range []string{"/libpod-" + single, "/" + pod + "/libpod-" + member} {
		path = "/sys/fs/cgroup" + podman.CgroupParent + path
		out, err := podman.Command("sh", "-c", `stat -fc %T "$0"; cat "$0/cgroup.procs"`, path).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "cgroup2fs\n") || strings.Count(string(out), "\n") < 2 {
			t.Errorf("%s: %v: %s", path, err, out)
		}
	}
	exchange(t, podman.Agent(member), podman.Agent(single), podman.IPv4(single, "eth0"))
}

// outside is what podman, conmon and netavark would make on the machine.
var outside = []string{
	"/run/containers", "/run/libpod", "/run/netns", "/run/crun", "/run/runc", "/run/podman",
	"/var/lib/containers", "/var/lib/cni", "/var/tmp", "/dev/shm", "/etc/containers", "/etc/cni",
}

// startSome starts podman with a bit of everything.
func startSome(t *testing.T) (*Podman, string) {
	podman := Start(t, Options{})
	pod := podman.PodCreate("web")
	podman.NetworkCreate("second") // with a name server
	podman.Run("--network", "second", Image)
	podman.Service()
	return podman, podman.Run("--pod", pod, Image)
}

func nothingIsLeft(t *testing.T, dir, parent string, namespaces []string) {
	t.Helper()
	for _, namespace := range namespaces {
		nettest.AwaitNobody(t, namespace)
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{Paths: []string{dir}, Cgroups: []string{parent}})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	need.Root(t)
	before := nettest.TakeSnapshot(t, nettest.Scope{Paths: outside, Named: true})
	var podman *Podman
	var namespaces []string
	parent := t
	started := t.Run("podman", func(t *testing.T) {
		var id string
		podman, id = startSome(t)
		namespaces = append(nettest.HoldNamespaces(parent, podman.enclosure.PID()),
			nettest.HoldNamespaces(parent, podman.PID(id))...)
	})
	if !started {
		return
	}
	nothingIsLeft(t, podman.enclosure.Dir, podman.CgroupParent, namespaces)
	after := nettest.TakeSnapshot(t, nettest.Scope{Paths: outside, Named: true})
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("left behind on the machine (-before +after):\n%s", diff)
	}
}

func TestVictim(t *testing.T) {
	if !nettest.IsVictim() {
		return // the other tests are not about being killed
	}
	podman, id := startSome(t)
	nettest.Victim(podman.enclosure.Dir, podman.CgroupParent, podman.enclosure.PID(), podman.PID(id))
}

// A test that is killed can clean nothing up, and the script does.
func TestDeathOfTheTest(t *testing.T) {
	need.Root(t)
	var said, namespaces []string
	nettest.KillTest(t, "TestVictim", func(words []string) {
		said = words
		for _, pid := range words[2:] {
			namespaces = append(namespaces, nettest.HoldNamespaces(t, nettest.Must(strconv.Atoi(pid))(t))...)
		}
	})
	nothingIsLeft(t, said[0], said[1], namespaces)
}
