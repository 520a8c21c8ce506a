// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/watcher"
)

// slowHost takes its time to read counters.
type slowHost struct {
	host
	all, ends chan struct{} // hold a token once a read of that kind has begun
	reading   atomic.Int32
}

func (s *slowHost) AllCounters() (map[int]watcher.LinkReading, error) {
	defer s.linger(s.all)()
	return s.host.AllCounters()
}

func (s *slowHost) CountersIn(nsid, ifindex int) (watcher.LinkReading, error) {
	defer s.linger(s.ends)()
	return s.host.CountersIn(nsid, ifindex)
}

func (s *slowHost) linger(begun chan struct{}) (end func()) {
	s.reading.Add(1)
	select {
	case begun <- struct{}{}:
	default:
	}
	time.Sleep(100 * time.Millisecond)
	return func() { s.reading.Add(-1) }
}

// The host's watcher is closed after Run: nobody may be reading counters by it then.
func TestStopWhileCountersAreRead(t *testing.T) {
	need.Root(t)
	for name, kind := range map[string]func(*slowHost) chan struct{}{
		"of all interfaces": func(s *slowHost) chan struct{} { return s.all },
		"of the other ends": func(s *slowHost) chan struct{} { return s.ends },
	} {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			c := nettest.Container(t, host, testnet.ContainerOptions{})
			slow := &slowHost{all: make(chan struct{}, 1), ends: make(chan struct{}, 1)}
			r := start(t, host, "", func(c *Controller) { slow.host, c.Host = c.Host, slow })
			r.waitCounted(c.ID, 1)
			for begun := false; !begun; {
				select {
				case <-kind(slow):
					begun = true
				case <-time.After(10 * time.Millisecond):
					r.reload() // which looks at the other ends
				}
			}
			r.stop()
			if n := slow.reading.Load(); n != 0 {
				t.Errorf("%d reads go on after Run", n)
			}
		})
	}
}
