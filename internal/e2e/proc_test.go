// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// without is a place where commands run without some capabilities.
type without struct {
	place
	capabilities string // as setpriv has them: "all", or "bpf,-sys_admin"
}

func (w without) Command(name string, args ...string) *exec.Cmd {
	return w.place.Command("setpriv", append([]string{"--bounding-set=-" + w.capabilities, "--", name}, args...)...)
}

// restricted runs nettally without capabilities, for some containers.
func restricted(t *testing.T, host *testnet.Namespace, capabilities string, ids ...string) *daemon {
	t.Helper()
	need.Commands(t, "setpriv")
	d := startDaemon(t, without{on{host}, capabilities}, "watch: {include: ["+strings.Join(ids, ", ")+"]}")
	t.Cleanup(func() { d.at = on{host} }) // detach needs them
	return d
}

// procLife is a container and its peer in the host, with what is to be counted.
type procLife struct {
	t    *testing.T
	d    *daemon
	c    *testnet.Container
	peer *testnet.Agent

	before              testnet.Counters // of earlier lives
	connected, accepted uint64
}

// kernel returns what the kernel has counted on the container's interface in this life.
func (l *procLife) kernel() testnet.Counters {
	l.t.Helper()
	return nettest.Must(testnet.InterfaceCounters(l.c.PID()))(l.t)["eth0"]
}

// exchange sends datagrams and opens connections, both ways.
func (l *procLife) exchange(count int) {
	l.t.Helper()
	nic := l.c.Interfaces[0]
	for _, way := range []struct {
		from, to *testnet.Agent
		v4, v6   bool
	}{{l.c.Agent, l.peer, true, false}, {l.peer, l.c.Agent, false, true}} {
		ip := nic.HostIPv4
		if way.v6 {
			ip = nic.IPv6
		}
		sink := nettest.Must(way.to.Listen("udp", ip))(l.t)
		if err := way.from.SendUDP(sink.Addr, count, 100); err != nil {
			l.t.Fatal(err)
		}
		nettest.Must(sink.Received(count))(l.t)
	}
	out := nettest.Must(l.peer.Listen("tcp", nic.HostIPv4))(l.t)
	in := nettest.Must(l.c.Agent.Listen("tcp", nic.IPv4))(l.t)
	nettest.Must(l.c.Connect(out.Addr, 3))(l.t)
	nettest.Must(l.peer.Connect(in.Addr, 2))(l.t)
	l.connected, l.accepted = l.connected+3, l.accepted+2
}

// check compares all numbers at rest, once the daemon has looked.
func (l *procLife) check(what string) {
	l.t.Helper()
	now := l.kernel()
	l.d.poll(what, func() error {
		c, err := l.d.container(l.c.ID)
		if err != nil {
			return err
		}
		return l.compare(c, now)
	})
}

func (l *procLife) compare(c exporter.Container, now testnet.Counters) error {
	got := testnet.Counters{
		ReceiveBytes: c.Receive.Bytes, ReceivePackets: c.Receive.Packets,
		TransmitBytes: c.Transmit.Bytes, TransmitPackets: c.Transmit.Packets,
	}
	want := testnet.Counters{
		ReceiveBytes: l.before.ReceiveBytes + now.ReceiveBytes, ReceivePackets: l.before.ReceivePackets + now.ReceivePackets,
		TransmitBytes: l.before.TransmitBytes + now.TransmitBytes, TransmitPackets: l.before.TransmitPackets + now.TransmitPackets,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("(-kernel +nettally):\n%s", diff)
	}
	if c.Receive.InterfaceBytes != c.Receive.Bytes || c.Transmit.InterfacePackets != c.Transmit.Packets {
		return errors.New("interface and wire numbers differ")
	}
	if c.Transmit.TCPSYN != l.connected || c.Receive.TCPSYN != l.accepted {
		return fmt.Errorf("connections: opened %d and accepted %d, want %d and %d",
			c.Transmit.TCPSYN, c.Receive.TCPSYN, l.connected, l.accepted)
	}
	return nil
}

// replace puts another process in the place of the container's main one.
func (l *procLife) replace() {
	l.t.Helper()
	next := nettest.Must(testnet.StartAgent(l.c.Namespace))(l.t) // ends with the container
	for _, root := range nettest.Must(testnet.CgroupRoots())(l.t) {
		procs := filepath.Join(root, l.c.Cgroup, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(next.PID())), 0); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := l.c.Agent.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.c.Agent = next
}

// Without any capability containers are counted all the same, and it is said how.
func TestProcSource(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	l := &procLife{t: t, c: c, peer: nettest.Agent(t, host)}
	l.exchange(50)
	l.connected, l.accepted = 0, 0 // nobody can say when they were opened

	l.d = restricted(t, host, "all", c.ID)
	l.d.counted(c.ID, 1)
	l.check("seeded")
	seeded := nettest.Must(l.d.container(c.ID))(t).Receive.SeededBytes
	if want := l.kernel().ReceiveBytes; seeded != want {
		t.Errorf("seeded %d bytes, want %d", seeded, want)
	}
	l.exchange(100)
	l.check("counted")
	l.families()

	l.replace()
	l.exchange(30)
	l.check("counted by another process")

	l.d.kill()
	l.exchange(20)
	l.d.start()
	l.check("counted over kill -9")
	l.exchange(10)
	l.check("counted after kill -9")
	if again := nettest.Must(l.d.container(c.ID))(t).Receive.SeededBytes; again != seeded {
		t.Errorf("seeded %d bytes after a restart, want %d", again, seeded)
	}

	l.end()
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	l.exchange(60)
	l.check("counted over a restart of the container")
	l.surfaces()
}

// end ends the container's process after traffic that the daemon has not looked for: the
// end of its interface in the host tells.
func (l *procLife) end() {
	l.t.Helper()
	sink := nettest.Must(l.peer.Listen("udp", l.c.Interfaces[0].HostIPv4))(l.t)
	if err := l.c.SendUDP(sink.Addr, 40, 100); err != nil {
		l.t.Fatal(err)
	}
	nettest.Must(sink.Received(40))(l.t)
	l.before = l.kernel()
	if err := l.c.Agent.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.d.poll("counted to the end", func() error {
		c, err := l.d.container(l.c.ID)
		if err == nil {
			err = l.compare(c, testnet.Counters{})
		}
		return err
	})
}

// families says that what passed by IPv6 is told apart.
func (l *procLife) families() {
	l.t.Helper()
	c := nettest.Must(l.d.container(l.c.ID))(l.t)
	want := exporter.Volume{Packets: 100, Bytes: 100 * (14 + 40 + 8 + 100)}
	if diff := cmp.Diff(want, c.Receive.Families.IPv6); diff != "" {
		l.t.Errorf("received by IPv6 (-want +got):\n%s", diff)
	}
	if c.Transmit.Families.IPv6 != (exporter.Volume{}) {
		l.t.Errorf("transmitted by IPv6: %+v", c.Transmit.Families.IPv6)
	}
}

// surfaces says that everybody is told what counts.
func (l *procLife) surfaces() {
	l.t.Helper()
	found := l.d.list()
	if hook := nettest.Must(l.d.container(l.c.ID))(l.t).Interfaces[0].Hook; found.Source != "proc" || hook != "proc" {
		l.t.Errorf("source %q, hook %q, want proc", found.Source, hook)
	}
	metrics := nettest.Must(l.d.get("/metrics"))(l.t)
	for _, want := range []string{"\nnettally_accounting_source_proc 1\n", "\nnettally_attachments{hook=\"proc\"} 1\n"} {
		if !strings.Contains(metrics, want) {
			l.t.Errorf("metrics lack %q", want)
		}
	}
	var said bytes.Buffer
	list := l.d.at.Command(nettest.Must(l.d.binary())(l.t), "list", "--config", l.d.config)
	list.Stderr = &said
	if _, err := list.Output(); err != nil || !strings.Contains(said.String(), "counted by /proc") {
		l.t.Errorf("list: %v, %q", err, said.String())
	}
	out, err := l.d.run("check")
	if want := "ok       source       proc: the kernel's files instead of our programs, for: privileges: no CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE: run nettally as root\n"; err != nil || !strings.Contains(out, want) {
		l.t.Errorf("check: %v:\n%s", err, out)
	}
	if !strings.Contains(l.d.log.String(), "counting by /proc") {
		l.t.Error("the log does not say what counts")
	}
}

// Totals go on when what counts changes, and nothing is counted twice. While programs count
// /proc is no way out.
func TestProcAndPrograms(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	l := &procLife{t: t, c: c, peer: nettest.Agent(t, host)}
	l.d = restricted(t, host, "bpf,-sys_admin", c.ID)
	privileged, unprivileged := on{host}, l.d.at
	total := func(source string) {
		t.Helper()
		now := l.kernel()
		l.d.poll("counted by "+source, func() error {
			found, err := l.d.container(c.ID)
			got := testnet.Counters{
				ReceiveBytes: found.Receive.InterfaceBytes, ReceivePackets: found.Receive.InterfacePackets,
				TransmitBytes: found.Transmit.InterfaceBytes, TransmitPackets: found.Transmit.InterfacePackets,
			}
			if diff := cmp.Diff(now, got); err == nil && diff != "" {
				err = fmt.Errorf("(-kernel +nettally):\n%s", diff)
			}
			if source != l.d.list().Source {
				err = errors.New("it is not " + source)
			}
			return err
		})
	}
	l.exchange(10)
	total("proc")

	l.d.stop()
	l.exchange(20)
	l.d.at = privileged
	l.d.start()
	total("bpf")
	l.exchange(30)
	total("bpf")

	l.d.stop()
	l.d.at = unprivileged
	out, err := l.d.run("run")
	if want := "nettally: count by /proc: programs of an earlier run count already, in " + l.d.pins + ": run `nettally detach` as root first, or let nettally load its programs\n"; exitCode(err) != 1 || out != want {
		t.Errorf("exit code %d, printed %q, want 1 and %q", exitCode(err), out, want)
	}
	l.d.at = privileged
	if out, err := l.d.run("detach"); err != nil {
		t.Fatalf("detach: %v: %s", err, out)
	}
	l.exchange(40)
	l.d.at = unprivileged
	l.d.start()
	total("proc")
	l.exchange(50)
	total("proc")
}

// Containers that share a namespace are counted once, for the first one, and one that shares
// the host's not at all.
func TestProcShared(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	owner := nettest.Container(t, host, testnet.ContainerOptions{})
	guest := nettest.Container(t, host, testnet.ContainerOptions{Join: owner.Namespace})
	inHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	d := restricted(t, host, "all", owner.ID, guest.ID, inHost.ID)
	d.counted(owner.ID, 1)
	for id, reason := range map[string]string{guest.ID: "shared_network", inHost.ID: "host_network"} {
		d.poll(reason, func() error {
			c, err := d.container(id)
			if err == nil && (c.Accounted || c.Reason != reason) {
				err = fmt.Errorf("accounted %v, reason %q", c.Accounted, c.Reason)
			}
			return err
		})
	}
	l := &procLife{t: t, d: d, c: owner, peer: nettest.Agent(t, host)}
	l.exchange(30)
	l.check("counted for the owner")
	d.kill()
	d.start()
	l.check("counted for the owner by the next process")
	l.succeed(guest)
}

// succeed ends the container, and leaves another one in its namespace: what passes from then
// on is that one's, also for the next process.
func (l *procLife) succeed(guest *testnet.Container) {
	l.t.Helper()
	last, owner := l.kernel(), l.c
	guest.Interfaces, owner.Interfaces = owner.Interfaces, nil // which live on, with the namespace
	if err := owner.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.d.counted(guest.ID, 1)
	had := interfaceCounters(nettest.Must(l.d.container(owner.ID))(l.t))
	if late := had.ReceivePackets - last.ReceivePackets; late > 10 { // some for neighbours
		l.t.Errorf("the owner received %d packets after its last", late)
	}
	l.c, l.connected, l.accepted = guest, 0, 0
	l.before = testnet.Counters{
		ReceiveBytes: -had.ReceiveBytes, ReceivePackets: -had.ReceivePackets,
		TransmitBytes: -had.TransmitBytes, TransmitPackets: -had.TransmitPackets,
	}
	l.exchange(20)
	l.check("counted for who is left")
	l.d.stop()
	l.exchange(10)
	l.d.start()
	l.check("counted for who is left by the next process")
	if again := interfaceCounters(nettest.Must(l.d.container(owner.ID))(l.t)); again != had {
		l.t.Errorf("the owner has %+v now, and had %+v", again, had)
	}
}

// Docker's containers are counted without any capability, to their end: the cgroup of each
// goes before its interface.
func TestProcDocker(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "setpriv")
	docker := dockerhost.Start(t, dockerhost.Options{})
	onlyIPv4(t, docker)
	d := startDaemon(t, without{docker, "all"}, onlyDocker(docker))
	t.Cleanup(func() { d.at = docker }) // detach needs them
	p := &pair{docker: docker, daemon: d}
	p.server = docker.Run("--name", "server", dockerhost.Image)
	p.client = docker.Run("--name", "client", dockerhost.Image)
	p.clientAgent, p.serverAgent = docker.Agent(p.client), docker.Agent(p.server)
	d.counted(p.server, 1)
	d.counted(p.client, 1)

	p.upload(t, docker.IPv4(p.server, "eth0"))
	p.likeKernel(t, p.server, asInterface)
	p.likeKernel(t, p.client, asInterface)
	c := nettest.Must(d.container(p.client))(t)
	if d.list().Source != "proc" || c.Name != "client" || c.Transmit.InterfaceBytes < transfer || c.Transmit.TCPSYN != 1 {
		t.Errorf("source %s, %s transmitted %+v", d.list().Source, c.Name, c.Transmit)
	}

	sink := nettest.Must(p.serverAgent.Listen("udp", docker.IPv4(p.server, "eth0")))(t)
	if err := p.clientAgent.SendUDP(sink.Addr, 500, 100); err != nil {
		t.Fatal(err)
	}
	last := lastCounters(t, docker, p.client)
	docker.CLI("kill", p.client)
	d.poll("counted to its end", func() error {
		c, err := d.container(p.client)
		if err == nil && c.State != "stopped" {
			err = fmt.Errorf("it is %s", c.State)
		}
		if diff := cmp.Diff(last, interfaceCounters(c)); err == nil && diff != "" {
			err = fmt.Errorf("(-kernel +nettally):\n%s", diff)
		}
		return err
	})
}
