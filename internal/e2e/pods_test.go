// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// onlyPods is configuration that knows the pods of a test's node, and no other test's.
func onlyPods(node *crihost.Host) string {
	return fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch:\n  include: [%q]", node.CgroupParent+"/*")
}

// What a pod sends in one go: datagrams of IPv4 in Ethernet frames.
const (
	burst        = 1000
	burstPayload = 100
	burstBytes   = burst * (14 + 20 + 8 + burstPayload)
)

// ended is what the kernel's counters said of a pod that was removed.
type ended struct {
	pod  *crihost.Pod
	eth0 testnet.Counters
}

// podRun is pods that come and go on a node.
type podRun struct {
	t    *testing.T
	node *crihost.Host
	d    *daemon
	sink netip.AddrPort

	mu    sync.Mutex
	ended []ended
}

// Pods whose container's first act is to send 1,000 datagrams, and that are removed when
// it ends, one after another and five at a time: each one's traffic is reported exactly,
// once, also after a crash of nettally. So is that of pods that send, end and go while no
// nettally runs.
func TestShortLivedPods(t *testing.T) {
	t.Parallel()
	need.Root(t)
	node := crihost.Start(t, crihost.Options{})
	r := &podRun{t: t, node: node, d: startDaemon(t, node, onlyPods(node))}
	r.sink = nettest.Must(nettest.Agent(t, node.Namespace).Listen("udp", node.Address))(t).Addr
	r.atOnce(1, 10)
	r.atOnce(5, 20)
	r.check("before a crash", false)

	var early []*crihost.Pod
	for n := range 3 {
		pod := nettest.Must(node.RunPod(fmt.Sprintf("early-%d", n), crihost.PodOptions{}))(t)
		r.d.counted(pod.ID, 1)
		early = append(early, pod)
	}
	r.d.kill()
	for _, pod := range early {
		if err := pod.Start(r.sender()); err != nil {
			t.Fatal(err)
		}
		if err := r.end(pod); err != nil {
			t.Fatal(err)
		}
	}
	r.d.start()
	// What counted nothing itself is not known before the ledger is written.
	r.check("after a crash", true)
	r.d.stop()
	r.d.start()
	r.check("after a restart", true)
}

func (r *podRun) sender() crihost.Container {
	return crihost.Container{Name: "sender", Command: crihost.SendUDP(r.sink, burst, burstPayload)}
}

// atOnce runs pods and waits for the end of all.
func (r *podRun) atOnce(limit, pods int) {
	r.t.Helper()
	var group errgroup.Group
	group.SetLimit(limit)
	for n := range pods {
		group.Go(func() error {
			pod, err := r.node.RunPod(fmt.Sprintf("short-%d-%d", limit, n), crihost.PodOptions{}, r.sender())
			if err != nil {
				return err
			}
			return r.end(pod)
		})
	}
	if err := group.Wait(); err != nil {
		r.t.Fatal(err)
	}
}

// end waits for a pod's sender and removes the pod.
func (r *podRun) end(pod *crihost.Pod) error {
	if err := pod.Wait("sender"); err != nil {
		return errors.Join(err, pod.Remove())
	}
	all, err := pod.NetDev()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, ended{pod, all["eth0"]})
	return pod.Remove()
}

// check expects the pods that were removed to be stopped, and each to have counted what
// it sent: on one of its containers, whose namespace the other shares. That one may be
// forgotten.
func (r *podRun) check(when string, forgotten bool) {
	r.t.Helper()
	r.d.poll("stopped "+when, func() error {
		for _, e := range r.ended {
			if c, err := r.d.container(e.pod.ID); err != nil || c.State != "stopped" {
				return fmt.Errorf("sandbox of %s: %s, %v", e.pod.Name, c.State, err)
			}
		}
		return nil
	})
	listed := r.d.list()
	for _, i := range listed.Unowned {
		r.t.Errorf("%s: interface %s is nobody's: %+v", when, i.HostInterface, i.Transmit.Volume)
	}
	var sum uint64
	byID := map[string]exporter.Container{}
	for _, c := range listed.Containers {
		byID[c.ID] = c
		sum += c.Transmit.Protocols.UDP.Packets
	}
	if want := uint64(len(r.ended) * burst); sum != want {
		r.t.Errorf("%s: %d datagrams over all containers, want %d", when, sum, want)
	}
	shared := 0
	for _, e := range r.ended {
		r.checkPod(when, e, byID[e.pod.ID])
		switch c, known := byID[e.pod.Containers["sender"]]; {
		case c.IP != nil && c.IP.Transmit.Protocols.UDP.Packets <= burst && len(c.Interfaces) == 0: // it is told apart
			shared++
		case c.Reason == "ended": // it did, before anybody could look at it
		case known || !forgotten:
			r.t.Errorf("%s: the sender of %s: listed %v, accounted %v, %s", when, e.pod.Name, known, c.Accounted, c.Reason)
		}
	}
	if shared == 0 && !forgotten {
		r.t.Errorf("%s: no sender shares the network of its sandbox", when)
	}
}

// checkPod compares a sandbox with what was sent, and with what the kernel said a moment
// before the pod was removed: the gateway may have been answered since.
func (r *podRun) checkPod(when string, e ended, c exporter.Container) {
	r.t.Helper()
	want := exporter.Volume{Packets: burst, Bytes: burstBytes}
	if diff := cmp.Diff(want, c.Transmit.Protocols.UDP); diff != "" || !c.Accounted {
		r.t.Errorf("%s: %s (accounted %v %s): UDP (-want +got):\n%s", when, e.pod.Name, c.Accounted, c.Reason, diff)
	}
	got, kernel := c.Transmit.InterfacePackets, e.eth0.TransmitPackets
	if got < kernel || got > kernel+5 {
		r.t.Errorf("%s: %s transmitted %d packets, the kernel says %d", when, e.pod.Name, got, kernel)
	}
}
