// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/tcctl"
)

// CNI's bandwidth plugin puts an `ingress` qdisc on a host veth, which excludes clsact, a
// moment after the veth is there. Whoever is there first with a clsact qdisc keeps the pod
// from starting.
func TestBandwidthPlugin(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "tc", "mount")
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	node := crihost.Start(t, crihost.Options{Bandwidth: true})
	t.Run("configured elsewhere", func(t *testing.T) { testElsewhere(t, node) })
	t.Run("clsact is in its way", func(t *testing.T) { testInTheWay(t, node) })
	t.Run("clsact keeps out of its way", func(t *testing.T) { testKeptOut(t, node) })
	t.Run("auto counts beside it", func(t *testing.T) { testBeside(t, node) })
}

// noReconcile leaves everything to events and to the self-check.
const noReconcile = "\n  reconcile: 1h"

// showCNIConfig puts the network's configuration where nettally looks for it on a real
// node, for what runs in the node's mount namespace: the machine has no such folder.
func showCNIConfig(t *testing.T, node *crihost.Host) {
	t.Helper()
	const script = `set -e
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mkdir -p /etc/cni
rm -rf /etc/cni/net.d
ln -s "$0" /etc/cni/net.d`
	if out, err := node.Command("sh", "-c", script, node.CNIConfigDir()).CombinedOutput(); err != nil {
		t.Fatalf("show CNI's configuration: %v: %s", err, out)
	}
}

// The configuration is in another folder than /etc/cni/net.d, as k3s has it, or nested as that
// of multus: pods with a rate start all the same, and are counted.
func testElsewhere(t *testing.T, node *crihost.Host) {
	nested := t.TempDir()
	const multus = `{"name":"m","type":"multus","delegates":[{"name":"n","plugins":[{"type":"bridge"},{"type":"bandwidth"}]}]}`
	if err := os.WriteFile(filepath.Join(nested, "00-multus.conf"), []byte(multus), 0o600); err != nil {
		t.Fatal(err)
	}
	for folder, pods := range map[string]int{node.CNIConfigDir(): 5, nested: 2} {
		d := startDaemon(t, node, onlyPods(node)+noReconcile+fmt.Sprintf("\nattach: {cni_dirs: [/nowhere, %q]}", folder))
		for range pods {
			pod := nettest.Must(node.RunPod("slow", crihost.PodOptions{Egress: 40_000_000}, crihost.Container{Name: "app"}))(t)
			d.hook(pod, "tcx")
			if !strings.Contains(qdiscs(t, node, pod), "qdisc ingress ffff:") {
				t.Error("the plugin's qdisc is not there")
			}
			if err := pod.Remove(); err != nil {
				t.Fatal(err)
			}
		}
		d.stop()
	}
}

// Where nothing tells nettally of the plugin it counts by clsact. Then the danger is real:
// of pods with a rate at least one does not start, whichever of the two came first. It is
// over with the first pod after the configuration is there.
func testInTheWay(t *testing.T, node *crihost.Host) {
	d := startDaemon(t, node, onlyPods(node)+noReconcile)
	free := runPod(t, node, "free", crihost.PodOptions{})
	d.hook(free, "clsact")
	d.exact(t, node, free)

	started := 0
	for ; started < 20; started++ {
		pod, err := node.RunPod("slow", crihost.PodOptions{Egress: 40_000_000})
		if err != nil {
			t.Logf("after %d that started: %v", started, err)
			break
		}
		if err := pod.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if started == 20 {
		t.Error("every pod with a rate has started")
	}
	showCNIConfig(t, node)
	slow := runPod(t, node, "slow", crihost.PodOptions{Egress: 40_000_000})
	d.hook(slow, "tcx")
	d.exact(t, node, slow)
}

// Where nettally knows of the plugin and may not use tcx, it waits until the plugin is
// done. A pod with a rate starts, and is not counted; one without is.
func testKeptOut(t *testing.T, node *crihost.Host) {
	d := startDaemon(t, node, onlyPods(node)+noReconcile+"\nattach: {mode: clsact}\naccounting: {cgroup: off}")
	free := runPod(t, node, "free", crihost.PodOptions{})
	slow := runPod(t, node, "slow", crihost.PodOptions{Egress: 40_000_000})
	d.poll("given up", func() error {
		c, err := d.container(slow.ID)
		if err == nil && (c.Accounted || c.Reason != "attach_failed") {
			err = fmt.Errorf("accounted %v, %s", c.Accounted, c.Reason)
		}
		return err
	})
	d.hook(free, "clsact")
	d.exact(t, node, free)
	if !strings.Contains(qdiscs(t, node, slow), "qdisc ingress ffff:") {
		t.Error("the plugin's qdisc is gone")
	}
}

// By default nettally counts by tcx where the plugin is configured, from the start.
func testBeside(t *testing.T, node *crihost.Host) {
	d := startDaemon(t, node, onlyPods(node))
	pods := map[string]*crihost.Pod{}
	for name, o := range map[string]crihost.PodOptions{
		"free": {}, "ingress": {Ingress: 80_000_000}, "egress": {Egress: 40_000_000},
		"both": {Ingress: 80_000_000, Egress: 40_000_000},
	} {
		pods[name] = runPod(t, node, name, o)
	}
	for name, pod := range pods {
		d.hook(pod, "tcx")
		d.exact(t, node, pod)
		has := qdiscs(t, node, pod)
		if got, want := strings.Contains(has, "qdisc tbf 1: root"), name == "ingress" || name == "both"; got != want {
			t.Errorf("%s: the plugin's tbf: %v, want %v: %s", name, got, want, has)
		}
		if got, want := strings.Contains(has, "qdisc ingress ffff:"), name == "egress" || name == "both"; got != want {
			t.Errorf("%s: the plugin's ingress qdisc: %v, want %v: %s", name, got, want, has)
		}
	}
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"node": node.Namespace}}
	during := nettest.TakeSnapshot(t, scope)

	d.kill()
	d.start()
	for _, pod := range pods {
		d.hook(pod, "tcx")
		d.exact(t, node, pod)
	}
	d.stop()
	nettest.Must(d.run("detach"))(t)
	during.Filters = slices.DeleteFunc(during.Filters, func(line string) bool { return strings.Contains(line, "TCX") })
	if diff := cmp.Diff(during, nettest.TakeSnapshot(t, scope)); diff != "" {
		t.Errorf("the plugin's qdiscs and filters after detach (-before +after):\n%s", diff)
	}
	for _, pod := range pods {
		nettest.Must(pod.Exec("app", "ping", "-c", "1", "-W", "5", node.Address.String()))(t)
	}
}

// runPod starts a pod with a container that does nothing, until the test ends.
func runPod(t *testing.T, node *crihost.Host, name string, o crihost.PodOptions) *crihost.Pod {
	t.Helper()
	pod := nettest.Must(node.RunPod(name, o, crihost.Container{Name: "app"}))(t)
	t.Cleanup(func() {
		if err := pod.Remove(); err != nil {
			t.Error(err)
		}
	})
	return pod
}

func qdiscs(t *testing.T, node *crihost.Host, pod *crihost.Pod) string {
	t.Helper()
	veth := nettest.Must(pod.HostVeth())(t).Attrs().Name
	return string(nettest.Must(node.Namespace.Run("tc", "qdisc", "show", "dev", veth))(t))
}

// hook waits until a pod is counted in a certain way.
func (d *daemon) hook(pod *crihost.Pod, want string) {
	d.t.Helper()
	d.poll("counted by "+want, func() error {
		c, err := d.container(pod.ID)
		if err == nil && (!c.Accounted || len(c.Interfaces) != 1 || c.Interfaces[0].Hook != want) {
			err = fmt.Errorf("pod %s: accounted %v, %s, %+v", pod.Name, c.Accounted, c.Reason, c.Interfaces)
		}
		return err
	})
}

// lostInQueue is what a pod has not received, though it has passed our hook: the plugin
// exchanges the queue behind that for its tbf, and what waits in the old one is lost. It is
// nothing where no tbf is.
func (d *daemon) lostInQueue(t *testing.T, node *crihost.Host, pod *crihost.Pod) (lost testnet.Counters) {
	t.Helper()
	if !strings.Contains(qdiscs(t, node, pod), "qdisc tbf") {
		return lost
	}
	d.poll("at rest", func() error {
		before, err := pod.NetDev()
		if err != nil {
			return err
		}
		ours := interfaceCounters(nettest.Must(d.container(pod.ID))(t))
		after, err := pod.NetDev()
		kernel := after["eth0"]
		if err == nil && (before["eth0"] != kernel || ours.ReceivePackets < kernel.ReceivePackets) {
			err = fmt.Errorf("the kernel has %+v, then %+v, and we %+v", before, after, ours)
		}
		lost.ReceiveBytes = ours.ReceiveBytes - kernel.ReceiveBytes
		lost.ReceivePackets = ours.ReceivePackets - kernel.ReceivePackets
		return err
	})
	if lost.ReceivePackets > 0 {
		t.Logf("pod %s: lost in the queue that the plugin took away: %+v", pod.Name, lost)
	}
	return lost
}

// exact sends UDP and TCP both ways between a pod and its node, and expects the kernel's
// numbers.
func (d *daemon) exact(t *testing.T, node *crihost.Host, pod *crihost.Pod) {
	t.Helper()
	inside, outside := nettest.Must(pod.Agent("app"))(t), nettest.Agent(t, node.Namespace)
	before := nettest.Must(d.container(pod.ID))(t)
	lost := d.lostInQueue(t, node, pod)
	up := nettest.Must(outside.Listen("udp", node.Address))(t)
	down := nettest.Must(inside.Listen("udp", pod.IPv4))(t)
	upload := nettest.Must(outside.Listen("tcp", node.Address))(t)
	download := nettest.Must(inside.Listen("tcp", pod.IPv4))(t)
	for _, err := range []error{
		inside.SendUDP(up.Addr, burst, burstPayload), outside.SendUDP(down.Addr, burst, burstPayload),
		inside.SendTCP(upload.Addr, 1_000_000, testnet.Write), outside.SendTCP(download.Addr, 1_000_000, testnet.Write),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d.poll("like the kernel's counters", func() error {
		kernel, err := pod.NetDev()
		if err != nil {
			return err
		}
		c, err := d.container(pod.ID)
		want := kernel["eth0"]
		want.ReceiveBytes += lost.ReceiveBytes
		want.ReceivePackets += lost.ReceivePackets
		if diff := cmp.Diff(want, interfaceCounters(c)); diff != "" {
			return fmt.Errorf("pod %s, %v, lost %+v (-kernel +ours):\n%s", pod.Name, err, lost, diff)
		}
		return err
	})
	after := nettest.Must(d.container(pod.ID))(t)
	for direction, grown := range map[string]uint64{
		"receive":  after.Receive.Protocols.UDP.Bytes - before.Receive.Protocols.UDP.Bytes,
		"transmit": after.Transmit.Protocols.UDP.Bytes - before.Transmit.Protocols.UDP.Bytes,
	} {
		if grown != burstBytes {
			t.Errorf("pod %s: %d bytes of UDP in %s, want %d", pod.Name, grown, direction, burstBytes)
		}
	}
}
