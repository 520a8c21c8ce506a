// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// move is the first act of a container. In v1's cpuset a new cgroup takes no
// process before it has CPUs and memory.
const move = `path=$0
roots=/sys/fs/cgroup
[ -e /sys/fs/cgroup/cgroup.procs ] || roots=$(ls -d /sys/fs/cgroup/*/)
for root in $roots; do
	dir=${root%/}$path
	mkdir "$dir" 2>/dev/null || [ -d "$dir" ] # cpu and cpuacct may be one
	for file in cpuset.cpus cpuset.mems; do
		[ ! -e "$dir/../$file" ] || [ -e "$dir/cgroup.events" ] || cat "$dir/../$file" >"$dir/$file"
	done
	echo 0 >"$dir/cgroup.procs"
done
exec sleep infinity`

// RunMoved starts a container whose process moves itself into a cgroup that it
// makes, as an init that manages cgroups does, and returns when it is there. Its
// full id and the path of the cgroup are returned: where the container's own is
// <parent>/<id>, the new one is <parent>/<id>/<name> if below, and
// <parent>/<name> if not, which leaves the container's own empty. Options are
// `docker run`'s.
func (d *Docker) RunMoved(name string, below bool, options ...string) (id, cgroup string) {
	d.tb.Helper()
	// Its id is not known before it starts, but its cgroup can be.
	parent := d.CgroupParent
	args := append([]string{"--cgroupns", "host", "-v", "/sys/fs/cgroup:/sys/fs/cgroup"}, options...)
	script := strings.Replace(move, "path=$0", "path=$0/"+name, 1)
	if below {
		script = strings.Replace(move, "path=$0", `path=$(sed -n 's/^0:://p' /proc/self/cgroup)/`+name, 1)
	}
	id = d.Run(append(args, Image, "sh", "-ec", script, parent)...)
	cgroup = path.Join(parent, name)
	if below {
		cgroup = path.Join(parent, id, name)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		where := string(nettest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", d.PID(id))))(d.tb))
		if strings.Count(where, ":"+cgroup+"\n") == strings.Count(where, ":"+parent+"/") {
			return id, cgroup
		}
		if time.Now().After(deadline) {
			d.tb.Fatalf("container %.12s has not moved to %s:\n%s", id, cgroup, where)
		}
	}
}
