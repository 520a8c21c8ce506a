// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// sentByIP waits until a container's sockets are seen to have sent so many datagrams of 100
// bytes, and received none.
func (r *rig) sentByIP(id string, packets uint64) {
	r.t.Helper()
	r.wait(id, fmt.Sprintf("seen to send %d packets by IP", packets), func(c usage.Container) bool {
		return c.Accounted() && c.IP != nil && c.IP.Receive.Wire().Packets == 0 &&
			c.IP.Transmit.Protocol(usage.ProtocolUDP) == usage.Volume{Packets: packets, Bytes: packets * (20 + 8 + 100)}
	})
}

func (r *rig) withoutIP(id string) {
	r.t.Helper()
	r.wait(id, "told without ip", func(c usage.Container) bool { return c.Reason != usage.Starting && c.IP == nil })
}

func (r *rig) setCgroup(mode CgroupMode) {
	r.cgroup.Store(&mode)
	r.reload()
}

// Containers that no interface tells apart are counted by their cgroups from their first
// packet, others are not; a container begins to be when another one joins it. So it stays
// over a crash, and nothing is left when they have ended.
func TestCgroups(t *testing.T) {
	need.Root(t)
	pins := filepath.Join(nettest.BPFFS(t), "nettally")
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	r := startCounting(t, host, pins, CgroupAuto)
	if r.unified == "" {
		need.Kernel(t, "cgroup2", os.ErrNotExist)
	}
	owner := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(owner.ID, 1)
	upload(t, owner, peer, owner.Interfaces[0], 1)
	r.withoutIP(owner.ID)

	sharing := nettest.Container(t, host, testnet.ContainerOptions{Join: owner.Namespace})
	r.attachedTo(sharing)
	upload(t, sharing, peer, owner.Interfaces[0], 20)
	r.sentByIP(sharing.ID, 20)
	r.sentByIP(owner.ID, 0)
	upload(t, owner, peer, owner.Interfaces[0], 3)
	r.sentByIP(owner.ID, 3)
	r.sent(owner.ID, 24)

	// Two on the host's network, one of which ends before it is known to stay there.
	far := nettest.Container(t, host, testnet.ContainerOptions{})
	sink := nettest.Must(far.Listen("udp", far.Interfaces[0].IPv4))(t)
	onHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	short := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	for c, count := range map[*testnet.Container]int{onHost: 40, short: 50} {
		r.attachedTo(c)
		if err := c.SendUDP(sink.Addr, count, 100); err != nil {
			t.Fatal(err)
		}
	}
	if err := short.Close(); err != nil {
		t.Fatal(err)
	}
	r.wait(short.ID, "stopped", func(c usage.Container) bool { return c.State == usage.Stopped })
	r.sentByIP(short.ID, 50)
	r.sentByIP(onHost.ID, 40)

	r.stop()
	if err := onHost.SendUDP(sink.Addr, 5, 100); err != nil {
		t.Fatal(err)
	}
	upload(t, sharing, peer, owner.Interfaces[0], 7)
	r = startCounting(t, host, pins, CgroupAuto)
	r.sentByIP(onHost.ID, 45)
	r.sentByIP(sharing.ID, 27)
	r.sentByIP(owner.ID, 3)

	for _, c := range []*testnet.Container{onHost, sharing, owner, far} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		r.wait(c.ID, "stopped", func(c usage.Container) bool { return c.State == usage.Stopped })
	}
	r.sentByIP(sharing.ID, 27)
	if ids := nettest.Must(r.control.Cgroups.IDs())(t); len(ids) > 0 {
		t.Errorf("pins of cgroups %d are left", ids)
	}
	r.stop()
	if err := bpf.Unpin(pins); err != nil {
		t.Error(err)
	}
}

// The setting is followed while nettally runs, and what was told stays.
func TestCgroupMode(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	r := startCounting(t, host, "", CgroupOff)
	alone := nettest.Container(t, host, testnet.ContainerOptions{})
	onHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	r.waitCounted(alone.ID, 1)
	r.waitReason(onHost.ID, usage.HostNetwork)
	r.withoutIP(onHost.ID)

	r.setCgroup(CgroupAll)
	r.sentByIP(alone.ID, 0)
	r.sentByIP(onHost.ID, 0)
	upload(t, alone, peer, alone.Interfaces[0], 10)
	r.sentByIP(alone.ID, 10)

	r.setCgroup(CgroupAuto)
	r.wait(alone.ID, "not counted by its cgroup", func(c usage.Container) bool {
		return c.IP != nil && c.IP.Transmit.Wire().Packets == 10 && r.attachedCgroups() == 1
	})
	upload(t, alone, peer, alone.Interfaces[0], 10)
	r.setCgroup(CgroupAll)
	r.attachedTo(alone)
	upload(t, alone, peer, alone.Interfaces[0], 1)
	r.sentByIP(alone.ID, 11)

	r.setCgroup(CgroupOff)
	r.wait(onHost.ID, "not counted, nor any other", func(c usage.Container) bool {
		return c.Reason == usage.HostNetwork && r.attachedCgroups() == 0
	})
}

// attachedTo waits until our programs are on a container's cgroup, which the agents here are
// in before they are told to send.
func (r *rig) attachedTo(c *testnet.Container) {
	r.t.Helper()
	id := nettest.Must(cgroupctl.New(cgroupctl.Options{Root: r.unified}).ID(c.Cgroup))(r.t)
	r.wait(c.ID, "counted by its cgroup", func(usage.Container) bool {
		on, err := r.control.Cgroups.Attached(id)
		return on && err == nil
	})
}

func (r *rig) attachedCgroups() int { return r.accounts.Snapshot().Cgroups }

// Programs that somebody takes off a cgroup are put back.
func TestCgroupMended(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	far := nettest.Container(t, host, testnet.ContainerOptions{})
	sink := nettest.Must(far.Listen("udp", far.Interfaces[0].IPv4))(t)
	r := startCounting(t, host, "", CgroupAuto)
	onHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	r.sentByIP(onHost.ID, 0)
	id := nettest.Must(cgroupctl.New(cgroupctl.Options{Root: r.unified}).ID(onHost.Cgroup))(t)
	pinned := nettest.Must(link.LoadPinnedLink(filepath.Join(r.pins, fmt.Sprint(id, "-egress")), nil))(t)
	if err := pinned.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := pinned.Close(); err != nil {
		t.Fatal(err)
	}
	r.reload()
	r.attachedTo(onHost)
	if err := onHost.SendUDP(sink.Addr, 10, 100); err != nil {
		t.Fatal(err)
	}
	r.sentByIP(onHost.ID, 10)
}

// Another's program on a cgroup above allows none beside it. Its containers that only their
// cgroups tell say so, others are counted as ever; the log says it once, and what is in the
// way. When that is gone they are counted.
func TestCgroupTaken(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	far := nettest.Container(t, host, testnet.ContainerOptions{})
	sink := nettest.Must(far.Listen("udp", far.Interfaces[0].IPv4))(t)
	var log strings.Builder
	r := startWith(t, host, "", CgroupAuto, (*watcher.Watcher).Run, func(c *Controller) {
		c.Log = slog.New(noBugs{slog.NewTextHandler(&log, nil), t})
	})
	if r.unified == "" {
		need.Kernel(t, "cgroup2", os.ErrNotExist)
	}
	slice := fmt.Sprintf("/nettally-testnet-%d/fenced", os.Getpid())
	below := func(id string) string { return slice + "/" + strings.Repeat(id, 64) }
	first := nettest.Container(t, host, testnet.ContainerOptions{ID: strings.Repeat("a", 64), Cgroup: below("a")})
	fence := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fence", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(t)
	defer fence.Close()
	dir := nettest.Must(os.Open(filepath.Join(r.unified, slice)))(t)
	defer dir.Close()
	must(t, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: fence, Attach: ebpf.AttachCGroupInetEgress}))

	var onHost []*testnet.Container
	for _, id := range []string{"b", "c"} {
		c := nettest.Container(t, host, testnet.ContainerOptions{ID: strings.Repeat(id, 64), Cgroup: below(id), Join: host})
		r.waitReason(c.ID, usage.CgroupTaken)
		onHost = append(onHost, c)
	}
	own := nettest.Container(t, host, testnet.ContainerOptions{ID: strings.Repeat("d", 64), Cgroup: below("d")})
	r.waitCounted(own.ID, 1)
	r.waitCounted(first.ID, 1)
	for _, c := range onHost {
		for _, hook := range []ebpf.AttachType{ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress} {
			at := nettest.Must(os.Open(filepath.Join(r.unified, c.Cgroup)))(t)
			on := nettest.Must(link.QueryPrograms(link.QueryOptions{Target: int(at.Fd()), Attach: hook}))(t)
			if len(on.Programs) > 0 {
				t.Errorf("half attached: %d programs on %v", len(on.Programs), hook)
			}
			must(t, at.Close())
		}
	}
	r.reload()
	must(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: fence, Attach: ebpf.AttachCGroupInetEgress}))
	r.reload()
	for _, c := range onHost {
		r.attachedTo(c)
		must(t, c.SendUDP(sink.Addr, 10, 100))
		r.sentByIP(c.ID, 10)
	}

	// A firewall that comes later has its effect, which beside ours it would not have.
	firewall := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "firewall", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}))(t)
	defer firewall.Close()
	must(t, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: firewall, Attach: ebpf.AttachCGroupInetEgress}))
	r.reload()
	for _, c := range onHost {
		r.waitReason(c.ID, usage.CgroupTaken)
		if err := c.SendUDP(sink.Addr, 1, 100); err == nil {
			t.Error("a packet passed the firewall")
		}
		if u := r.wait(c.ID, "with what it sent before", func(u usage.Container) bool { return u.IP != nil }); u.IP.Transmit.Wire().Packets != 10 {
			t.Errorf("it has sent %+v", u.IP.Transmit)
		}
	}
	r.stop()
	if !strings.Contains(log.String(), "cgroup="+slice+" program=firewall") {
		t.Errorf("the log does not name the firewall:\n%s", log.String())
	}
	if said := strings.Count(log.String(), "level=ERROR"); said != 2 || !strings.Contains(log.String(), "cgroup="+slice+" program=fence") {
		t.Errorf("%d errors in the log, want one for each program, that name %s:\n%s", said, slice, log.String())
	}
}
