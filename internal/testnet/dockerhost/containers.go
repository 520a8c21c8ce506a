// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Client returns a call of Docker's command line client, which must not look at
// the user's configuration.
func (d *Docker) Client(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.Socket, "DOCKER_CONFIG="+d.dir,
		"DOCKER_CONTEXT=", "DOCKER_TLS_VERIFY=")
	return cmd
}

// CLI runs the docker client and returns what it prints, without space around
// it.
func (d *Docker) CLI(args ...string) string {
	d.tb.Helper()
	cmd := d.Client(args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.tb.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// Run starts a container with `docker run -d` and returns its full id. Options
// come first, then [Image], and then a command if it is not to wait for its end.
func (d *Docker) Run(args ...string) string {
	d.tb.Helper()
	// Busybox as process 1 takes no notice of SIGTERM, and Docker waits 10 s.
	return d.CLI(append([]string{"run", "-d", "--stop-signal", "SIGKILL"}, args...)...)
}

// Exec runs a command in a container and returns what it prints.
func (d *Docker) Exec(id string, command ...string) string {
	d.tb.Helper()
	return d.CLI(append([]string{"exec", id}, command...)...)
}

// Agent starts an agent in a container. It ends with the container.
func (d *Docker) Agent(id string) *testnet.Agent {
	d.tb.Helper()
	a := nettest.Must(testnet.CommandAgent(d.Client("exec", "-i", id, "/agent")))(d.tb)
	// No matter how it ends: the container may be long gone.
	d.tb.Cleanup(func() { _ = a.Close() })
	return a
}

// Remove kills and removes a container.
func (d *Docker) Remove(id string) {
	d.tb.Helper()
	d.CLI("rm", "-f", "-v", id)
}

// Restart stops a container and starts it again.
func (d *Docker) Restart(id string) {
	d.tb.Helper()
	d.CLI("restart", "-t", "0", id)
}

// NetworkCreate makes a bridge network. Options are `docker network create`'s.
func (d *Docker) NetworkCreate(name string, options ...string) {
	d.tb.Helper()
	d.CLI(append(append([]string{"network", "create"}, options...), name)...)
}

// NetworkConnect gives a running container an interface in a network.
func (d *Docker) NetworkConnect(network, id string) {
	d.tb.Helper()
	d.CLI("network", "connect", network, id)
}

// PID returns the id of a container's first process.
func (d *Docker) PID(id string) int {
	d.tb.Helper()
	pid := nettest.Must(strconv.Atoi(d.CLI("inspect", "-f", "{{.State.Pid}}", id)))(d.tb)
	if pid == 0 {
		d.tb.Fatalf("container %.12s does not run", id)
	}
	return pid
}

// ContainerNamespace opens a container's network namespace, until the test ends.
func (d *Docker) ContainerNamespace(id string) *testnet.Namespace {
	d.tb.Helper()
	n := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", d.PID(id))))(d.tb)
	d.tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			d.tb.Error(err)
		}
	})
	return n
}

// NetDev returns the kernel's counters of a container's interfaces, by name.
func (d *Docker) NetDev(id string) map[string]testnet.Counters {
	d.tb.Helper()
	return nettest.Must(testnet.InterfaceCounters(d.PID(id)))(d.tb)
}

// IPv4 returns the address of a container's interface.
func (d *Docker) IPv4(id, iface string) netip.Addr {
	d.tb.Helper()
	fields := strings.Fields(d.Exec(id, "ip", "-4", "-o", "addr", "show", "dev", iface))
	for i, field := range fields {
		if field == "inet" {
			return nettest.Must(netip.ParsePrefix(fields[i+1]))(d.tb).Addr()
		}
	}
	d.tb.Fatalf("container %.12s has no address on %s", id, iface)
	return netip.Addr{}
}

// HostVeth returns the name of the host veth of a container's interface, by what
// the container's own link says its peer is.
func (d *Docker) HostVeth(id, iface string) string {
	d.tb.Helper()
	n := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", d.PID(id))))(d.tb)
	defer n.Close()
	inside := nettest.Must(n.LinkByName(iface))(d.tb)
	if inside.Type() != "veth" {
		d.tb.Fatalf("container %.12s: %s is a %s and has no host veth", id, iface, inside.Type())
	}
	return nettest.Must(d.Namespace.LinkByIndex(inside.Attrs().ParentIndex))(d.tb).Attrs().Name
}

// SetOffloads switches the offloads of both ends of a container's veth.
func (d *Docker) SetOffloads(id, iface string, on bool) {
	d.tb.Helper()
	for name, n := range map[string]*testnet.Namespace{
		iface: d.ContainerNamespace(id), d.HostVeth(id, iface): d.Namespace,
	} {
		if err := n.SetOffloads(name, on); err != nil {
			d.tb.Fatal(err)
		}
	}
}
