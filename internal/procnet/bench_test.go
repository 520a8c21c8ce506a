// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// BenchmarkRead reads the files of one container with one interface, which is done every
// 5 s for each.
func BenchmarkRead(b *testing.B) {
	need.Root(b)
	c := nettest.Container(b, nettest.Host(b), testnet.ContainerOptions{})
	f := files{"/proc"}
	number := nettest.Must(f.namespace(c.PID()))(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.read(c.PID(), number); err != nil {
			b.Fatal(err)
		}
	}
}
