// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A container's process below its cgroup, and wholly outside of it.
func TestMove(t *testing.T) {
	need.Root(t)
	top := fmt.Sprintf("/nettally-test-%d-move", os.Getpid())
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{Cgroup: top + "/" + strings.Repeat("a", 64)})
	for _, to := range []string{c.Cgroup + "/init.scope", top + "/elsewhere"} {
		if err := c.Move(to); err != nil {
			t.Fatal(err)
		}
		data := nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID())))(t)
		for line := range strings.Lines(string(data)) {
			if !strings.HasSuffix(line, ":"+to+"\n") {
				t.Errorf("in cgroup %q, want %s", line, to)
			}
		}
		for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
			procs := nettest.Must(os.ReadFile(filepath.Join(root, c.Cgroup, "cgroup.procs")))(t)
			if len(procs) > 0 {
				t.Errorf("processes %q are left in the container's cgroup", procs)
			}
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	after := nettest.TakeSnapshot(t, nettest.Scope{Cgroups: []string{top}})
	if diff := cmp.Diff(nettest.Snapshot{}, after); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}
