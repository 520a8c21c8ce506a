// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

func TestPlain(t *testing.T) {
	h := Start(t, Options{})
	sink := nettest.Must(nettest.Agent(t, h.Namespace).Listen("udp", h.Address))(t)
	want := nettest.Must(os.Readlink(h.Namespace.Path()))(t)
	for name, network := range map[string]PlainNetwork{"cni": PlainCNI, "host": PlainHost, "none": PlainNone} {
		t.Run(name, func(t *testing.T) {
			c := nettest.Must(h.RunPlain(name, network))(t)
			data := nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID)))(t)
			for line := range strings.Lines(string(data)) {
				if !strings.HasSuffix(line, ":/default/"+c.ID+"\n") {
					t.Errorf("in cgroup %q, want /default/%s", line, c.ID)
				}
			}
			in := nettest.Must(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.PID)))(t)
			if (in == want) != (network == PlainHost) {
				t.Errorf("the container is in %s, the host is %s", in, want)
			}
			if network == PlainNone {
				if got := nettest.Must(c.NetDev())(t); len(got) != 1 {
					t.Errorf("interfaces %v, want lo alone", got)
				}
				return
			}
			testPlainTraffic(t, h, c, network, sink)
			if err := c.Remove(); err != nil {
				t.Error(err)
			}
		})
	}
}

func testPlainTraffic(t *testing.T, h *Host, c *Plain, network PlainNetwork, sink *testnet.Sink) {
	before := nettest.Must(sink.Received(0))(t).Count
	agent := nettest.Must(c.Agent())(t)
	capture := nettest.StartCapture(t, h.Namespace, h.Bridge)
	if err := agent.SendUDP(sink.Addr, 100, 58); err != nil {
		t.Fatal(err)
	}
	nettest.Must(sink.Received(before + 100))(t)
	if network == PlainHost {
		return // over its lo
	}
	if diff := cmp.Diff(nettest.Volume{Packets: 100, Bytes: 10_000}, capture.Count("udp")); diff != "" {
		t.Errorf("captured (-want +got):\n%s", diff)
	}
	if got := nettest.Must(c.NetDev())(t)["eth0"].TransmitPackets; got < 100 {
		t.Errorf("the kernel counts %d packets, want 100 and some ARP", got)
	}
	veth := nettest.Must(c.HostVeth())(t)
	bridge := nettest.Must(h.Namespace.LinkByName(h.Bridge))(t).Attrs().Index
	if veth.Attrs().MasterIndex != bridge || !c.IPv4.IsValid() {
		t.Errorf("eth0 has address %s, and its peer is %s", c.IPv4, veth.Attrs().Name)
	}
}

// plainCgroups returns the cgroups of a node's containers without a pod.
func plainCgroups(t *testing.T, top string) (found []string) {
	t.Helper()
	for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
		found = append(found, nettest.Must(filepath.Glob(filepath.Join(root, "default", filepath.Base(top)+"-*")))(t)...)
	}
	return found
}
