// SPDX-License-Identifier: Apache-2.0

package enclosure

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Engine is what Docker and podman have in common: they do the same when they
// are told the same by the command line, and their containers look the same to
// the kernel. Its methods fail the test if they do not succeed.
type Engine struct {
	// Namespace is the host of the containers.
	Namespace *testnet.Namespace

	tb     testing.TB
	name   string
	client func(args ...string) *exec.Cmd
}

// Engine returns an engine that runs in the enclosure. Client returns a call of
// its command line client.
func (e *Enclosure) Engine(client func(args ...string) *exec.Cmd) *Engine {
	return &Engine{Namespace: e.Namespace, tb: e.tb, name: e.name, client: client}
}

// Import gives the engine the image whose files Layer makes. To read them, it runs the
// command line's import after the words of before, if any.
func (e *Engine) Import(image string, before ...string) {
	e.tb.Helper()
	load := e.client(append(before, "import", "--change", `CMD ["/bin/sleep","infinity"]`,
		"--change", "ENV PATH=/bin", "-", image)...)
	load.Stdin = bytes.NewReader(nettest.Must(Layer())(e.tb))
	if out, err := load.CombinedOutput(); err != nil {
		e.tb.Fatalf("import image: %v: %s", err, out)
	}
}

// CLI runs the client and returns what it prints, without space around
// it.
func (e *Engine) CLI(args ...string) string {
	e.tb.Helper()
	cmd := e.client(args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e.tb.Fatalf("%s %s: %v: %s", e.name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// Exec runs a command in a container and returns what it prints.
func (e *Engine) Exec(id string, command ...string) string {
	e.tb.Helper()
	return e.CLI(append([]string{"exec", id}, command...)...)
}

// Agent starts an agent in a container. It ends with the container.
func (e *Engine) Agent(id string) *testnet.Agent {
	e.tb.Helper()
	a := nettest.Must(testnet.CommandAgent(e.client("exec", "-i", id, "/agent")))(e.tb)
	// No matter how it ends: the container may be long gone.
	e.tb.Cleanup(func() { _ = a.Close() })
	return a
}

// Restart stops a container and starts it again.
func (e *Engine) Restart(id string) {
	e.tb.Helper()
	e.CLI("restart", "-t", "0", id)
}

// NetworkCreate makes a bridge network. Options are the command's.
func (e *Engine) NetworkCreate(name string, options ...string) {
	e.tb.Helper()
	e.CLI(append(append([]string{"network", "create"}, options...), name)...)
}

// NetworkConnect gives a running container an interface in a network.
func (e *Engine) NetworkConnect(network, id string) {
	e.tb.Helper()
	e.CLI("network", "connect", network, id)
}

// PID returns the id of a container's first process.
func (e *Engine) PID(id string) int {
	e.tb.Helper()
	pid := nettest.Must(strconv.Atoi(e.CLI("inspect", "-f", "{{.State.Pid}}", id)))(e.tb)
	if pid == 0 {
		e.tb.Fatalf("container %.12s does not run", id)
	}
	return pid
}

// ContainerNamespace opens a container's network namespace, until the test ends.
func (e *Engine) ContainerNamespace(id string) *testnet.Namespace {
	e.tb.Helper()
	n := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", e.PID(id))))(e.tb)
	e.tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			e.tb.Error(err)
		}
	})
	return n
}

// NetDev returns the kernel's counters of a container's interfaces, by name.
func (e *Engine) NetDev(id string) map[string]testnet.Counters {
	e.tb.Helper()
	return nettest.Must(testnet.InterfaceCounters(e.PID(id)))(e.tb)
}

// IPv4 returns the address of a container's interface.
func (e *Engine) IPv4(id, iface string) netip.Addr {
	e.tb.Helper()
	return e.address(id, iface, netlink.FAMILY_V4)
}

// IPv6 returns the address of a container's interface that is not link-local.
func (e *Engine) IPv6(id, iface string) netip.Addr {
	e.tb.Helper()
	return e.address(id, iface, netlink.FAMILY_V6)
}

func (e *Engine) address(id, iface string, family int) netip.Addr {
	e.tb.Helper()
	n, link := e.inside(id, iface)
	defer n.Close()
	for _, address := range nettest.Must(n.AddrList(link, family))(e.tb) {
		if found, ok := netip.AddrFromSlice(address.IP); ok && found.IsGlobalUnicast() {
			return found.Unmap()
		}
	}
	e.tb.Fatalf("container %.12s has no address on %s", id, iface)
	return netip.Addr{}
}

// inside returns an interface of a container, and its namespace, which the
// caller closes.
func (e *Engine) inside(id, iface string) (*testnet.Namespace, netlink.Link) {
	e.tb.Helper()
	n := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", e.PID(id))))(e.tb)
	link, err := n.LinkByName(iface)
	if err != nil {
		_ = n.Close()
		e.tb.Fatalf("find %s in container %.12s: %v", iface, id, err)
	}
	return n, link
}

// HostVeth returns the name of the host veth of a container's interface, by what
// the container's own link says its peer is.
func (e *Engine) HostVeth(id, iface string) string {
	e.tb.Helper()
	n, link := e.inside(id, iface)
	defer n.Close()
	if link.Type() != "veth" {
		e.tb.Fatalf("container %.12s: %s is a %s and has no host veth", id, iface, link.Type())
	}
	return nettest.Must(e.Namespace.LinkByIndex(link.Attrs().ParentIndex))(e.tb).Attrs().Name
}

// SetOffloads switches the offloads of both ends of a container's veth.
func (e *Engine) SetOffloads(id, iface string, on bool) {
	e.tb.Helper()
	for name, n := range map[string]*testnet.Namespace{
		iface: e.ContainerNamespace(id), e.HostVeth(id, iface): e.Namespace,
	} {
		if err := n.SetOffloads(name, on); err != nil {
			e.tb.Fatal(err)
		}
	}
}

// NetworkNamespace returns what tells the network namespace of a container from
// others: the name that /proc/<pid>/ns/net is a link to.
func (e *Engine) NetworkNamespace(id string) string {
	e.tb.Helper()
	return nettest.Must(os.Readlink("/proc/" + strconv.Itoa(e.PID(id)) + "/ns/net"))(e.tb)
}
