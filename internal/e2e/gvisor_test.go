// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

const (
	podUID     = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
	datagramsN = 100
)

// enclosed is a network namespace with a veth to a host, and cgroups of the test's own, as
// runtimes make them for a sandbox.
type enclosed struct {
	t           *testing.T
	host, inner *testnet.Namespace
	peer        *testnet.Agent // in the host
	witness     *testnet.Agent // in the namespace, for the kernel's counters
	hostIP, ip  netip.Addr
	top         string // of the cgroups, which nettally looks at alone
	id, other   string // of containers: two of one id would be in each other's way
	kinds
}

func newEnclosed(t *testing.T, name string) *enclosed {
	t.Helper()
	e := &enclosed{
		t: t, host: nettest.Host(t), inner: nettest.Host(t), top: fmt.Sprintf("/nettally-%s-%d", name, os.Getpid()),
		id: fmt.Sprintf("%064x", lives.Add(1)), other: fmt.Sprintf("%064x", lives.Add(1)),
		hostIP: netip.MustParseAddr("10.97.0.1"), ip: netip.MustParseAddr("10.97.0.2"),
	}
	e.must(testnet.Veth(e.host, "vethbox", e.inner, "eth0"))
	e.must(e.ip4(e.host, "addr", "add", e.hostIP.String()+"/24", "dev", "vethbox"))
	e.must(e.ip4(e.inner, "addr", "add", e.ip.String()+"/24", "dev", "eth0"))
	e.peer, e.witness = nettest.Agent(t, e.host), nettest.Agent(t, e.inner)
	t.Cleanup(e.removeCgroups)
	config := fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {reconcile: 1s, include: [%q]}", e.top+"/*")
	e.kinds = kinds{t, startDaemon(t, on{e.host}, config)}
	return e
}

func (e *enclosed) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *enclosed) ip4(in *testnet.Namespace, args ...string) error {
	_, err := in.Run("ip", args...)
	return err
}

// removeCgroups removes what a runtime has left of them.
func (e *enclosed) removeCgroups() {
	for _, root := range nettest.Must(testnet.CgroupRoots())(e.t) {
		dirs := nettest.Must(cgroupsBelow(filepath.Join(root, e.top)))(e.t)
		for n := len(dirs) - 1; n >= 0; n-- {
			removed := func() error {
				if err := os.Remove(dirs[n]); err != nil && !os.IsNotExist(err) {
					return err
				}
				return nil
			}
			e.d.poll("removed", removed)
		}
	}
}

// cgroupsBelow lists a cgroup, if there is one, and those in it.
func cgroupsBelow(top string) (dirs []string, err error) {
	err = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}

// onKernel waits until a container is counted at its host veth, once, and said to be on a
// kernel.
func (e *enclosed) onKernel(id, kernel, cgroup string) exporter.Container {
	e.t.Helper()
	return e.is(id, "counted, on "+kernel, func(c exporter.Container) bool {
		return c.Accounted && c.Reason == "" && c.Kernel == kernel && c.Cgroup == cgroup && c.IP == nil &&
			len(c.Interfaces) == 1 && c.Interfaces[0].HostInterface == "vethbox" && c.Interfaces[0].At == "host"
	})
}

// likeEth0 waits until a container's numbers are those of the kernel.
func (e *enclosed) likeEth0(id string) {
	e.t.Helper()
	e.likeKernel(id, func() map[string]testnet.Counters {
		all := nettest.Must(testnet.InterfaceCounters(e.witness.PID()))(e.t)
		return map[string]testnet.Counters{"eth0": all["eth0"]}
	})
}

// runsc runs gVisor in the namespace. What it starts has its output still, so that goes to
// a file.
//
// Debian's is of 2022, and refuses a namespace that has the file rmem_default, which was the
// first one's alone then: it sees none.
func (e *enclosed) runsc(args ...string) {
	e.t.Helper()
	const hide = `mount -t tmpfs none /proc/sys/net/core && exec runsc "$@"`
	out := nettest.Must(os.Create(filepath.Join(e.t.TempDir(), "output")))(e.t)
	defer out.Close()
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", hide, "sh", "--root", e.state()}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	err := e.inner.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		said, _ := os.ReadFile(out.Name())
		e.t.Fatalf("runsc %q: %v\n%s", args, err, said)
	}
}

func (e *enclosed) state() string { return filepath.Join(filepath.Dir(e.d.config), "runsc") }

// box starts a container of gVisor that waits.
func (e *enclosed) box(id, cgroup string, annotations map[string]string) {
	e.t.Helper()
	bundle := e.t.TempDir()
	bin := filepath.Join(bundle, "rootfs/bin")
	e.must(os.MkdirAll(bin, 0o755))
	busybox := nettest.Must(os.ReadFile(nettest.Must(exec.LookPath("busybox"))(e.t)))(e.t)
	e.must(os.WriteFile(filepath.Join(bin, "busybox"), busybox, 0o755))
	type object = map[string]any
	spec := object{
		"ociVersion": "1.0.0", "root": object{"path": "rootfs"}, "annotations": annotations,
		"process": object{"cwd": "/", "args": []string{"/bin/busybox", "sleep", "600"}, "env": []string{"PATH=/bin"}},
		"mounts":  []object{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux": object{"cgroupsPath": cgroup, "namespaces": []object{
			{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network", "path": e.inner.Path()},
		}},
	}
	e.must(os.WriteFile(filepath.Join(bundle, "config.json"), nettest.Must(json.Marshal(spec))(e.t), 0o600))
	e.runsc("create", "-bundle", bundle, id)
	e.t.Cleanup(func() { e.runsc("delete", "-force", id) })
	e.runsc("start", id)
}

// send has a container of gVisor send a stream, and get datagrams.
func (e *enclosed) send(id string) {
	e.t.Helper()
	sink := nettest.Must(e.peer.Listen("tcp", e.hostIP))(e.t)
	upload := fmt.Sprintf("busybox dd if=/dev/zero bs=1000 count=1000 | busybox nc %s %d", sink.Addr.Addr(), sink.Addr.Port())
	e.runsc("exec", id, "/bin/busybox", "sh", "-c", upload)
	if got := nettest.Must(sink.Received(1))(e.t); got.Bytes != 1_000_000 {
		e.t.Errorf("%+v came", got)
	}
	e.must(e.peer.SendUDP(netip.AddrPortFrom(e.ip, 9), datagramsN, 100))
}

// What gVisor's own network sends and receives by a packet socket is counted at the veth, for
// the container whose cgroup has the sandbox, though a gofer is in another namespace.
func TestGVisor(t *testing.T) {
	need.Root(t)
	need.Commands(t, "runsc", "busybox", "unshare")
	t.Parallel()
	e := newEnclosed(t, "gvisor")
	cgroup := e.top + "/docker/" + e.id
	e.box(e.id, cgroup, nil)
	e.onKernel(e.id, "gvisor", cgroup)
	e.send(e.id)
	e.likeEth0(e.id)
	c := e.onKernel(e.id, "gvisor", cgroup)
	if got := c.Receive.Protocols.UDP.Packets; got != datagramsN || c.Transmit.TCPSYN != 1 || c.Transmit.Bytes < 1_000_000 {
		t.Errorf("received %d datagrams, transmitted %d bytes and %d requests", got, c.Transmit.Bytes, c.Transmit.TCPSYN)
	}
	if out, err := e.d.run("list"); err != nil || !strings.Contains(out, "running, on gvisor") {
		t.Errorf("list: %v\n%s", err, out)
	}
}

// A pod of gVisor has all its processes in the cgroup of the pod, and none in those of its
// containers: the first one has the interface, and the other shares it.
func TestGVisorPod(t *testing.T) {
	need.Root(t)
	need.Commands(t, "runsc", "busybox", "unshare")
	t.Parallel()
	e := newEnclosed(t, "gvisorpod")
	pod := e.top + "/kubepods/burstable/pod" + podUID
	e.box(e.id, pod+"/"+e.id, map[string]string{
		"io.kubernetes.cri.container-type": "sandbox", "dev.gvisor.spec.cgroup-parent": pod, // as its shim says
	})
	e.onKernel(e.id, "gvisor", pod+"/"+e.id)
	e.box(e.other, pod+"/"+e.other, map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": e.id,
	})
	shares := func() {
		t.Helper()
		e.is(e.other, "sharing", func(c exporter.Container) bool {
			return c.Reason == "shared_network" && c.NetworkMode == "container" && c.Kernel == "gvisor" && len(c.Interfaces) == 0 && c.IP == nil
		})
		e.onKernel(e.id, "gvisor", pod+"/"+e.id)
	}
	shares()
	e.send(e.other)
	e.likeEth0(e.id)
	e.d.kill()
	e.send(e.other)
	e.d.start()
	shares()
	e.likeEth0(e.id)
	if c, err := e.d.container(e.id); err != nil || c.Receive.Protocols.UDP.Packets != 2*datagramsN || c.Transmit.TCPSYN != 2 {
		t.Errorf("received %d datagrams, transmitted %d requests, %v", c.Receive.Protocols.UDP.Packets, c.Transmit.TCPSYN, err)
	}
}
