// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"strconv"
	"strings"
	"syscall"
	"testing"

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
			h.enclosure.Crash(nettest.Must(strconv.Atoi(strings.TrimSpace(string(pid))))(h.tb))
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := nettest.TakeSnapshot(t, nettest.Scope{Paths: outside, Named: true, Cgroups: []string{"/default"}})
			var h *Host
			var namespaces []string
			parent := t
			started := t.Run("node", func(t *testing.T) {
				h = Start(t, Options{Bandwidth: true})
				pod := run(t, h, PodOptions{Ingress: 8_000_000, Egress: 8_000_000}, Container{Name: "a"}, Container{Name: "b"})
				run(t, h, PodOptions{HostNetwork: true}, Container{Name: "app"})
				namespaces = append(nettest.HoldNamespaces(parent, h.enclosure.PID()), nettest.HoldNamespaces(parent, pod.PID)...)
				plain := nettest.Must(h.RunPlain("plain", PlainCNI))(t)
				namespaces = append(namespaces, nettest.HoldNamespaces(parent, plain.PID)...)
				if n := len(nettest.NamespaceUsers(t, namespaces[0])); n < 4 {
					t.Errorf("%d processes in the mount namespace, want containerd and more", n)
				}
				end(h)
			})
			if !started {
				return
			}
			after := nettest.TakeSnapshot(t, nettest.Scope{Paths: outside, Named: true, Cgroups: []string{"/default"}})
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("left behind on the machine (-before +after):\n%s", diff)
			}
			after = nettest.TakeSnapshot(t, nettest.Scope{Paths: []string{h.enclosure.Dir}, Cgroups: []string{h.enclosure.Cgroup}})
			if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
			if left := plainCgroups(t, h.enclosure.Cgroup); len(left) > 0 {
				t.Errorf("cgroups are left: %q", left)
			}
			for _, namespace := range namespaces {
				nettest.AwaitNobody(t, namespace)
			}
		})
	}
}

func TestVictim(t *testing.T) {
	if !nettest.IsVictim() {
		return // the other tests are not about being killed
	}
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{}, Container{Name: "app"})
	plain := nettest.Must(h.RunPlain("plain", PlainCNI))(t)
	nettest.Victim(h.enclosure.Dir, h.enclosure.Cgroup, h.enclosure.PID(), pod.PID, plain.PID)
}

// A test that is killed can clean nothing up, and the script does.
func TestDeathOfTheTest(t *testing.T) {
	need.Root(t)
	var said, namespaces []string
	nettest.KillTest(t, "TestVictim", func(words []string) {
		said = words
		for _, pid := range words[2:] {
			namespaces = append(namespaces, nettest.HoldNamespaces(t, nettest.Must(strconv.Atoi(pid))(t))...)
		}
	})
	for _, namespace := range namespaces {
		nettest.AwaitNobody(t, namespace)
	}
	if left := plainCgroups(t, said[1]); len(left) > 0 {
		t.Errorf("cgroups are left: %q", left)
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{Paths: said[:1], Cgroups: said[1:2]})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}
