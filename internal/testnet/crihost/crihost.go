// SPDX-License-Identifier: Apache-2.0

// Package crihost gives a test a Kubernetes node without the kubelet: a
// containerd of its own, that the test orders pods from over CRI, with pod
// networks by CNI's bridge plugin.
//
// Containerd, its shims and the CNI plugins run in a network namespace and a
// mount namespace that nobody else is in. To the pods that network namespace is
// the host: their veths and the bridge are there. Everything that is stored is on
// a tmpfs in the mount namespace, so it needs no cleaning. A script that started
// containerd ends it, and removes the pods' cgroups, when the test ends or dies.
//
// Beside the pods there can be containers without any, which `ctr run` makes.
//
//	func TestUpload(t *testing.T) {
//		need.Root(t)
//		node := crihost.Start(t, crihost.Options{})
//		sink := nettest.Must(nettest.Agent(t, node.Namespace).Listen("udp", node.Address))(t)
//		pod := nettest.Must(node.RunPod("web", crihost.PodOptions{},
//			crihost.Container{Name: "sender", Command: crihost.SendUDP(sink.Addr, 1000, 100)},
//			crihost.Container{Name: "sidecar"}))(t)
//		if err := pod.Wait("sender"); err != nil {
//			t.Fatal(err)
//		}
//		got := nettest.Must(pod.NetDev())(t)["eth0"] // 1000 packets, and some ARP
//	}
package crihost

import (
	_ "embed"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/enclosure"
	"github.com/nettally/nettally/internal/testnet/need"
)

const patience = enclosure.Patience

// Options say how pods are run and connected.
type Options struct {
	// CgroupV2Only mounts the v2 hierarchy alone at /sys/fs/cgroup, as a newer
	// host does, whatever the machine has. Controllers that the machine has bound
	// to v1 are missing, so containers have no limits.
	CgroupV2Only bool
	// Bandwidth puts CNI's bandwidth plugin behind the bridge plugin, so that
	// pods can have a rate; see [PodOptions].
	Bandwidth bool
}

// Host is a node whose containerd runs.
//
// It is safe for concurrent use.
type Host struct {
	// Namespace is the host of the pods.
	Namespace *testnet.Namespace
	// Bridge is the interface in Namespace that the pods' veths are ports of,
	// there from the start, and Address is the address that pods reach the host
	// by.
	Bridge  string
	Address netip.Addr
	// CgroupParent is the path of the burstable pods' cgroups in the hierarchies:
	// the cgroup of such a pod's sandbox or container is
	// CgroupParent/pod<uid>/<id>.
	CgroupParent string
	// Socket is the path of containerd's socket, which answers to CRI.
	Socket string

	tb        testing.TB
	enclosure *enclosure.Enclosure
	options   Options
	client    *grpc.ClientConn
	runtime   cri.RuntimeServiceClient
	images    cri.ImageServiceClient
}

//go:embed containerd.sh
var script string

// Start starts a node. Requires root, cgroups, containerd, runc, and the CNI
// plugins where Debian puts them. Works with containerd 1.6, 1.7 and 2.1.
func Start(tb testing.TB, options Options) *Host {
	tb.Helper()
	need.Commands(tb, "containerd", "ctr", "containerd-shim-runc-v2", "runc")
	need.Commands(tb, plugins(options)...)
	e := enclosure.New(tb, "cri")
	h := &Host{
		Namespace: e.Namespace,
		Bridge:    "cni0", Address: netip.MustParseAddr("10.240.0.1"),
		Socket: filepath.Join(e.Dir, "sock"),
		tb:     tb, enclosure: e, options: options,
	}
	h.CgroupParent = h.cgroup(Burstable)
	h.addBridge()
	h.configure()
	e.Start(script, fmt.Sprint(options.CgroupV2Only))
	tb.Cleanup(h.stop)
	h.connect()
	e.Await(h.ready)
	h.importImage()
	return h
}

// stop removes the pods, which takes their veths and cgroups off in good order,
// and ends the rest.
func (h *Host) stop() {
	h.tb.Helper()
	h.removePods()
	h.removePlain()
	if h.client != nil {
		_ = h.client.Close()
	}
	h.enclosure.End()
}

// Command returns a command that runs in containerd's network and mount
// namespaces, as the node's other daemons do. It has the process id of the
// command itself, and / as its working directory.
//
// /run and /var/lib are empty there but for what containerd, CNI and the command
// itself put into them. What still runs there when the test ends is killed.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return h.enclosure.Command(name, args...)
}
