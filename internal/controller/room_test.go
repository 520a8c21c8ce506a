// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// aged makes an interface as old as it has to be, and its look at packets with it.
func (k *kernel) aged(index int) {
	v := k.Controller.veths.known[index]
	v.since = v.since.Add(-usualRoom.age)
	if !v.still.since.IsZero() {
		v.still.since = v.still.since.Add(-usualRoom.still)
	}
}

// An interface moves to tcx once it has been counted for a while and receives next to nothing:
// not before, not while packets come, not to make room that another's qdisc takes, and one
// after the other.
func TestMakeRoom(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(k *kernel)
		arrive  uint64
		want    string
	}{
		"still":            {func(k *kernel) { k.aged(7) }, 10, HookTCX},
		"young":            {func(*kernel) {}, 0, HookClsact},
		"at work":          {func(k *kernel) { k.aged(7) }, 11, HookClsact},
		"one a moment ago": {func(k *kernel) { k.aged(7); k.Controller.veths.roomed = time.Now() }, 0, HookClsact},
		"clsact is wanted": {func(k *kernel) { k.aged(7); k.mode = ModeClsact }, 0, HookClsact},
		"no tcx":           {func(k *kernel) { k.aged(7); k.TCX = false }, 0, HookClsact},
		"another's qdisc":  {func(k *kernel) { k.aged(7); must(k.t, k.Accounts.DisownQdisc(usage.OnHost(7))) }, 0, HookClsact},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			k.counters[7] = watcher.LinkCounters{}
			k.veth(7, 3)
			k.check()
			test.prepare(k)
			k.check()
			v := k.Controller.veths.known[7]
			v.still.since = v.still.since.Add(-usualRoom.still)
			k.passes(7, true, test.arrive, 500)
			k.check()
			k.finish()
			if v.hook != test.want {
				t.Errorf("on %s, want %s", v.hook, test.want)
			}
		})
	}
}

// A move that fails leaves the interface on clsact, and is tried again as late as the first.
func TestMakeRoomFails(t *testing.T) {
	k := newKernel(t)
	k.counters[7] = watcher.LinkCounters{}
	k.veth(7, 3)
	k.check()
	try := func() string {
		for range 3 {
			k.aged(7)
			k.check()
		}
		k.finish()
		k.Relist()
		k.finish()
		k.Controller.veths.roomed = time.Time{}
		return k.Controller.veths.known[7].hook
	}
	k.fails["attach tcx 7"] = errInjected
	if hook := try(); hook != HookClsact {
		t.Errorf("on %s", hook)
	}
	if v := k.Controller.veths.known[7]; v.why != noReason || time.Since(v.since) > time.Minute/2 {
		t.Errorf("it is tried again at once: why %v, since %v", v.why, v.since)
	}
	clear(k.fails)
	if hook := try(); hook != HookTCX {
		t.Errorf("on %s", hook)
	}
}

// Calico's interfaces are on tcx from their first moment, others not.
func TestCalico(t *testing.T) {
	k := newKernel(t)
	for index, name := range map[int]string{7: "cali12ab34cd56e", 8: "veth7"} {
		k.counters[index] = watcher.LinkCounters{}
		k.veths = append(k.veths, watcher.HostVeth{Index: index, Name: name, PeerIndex: 2, NetNSID: index})
	}
	for _, v := range k.veths {
		k.Link(watcher.HostVethSeen{HostVeth: v, SeenAt: time.Now()})
	}
	k.finish()
	if k.filters[7] != 0 || !k.tcx[7] || k.filters[8] == 0 || k.tcx[8] {
		t.Errorf("filters %v, tcx %v", k.filters, k.tcx)
	}
	for _, call := range k.calls {
		if strings.HasPrefix(call, "attach clsact 7") {
			t.Errorf("clsact was on Calico's interface: %v", k.calls)
		}
	}
}

// A veth whose both ends stay in the host is let go, and is counted when its other end moves.
func TestLeadsNowhere(t *testing.T) {
	k := newKernel(t)
	k.counters[7] = watcher.LinkCounters{}
	k.veth(7, -1)
	k.passes(7, true, 20, 20)
	k.check()
	there := func(want bool) {
		t.Helper()
		k.finish()
		if (k.filters[7] != 0) != want || len(k.Accounts.Snapshot().Unowned) > 0 != want {
			t.Fatalf("filters %v, unowned %+v, want %v", k.filters, k.Accounts.Snapshot().Unowned, want)
		}
	}
	there(true)
	k.Controller.veths.known[7].since = time.Now().Add(-hereFor)
	k.fails["detach clsact 7 qdisc true"] = errInjected
	k.check()
	there(true)
	clear(k.fails)
	k.Controller.veths.known[7].since = time.Now().Add(-hereFor)
	k.check()
	there(false)
	k.Relist()
	k.check()
	there(false)
	if len(k.slots) > 0 {
		t.Errorf("slots are left: %v", k.slots)
	}

	k.veths[0].NetNSID = 3
	k.Link(watcher.HostVethSeen{HostVeth: k.veths[0], SeenAt: time.Now()})
	there(true)
	k.check()
	k.passes(7, true, 5, 5)
	k.count(k.container("c", 7, 3))
	// 20 had passed before, which nobody else can own.
	if packets, seeded := k.total("c"); packets != [2]uint64{25, 25} || seeded != [2]uint64{20, 20} {
		t.Errorf("%v, seeded %v", packets, seeded)
	}
	k.veths[0].NetNSID = -1 // its container ends
	k.Link(watcher.HostVethSeen{HostVeth: k.veths[0], SeenAt: time.Now()})
	k.Controller.veths.known[7].since = time.Now().Add(-2 * hereFor)
	k.check()
	k.finish()
	if k.filters[7] == 0 {
		t.Error("a container's interface is let go")
	}
}

// Its other end may move while it is being let go.
func TestLeadsNowhereMoves(t *testing.T) {
	k := newKernel(t)
	k.counters[7] = watcher.LinkCounters{}
	k.veth(7, -1)
	k.check()
	k.Controller.veths.known[7].since = time.Now().Add(-hereFor)
	k.check()
	k.veths[0].NetNSID = 3
	k.Link(watcher.HostVethSeen{HostVeth: k.veths[0], SeenAt: time.Now()})
	k.finish()
	k.check()
	k.passes(7, true, 5, 5)
	k.count(k.container("c", 7, 3))
	if packets, _ := k.total("c"); packets != [2]uint64{5, 5} || k.filters[7] == 0 {
		t.Errorf("%v, filters %v", packets, k.filters)
	}
	k.Link(watcher.HostVethGone{Index: 7})
	k.veths = nil
	k.Relist()
	if len(k.Controller.veths.aside) > 0 {
		t.Errorf("aside: %v", k.Controller.veths.aside)
	}
}

// addIngress adds the qdisc that clsact excludes, as tc does.
func addIngress(host *testnet.Namespace, name string) error {
	_, err := host.Run("tc", "qdisc", "add", "dev", name, "handle", "ffff:", "ingress")
	return err
}

// On a real kernel an `ingress` qdisc can't be added beside clsact, and can be once the
// container has been still; beside it each packet is counted. The move costs a container
// that is still no packet. Where it comes in the middle of a flow, each packet is counted
// once, too. The witnesses are the kernel's counters: that of what it dropped, since our
// programs run before.
func TestRoomForIngress(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	for name, most := range map[string]uint64{"still": 10, "in a flow": 1_000_000} {
		t.Run(name, func(t *testing.T) { testRoomForIngress(t, most) })
	}
}

func testRoomForIngress(t *testing.T, most uint64) {
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	r := start(t, host, "", func(c *Controller) {
		c.veths.room = roomRule{age: 2 * time.Second, still: time.Second, packets: most}
	})
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	veth := c.Interfaces[0].HostName
	r.wait(c.ID, "counted by clsact", onHook(HookClsact))
	if err := addIngress(host, veth); err == nil || !strings.Contains(err.Error(), "Exclusivity flag on") {
		t.Fatalf("beside clsact: %v", err)
	}
	stop := stream(t, peer, c.Interfaces[0].IPv4)
	if most < 1000 { // it stays where it is until the stream has ended
		for nettest.Must(host.LinkByName(veth))(t).Attrs().Statistics.TxPackets < 100_000 {
			time.Sleep(time.Millisecond)
		}
		stop()
	}
	r.wait(c.ID, "counted by tcx", onHook(HookTCX))
	if most >= 1000 {
		stop()
	}
	r.asSent(c, veth)
	if dropped := nettest.Must(host.LinkByName(veth))(t).Attrs().Statistics.TxDropped; dropped > 0 && most < 1000 {
		t.Errorf("%d packets were dropped", dropped)
	}
	if err := addIngress(host, veth); err != nil {
		t.Fatalf("after the move: %v", err)
	}
	upload(t, c, peer, c.Interfaces[0], 300)
	r.asSent(c, veth)
}

// asSent waits until a container's numbers are the kernel's and what that dropped behind our
// programs, and all of them were seen by those.
func (r *rig) asSent(c *testnet.Container, veth string) {
	r.t.Helper()
	r.wait(c.ID, "as the kernel has it", func(u usage.Container) bool {
		kernel := nettest.Must(r.host.LinkByName(veth))(r.t).Attrs().Statistics
		unseen := u.Receive.Seeded.Packets + u.Transmit.Seeded.Packets + u.Receive.Mended.Packets + u.Transmit.Mended.Packets
		return unseen == 0 && u.Receive.Interface.Packets == kernel.TxPackets+kernel.TxDropped && u.Transmit.Interface.Packets == kernel.RxPackets
	})
}

// onHook returns whether a container's interface is counted on a hook.
func onHook(hook string) func(usage.Container) bool {
	return func(u usage.Container) bool {
		return u.Accounted() && len(u.Interfaces) == 1 && u.Interfaces[0].Hook == hook
	}
}

// Proxmox puts a pair of veths between a guest's bridge and the host's. Our programs leave it
// after a while; a guest on the same bridge is counted as ever.
func TestFirewallBridges(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc", "ip")
	host := nettest.Host(t)
	for _, command := range []string{
		"link add fwbr0 type bridge", "link add vmbr0 type bridge", "link set fwbr0 up", "link set vmbr0 up",
		"link add fwln0 type veth peer name fwpr0",
		"link set fwln0 master fwbr0 up", "link set fwpr0 master vmbr0 up",
	} {
		nettest.Must(host.Run("ip", strings.Fields(command)...))(t)
	}
	qdiscs := func() string { return string(nettest.Must(host.Run("tc", "qdisc", "show"))(t)) }
	r := start(t, host, "", func(c *Controller) { c.veths.here = 3 * time.Second })
	if !strings.Contains(qdiscs(), "clsact ffff: dev fwln0") {
		t.Fatalf("not counted at first:\n%s", qdiscs())
	}
	guest := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(guest.ID, 1)
	for deadline := time.Now().Add(30 * time.Second); strings.Contains(qdiscs(), "clsact ffff: dev fw") || len(r.accounts.Snapshot().Unowned) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("unowned %+v, qdiscs:\n%s", r.accounts.Snapshot().Unowned, qdiscs())
		}
	}
	r.reload()
	upload(t, guest, nettest.Agent(t, host), guest.Interfaces[0], 50)
	r.sent(guest.ID, 50)
	if strings.Contains(qdiscs(), "clsact ffff: dev fw") {
		t.Errorf("they are back:\n%s", qdiscs())
	}
	// Its other end goes into a container at last.
	inside := nettest.Must(testnet.NewNamespace())(t)
	t.Cleanup(func() { must(t, inside.Close()) })
	must(t, host.LinkSetNsFd(nettest.Must(host.LinkByName("fwpr0"))(t), inside.FD()))
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(qdiscs(), "clsact ffff: dev fwln0"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not counted again:\n%s", qdiscs())
		}
	}
}
