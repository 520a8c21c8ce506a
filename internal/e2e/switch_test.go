// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/tcctl"
)

// Interfaces move between clsact and tcx and back while they are under load, and nettally
// is killed in the midst of it again and again: no packet is lost or counted twice, and
// what an interface is not counted by any more is gone.
func TestSwitchUnderLoad(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	docker := dockerhost.Start(t, dockerhost.Options{})
	ids := []string{docker.Run(dockerhost.Image), docker.Run(dockerhost.Image)}
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"host": docker.Namespace}, Cgroups: []string{docker.CgroupParent}}
	before := nettest.TakeSnapshot(t, scope)
	d := startDaemon(t, docker, byEvents(docker)+"\nattach: {mode: clsact}")
	for _, id := range ids {
		d.counted(id, 1)
	}

	s := &switching{daemon: d, t: t, docker: docker, ids: ids, mode: "clsact"}
	l := startLoad(t, docker, ids[0], ids[1])
	const switches = 14
	for n := range switches {
		s.turn()
		if n%4 < 2 { // on the way there, on the way back
			s.killSoon()
		}
		s.settle()
	}
	l.stop()

	for _, id := range ids {
		s.exact(id)
	}
	s.onlyOn(s.mode)
	s.turn()
	s.settle()
	s.onlyOn(s.mode)
	for key, want := range map[string]float64{
		"nettally_completeness_ratio": 1, "nettally_attachment_shadowed": 0, "nettally_reattach_total": 0,
		`nettally_uncounted_packets_total{cause="no_row"}`: 0, `nettally_uncounted_packets_total{cause="no_slot"}`: 0,
	} {
		if got := d.metric(key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	d.stop()
	nettest.Must(d.run("detach"))(t)
	if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
		t.Errorf("after detach (-before +after):\n%s", diff)
	}
}

// switching is a daemon whose way of counting is changed again and again.
type switching struct {
	*daemon
	t      *testing.T
	docker *dockerhost.Docker
	ids    []string
	mode   string
}

// turn writes the other mode into the configuration, and waits until it is taken in.
func (s *switching) turn() {
	s.t.Helper()
	other := map[string]string{"clsact": "tcx", "tcx": "clsact"}[s.mode]
	const says = "configuration taken in"
	before := strings.Count(s.log.String(), says)
	s.configure("mode: "+s.mode, "mode: "+other)
	s.mode = other
	s.poll("taken in", func() error {
		if strings.Count(s.log.String(), says) == before {
			return errors.New("the log does not say so")
		}
		return nil
	})
}

// killSoon ends the daemon within the time that moving both interfaces takes, and starts it
// again.
func (s *switching) killSoon() {
	s.t.Helper()
	time.Sleep(rand.N(200 * time.Millisecond))
	on := map[string]int{}
	for _, c := range s.list().Containers {
		on[c.Interfaces[0].Hook]++
	}
	s.kill()
	s.t.Logf("killed on the way to %s: %v", s.mode, on)
	s.start()
}

// settle waits until both containers are counted in the new way.
func (s *switching) settle() {
	s.t.Helper()
	for _, id := range s.ids {
		s.poll("moved to "+s.mode, func() error {
			c, err := s.container(id)
			if err == nil && (!c.Accounted || len(c.Interfaces) != 1 || c.Interfaces[0].Hook != s.mode) {
				err = fmt.Errorf("accounted %v, %s, %+v", c.Accounted, c.Reason, c.Interfaces)
			}
			return err
		})
	}
}

// exact expects a container's interface numbers to be the kernel's. What reaches the
// container's end of the veth too fast for its processor is dropped there, behind our
// hook: the kernel counts those packets, and not their bytes.
func (s *switching) exact(id string) {
	s.t.Helper()
	w := &watched{daemon: s.daemon, t: s.t, docker: s.docker, id: id}
	w.await("like the kernel's counters", func() error {
		kernel, lack := w.difference()
		dropped := int64(w.veth().Attrs().Statistics.TxDropped)
		if dropped > 0 && -lack[1] == dropped && -lack[0] > 0 {
			lack[0], lack[1] = 0, 0
		}
		if lack != [4]int64{} {
			return fmt.Errorf("of the kernel's %+v, we lack %v; it dropped %d packets", kernel, lack, dropped)
		}
		s.t.Logf("like the kernel's %+v, and %d packets that it dropped", kernel, dropped)
		return nil
	})
}

// onlyOn expects nothing of ours where the containers are not counted: nobody else puts
// anything on their interfaces.
func (s *switching) onlyOn(mode string) {
	s.t.Helper()
	s.poll("only on "+mode, func() error {
		for _, id := range s.ids {
			veth, err := s.docker.Namespace.LinkByName(s.docker.HostVeth(id, "eth0"))
			if err != nil {
				return err
			}
			clsact, err := filters(s.docker.Namespace, veth)
			if err != nil {
				return err
			}
			tcx, err := links(s.docker.Namespace, veth)
			if err != nil {
				return err
			}
			want := map[string][2]int{"clsact": {2, 0}, "tcx": {0, 2}}[mode]
			if got := [2]int{clsact, tcx}; got != want {
				return fmt.Errorf("%d filters on clsact and %d links on tcx, want %d", clsact, tcx, want)
			}
		}
		// A bpffs that nettally has mounted is in its mount namespace.
		pins, err := os.ReadDir(filepath.Join(fmt.Sprintf("/proc/%d/root", s.cmd.Process.Pid), s.pins, "links"))
		if errors.Is(err, fs.ErrNotExist) {
			pins, err = nil, nil
		}
		if want := map[string]int{"clsact": 0, "tcx": 2 * len(s.ids)}[mode]; err == nil && len(pins) != want {
			err = fmt.Errorf("%d pins of links, want %d", len(pins), want)
		}
		return err
	})
}

// filters counts the filters on both clsact hooks of an interface; a qdisc without any is
// an error.
func filters(host *testnet.Namespace, veth netlink.Link) (count int, err error) {
	qdiscs, err := host.QdiscList(veth)
	if err != nil {
		return 0, err
	}
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		for _, hook := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			found, err := host.FilterList(veth, hook)
			if err != nil {
				return 0, err
			}
			count += len(found)
		}
		if count == 0 {
			return 0, errors.New("an empty clsact qdisc")
		}
	}
	return count, nil
}

// links counts the programs on both tcx hooks of an interface.
func links(host *testnet.Namespace, veth netlink.Link) (count int, err error) {
	err = host.Do(func() error {
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: veth.Attrs().Index, Attach: hook})
			if err != nil {
				return err
			}
			count += len(found.Programs)
		}
		return nil
	})
	return count, err
}

// load is two containers that send each other all they can, by UDP and by TCP.
type load struct {
	t      *testing.T
	quit   chan struct{}
	group  sync.WaitGroup
	failed chan error
}

func startLoad(t *testing.T, docker *dockerhost.Docker, a, b string) *load {
	t.Helper()
	l := &load{t: t, quit: make(chan struct{}), failed: make(chan error, 8)}
	for _, way := range [][2]string{{a, b}, {b, a}} {
		to := docker.Agent(way[1])
		address := docker.IPv4(way[1], "eth0")
		datagrams := nettest.Must(to.Listen("udp", address))(t).Addr
		stream := nettest.Must(to.Listen("tcp", address))(t).Addr
		sender := docker.Agent(way[0])
		l.repeat(func() error {
			time.Sleep(time.Millisecond) // or much of it is dropped on the way
			return sender.SendUDP(datagrams, 200, 400)
		})
		l.repeat(l.upload(docker.Agent(way[0]), stream))
	}
	return l
}

func (l *load) upload(from *testnet.Agent, to netip.AddrPort) func() error {
	return func() error { return from.SendTCP(to, 8<<20, testnet.Write) }
}

// repeat does something over and over, until stop.
func (l *load) repeat(work func() error) {
	l.group.Go(func() {
		for {
			select {
			case <-l.quit:
				return
			default:
			}
			if err := work(); err != nil {
				l.failed <- err
				return
			}
		}
	})
}

// stop returns when the last one has been sent.
func (l *load) stop() {
	l.t.Helper()
	close(l.quit)
	l.group.Wait()
	close(l.failed)
	for err := range l.failed {
		l.t.Error(err)
	}
}
