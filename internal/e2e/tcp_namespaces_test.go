// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// namespaced is a container that is alone in its network namespace, and what the kernel has counted
// there that is its.
type namespaced struct {
	t    *testing.T
	d    *daemon
	c    *testnet.Container
	peer *testnet.Agent
	// before is what the kernel counted that is not the container's, less what it had in namespaces
	// that are gone.
	before map[string]uint64
}

// attemptQuota counts what can be known.
const attemptQuota = `
  - {name: attempts, per: container, count: tcp_connect_attempts, limit: 1M, period: {every: lifetime}}
`

// counters are those of nstat, by the words of ours.
var counters = map[string]string{
	"connect_attempts": "TcpActiveOpens", "accepts": "TcpPassiveOpens", "resets": "TcpEstabResets", "listen_drops": "TcpExtListenDrops",
}

func (n *namespaced) kernel() map[string]uint64 {
	n.t.Helper()
	now := map[string]uint64{}
	for word, name := range counters {
		now[word] = kernelSays(n.t, n.c.Namespace, name)
	}
	return now
}

// talk makes connections of every fate, over both families and loopback.
func (n *namespaced) talk() {
	n.t.Helper()
	nic := n.c.Interfaces[0]
	for _, way := range []struct{ out, in netip.Addr }{
		{nic.HostIPv4, nic.IPv4}, {nic.HostIPv6, nic.IPv6}, {netip.MustParseAddr("127.0.0.1"), netip.Addr{}},
	} {
		of := n.peer
		if !way.in.IsValid() {
			of = n.c.Agent // with itself
		}
		out := nettest.Must(of.Listen("tcp", way.out))(n.t)
		nettest.Must(n.c.Connect(out.Addr, 5))(n.t)
		nettest.Must(n.c.Connect(netip.AddrPortFrom(way.out, closedPort), 3))(n.t)
		if way.in.IsValid() {
			in := nettest.Must(n.c.Agent.Listen("tcp", way.in))(n.t)
			nettest.Must(n.peer.Connect(in.Addr, 4))(n.t)
			if err := errors.Join(n.c.Hold(out.Addr, 2), n.c.LetGo(1, true), n.peer.Hold(in.Addr, 2), n.peer.LetGo(2, true)); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// told waits until what the kernel has counted is told, and nothing else.
func (n *namespaced) told(what string) {
	n.t.Helper()
	n.d.poll(what, func() error {
		c, err := n.d.container(n.c.ID)
		if err != nil {
			return err
		}
		if c.TCP == nil || c.TCP.ListenDrops == nil {
			return fmt.Errorf("tcp %+v", c.TCP)
		}
		now := n.kernel() // whose reading takes no part in it
		for word, got := range map[string]uint64{
			"connect_attempts": c.TCP.ConnectAttempts, "accepts": c.TCP.Accepts, "resets": c.TCP.Resets, "listen_drops": *c.TCP.ListenDrops,
		} {
			if got != now[word]-n.before[word] {
				return fmt.Errorf("%s is %d, want %d, of which the kernel has %d", word, got, now[word]-n.before[word], now[word])
			}
		}
		return unknownInPart(c.TCP)
	})
}

// unknownInPart says that something is told of a container that nobody knows.
func unknownInPart(c *exporter.TCP) error {
	if c.Connects != nil || c.ConnectFailures != nil || c.Closes != nil || c.RetransmittedSegments != nil || c.Established != nil || c.RTT != nil {
		return fmt.Errorf("told of a network namespace: %+v", *c)
	}
	return nil
}

// Without a cgroup2 hierarchy, and where only /proc counts, a container that has its network
// namespace to itself has the connections that the kernel counts there: over a restart of
// nettally, kill -9, and the next life of the container. The other numbers have no sample.
func TestConnectionsByNamespace(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "nstat")
	const v1 = "/sys/fs/cgroup/memory"
	for name, start := range map[string]func(*testing.T, *testnet.Namespace, string) *daemon{
		"cgroup v1 alone": func(t *testing.T, host *testnet.Namespace, id string) *daemon {
			need.Files(t, v1+"/cgroup.procs")
			return startDaemon(t, on{host}, "watch: {cgroup_root: "+v1+", include: ["+id+"]}"+connectQuota+attemptQuota)
		},
		"by proc": func(t *testing.T, host *testnet.Namespace, id string) *daemon {
			return startDaemon(t, on{host}, "accounting: {source: proc}\nwatch: {include: ["+id+"]}\nquotas:"+attemptQuota)
		},
		"without capabilities": func(t *testing.T, host *testnet.Namespace, id string) *daemon {
			need.Commands(t, "setpriv")
			d := startDaemon(t, without{on{host}, "all"}, "watch: {include: ["+id+"]}\nquotas:"+attemptQuota)
			t.Cleanup(func() { d.at = on{host} }) // detach needs them
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := nettest.Host(t)
			c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
			n := &namespaced{t: t, c: c, peer: nettest.Agent(t, host)}
			n.talk()
			n.before = n.kernel() // nobody can say whose these were
			n.d = start(t, host, c.ID)
			n.told("nothing yet")
			n.lives()
		})
	}
}

func (n *namespaced) lives() {
	n.t.Helper()
	n.talk()
	n.told("told")
	if now := n.kernel(); now["resets"]-n.before["resets"] < 6 {
		n.t.Errorf("%v, before %v: is this a test of anything?", now, n.before)
	}
	n.d.stop()
	n.talk()
	n.d.start()
	n.told("told over a restart")
	n.talk()
	n.told("told before a kill")
	n.d.kill()
	n.talk()
	n.d.start()
	n.told("told over kill -9")
	n.surfaces()

	before := *nettest.Must(n.d.container(n.c.ID))(n.t).TCP
	if err := n.c.Restart(); err != nil {
		n.t.Fatal(err)
	}
	// The new namespace begins at 0, and is the container's from the first connection on.
	n.before = map[string]uint64{
		"connect_attempts": -before.ConnectAttempts, "accepts": -before.Accepts, "resets": -before.Resets, "listen_drops": -*before.ListenDrops,
	}
	n.talk()
	n.told("told over the next life of the container")
}

// surfaces says that nobody is told what is not known.
func (n *namespaced) surfaces() {
	n.t.Helper()
	metrics := nettest.Must(n.d.get("/metrics"))(n.t)
	for _, line := range strings.Split(metrics, "\n") {
		for _, unknown := range []string{"connects_total", "connect_failures_total", "retransmitted_segments_total", "established", "rtt_seconds"} {
			if strings.HasPrefix(line, "nettally_container_tcp_"+unknown) {
				n.t.Errorf("a sample of what is not known: %s", line)
			}
		}
	}
	if !strings.Contains(metrics, "\nnettally_container_tcp_accepts_total{") {
		n.t.Error("no sample of what is known")
	}
	n.d.poll("a quota of what is known", func() error {
		list, err := exporter.FetchQuotas(n.t.Context(), n.d.socket)
		if err != nil {
			return err
		}
		now := nettest.Must(n.d.container(n.c.ID))(n.t).TCP
		used := -1.0
		for _, q := range list.Quotas {
			switch {
			case q.Key != n.c.ID:
			case q.Quota == "connects":
				n.t.Errorf("a quota of what is not known: %+v", q)
			default:
				used = q.Used
			}
		}
		if used != float64(now.ConnectAttempts) {
			return fmt.Errorf("used %v, %d attempts", used, now.ConnectAttempts)
		}
		return nil
	})
	n.d.poll("the history of what is known", func() error {
		out, err := n.d.run("history", "--step", "month", "--by", "container", "--container", n.c.ID, "-o", "json")
		var h exporter.History
		if err := errors.Join(err, json.Unmarshal([]byte(out), &h)); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		now := nettest.Must(n.d.container(n.c.ID))(n.t).TCP
		if len(h.History) == 0 {
			return errors.New("none")
		}
		for _, row := range h.History[:1] {
			if row.TCP == nil || row.TCP.ConnectAttempts != now.ConnectAttempts || row.TCP.Accepts != now.Accepts {
				return fmt.Errorf("%+v, want %d and %d", row.TCP, now.ConnectAttempts, now.Accepts)
			}
			if row.TCP.Connects != nil || row.TCP.ConnectFailures != nil {
				n.t.Errorf("history of what is not known: %+v", *row.TCP)
			}
		}
		return nil
	})
}
