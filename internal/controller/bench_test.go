// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// recorder keeps every value that a histogram observes.
type recorder struct {
	prometheus.Histogram
	mu     sync.Mutex
	values []float64
}

func (r *recorder) Observe(v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values = append(r.values, v)
}

func (r *recorder) sorted() []float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.values))
}

// BenchmarkAttach makes 500 veths, one after the other and as fast as it can, and
// reports the time from a link's event to both filters being on.
func BenchmarkAttach(b *testing.B) {
	need.Root(b)
	const veths = 500
	for name, pace := range map[string]time.Duration{"paced": 5 * time.Millisecond, "burst": 0} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				host, inside := nettest.Host(b), nettest.Host(b)
				seen := &recorder{}
				r := start(b, host, "", func(c *Controller) {
					seen.Histogram = c.metrics.attach
					c.metrics.attach = seen
				})
				for n := range veths {
					makeVeth(b, host, inside, n)
					time.Sleep(pace)
				}
				for len(seen.sorted()) < veths {
					time.Sleep(10 * time.Millisecond)
				}
				took := seen.sorted()
				b.ReportMetric(1000*took[len(took)/2], "median-ms")
				b.ReportMetric(1000*took[len(took)*99/100], "p99-ms")
				r.stop()
			}
		})
	}
}

func makeVeth(b *testing.B, host, inside *testnet.Namespace, n int) {
	b.Helper()
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: fmt.Sprintf("veth%d", n)},
		PeerName:      fmt.Sprintf("eth%d", n),
		PeerNamespace: netlink.NsFd(inside.FD()),
	}
	if err := host.LinkAdd(pair); err != nil {
		b.Fatal(err)
	}
}
