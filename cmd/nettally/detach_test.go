// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/tcctl"
)

// TestDetachInside takes our programs off in the namespaces of containers, those that count
// on a slot of ours and no others.
func TestDetachInside(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	pins := filepath.Join(nettest.BPFFS(t), "nettally")
	far := nettest.Host(t)
	spaces := map[string]*testnet.Namespace{}
	for _, name := range []string{"ours", "qdisc was there", "another's", "ended"} {
		spaces[name] = nettest.Host(t)
		if err := testnet.Veth(spaces[name], "eth0", far, fmt.Sprintf("far%d", len(spaces))); err != nil {
			t.Fatal(err)
		}
		if name != "ended" { // none of its processes is left
			nettest.Agent(t, spaces[name])
		}
	}
	nettest.Must(spaces["qdisc was there"].Run("tc", "qdisc", "add", "dev", "eth0", "clsact"))(t)
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"a": spaces["ours"], "b": spaces["qdisc was there"]}}
	before := nettest.TakeSnapshot(t, scope)
	datapath := nettest.Must(bpf.Load(bpf.Options{PinPath: pins}))(t)
	for name, ns := range spaces {
		put(t, datapath, ns, name == "another's")
	}
	if err := datapath.Close(); err != nil {
		t.Fatal(err)
	}
	others := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"c": spaces["another's"]}}
	foreign := nettest.TakeSnapshot(t, others)

	slots := nettest.Must(bpf.PinnedSlots(pins))(t)
	config := &configs.Config{Watch: configs.Watch{CgroupRoot: configs.Auto}}
	if count, err := detachInside(config, slots); err != nil || count != 2 {
		t.Errorf("took filters off %d interfaces, error %v", count, err)
	}
	if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(foreign, nettest.TakeSnapshot(t, others)); diff != "" {
		t.Errorf("what counts on a slot of nobody's (-want +got):\n%s", diff)
	}
}

// put has eth0 of a namespace counted; with stray, on another slot than the one that is
// noted for it.
func put(t *testing.T, datapath *bpf.Datapath, ns *testnet.Namespace, stray bool) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD(), &st); err != nil {
		t.Fatal(err)
	}
	ifindex := nettest.Must(ns.LinkByName("eth0"))(t).Attrs().Index
	slot := nettest.Must(datapath.Take(bpf.Target{Ifindex: ifindex, NetNS: st.Ino}))(t)
	control := nettest.Must(tcctl.Open(tcctl.Options{NetNS: ns.FD()}))(t)
	defer control.Close()
	index := slot.Index
	if stray {
		index += 1000
	}
	created, err := control.Attach(ifindex, index, datapath.Egress, datapath.Ingress, nil)
	if err != nil {
		t.Fatal(err)
	}
	slot.OwnQdisc = created
	if err := datapath.Keep(slot); err != nil {
		t.Fatal(err)
	}
}
