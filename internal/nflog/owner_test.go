// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

// A container that sends before its owner is known loses nothing.
func TestOwnerLater(t *testing.T) {
	for _, bridged := range []bool{false, true} { // told by the address, and by the port
		w := newWorld(t, bridged)
		w.load("nft")
		w.own("va", "")
		w.start(0)
		w.ask([2]string{"a", "outside"}, 0, 5)
		w.ask([2]string{"outside", "a"}, 1, 6)
		s, count := w.came(13)
		if got := loggedOf(s, "a"); got != (usage.Logged{}) {
			t.Errorf("bridged=%t: counted %+v of nobody", bridged, got)
		}
		w.own("va", "a")
		w.until("the container has them", func(s usage.Snapshot) bool {
			got := loggedOf(s, "a")
			return got.Transmit.Connections+got.Receive.Connections == count && got.Transmit.SYN >= 5 && got.Receive.SYN >= 6
		})
	}
}

// An address goes with the container that has it.
func TestAddressOfAnother(t *testing.T) {
	w := newWorld(t, false)
	w.load("nft")
	w.start(0)
	w.ask([2]string{"a", "outside"}, 0, 5)
	_, had := w.came(6)
	w.until("a is counted", func(s usage.Snapshot) bool { return loggedOf(s, "a").Transmit.Connections == had })

	w.ip(w.host, "link del va")
	w.own("vb", "") // until it is known who that is
	w.add("c", 0, 10, "br0", "c")
	w.mu.Lock()
	for ifindex, owner := range w.owners {
		if owner == "a" {
			delete(w.owners, ifindex)
		}
	}
	w.mu.Unlock()
	w.ask([2]string{"c", "outside"}, 0, 9)
	_, now := w.came(had + 10)
	s := w.until("c is counted", func(s usage.Snapshot) bool { return loggedOf(s, "c").Transmit.Connections == now-had })
	if got := loggedOf(s, "a").Transmit.Connections; got != had {
		t.Errorf("a has %d, and had %d", got, had)
	}
}

// An address that two containers of a bridge claim is neither's; where the port tells, it
// changes nothing.
func TestClaimedAddress(t *testing.T) {
	for _, bridged := range []bool{false, true} {
		w := newWorld(t, bridged)
		w.load("nft")
		b := w.nodes["b"]
		w.ip(b.namespace, "addr add "+w.nodes["a"].ip[0].String()+"/32 dev lo")
		w.ip(b.namespace, "addr add "+w.nodes["a"].ip[0].String()+"/32 dev eth0")
		w.patience = time.Second
		w.start(0)
		w.ask([2]string{"a", "outside"}, 0, 5)
		_, count := w.came(6)
		s := w.until("nobody is looked for", func(s usage.Snapshot) bool { return w.settled() })
		want := map[bool]uint64{false: 0, true: count}[bridged]
		if got := loggedOf(s, "a").Transmit.Connections; got != want {
			t.Errorf("bridged=%t: a has %d, want %d", bridged, got, want)
		}
		if got := loggedOf(s, "b"); got != (usage.Logged{}) {
			t.Errorf("bridged=%t: b has %+v", bridged, got)
		}
	}
}

// What pretends to come from elsewhere takes no more memory than the bound, and is told.
func TestPendingIsBounded(t *testing.T) {
	c := New(Options{Group: group, Owner: func(int) string { return "" }})
	c.index.links = map[uint32]kind{7: bridge, 8: veth, 9: other}
	p := packet{}
	for i := range 3 * maxPending {
		p.from = addrNumber(i)
		for _, dev := range []uint32{7, 8, 9} {
			c.count(end{dev, p.from}, transmit, true, c.since)
		}
	}
	if len(c.pending) != maxPending {
		t.Errorf("%d wait, want %d", len(c.pending), maxPending)
	}
	// Of dev 8 there is one end, of dev 9 none.
	if got, want := c.totals.unattributed[transmit], uint64(3*maxPending-(maxPending-1)); got != want {
		t.Errorf("%d unattributed, want %d", got, want)
	}
}

// What each tool's rules are is found, and nothing else.
func TestFind(t *testing.T) {
	inet := []Hook{{"inet", "forward"}, {"inet", "input"}, {"inet", "output"}}
	for _, test := range []struct {
		tool    string
		bridged bool
		want    []Hook
		missing string
	}{
		{"nft", true, inet, ""},
		{"nft", false, append([]Hook{{"bridge", "forward"}}, inet...), ""},
		{"iptables-nft", true, []Hook{{"ip", "forward"}, {"ip", "input"}, {"ip", "output"}, {"ip6", "forward"}, {"ip6", "input"}, {"ip6", "output"}}, ""},
		{"iptables-legacy", true, nil, "IPv4 and IPv6"},
	} {
		w := newWorld(t, test.bridged)
		if got, err := find(w.host.FD(), group); err != nil || got != nil {
			t.Errorf("%s: found %v without rules, %v", test.tool, got, err)
		}
		w.load(test.tool)
		w.load(test.tool) // again, which replaces them
		got, err := find(w.host.FD(), group)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s bridged=%t (-want +got):\n%s", test.tool, test.bridged, diff)
		}
		if got := Missing(got); got != test.missing {
			t.Errorf("%s: missing %q, want %q", test.tool, got, test.missing)
		}
		if got, err := find(w.host.FD(), group+1); err != nil || got != nil {
			t.Errorf("%s: found %v of another group, %v", test.tool, got, err)
		}
	}
	if got := Missing([]Hook{{"ip", "forward"}, {"ip6", "input"}}); got != "IPv6" {
		t.Errorf("missing %q, want IPv6", got)
	}
}

func TestCandidates(t *testing.T) {
	w := newWorld(t, true)
	got, err := candidates(w.host.FD())
	if diff := cmp.Diff([]string{"br0", "valone", "voutside"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for name, ok := range map[string]bool{"docker0": true, "veth*": true, "br-1a2b3c4d5e6f": true, "": false, `a"b`: false, "a b": false, "a;b": false, "ab*c": false, "*": false, "abcdefghijklmnop": false} {
		if err := CheckInterface(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
