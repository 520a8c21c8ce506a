// SPDX-License-Identifier: Apache-2.0

package nettest_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// The test of the package comment.
func TestUpload(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	web := nettest.Container(t, host, testnet.ContainerOptions{})
	peer := nettest.Agent(t, host)
	sink := nettest.Must(peer.Listen("udp", web.Interfaces[0].HostIPv4))(t)
	capture := nettest.StartCapture(t, host, web.Interfaces[0].HostName)
	if err := web.SendUDP(sink.Addr, 1000, 100); err != nil {
		t.Fatal(err)
	}
	got := capture.Count("udp")
	if want := (nettest.Volume{Packets: 1000, Bytes: 142_000}); got != want {
		t.Errorf("captured %+v, want %+v", got, want)
	}
	if got := capture.Count("tcp"); got != (nettest.Volume{}) {
		t.Errorf("captured %+v of TCP", got)
	}
}

// What was captured can be read after the interface is gone.
func TestCaptureOutlivesInterface(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	web := nettest.Container(t, host, testnet.ContainerOptions{})
	capture := nettest.StartCapture(t, host, web.Interfaces[0].HostName)
	got := nettest.Must(web.Connect(netip.AddrPortFrom(web.Interfaces[0].HostIPv4, 1), 1))(t)
	if got.Refused != 1 {
		t.Errorf("connects: %+v", got)
	}
	capture.CatchUp()
	if err := web.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(capture.Packets("")); n != 2 {
		t.Errorf("%d packets, want SYN and RST", n)
	}
}

// Each kind of thing that nettally may leave behind shows in a snapshot.
func TestSnapshotSeesTraces(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	options := testnet.ContainerOptions{ID: strings.Repeat("e", 64)}
	options.Cgroup = fmt.Sprintf("/nettally-test-%d-snapshot/%s", os.Getpid(), options.ID)
	web := nettest.Container(t, host, options)
	veth := web.Interfaces[0].HostName
	bpffs := nettest.BPFFS(t)
	program := loadProgram(t)

	look := func() nettest.Snapshot {
		return nettest.TakeSnapshot(t, nettest.Scope{
			Namespaces: map[string]*testnet.Namespace{"host": host},
			Cgroups:    []string{web.Cgroup}, Paths: []string{bpffs},
		})
	}
	before := look()
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Fatalf("two snapshots of the same state differ:\n%s", diff)
	}

	tc(t, host, "qdisc", "add", "dev", veth, "clsact")
	tc(t, host, "filter", "add", "dev", veth, "egress", "prio", "2", "bpf", "bytecode", "1,6 0 0 0")
	tcx := attachTCX(t, host, veth, program)
	pin := filepath.Join(bpffs, "program")
	if err := program.Pin(pin); err != nil {
		t.Fatal(err)
	}
	cgroup := attachCgroup(t, web.Cgroup)
	during := look()
	for _, want := range []struct {
		what string
		in   []string
		text string
	}{
		{"qdisc", during.Qdiscs, "host: qdisc clsact ffff: dev " + veth},
		{"filter", during.Filters, "host: " + veth + " egress: filter protocol all pref 2 bpf"},
		{"tcx", during.Filters, "host: " + veth + " TCXIngress: program "},
		{"pin", during.Files, pin},
		{"cgroup", during.Cgroups, web.Cgroup + " CGroupInetEgress: program "},
	} {
		if !strings.Contains(strings.Join(want.in, "\n"), want.text) {
			t.Errorf("%s: no %q in %q", want.what, want.text, want.in)
		}
	}

	tc(t, host, "qdisc", "del", "dev", veth, "clsact")
	for _, undo := range []func() error{tcx.Close, cgroup.Close, program.Unpin} {
		if err := undo(); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Errorf("after all was undone (-before +after):\n%s", diff)
	}
}

func tc(t *testing.T, n *testnet.Namespace, args ...string) {
	t.Helper()
	if _, err := n.Run("tc", args...); err != nil {
		t.Fatal(err)
	}
}

func loadProgram(t *testing.T) *ebpf.Program { return load(t, ebpf.SchedCLS, -1) }

func load(t *testing.T, kind ebpf.ProgramType, result int32) *ebpf.Program {
	t.Helper()
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "trace", Type: kind, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()},
	}))(t)
	t.Cleanup(func() { _ = program.Close() })
	return program
}

func attachTCX(t *testing.T, n *testnet.Namespace, iface string, program *ebpf.Program) link.Link {
	t.Helper()
	device := nettest.Must(n.LinkByName(iface))(t)
	var attached link.Link
	err := n.Do(func() (err error) {
		attached, err = link.AttachTCX(link.TCXOptions{
			Interface: device.Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress,
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return attached
}

func attachCgroup(t *testing.T, path string) link.Link {
	t.Helper()
	for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
		if _, err := os.Stat(filepath.Join(root, path, "cgroup.controllers")); err != nil {
			continue // v1
		}
		return nettest.Must(link.AttachCgroup(link.CgroupOptions{
			Path: filepath.Join(root, path), Attach: ebpf.AttachCGroupInetEgress,
			Program: load(t, ebpf.CGroupSKB, 1),
		}))(t)
	}
	t.Fatal("no v2 hierarchy is mounted")
	return nil
}
