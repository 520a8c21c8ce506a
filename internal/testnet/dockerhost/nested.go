// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Nested is a Docker daemon in a container of another one. Its methods fail the
// test if they do not succeed.
type Nested struct {
	// Outer is the id of the container that it runs in. Its containers' host
	// veths are in that one's network namespace.
	Outer string
	// CgroupParent is the path of its containers' cgroups on the host:
	// <parent>/<outer>/docker, with <id> below.
	CgroupParent string

	docker *Docker
}

// nested is what the outer container runs. It sees the host's cgroups, in all
// hierarchies, so the nested daemon has to be told to stay below the outer
// container's.
const nested = `own=$(sed -n 's/^0:://p' /proc/self/cgroup)
echo '{}' >/run/config.json
exec dockerd --config-file /run/config.json --log-level warn --bip 10.237.0.1/24 --storage-driver overlay2 \
	--cgroup-parent "$own/docker" --exec-opt native.cgroupdriver=cgroupfs`

// StartNested starts a container, and a daemon in it that has the machine's
// programs and their libraries. The container has what a privileged one has, but
// for CAP_SYS_RESOURCE, which the machine may lack.
func (d *Docker) StartNested() *Nested {
	d.tb.Helper()
	options := []string{
		"--cgroupns", "host", "-v", "/sys/fs/cgroup:/sys/fs/cgroup",
		"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--security-opt", "systempaths=unconfined", "--device-cgroup-rule", "a *:* rwm",
		"--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE",
		"--tmpfs", "/run:exec", "--tmpfs", "/var/lib/docker:exec",
		"-e", "PATH=/usr/sbin:/usr/bin:/bin",
	}
	for _, dir := range []string{"/usr:/usr", "/usr/lib:/lib", "/usr/lib64:/lib64", "/etc/alternatives:/etc/alternatives"} {
		from, _, _ := strings.Cut(dir, ":")
		if _, err := os.Stat(from); err == nil { // no lib64 on arm64
			options = append(options, "-v", dir+":ro")
		}
	}
	outer := d.Run(append(options, Image, "/bin/sh", "-euc", nested)...)
	n := &Nested{Outer: outer, CgroupParent: d.CgroupParent + "/" + outer + "/docker", docker: d}
	n.await()
	d.Import(Image, "exec", "-i", outer, "docker")
	return n
}

// await waits until the daemon answers.
func (n *Nested) await() {
	d := n.docker
	d.tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := d.Client("exec", n.Outer, "docker", "version").CombinedOutput()
		if err == nil {
			return
		}
		running := d.CLI("inspect", "-f", "{{.State.Running}}", n.Outer) == "true"
		if !running || time.Now().After(deadline) {
			log, _ := d.Client("logs", n.Outer).CombinedOutput()
			d.tb.Fatalf("nested docker does not answer: %v: %s\n%s", err, out, log)
		}
	}
}

// CLI runs the nested daemon's client and returns what it prints, without space
// around it.
func (n *Nested) CLI(args ...string) string {
	n.docker.tb.Helper()
	return n.docker.Exec(n.Outer, append([]string{"docker"}, args...)...)
}

// Run starts a container in the nested daemon, as [Docker.Run] does.
func (n *Nested) Run(args ...string) string {
	n.docker.tb.Helper()
	return n.CLI(append([]string{"run", "-d", "--stop-signal", "SIGKILL"}, args...)...)
}

// Remove kills and removes a container of the nested daemon.
func (n *Nested) Remove(id string) {
	n.docker.tb.Helper()
	n.CLI("rm", "-f", "-v", id)
}

// Agent starts an agent in a container of the nested daemon. It ends with the
// container.
func (n *Nested) Agent(id string) *testnet.Agent {
	tb := n.docker.tb
	tb.Helper()
	a := nettest.Must(testnet.CommandAgent(
		n.docker.Client("exec", "-i", n.Outer, "docker", "exec", "-i", id, "/agent")))(tb)
	tb.Cleanup(func() { _ = a.Close() })
	return a
}

// PID returns the id that a container's first process has on the host; the
// nested daemon knows another one.
func (n *Nested) PID(id string) int {
	tb := n.docker.tb
	tb.Helper()
	procs := "/sys/fs/cgroup" + n.CgroupParent + "/" + id + "/cgroup.procs"
	out := nettest.Must(n.docker.Command("sh", "-c",
		`cat "$0" 2>/dev/null || cat "/sys/fs/cgroup/unified${0#/sys/fs/cgroup}"`, procs).Output())(tb)
	first, _, _ := strings.Cut(string(out), "\n")
	return nettest.Must(strconv.Atoi(first))(tb)
}

// NetDev returns the kernel's counters of a container's interfaces, by name.
func (n *Nested) NetDev(id string) map[string]testnet.Counters {
	n.docker.tb.Helper()
	return nettest.Must(testnet.InterfaceCounters(n.PID(id)))(n.docker.tb)
}

// IPv4 returns the address of a container's eth0.
func (n *Nested) IPv4(id string) netip.Addr {
	tb := n.docker.tb
	tb.Helper()
	inside := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", n.PID(id))))(tb)
	defer inside.Close()
	link := nettest.Must(inside.LinkByName("eth0"))(tb)
	for _, address := range nettest.Must(inside.AddrList(link, netlink.FAMILY_V4))(tb) {
		if found, ok := netip.AddrFromSlice(address.IP); ok {
			return found.Unmap()
		}
	}
	tb.Fatalf("container %.12s has no address on eth0", id)
	return netip.Addr{}
}
