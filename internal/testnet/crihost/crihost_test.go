// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// run starts a pod that must start.
func run(t *testing.T, h *Host, o PodOptions, containers ...Container) *Pod {
	t.Helper()
	return nettest.Must(h.RunPod("web", o, containers...))(t)
}

func TestPod(t *testing.T) {
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{}, Container{Name: "app"}, Container{Name: "sidecar"})

	t.Run("ping", func(t *testing.T) {
		out := nettest.Must(pod.Exec("app", "ping", "-c", "2", "-W", "5", h.Address.String()))(t)
		if !strings.Contains(out, " 0% packet loss") {
			t.Error(out)
		}
		if _, err := pod.Exec("app", "false"); err == nil {
			t.Error("a command that fails is no error")
		}
	})
	t.Run("cgroups", func(t *testing.T) { testCgroups(t, pod) })
	t.Run("namespaces", func(t *testing.T) {
		want := nettest.Must(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pod.PID)))(t)
		for name := range pod.Containers {
			pid := nettest.Must(pod.ContainerPID(name))(t)
			if got := nettest.Must(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)))(t); got != want {
				t.Errorf("%s is in %s, the sandbox in %s", name, got, want)
			}
		}
	})
	t.Run("counters", func(t *testing.T) { testCounters(t, h, pod) })
	t.Run("agent", func(t *testing.T) {
		to := nettest.Must(nettest.Agent(t, h.Namespace).Listen("tcp", h.Address))(t)
		from := nettest.Must(pod.Agent("sidecar"))(t)
		if err := from.SendTCP(to.Addr, 100_000, testnet.Write); err != nil {
			t.Fatal(err)
		}
		if got := nettest.Must(to.Received(1))(t).Bytes; got != 100_000 {
			t.Errorf("received %d bytes, want 100000", got)
		}
	})
}

// testCgroups looks for the processes where the kubelet has them put.
func testCgroups(t *testing.T, pod *Pod) {
	t.Helper()
	pids := map[string]int{pod.ID: pod.PID}
	for name, id := range pod.Containers {
		pids[id] = nettest.Must(pod.ContainerPID(name))(t)
	}
	for id, pid := range pids {
		data := nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)))(t)
		for line := range strings.Lines(string(data)) {
			if want := pod.CgroupPath + "/" + id; !strings.HasSuffix(strings.TrimSpace(line), ":"+want) {
				t.Errorf("process %d is in %s, want %s", pid, line, want)
			}
		}
	}
}

// testCounters sends from one container, and compares tcpdump on the host veth with the
// kernel's counters of both of its ends.
func testCounters(t *testing.T, h *Host, pod *Pod) {
	to := nettest.Must(nettest.Agent(t, h.Namespace).Listen("udp", h.Address))(t)
	veth := nettest.Must(pod.HostVeth())(t).Attrs()
	capture := nettest.StartCapture(t, h.Namespace, veth.Name)
	before := nettest.Must(pod.NetDev())(t)["eth0"]
	if err := nettest.Must(pod.Agent("app"))(t).SendUDP(to.Addr, 1000, 958); err != nil {
		t.Fatal(err)
	}
	nettest.Must(to.Received(100))(t) // some get lost at the socket
	capture.Stop()
	want := nettest.Volume{Packets: 1000, Bytes: 1_000_000}
	if diff := cmp.Diff(want, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	after := nettest.Must(pod.NetDev())(t)["eth0"]
	host := nettest.Must(h.Namespace.LinkByIndex(veth.Index))(t).Attrs().Statistics
	if host.RxPackets != after.TransmitPackets || host.RxBytes != after.TransmitBytes {
		t.Errorf("the host veth received %d packets of %d bytes, eth0 transmitted %+v", host.RxPackets, host.RxBytes, after)
	}
	// The gateway may have been asked for meanwhile.
	if got := after.TransmitPackets - before.TransmitPackets; got < 1000 || got > 1010 {
		t.Errorf("the kernel counts %d packets, want 1000 and some ARP", got)
	}
}

// Containers whose first act is to send 1,000 datagrams, and who end then. All are on
// their way, though the gateway's address is not known at first.
func TestShortLived(t *testing.T) {
	h := Start(t, Options{})
	to := nettest.Must(nettest.Agent(t, h.Namespace).Listen("udp", h.Address))(t)
	capture := nettest.StartCapture(t, h.Namespace, h.Bridge)
	const pods, count, size = 10, 1000, 100
	var group errgroup.Group
	group.SetLimit(5)
	for i := range pods {
		group.Go(func() error {
			pod, err := h.RunPod(fmt.Sprintf("short-%d", i), PodOptions{},
				Container{Name: "sender", Command: SendUDP(to.Addr, count, size)})
			if err != nil {
				return err
			}
			if err := pod.Wait("sender"); err != nil {
				return err
			}
			eth0, err := netDev(pod)
			if err != nil {
				return err
			}
			// ARP, and what an IPv6 address says before the sandbox forbids it.
			if got := eth0.TransmitPackets; got < count || got > count+20 {
				return fmt.Errorf("pod %d transmitted %d packets, want %d and some ARP", i, got, count)
			}
			return pod.Remove()
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	want := nettest.Volume{Packets: pods * count, Bytes: pods * count * (42 + size)}
	if diff := cmp.Diff(want, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
}

// Datagrams to an address that nobody has at first wait until somebody has it, also of
// several sockets. (Those of one would not fit into its send buffer.)
func TestUnresolved(t *testing.T) {
	h := Start(t, Options{})
	late := netip.MustParseAddr("10.240.0.250")
	send := SendUDP(netip.AddrPortFrom(late, 9), 1000, 100)
	pod := run(t, h, PodOptions{}, Container{Name: "one", Command: send}, Container{Name: "two", Command: send})
	capture := nettest.StartCapture(t, h.Namespace, h.Bridge)
	bridge := nettest.Must(h.Namespace.LinkByName(h.Bridge))(t)
	if err := h.Namespace.AddrAdd(bridge, nettest.Must(netlink.ParseAddr(late.String()+"/32"))(t)); err != nil {
		t.Fatal(err)
	}
	for name := range pod.Containers {
		if err := pod.Wait(name); err != nil {
			t.Fatal(err)
		}
	}
	// The last ones may be sent, and still wait for the kernel to ask again.
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if nettest.Must(netDev(pod))(t).TransmitPackets >= 2000 {
			break
		}
	}
	if got := capture.Count("udp").Packets; got != 2000 {
		t.Errorf("captured %d datagrams, want 2000", got)
	}
}

func netDev(pod *Pod) (testnet.Counters, error) {
	all, err := pod.NetDev()
	return all["eth0"], err
}

func TestFailingContainer(t *testing.T) {
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{}, Container{Name: "app", Command: []string{"sh", "-c", "echo sorry; exit 3"}})
	err := pod.Wait("app")
	if err == nil || !strings.Contains(err.Error(), "ended with 3") || !strings.Contains(err.Error(), "sorry") {
		t.Errorf("error %v, want one with exit code and output", err)
	}
	// Larger than a datagram can be.
	if err := pod.Start(Container{Name: "sender", Command: SendUDP(netip.AddrPortFrom(h.Address, 1), 1, 70_000)}); err != nil {
		t.Fatal(err)
	}
	if err := pod.Wait("sender"); err == nil || !strings.Contains(err.Error(), "message too long") {
		t.Errorf("error %v, want the agent's", err)
	}
	// Nothing is left of a pod that does not start.
	_, err = h.RunPod("broken", PodOptions{}, Container{Name: "app", Command: []string{"/missing"}})
	if err == nil {
		t.Fatal("a container without a program starts")
	}
	cgroups := nettest.TakeSnapshot(t, nettest.Scope{Cgroups: []string{h.CgroupParent}}).Cgroups
	if slices.ContainsFunc(cgroups, func(dir string) bool {
		return strings.Contains(dir, "/pod") && !strings.Contains(dir, pod.UID)
	}) {
		t.Errorf("cgroups are left: %q", cgroups)
	}
	if got := veths(t, h); len(got) != 1 {
		t.Errorf("host veths %v, want that of the first pod", got)
	}
}

func TestHostNetwork(t *testing.T) {
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{HostNetwork: true}, Container{Name: "app"})
	want := nettest.Must(os.Readlink(h.Namespace.Path()))(t)
	pid := nettest.Must(pod.ContainerPID("app"))(t)
	if got := nettest.Must(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)))(t); got != want {
		t.Errorf("the container is in %s, the host is %s", got, want)
	}
	testCgroups(t, pod)
	if _, err := pod.HostVeth(); err == nil || len(veths(t, h)) > 0 {
		t.Error("there is a veth")
	}
	if pod.IPv4.IsValid() {
		t.Errorf("the pod has an address of its own: %s", pod.IPv4)
	}
}

// What the bandwidth plugin makes on the host's side: a rate of what the pod receives at
// the host veth, and for what it transmits a redirection to another interface with a rate.
func TestBandwidth(t *testing.T) {
	need.Commands(t, "tc")
	h := Start(t, Options{Bandwidth: true})
	free := run(t, h, PodOptions{}, Container{Name: "app"})
	slow := run(t, h, PodOptions{Ingress: 8_000_000, Egress: 4_000_000}, Container{Name: "app"})

	veth := nettest.Must(free.HostVeth())(t).Attrs().Name
	if got := qdiscs(t, h, veth); !strings.Contains(got, "noqueue") {
		t.Errorf("a pod without rates has %s", got)
	}
	veth = nettest.Must(slow.HostVeth())(t).Attrs().Name
	got := qdiscs(t, h, veth)
	for _, want := range []string{"qdisc tbf 1: root", "rate 8Mbit", "qdisc ingress ffff:"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q on the host veth: %s", want, got)
		}
	}
	filters := string(nettest.Must(h.Namespace.Run("tc", "filter", "show", "dev", veth, "parent", "ffff:"))(t))
	_, ifb, redirects := strings.Cut(filters, "Egress Redirect to device ")
	if !redirects {
		t.Fatalf("nothing is redirected: %s", filters)
	}
	ifb, _, _ = strings.Cut(ifb, ")")
	if got := qdiscs(t, h, ifb); !strings.Contains(got, "qdisc tbf 1: root") || !strings.Contains(got, "rate 4Mbit") {
		t.Errorf("%s has %s", ifb, got)
	}
	out := nettest.Must(slow.Exec("app", "ping", "-c", "2", "-W", "5", h.Address.String()))(t)
	if !strings.Contains(out, " 0% packet loss") {
		t.Error(out)
	}
	if err := slow.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Namespace.LinkByName(ifb); err == nil {
		t.Errorf("%s is left", ifb)
	}
}

func qdiscs(t *testing.T, h *Host, iface string) string {
	t.Helper()
	return string(nettest.Must(h.Namespace.Run("tc", "qdisc", "show", "dev", iface))(t))
}

// veths returns the names of the host veths.
func veths(t *testing.T, h *Host) (names []string) {
	t.Helper()
	for _, l := range nettest.Must(h.Namespace.LinkList())(t) {
		if l.Type() == "veth" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// A command is where containerd is, and reads the network's configuration there.
func TestCommand(t *testing.T) {
	h := Start(t, Options{Bandwidth: true})
	inside := nettest.Must(h.Command("readlink", "/proc/self/ns/net").Output())(t)
	want := nettest.Must(os.Readlink(h.Namespace.Path()))(t)
	if got := strings.TrimSpace(string(inside)); got != want {
		t.Errorf("a command is in %s, want %s", got, want)
	}
	files := nettest.Must(filepath.Glob(h.CNIConfigDir() + "/*.conflist"))(t)
	if len(files) != 1 {
		t.Fatalf("configurations %q, want one", files)
	}
	var network struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(nettest.Must(h.Command("cat", files[0]).Output())(t), &network); err != nil {
		t.Fatal(err)
	}
	if len(network.Plugins) != 2 || network.Plugins[1].Type != "bandwidth" {
		t.Errorf("plugins %+v, want bridge and bandwidth", network.Plugins)
	}
}
