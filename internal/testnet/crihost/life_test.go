// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

func TestRemove(t *testing.T) {
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{}, Container{Name: "app"}, Container{Name: "sidecar"})
	pids := []int{pod.PID}
	for name := range pod.Containers {
		pids = append(pids, nettest.Must(pod.ContainerPID(name))(t))
	}
	if got := veths(t, h); len(got) != 1 {
		t.Errorf("host veths %v, want one", got)
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := veths(t, h); len(got) > 0 {
		t.Errorf("host veths are left: %v", got)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d is left", pid)
		}
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{Cgroups: []string{pod.CgroupPath}})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
	namespaces := nettest.Must(h.Command("ls", "/run/netns").Output())(t)
	if len(namespaces) > 0 {
		t.Errorf("network namespaces are left: %s", namespaces)
	}
}

// outside is what containerd, CNI and runc would make on the machine.
var outside = []string{
	"/run/containerd", "/run/netns", "/run/runc", "/var/lib/containerd", "/var/lib/cni",
	"/opt/containerd", "/etc/cni", "/etc/nri",
}

// Whichever way a test ends, nothing of the node stays.
func TestNothingIsLeftBehind(t *testing.T) {
	need.Root(t)
	for name, end := range map[string]func(*Host){
		"clean-up": func(*Host) {},
		"death of containerd": func(h *Host) {
			pid := nettest.Must(h.Command("cat", "/run/containerd.pid").Output())(h.tb)
			var n int
			nettest.Must(fmt.Sscan(string(pid), &n))(h.tb)
			_ = syscall.Kill(n, syscall.SIGKILL)
			<-h.daemon.ended
			h.daemon.err = nil // killed: expected
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := nettest.TakeSnapshot(t, nettest.Scope{Paths: outside, Named: true})
			var h *Host
			var namespaces []string
			parent := t
			started := t.Run("node", func(t *testing.T) {
				h = Start(t, Options{Bandwidth: true})
				pod := run(t, h, PodOptions{Ingress: 8_000_000, Egress: 8_000_000}, Container{Name: "a"}, Container{Name: "b"})
				run(t, h, PodOptions{HostNetwork: true}, Container{Name: "app"})
				namespaces = append(hold(t, parent, h.daemon.cmd.Process.Pid), hold(t, parent, pod.PID)...)
				if n := len(users(t, namespaces[0])); n < 4 {
					t.Errorf("%d processes in the mount namespace, want containerd and more", n)
				}
				end(h)
			})
			if !started {
				return
			}
			after := nettest.TakeSnapshot(t, nettest.Scope{Paths: outside, Named: true})
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("left behind on the machine (-before +after):\n%s", diff)
			}
			after = nettest.TakeSnapshot(t, nettest.Scope{Paths: []string{h.dir}, Cgroups: []string{h.top}})
			if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
			for _, namespace := range namespaces {
				awaitNobody(t, namespace)
			}
		})
	}
}

// victim is set in the environment of a test binary that is to be killed.
const victim = "NETTALLY_CRIHOST_VICTIM"

func TestVictim(t *testing.T) {
	if os.Getenv(victim) == "" {
		return // the other tests are not about being killed
	}
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{}, Container{Name: "app"})
	fmt.Println("victim", h.dir, h.top, h.daemon.cmd.Process.Pid, pod.PID)
	select {}
}

// A test that is killed can clean nothing up, and the script does.
func TestDeathOfTheTest(t *testing.T) {
	need.Root(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victim+"=1")
	stdout := nettest.Must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, top string
	var script, sandbox int
	var said []string
	for lines := bufio.NewScanner(stdout); sandbox == 0 && lines.Scan(); said = append(said, lines.Text()) {
		_, _ = fmt.Sscanf(lines.Text(), "victim %s %s %d %d", &dir, &top, &script, &sandbox)
	}
	var namespaces []string
	if sandbox != 0 {
		namespaces = append(hold(t, t, script), hold(t, t, sandbox)...)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed: expected
	if sandbox == 0 {
		t.Fatalf("the test to be killed says:\n%s", strings.Join(said, "\n"))
	}
	for _, namespace := range namespaces {
		awaitNobody(t, namespace)
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{Paths: []string{dir}, Cgroups: []string{top}})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

// hold returns the namespaces of a process. It keeps them alive for the parent
// test, since the kernel would give their numbers to others.
func hold(t, parent *testing.T, pid int) []string {
	t.Helper()
	var names []string
	for _, kind := range []string{"mnt", "net"} {
		f := nettest.Must(os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)))(t)
		parent.Cleanup(func() { _ = f.Close() })
		names = append(names, nettest.Must(os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())))(t))
	}
	return names
}

// users returns the processes that are in a namespace.
func users(t *testing.T, namespace string) []string {
	t.Helper()
	kind, _, _ := strings.Cut(namespace, ":")
	var found []string
	for _, l := range nettest.Must(filepath.Glob("/proc/[0-9]*/ns/" + kind))(t) {
		if target, err := os.Readlink(l); err == nil && target == namespace {
			found = append(found, l)
		}
	}
	return found
}

// awaitNobody waits for killed processes to be reaped by whoever inherited them.
func awaitNobody(t *testing.T, namespace string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = users(t, namespace); len(left) == 0 {
			return
		}
	}
	t.Errorf("processes left in %s: %v", namespace, left)
}
