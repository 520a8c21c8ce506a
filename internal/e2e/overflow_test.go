// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Both of the kernel's queues of events run over while containers start, talk and end, and
// nettally gets no processor. All containers are right after the look at everything that
// follows, with the kernel's numbers.
func TestOverflow(t *testing.T) {
	need.Root(t)
	o := startOverflowing(t)
	stays, goes := o.start(), o.start()
	for _, c := range []*testnet.Container{stays, goes} {
		o.d.counted(c.ID, 1)
	}

	o.signal(unix.SIGSTOP)
	told := o.start() // of which there is an event
	o.fillInotify()
	o.fillNetlink()
	running := []*testnet.Container{stays, told}
	for range 8 {
		running = append(running, o.start())
	}
	for _, c := range append(running, goes) {
		o.exchange(c, 100)
	}
	last := nettest.Must(testnet.InterfaceCounters(goes.PID()))(t)["eth0"]
	if err := goes.Close(); err != nil {
		t.Fatal(err)
	}
	o.signal(unix.SIGCONT)
	o.ranOver("inotify", "netlink") // the kernel tells of it at its queue's end

	for _, c := range running {
		o.d.counted(c.ID, 1)
		o.likeKernel(c)
		o.exchange(c, 50)
		o.likeKernel(c)
	}
	o.ended(goes.ID, last)
}

// overflowing is a host with a nettally that looks at everything only if it has to.
type overflowing struct {
	t      *testing.T
	host   *testnet.Namespace
	peer   *testnet.Agent
	parent string // the containers' cgroup
	d      *daemon
}

func startOverflowing(t *testing.T) *overflowing {
	t.Helper()
	o := &overflowing{t: t, host: nettest.Host(t), parent: fmt.Sprintf("/nettally-overflow-%d", os.Getpid())}
	o.d = startDaemon(t, on{o.host}, fmt.Sprintf("names: {docker: \"off\"}\nwatch: {include: [%q], reconcile: 1h}", o.parent+"/*"))
	t.Cleanup(func() { _ = o.d.cmd.Process.Signal(unix.SIGCONT) }) // stopped, it would not end
	o.peer = nettest.Agent(t, o.host)
	return o
}

func (o *overflowing) signal(s unix.Signal) {
	o.t.Helper()
	if err := o.d.cmd.Process.Signal(s); err != nil {
		o.t.Fatal(err)
	}
}

// start starts a container, until it is closed or the test ends.
func (o *overflowing) start() *testnet.Container {
	o.t.Helper()
	id := fmt.Sprintf("%032x%032x", os.Getpid(), lives.Add(1))
	return nettest.Container(o.t, o.host, testnet.ContainerOptions{ID: id, Cgroup: o.parent + "/" + id, LikeDocker: true})
}

// fillInotify makes and removes directories beside the containers, until there are more
// events than the kernel keeps.
func (o *overflowing) fillInotify() {
	o.t.Helper()
	text := nettest.Must(os.ReadFile("/proc/sys/fs/inotify/max_queued_events"))(o.t)
	most := nettest.Must(strconv.Atoi(strings.TrimSpace(string(text))))(o.t)
	dir := filepath.Join(nettest.Must(watchedRoot())(o.t), o.parent, "filler.mount")
	for range most/2 + 100 {
		if err := os.Mkdir(dir, 0o755); err != nil {
			o.t.Fatal(err)
		}
		if err := removeCgroup(dir); err != nil {
			o.t.Fatal(err)
		}
	}
}

// fillNetlink changes a link until the kernel has dropped a message of that.
func (o *overflowing) fillNetlink() {
	o.t.Helper()
	lo := nettest.Must(o.host.LinkByName("lo"))(o.t)
	const step, atMost = 500, 1 << 20
	for i := range atMost {
		if i%step == 0 && o.dropped() > 0 {
			return
		}
		if err := o.host.LinkSetAlias(lo, fmt.Sprint(i)); err != nil {
			o.t.Fatal(err)
		}
	}
	o.t.Fatal("the netlink socket does not run over")
}

// ranOver waits until nettally has heard that events of each of the sources were lost.
func (o *overflowing) ranOver(sources ...string) {
	o.t.Helper()
	for _, source := range sources {
		o.d.poll("told that events of "+source+" were lost", func() error {
			if o.d.metric(fmt.Sprintf("nettally_watch_overflows_total{source=%q}", source)) == 0 {
				return errors.New("is this a test of anything?")
			}
			return nil
		})
	}
}

// dropped is how many messages the sockets that hear of links have missed.
func (o *overflowing) dropped() (sum int) {
	o.t.Helper()
	text := nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", o.d.cmd.Process.Pid)))(o.t)
	for line := range strings.Lines(string(text)) { // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		f := strings.Fields(line)
		if len(f) <= 8 || f[1] != "0" {
			continue
		}
		if groups, err := strconv.ParseUint(f[3], 16, 32); err == nil && groups&unix.RTMGRP_LINK != 0 {
			sum += nettest.Must(strconv.Atoi(f[8]))(o.t)
		}
	}
	return sum
}

// exchange sends datagrams both ways, and returns when they have arrived.
func (o *overflowing) exchange(c *testnet.Container, count int) {
	o.t.Helper()
	i := c.Interfaces[0]
	up, down := nettest.Must(o.peer.Listen("udp", i.HostIPv4))(o.t), nettest.Must(c.Listen("udp", i.IPv4))(o.t)
	if err := c.SendUDP(up.Addr, count, 100); err != nil {
		o.t.Fatal(err)
	}
	if err := o.peer.SendUDP(down.Addr, 2*count, 100); err != nil {
		o.t.Fatal(err)
	}
	nettest.Must(up.Received(count))(o.t)
	nettest.Must(down.Received(2 * count))(o.t)
}

func (o *overflowing) likeKernel(c *testnet.Container) {
	o.t.Helper()
	o.d.poll("like the kernel's counters", func() error {
		kernel, err := testnet.InterfaceCounters(c.PID())
		if err != nil {
			return err
		}
		ours, err := o.d.container(c.ID)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(kernel["eth0"], interfaceCounters(ours)); diff != "" {
			return fmt.Errorf("container %s (-kernel +ours):\n%s", c.ID, diff)
		}
		return nil
	})
}

// ended expects a container to have ended, with no less than the kernel said of it last.
func (o *overflowing) ended(id string, last testnet.Counters) {
	o.t.Helper()
	o.d.poll("ended", func() error {
		c, err := o.d.container(id)
		if err == nil && c.State != "stopped" {
			err = fmt.Errorf("it is %s", c.State)
		}
		return err
	})
	c := nettest.Must(o.d.container(id))(o.t)
	got := interfaceCounters(c)
	if !c.Accounted || got.ReceivePackets < last.ReceivePackets || got.TransmitPackets < last.TransmitPackets {
		o.t.Errorf("accounted %v (%s), %+v; the kernel's last %+v", c.Accounted, c.Reason, got, last)
	}
	if sent := c.Transmit.Protocols.UDP.Packets; sent != 100 || c.Receive.Protocols.UDP.Packets != 200 {
		o.t.Errorf("UDP of the one that ended: %+v, %+v", c.Receive.Protocols.UDP, c.Transmit.Protocols.UDP)
	}
}
