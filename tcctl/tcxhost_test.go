// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// needTCX skips where the kernel is older than tcx, which no installation mends.
func needTCX(tb testing.TB) {
	tb.Helper()
	need.Root(tb)
	need.Kernel(tb, "Linux 6.6", HaveTCX())
}

// newPins returns a folder that is not there yet, on a bpffs.
func newPins(tb testing.TB) string {
	tb.Helper()
	needTCX(tb)
	return filepath.Join(nettest.BPFFS(tb), "links")
}

func openPins(tb testing.TB, ns *testnet.Namespace, pins string) *Controller {
	tb.Helper()
	c, err := Open(Options{NetNS: ns.FD(), Pins: pins})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// newTCXHost is a host, and a Controller with pins in a folder of its own.
func newTCXHost(tb testing.TB) (*host, *Controller) {
	tb.Helper()
	pins := newPins(tb)
	h := newHost(tb)
	return h, openPins(tb, h.Namespace, pins)
}

func attachTCX(tb testing.TB, c *Controller, ifindex int, ingress, egress program) {
	tb.Helper()
	if err := c.AttachTCX(ifindex, ingress, egress); err != nil {
		tb.Fatal(err)
	}
}

func detachTCX(tb testing.TB, c *Controller, ifindex int) {
	tb.Helper()
	if err := c.DetachTCX(ifindex); err != nil {
		tb.Fatal(err)
	}
}

func raise(tb testing.TB, c *Controller, ifindex int, ingress, egress program) {
	tb.Helper()
	if err := c.Raise(ifindex, ingress, egress); err != nil {
		tb.Fatal(err)
	}
}

func wantTCX(tb testing.TB, c *Controller, ifindex int, attached, first bool) {
	tb.Helper()
	gotAttached, gotFirst, err := c.TCX(ifindex)
	if err != nil || gotAttached != attached || gotFirst != first {
		tb.Errorf("TCX = %v, %v, %v; want %v, %v", gotAttached, gotFirst, err, attached, first)
	}
}

func wantTCXInterfaces(tb testing.TB, c *Controller, want ...int) {
	tb.Helper()
	got, err := c.TCXInterfaces()
	if err != nil {
		tb.Error(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("interfaces (-want +got):\n%s", diff)
	}
}

// wantPins compares the names of the pins. Without any there is no folder.
func wantPins(tb testing.TB, c *Controller, want ...string) {
	tb.Helper()
	entries, err := os.ReadDir(c.links.pins)
	if err != nil && (want != nil || !errors.Is(err, os.ErrNotExist)) {
		tb.Error(err)
	}
	if err == nil && want == nil {
		tb.Errorf("%s is still there", c.links.pins)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("pins (-want +got):\n%s", diff)
	}
}

// wantOnTCX compares the programs on a hook of v0, in the order in which they run.
func (h *host) wantOnTCX(tb testing.TB, hook Hook, want ...*classifier) {
	tb.Helper()
	var got, ids []uint32
	for _, one := range onTCX(tb, h.Namespace, h.ifindex, hook) {
		got = append(got, uint32(one.ID))
	}
	for _, p := range want {
		ids = append(ids, p.id)
	}
	if diff := cmp.Diff(ids, got); diff != "" {
		tb.Errorf("programs on tcx %s (-want +got):\n%s", hook, diff)
	}
}

func onTCX(tb testing.TB, ns *testnet.Namespace, ifindex int, hook Hook) []link.AttachedProgram {
	tb.Helper()
	var there []link.AttachedProgram
	err := ns.Do(func() (err error) {
		there, err = query(place{ifindex, hook})
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return there
}

// addTCX adds somebody's link.
func (h *host) addTCX(tb testing.TB, hook Hook, p *ebpf.Program, anchor link.Anchor) link.Link {
	tb.Helper()
	var added link.Link
	err := h.Do(func() (err error) {
		added, err = link.AttachTCX(link.TCXOptions{
			Interface: h.ifindex, Program: p, Attach: place{hook: hook}.attachType(), Anchor: anchor,
		})
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { added.Close() })
	return added
}

// addLink adds v0 again, as a pair in one namespace.
func (h *host) addLink(tb testing.TB, ifindex int) {
	tb.Helper()
	err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0", Index: ifindex}, PeerName: "v1"})
	if err != nil {
		tb.Fatal(err)
	}
	h.ifindex = ifindexOf(tb, h.Namespace, "v0")
}

// loadVerdict loads somebody's program that does nothing but return a verdict.
func loadVerdict(tb testing.TB, verdict int32) *ebpf.Program {
	tb.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	return p
}

// linkID returns the id of the link that is pinned for a place.
func linkID(tb testing.TB, c *Controller, p place) link.ID {
	tb.Helper()
	own, err := c.links.open(p)
	if err != nil || own == nil {
		tb.Fatalf("link of %v: %v, %v", p, own, err)
	}
	defer own.close()
	return own.id
}

// cut detaches a pinned link, as anybody may who can open it.
func cut(tb testing.TB, pin string) {
	tb.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil {
		tb.Fatal(err)
	}
}
