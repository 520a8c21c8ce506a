// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// fate is what became of connections.
type fate struct{ Attempts, Connects, Accepts, Failures, Closes, Resets, Retransmitted uint64 }

func (f fate) plus(g fate) fate {
	return fate{
		f.Attempts + g.Attempts, f.Connects + g.Connects, f.Accepts + g.Accepts, f.Failures + g.Failures,
		f.Closes + g.Closes, f.Resets + g.Resets, f.Retransmitted + g.Retransmitted,
	}
}

func fateOf(t *exporter.TCP) fate {
	return fate{t.ConnectAttempts, *t.Connects, t.Accepts, *t.ConnectFailures, *t.Closes, t.Resets, *t.RetransmittedSegments}
}

// caller is a container, and somebody else whom it calls and is called by.
type caller struct {
	d       *daemon
	id      string
	agent   *testnet.Agent
	address map[string]netip.Addr // by family

	peer    *testnet.Agent
	peerAt  map[string]netip.Addr
	peerNet *testnet.Namespace

	fate fate
	held uint64
}

const silentPort, closedPort = 10, 9

// talk makes connections of every fate, another number of each by n.
func (c *caller) talk(family string, n int) {
	t := c.d.t
	t.Helper()
	out := nettest.Must(c.peer.Listen("tcp", c.peerAt[family]))(t)
	in := nettest.Must(c.agent.Listen("tcp", c.address[family]))(t)
	if got := nettest.Must(c.agent.Connect(out.Addr, 10+n))(t); got.Connected != 10+n {
		t.Fatalf("%+v", got)
	}
	if got := nettest.Must(c.agent.Connect(netip.AddrPortFrom(c.peerAt[family], closedPort), 3+n))(t); got.Refused != 3+n {
		t.Fatalf("%+v", got)
	}
	silent := netip.AddrPortFrom(c.peerAt[family], silentPort)
	if got := nettest.Must(c.agent.ConnectWithin(silent, 1, 1500*time.Millisecond))(t); got.TimedOut != 1 {
		t.Fatalf("%+v", got)
	}
	if got := nettest.Must(c.peer.Connect(in.Addr, 5+n))(t); got.Connected != 5+n {
		t.Fatalf("%+v", got)
	}
	if err := errors.Join(c.agent.Hold(out.Addr, 4), c.agent.LetGo(1, true), c.peer.Hold(in.Addr, 3), c.peer.LetGo(1, true)); err != nil {
		t.Fatal(err)
	}
	made := uint64(n)
	c.fate = c.fate.plus(fate{
		Attempts: 10 + made + 3 + made + 1 + 4, Connects: 10 + made + 4, Accepts: 5 + made + 3, Failures: 3 + made + 1,
		Closes: 10 + made + 5 + made + 2, Resets: 2, Retransmitted: 1, // the SYN that nobody answers
	})
	c.held += 5
}

// letGo resets what is held: in each round 3 connections of the container's and 2 to it.
func (c *caller) letGo(rounds int) {
	c.d.t.Helper()
	if err := errors.Join(c.agent.LetGo(3*rounds, true), c.peer.LetGo(2*rounds, true)); err != nil {
		c.d.t.Fatal(err)
	}
	ended := uint64(5 * rounds)
	c.fate = c.fate.plus(fate{Closes: ended, Resets: ended})
	c.held -= ended
}

// told waits until all that became of the container's connections is told.
func (c *caller) told() {
	c.d.t.Helper()
	c.d.poll("told what became of its connections", func() error {
		now, err := c.d.container(c.id)
		switch {
		case err != nil:
			return err
		case now.TCP == nil:
			return fmt.Errorf("%s has no tcp", now.Name)
		case now.TCP.Established == nil || now.TCP.RTT == nil:
			return fmt.Errorf("%s does not say how many are established: %+v", now.Name, now.TCP)
		}
		got := fateOf(now.TCP)
		if got.Retransmitted > c.fate.Retransmitted {
			got.Retransmitted = c.fate.Retransmitted // a busy host may do so; nstat is the witness of that, see lossy
		}
		if diff := cmp.Diff(c.fate, got); diff != "" {
			return fmt.Errorf("%s (-made +told):\n%s", now.Name, diff)
		}
		if *now.TCP.Established != c.held {
			return fmt.Errorf("%s: %d established, want %d", now.Name, *now.TCP.Established, c.held)
		}
		if now.TCP.RTT.Count == 0 || now.TCP.RTT.SumSeconds == 0 {
			return fmt.Errorf("%s: no round trips: %+v", now.Name, now.TCP.RTT)
		}
		return nil
	})
}

// connectQuota is a quota that counts what containers connect.
const connectQuota = `
quotas:
  - {name: connects, per: container, count: tcp_connects, limit: 1M, period: {every: lifetime}}
`

// recorded waits until the history and the quota have what was told.
func (c *caller) recorded() {
	c.d.t.Helper()
	c.d.poll("told by history and quota", func() error {
		out, err := c.d.run("history", "--step", "hour", "--by", "container", "--container", c.id, "-o", "json")
		var h exporter.History
		if err := errors.Join(err, json.Unmarshal([]byte(out), &h)); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var sum, want fate
		for _, row := range h.History {
			if row.TCP == nil || row.TCP.Connects == nil {
				return fmt.Errorf("an hour without connections: %s", out)
			}
			sum = sum.plus(fate{
				Attempts: row.TCP.ConnectAttempts, Connects: *row.TCP.Connects, Accepts: row.TCP.Accepts, Failures: *row.TCP.ConnectFailures,
			})
		}
		want = fate{Attempts: c.fate.Attempts, Connects: c.fate.Connects, Accepts: c.fate.Accepts, Failures: c.fate.Failures}
		if diff := cmp.Diff(want, sum); diff != "" {
			return fmt.Errorf("history (-made +told):\n%s", diff)
		}
		list, err := exporter.FetchQuotas(c.d.t.Context(), c.d.socket)
		if err != nil {
			return err
		}
		for _, q := range list.Quotas {
			if q.Quota == "connects" && q.Key == c.id && q.Unit == "connections" && uint64(q.Used) == c.fate.Connects {
				return nil
			}
		}
		return fmt.Errorf("no quota has %d connects: %+v", c.fate.Connects, list.Quotas)
	})
}

// silence lets nobody answer at a port.
func silence(t *testing.T, n *testnet.Namespace) {
	t.Helper()
	for _, iptables := range []string{"iptables", "ip6tables"} {
		drop(t, n, iptables, "--dport", fmt.Sprint(silentPort))
	}
}

func drop(t *testing.T, n *testnet.Namespace, iptables string, match ...string) {
	t.Helper()
	args := append(append([]string{"--net=" + n.Path(), "--", iptables, "-I", "INPUT", "-p", "tcp"}, match...), "-j", "DROP")
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// kernelSays returns what nstat says in a network namespace.
func kernelSays(t *testing.T, n *testnet.Namespace, name string) uint64 {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+n.Path(), "--", "nstat", "-asz", name).CombinedOutput()
	if err != nil {
		t.Fatalf("nstat: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return nettest.Must(strconv.ParseUint(f[1], 10, 64))(t)
		}
	}
	t.Fatalf("nstat does not tell %s: %s", name, out)
	return 0
}

// What becomes of the connections of containers in their own networks, on the host's, and in
// one that they share is told of each, as it was made; also where nettally was killed meanwhile,
// is replaced by one with another layout, and when they have ended.
func TestConnections(t *testing.T) {
	need.Root(t)
	need.Commands(t, "nstat", "iptables", "ip6tables")
	t.Parallel()
	for name, o := range map[string]dockerhost.Options{"as the machine is": {}, "cgroup v2 alone": {CgroupV2Only: true}} {
		t.Run(name, func(t *testing.T) { testConnections(t, o) })
	}
}

func testConnections(t *testing.T, o dockerhost.Options) {
	s := newSharing(t, o)
	callers := s.callers()
	for i, c := range callers {
		for _, family := range []string{"IPv4", "IPv6"} {
			c.talk(family, i)
		}
	}
	for _, c := range callers {
		c.told()
	}
	s.d.kill()
	for i, c := range callers {
		c.letGo(1)
		c.talk("IPv4", 2*i)
	}
	if o.CgroupV2Only {
		s.d.binary = nextBinary
	}
	s.d.start()
	for _, c := range callers {
		c.told()
		c.talk("IPv6", 1)
		c.letGo(3)
		c.told()
	}
	alone := callers[len(callers)-1]
	lossy(t, alone, s.docker.ContainerNamespace(alone.id))
	for _, c := range callers {
		c.recorded()
		before := *nettest.Must(s.d.container(c.id))(t).TCP
		c.ends(s.docker, before)
	}
}

// callers are the containers that share networks, with the one that is alone as their peer, and
// that one, with somebody on the host.
func (s *sharing) callers() (all []*caller) {
	silence(s.t, s.docker.ContainerNamespace(s.peer))
	silence(s.t, s.docker.Namespace)
	gateway := map[string]netip.Addr{"IPv4": netip.MustParseAddr("10.233.0.1"), "IPv6": netip.MustParseAddr("fd79:1::1")}
	for _, x := range s.talkers {
		all = append(all, &caller{
			d: s.d, id: x.id, agent: x.agent, address: x.address, peer: nettest.Agent(s.t, s.docker.Namespace), peerAt: gateway, peerNet: s.docker.Namespace,
		})
	}
	return append(all, &caller{
		d: s.d, id: s.peer, agent: s.docker.Agent(s.peer), address: s.peerIPs, peer: nettest.Agent(s.t, s.docker.Namespace), peerAt: gateway, peerNet: s.docker.Namespace,
	})
}

// lossy sends where every seventh packet is lost. What is sent again is as nstat has it in the
// container's namespace, which is its alone.
func lossy(t *testing.T, c *caller, in *testnet.Namespace) {
	t.Helper()
	sink := nettest.Must(c.peer.Listen("tcp", c.peerAt["IPv4"]))(t)
	drop(t, c.peerNet, "iptables", "--dport", fmt.Sprint(sink.Addr.Port()), "-m", "statistic", "--mode", "nth", "--every", "7", "--packet", "3")
	before := kernelSays(t, in, "TcpRetransSegs")
	if err := c.agent.SendTCP(sink.Addr, 2_000_000, testnet.Write); err != nil {
		t.Fatal(err)
	}
	now := kernelSays(t, in, "TcpRetransSegs")
	if now-before < 5 {
		t.Errorf("%d segments were sent again: is this a test of anything?", now-before)
	}
	c.fate = c.fate.plus(fate{Attempts: 1, Connects: 1, Closes: 1})
	c.fate.Retransmitted = now
	c.told()
	for name, ours := range map[string]uint64{
		"TcpActiveOpens": c.fate.Attempts, "TcpPassiveOpens": c.fate.Accepts, "TcpEstabResets": c.fate.Resets, "TcpRetransSegs": c.fate.Retransmitted,
	} {
		if kernels := kernelSays(t, in, name); kernels != ours {
			t.Errorf("%s is %d, and we tell %d", name, kernels, ours)
		}
	}
}

// ends ends a container, which keeps what was counted.
func (c *caller) ends(docker *dockerhost.Docker, before exporter.TCP) {
	c.d.t.Helper()
	_ = c.agent.Close()
	docker.CLI("rm", "--force", c.id)
	c.d.poll("told of what has ended", func() error {
		now, err := c.d.container(c.id)
		if err != nil {
			return err
		}
		if now.State != "stopped" || now.TCP == nil || now.TCP.Established != nil {
			return fmt.Errorf("%s is %s with %+v", now.Name, now.State, now.TCP)
		}
		if now.TCP.Connects == nil {
			return fmt.Errorf("%s does not know what became of its attempts", now.Name)
		}
		if got, want := fateOf(now.TCP), fateOf(&before); got.Attempts != want.Attempts || got.Connects != want.Connects || got.Accepts != want.Accepts {
			return fmt.Errorf("%s: %+v, before its end %+v", now.Name, got, want)
		}
		return nil
	})
}

// The containers of a pod are told apart.
func TestConnectionsOfPods(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "iptables", "ip6tables")
	node := crihost.Start(t, crihost.Options{})
	d := startDaemon(t, node, onlyPods(node))
	silence(t, node.Namespace)
	pod := nettest.Must(node.RunPod("talks", crihost.PodOptions{}, crihost.Container{Name: "one"}, crihost.Container{Name: "two"}))(t)
	var callers []*caller
	for _, name := range []string{"one", "two"} {
		agent := nettest.Must(pod.Agent(name))(t)
		t.Cleanup(func() { _ = agent.Close() })
		callers = append(callers, &caller{
			d: d, id: pod.Containers[name], agent: agent, address: map[string]netip.Addr{"IPv4": pod.IPv4},
			peer: nettest.Agent(t, node.Namespace), peerAt: map[string]netip.Addr{"IPv4": node.Address}, peerNet: node.Namespace,
		})
	}
	for i, c := range callers {
		c.talk("IPv4", 3*i)
		c.told()
	}
	d.kill()
	for i, c := range callers {
		c.talk("IPv4", i)
	}
	d.start()
	for _, c := range callers {
		c.told()
	}
}

// With accounting.tcp off nothing of it is attached or shown; what an earlier run attached is
// taken off.
func TestConnectionsOff(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startDaemon(t, docker, onlyDocker(docker))
	id := docker.Run(dockerhost.Image)
	pins := func() []string { // in a bpffs that nettally has mounted, in its mount namespace
		root := fmt.Sprintf("/proc/%d/root", d.cmd.Process.Pid)
		return nettest.Must(filepath.Glob(filepath.Join(root, d.pins, "cgroups", "*-sock_ops")))(t)
	}
	d.poll("counting connections", func() error {
		c, err := d.container(id)
		if err == nil && (c.TCP == nil || len(pins()) != 1 || d.metric(`nettally_attachments{hook="sock_ops"}`) != 1) {
			err = fmt.Errorf("tcp %+v, pins %v", c.TCP, pins())
		}
		return err
	})
	d.stop()
	d.configure("log: {level: debug}", "log: {level: debug}\naccounting: {tcp: off}")
	d.start()
	d.counted(id, 1)
	if c := nettest.Must(d.container(id))(t); c.TCP != nil || len(pins()) != 0 || d.metric(`nettally_attachments{hook="sock_ops"}`) != 0 {
		t.Errorf("tcp %+v, pins %v", c.TCP, pins())
	}
}
