// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// The first thread of the process must not end up in another namespace: it
// never ends, and is what /proc/<pid> shows.
func TestDoSparesFirstThread(t *testing.T) {
	need.Root(t)
	home := nettest.Must(os.Readlink("/proc/self/ns/net"))(t)
	host := nettest.Host(t)
	// More at once than there are threads, so that each thread gets its turn.
	var all sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		all.Go(func() {
			err := host.Do(func() error {
				if unix.Gettid() == os.Getpid() {
					t.Error("on the first thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if now := nettest.Must(os.Readlink("/proc/self/ns/net"))(t); now != home {
		t.Errorf("process is in %s, was in %s", now, home)
	}
}
