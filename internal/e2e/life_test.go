// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A container that ran before, one that comes, a second interface, a restart, the end:
// each packet is its own, in its own direction. The same on a host with cgroup v1
// beside v2, and on one with v2 alone.
func TestDockerLife(t *testing.T) {
	t.Parallel()
	need.Root(t)
	for name, v2 := range map[string]bool{"machine's cgroups": false, "cgroup v2": true} {
		t.Run(name, func(t *testing.T) {
			docker := dockerhost.Start(t, dockerhost.Options{CgroupV2Only: v2})
			docker.NetworkCreate("second", "--subnet", "10.233.0.0/24")
			early := docker.Run("--name", "early", dockerhost.Image)
			d := startDaemon(t, docker, onlyDocker(docker))
			d.counted(early, 1)
			late := docker.Run("--name", "late", dockerhost.Image)
			d.counted(late, 1)
			l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}

			l.exchange(early, late, "eth0", 200)
			docker.NetworkConnect("second", late)
			docker.NetworkConnect("second", early)
			d.counted(late, 2)
			d.counted(early, 2)
			l.exchange(late, early, "eth1", 100)

			docker.Restart(late)
			l.d.counted(late, 2)
			l.exchange(late, early, "eth1", 50)
			c := nettest.Must(d.container(late))(t)
			if c.Name != "late" || c.Runtime != "docker" || c.Image != dockerhost.Image || c.NetworkMode != "bridge" {
				t.Errorf("late is %s, %s, %s, %s", c.Name, c.Runtime, c.Image, c.NetworkMode)
			}

			docker.CLI("stop", "--time", "0", late)
			d.poll("stopped", func() error {
				if c := nettest.Must(d.container(late))(t); c.State != "stopped" || c.StoppedAt == nil {
					return fmt.Errorf("late is %s", c.State)
				}
				return nil
			})
			l.check(early)
			l.check(late)
		})
	}
}

// life keeps account of the UDP packets that containers sent each other.
type life struct {
	t      *testing.T
	docker *dockerhost.Docker
	d      *daemon
	sent   map[string]uint64 // by container and direction
}

// exchange sends datagrams from one container to another's interface, and checks both.
func (l *life) exchange(from, to, iface string, count int) {
	l.t.Helper()
	l.send(from, to, iface, count)
	l.check(from)
	l.check(to)
}

func (l *life) send(from, to, iface string, count int) {
	l.t.Helper()
	sink := nettest.Must(l.docker.Agent(to).Listen("udp", l.docker.IPv4(to, iface)))(l.t)
	if err := l.docker.Agent(from).SendUDP(sink.Addr, count, 100); err != nil {
		l.t.Fatal(err)
	}
	nettest.Must(sink.Received(count))(l.t)
	l.sent[from+"transmit"] += uint64(count)
	l.sent[to+"receive"] += uint64(count)
}

func (l *life) check(id string) {
	l.t.Helper()
	l.d.poll("counted with what it sent", func() error { // its last interface may be given to it just now
		c, err := l.d.container(id)
		if err != nil {
			return err
		}
		for direction, got := range map[string]exporter.Counts{"receive": c.Receive, "transmit": c.Transmit} {
			packets := l.sent[id+direction]
			want := exporter.Volume{Packets: packets, Bytes: packets * (14 + 20 + 8 + 100)}
			if diff := cmp.Diff(want, got.Protocols.UDP); diff != "" {
				return fmt.Errorf("%s: %s of UDP (-want +got):\n%s", c.Name, direction, diff)
			}
		}
		return nil
	})
}

// Containers that have no interface of their own say so.
func TestDockerReasons(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startDaemon(t, docker, onlyDocker(docker)+"\naccounting: {cgroup: off}")
	owner := docker.Run("--name", "owner", dockerhost.Image)
	d.counted(owner, 1)
	for name, want := range map[string]string{"container:owner": "shared_network", "host": "host_network", "none": "no_host_veth"} {
		id := docker.Run("--network", name, dockerhost.Image)
		d.poll(want, func() error {
			c, err := d.container(id)
			if err == nil && (c.Accounted || c.Reason != want || len(c.Interfaces) != 0) {
				err = fmt.Errorf("--network %s: accounted %v, reason %s", name, c.Accounted, c.Reason)
			}
			return err
		})
	}
}

// Filters of others before and after ours see every packet, and detach leaves the host as
// it was before the first run.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "tc")
	docker := dockerhost.Start(t, dockerhost.Options{})
	id := docker.Run(dockerhost.Image)
	veth := nettest.Must(docker.Namespace.LinkByName(docker.HostVeth(id, "eth0")))(t)
	nettest.Must(docker.Namespace.Run("tc", "qdisc", "add", "dev", veth.Attrs().Name, "clsact"))(t)
	var neighbours []*neighbour
	for _, priority := range []uint16{1, 7} {
		for _, hook := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			neighbours = append(neighbours, newNeighbour(t, docker.Namespace, veth, hook, priority))
		}
	}
	bare := docker.Run(dockerhost.Image) // its qdisc is ours to make and to remove
	scope := nettest.Scope{
		Namespaces: map[string]*testnet.Namespace{"host": docker.Namespace},
		Cgroups:    []string{docker.CgroupParent},
	}
	before := nettest.TakeSnapshot(t, scope)
	d := startDaemon(t, docker, onlyDocker(docker))
	d.counted(id, 1)
	d.counted(bare, 1)

	l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}
	l.exchange(id, bare, "eth0", 100)
	l.exchange(bare, id, "eth0", 100)
	for _, n := range neighbours {
		if seen := n.seen(t); seen != 100 {
			t.Errorf("the neighbour on %x at priority %d saw %d packets, want 100", n.hook, n.priority, seen)
		}
	}

	d.stop()
	if during := nettest.TakeSnapshot(t, scope); cmp.Equal(before, during) {
		t.Error("a stopped daemon leaves its filters, but the snapshot shows none")
	}
	nettest.Must(d.run("detach"))(t)
	if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
		t.Errorf("after detach (-before +after):\n%s", diff)
	}
}

// neighbour is somebody else's filter, which counts UDP over IPv4.
type neighbour struct {
	hook     uint32
	priority uint16
	count    *ebpf.Map
}

func newNeighbour(t *testing.T, host *testnet.Namespace, link netlink.Link, hook uint32, priority uint16) *neighbour {
	t.Helper()
	count := nettest.Must(ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}))(t)
	t.Cleanup(func() { count.Close() })
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SchedCLS,
		License: "MIT",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1), // where LoadAbs looks for the packet
			asm.LoadAbs(14+9, asm.Byte), // the IPv4 header's protocol
			asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "end"),
			asm.LoadMapValue(asm.R1, count.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("end"), // TC_ACT_UNSPEC
			asm.Return(),
		},
	}))(t)
	defer program.Close()
	err := host.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index,
			Parent:    hook,
			Handle:    1,
			Priority:  priority,
			Protocol:  unix.ETH_P_IP,
		},
		Fd:           program.FD(),
		Name:         "neighbour",
		DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &neighbour{hook: hook, priority: priority, count: count}
}

func (n *neighbour) seen(t *testing.T) uint64 {
	t.Helper()
	var count uint64
	if err := n.count.Lookup(uint32(0), &count); err != nil {
		t.Fatal(err)
	}
	return count
}

// The kernel counts on while nettally is killed, and the next run goes on.
func TestKilled(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	a, b := docker.Run(dockerhost.Image), docker.Run(dockerhost.Image)
	d := startDaemon(t, docker, onlyDocker(docker))
	l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}
	for range 3 {
		d.counted(a, 1)
		d.counted(b, 1)
		l.exchange(a, b, "eth0", 100)
		d.kill()
		l.send(b, a, "eth0", 50)
		d.start()
	}
	d.counted(a, 1)
	d.counted(b, 1)
	l.check(a)
	l.check(b)
}
