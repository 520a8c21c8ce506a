// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"strings"
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

// Programs of others that let packets past ours are noticed. nettally goes before them
// where it may, and says that packets are missing where it may not: never a silent zero.
// The others stay, and see what they saw.
func TestShadowed(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "tc")
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startDaemon(t, docker, byEvents(docker)+"\nattach: {mode: auto}")
	mode := "auto"
	for _, test := range []struct {
		mode  string
		who   string
		adds  func(*shadowing) func()
		hook  string // it is counted on afterwards
		mends bool
	}{
		{"auto", "tcx program", (*shadowing).programs, "tcx", true},
		{"auto", "tc filter", (*shadowing).filters, "tcx", true},
		{"clsact", "tcx program", (*shadowing).programs, "clsact", false},
		{"clsact", "tc filter", (*shadowing).filters, "clsact", false},
		{"tcx", "tcx program", (*shadowing).programs, "tcx", true},
	} {
		t.Run(test.mode+" against a "+test.who, func(t *testing.T) {
			if test.mode != mode {
				d.configure("mode: "+mode, "mode: "+test.mode)
				mode = test.mode
			}
			s := &shadowing{watched: startWatched(t, docker, d), before: test.mode}
			if test.mode == "auto" {
				s.before = "clsact"
			}
			s.await("on its hook", func() error { return s.on(s.before, "") })
			s.burst(100)
			if test.mends {
				s.testMends(test.adds, test.hook)
			} else {
				s.testSays(test.adds)
			}
		})
	}
}

// byEvents is onlyDocker, and leaves everything to events and to the self-check.
func byEvents(docker *dockerhost.Docker) string {
	return strings.Replace(onlyDocker(docker), "watch: {", "watch: {reconcile: 1h, ", 1)
}

// shadowing is a container from whose counting packets are kept.
type shadowing struct {
	*watched
	before string // the hook that it was on
	others []*foreign
}

// programs puts others' programs at the head of both tcx hooks, which let nobody else see
// a packet.
func (s *shadowing) programs() (remove func()) {
	var links []io.Closer
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		f := newForeign(s.t, okay)
		links = append(links, f.tcx(s.docker.Namespace, s.veth(), hook))
		s.others = append(s.others, f)
	}
	return func() {
		for _, l := range links {
			l.Close()
		}
	}
}

// filters puts others' filters before ours, which end the chain.
func (s *shadowing) filters() (remove func()) {
	var filters []netlink.Filter
	for _, hook := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		f := newForeign(s.t, okay)
		filter := f.filter(s.veth(), hook, 1, 1)
		f.replace(s.docker.Namespace, filter)
		filters = append(filters, filter)
		s.others = append(s.others, f)
	}
	return func() {
		for _, filter := range filters {
			if err := s.docker.Namespace.FilterDel(filter); err != nil {
				s.t.Error(err)
			}
		}
	}
}

// on says whether the container is counted on a hook, and why not if it is not.
func (s *shadowing) on(hook, reason string) error {
	c, err := s.container(s.id)
	if err == nil && (c.Accounted != (reason == "") || c.Reason != reason || c.Interfaces[0].Hook != hook || c.Interfaces[0].Reason != reason) {
		err = fmt.Errorf("accounted %v (%s), on %s (%s)", c.Accounted, c.Reason, c.Interfaces[0].Hook, c.Interfaces[0].Reason)
	}
	return err
}

// testMends: nettally goes before the others, again and again.
func (s *shadowing) testMends(add func(*shadowing) func(), hook string) {
	s.t.Helper()
	before, began := s.metric("nettally_reattach_total"), time.Now()
	add(s)
	s.talk.send(150)
	s.mended(before, began, hook)
	s.atHead()
	s.likeKernel()
	s.burst(200)
	s.untouched()

	// The next one puts itself to the head, where we are now.
	s.talk.start()
	before, began = s.metric("nettally_reattach_total"), time.Now()
	s.programs()
	s.mended(before, began, hook)
	s.atHead()
	s.talk.stop()
	s.bounded()
	s.burst(200)
	s.untouched()
}

// atHead waits until our programs are the first on both tcx hooks. To put two programs of
// others before them takes two steps, and the self-check may mend what the first one did
// before the second one is done.
func (s *shadowing) atHead() {
	s.t.Helper()
	veth := s.veth()
	s.await("at the head", func() error {
		return s.docker.Namespace.Do(func() error {
			for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				found, err := link.QueryPrograms(link.QueryOptions{Target: veth.Attrs().Index, Attach: hook})
				if err != nil {
					return err
				}
				if name, err := firstName(found.Programs); err != nil || !strings.HasPrefix(name, "nettally") {
					return fmt.Errorf("the first on %v is %q, %v", hook, name, err)
				}
			}
			return nil
		})
	})
}

// firstName returns the name of the first of some programs, which may have gone since they
// were listed.
func firstName(programs []link.AttachedProgram) (string, error) {
	if len(programs) == 0 {
		return "", errors.New("there is none")
	}
	first, err := ebpf.NewProgramFromID(programs[0].ID)
	if err != nil {
		return "", err
	}
	defer first.Close()
	info, err := first.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// testSays: nettally may not go before the others, and says so until they are gone.
func (s *shadowing) testSays(add func(*shadowing) func()) {
	s.t.Helper()
	remove, began := add(s), time.Now()
	s.talk.start()
	s.await("said to be shadowed", func() error { return s.on("clsact", "shadowed") })
	s.t.Logf("said %v after the first packet", time.Since(began).Round(time.Millisecond))
	s.talk.stop()
	s.untouched()
	s.shadowed(1)
	key := labels("nettally_container_accounted", "container_id", s.id, "name", nettest.Must(s.container(s.id))(s.t).Name, "reason", "shadowed").String()
	if got := s.metric(key); got != 0 {
		s.t.Errorf("%s is %v, want 0", key, got)
	}
	if out := nettest.Must(s.run("list"))(s.t); !strings.Contains(out, "shadowed") {
		s.t.Errorf("list says:\n%s", out)
	}
	s.talk.send(100)
	if err := s.on("clsact", "shadowed"); err != nil {
		s.t.Error(err)
	}

	remove()
	s.talk.start()
	s.await("said to be counted again", func() error { return s.on("clsact", "") })
	s.talk.stop()
	s.bounded()
	s.burst(200)
	s.shadowed(0)
}

// shadowed expects so many interfaces to be said to be shadowed.
func (s *shadowing) shadowed(count float64) {
	s.t.Helper()
	s.await(fmt.Sprintf("nettally_attachment_shadowed %v", count), func() error {
		if got := s.metric("nettally_attachment_shadowed"); got != count {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// untouched expects those who came last, whom nobody but us is before, to see all packets.
func (s *shadowing) untouched() {
	s.t.Helper()
	last := s.others[len(s.others)-2:]
	before := []uint64{last[0].seen(), last[1].seen()}
	s.talk.send(70)
	for i, f := range last {
		if seen := f.seen() - before[i]; seen < 70 {
			s.t.Errorf("another's program saw %d packets of 70", seen)
		}
	}
}

// An `ingress` qdisc of somebody else excludes clsact. nettally counts by tcx beside it,
// and leaves it alone.
func TestIngressQdisc(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "tc")
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	docker := dockerhost.Start(t, dockerhost.Options{})
	early := docker.Run(dockerhost.Image)
	veth := docker.HostVeth(early, "eth0")
	nettest.Must(docker.Namespace.Run("tc", "qdisc", "add", "dev", veth, "ingress"))(t)
	nettest.Must(docker.Namespace.Run("tc", "filter", "add", "dev", veth, "ingress", "pref", "5",
		"protocol", "ip", "u32", "match", "u32", "0", "0", "flowid", "1:1"))(t)
	other := docker.Run(dockerhost.Image)
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"host": docker.Namespace}, Cgroups: []string{docker.CgroupParent}}
	before := nettest.TakeSnapshot(t, scope)

	d := startDaemon(t, docker, byEvents(docker))
	d.counted(early, 1)
	d.counted(other, 1)
	w := &watched{daemon: d, t: t, docker: docker, id: early, talk: newTalk(t, docker, early, other)}
	s := &shadowing{watched: w}
	s.await("on tcx", func() error { return s.on("tcx", "") })
	w.burst(200)
	w.likeKernel()
	d.kill()
	w.talk.send(100)
	d.start()
	s.await("on tcx", func() error { return s.on("tcx", "") })
	w.burst(100)
	w.likeKernel()

	d.stop()
	nettest.Must(d.run("detach"))(t)
	if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
		t.Errorf("after detach (-before +after):\n%s", diff)
	}
}
