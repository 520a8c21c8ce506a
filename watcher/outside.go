// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Processes returns the pids of the processes that tell where a container is, oldest first
// and 64 at most: its own, or else those that work for it, or none. One of them may end at any
// time, and its pid be another's.
//
// It needs no capability.
func (w *Watcher) Processes(c Container) []int {
	var pids []int
	processes, _, _ := w.workers(c, true) // of those that can't be read nothing can be told
	for _, p := range processes {
		pids = append(pids, p.pid)
	}
	return pids
}

// NamespaceNumber returns the number that the host's network namespace has for that of a
// process: [HostVeth].NetNSID of what leads there. It is -1 if there is none, as long as
// nothing leads there or nobody has asked for the links.
//
// It needs no capability, but for Options.NetNS CAP_SYS_ADMIN.
func (w *Watcher) NamespaceNumber(pid int) (int, error) {
	conn, err := dial(w.netns, 0)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	number, err := askNumber(conn, unix.RTM_GETNSID, unix.NETNSA_PID, uint32(pid))
	if err != nil {
		return -1, fmt.Errorf("ask for namespace number of process %d: %w", pid, err)
	}
	return number, nil
}
