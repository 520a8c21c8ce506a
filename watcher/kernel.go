// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Kernel is a kernel of its own that a container runs on: the processes in its cgroup on the
// host are then not the container's, but those that make that kernel. It is told by their
// command lines, which anybody can give a process, so it decides nothing.
type Kernel string

// The kernels.
const (
	HostKernel Kernel = "" // none of its own
	GVisor     Kernel = "gvisor"
	Kata       Kernel = "kata"
)

const (
	// maxCommands bounds how many command lines are read to tell a container's kernel. What
	// makes it is among the first.
	maxCommands = 16
	// maxCommand is how much is read of one. The socket of a virtual machine monitor comes
	// after all its devices.
	maxCommand = 16 << 10
)

const (
	kataShim = "containerd-shim-kata-v2"
	// kataPrefix is before the id where Kata names a sandbox's cgroup, by its runtime in
	// Rust and before 2.0.
	kataPrefix = "kata_"
	// kataOverhead holds a directory for each sandbox of Kata with what is not limited by
	// the pod's cgroup: the shim and the virtual machine monitor.
	kataOverhead = "/kata_overhead"
)

var (
	gvisorCommands = []string{"runsc-sandbox", "runsc-gofer"}
	// kataHelpers stay in the host's network namespace, and serve the machine by unix and
	// vsock sockets.
	kataHelpers = []string{kataShim, "virtiofsd"}
	monitors    = []string{"qemu-kvm", "cloud-hypervisor", "firecracker", "stratovirt"}
	// kataFolders are where Kata has the sockets of its machines. Others run monitors, too.
	kataFolders = []string{"/run/vc/", "/run/kata/"}
)

// Kernel returns the kernel that a container runs on, by its processes. It needs no capability.
func (w *Watcher) Kernel(c Container) Kernel {
	if strings.HasPrefix(path.Base(c.Cgroup), kataPrefix) {
		return Kata
	}
	processes, _, _ := w.workers(c, false)
	return w.kernelOf(processes)
}

func (w *Watcher) kernelOf(processes []process) Kernel {
	for _, p := range processes[:min(len(processes), maxCommands)] {
		if k := kernelOf(w.command(p.pid)); k != HostKernel {
			return k
		}
	}
	return HostKernel
}

// kernelOf tells a kernel by the command line of one of the processes that make it.
func kernelOf(command []string) Kernel {
	switch name := path.Base(command[0]); {
	case slices.Contains(gvisorCommands, name):
		return GVisor
	case name == kataShim:
		return Kata
	case !strings.HasPrefix(name, "qemu-system-") && !slices.Contains(monitors, name):
		return HostKernel
	}
	for _, argument := range command[1:] {
		for _, folder := range kataFolders {
			if strings.Contains(argument, folder) {
				return Kata
			}
		}
	}
	return HostKernel
}

// command returns the command line of a process or thread. It has one word at least, which
// is empty where there is none.
func (w *Watcher) command(pid int) []string {
	b, _ := readSome(filepath.Join(w.proc, strconv.Itoa(pid), "cmdline"), maxCommand)
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

func readSome(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// Aside reports whether a thread in the host's network namespace is a helper of Kata and not
// of the container. Who is in a container, with a process of any name, is not root in the
// host's PID namespace, unless the host's root has put it there.
func (w *Watcher) Aside(task int) bool {
	if !slices.Contains(kataHelpers, path.Base(w.command(task)[0])) {
		return false
	}
	status, err := readSome(filepath.Join(w.proc, strconv.Itoa(task), "status"), maxCommand)
	if err != nil {
		return false
	}
	root, onHost := false, false
	for line := range strings.Lines(string(status)) {
		switch key, values, _ := strings.Cut(line, ":"); key {
		case "Uid":
			root = slices.Equal(strings.Fields(values), []string{"0", "0", "0", "0"})
		case "NSpid":
			onHost = len(strings.Fields(values)) == 1
		}
	}
	return root && onHost
}
