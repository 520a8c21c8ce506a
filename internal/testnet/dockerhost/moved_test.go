// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A container is where it moved itself, nobody is in its own cgroup, and it still
// has its network.
func TestMoved(t *testing.T) {
	for _, v2only := range []bool{false, true} {
		t.Run(fmt.Sprintf("v2only=%v", v2only), func(t *testing.T) {
			docker := Start(t, Options{CgroupV2Only: v2only})
			testMoved(t, docker, "init.scope", true)
			testMoved(t, docker, "elsewhere", false)
		})
	}
}

func testMoved(t *testing.T, docker *Docker, name string, below bool) {
	t.Helper()
	id, cgroup := docker.RunMoved(name, below)
	if below != strings.Contains(cgroup, id) {
		t.Errorf("the container %s is in %s", id, cgroup)
	}
	out := nettest.Must(docker.Command("sh", "-c",
		"cat $(find /sys/fs/cgroup -path '*"+docker.CgroupParent+"/"+id+"/cgroup.procs')").Output())(t)
	if len(out) > 0 {
		t.Errorf("processes %q are left in the container's cgroup", out)
	}
	exchange(t, nettest.Agent(t, docker.Namespace), docker.Agent(id), docker.IPv4(id, "eth0"), 100)
	docker.Remove(id)
}
