// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// watchHost makes a network namespace and a watcher on it that has no cgroups to watch.
func watchHost(t *testing.T) (*testnet.Namespace, *running) {
	t.Helper()
	need.Root(t)
	host := newNamespace(t)
	r := run(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	eventually(t, func() error {
		if !subscribed(host) {
			return errors.New("no subscription")
		}
		return nil
	})
	return host, r
}

// subscribed says whether anyone listens to the links of a namespace.
func subscribed(ns *testnet.Namespace) bool {
	_, ok := lostMessages(ns)
	return ok
}

// lostMessages returns how many link messages the kernel has dropped for who listens to
// the links of a namespace, and false if nobody does.
func lostMessages(ns *testnet.Namespace) (n int, ok bool) {
	out, err := ns.Run("cat", "/proc/thread-self/net/netlink")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(out)) { // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if f := strings.Fields(line); len(f) > 8 && f[1] == "0" && strings.HasSuffix(f[3], "1") {
			n, err = strconv.Atoi(f[8])
			return n, err == nil
		}
	}
	return 0, false
}

func veth(t *testing.T, a *testnet.Namespace, nameA string, b *testnet.Namespace, nameB string) netlink.Link {
	t.Helper()
	if err := testnet.Veth(a, nameA, b, nameB); err != nil {
		t.Fatal(err)
	}
	return linkIn(t, a, nameA)
}

func linkIn(t testing.TB, ns *testnet.Namespace, name string) netlink.Link {
	t.Helper()
	l, err := ns.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestEarlyBridgePort makes a veth as Docker does with its bridge: the host's end is a port
// at once, and a host veth before the peer has moved.
func TestEarlyBridgePort(t *testing.T) {
	host, r := watchHost(t)
	container := newNamespace(t)
	check(t, host.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	check(t, host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vethhost"}, PeerName: "vethpeer"}))
	outer, peer := linkIn(t, host, "vethhost"), linkIn(t, host, "vethpeer")
	check(t, host.LinkSetMaster(outer, linkIn(t, host, "br0")))
	want := HostVeth{Index: outer.Attrs().Index, Name: "vethhost", PeerIndex: peer.Attrs().Index, NetNSID: -1}
	if diff := cmp.Diff(want, next[HostVethSeen](t, r).HostVeth); diff != "" {
		t.Errorf("before the peer moves (-want +got):\n%s", diff)
	}
	check(t, host.LinkSetNsFd(peer, container.FD()))
	want.NetNSID = 0
	if diff := cmp.Diff(want, next[HostVethSeen](t, r).HostVeth); diff != "" {
		t.Errorf("after the peer has moved (-want +got):\n%s", diff)
	}
	list, err := r.HostVeths()
	if diff := cmp.Diff([]HostVeth{want}, list); err != nil || diff != "" {
		t.Errorf("list, error %v (-want +got):\n%s", err, diff)
	}
}

// TestDockerOrder makes a veth as Docker does: both ends in the host, then the
// peer moves; at the end the peer comes back and both go.
func TestDockerOrder(t *testing.T) {
	host, r := watchHost(t)
	container := newNamespace(t)
	check(t, host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vethhost"}, PeerName: "vethpeer"}))
	outer, peer := linkIn(t, host, "vethhost"), linkIn(t, host, "vethpeer")
	check(t, host.LinkSetUp(outer))
	check(t, host.LinkSetNsFd(peer, container.FD()))
	seen := next[HostVethSeen](t, r)
	want := HostVeth{Index: outer.Attrs().Index, Name: "vethhost", PeerIndex: peer.Attrs().Index}
	if diff := cmp.Diff(want, seen.HostVeth); diff != "" {
		t.Errorf("seen (-want +got):\n%s", diff)
	}
	if age := time.Since(seen.SeenAt); age < 0 || age > patience {
		t.Errorf("seen %v ago", age)
	}
	list, err := r.HostVeths()
	if diff := cmp.Diff([]HostVeth{want}, list); err != nil || diff != "" {
		t.Errorf("list, error %v (-want +got):\n%s", err, diff)
	}

	check(t, host.LinkSetDown(outer))
	check(t, host.LinkSetName(outer, "renamed"))
	if seen := next[HostVethSeen](t, r); seen.Name != "renamed" || seen.Index != want.Index {
		t.Errorf("seen %+v", seen)
	}

	check(t, container.LinkSetNsFd(linkIn(t, container, "vethpeer"), host.FD()))
	if list, err := r.HostVeths(); err != nil || len(list) != 0 {
		t.Errorf("with the peer back: %v, error %v", list, err)
	}
	check(t, host.LinkDel(outer))
	// Gone is the next event: neither the return of the peer nor its end was one.
	select {
	case e := <-r.events:
		gone, ok := e.(HostVethGone)
		if !ok || gone.Index != want.Index {
			t.Errorf("event %#v, want the end of %d", e, want.Index)
		}
	case <-time.After(patience):
		t.Error("no event")
	}
}

// TestBridgePort leaves a bridge, which the bridge tells as a DELLINK.
func TestBridgePort(t *testing.T) {
	host, r := watchHost(t)
	container := newNamespace(t)
	check(t, host.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	outer := veth(t, host, "vethhost", container, "eth0")
	next[HostVethSeen](t, r)
	check(t, host.LinkSetMaster(outer, linkIn(t, host, "br0")))
	check(t, host.LinkSetNoMaster(outer))
	other := veth(t, host, "another", container, "eth1")
	if e, ok := (<-r.events).(HostVethSeen); !ok || e.Index != other.Attrs().Index {
		t.Errorf("event %#v, want the next veth", e)
	}
}

// TestInterfacePassesDirectories has an interface come after many directories of which nobody has
// read. It does not wait behind them.
func TestInterfacePassesDirectories(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	root := newCgroup(t, hierarchies(t)["v2"])
	r := run(t, Options{CgroupRoot: root, NetNS: host.FD()})
	eventually(t, func() error {
		if !subscribed(host) {
			return errors.New("no subscription")
		}
		return nil
	})
	for i := range 1000 {
		makeDirs(t, filepath.Join(root, fmt.Sprintf("docker-%064x.scope", i)))
	}
	veth(t, host, "vethhost", container, "eth0")
	const few = 200
	for passed := range few {
		if _, ok := (<-r.events).(HostVethSeen); ok {
			t.Logf("behind %d directories", passed)
			return
		}
		time.Sleep(5 * time.Millisecond) // in which the watcher reads what the kernel has
	}
	t.Errorf("the interface is behind %d directories and more", few)
}

// TestRunTakesNoQueue holds the caller to that.
func TestRunTakesNoQueue(t *testing.T) {
	need.Root(t)
	w := newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"])})
	if err := w.Run(t.Context(), make(chan Event, 1)); err == nil {
		t.Error("no error")
	}
}

// TestMovedHostEnd gives the host's end away.
func TestMovedHostEnd(t *testing.T) {
	host, r := watchHost(t)
	outer := veth(t, host, "vethhost", newNamespace(t), "eth0")
	next[HostVethSeen](t, r)
	check(t, host.LinkSetNsFd(outer, newNamespace(t).FD()))
	if e := next[HostVethGone](t, r); e.Index != outer.Attrs().Index {
		t.Errorf("gone %+v", e)
	}
}

// TestRunBeginsWithVeths finds what was there before.
func TestRunBeginsWithVeths(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	want := map[int]bool{}
	for i := range 100 {
		want[veth(t, host, fmt.Sprintf("veth%d", i), container, fmt.Sprintf("eth%d", i)).Attrs().Index] = true
	}
	check(t, host.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	r := run(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	got := map[int]bool{}
	for range want {
		got[next[HostVethSeen](t, r).Index] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestHostVethsAmidChanges lists while links come and go. What stays is in every
// list that claims to be whole.
func TestHostVethsAmidChanges(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	var want []HostVeth
	for i := range 60 {
		l := veth(t, host, fmt.Sprintf("stays%d", i), container, fmt.Sprintf("eth%d", i))
		want = append(want, HostVeth{Index: l.Attrs().Index, Name: l.Attrs().Name})
	}
	stop := flap(t, host, container)
	w := newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	eventually(t, func() error { // sooner or later a single attempt is interrupted
		conn, err := dial(host.FD(), 0)
		check(t, err)
		defer conn.Close()
		if _, err = dumpLinks(conn, "veth", rtextSkipStats); !errors.Is(err, ErrPartial) {
			return fmt.Errorf("no dump is interrupted, error %v", err)
		}
		return nil
	})
	partial := 0
	for range 100 {
		list, err := w.HostVeths()
		if errors.Is(err, ErrPartial) {
			partial++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(v HostVeth) bool { return v.Name == "fleeting" })
		if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(HostVeth{}, "PeerIndex", "NetNSID")); diff != "" {
			t.Fatalf("list (-want +got):\n%s", diff)
		}
	}
	stop()
	t.Logf("%d of 100 lists were partial", partial)
}

// flap adds and removes a veth again and again, until the function it returns is called.
func flap(t *testing.T, host, container *testnet.Namespace) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stopped := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fleeting"}, PeerName: "x", PeerNamespace: netlink.NsFd(container.FD())}
			err = errors.Join(host.LinkAdd(l), host.LinkDel(l))
		}
		stopped <- err
	}()
	return func() {
		t.Helper()
		cancel()
		check(t, <-stopped)
	}
}

// FuzzParseLink feeds what no kernel sends.
func FuzzParseLink(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add(append(make([]byte, 16), 8, 0, 5, 0, 1, 0, 0, 0, 12, 0, 18, 0, 8, 0, 1, 0, 'v', 'e', 't', 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseLink(b)
	})
}

// BenchmarkHostVeths lists 300 host veths.
func BenchmarkHostVeths(b *testing.B) {
	need.Root(b)
	host, err := testnet.NewNamespace()
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	container, err := testnet.NewNamespace()
	if err != nil {
		b.Fatal(err)
	}
	defer container.Close()
	for i := range 300 {
		if err := testnet.Veth(host, fmt.Sprintf("veth%d", i), container, fmt.Sprintf("eth%d", i)); err != nil {
			b.Fatal(err)
		}
	}
	w, err := New(Options{CgroupRoot: hierarchies(b)["v2"], NetNS: host.FD()})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for b.Loop() {
		if v, err := w.HostVeths(); err != nil || len(v) != 300 {
			b.Fatal(len(v), err)
		}
	}
}
