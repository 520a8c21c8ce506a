// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Each neighbour is seen by links of its own, or by a socket, in a namespace that has nothing
// else, and what to do depends on the mode and the kernel.
func TestNeighboursOnInterfaces(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ip", "tc")
	veth := func(name string) string { return "ip link add " + name + " type veth peer name end0" }
	for name, test := range map[string]struct {
		commands []string
		file     string
		mode     string
		noTCX    bool
		found    string
		wrong    string
	}{
		"nobody":             {nil, "", "auto", false, "nobody is known to be in the way", ""},
		"Docker":             {[]string{veth("veth1234567"), "tc qdisc add dev veth1234567 clsact"}, "", "clsact", false, "nobody is known to be in the way", ""},
		"Calico":             {[]string{veth("cali12ab34cd56e")}, "", "auto", false, "Calico is here, and is left room", ""},
		"Calico, with QoS":   {[]string{veth("cali12ab34cd56e"), "tc qdisc add dev cali12ab34cd56e ingress"}, "", "auto", false, "Calico is here, and is left room", ""},
		"Calico by clsact":   {[]string{veth("cali12ab34cd56e")}, "", "clsact", false, "", "Calico is here: it may fail beside clsact, or remove it: set attach.mode to auto or tcx"},
		"Calico without tcx": {[]string{veth("cali12ab34cd56e")}, "", "auto", true, "", "Calico is here: where it adds an `ingress` qdisc it fails beside nettally, and the kernel has no tcx"},
		"Cilium":             {[]string{veth("cilium_host")}, "", "auto", false, "Cilium is here, and is left room", ""},
		"LXD":                {nil, "var/snap/lxd/common/lxd/unix.socket", "auto", false, "LXD is here: limits.egress and limits.max can be set once an interface has been still for a minute, and at once with attach.mode: tcx", ""},
		"LXD by tcx":         {nil, "var/lib/lxd/unix.socket", "tcx", false, "LXD is here, and is left room", ""},
		"Incus":              {[]string{"ip link add incusbr0 type bridge"}, "", "auto", false, "Incus is here: limits.egress", ""},
		"Open vSwitch":       {nil, "run/openvswitch/db.sock", "auto", false, "Open vSwitch is here: ingress_policing_rate can be set", ""},
		"libvirt":            {[]string{"ip link add virbr0 type bridge"}, "", "clsact", false, "", "libvirt is here: it may fail"},
		"wondershaper":       {[]string{veth("veth1234567"), "tc qdisc add dev veth1234567 handle ffff: ingress"}, "", "auto", false, "a shaper is here: `ingress` qdiscs can be set", ""},
	} {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			for _, command := range test.commands {
				words := strings.Fields(command)
				nettest.Must(host.Run(words[0], words[1:]...))(t)
			}
			root := t.TempDir()
			if test.file != "" {
				if err := os.MkdirAll(filepath.Join(root, test.file), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			found, wrong, err := onInterfaces(host.Handle, root, test.mode, !test.noTCX)
			if err != nil {
				t.Fatal(err)
			}
			if test.wrong == "" && (len(wrong) > 0 || !strings.HasPrefix(found, test.found) || strings.Contains(found, ";")) {
				t.Errorf("%q, %q, want %q", found, wrong, test.found)
			}
			if test.wrong != "" && (len(wrong) != 1 || !strings.HasPrefix(wrong[0], test.wrong)) {
				t.Errorf("%q, want %q", wrong, test.wrong)
			}
		})
	}
}

// A program that allows none beside it is named with the cgroup that has it, once for all
// containers below.
func TestNeighboursOnCgroups(t *testing.T) {
	need.Root(t)
	config := nettest.Must(configs.Load("", false, nil))(t)
	slice := fmt.Sprintf("/nettally-testnet-%d/fenced", os.Getpid())
	host := nettest.Host(t)
	for _, id := range []string{"a", "b"} {
		nettest.Container(t, host, testnet.ContainerOptions{Cgroup: slice + "/" + strings.Repeat(id, 64)})
	}
	mine := func() (about []string) {
		for _, wrong := range nettest.Must(onCgroups(config))(t) {
			if strings.Contains(wrong, slice) {
				about = append(about, wrong)
			}
		}
		return about
	}
	if found := mine(); len(found) > 0 {
		t.Errorf("without a program: %q", found)
	}
	fence := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fence", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(t)
	defer fence.Close()
	w := nettest.Must(newWatcher(config, nil))(t)
	root := w.Layout().Unified
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if root == "" {
		need.Kernel(t, "cgroup2", os.ErrNotExist)
	}
	dir := nettest.Must(os.Open(filepath.Join(root, slice)))(t)
	defer dir.Close()
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: fence, Attach: ebpf.AttachCGroupInetEgress}); err != nil {
		t.Fatal(err)
	}
	found := mine()
	if len(found) != 1 || !strings.Contains(found[0], `"fence"`) || !strings.Contains(found[0], "below cgroup "+slice+" ") {
		t.Errorf("%q", found)
	}
}
