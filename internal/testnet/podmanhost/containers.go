// SPDX-License-Identifier: Apache-2.0

package podmanhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Run starts a container with `podman run -d` and returns its full id. Options
// come first, then [Image], and then a command if it is not to wait for its end.
// With --pod it is a member of a pod.
func (p *Podman) Run(args ...string) string {
	p.tb.Helper()
	// Busybox as process 1 takes no notice of SIGTERM, and podman waits 10 s.
	first := []string{"run", "-d", "--stop-signal", "SIGKILL"}
	if !slices.Contains(args, "--pod") { // a member's is its pod's to say
		first = append(first, p.cgroupOption()...)
	}
	return p.CLI(append(first, args...)...)
}

// cgroupOption says where cgroups are, which for a user podman itself decides.
func (p *Podman) cgroupOption() []string {
	if p.uid != 0 {
		return nil
	}
	return []string{"--cgroup-parent", p.CgroupParent}
}

// PodCreate makes a pod and returns its full id. Its network is that of its
// infra container, which waits in it and starts with the first member. Options
// are `podman pod create`'s.
func (p *Podman) PodCreate(name string, options ...string) string {
	p.tb.Helper()
	args := append([]string{"pod", "create", "--name", name}, p.cgroupOption()...)
	args = append(args, "--infra-image", Image, "--infra-command", "/bin/sleep infinity")
	pod := p.CLI(append(args, options...)...)
	if err := p.allowDevices(pod); err != nil {
		p.tb.Fatalf("allow devices in pod %s: %v", name, err)
	}
	return pod
}

// allowDevices takes a program off a pod's cgroup with which podman 4.3 forbids
// its members all devices, where cgroup v2 is alone; they would not start, for
// want of /dev/null. Later versions have none.
func (p *Podman) allowDevices(pod string) error {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/root/sys/fs/cgroup%s/%s", p.enclosure.PID(), p.CgroupParent, pod))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // v2 is not alone
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	target := int(dir.Fd())
	attached, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		return err
	}
	for _, found := range attached.Programs {
		if err := detach(target, found.ID); err != nil {
			return err
		}
	}
	return nil
}

func detach(target int, id ebpf.ProgramID) error {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer program.Close()
	return link.RawDetachProgram(link.RawDetachProgramOptions{
		Target: target, Program: program, Attach: ebpf.AttachCGroupDevice,
	})
}

// Infra returns the full id of a pod's infra container.
func (p *Podman) Infra(pod string) string {
	p.tb.Helper()
	return p.CLI("pod", "inspect", "--format", "{{.InfraContainerID}}", pod)
}

// Remove kills and removes a container.
func (p *Podman) Remove(id string) {
	p.tb.Helper()
	p.CLI("rm", "-f", "-v", "-t", "0", id)
}

// RemovePod kills and removes a pod with its containers.
func (p *Podman) RemovePod(pod string) {
	p.tb.Helper()
	p.CLI("pod", "rm", "-f", "-t", "0", pod)
}
