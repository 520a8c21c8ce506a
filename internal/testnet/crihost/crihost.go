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
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// patience bounds what should happen within a second or two, on a machine that
// has other things to do.
const patience = 60 * time.Second

// Options say how pods are connected.
type Options struct {
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
	// CgroupParent is the path of the pods' cgroups in the hierarchies: the
	// cgroup of a pod's sandbox or container is CgroupParent/pod<uid>/<id>.
	CgroupParent string
	// Socket is the path of containerd's socket, which answers to CRI.
	Socket string

	tb      testing.TB
	dir     string
	top     string // the cgroup that is made for this host
	options Options
	daemon  *daemon
	client  *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

var started atomic.Uint32

// Start starts a node. Requires root, cgroups, containerd, runc, and the CNI
// plugins where Debian puts them. Works with containerd 1.6, 1.7 and 2.1.
func Start(tb testing.TB, options Options) *Host {
	tb.Helper()
	need.Root(tb)
	need.Commands(tb, "containerd", "ctr", "containerd-shim-runc-v2", "runc", "busybox", "nsenter", "go")
	need.Commands(tb, plugins(options)...)
	h := &Host{
		Namespace: nettest.Host(tb),
		Bridge:    "cni0", Address: netip.MustParseAddr("10.240.0.1"),
		tb: tb, dir: shortDir(tb), options: options,
		top: fmt.Sprintf("/nettally-test-cri-%d-%d", os.Getpid(), started.Add(1)),
	}
	h.CgroupParent = h.top + "/kubepods/burstable"
	h.Socket = filepath.Join(h.dir, "sock")
	h.addBridge()
	h.configure()
	h.daemon = startDaemon(tb, h)
	tb.Cleanup(h.stop)
	h.connect()
	h.await()
	h.importImage()
	return h
}

// shortDir is a directory whose path leaves room for a socket's name, which
// tb.TempDir's does not: 108 bytes are all there is.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir := nettest.Must(os.MkdirTemp("", "nettally-"))(tb)
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// daemon is the script with containerd below it.
type daemon struct {
	cmd   *exec.Cmd
	alive *os.File // the script ends when it is closed
	ended chan struct{}
	err   error // after ended
}

//go:embed containerd.sh
var script string

func startDaemon(tb testing.TB, h *Host) *daemon {
	tb.Helper()
	// A pipe by hand: exec.Cmd would close its own at Wait.
	stdin, alive, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	defer stdin.Close()
	log := nettest.Must(os.Create(filepath.Join(h.dir, "log")))(tb)
	defer log.Close()
	cmd := exec.Command("sh", "-c", script, "containerd", h.dir, h.top)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS, // made private by package syscall
		Setsid:       true,                // ^C is for the test, which ends the script
	}
	if err := h.Namespace.Start(cmd); err != nil {
		_ = alive.Close()
		tb.Fatalf("start containerd: %v", err)
	}
	run := &daemon{cmd: cmd, alive: alive, ended: make(chan struct{})}
	go func() {
		run.err = cmd.Wait()
		close(run.ended)
	}()
	return run
}

// log returns the end of containerd's log.
func (h *Host) log() string { return end(filepath.Join(h.dir, "log")) }

// end returns the end of a file, or why there is none.
func end(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const limit = 4000
	return string(data[max(0, len(data)-limit):])
}

// stop removes the pods, which takes their veths and cgroups off in good order,
// and has the script end the rest.
func (h *Host) stop() {
	h.tb.Helper()
	h.removePods()
	if h.client != nil {
		_ = h.client.Close()
	}
	_ = h.daemon.alive.Close()
	select {
	case <-h.daemon.ended:
	case <-time.After(patience):
		_ = h.daemon.cmd.Process.Kill()
		h.tb.Error("containerd does not end")
		<-h.daemon.ended
	}
	if h.daemon.err != nil {
		h.tb.Errorf("end containerd: %v", h.daemon.err)
	}
	if h.tb.Failed() {
		h.tb.Logf("the end of containerd's log:\n%s", h.log())
	}
}

// Command returns a command that runs in containerd's network and mount
// namespaces, as the node's other daemons do. It has the process id of the
// command itself, and / as its working directory.
//
// /run and /var/lib are empty there but for what containerd, CNI and the command
// itself put into them. What still runs there when the test ends is killed.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	pid := h.daemon.cmd.Process.Pid
	return exec.Command("nsenter", append([]string{
		fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid), "--net=" + h.Namespace.Path(), "--", name,
	}, args...)...)
}
