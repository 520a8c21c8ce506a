// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// openTap makes a tap device in a namespace and returns its other end.
func openTap(t *testing.T, ns *testnet.Namespace, name string) (tap *os.File) {
	t.Helper()
	check(t, ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		tap = os.NewFile(uintptr(fd), name)
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}))
	t.Cleanup(func() { _ = tap.Close() }) // fails if it was closed before
	return tap
}

// TestHolds asks whether this process holds a tap device: by the namespace of the device where the
// process's files may be borrowed, and by the name where that is forbidden.
func TestHolds(t *testing.T) {
	need.Root(t)
	ns := newNamespace(t)
	openTap(t, ns, "lan0")
	w := newWatcher(t, Options{CgroupRoot: newCgroup(t, hierarchies(t)["v2"])})
	here, elsewhere := func(int) bool { return true }, func(int) bool { return false }
	refuse := func(err error) func(int, string, func(int) bool) (int, error) {
		return func(int, string, func(int) bool) (int, error) { return -1, err }
	}
	for name, test := range map[string]struct {
		device string
		in     func(int) bool
		borrow func(int, string, func(int) bool) (int, error)
		want   bool
	}{
		"its own":                       {"lan0", here, queueOf, true},
		"of the name elsewhere":         {"lan0", elsewhere, queueOf, false},
		"of another name":               {"lan1", here, queueOf, false},
		"forbidden":                     {"lan0", elsewhere, refuse(unix.EPERM), true},
		"unknown to the kernel":         {"lan0", elsewhere, refuse(unix.ENOSYS), true},
		"forbidden, of another name":    {"lan1", here, refuse(unix.EPERM), false},
		"the process has just ended":    {"lan0", here, refuse(unix.ESRCH), false},
		"the file has just been closed": {"lan0", here, refuse(unix.EBADF), false},
	} {
		t.Run(name, func(t *testing.T) {
			w.borrow = test.borrow
			o := &own{w: w, listed: true, pids: []int{os.Getpid()}}
			if got := o.holds(link{name: test.device, queues: 1}, test.in); got != test.want {
				t.Errorf("held: %v, want %v", got, test.want)
			}
		})
	}
}

// TestPassedWhileDown has a tap device come up while the namespace is looked at, again and again:
// where it was found down, nothing had passed yet. What passes after that is to be made up for.
func TestPassedWhileDown(t *testing.T) {
	need.Root(t)
	i := newInspected(t, newCgroup(t, hierarchies(t)["v2"]))
	startIn(t, i.inner, i.dir())
	frame := bytes.Repeat([]byte{0xff}, 100)
	for round := range 300 {
		name := fmt.Sprint("lan", round)
		tap := openTap(t, i.inner, name)
		device, err := i.inner.LinkByName(name)
		check(t, err)
		var coming sync.WaitGroup
		coming.Go(func() {
			check(t, i.inner.LinkSetUp(device))
			for range 5 {
				_, err := tap.Write(frame)
				check(t, err)
			}
		})
		for up := false; !up; {
			s, err := i.Inspect(i.container)
			check(t, err)
			for _, found := range s.Interfaces {
				if found.Name != name {
					continue
				}
				if up = found.Up; !up && found.Passed != nil && *found.Passed != (LinkCounters{}) {
					t.Errorf("down, and %+v passed", *found.Passed)
				}
			}
		}
		coming.Wait()
		check(t, tap.Close())
	}
}
