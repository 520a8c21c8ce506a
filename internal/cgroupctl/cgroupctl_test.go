// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/trusted"
)

// bench is a container whose cgroup is counted, and the host that it talks with.
type bench struct {
	t *testing.T
	*Controller
	host      *testnet.Namespace
	datapath  *bpf.Datapath
	container *testnet.Container
	peer      *testnet.Agent
	slot      bpf.Slot
}

// unified returns where the cgroup2 hierarchy is mounted.
func unified(t testing.TB) string {
	t.Helper()
	for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
		var fs unix.Statfs_t
		if err := unix.Statfs(root, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return root
		}
	}
	need.Kernel(t, "cgroup2", errors.New("none is mounted"))
	return ""
}

func newBench(t *testing.T) *bench {
	t.Helper()
	need.Root(t)
	host := nettest.Host(t)
	b := &bench{
		t:          t,
		host:       host,
		Controller: New(Options{Root: unified(t), Pins: filepath.Join(nettest.BPFFS(t), "cgroups")}),
		datapath:   nettest.Must(bpf.Load(bpf.Options{}))(t),
		container:  nettest.Container(t, host, testnet.ContainerOptions{}),
		peer:       nettest.Agent(t, host),
	}
	t.Cleanup(func() {
		if err := b.datapath.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// count counts the container's cgroup from now on.
func (b *bench) count() {
	b.t.Helper()
	id := nettest.Must(b.ID(b.container.Cgroup))(b.t)
	if err := b.Attach(b.container.Cgroup, id, b.datapath.CgroupIngress, b.datapath.CgroupEgress); err != nil {
		b.t.Fatal(err)
	}
	b.slot = nettest.Must(b.datapath.Take(bpf.Target{Cgroup: id}))(b.t)
	if err := b.datapath.BindCgroup(b.slot); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := b.Detach(id); err != nil {
			b.t.Error(err)
		}
	})
}

func (b *bench) read() (rx, tx bpf.Counters) {
	b.t.Helper()
	rx, tx, err := b.datapath.Read(b.slot)
	if err != nil {
		b.t.Fatal(err)
	}
	return rx, tx
}

// conversation is traffic in one family, and what is to be counted of it.
type conversation struct {
	name            string
	host, container netip.Addr
	tcp, udp        int    // cells
	headers         uint64 // of a datagram
}

// What the container's sockets send and receive is counted, from the IP header on, as a
// capture on its interface has it. What others send from its namespace is not.
func TestCounts(t *testing.T) {
	need.Commands(t, "tcpdump")
	b := newBench(t)
	b.count()
	other := nettest.Agent(t, b.container.Namespace) // in the namespace, and not in the cgroup
	i := b.container.Interfaces[0]
	for _, talk := range []conversation{
		{"IPv4", i.HostIPv4, i.IPv4, 0, 1, 20 + 8},
		{"IPv6", i.HostIPv6, i.IPv6, 4, 5, 40 + 8},
	} {
		t.Run(talk.name, func(t *testing.T) { b.converse(t, talk, other) })
	}
}

func (b *bench) converse(t *testing.T, talk conversation, other *testnet.Agent) {
	capture := nettest.StartCapture(t, b.container.Namespace, "eth0")
	rxBefore, txBefore := b.read()
	up := nettest.Must(b.peer.Listen("udp", talk.host))(t)
	down := nettest.Must(b.container.Listen("udp", talk.container))(t)
	upload := nettest.Must(b.peer.Listen("tcp", talk.host))(t)
	download := nettest.Must(b.container.Listen("tcp", talk.container))(t)
	beside := nettest.Must(b.peer.Listen("tcp", talk.host))(t)
	for _, err := range []error{
		b.container.SendUDP(up.Addr, 700, 100), b.peer.SendUDP(down.Addr, 300, 200),
		b.container.SendTCP(upload.Addr, 5_000_000, testnet.Write), b.peer.SendTCP(download.Addr, 3_000_000, testnet.Write),
		other.SendUDP(up.Addr, 50, 100), other.SendTCP(beside.Addr, 1_000_000, testnet.Write),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	nettest.Must(up.Received(750))(t)
	nettest.Must(down.Received(300))(t)
	capture.Stop()
	rx, tx := b.read()
	in, out := upload.Addr.Port(), download.Addr.Port()
	talk.check(t, "received", minus(rx, rxBefore), 300, 200, capture.Count(fmt.Sprintf("tcp and (src port %d or dst port %d)", in, out)))
	talk.check(t, "transmitted", minus(tx, txBefore), 700, 100, capture.Count(fmt.Sprintf("tcp and (dst port %d or src port %d)", in, out)))
}

// check compares one direction with the datagrams that were sent, and with what was
// captured of TCP: a super-packet of segmentation is one there.
func (c conversation) check(t *testing.T, direction string, got bpf.Counters, datagrams, payload uint64, tcp nettest.Volume) {
	t.Helper()
	udp := bpf.Volume{Packets: datagrams, Bytes: datagrams * (c.headers + payload)}
	if got.Cells[c.udp] != udp {
		t.Errorf("%s: UDP %+v, want %+v", direction, got.Cells[c.udp], udp)
	}
	const ethernet = 14
	want := bpf.Volume{Packets: tcp.Packets + udp.Packets, Bytes: tcp.Bytes - ethernet*tcp.Packets + udp.Bytes}
	if got.Interface != want {
		t.Errorf("%s: %+v, captured %+v", direction, got.Interface, want)
	}
	if wire := got.Cells[c.tcp]; wire.Packets < tcp.Packets || wire.Bytes < want.Bytes-udp.Bytes {
		t.Errorf("%s: TCP on the wire %+v, captured in super-packets %+v", direction, wire, tcp)
	}
	if got.TCPSYN != 1 || got.TCPSYNACK != 1 || got.TCPFIN != 2 {
		t.Errorf("%s: %d SYN, %d SYN-ACK, %d FIN; want 1, 1, 2", direction, got.TCPSYN, got.TCPSYNACK, got.TCPFIN)
	}
	for i, cell := range got.Cells {
		if i != c.tcp && i != c.udp && cell != (bpf.Volume{}) {
			t.Errorf("%s: cell %d has %+v", direction, i, cell)
		}
	}
}

// What passes loopback stands apart, and is seen as it goes and as it comes.
func TestLoopback(t *testing.T) {
	b := newBench(t)
	b.count()
	sink := nettest.Must(b.container.Listen("udp", netip.MustParseAddr("127.0.0.1")))(t)
	if err := b.container.SendUDP(sink.Addr, 100, 72); err != nil {
		t.Fatal(err)
	}
	nettest.Must(sink.Received(100))(t)
	var want bpf.Counters
	const noIP = 8 // the cell
	want.Cells[noIP] = bpf.Volume{Packets: 100, Bytes: 100 * 100}
	rx, tx := b.read()
	if diff := cmp.Diff([]bpf.Counters{want, want}, []bpf.Counters{rx, tx}); diff != "" {
		t.Errorf("received and transmitted (-want +got):\n%s", diff)
	}
}

// Links stay over the end of a process; the next one puts its own programs in their place,
// on the same slot, and takes off what is no more.
func TestAdopt(t *testing.T) {
	b := newBench(t)
	id := nettest.Must(b.ID(b.container.Cgroup))(t)
	if on := nettest.Must(b.Attached(id))(t); on {
		t.Error("attached before it was")
	}
	b.count()
	again := New(b.Options)
	for range 2 {
		if err := again.Attach(b.container.Cgroup, id, b.datapath.CgroupIngress, b.datapath.CgroupEgress); err != nil {
			t.Fatal(err)
		}
	}
	if on, ids := nettest.Must(again.Attached(id))(t), nettest.Must(again.IDs())(t); !on || !slices.Equal(ids, []uint64{id}) {
		t.Errorf("attached: %v, pinned %d, want %d", on, ids, id)
	}
	i := b.container.Interfaces[0]
	up := nettest.Must(b.peer.Listen("udp", i.HostIPv4))(t)
	if err := b.container.SendUDP(up.Addr, 10, 100); err != nil {
		t.Fatal(err)
	}
	if _, tx := b.read(); tx.Interface.Packets != 10 {
		t.Errorf("%d packets, want 10", tx.Interface.Packets)
	}

	if err := b.container.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); nettest.Must(again.Attached(id))(t); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("attached to a cgroup that is gone")
		}
	}
	if _, tx := b.read(); tx.Interface.Packets != 10 {
		t.Errorf("%d packets after the end of the cgroup, want 10", tx.Interface.Packets)
	}
	if _, err := again.ID(b.container.Cgroup); !errors.Is(err, ErrGone) {
		t.Errorf("id of a cgroup that is gone: %v", err)
	}
	if err := again.Attach(b.container.Cgroup, id, b.datapath.CgroupIngress, b.datapath.CgroupEgress); !errors.Is(err, ErrGone) {
		t.Errorf("attach to a cgroup that is gone: %v", err)
	}
	if err := again.Detach(id); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.Pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder for pins: %v", err)
	}
}

// Others' programs stay, and a link that is pinned in our place by somebody else.
func TestForeign(t *testing.T) {
	b := newBench(t)
	id := nettest.Must(b.ID(b.container.Cgroup))(t)
	foreign := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetIngress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(t)
	defer foreign.Close()
	path := filepath.Join(b.Root, b.container.Cgroup)
	theirs := nettest.Must(link.AttachCgroup(link.CgroupOptions{Path: path, Attach: ebpf.AttachCGroupInetIngress, Program: foreign}))(t)
	defer theirs.Close()
	if err := os.Mkdir(b.Pins, 0o700); err != nil {
		t.Fatal(err)
	}
	pin := b.pin(id, Packets[0])
	if err := theirs.Pin(pin); err != nil {
		t.Fatal(err)
	}
	err := b.Attach(b.container.Cgroup, id, b.datapath.CgroupIngress, b.datapath.CgroupEgress)
	if !errors.Is(err, ErrForeign) {
		t.Errorf("attach: %v", err)
	}
	if err := b.Detach(id); err != nil {
		t.Error(err)
	}
	if err := theirs.Unpin(); err != nil {
		t.Fatal(err)
	}
	b.count()
	if err := b.Detach(id); err != nil {
		t.Error(err)
	}
	left := nettest.Must(link.QueryPrograms(link.QueryOptions{Target: openDir(t, path), Attach: ebpf.AttachCGroupInetIngress}))(t)
	if len(left.Programs) != 1 {
		t.Errorf("%d programs are left on the cgroup, want the other's", len(left.Programs))
	}
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	dir := nettest.Must(os.Open(path))(t)
	t.Cleanup(func() { dir.Close() })
	return int(dir.Fd())
}

func minus(a, b bpf.Counters) bpf.Counters {
	for i := range a.Cells {
		a.Cells[i] = less(a.Cells[i], b.Cells[i])
	}
	a.Interface = less(a.Interface, b.Interface)
	a.TCPSYN -= b.TCPSYN
	a.TCPSYNACK -= b.TCPSYNACK
	a.TCPFIN -= b.TCPFIN
	a.TCPRST -= b.TCPRST
	return a
}

func less(a, b bpf.Volume) bpf.Volume {
	return bpf.Volume{Bytes: a.Bytes - b.Bytes, Packets: a.Packets - b.Packets}
}

// In a folder of somebody else's, a pin could be anything: none is made or listed, and
// nothing stays attached.
func TestPinsOfOthers(t *testing.T) {
	const stranger = 1000
	b := newBench(t)
	if err := errors.Join(os.Mkdir(b.Pins, 0o755), os.Chown(b.Pins, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	id := nettest.Must(b.ID(b.container.Cgroup))(t)
	err := b.Attach(b.container.Cgroup, id, b.datapath.CgroupIngress, b.datapath.CgroupEgress)
	if !errors.Is(err, trusted.ErrUntrusted) {
		t.Errorf("attach: %v, want ErrUntrusted", err)
	}
	if _, err := b.IDs(); !errors.Is(err, trusted.ErrUntrusted) {
		t.Errorf("list: %v, want ErrUntrusted", err)
	}
	if entries, err := os.ReadDir(b.Pins); err != nil || len(entries) > 0 {
		t.Errorf("left there: %v, %v", entries, err)
	}
}
