// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group = 5

// world is a host with a bridge br0, two containers on it, one on a veth of its own, and a
// peer outside that the host forwards to.
type world struct {
	t       *testing.T
	host    *testnet.Namespace
	nodes   map[string]*node
	counter *Counter
	stop    func() // the counter

	agentOfHost *testnet.Agent
	patience    time.Duration // of the counter

	logged *logBuffer

	mu     sync.Mutex
	owners map[int]string // by ifindex
}

// node is a namespace behind the host.
type node struct {
	*testnet.Agent
	namespace *testnet.Namespace
	veth      string // on the host
	ip        [2]netip.Addr
}

// ipFamilies are the indices of a node's addresses.
var ipFamilies = [2]string{"IPv4", "IPv6"}

func newWorld(t *testing.T, bridged bool) *world {
	t.Helper()
	need.Root(t)
	need.Commands(t, "ip", "nft", "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy", "tcpdump")
	w := &world{t: t, host: nettest.Host(t), nodes: map[string]*node{}, owners: map[int]string{}, logged: &logBuffer{}, patience: time.Hour}
	w.agentOfHost = nettest.Agent(t, w.host)
	w.ip(w.host, "link add br0 type bridge mcast_snooping 0")
	w.ip(w.host, "link set br0 up")
	w.ip(w.host, "addr add 10.88.0.1/24 dev br0")
	w.ip(w.host, "addr add fd88::1/64 dev br0 nodad")
	on := "0"
	if bridged {
		on = "1"
	}
	for name, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"bridge/bridge-nf-call-iptables": on, "bridge/bridge-nf-call-ip6tables": on,
	} {
		if err := w.host.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	w.add("a", 0, 10, "br0", "a")
	w.add("b", 0, 11, "br0", "b")
	w.add("alone", 1, 10, "", "alone")
	w.add("outside", 2, 10, "", "")
	return w
}

// add adds a node to a subnet, whose host is .1.
func (w *world) add(name string, subnet, number int, bridge, owner string) {
	w.t.Helper()
	n := &node{namespace: nettest.Must(testnet.NewNamespace())(w.t), veth: "v" + name}
	w.t.Cleanup(func() { n.namespace.Close() })
	if err := testnet.Veth(w.host, n.veth, n.namespace, "eth0"); err != nil {
		w.t.Fatal(err)
	}
	n.ip = [2]netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.88.%d.%d", subnet, number)),
		netip.MustParseAddr(fmt.Sprintf("fd88:0:0:%d::%d", subnet, number)),
	}
	gateway := [2]string{fmt.Sprintf("10.88.%d.1", subnet), fmt.Sprintf("fd88:0:0:%d::1", subnet)}
	if bridge != "" {
		w.ip(w.host, "link set "+n.veth+" master "+bridge)
	} else {
		w.ip(w.host, "addr add "+gateway[0]+"/24 dev "+n.veth)
		w.ip(w.host, "addr add "+gateway[1]+"/64 dev "+n.veth+" nodad")
	}
	w.ip(w.host, "link set "+n.veth+" up")
	w.ip(n.namespace, "addr add "+n.ip[0].String()+"/24 dev eth0")
	w.ip(n.namespace, "addr add "+n.ip[1].String()+"/64 dev eth0 nodad")
	w.ip(n.namespace, "link set eth0 up")
	w.ip(n.namespace, "route add default via "+gateway[0])
	w.ip(n.namespace, "route add default via "+gateway[1])
	n.Agent = nettest.Agent(w.t, n.namespace)
	w.up(w.host, n.veth)
	w.up(n.namespace, "eth0")
	w.nodes[name] = n
	if owner != "" {
		w.own(n.veth, owner)
	}
}

// up waits until an interface passes packets.
func (w *world) up(n *testnet.Namespace, name string) {
	w.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		link := nettest.Must(n.LinkByName(name))(w.t)
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Since(began) > time.Minute {
			w.t.Fatalf("%s is %s still", name, link.Attrs().OperState)
		}
	}
}

func (w *world) own(veth, owner string) {
	w.t.Helper()
	link := nettest.Must(w.host.LinkByName(veth))(w.t)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owners[link.Attrs().Index] = owner
}

func (w *world) ip(n *testnet.Namespace, args string) {
	w.t.Helper()
	w.run(n, "ip", strings.Fields(args)...)
}

func (w *world) run(n *testnet.Namespace, name string, args ...string) string {
	w.t.Helper()
	out, err := n.Run(name, args...)
	if err != nil {
		w.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// rules are ours for this host, as the command has them.
func (w *world) rules() Rules {
	w.t.Helper()
	r := Rules{Group: group}
	err := w.host.Do(func() (err error) {
		r.IPv4Bridged, r.IPv6Bridged = Bridged()
		r.Interfaces = []string{"br0", "valone"}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// load adds rules by one of the tools: nft, iptables-nft or iptables-legacy.
func (w *world) load(tool string) {
	w.t.Helper()
	r := w.rules()
	if tool == "nft" {
		w.run(w.host, "sh", "-c", "nft -f - <<'END'\n"+r.NFT()+"END")
		return
	}
	flavour := strings.TrimPrefix(tool, "iptables-")
	text := strings.NewReplacer("ip6tables", "ip6tables-"+flavour, "iptables", "iptables-"+flavour).Replace(r.IPTables())
	text = strings.ReplaceAll(text, "call-iptables-"+flavour, "call-iptables")
	w.run(w.host, "sh", "-ec", text)
}

// counted returns what the rules that log have counted.
func (w *world) counted(tool string) (sum uint64) {
	w.t.Helper()
	if tool == "nft" {
		var list struct {
			Nftables []struct {
				Rule struct {
					Expr []struct{ Counter struct{ Packets uint64 } }
				}
			}
		}
		if err := json.Unmarshal([]byte(w.run(w.host, "nft", "-j", "list", "ruleset")), &list); err != nil {
			w.t.Fatal(err)
		}
		for _, o := range list.Nftables {
			for _, e := range o.Rule.Expr {
				sum += e.Counter.Packets
			}
		}
		return sum
	}
	flavour := strings.TrimPrefix(tool, "iptables-")
	for _, program := range []string{"iptables-" + flavour, "ip6tables-" + flavour} {
		for line := range strings.Lines(w.run(w.host, program, "-t", "mangle", "-vnxL", chainLog)) {
			var packets uint64
			if _, err := fmt.Sscan(line, &packets); err == nil && strings.Contains(line, "NFLOG") {
				sum += packets
			}
		}
	}
	return sum
}

// start starts the counter, which ends with the test.
func (w *world) start(buffer int) {
	w.t.Helper()
	w.counter = New(Options{
		Group: group, NetNS: w.host.FD(), Net: fmt.Sprintf("/proc/%d/net", w.agentOfHost.PID()), Buffer: buffer,
		Owner: func(ifindex int) string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.owners[ifindex]
		},
		Log: slog.New(slog.NewTextHandler(w.logged, nil)),
	})
	w.counter.patience = w.patience
	w.stop = sync.OnceFunc(run(w.counter))
	w.t.Cleanup(w.stop)
	w.until("the group is bound", func(s usage.Snapshot) bool { return s.Log.Bound })
}

func run(c *Counter) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	return func() { cancel(); <-done }
}

// snapshot is what the counter says of all containers.
func (w *world) snapshot() usage.Snapshot {
	var s usage.Snapshot
	for name := range w.nodes {
		s.Containers = append(s.Containers, usage.Container{ID: name})
	}
	w.counter.Fill(&s)
	return s
}

// loggedOf returns what was counted of a container, zeroes if nothing.
func loggedOf(s usage.Snapshot, id string) usage.Logged {
	for _, c := range s.Containers {
		if c.ID == id && c.Logged != nil {
			return *c.Logged
		}
	}
	return usage.Logged{}
}

// until waits until a snapshot is as it should be.
func (w *world) until(what string, is func(usage.Snapshot) bool) usage.Snapshot {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(20 * time.Millisecond) {
		if s := w.snapshot(); is(s) {
			return s
		}
	}
	s := w.snapshot()
	for _, c := range s.Containers {
		w.t.Logf("%s: %+v", c.ID, c.Logged)
	}
	w.t.Fatalf("%s: never; %+v\n%s", what, *s.Log, w.logged)
	return s
}

// came waits until all that the rules of nft have logged is counted or looked for, and returns
// how much that is: a request that takes too long on a busy machine is sent again.
func (w *world) came(least uint64) (s usage.Snapshot, count uint64) {
	w.t.Helper()
	s = w.until("all came", func(s usage.Snapshot) bool {
		count = w.counted("nft")
		return count >= least && s.Log.Logged == count
	})
	return s, count
}

type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
