// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// named starts a process of a name in a namespace and a cgroup, which holds a file if that is not
// nil.
func (e *enclosed) named(in *testnet.Namespace, cgroup string, holds *os.File, name string, args ...string) {
	e.t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", "read never", "sh"}, args...)...)
	cmd.Args[0] = name
	if holds != nil {
		cmd.ExtraFiles = []*os.File{holds}
	}
	stdin := nettest.Must(cmd.StdinPipe())(e.t)
	e.must(in.Start(cmd))
	e.t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	for _, root := range nettest.Must(testnet.CgroupRoots())(e.t) {
		if _, err := os.Stat(filepath.Join(root, "cpuset.cpus")); err == nil {
			continue // v1's takes nobody before it has CPUs
		}
		dir := filepath.Join(root, cgroup)
		e.must(os.MkdirAll(dir, 0o755))
		e.must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
	}
}

// openTap makes a tap and returns its other end, the machine's.
func (e *enclosed) openTap(name string) *os.File {
	e.t.Helper()
	var tap *os.File
	e.must(e.inner.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		tap = os.NewFile(uintptr(fd), name)
		return err
	}))
	return tap
}

// machine answers each datagram with the same, until its end of the tap is closed.
func machine(tap *os.File) {
	const udp, header = 17, 14 + 20 + 8
	frame := make([]byte, 2048)
	for {
		n, err := tap.Read(frame)
		if err != nil {
			return
		}
		f := frame[:n]
		if n < header || f[12] != 8 || f[13] != 0 || f[14] != 0x45 || f[23] != udp {
			continue
		}
		swap(f[0:6], f[6:12])
		swap(f[26:30], f[30:34])
		swap(f[34:36], f[36:38]) // no sum changes by that
		if _, err := tap.Write(f); err != nil {
			return
		}
	}
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// redirect has all that comes in at one interface go out at another, as Kata's tcfilter does.
func (e *enclosed) redirect(from, to string) {
	e.t.Helper()
	link, out := nettest.Must(e.inner.LinkByName(from))(e.t), nettest.Must(e.inner.LinkByName(to))(e.t)
	parent := netlink.MakeHandle(0xffff, 0)
	e.must(e.inner.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_INGRESS, Handle: parent,
	}}))
	e.must(e.inner.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: link.Attrs().Index, Parent: parent, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: out.Attrs().Index,
		}},
	}))
}

// A machine of Kata has a tap beside the interface, and all packets pass both: they are counted
// once, at the host veth. Its shim in the host's network is not the container.
func TestKata(t *testing.T) {
	need.Root(t)
	need.Files(t, "/dev/net/tun")
	t.Parallel()
	e := newEnclosed(t, "kata")
	tap := e.openTap("tap0_kata")
	ended := make(chan struct{})
	t.Cleanup(func() { _ = tap.Close(); <-ended })
	go func() { defer close(ended); machine(tap) }()
	e.must(e.ip4(e.inner, "link", "set", "tap0_kata", "up"))
	e.redirect("eth0", "tap0_kata")
	e.redirect("tap0_kata", "eth0")
	hardware := nettest.Must(e.inner.LinkByName("eth0"))(t).Attrs().HardwareAddr
	e.introduce(hardware)

	cgroup := e.top + "/kubepods/burstable/pod" + podUID + "/" + e.id
	e.named(e.host, cgroup, nil, "/usr/local/bin/containerd-shim-kata-v2", "-namespace", "k8s.io", "-id", e.id)
	e.named(e.inner, cgroup, tap, "/opt/kata/bin/qemu-system-x86_64", "-name", "sandbox-"+e.id, "-qmp", "unix:/run/vc/vm/"+e.id+"/qmp.sock")
	e.onKernel(e.id, "kata", cgroup)
	onTap := func() testnet.Counters {
		t.Helper()
		return nettest.Must(testnet.InterfaceCounters(e.witness.PID()))(t)["tap0_kata"]
	}
	for sent := uint64(datagramsN); sent <= 10*datagramsN; sent += datagramsN {
		e.must(e.peer.SendUDP(netip.AddrPortFrom(e.ip, 9), datagramsN, 100))
		e.d.poll("answered by the machine", func() error {
			if now := onTap(); now.ReceivePackets < sent {
				return fmt.Errorf("%d datagrams sent, the tap has %+v", sent, now)
			}
			return nil
		})
	}
	e.likeEth0(e.id)
	kernel := onTap()
	c := e.onKernel(e.id, "kata", cgroup)
	if c.Receive.Protocols.UDP.Packets != 10*datagramsN || c.Transmit.Protocols.UDP != c.Receive.Protocols.UDP {
		t.Errorf("received %+v, transmitted %+v", c.Receive.Protocols.UDP, c.Transmit.Protocols.UDP)
	}
	if kernel.TransmitPackets < 10*datagramsN || kernel.ReceivePackets < 10*datagramsN {
		t.Errorf("the tap has %+v: nothing was to be counted twice", kernel)
	}
}

// introduce tells the host the hardware address of the machine, which does not answer ARP.
func (e *enclosed) introduce(hardware net.HardwareAddr) {
	e.t.Helper()
	e.must(e.host.NeighAdd(&netlink.Neigh{
		LinkIndex: nettest.Must(e.host.LinkByName("vethbox"))(e.t).Attrs().Index,
		State:     netlink.NUD_PERMANENT, IP: e.ip.AsSlice(), HardwareAddr: hardware,
	}))
}
