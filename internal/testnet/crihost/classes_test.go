// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"path"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Each class of pods has its place, with either network.
func TestClasses(t *testing.T) {
	h := Start(t, Options{})
	top := path.Dir(h.CgroupParent)
	for class, parent := range map[Class]string{
		Guaranteed: top, Burstable: top + "/burstable", BestEffort: top + "/besteffort",
	} {
		for name, hostNetwork := range map[string]bool{"pod": false, "host": true} {
			t.Run(string(class)+" "+name, func(t *testing.T) {
				pod := run(t, h, PodOptions{Class: class, HostNetwork: hostNetwork}, Container{Name: "app"})
				if want := parent + "/pod" + pod.UID; pod.CgroupPath != want {
					t.Errorf("the pod is in %s, want %s", pod.CgroupPath, want)
				}
				testCgroups(t, pod)
				if err := pod.Remove(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A pod whose sandbox has died: its two containers go on behind its veth.
func TestKillSandbox(t *testing.T) {
	h := Start(t, Options{})
	pod := run(t, h, PodOptions{}, Container{Name: "a"}, Container{Name: "b"})
	before := nettest.Must(pod.HostVeth())(t).Attrs().Index
	if err := pod.KillSandbox(); err != nil {
		t.Fatal(err)
	}
	sink := nettest.Must(nettest.Agent(t, h.Namespace).Listen("udp", h.Address))(t)
	capture := nettest.StartCapture(t, h.Namespace, nettest.Must(pod.HostVeth())(t).Attrs().Name)
	for i, name := range []string{"a", "b"} {
		if err := nettest.Must(pod.Agent(name))(t).SendUDP(sink.Addr, 100, 58); err != nil {
			t.Fatal(err)
		}
		nettest.Must(sink.Received((i + 1) * 100))(t)
	}
	if diff := cmp.Diff(nettest.Volume{Packets: 200, Bytes: 20_000}, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	if after := nettest.Must(pod.HostVeth())(t).Attrs().Index; after != before {
		t.Errorf("the host veth was %d, is %d", before, after)
	}
	if got := nettest.Must(pod.NetDev())(t)["eth0"].TransmitPackets; got < 200 {
		t.Errorf("the kernel counts %d packets, want 200 and some ARP", got)
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{Cgroups: []string{pod.CgroupPath}})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}
