// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// A link of ours that is about to be pinned is never taken for another's.
func TestTCXConcurrentUse(t *testing.T) {
	pins := newPins(t)
	ns := newNamespace(t)
	c := openPins(t, ns, pins)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	ifindexes := addLinks(t, ns, 2)
	var users sync.WaitGroup
	for worker := range 8 {
		users.Go(func() {
			ifindex := ifindexes[worker%len(ifindexes)]
			for range 3 {
				attachErr := c.AttachTCX(ifindex, ingress, egress)
				others, othersErr := c.OthersOnTCX(ifindex)
				_, _, lookErr := c.TCX(ifindex)
				_, listErr := c.TCXInterfaces()
				err := errors.Join(attachErr, othersErr, lookErr, listErr, c.DetachTCX(ifindex))
				if err != nil || others {
					t.Errorf("others %v, %v", others, err)
				}
			}
		})
	}
	users.Wait()
	wantTCXInterfaces(t, c)
	wantPins(t, c)
	wantThreadsHome(t)
}

// wantThreadsHome waits for the threads of ended goroutines to end, and for none to be
// left in another namespace.
func wantThreadsHome(tb testing.TB) {
	tb.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		tb.Fatal(err)
	}
	eventually(tb, func() bool {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		return err == nil && !slices.ContainsFunc(threads, func(thread string) bool {
			ns, err := os.Readlink(thread)
			return err == nil && ns != home
		})
	})
}

// The kernel's lock makes clsact wait for tcx, but nothing of ours does: how long is
// logged.
func TestAttachWhileAttachTCX(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	ifindexes := addLinks(t, h.Namespace, 10)
	ifindexes = slices.DeleteFunc(ifindexes, func(i int) bool { return i == h.ifindex })
	logTimes(t, "alone", attachTimes(t, c, ifindexes, ingress, egress))

	stop := make(chan struct{})
	var linking sync.WaitGroup
	var linkTimes []time.Duration
	linking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			start := time.Now()
			if err := c.AttachTCX(h.ifindex, ingress, egress); err != nil {
				t.Error(err)
				return
			}
			linkTimes = append(linkTimes, time.Since(start))
			if err := c.DetachTCX(h.ifindex); err != nil {
				t.Error(err)
				return
			}
		}
	})
	logTimes(t, "while AttachTCX and DetachTCX run all the time", attachTimes(t, c, ifindexes, ingress, egress))
	close(stop)
	linking.Wait()
	logTimes(t, "AttachTCX", linkTimes)
	detachTCX(t, c, h.ifindex)
}

// attachTimes attaches to interfaces that have no clsact, and detaches again, a few
// times, and returns how long each Attach took.
func attachTimes(tb testing.TB, c *Controller, ifindexes []int, ingress, egress program) []time.Duration {
	tb.Helper()
	var times []time.Duration
	for range 5 {
		for _, ifindex := range ifindexes {
			start := time.Now()
			attach(tb, c, ifindex, 1, ingress, egress)
			times = append(times, time.Since(start))
		}
		detachAll(tb, c, ifindexes)
	}
	return times
}

func logTimes(tb testing.TB, what string, times []time.Duration) {
	tb.Helper()
	if len(times) == 0 {
		return
	}
	slices.Sort(times)
	tb.Logf("%s: %d times, median %v, p99 %v, most %v", what, len(times),
		times[len(times)/2], times[(len(times)-1)*99/100], times[len(times)-1])
}
