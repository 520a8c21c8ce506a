// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
)

// Command lines as they are in public.
func TestKernelOf(t *testing.T) {
	const id = "dc7a95dc3219fa58f6b87ac10cb2f5b0a562d8434c2cdc8d4d940d8e763e5103"
	for command, want := range map[string]Kernel{
		"": HostKernel,
		"runsc-sandbox --root=/var/run/docker/runtime-runc/moby --network=sandbox boot --attached " + id: GVisor,
		"runsc-gofer --root=/var/run/docker/runtime-runc/moby gofer --bundle /run/x":                     GVisor,
		"runsc --root=/x list": HostKernel,
		"/usr/local/bin/containerd-shim-kata-v2 -namespace k8s.io -id " + id:                                                        Kata,
		"/usr/libexec/qemu-kvm -name sandbox-" + id + " -qmp unix:/run/vc/vm/" + id + "/qmp.sock,server,nowait":                     Kata,
		"/opt/kata/bin/qemu-system-x86_64 -name sandbox-" + id + " -chardev socket,id=console0,path=/run/vc/vm/" + id + "/con.sock": Kata,
		"/opt/kata/bin/cloud-hypervisor --api-socket /run/vc/vm/" + id + "/clh-api.sock":                                            Kata,
		"/opt/kata/bin/firecracker --api-sock /run/vc/firecracker/" + id + "/root/run/firecracker.socket":                           Kata,
		"/opt/kata/bin/cloud-hypervisor --api-socket /run/kata/" + id + "/ch-api.sock":                                              Kata,
		"/usr/bin/qemu-kvm -name guest=default_vm,debug-threads=on -sandbox on":                                                     HostKernel, // KubeVirt's
		"/usr/bin/qemu-system-x86_64 -nographic":                                                                                    HostKernel,
		"/usr/bin/containerd-shim-runc-v2 -id x":                                                                                    HostKernel,
		"cat /run/vc/vm":                                                                                                            HostKernel,
	} {
		if got := kernelOf(strings.Split(command, " ")); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// startAs is startIn for a process of a name, with words behind it that mean nothing to it.
func startAs(t *testing.T, ns *testnet.Namespace, cgroup string, command []string, how *syscall.SysProcAttr, holds ...*os.File) (stop func()) {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", "read never", "sh"}, command[1:]...)...)
	cmd.Args[0], cmd.SysProcAttr, cmd.ExtraFiles = command[0], how, holds
	in, err := cmd.StdinPipe()
	check(t, err)
	check(t, ns.Start(cmd))
	stop = func() {
		_ = in.Close() // fails if stopped before
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	check(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
	return stop
}

var (
	sandboxCommand = []string{"runsc-sandbox", "--network=sandbox", "boot"}
	goferCommand   = []string{"runsc-gofer", "gofer"}
	shimCommand    = []string{"/usr/local/bin/containerd-shim-kata-v2", "-namespace", "k8s.io"}
	monitorCommand = []string{"/opt/kata/bin/qemu-system-x86_64", "-qmp", "unix:/run/vc/vm/x/qmp.sock"}
)

// located expects a container to be in the inner namespace, which has a veth to the host, and
// on a kernel.
func (i inspected) located(t *testing.T, c Container, want Kernel) {
	t.Helper()
	s, err := i.Inspect(c)
	check(t, err)
	if s.NetNS != inode(t, i.inner) || !s.Given || s.Spread != Together || s.Kernel != want {
		t.Errorf("%s: %+v, want namespace %d and kernel %q", c.Cgroup, s, inode(t, i.inner), want)
	}
}

func (i inspected) unlocated(t *testing.T, c Container) {
	t.Helper()
	if s, err := i.Inspect(c); !errors.Is(err, ErrNoProcess) {
		t.Errorf("%s: %+v, error %v", c.Cgroup, s, err)
	}
}

// identified returns the container of a cgroup.
func identified(t *testing.T, cgroup string) Container {
	t.Helper()
	c, ok := Identify(cgroup, nil)
	if !ok || c.Cgroup != cgroup {
		t.Fatalf("%s is taken for %+v", cgroup, c)
	}
	return c
}

// newSandboxed is newInspected with a veth.
func newSandboxed(t *testing.T, root string) inspected {
	t.Helper()
	i := newInspected(t, root)
	veth(t, i.host, "vethhost", i.inner, "eth0")
	return i
}

// TestGVisor: a gofer comes first and is in a namespace of its own with nothing in it.
func TestGVisor(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newSandboxed(t, root)
		gofer := newNamespace(t)
		startAs(t, gofer, c.dir(), goferCommand, nil)
		startAs(t, c.inner, c.dir(), sandboxCommand, nil)
		c.located(t, c.container, GVisor)
		if s := c.Stand(c.container); s != (Standing{NetNS: inode(t, c.inner), Aside: true}) {
			t.Errorf("standing %+v", s)
		}
		// With a way out it would count, whatever it calls itself.
		veth(t, newNamespace(t), "far", gofer, "eth0")
		if s := c.inspect(t); s.NetNS != inode(t, c.inner) || s.Spread != Apart {
			t.Errorf("sandbox %+v", s)
		}
	})
}

// TestGVisorPod: the containers of a pod have cgroups that are empty, or all but the first.
func TestGVisorPod(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		pod := "/kubepods/burstable/pod" + uid
		slice := "/kubepods.slice/kubepods-pod" + uidSlice + ".slice"
		for name, row := range map[string]struct{ pause, app, sandbox string }{
			"in the pod's cgroup":      {pod + "/" + idA, pod + "/" + idB, pod},
			"in the first container's": {slice + "/cri-containerd-" + idA + ".scope", slice + "/cri-containerd-" + idB + ".scope", slice + "/cri-containerd-" + idA + ".scope"},
		} {
			t.Run(name, func(t *testing.T) {
				c := newSandboxed(t, root)
				pause, app := identified(t, row.pause), identified(t, row.app)
				makeDirs(t, root+row.pause, root+row.app)
				c.unlocated(t, pause)
				c.unlocated(t, app)
				stop := startAs(t, newNamespace(t), root+row.sandbox, goferCommand, nil)
				startAs(t, c.inner, root+row.sandbox, sandboxCommand, nil)
				c.located(t, pause, GVisor)
				c.located(t, app, GVisor)
				other := identified(t, strings.Replace(row.app, "72f7f152", "00000000", 1))
				makeDirs(t, root+other.Cgroup)
				c.unlocated(t, other)
				stop()
			})
		}
	})
}

// TestStarting: a container of an ordinary pod that has no process yet is nowhere.
func TestStarting(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newSandboxed(t, root)
		pod := "/kubepods/pod" + uid
		pause, app := identified(t, pod+"/"+idA), identified(t, pod+"/"+idB)
		makeDirs(t, root+pause.Cgroup, root+app.Cgroup)
		startIn(t, c.inner, root+pause.Cgroup)
		c.located(t, pause, HostKernel)
		c.unlocated(t, app)
	})
}

// TestKata: the shim stays in the host's network. What is in the sandbox's own cgroup, and
// what is kept out of it, is Kata's choice.
func TestKata(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		pod := "/kubepods/burstable/pod" + uid
		for name, row := range map[string]struct{ sandbox, shim, monitor string }{
			"all in one":           {pod + "/" + idB, pod + "/" + idB, pod + "/" + idB},
			"of Rust":              {pod + "/kata_" + idB, pod + "/kata_" + idB, pod + "/kata_" + idB},
			"of Rust, in threads":  {pod + "/kata_" + idB, pod + "/kata_" + idB + "/overhead", pod + "/kata_" + idB + "/overhead"},
			"overhead":             {pod + "/" + idB, "/kata_overhead/" + idB, "/kata_overhead/" + idB},
			"overhead of Rust":     {pod + "/kata_" + idB, "/kata_overhead/kata_" + idB, "/kata_overhead/kata_" + idB},
			"overhead of the shim": {pod + "/" + idB, "/kata_overhead/" + idB, pod + "/" + idB},
		} {
			t.Run(name, func(t *testing.T) {
				c := newSandboxed(t, root+"/"+strings.ReplaceAll(name, " ", "-"))
				sandbox := identified(t, row.sandbox)
				makeDirs(t, c.root+row.sandbox, c.root+row.shim)
				c.unlocated(t, sandbox)
				startAs(t, c.host, c.root+row.shim, shimCommand, nil)
				startAs(t, c.inner, c.root+row.monitor, monitorCommand, nil)
				c.located(t, sandbox, Kata)
				got, err := c.Containers()
				check(t, err)
				got = slices.DeleteFunc(got, func(other Container) bool { return other.ID == c.container.ID })
				if len(got) != 1 || got[0].ID != idB || got[0].Cgroup != row.sandbox || got[0].PodUID != uid {
					t.Errorf("containers %+v", got)
				}
			})
		}
	})
}

// TestAside: a name alone makes nobody a helper of the host's.
func TestAside(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		for name, row := range map[string]struct {
			command []string
			how     *syscall.SysProcAttr
			want    Spread
		}{
			"root's on the host":        {shimCommand, nil, Together},
			"not in the host's PIDs":    {shimCommand, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}, AlsoInHost},
			"not root":                  {shimCommand, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, AlsoInHost},
			"a virtual machine monitor": {monitorCommand, nil, AlsoInHost},
			"a sandbox of gVisor":       {sandboxCommand, nil, AlsoInHost},
			"another":                   {[]string{"sh"}, nil, AlsoInHost},
		} {
			c := newSandboxed(t, root)
			ends := []func(){startIn(t, c.inner, c.dir()), startAs(t, c.host, c.dir(), row.command, row.how)}
			if got := c.Stand(c.container).Spread; got != row.want {
				t.Errorf("%s: spread %d, want %d", name, got, row.want)
			}
			for _, end := range ends {
				end()
			}
		}
	})
}

// TestKataInterfaces has a machine's tap beside the interface, in both of Kata's ways. Only
// the interface is counted, on its end in the host.
func TestKataInterfaces(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		for name, add := range map[string][]string{
			"tcfilter": {"tuntap", "add", "tap0_kata", "mode", "tap", "vnet_hdr", "multi_queue"},
			"macvtap":  {"link", "add", "link", "eth0", "name", "tap0_kata", "type", "macvtap", "mode", "bridge"},
		} {
			c := newSandboxed(t, root)
			stop := startAs(t, c.inner, c.dir(), monitorCommand, nil)
			_, err := c.inner.Run("ip", add...)
			check(t, err)
			check(t, c.inner.LinkSetUp(linkIn(t, c.inner, "tap0_kata")))
			got := map[string]bool{} // counted, by name
			for _, i := range c.inspect(t).Interfaces {
				got[i.Name] = i.HostIndex != 0
				if i.Uplink {
					t.Errorf("%s: %s is counted inside", name, i.Name)
				}
			}
			if diff := cmp.Diff(map[string]bool{"eth0": true, "tap0_kata": false}, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			stop()
		}
	})
}

// TestKataTap has the machine hold the tap, as it does, wherever its processes are. One that
// somebody else holds leads out.
func TestKataTap(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		pod := "/kubepods/burstable/pod" + uid
		for name, row := range map[string]struct {
			monitor string
			outside bool
		}{
			"in the cgroup":   {pod + "/" + idB, false},
			"overhead":        {"/kata_overhead/" + idB, false},
			"somebody else's": {"/kata_overhead/" + idA, true},
		} {
			t.Run(name, func(t *testing.T) {
				c := newSandboxed(t, root+"/"+strings.Trim(strings.ReplaceAll(name, " ", "-"), "'"))
				sandbox := identified(t, pod+"/"+idB)
				makeDirs(t, c.root+sandbox.Cgroup, c.root+row.monitor)
				tap := openTap(t, c.inner, "tap0_kata")
				check(t, c.inner.LinkSetUp(linkIn(t, c.inner, "tap0_kata")))
				startAs(t, c.inner, c.root+sandbox.Cgroup, shimCommand, nil)
				startAs(t, c.inner, c.root+row.monitor, monitorCommand, nil, tap)
				check(t, tap.Close())
				found, err := c.Inspect(sandbox)
				check(t, err)
				for _, i := range found.Interfaces {
					if i.Name == "tap0_kata" && i.Uplink != row.outside {
						t.Errorf("it leads out: %v", i.Uplink)
					}
				}
				if len(found.Interfaces) != 2 {
					t.Errorf("interfaces %+v", found.Interfaces)
				}
			})
		}
	})
}
