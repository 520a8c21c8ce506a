// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// BenchmarkAttach attaches to a cgroup and detaches from it.
func BenchmarkAttach(b *testing.B) {
	need.Root(b)
	root := unified(b)
	control := New(Options{Root: root, Pins: filepath.Join(nettest.BPFFS(b), "cgroups")})
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(b)
	defer datapath.Close()
	dir := fmt.Sprintf("/nettally-bench-%d", os.Getpid())
	if err := os.Mkdir(root+dir, 0o755); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(root + dir)
	id := nettest.Must(control.ID(dir))(b)
	b.Run("attach", func(b *testing.B) {
		for b.Loop() {
			if err := control.Attach(dir, id, datapath.CgroupIngress, datapath.CgroupEgress); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := control.Detach(id); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("detach", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if err := control.Attach(dir, id, datapath.CgroupIngress, datapath.CgroupEgress); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := control.Detach(id); err != nil {
				b.Fatal(err)
			}
		}
	})
}
