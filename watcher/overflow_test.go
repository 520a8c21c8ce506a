// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// known is what a caller knows who keeps to the events.
type known struct {
	containers map[string]bool
	veths      map[int]bool
}

func newKnown() known { return known{map[string]bool{}, map[int]bool{}} }

func (k known) take(e Event) {
	switch e := e.(type) {
	case ContainerStarted:
		k.containers[e.ID] = true
	case ContainerStopped:
		delete(k.containers, e.ID)
	case HostVethSeen:
		k.veths[e.Index] = true
	case HostVethGone:
		delete(k.veths, e.Index)
	}
}

// takeUntilOverflow takes in events up to the next overflow, which must be of a source.
func (k known) takeUntilOverflow(t *testing.T, r *running, source string) {
	t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case e := <-r.events:
			if e, ok := e.(Overflowed); ok {
				if e.Source != source {
					t.Errorf("overflow of %s, want %s", e.Source, source)
				}
				return
			}
			k.take(e)
		case <-timeout:
			t.Fatal("no overflow")
		}
	}
}

// compare holds what is known against what the watcher lists.
func (k known) compare(r *running) error {
	listed := newKnown()
	containers, err := r.Containers()
	for _, c := range containers {
		listed.containers[c.ID] = true
	}
	veths, vethsErr := r.HostVeths()
	for _, v := range veths {
		listed.veths[v.Index] = true
	}
	if err := errors.Join(err, vethsErr); err != nil {
		return err
	}
	if diff := cmp.Diff(listed, k, cmp.AllowUnexported(known{})); diff != "" {
		return fmt.Errorf("events say otherwise than lists (-lists +events):\n%s", diff)
	}
	return nil
}

// TestInotifyOverflow stops reading until the kernel's queue is full. What happens then
// is found all the same, and said to be incomplete.
func TestInotifyOverflow(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/docker/"+idA)
		r, k := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()}), newKnown()
		k.take(next[ContainerStarted](t, r))
		r.settle(t)
		makeDirs(t, root+"/docker/"+hexID(0)) // nobody takes this event
		fillInotify(t, root)
		makeDirs(t, root+"/x/y/"+idB)
		removeDirs(t, root+"/docker/"+idA)
		for i := range 100 {
			dir := root + "/docker/" + hexID(100+i)
			makeDirs(t, dir)
			if i%2 == 0 {
				removeDirs(t, dir)
			}
		}

		k.takeUntilOverflow(t, r, "inotify")
		check(t, k.compare(r))
		if !k.containers[hexID(0)] || !k.containers[idB] || len(k.containers) != 52 {
			t.Errorf("%d containers after the overflow, want 52 with the first and the last", len(k.containers))
		}
		makeDirs(t, root+"/x/y/"+hexID(3))
		if c := next[ContainerStarted](t, r); c.ID != hexID(3) {
			t.Errorf("started %+v", c)
		}
		removeDirs(t, root+"/docker/"+hexID(0))
		if c := next[ContainerStopped](t, r); c.ID != hexID(0) {
			t.Errorf("stopped %+v", c)
		}
	})
}

// fillInotify makes and removes directories until the kernel's queue takes no more, which
// is then full: fs.inotify.max_queued_events, 16,384 unless someone set it.
func fillInotify(t *testing.T, root string) {
	t.Helper()
	const step, atMost = 100, 1 << 20
	for i, before := 0, -1; i < atMost; i++ {
		if i%step == 0 {
			queued := inotifyQueued(t)
			if queued == before && queued > 0 {
				t.Logf("queue is full after %d directories, with %d bytes", i, queued)
				return
			}
			before = queued
		}
		dir := fmt.Sprintf("%s/u%d.mount", root, i%7)
		makeDirs(t, dir)
		removeDirs(t, dir)
	}
	t.Fatal("the inotify queue does not run over")
}

// inotifyQueued returns the bytes that wait in the inotify queues of this process.
func inotifyQueued(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	bytes := 0
	for _, e := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); target != "anon_inode:inotify" {
			continue // or the listing's own, which is gone
		}
		fd, err := strconv.Atoi(e.Name())
		check(t, err)
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD
		check(t, err)
		bytes += n
	}
	return bytes
}

// TestNetlinkOverflow does not read until the receive buffer is full, while links come
// and go.
func TestNetlinkOverflow(t *testing.T) {
	host, r := watchHost(t)
	container, k := newNamespace(t), newKnown()
	first := veth(t, host, "first", container, "eth0")
	k.take(next[HostVethSeen](t, r))
	veth(t, host, "blocking", container, "eth1") // nobody takes this event
	fillNetlink(t, host)
	for i := range 20 {
		l := veth(t, host, fmt.Sprintf("flaps%d", i), container, "x")
		if i%2 == 0 {
			check(t, host.LinkSetDown(l))
			check(t, host.LinkSetUp(l))
			check(t, host.LinkDel(l))
			continue
		}
		check(t, container.LinkSetName(linkIn(t, container, "x"), fmt.Sprintf("stays%d", i)))
	}
	last := veth(t, host, "last", container, "eth2")
	check(t, host.LinkDel(first))

	k.takeUntilOverflow(t, r, "netlink")
	check(t, k.compare(r))
	if k.veths[first.Attrs().Index] || !k.veths[last.Attrs().Index] || len(k.veths) != 12 {
		t.Errorf("%d veths after the overflow, want 12 with the last and without the first", len(k.veths))
	}
	after := veth(t, host, "after", container, "eth3")
	if e := next[HostVethSeen](t, r); e.Index != after.Attrs().Index {
		t.Errorf("seen %+v", e)
	}
	check(t, host.LinkDel(last))
	if e := next[HostVethGone](t, r); e.Index != last.Attrs().Index {
		t.Errorf("gone %+v", e)
	}
}

// fillNetlink makes link messages until the kernel drops some.
func fillNetlink(t *testing.T, host *testnet.Namespace) {
	t.Helper()
	lo := linkIn(t, host, "lo")
	const step, atMost = 500, 1 << 20
	for i := range atMost {
		if i%step == 0 {
			if lost, _ := lostMessages(host); lost > 0 {
				t.Logf("%d of %d messages were dropped", lost, i)
				return
			}
		}
		check(t, host.LinkSetAlias(lo, fmt.Sprint(i)))
	}
	t.Fatal("the receive buffer does not run over")
}

// TestManyNetlinkOverflows has room for a few messages and a reader that is slow at
// times, so that overflows and lists fall into the midst of changes.
func TestManyNetlinkOverflows(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	w := newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"]), NetNS: host.FD()})
	w.receiveBuffer = 4 << 10
	r, k := start(t, w), newKnown()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flapping := make(chan error, 1)
	go func() { flapping <- flapMany(ctx, host, container) }()
	overflows := 0
	for timeout := time.After(3 * patience); flapping != nil; {
		select {
		case e := <-r.events:
			k.take(e)
			if _, ok := e.(Overflowed); ok {
				overflows++
			}
			if rand.IntN(5) == 0 {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			}
		case err := <-flapping:
			check(t, err)
			flapping = nil
		case <-timeout:
			t.Fatal("no end")
		}
	}
	t.Logf("%d overflows", overflows)
	if overflows < 3 {
		t.Errorf("%d overflows are too few to test anything", overflows)
	}
	eventually(t, func() error {
		for quiet := false; !quiet; {
			select {
			case e := <-r.events:
				k.take(e)
			case <-time.After(10 * time.Millisecond):
				quiet = true
			}
		}
		return k.compare(r)
	})
}

// TestPartialList takes in a list in which one veth is missing that exists, and one that
// does not.
func TestPartialList(t *testing.T) {
	need.Root(t)
	host, container := newNamespace(t), newNamespace(t)
	stays, goes := veth(t, host, "stays", container, "eth0"), veth(t, host, "goes", container, "eth1")
	l := links{known: map[int]HostVeth{}, netns: host.FD()}
	seen, err := l.list(false)
	if err != nil || len(seen) != 2 {
		t.Fatalf("list: %v, error %v", seen, err)
	}
	check(t, host.LinkDel(goes))
	now := time.Now()
	want := []Event{HostVethGone{Index: goes.Attrs().Index, SeenAt: now}}
	if diff := cmp.Diff(want, l.compare(nil, false, now)); diff != "" {
		t.Errorf("a list that is not whole (-want +got):\n%s", diff)
	}
	want = []Event{HostVethGone{Index: stays.Attrs().Index, SeenAt: now}}
	if diff := cmp.Diff(want, l.compare(nil, true, now)); diff != "" {
		t.Errorf("a list that is whole (-want +got):\n%s", diff)
	}
}

// flapMany adds veths and removes most of them again, in batches, for some time.
func flapMany(ctx context.Context, host, container *testnet.Namespace) error {
	const rounds, batch = 12, 8
	for round := 0; round < rounds && ctx.Err() == nil; round++ {
		for i := range batch {
			name := fmt.Sprintf("v%dx%d", round, i)
			if err := testnet.Veth(host, name, container, name); err != nil {
				return err
			}
		}
		for i := range batch - 1 {
			l, err := host.LinkByName(fmt.Sprintf("v%dx%d", round, i))
			if err == nil {
				err = host.LinkDel(l)
			}
			if err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}
