// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// lockIn takes the lock of a namespace.
func lockIn(n *testnet.Namespace) (lock io.Closer, err error) {
	err = n.Do(func() (err error) { lock, err = LockNetNS(); return err })
	return lock, err
}

func TestLockNetNS(t *testing.T) {
	need.Root(t)
	host, other := nettest.Host(t), nettest.Host(t)
	first, err := lockIn(host)
	must(t, err)

	says := fmt.Sprintf("in use by another nettally, pid %d (stop it", os.Getpid())
	if _, err := lockIn(host); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), says) {
		t.Errorf("locked twice: %v, want ErrInUse and %q", err, says)
	}
	if err := host.Do(NetNSInUse); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), says) {
		t.Errorf("in use: %v, want ErrInUse and %q", err, says)
	}
	must(t, other.Do(NetNSInUse))
	second, err := lockIn(other)
	must(t, err)
	must(t, second.Close())

	must(t, first.Close())
	must(t, host.Do(NetNSInUse))
	again, err := lockIn(host)
	must(t, err)
	must(t, again.Close())
}

// Of those that want the lock at once, the first has it.
func TestLockNetNSAtOnce(t *testing.T) {
	need.Root(t)
	must(t, nettest.Host(t).Do(func() error {
		var locks []*ebpf.Program
		for range 3 {
			lock, err := loadLock(lockName)
			if err != nil {
				return err
			}
			defer lock.Close()
			locks = append(locks, lock)
		}
		for n, lock := range locks {
			if err := isFirst(lock); n == 0 && err != nil || n > 0 && !errors.Is(err, ErrInUse) {
				t.Errorf("lock %d: %v", n, err)
			}
		}
		return nil
	}))
}

// Nobody locks nettally out without capabilities: where the kernel lets users load programs
// at all, those are of other types, and no locks whatever their names and instructions are.
func TestLockNetNSTakesPrivileges(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	must(t, host.Do(func() error {
		spec, err := lockSpec(lockName)
		if err != nil {
			return err
		}
		spec.Type = ebpf.SocketFilter
		users, err := ebpf.NewProgram(spec)
		if err != nil {
			return err
		}
		defer users.Close()
		if err := NetNSInUse(); err != nil {
			return err
		}
		lock, err := LockNetNS()
		if err != nil {
			return err
		}
		return lock.Close()
	}))
	must(t, host.Do(func() error {
		return withoutCapabilities(func() error {
			if _, err := LockNetNS(); !errors.Is(err, unix.EPERM) {
				t.Errorf("locked without capabilities: %v, want EPERM", err)
			}
			return nil
		})
	}))
}

// withoutCapabilities runs f on this thread without effective capabilities.
func withoutCapabilities(f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		return err
	}
	none := before
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	return errors.Join(f(), unix.Capset(&header, &before[0]))
}

// Filters belong to who runs with their counters. What an ended process left belongs to
// whoever finds it.
func TestCountsElsewhere(t *testing.T) {
	path := pinPath(t)
	first, second := load(t, Options{PinPath: path}), load(t, Options{})
	info, err := first.Ingress.Info()
	must(t, err)
	used, _ := info.MapIDs()
	check := func(what string, asks func([]ebpf.MapID) (bool, error), want bool) {
		t.Helper()
		if got, err := asks(used); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
	}
	check("its own", first.CountsElsewhere, false)
	owns := func(what string, d *Datapath, want bool) {
		t.Helper()
		if d.Owns(used) != want {
			t.Errorf("%s has the counters: %v, want %v", what, !want, want)
		}
	}
	owns("the first", first, true)
	owns("the second", second, false)
	check("another's", second.CountsElsewhere, true)
	check("another's, without counters", CountsElsewhere, true)
	filter, err := first.Ingress.Clone()
	must(t, err)
	defer filter.Close()
	must(t, first.Close())
	check("an ended one's", second.CountsElsewhere, false)
	next := load(t, Options{PinPath: path})
	check("the one before", next.CountsElsewhere, false)
	owns("the next", next, true)
	must(t, next.Close())
	must(t, Unpin(path))
}

func TestBefore(t *testing.T) {
	const last = ebpf.ProgramID(math.MaxInt32)
	for _, test := range []struct {
		a, b ebpf.ProgramID
		want bool
	}{{1, 2, true}, {2, 1, false}, {2, 2, false}, {last, 1, true}, {1, last, false}, {last - 5, 5, true}} {
		if got := before(test.a, test.b); got != test.want {
			t.Errorf("before(%d, %d) is %v", test.a, test.b, got)
		}
	}
}
