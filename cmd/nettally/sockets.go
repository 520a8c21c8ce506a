// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// socketsByCgroup returns an error where the kernel may not tell by cgroup2 whose a socket
// is.
func socketsByCgroup() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return err
	}
	return tellsSockets(unix.ByteSliceToString(name.Release[:]), string(text))
}

// tellsSockets looks at the kernel's release and its /proc/cgroups. Before Linux 5.15, the
// kernel gives up telling sockets apart by cgroup2, until the next boot, once a process is
// put into a cgroup of net_prio or net_cls (cgroup_sk_alloc_disable, kernel/cgroup/cgroup.c,
// until commit 8520e224f547). Runtimes do that where these are mounted.
func tellsSockets(release, controllers string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major > 5 || major == 5 && minor >= 15 {
		return nil
	}
	for line := range strings.Lines(controllers) { // name, hierarchy (0 for cgroup2 or none), cgroups, enabled
		f := strings.Fields(line)
		if len(f) == 4 && (f[0] == "net_prio" || f[0] == "net_cls") && f[1] != "0" {
			return fmt.Errorf("before Linux 5.15 sockets are not told apart by cgroup beside the v1 controller %s: boot with cgroup_no_v1=net_prio,net_cls", f[0])
		}
	}
	return nil
}
