// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// What tcpdump calls a request.
const (
	syn4 = "ip and tcp[tcpflags] & (tcp-syn|tcp-ack|tcp-rst|tcp-fin) == tcp-syn"
	syn6 = "ip6 and ip6[6] == 6 and ip6[53] & 0x17 == 2"
)

// Each container's requests are those that tcpdump sees on its veth, and all of them those that
// the rules count, whatever tool the rules are for and whatever they see of a bridge.
func TestRequests(t *testing.T) {
	for _, tool := range []string{"nft", "iptables-nft", "iptables-legacy"} {
		for _, bridged := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s bridged=%t", tool, bridged), func(t *testing.T) { testRequests(t, tool, bridged) })
		}
	}
}

// pairs are who asks whom; none but a and b are on the bridge.
var pairs = [][2]string{
	{"a", "outside"}, {"outside", "a"}, {"a", "host"}, {"host", "b"}, {"a", "b"}, {"b", "a"},
	{"alone", "outside"}, {"outside", "alone"}, {"alone", "b"}, {"a", "alone"}, {"b", "outside"},
}

func testRequests(t *testing.T, tool string, bridged bool) {
	w := newWorld(t, bridged)
	w.load(tool)
	w.start(0)
	captures := map[string]*nettest.Capture{}
	for name, n := range w.nodes {
		captures[name] = nettest.StartCapture(t, w.host, n.veth)
	}
	for i, pair := range pairs {
		for f := range ipFamilies {
			w.ask(pair, f, 3+i+20*f)
		}
	}
	w.until("all is counted", func(s usage.Snapshot) bool { return s.Log.Logged == w.counted(tool) && w.settled() })
	s := w.snapshot()
	if s.Log.Lost+s.Log.Overruns+s.Log.Ignored != 0 || s.Log.Logged == 0 {
		t.Errorf("the group: %+v", *s.Log)
	}
	a, b := w.nodes["a"], w.nodes["b"]
	onBridge := fmt.Sprintf(" and not (host %s and host %s) and not (host %s and host %s)", a.ip[0], b.ip[0], a.ip[1], b.ip[1])
	if bridged || tool == "nft" {
		onBridge = "" // seen
	}
	for _, name := range []string{"a", "b", "alone"} {
		got := loggedOf(s, name)
		for d, r := range map[string]usage.LoggedRequests{"src": got.Transmit, "dst": got.Receive} {
			n := w.nodes[name]
			want := captures[name].Count(fmt.Sprintf("%s host %s and %s%s", d, n.ip[0], syn4, onBridge)).Packets +
				captures[name].Count(fmt.Sprintf("%s host %s and %s%s", d, n.ip[1], syn6, onBridge)).Packets
			if r.SYN != want || want == 0 {
				t.Errorf("%s %s: %d SYNs, tcpdump has %d", name, d, r.SYN, want)
			}
			if got, want := r.Connections-r.SYN, w.flows(name, d, bridged); got != want {
				t.Errorf("%s %s: %d of UDP, want %d", name, d, got, want)
			}
		}
	}
}

// ask has one node open TCP connections to another, and send it datagrams of one UDP socket.
func (w *world) ask(pair [2]string, f, connections int) {
	w.t.Helper()
	from, _ := w.agent(pair[0], f)
	to, at := w.agent(pair[1], f)
	taken := nettest.Must(to.Listen("tcp", at))(w.t)
	nettest.Must(from.Connect(taken.Addr, connections))(w.t)
	datagrams := nettest.Must(to.Listen("udp", at))(w.t)
	if err := from.SendUDP(datagrams.Addr, 10, 100); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) agent(name string, f int) (*testnet.Agent, netip.Addr) {
	if n := w.nodes[name]; n != nil {
		return n.Agent, n.ip[f]
	}
	return w.agentOfHost, [2]netip.Addr{netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1")}[f]
}

// flows returns how many UDP connections the rules can see of a node: those from port to port
// of the bridge only by br_netfilter.
func (w *world) flows(name, direction string, bridged bool) (n uint64) {
	for _, pair := range pairs {
		end := map[string]string{"src": pair[0], "dst": pair[1]}[direction]
		across := (pair[0] == "a" || pair[0] == "b") && (pair[1] == "a" || pair[1] == "b")
		if end == name && (bridged || !across) {
			n += uint64(len(ipFamilies))
		}
	}
	return n
}

// settled reports whether nobody is looked for, but in vain.
func (w *world) settled() bool {
	w.counter.mu.Lock()
	defer w.counter.mu.Unlock()
	for e, p := range w.counter.pending {
		if !p.vain && w.counter.index.links[e.dev] != veth {
			return false
		}
	}
	return true
}
