// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// only is the configuration for one container.
func only(c *testnet.Container) string {
	return fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {include: [%q]}", c.ID)
}

// otherConfig writes the configuration of a nettally with another pin path, state and
// socket.
func otherConfig(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	path := filepath.Join(folder, "nettally.yaml")
	text := fmt.Sprintf("state_dir: %[1]q\nbpf: {pin_path: %q}\nexporter: {listen: \"\", socket: %q}\n",
		folder, filepath.Join(folder, "bpf"), filepath.Join(folder, "socket"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A second nettally in the same network namespace is refused in one line, whatever its pin
// path is and wherever its files are. The first one goes on, with its filters as they were.
func TestSecondInstance(t *testing.T) {
	need.Root(t)
	need.Commands(t, "unshare", "timeout")
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	d := startDaemon(t, on{host}, only(c))
	d.counted(c.ID, 1)
	other := otherConfig(t)
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"host": host}, Paths: []string{d.pins, filepath.Dir(other)}}
	before := nettest.TakeSnapshot(t, scope)

	says := fmt.Sprintf("in use by another nettally, pid %d (stop it: one counts all containers, whatever its bpf.pin_path)\n", d.cmd.Process.Pid)
	hung := []string{"timeout", "--kill-after=1", fmt.Sprint(patience.Seconds())} // it would count on
	container := append(hung[:len(hung):len(hung)], "unshare", "--mount", "--propagation=private")
	for name, test := range map[string]struct {
		around []string
		args   []string
	}{
		"run on the same pin path":       {hung, []string{"run", "--config", d.config}},
		"run on another pin path":        {hung, []string{"run", "--config", other}},
		"run in another mount namespace": {container, []string{"run", "--config", other}},
		"detach the same pin path":       {hung, []string{"detach", "--config", d.config}},
		"detach another pin path":        {hung, []string{"detach", "--config", other}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runAround(t, on{host}, test.around, test.args...)
			if exitCode(err) != 1 || strings.Count(out, "\n") != 1 || !strings.HasSuffix(out, says) {
				t.Errorf("exit code %d, printed:\n%swant 1 and one line that ends with: %s", exitCode(err), out, says)
			}
			if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
		})
	}
	d.checkOthers(other, says)
	d.exactly(c, nettest.Agent(t, host))
	if n := d.metric("nettally_reattach_total"); n != 0 {
		t.Errorf("attached again %v times", n)
	}
}

// checkOthers compares what `nettally check` says with the daemon's configuration, and with
// that of another nettally.
func (d *daemon) checkOthers(other, refused string) {
	d.t.Helper()
	if out, _ := d.run("check"); !strings.Contains(out, "in use by the nettally that runs, in "+d.pins) || strings.Contains(out, "another nettally") {
		d.t.Errorf("check printed:\n%s", out)
	}
	if out, _ := runIn(d.t, d.at, "check", "--config", other); !strings.Contains(out, refused) {
		d.t.Errorf("check of another pin path printed:\n%swant: %s", out, refused)
	}
}

// exactly sends datagrams both ways and waits until a container's numbers are the kernel's.
func (d *daemon) exactly(c *testnet.Container, peer *testnet.Agent) {
	d.t.Helper()
	const count = 100
	for _, way := range []struct{ from, to *testnet.Agent }{{c.Agent, peer}, {peer, c.Agent}} {
		ip := c.Interfaces[0].IPv4
		if way.to == peer {
			ip = c.Interfaces[0].HostIPv4
		}
		sink := nettest.Must(way.to.Listen("udp", ip))(d.t)
		if err := way.from.SendUDP(sink.Addr, count, 100); err != nil {
			d.t.Fatal(err)
		}
		nettest.Must(sink.Received(count))(d.t)
	}
	d.poll("exact", func() error {
		got, err := d.container(c.ID)
		if err != nil {
			return err
		}
		kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(d.t)["eth0"]
		want := testnet.Counters{
			ReceiveBytes: got.Receive.InterfaceBytes, ReceivePackets: got.Receive.InterfacePackets,
			TransmitBytes: got.Transmit.InterfaceBytes, TransmitPackets: got.Transmit.InterfacePackets,
		}
		if diff := cmp.Diff(kernel, want); diff != "" || got.Receive.Protocols.UDP.Packets < count || got.Transmit.Protocols.UDP.Packets < count {
			return fmt.Errorf("counted %+v (-kernel +counted):\n%s", got, diff)
		}
		return nil
	})
}

// However a nettally ends, the next one starts at once, also on another pin path.
func TestNextInstance(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	first := startDaemon(t, on{host}, only(c))
	first.counted(c.ID, 1)
	first.kill()
	second := startDaemon(t, on{host}, only(c))
	second.counted(c.ID, 1)
	second.exactly(c, peer)
}

// Another nettally, on another pin path, counts between two runs and leaves its filters. They
// may bear the number of a slot that is the first one's, too: it puts on its own, and lacks
// nothing of the time between.
func TestInstanceBetween(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	first := startDaemon(t, on{host}, only(c)+"\nattach: {mode: clsact}")
	first.counted(c.ID, 1)
	first.exactly(c, peer)
	first.stop()
	between := startDaemon(t, on{host}, only(c)+"\nattach: {mode: clsact}")
	between.counted(c.ID, 1)
	between.exactly(c, peer)
	between.stop()
	first.start()
	first.counted(c.ID, 1)
	first.exactly(c, peer)
	first.stop() // the other's detach is refused while it runs
}

// Two nettallys in network namespaces of their own count side by side, each on a veth of
// its own.
func TestTwoHosts(t *testing.T) {
	need.Root(t)
	type side struct {
		d    *daemon
		c    *testnet.Container
		peer *testnet.Agent
	}
	var sides []side
	for range 2 {
		host := nettest.Host(t)
		c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
		sides = append(sides, side{startDaemon(t, on{host}, only(c)), c, nettest.Agent(t, host)})
	}
	for _, s := range sides {
		s.d.counted(s.c.ID, 1)
		s.d.exactly(s.c, s.peer)
	}
}

// Two nettallys in different network namespaces come to the same interface inside a
// container, as that of a nested host and that around it. Who was there first counts, and
// nobody takes anything from the other, who says so. With another priority both count.
func TestNestedHosts(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	inside := only(c) + "\naccounting: {cgroup: off}\nattach: {mode: clsact, priority: %d}"
	first := startDaemon(t, on{nettest.Host(t)}, fmt.Sprintf(inside, 2))
	first.counted(c.ID, 1)
	second := startDaemon(t, on{nettest.Host(t)}, fmt.Sprintf(inside, 2))
	second.poll("kept out", func() error {
		found, err := second.container(c.ID)
		if err == nil && (found.Accounted || found.Reason != "attach_failed") {
			err = fmt.Errorf("accounted %v, %s", found.Accounted, found.Reason)
		}
		return err
	})
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"container": c.Namespace}}
	before := nettest.TakeSnapshot(t, scope)
	second.stop()
	nettest.Must(second.run("detach"))(t)
	if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
		t.Errorf("detach changed (-before +after):\n%s", diff)
	}
	beside := startDaemon(t, on{nettest.Host(t)}, fmt.Sprintf(inside, 3))
	beside.counted(c.ID, 1)
	first.exactly(c, peer)
	beside.exactly(c, peer)
	if n := first.metric("nettally_reattach_total"); n != 0 {
		t.Errorf("attached again %v times", n)
	}
}
