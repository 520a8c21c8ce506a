// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"path"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/testnet/podmanhost"
)

// layouts are the cgroup hierarchies that a test runs on.
var layouts = map[string]bool{"as the machine is": false, "cgroup v2 alone": true}

// kinds is a host with containers of all kinds, and a nettally that counts them.
type kinds struct {
	t *testing.T
	d *daemon
}

// is waits until a container is as it should be.
func (k *kinds) is(id, what string, ok func(exporter.Container) bool) exporter.Container {
	k.t.Helper()
	var found exporter.Container
	k.d.poll(what, func() error {
		c, err := k.d.container(id)
		if found = c; err == nil && !ok(c) {
			err = fmt.Errorf("%s: accounted %v (%s), network %s, %d interfaces %+v, ip %+v",
				c.Name, c.Accounted, c.Reason, c.NetworkMode, len(c.Interfaces), c.Interfaces, c.IP)
		}
		return err
	})
	return found
}

// likeKernel expects each interface to have the kernel's own numbers.
func (k *kinds) likeKernel(id string, kernel func() map[string]testnet.Counters) {
	k.t.Helper()
	k.likeKernelBy(asInterface, id, kernel)
}

// likeKernelBy says which of our numbers they are.
func (k *kinds) likeKernelBy(ours func(exporter.Counts) exporter.Volume, id string, kernel func() map[string]testnet.Counters) {
	k.t.Helper()
	k.d.poll("like the kernel's counters", func() error {
		c, err := k.d.container(id)
		if err != nil {
			return err
		}
		want, got := kernel(), map[string]testnet.Counters{}
		delete(want, "lo")
		for _, i := range c.Interfaces {
			rx, tx := ours(i.Receive), ours(i.Transmit)
			got[i.Name] = testnet.Counters{
				ReceiveBytes: rx.Bytes, ReceivePackets: rx.Packets, TransmitBytes: tx.Bytes, TransmitPackets: tx.Packets,
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("%s (-kernel +ours):\n%s", c.Name, diff)
		}
		return nil
	})
}

const (
	kindDatagrams = 500
	kindUpload    = 1_000_000
)

// talk sends datagrams and a stream to a peer.
func (k *kinds) talk(from, to *testnet.Agent, address netip.Addr) {
	k.t.Helper()
	udp := nettest.Must(to.Listen("udp", address))(k.t)
	tcp := nettest.Must(to.Listen("tcp", address))(k.t)
	if err := from.SendUDP(udp.Addr, kindDatagrams, 100); err != nil {
		k.t.Fatal(err)
	}
	if err := from.SendTCP(tcp.Addr, kindUpload, testnet.Write); err != nil {
		k.t.Fatal(err)
	}
	nettest.Must(udp.Received(1))(k.t) // a busy machine's socket has no room for all; the kernel counts them
}

// Docker's containers without a host veth, with many interfaces, with IPv6 alone, and with
// no network at all: each interface has the kernel's numbers, to the byte.
func TestDockerKinds(t *testing.T) {
	need.Root(t)
	t.Parallel()
	for name, v2 := range layouts {
		t.Run(name, func(t *testing.T) {
			docker := dockerhost.Start(t, dockerhost.Options{CgroupV2Only: v2})
			k := &kinds{t, startDaemon(t, docker, onlyDocker(docker))}
			k.macvlan(docker)
			k.manyInterfaces(docker)
			k.onlyIPv6(docker)
			k.moved(docker)
			none := docker.Run("--network", "none", dockerhost.Image)
			k.is(none, "without a network", func(c exporter.Container) bool {
				return c.Accounted && c.NetworkMode == "none" && len(c.Interfaces) == 0 && c.IP != nil && c.IP.Transmit.Bytes == 0
			})
		})
	}
}

func (k *kinds) macvlan(docker *dockerhost.Docker) {
	k.t.Helper()
	lan := docker.MacvlanNetwork("lan", netip.MustParsePrefix("10.235.0.0/24"))
	id := docker.Run("--name", "macvlan", "--network", "lan", dockerhost.Image)
	k.is(id, "counted inside", func(c exporter.Container) bool {
		return c.Accounted && len(c.Interfaces) == 1 && c.Interfaces[0].At == "container" && c.IP == nil
	})
	k.talk(docker.Agent(id), nettest.Agent(k.t, lan.Peer), lan.Address)
	k.likeKernel(id, func() map[string]testnet.Counters { return docker.NetDev(id) })
	// A filter in the container's namespace goes on after a crash, as one on the host does.
	k.d.kill()
	k.talk(docker.Agent(id), nettest.Agent(k.t, lan.Peer), lan.Address)
	k.d.start()
	k.likeKernel(id, func() map[string]testnet.Counters { return docker.NetDev(id) })
	k.is(id, "counted exactly", func(c exporter.Container) bool {
		want := exporter.Volume{Packets: 2 * kindDatagrams, Bytes: 2 * kindDatagrams * (14 + 20 + 8 + 100)}
		return c.Transmit.Protocols.UDP == want && c.Transmit.TCPSYN == 2
	})
}

func (k *kinds) manyInterfaces(docker *dockerhost.Docker) {
	k.t.Helper()
	id := docker.Run("--name", "many", dockerhost.Image)
	docker.ConnectMany(id, 19)
	k.is(id, "counted on 20 interfaces", func(c exporter.Container) bool { return c.Accounted && len(c.Interfaces) == 20 })
	peer := docker.Run("--name", "far", dockerhost.Image)
	k.talk(docker.Agent(id), docker.Agent(peer), docker.IPv4(peer, "eth0"))
	k.likeKernel(id, func() map[string]testnet.Counters { return docker.NetDev(id) })
}

// moved runs containers whose first process moves itself into another cgroup, below the
// container's own or beside it.
func (k *kinds) moved(docker *dockerhost.Docker) {
	k.t.Helper()
	for name, below := range map[string]bool{"below": true, "beside": false} {
		id, _ := docker.RunMoved("moved-"+name, below)
		k.d.counted(id, 1)
		peer := docker.Run(dockerhost.Image)
		k.talk(docker.Agent(id), docker.Agent(peer), docker.IPv4(peer, "eth0"))
		k.likeKernel(id, func() map[string]testnet.Counters { return docker.NetDev(id) })
	}
}

func (k *kinds) onlyIPv6(docker *dockerhost.Docker) {
	k.t.Helper()
	docker.NetworkCreate("six", "--ipv6", "--subnet", "fd7a:1::/64", "--subnet", "10.236.0.0/24")
	ids := map[string]string{}
	for _, name := range []string{"six-a", "six-b"} {
		ids[name] = docker.Run("--name", name, "--network", "six", dockerhost.Image)
		docker.OnlyIPv6(ids[name])
		k.d.counted(ids[name], 1)
	}
	k.talk(docker.Agent(ids["six-a"]), docker.Agent(ids["six-b"]), docker.IPv6(ids["six-b"], "eth0"))
	k.likeKernel(ids["six-a"], func() map[string]testnet.Counters { return docker.NetDev(ids["six-a"]) })
	k.is(ids["six-a"], "counted as IPv6", func(c exporter.Container) bool {
		want := exporter.Volume{Packets: kindDatagrams, Bytes: kindDatagrams * (14 + 40 + 8 + 100)}
		return c.Transmit.Protocols.UDP == want && c.Transmit.Families.IPv6.Bytes > kindUpload && c.Transmit.Families.IPv4.Bytes < 1000
	})
}

// Pods: the interface of one with two containers is counted once, and the containers are
// told apart; so are those of a pod on the host's network. Containers of plain containerd
// are counted, too.
func TestPodKinds(t *testing.T) {
	need.Root(t)
	t.Parallel()
	for name, v2 := range layouts {
		t.Run(name, func(t *testing.T) { testPods(t, v2) })
	}
}

func testPods(t *testing.T, v2 bool) {
	t.Helper()
	node := crihost.Start(t, crihost.Options{CgroupV2Only: v2})
	d := startDaemon(t, node, fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: %q}\nwatch: {include: [%q, \"/default/*\"]}",
		"unix://"+node.Socket, path.Dir(node.CgroupParent)+"/*"))
	k := &kinds{t, d}
	outside := nettest.Agent(t, node.Namespace)

	pod := nettest.Must(node.RunPod("web", crihost.PodOptions{}, crihost.Container{Name: "app"}, crihost.Container{Name: "sidecar"}))(t)
	app, sidecar := pod.Containers["app"], pod.Containers["sidecar"]
	for _, id := range []string{app, sidecar} {
		k.is(id, "counted by its cgroup", func(c exporter.Container) bool {
			return c.Accounted && len(c.Interfaces) == 0 && c.IP != nil && c.Pod == "web" && c.Namespace == "default" && c.Name != id
		})
	}
	k.is(pod.ID, "counted on its interface", func(c exporter.Container) bool {
		return c.Accounted && len(c.Interfaces) == 1 && c.Pod == "web"
	})
	k.talk(nettest.Must(pod.Agent("app"))(t), outside, node.Address)
	sink := nettest.Must(outside.Listen("udp", node.Address))(t)
	if err := nettest.Must(pod.Agent("sidecar"))(t).SendUDP(sink.Addr, 77, 100); err != nil {
		t.Fatal(err)
	}
	k.likeKernel(pod.ID, func() map[string]testnet.Counters { return nettest.Must(pod.NetDev())(t) })
	udp := func(c exporter.Container) uint64 { return c.IP.Transmit.Protocols.UDP.Packets }
	k.is(app, "told apart", func(c exporter.Container) bool {
		return udp(c) == kindDatagrams && c.IP.Transmit.TCPSYN == 1 && c.IP.Transmit.Protocols.TCP.Bytes > kindUpload
	})
	k.is(sidecar, "told apart", func(c exporter.Container) bool { return udp(c) == 77 && c.IP.Transmit.Protocols.TCP.Packets == 0 })
	k.is(pod.ID, "the sum", func(c exporter.Container) bool { return c.Transmit.Protocols.UDP.Packets == kindDatagrams+77 })

	onHost := nettest.Must(node.RunPod("agent", crihost.PodOptions{HostNetwork: true}, crihost.Container{Name: "probe"}))(t)
	probe := onHost.Containers["probe"]
	k.is(probe, "counted by its cgroup", func(c exporter.Container) bool { return c.Accounted && c.NetworkMode == "host" && c.IP != nil })
	inPod := nettest.Must(nettest.Must(pod.Agent("app"))(t).Listen("udp", pod.IPv4))(t)
	if err := nettest.Must(onHost.Agent("probe"))(t).SendUDP(inPod.Addr, 33, 100); err != nil {
		t.Fatal(err)
	}
	k.is(probe, "counted", func(c exporter.Container) bool { return udp(c) == 33 && c.Transmit.Packets == 0 })

	for _, class := range []crihost.Class{crihost.Guaranteed, crihost.BestEffort} {
		pod := nettest.Must(node.RunPod(string(class), crihost.PodOptions{Class: class}, crihost.Container{Name: "app"}))(t)
		k.is(pod.ID, "counted", func(c exporter.Container) bool {
			return c.Accounted && len(c.Interfaces) == 1 && c.Pod == string(class)
		})
		k.is(pod.Containers["app"], "counted by its cgroup", func(c exporter.Container) bool { return c.Accounted && c.IP != nil })
	}
	k.withoutPause(node, outside)
	k.plain(node, outside)
}

// withoutPause kills the process that holds a pod's namespace: what its interface has
// counted stays the pod's, and goes on for the container that is left.
func (k *kinds) withoutPause(node *crihost.Host, outside *testnet.Agent) {
	k.t.Helper()
	pod := nettest.Must(node.RunPod("lone", crihost.PodOptions{}, crihost.Container{Name: "app"}))(k.t)
	app := nettest.Must(pod.ContainerPID("app"))(k.t)
	k.d.counted(pod.ID, 1)
	k.is(pod.Containers["app"], "counted by its cgroup", func(c exporter.Container) bool { return c.Accounted && c.IP != nil })
	if err := pod.KillSandbox(); err != nil {
		k.t.Fatal(err)
	}
	k.is(pod.ID, "stopped", func(c exporter.Container) bool { return c.State == "stopped" })
	k.is(pod.Containers["app"], "the owner of its interface", func(c exporter.Container) bool {
		return c.Accounted && len(c.Interfaces) == 1
	})
	k.talk(nettest.Must(pod.Agent("app"))(k.t), outside, node.Address)
	k.is(pod.Containers["app"], "counted on", func(c exporter.Container) bool {
		before := interfaceCounters(nettest.Must(k.d.container(pod.ID))(k.t))
		kernel, got := nettest.Must(testnet.InterfaceCounters(app))(k.t)["eth0"], interfaceCounters(c)
		return c.State == "running" && c.IP.Transmit.Protocols.UDP.Packets == kindDatagrams &&
			c.Transmit.Protocols.UDP.Packets == kindDatagrams &&
			kernel == testnet.Counters{
				ReceiveBytes: before.ReceiveBytes + got.ReceiveBytes, ReceivePackets: before.ReceivePackets + got.ReceivePackets,
				TransmitBytes: before.TransmitBytes + got.TransmitBytes, TransmitPackets: before.TransmitPackets + got.TransmitPackets,
			}
	})
}

// plain runs containers by ctr, without a pod and without CRI.
func (k *kinds) plain(node *crihost.Host, outside *testnet.Agent) {
	k.t.Helper()
	byCNI := nettest.Must(node.RunPlain("cni", crihost.PlainCNI))(k.t)
	k.is(byCNI.ID, "counted", func(c exporter.Container) bool {
		return c.Accounted && c.Runtime == "containerd" && len(c.Interfaces) == 1
	})
	k.talk(nettest.Must(byCNI.Agent())(k.t), outside, node.Address)
	k.likeKernel(byCNI.ID, func() map[string]testnet.Counters { return nettest.Must(byCNI.NetDev())(k.t) })
	onHost := nettest.Must(node.RunPlain("host", crihost.PlainHost))(k.t)
	k.is(onHost.ID, "counted by its cgroup", func(c exporter.Container) bool { return c.Accounted && c.NetworkMode == "host" && c.IP != nil })
}

// Podman's containers and pods, which have names by podman's own socket.
func TestPodmanKinds(t *testing.T) {
	need.Root(t)
	t.Parallel()
	for name, v2 := range layouts {
		t.Run(name, func(t *testing.T) {
			podman := podmanhost.Start(t, podmanhost.Options{CgroupV2Only: v2})
			k := &kinds{t, startDaemon(t, podman, fmt.Sprintf("names: {docker: \"off\", podman: %q, cri: \"off\"}\nwatch: {include: [%q]}",
				"unix://"+podman.Service(), podman.CgroupParent+"/*"))}
			pod := podman.PodCreate("web")
			app, sidecar := podman.Run("--pod", pod, "--name", "app", podmanhost.Image), podman.Run("--pod", pod, "--name", "sidecar", podmanhost.Image)
			server := podman.Run("--name", "server", podmanhost.Image)
			onHost := podman.Run("--name", "agent", "--network", "host", podmanhost.Image)

			k.is(server, "counted", func(c exporter.Container) bool {
				return c.Accounted && len(c.Interfaces) == 1 && c.Name == "server" && c.Runtime == "podman"
			})
			for _, id := range []string{app, sidecar} {
				k.is(id, "counted by its cgroup", func(c exporter.Container) bool {
					return c.Accounted && len(c.Interfaces) == 0 && c.IP != nil && c.Pod == "web"
				})
			}
			k.talk(podman.Agent(app), podman.Agent(server), podman.IPv4(server, "eth0"))
			k.likeKernel(server, func() map[string]testnet.Counters { return podman.NetDev(server) })
			infra := podman.Infra(pod)
			k.likeKernel(infra, func() map[string]testnet.Counters { return podman.NetDev(app) })
			k.is(app, "told apart", func(c exporter.Container) bool {
				return c.IP.Transmit.Protocols.UDP.Packets == kindDatagrams && c.IP.Transmit.TCPSYN == 1
			})
			k.is(sidecar, "told apart", func(c exporter.Container) bool { return c.IP.Transmit.Protocols.UDP.Packets == 0 })
			k.is(onHost, "counted by its cgroup", func(c exporter.Container) bool {
				return c.Accounted && c.NetworkMode == "host" && c.IP != nil
			})
			k.slirp(podman)
		})
	}
}

// slirp has a container whose packets a program on the host carries, as for rootless users:
// what leads out is a tap device of its own. It has no segmentation offload.
func (k *kinds) slirp(podman *podmanhost.Podman) {
	k.t.Helper()
	id := podman.Run("--name", "slirp", "--network", "slirp4netns:allow_host_loopback=true", podmanhost.Image)
	k.is(id, "counted inside", func(c exporter.Container) bool {
		return c.Accounted && len(c.Interfaces) == 1 && c.Interfaces[0].Name == "tap0" && c.Interfaces[0].At == "container" && c.IP == nil
	})
	host, agent := nettest.Agent(k.t, podman.Namespace), podman.Agent(id)
	// What slirp4netns takes for the host's loopback.
	loopback, inside := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.2.2")
	udp := nettest.Must(host.Listen("udp", loopback))(k.t)
	tcp := nettest.Must(host.Listen("tcp", loopback))(k.t)
	const few = 50 // slirp4netns reads one by one
	if err := agent.SendUDP(netip.AddrPortFrom(inside, udp.Addr.Port()), few, 100); err != nil {
		k.t.Fatal(err)
	}
	if err := agent.SendTCP(netip.AddrPortFrom(inside, tcp.Addr.Port()), kindUpload, testnet.Write); err != nil {
		k.t.Fatal(err)
	}
	nettest.Must(udp.Received(few))(k.t)
	k.likeKernelBy(wire, id, func() map[string]testnet.Counters { return podman.NetDev(id) })
	k.is(id, "counted exactly", func(c exporter.Container) bool {
		want := exporter.Volume{Packets: few, Bytes: few * (14 + 20 + 8 + 100)}
		return c.Transmit.Protocols.UDP == want && c.Transmit.TCPSYN == 1 && c.Transmit.Protocols.TCP.Bytes > kindUpload
	})
}

// A container of a Docker in a container: the innermost id is its own, the one around it is
// named, and what it sends is counted by its cgroup, and on the interface of the other one.
func TestNestedDocker(t *testing.T) {
	need.Root(t)
	t.Parallel()
	for name, v2 := range layouts {
		t.Run(name, func(t *testing.T) { testNested(t, v2) })
	}
}

func testNested(t *testing.T, v2 bool) {
	t.Helper()
	docker := dockerhost.Start(t, dockerhost.Options{CgroupV2Only: v2})
	k := &kinds{t, startDaemon(t, docker, onlyDocker(docker))}
	nested := docker.StartNested()
	k.d.counted(nested.Outer, 1)
	inner := nested.Run(dockerhost.Image)
	k.is(inner, "known by its innermost id", func(c exporter.Container) bool {
		return c.Accounted && c.ParentID == nested.Outer && c.IP != nil && len(c.Interfaces) == 0
	})
	peer := docker.Run(dockerhost.Image)
	k.talk(nested.Agent(inner), docker.Agent(peer), docker.IPv4(peer, "eth0"))
	k.is(inner, "counted by its cgroup", func(c exporter.Container) bool {
		return c.IP.Transmit.Protocols.UDP == exporter.Volume{Packets: kindDatagrams, Bytes: kindDatagrams * (20 + 8 + 100)} && c.IP.Transmit.TCPSYN == 1
	})
	next := nested.Run(dockerhost.Image)
	k.is(next, "found, too", func(c exporter.Container) bool { return c.ParentID == nested.Outer && c.IP != nil })
	if err := nested.Agent(next).SendUDP(netip.AddrPortFrom(docker.IPv4(peer, "eth0"), 9), 77, 100); err != nil {
		k.t.Fatal(err)
	}
	k.is(next, "counted by its cgroup", func(c exporter.Container) bool { return c.IP.Transmit.Protocols.UDP.Packets == 77 })
	k.is(nested.Outer, "counted on its interface", func(c exporter.Container) bool {
		return c.Transmit.Protocols.UDP.Packets >= kindDatagrams && c.Transmit.Protocols.TCP.Bytes > kindUpload
	})
	eth0 := func() map[string]testnet.Counters {
		return map[string]testnet.Counters{"eth0": docker.NetDev(nested.Outer)["eth0"]}
	}
	k.likeKernel(nested.Outer, eth0)
}
