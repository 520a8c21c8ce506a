// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"cmp"
	"os"
	"path"
	"path/filepath"
)

// workers returns the processes that tell where a container is: its own, by their pids or the
// oldest first, or those that work for it elsewhere. The error is that of its own.
//
// gVisor runs a pod in one sandbox. Its processes are in the cgroup of the pod, if that is
// named pod<uid>, or in that of the pod's first container; the cgroups of the containers are
// there for cAdvisor, and stay empty. Kata keeps what is not to be limited out of the pod's
// cgroup.
func (w *Watcher) workers(c Container, byAge bool) (found []process, own bool, failure error) {
	found, failure = w.processes(c)
	if len(found) > 0 {
		found = found[:min(len(found), maxTasks)]
		if byAge && len(found) > 1 {
			failure = cmp.Or(failure, w.sortByAge(found))
		}
		return found[:min(len(found), maxProcesses)], true, failure
	}
	if found = w.inPod(c); len(found) == 0 {
		found = w.inOverhead(c)
	}
	return found[:min(len(found), maxProcesses)], false, failure
}

// inPod returns the processes that are right in the pod's own directory, which a runtime
// puts there, or else those of a sandbox of gVisor in one of the pod's containers.
func (w *Watcher) inPod(c Container) []process {
	pod := podOf(c)
	if pod == "" {
		return nil
	}
	if found, _ := w.processesIn(pod); len(found) > 0 {
		return found
	}
	entries, _ := os.ReadDir(filepath.Join(w.layout.Root, pod)) // gone is empty
	for _, e := range entries[:min(len(entries), maxDirectories)] {
		if !e.IsDir() {
			continue
		}
		found, _ := w.processesIn(path.Join(pod, e.Name()))
		if w.kernelOf(found) == GVisor {
			return found
		}
	}
	return nil
}

// podOf returns the directory of the pod around a container, "" if there is none.
func podOf(c Container) string {
	if c.PodUID == "" {
		return ""
	}
	for dir := path.Dir(c.Cgroup); dir != "/" && dir != "."; dir = path.Dir(dir) {
		if podUID(path.Base(dir)) == c.PodUID {
			return dir
		}
	}
	return ""
}

// inOverhead returns the processes of a sandbox of Kata that are outside of the pod's cgroup.
func (w *Watcher) inOverhead(c Container) []process {
	if !isHex64(c.ID) { // a user's, among others
		return nil
	}
	for _, name := range []string{c.ID, kataPrefix + c.ID} {
		if found, _ := w.processesIn(path.Join(kataOverhead, name)); len(found) > 0 {
			return found
		}
	}
	return nil
}
