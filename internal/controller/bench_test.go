// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"path/filepath"
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

// BenchmarkAttach makes 500 veths, one after the other, as fast as it can, and while as
// many others end, and reports the time from a link's event to both filters being on.
func BenchmarkAttach(b *testing.B) {
	need.Root(b)
	const veths = 500
	for name, test := range map[string]struct {
		pace  time.Duration
		churn bool
	}{"paced": {pace: 5 * time.Millisecond}, "burst": {}, "churn": {5 * time.Millisecond, true}} {
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
					if old := n - 10; test.churn && old >= 0 {
						removeVeth(b, host, old)
					}
					time.Sleep(test.pace)
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

func removeVeth(b *testing.B, host *testnet.Namespace, n int) {
	b.Helper()
	if err := host.LinkDel(nettest.Must(host.LinkByName(fmt.Sprintf("veth%d", n)))(b)); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAdopt starts a controller where an earlier one left 5,000 interfaces, and reports
// the time until it has taken all of them over, and looked at everything.
func BenchmarkAdopt(b *testing.B) {
	need.Root(b)
	const veths = 5000
	host, inside := nettest.Host(b), nettest.Host(b)
	pins := filepath.Join(nettest.BPFFS(b), "nettally")
	for n := range veths {
		makeVeth(b, host, inside, n)
	}
	start(b, host, pins).stop()
	for b.Loop() {
		began := time.Now()
		r := start(b, host, pins)
		b.ReportMetric(time.Since(began).Seconds(), "s")
		b.StopTimer()
		if unowned := len(r.accounts.Snapshot().Unowned); unowned != veths {
			b.Errorf("%d of %d interfaces are counted", unowned, veths)
		}
		r.stop()
		b.StartTimer()
	}
}
