// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// ourHandle is the handle of nettally's filters, as `tc filter show` has it.
const ourHandle = 0x6e74

// Whatever somebody does to our filters on a container's interface, the self-check notices
// and puts them back, and adds what passed meanwhile from the kernel's own counters.
func TestMended(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "tc")
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startDaemon(t, docker, onlyDocker(docker))
	for _, damage := range []struct {
		name string
		hook string // on which it is counted afterwards
		do   func(t *testing.T, host *testnet.Namespace, veth netlink.Link)
	}{
		{"egress filter deleted", "clsact", tc("filter del dev %s egress pref 2 protocol all handle 0x6e74 bpf")},
		{"ingress filter deleted", "clsact", tc("filter del dev %s ingress pref 2 protocol all handle 0x6e74 bpf")},
		{"qdisc deleted", "clsact", tc("qdisc del dev %s clsact")},
		{"hook cleared", "clsact", tc("filter del dev %s ingress")},
		{"filter replaced", "tcx", func(t *testing.T, host *testnet.Namespace, veth netlink.Link) {
			f := newForeign(t, unspec)
			f.replace(host, f.filter(veth, netlink.HANDLE_MIN_INGRESS, ourHandle, 2))
		}},
	} {
		t.Run(damage.name, func(t *testing.T) {
			w := startWatched(t, docker, d)
			// Nothing else is under way when it happens, so the packets that are not seen must be
			// there to the byte, in both directions.
			before, began := w.metric("nettally_reattach_total"), time.Now()
			damage.do(t, docker.Namespace, w.veth())
			w.talk.send(250)
			w.mended(before, began, damage.hook)
			w.likeKernel()
			w.burst(300)
			w.await("said that packets were missed", func() error {
				// By the self-check, each second, of the interfaces that are there.
				if ratio := w.metric("nettally_completeness_ratio"); ratio >= 1 || ratio < 0.1 {
					return fmt.Errorf("nettally_completeness_ratio is %v", ratio)
				}
				return nil
			})
			if damage.hook != "clsact" {
				return // on tcx it is out of reach
			}

			// Under traffic, in which nobody can look at all counters at the same moment.
			w.talk.start()
			w.await("counted", func() error { return w.moved(1000) })
			before, began = w.metric("nettally_reattach_total"), time.Now()
			damage.do(t, docker.Namespace, w.veth())
			w.mended(before, began, damage.hook)
			w.stopTalk()
			w.bounded()
			w.burst(300)
		})
	}
	for key, want := range map[string]float64{"nettally_attachment_shadowed": 0, `nettally_uncounted_packets_total{cause="no_row"}`: 0, `nettally_uncounted_packets_total{cause="no_slot"}`: 0} {
		if got := d.metric(key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
}

// tc returns what runs tc with an interface's name in its arguments.
func tc(arguments string) func(*testing.T, *testnet.Namespace, netlink.Link) {
	return func(t *testing.T, host *testnet.Namespace, veth netlink.Link) {
		t.Helper()
		nettest.Must(host.Run("tc", strings.Fields(fmt.Sprintf(arguments, veth.Attrs().Name))...))(t)
	}
}

// watched is a container whose counting is disturbed, and one that it talks with.
type watched struct {
	*daemon
	t      *testing.T
	docker *dockerhost.Docker
	id     string
	talk   *talk

	dropped uint64 // by the kernel, on its host veth
}

func startWatched(t *testing.T, docker *dockerhost.Docker, d *daemon) *watched {
	t.Helper()
	w := &watched{daemon: d, t: t, docker: docker, id: docker.Run(dockerhost.Image)}
	other := docker.Run(dockerhost.Image)
	t.Cleanup(func() { docker.Remove(w.id); docker.Remove(other) })
	d.counted(w.id, 1)
	d.counted(other, 1)
	w.talk = newTalk(t, docker, w.id, other)
	return w
}

func (w *watched) veth() netlink.Link {
	w.t.Helper()
	return nettest.Must(w.docker.Namespace.LinkByName(w.docker.HostVeth(w.id, "eth0")))(w.t)
}

// await is poll with the subtest's own end.
func (w *watched) await(what string, try func() error) {
	w.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	w.t.Fatalf("never %s: %v", what, err)
}

// stopTalk is talk.stop where packets may have been dropped: the kernel lets none through an
// interface for the moment in which it takes a qdisc off, and counts those that come.
func (w *watched) stopTalk() {
	w.t.Helper()
	w.talk.halt()
	dropped := w.veth().Attrs().Statistics.TxDropped
	w.talk.sent[0] -= int(dropped - w.dropped)
	w.dropped = dropped
	w.talk.arrived()
}

// moved says whether so many packets have been counted, each way.
func (w *watched) moved(packets uint64) error {
	c, err := w.container(w.id)
	if err == nil && (c.Receive.Packets < packets || c.Transmit.Packets < packets) {
		err = fmt.Errorf("received %d, transmitted %d of %d packets", c.Receive.Packets, c.Transmit.Packets, packets)
	}
	return err
}

// mended waits until our programs have been put back, and the container is counted again
// on a hook.
func (w *watched) mended(before float64, since time.Time, hook string) {
	w.t.Helper()
	w.await("mended", func() error {
		if now := w.metric("nettally_reattach_total"); now <= before {
			return fmt.Errorf("nettally_reattach_total is %v", now)
		}
		c, err := w.container(w.id)
		if err == nil && (!c.Accounted || c.Interfaces[0].Hook != hook || c.Interfaces[0].Reason != "") {
			err = fmt.Errorf("accounted %v (%s), on %s", c.Accounted, c.Reason, c.Interfaces[0].Hook)
		}
		return err
	})
	w.t.Logf("mended %v after the damage", time.Since(since).Round(time.Millisecond))
}

// burst sends an exact number of packets each way, which must be counted exactly.
func (w *watched) burst(packets int) {
	w.t.Helper()
	before := nettest.Must(w.container(w.id))(w.t)
	w.talk.send(packets)
	want := exporter.Volume{Packets: uint64(packets), Bytes: uint64(packets) * datagram}
	w.await("counted exactly", func() error {
		after, err := w.container(w.id)
		if err != nil {
			return err
		}
		for direction, was := range map[string][2]exporter.Volume{
			"received":    {before.Receive.Protocols.UDP, after.Receive.Protocols.UDP},
			"transmitted": {before.Transmit.Protocols.UDP, after.Transmit.Protocols.UDP},
		} {
			got := exporter.Volume{Packets: was[1].Packets - was[0].Packets, Bytes: was[1].Bytes - was[0].Bytes}
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("%s (-sent +counted):\n%s", direction, diff)
			}
		}
		return nil
	})
}

// difference is what the kernel's counters have more than ours, of interface numbers.
func (w *watched) difference() (kernel testnet.Counters, lack [4]int64) {
	w.t.Helper()
	kernel = w.docker.NetDev(w.id)["eth0"]
	c := nettest.Must(w.container(w.id))(w.t)
	return kernel, [4]int64{
		int64(kernel.ReceiveBytes - c.Receive.InterfaceBytes), int64(kernel.ReceivePackets - c.Receive.InterfacePackets),
		int64(kernel.TransmitBytes - c.Transmit.InterfaceBytes), int64(kernel.TransmitPackets - c.Transmit.InterfacePackets),
	}
}

// likeKernel expects the container's interface numbers to be the kernel's.
func (w *watched) likeKernel() {
	w.t.Helper()
	w.await("like the kernel's counters", func() error {
		if kernel, lack := w.difference(); lack != [4]int64{} {
			return fmt.Errorf("of the kernel's %+v, we lack %v", kernel, lack)
		}
		return nil
	})
}

// bounded expects the container's numbers to be the kernel's, but for the packets that were
// on their way when our filters were put back: those may be missing, and none may be
// counted twice. What the kernel drops behind our hook it has not counted.
func (w *watched) bounded() {
	w.t.Helper()
	const few = 5 * together
	dropped := int64(w.dropped)
	w.await("like the kernel's counters but for a few packets", func() error {
		kernel, lack := w.difference()
		for i, n := range lack {
			if n < -dropped*[]int64{datagram, 1, 0, 0}[i] {
				return fmt.Errorf("of the kernel's %+v, we lack %v: more than the kernel has seen", kernel, lack)
			}
		}
		if lack[1] > few || lack[3] > few {
			return fmt.Errorf("of the kernel's %+v, we lack %v: these are not those few that were on their way", kernel, lack)
		}
		w.t.Logf("of the kernel's %+v, we lack %v", kernel, lack)
		return nil
	})
}

// metric returns the value of a metric of nettally's own.
func (d *daemon) metric(name string) float64 {
	d.t.Helper()
	found := nettest.Must(parse(nettest.Must(d.get("/metrics"))(d.t)))(d.t)
	value, ok := found[name]
	if !ok {
		d.t.Fatalf("no metric %s", name)
	}
	return value
}

// together is how many datagrams a talk sends at once.
const together = 20

// payload is the size of a datagram of a talk, and datagram is its size on the interface.
const (
	payload  = 100
	datagram = 14 + 20 + 8 + payload
)

// talk is two containers that send each other datagrams.
type talk struct {
	t      *testing.T
	agents [2]*testnet.Agent
	sinks  [2]*testnet.Sink
	sent   [2]int // to each sink
	quit   chan struct{}
	group  sync.WaitGroup
	failed [2]error
}

func newTalk(t *testing.T, docker *dockerhost.Docker, a, b string) *talk {
	t.Helper()
	x := &talk{t: t}
	for i, id := range []string{a, b} {
		x.agents[i] = docker.Agent(id)
		x.sinks[i] = nettest.Must(x.agents[i].Listen("udp", docker.IPv4(id, "eth0")))(t)
	}
	x.send(1) // each knows the other's address now
	return x
}

// start begins to send each way, some thousand packets a second, until stop.
func (x *talk) start() {
	x.quit = make(chan struct{})
	for i := range x.agents {
		x.group.Go(func() {
			for x.failed[i] == nil {
				select {
				case <-x.quit:
					return
				case <-time.After(5 * time.Millisecond):
				}
				x.failed[i] = x.sendFrom(i, together)
			}
		})
	}
}

// stop returns when all that was sent has arrived.
func (x *talk) stop() {
	x.t.Helper()
	x.halt()
	x.arrived()
}

// halt returns when all has been sent.
func (x *talk) halt() {
	x.t.Helper()
	close(x.quit)
	x.group.Wait()
	if err := errors.Join(x.failed[:]...); err != nil {
		x.t.Fatal(err)
	}
}

// send sends so many packets each way, and returns when they have arrived.
func (x *talk) send(packets int) {
	x.t.Helper()
	for i := range x.agents {
		if err := x.sendFrom(i, packets); err != nil {
			x.t.Fatal(err)
		}
	}
	x.arrived()
}

func (x *talk) sendFrom(i, packets int) error {
	to := 1 - i
	x.sent[to] += packets
	return x.agents[i].SendUDP(x.sinks[to].Addr, packets, payload)
}

func (x *talk) arrived() {
	x.t.Helper()
	for i, sink := range x.sinks {
		nettest.Must(sink.Received(x.sent[i]))(x.t)
	}
}

// Verdicts of programs: linux/pkt_cls.h, and enum tcx_action_base of linux/bpf.h.
const (
	unspec = -1 // TC_ACT_UNSPEC and TCX_NEXT: who comes next decides
	okay   = 0  // TC_ACT_OK and TCX_PASS: nobody else is asked
)

// foreign is somebody else's program, which counts the packets that it sees and gives one
// verdict for all.
type foreign struct {
	t       *testing.T
	program *ebpf.Program
	count   *ebpf.Map
}

func newForeign(t *testing.T, verdict int32) *foreign {
	t.Helper()
	count := nettest.Must(ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}))(t)
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:    "foreign",
		Type:    ebpf.SchedCLS,
		License: "MIT",
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, count.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, verdict),
			asm.Return(),
		},
	}))(t)
	t.Cleanup(func() { program.Close(); count.Close() })
	return &foreign{t: t, program: program, count: count}
}

func (f *foreign) filter(on netlink.Link, hook uint32, handle uint32, priority uint16) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: on.Attrs().Index, Parent: hook, Handle: handle, Priority: priority, Protocol: unix.ETH_P_ALL,
		},
		Fd: f.program.FD(), Name: "foreign", DirectAction: true,
	}
}

func (f *foreign) replace(host *testnet.Namespace, filter *netlink.BpfFilter) {
	f.t.Helper()
	if err := host.FilterReplace(filter); err != nil {
		f.t.Fatal(err)
	}
}

// tcx puts the program at the head of a tcx hook, until the link is closed.
func (f *foreign) tcx(host *testnet.Namespace, on netlink.Link, hook ebpf.AttachType) (l link.Link) {
	f.t.Helper()
	err := host.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{
			Interface: on.Attrs().Index, Program: f.program, Attach: hook, Anchor: link.Head(),
		})
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
	return l
}

func (f *foreign) seen() uint64 {
	f.t.Helper()
	var count uint64
	if err := f.count.Lookup(uint32(0), &count); err != nil {
		f.t.Fatal(err)
	}
	return count
}
