// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// connections is a container whose connections are counted, alone in its namespace, so that
// what the kernel says of that is of the container.
type connections struct {
	*bench
	on       *Controller
	timedOut uint64 // failures that the kernel does not count
}

func newConnections(t *testing.T) *connections {
	t.Helper()
	need.Commands(t, "nstat", "ss", "nsenter", "iptables", "ip6tables")
	b := newBench(t)
	if err := b.datapath.LoadTCP(); err != nil {
		t.Fatal(err)
	}
	c := &connections{bench: b, on: New(Options{Root: b.Root, Pins: b.Pins, Hooks: Connections})}
	id := nettest.Must(c.on.ID(b.container.Cgroup))(t)
	b.slot = nettest.Must(b.datapath.Take(bpf.Target{Cgroup: id, Sockets: true}))(t)
	c.attach()
	t.Cleanup(func() {
		if err := c.on.Detach(id); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *connections) attach() {
	c.t.Helper()
	if err := c.on.Attach(c.container.Cgroup, c.slot.Cgroup, c.datapath.TCP); err != nil {
		c.t.Fatal(err)
	}
	if err := c.datapath.BindCgroup(c.slot); err != nil {
		c.t.Fatal(err)
	}
}

// told is what both we and the kernel count.
type told struct {
	attempts, accepts, failures, resets, retransmitted uint64
	established                                        uint64
}

func (c *connections) ours() (told, bpf.TCPCounters) {
	c.t.Helper()
	n := nettest.Must(c.datapath.ReadTCP(c.slot))(c.t)
	return told{n.ConnectAttempts, n.Accepts, n.ConnectFailures, n.Resets, n.RetransmittedSegments, n.Entered - n.Left}, n
}

// kernels returns what nstat and ss say in the container's namespace.
func (c *connections) kernels() told {
	c.t.Helper()
	numbers := map[string]uint64{}
	for line := range strings.Lines(c.run("nstat", "-asz")) {
		if f := strings.Fields(line); len(f) > 1 {
			numbers[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	established := uint64(strings.Count(c.run("ss", "-tnH", "state", "established"), "\n"))
	return told{
		numbers["TcpActiveOpens"], numbers["TcpPassiveOpens"], numbers["TcpAttemptFails"],
		numbers["TcpEstabResets"], numbers["TcpRetransSegs"], established,
	}
}

// run runs a command in the container's namespace.
func (c *connections) run(name string, args ...string) string {
	c.t.Helper()
	return inNamespace(c.t, c.container.Namespace, name, args...)
}

func inNamespace(t *testing.T, n *testnet.Namespace, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + n.Path(), "--", name}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// agree waits until ours are the kernel's, but for the failures that it does not count: those of
// connections that were given up. It returns ours.
func (c *connections) agree(givenUp uint64) bpf.TCPCounters {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		want := c.kernels()
		want.failures += givenUp
		got, all := c.ours()
		if got == want {
			return all
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("we count %+v, the kernel %+v", got, want)
		}
	}
}

// What becomes of a container's connections is counted as the kernel counts it for the whole
// namespace, and as the program that made them says.
func TestConnections(t *testing.T) {
	c := newConnections(t)
	i := c.container.Interfaces[0]
	for _, family := range []struct {
		name, iptables  string
		host, container netip.Addr
	}{{"IPv4", "iptables", i.HostIPv4, i.IPv4}, {"IPv6", "ip6tables", i.HostIPv6, i.IPv6}} {
		t.Run(family.name, func(t *testing.T) { c.t = t; c.converse(family.iptables, family.host, family.container) })
	}
}

func (c *connections) converse(iptables string, host, container netip.Addr) {
	t := c.t
	before := c.agree(c.timedOut)
	out := nettest.Must(c.peer.Listen("tcp", host))(t)
	in := nettest.Must(c.container.Listen("tcp", container))(t)

	// 20 that connect, 7 that are refused, and 3 that nobody answers, each of which sends its
	// SYN twice.
	if got := nettest.Must(c.container.Connect(out.Addr, 20))(t); got.Connected != 20 {
		t.Fatalf("%+v", got)
	}
	if got := nettest.Must(c.container.Connect(netip.AddrPortFrom(host, 9), 7))(t); got.Refused != 7 {
		t.Fatalf("%+v", got)
	}
	inNamespace(t, c.host, iptables, "-A", "INPUT", "-p", "tcp", "--dport", "10", "-j", "DROP")
	if got := nettest.Must(c.container.ConnectWithin(netip.AddrPortFrom(host, 10), 3, 1500*time.Millisecond))(t); got.TimedOut != 3 {
		t.Fatalf("%+v", got)
	}
	c.timedOut += 3
	// 11 that come in, and 5 and 4 that stay: two of each are reset.
	nettest.Must(c.peer.Connect(in.Addr, 11))(t)
	for agent, to := range map[*testnet.Agent]netip.AddrPort{c.container.Agent: out.Addr, c.peer: in.Addr} {
		count := 4
		if agent == c.peer {
			count = 5
		}
		if err := agent.Hold(to, count); err != nil {
			t.Fatal(err)
		}
		if err := agent.LetGo(2, true); err != nil {
			t.Fatal(err)
		}
	}
	now := c.agree(c.timedOut)
	got := [...]uint64{
		now.ConnectAttempts - before.ConnectAttempts, now.Connects - before.Connects, now.Accepts - before.Accepts,
		now.ConnectFailures - before.ConnectFailures, now.Resets - before.Resets,
		now.RetransmittedSegments - before.RetransmittedSegments, now.Entered - now.Left - (before.Entered - before.Left),
		now.Closes - before.Closes,
	}
	want := [...]uint64{20 + 7 + 3 + 4, 20 + 4, 11 + 5, 7 + 3, 2 + 2, 3, 2 + 3, 20 + 11 + 4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attempts, connects, accepts, failures, resets, retransmitted, established, closes (-want +got):\n%s", diff)
	}

	// Every seventh packet of a transfer is lost.
	inNamespace(t, c.host, iptables, "-A", "INPUT", "-p", "tcp", "--dport", fmt.Sprint(out.Addr.Port()),
		"-m", "statistic", "--mode", "nth", "--every", "7", "--packet", "3", "-j", "DROP")
	if err := c.container.SendTCP(out.Addr, 2_000_000, testnet.Write); err != nil {
		t.Fatal(err)
	}
	lossy := c.agree(c.timedOut)
	if lossy.RetransmittedSegments-now.RetransmittedSegments < 5 {
		t.Errorf("%d segments retransmitted: is this a test of anything?", lossy.RetransmittedSegments-now.RetransmittedSegments)
	}
	c.roundTrips(lossy)
	for _, agent := range []*testnet.Agent{c.container.Agent, c.peer} {
		held := 2
		if agent == c.peer {
			held = 3
		}
		if err := agent.LetGo(held, true); err != nil {
			t.Fatal(err)
		}
	}
	if left := c.agree(c.timedOut); left.Entered != left.Left {
		t.Errorf("%d are established in the end", left.Entered-left.Left)
	}
}

// roundTrips holds the round trips to what a veth can have.
func (c *connections) roundTrips(n bpf.TCPCounters) {
	c.t.Helper()
	var count uint64
	for _, bucket := range n.RTTs {
		count += bucket
	}
	if count < n.Connects+n.Accepts || n.RTTMicroseconds == 0 || n.RTTMicroseconds/count > 1_000_000 {
		c.t.Errorf("%d round trips of %d µs in all: %v", count, n.RTTMicroseconds, n.RTTs)
	}
}

// foreignOps is another's sock_ops program, as the kernel's samples have them: it answers when it
// is asked for the first timeout, and overwrites `reply` and the callbacks at each call.
func foreignOps(t *testing.T, timeout int32) *ebpf.Program {
	t.Helper()
	const op, reply, timeoutInit, rtoCallback = 0, 4, 1, 1
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R6, op, asm.Word),
			asm.Mov.Imm(asm.R3, -1),
			asm.JNE.Imm(asm.R2, timeoutInit, "answer"),
			asm.Mov.Imm(asm.R3, timeout),
			asm.StoreMem(asm.R6, reply, asm.R3, asm.Word).WithSymbol("answer"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, rtoCallback),
			asm.FnSockOpsCbFlagsSet.Call(),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// firstTimeout returns the timeout of a SYN that nobody answers, as ss has it.
func (c *connections) firstTimeout(to netip.AddrPort) (rto string) {
	c.t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := c.container.ConnectWithin(to, 1, 500*time.Millisecond)
		done <- err
	}()
	for deadline := time.Now().Add(time.Minute); rto == "" && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for field := range strings.FieldsSeq(c.run("ss", "-tniH", "state", "syn-sent")) {
			if value, ok := strings.CutPrefix(field, "rto:"); ok {
				rto = value
			}
		}
	}
	if err := <-done; err != nil {
		c.t.Fatal(err)
	}
	return rto
}

// Another's program beside ours, which answers the kernel, goes on being heard; and ours counts,
// though that one overwrites what the kernel has told of the states.
func TestConnectionsBesideOthers(t *testing.T) {
	c := newConnections(t)
	host := c.container.Interfaces[0].HostIPv4
	silent := netip.AddrPortFrom(host, 10)
	inNamespace(t, c.host, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "10", "-j", "DROP")
	usual := c.firstTimeout(silent)
	if err := c.on.Detach(c.slot.Cgroup); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.Root, c.container.Cgroup)
	theirs := nettest.Must(link.AttachCgroup(link.CgroupOptions{Path: path, Attach: ebpf.AttachCGroupSockOps, Program: foreignOps(t, 4321)}))(t)
	defer theirs.Close()
	alone := c.firstTimeout(silent)
	c.attach()
	if beside := c.firstTimeout(silent); beside != alone || alone == usual || alone == "" {
		t.Errorf("the timeout that they answer with is %q alone, and %q beside ours; it is %q without them", alone, beside, usual)
	}
	to := nettest.Must(c.peer.Listen("tcp", host))(t)
	_, before := c.ours()
	nettest.Must(c.container.Connect(to.Addr, 5))(t)
	nettest.Must(c.container.Connect(netip.AddrPortFrom(host, 9), 4))(t)
	if err := c.container.Hold(to.Addr, 2); err != nil {
		t.Fatal(err)
	}
	_, now := c.ours()
	got := [...]uint64{
		now.ConnectAttempts - before.ConnectAttempts, now.Connects - before.Connects,
		now.ConnectFailures - before.ConnectFailures, now.Entered - now.Left - (before.Entered - before.Left),
	}
	if want := [...]uint64{11, 7, 4, 2}; got != want {
		t.Errorf("attempts, connects, failures, established: %d, want %d", got, want)
	}
}

// Where another's program allows none beside it, ours stays off, and says whose it is.
func TestConnectionsExclusive(t *testing.T) {
	c := newConnections(t)
	if err := c.on.Detach(c.slot.Cgroup); err != nil {
		t.Fatal(err)
	}
	foreign := foreignOps(t, 4321)
	above := openDir(t, filepath.Join(c.Root, filepath.Dir(c.container.Cgroup)))
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: above, Program: foreign, Attach: ebpf.AttachCGroupSockOps})
	if err != nil {
		t.Fatal(err)
	}
	var by *ExclusiveError
	err = c.on.Attach(c.container.Cgroup, c.slot.Cgroup, c.datapath.TCP)
	if !errors.As(err, &by) || by.Program != "foreign" || by.Hook != "sock_ops" || by.Cgroup != filepath.Dir(c.container.Cgroup) {
		t.Errorf("attach: %v", err)
	}
	if on := nettest.Must(c.on.Attached(c.slot.Cgroup))(t); on {
		t.Error("ours is attached all the same")
	}
	err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: above, Program: foreign, Attach: ebpf.AttachCGroupSockOps})
	if err != nil {
		t.Fatal(err)
	}
	c.attach()
	// Each of the two kinds of hooks has pins of its own.
	if ids := nettest.Must(c.on.IDs())(t); !slices.Equal(ids, []uint64{c.slot.Cgroup}) {
		t.Errorf("pinned for connections: %d", ids)
	}
	if ids := nettest.Must(c.IDs())(t); len(ids) != 0 {
		t.Errorf("pinned for packets: %d", ids)
	}
}

// The round trip of a handshake is the first that the kernel observes of a connection: `ss` shows
// just what we have observed of connections on which nothing else was sent.
func TestRTTLikeSS(t *testing.T) {
	c := newConnections(t)
	sink := nettest.Must(c.peer.Listen("tcp", c.container.Interfaces[0].HostIPv4))(t)
	const held = 20
	if err := c.container.Hold(sink.Addr, held); err != nil {
		t.Fatal(err)
	}
	var want bpf.TCPCounters
	for _, rtt := range regexp.MustCompile(`\brtt:([0-9.]+)/`).FindAllStringSubmatch(c.run("ss", "-tinH", "state", "established"), -1) {
		us := uint64(math.Round(1000 * nettest.Must(strconv.ParseFloat(rtt[1], 64))(t)))
		want.RTTMicroseconds += us
		at, _ := slices.BinarySearch(bpf.RTTBounds[:], us)
		want.RTTs[at]++
	}
	_, got := c.ours()
	if version, err := features.LinuxVersionCode(); err == nil && version < 6<<16|10<<8 {
		want = bpf.TCPCounters{} // the first is missing
	} else if want.RTTMicroseconds == 0 {
		t.Fatal("ss shows nothing")
	}
	if got.RTTMicroseconds != want.RTTMicroseconds || got.RTTs != want.RTTs {
		t.Errorf("%d µs, %v; ss shows %d µs, %v", got.RTTMicroseconds, got.RTTs, want.RTTMicroseconds, want.RTTs)
	}
}
