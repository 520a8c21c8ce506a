// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/florianl/go-tc"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// host is a namespace with a veth pair "v0" to a second one, where it is "eth0".
type host struct {
	*testnet.Namespace
	container *testnet.Namespace
	ifindex   int // of v0
}

func newHost(tb testing.TB) *host {
	tb.Helper()
	h := &host{Namespace: newNamespace(tb), container: newNamespace(tb)}
	if err := testnet.Veth(h.Namespace, "v0", h.container, "eth0"); err != nil {
		tb.Fatal(err)
	}
	h.ifindex = ifindexOf(tb, h.Namespace, "v0")
	return h
}

func newNamespace(tb testing.TB) *testnet.Namespace {
	tb.Helper()
	need.Root(tb)
	ns, err := testnet.NewNamespace()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ns.Close() })
	return ns
}

func ifindexOf(tb testing.TB, ns *testnet.Namespace, name string) int {
	tb.Helper()
	link, err := ns.LinkByName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return link.Attrs().Index
}

func open(tb testing.TB, ns *testnet.Namespace, priority uint16) *Controller {
	tb.Helper()
	c, err := Open(Options{NetNS: ns.FD(), Priority: priority})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// classifier is a program that notes the classid it sees and counts packets of
// the tests' own ethertype.
type classifier struct {
	*ebpf.Program
	seen *ebpf.Map
	id   uint32
}

const (
	testEthertype = 0x88b5 // for local experiments
	offProtocol   = 16     // __sk_buff.protocol
	offTcClassid  = 72     // __sk_buff.tc_classid
)

func load(tb testing.TB, name string) *classifier {
	tb.Helper()
	need.Root(tb)
	if err := rlimit.RemoveMemlock(); err != nil {
		tb.Fatal(err)
	}
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { seen.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: noteClassid(seen),
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	info, err := p.Info()
	if err != nil {
		tb.Fatal(err)
	}
	id, _ := info.ID()
	return &classifier{p, seen, uint32(id)}
}

func noteClassid(seen *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, offProtocol, asm.Word),
		asm.JNE.Imm(asm.R7, int32(networkOrder(testEthertype)), "out"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, seen.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R6, offTcClassid, asm.Word),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R0, 4, asm.Word),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 4, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // TC_ACT_UNSPEC
		asm.Return(),
	}
}

// noted is what a classifier has seen.
type noted struct{ Classid, Packets uint32 }

func (p *classifier) noted(tb testing.TB) noted {
	tb.Helper()
	var n noted
	if err := p.seen.Lookup(uint32(0), &n); err != nil {
		tb.Fatal(err)
	}
	return n
}

func (p *classifier) forget(tb testing.TB) {
	tb.Helper()
	if err := p.seen.Put(uint32(0), noted{}); err != nil {
		tb.Fatal(err)
	}
}

// want waits until a classifier has seen what it should, and no more.
func (p *classifier) want(tb testing.TB, want noted) {
	tb.Helper()
	eventually(tb, func() bool { return p.noted(tb).Packets >= want.Packets })
	if diff := cmp.Diff(want, p.noted(tb)); diff != "" {
		tb.Errorf("seen by %s (-want +got):\n%s", p, diff)
	}
}

func eventually(tb testing.TB, ok func() bool) {
	tb.Helper()
	for range 5000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	tb.Error("did not happen")
}

// exchange sends one frame each way over the veth pair.
func (h *host) exchange(tb testing.TB) {
	tb.Helper()
	sendFrame(tb, h.container, ifindexOf(tb, h.container, "eth0"))
	sendFrame(tb, h.Namespace, h.ifindex)
}

func sendFrame(tb testing.TB, ns *testnet.Namespace, ifindex int) {
	tb.Helper()
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		frame := append(make([]byte, 12, 64), testEthertype>>8, testEthertype&0xff)
		for i := range 6 {
			frame[i] = 0xff
		}
		return unix.Sendto(fd, frame[:60], 0, &unix.SockaddrLinklayer{
			Ifindex: ifindex, Protocol: networkOrder(testEthertype),
		})
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func (h *host) run(tb testing.TB, command string) string {
	tb.Helper()
	need.Commands(tb, "tc")
	args := strings.Fields(command)
	out, err := h.Run(args[0], args[1:]...)
	if err != nil {
		tb.Fatal(err)
	}
	return string(out)
}

// show is everything on v0 as tc sees it.
func (h *host) show(tb testing.TB) string {
	tb.Helper()
	s := h.run(tb, "tc qdisc show dev v0")
	// Without a qdisc tc prints complaints on some versions.
	if !strings.Contains(s, "clsact") && !strings.Contains(s, "ingress") {
		return s
	}
	for _, hook := range hooks {
		s += fmt.Sprintf("%s:\n%s", hook, h.run(tb, "tc filter show dev v0 "+hook.String()))
	}
	return ageless.ReplaceAllString(s, "")
}

// ageless takes out of tc's print what changes by itself.
var ageless = regexp.MustCompile(`(?m) installed \d+ sec used \d+ sec.*$`)

// addBPF adds somebody's direct action filter for all protocols.
func (h *host) addBPF(tb testing.TB, hook Hook, priority uint16, handle uint32, name string, p program) {
	tb.Helper()
	rtnl, err := tc.Open(&tc.Config{NetNS: h.FD()})
	if err != nil {
		tb.Fatal(err)
	}
	defer rtnl.Close()
	err = rtnl.Filter().Add(&tc.Object{
		Msg: tc.Msg{
			Ifindex: uint32(h.ifindex), Handle: handle, Parent: hook.parent(), Info: info(priority, protocolAll),
		},
		Attribute: tc.Attribute{Kind: "bpf", BPF: &tc.Bpf{
			FD: new(uint32(p.FD())), Name: &name, Flags: new(uint32(tc.BpfActDirect)),
		}},
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func (h *host) deleteLink(tb testing.TB) {
	tb.Helper()
	link, err := h.LinkByName("v0")
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// addLinks adds veth pairs that have both ends in the namespace and returns the
// ifindexes of all ends.
func addLinks(tb testing.TB, ns *testnet.Namespace, pairs int) []int {
	tb.Helper()
	for i := range pairs {
		err := ns.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("a%d", i)}, PeerName: fmt.Sprintf("b%d", i),
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	links, err := ns.LinkList()
	if err != nil {
		tb.Fatal(err)
	}
	var ifindexes []int
	for _, link := range links {
		if link.Type() == "veth" {
			ifindexes = append(ifindexes, link.Attrs().Index)
		}
	}
	return ifindexes
}

// wantFilters compares what Filters lists, the programs' tags left out.
func wantFilters(tb testing.TB, c *Controller, ifindex int, want ...Filter) {
	tb.Helper()
	got, err := c.Filters(ifindex)
	if err != nil {
		tb.Fatal(err)
	}
	for i := range got {
		if got[i].Tag == [8]byte{} {
			tb.Errorf("%v has no tag", got[i])
		}
		got[i].Tag = [8]byte{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("filters (-want +got):\n%s", diff)
	}
}

// attached is a filter as Filters should list it.
func (h *host) attached(hook Hook, priority, slot uint16, p *classifier) Filter {
	return Filter{Ifindex: h.ifindex, Hook: hook, Slot: slot, Priority: priority, ProgramID: p.id, Own: true}
}

func attach(tb testing.TB, c *Controller, ifindex int, slot uint16, ingress, egress program) (createdQdisc bool) {
	tb.Helper()
	created, err := c.Attach(ifindex, slot, ingress, egress, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return created
}

func detach(tb testing.TB, c *Controller, ifindex int, removeQdisc bool) {
	tb.Helper()
	if err := c.Detach(ifindex, removeQdisc); err != nil {
		tb.Fatal(err)
	}
}
