// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/enclosure"
)

// plainNamespace is containerd's, of nothing else.
const plainNamespace = "default"

// PlainNetwork is the option of `ctr run` that says what a container's network
// is.
type PlainNetwork string

// The networks that `ctr run` gives: by CNI, the host's, and a namespace with
// lo alone.
const (
	PlainCNI  PlainNetwork = "--cni"
	PlainHost PlainNetwork = "--net-host"
	PlainNone PlainNetwork = ""
)

// Plain is a container without a pod and without CRI, as `ctr run` and nerdctl
// make it. It is gone when the test ends, if not before.
type Plain struct {
	// ID is any name, not 64 digits.
	ID string
	// CgroupPath is /default/<id> in the hierarchies, which is outside of the
	// cgroup that the test has for itself. The name makes it the test's own.
	CgroupPath string
	PID        int
	// IPv4 is the address of eth0, if it was made by CNI.
	IPv4 netip.Addr

	host *Host
}

// withCNI runs ctr where CNI's configuration and plugins are where it looks for
// them; it cannot be told where else. Debian's looks for plugins where Debian
// has them, others' in /opt.
const withCNI = `config=$0
mkdir -p /run/nettally-etc/upper /run/nettally-etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/nettally-etc/upper,workdir=/run/nettally-etc/work overlay /etc
mkdir -p /etc/cni/net.d
mount --bind "$config" /etc/cni/net.d
mount -t tmpfs tmpfs /opt
mkdir /opt/cni
ln -s ` + pluginDir + ` /opt/cni/bin
exec "$@"`

// RunPlain starts a container with `ctr run`. It runs until it is stopped. After
// an error nothing is left of it.
func (h *Host) RunPlain(name string, network PlainNetwork) (*Plain, error) {
	// What the script ends is told by the name.
	id := path.Base(h.enclosure.Cgroup) + "-" + name
	p := &Plain{ID: id, CgroupPath: path.Join("/", plainNamespace, id), host: h}
	if err := h.importPlain(); err != nil {
		return nil, err
	}
	// The script removes the cgroup /default, which no runtime does.
	if err := os.WriteFile(filepath.Join(h.enclosure.Dir, "default"), nil, 0o600); err != nil {
		return nil, err
	}
	args := []string{"run", "--detach", "--null-io"}
	if network != PlainNone {
		args = append(args, string(network))
	}
	if h.options.CgroupV2Only {
		args = append(args, "--runc-binary", h.runc())
	}
	run := h.ctr(append(args, Image, id)...)
	if network == PlainCNI {
		run = h.Command("unshare", append([]string{
			"--mount", "sh", "-euc", withCNI, h.CNIConfigDir()}, h.ctrArgs(plainNamespace, append(args, Image, id)...)...)...)
	}
	if err := ran(run); err != nil {
		return nil, errors.Join(fmt.Errorf("run container %s: %w", id, err), p.Remove())
	}
	if err := p.look(network); err != nil {
		return nil, errors.Join(fmt.Errorf("look at container %s: %w", id, err), p.Remove())
	}
	return p, nil
}

// ctrArgs is a call of containerd's client, with the program first.
func (h *Host) ctrArgs(namespace string, args ...string) []string {
	return append([]string{"ctr", "--address", h.Socket, "--namespace", namespace}, args...)
}

func (h *Host) ctr(args ...string) *exec.Cmd {
	args = h.ctrArgs(plainNamespace, args...)
	return h.Command(args[0], args[1:]...)
}

// ran runs a command. The error carries what it printed.
func ran(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// importPlain imports the image into the namespace, which costs nothing again.
func (h *Host) importPlain() error {
	archive, err := enclosure.Archive(Image)
	if err != nil {
		return err
	}
	load := h.ctr("images", "import", "-")
	load.Stdin = bytes.NewReader(archive)
	if err := ran(load); err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	return nil
}

// removePlain removes all of the containers.
func (h *Host) removePlain() {
	h.tb.Helper()
	out, err := h.ctr("containers", "list", "--quiet").Output()
	if err != nil {
		return // containerd is gone, and the script takes care of the rest
	}
	for _, id := range strings.Fields(string(out)) {
		if err := (&Plain{ID: id, host: h}).Remove(); err != nil {
			h.tb.Error(err)
		}
	}
}

// look learns what only a container that runs has.
func (p *Plain) look(network PlainNetwork) error {
	out, err := p.host.ctr("tasks", "list").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == p.ID {
			p.PID, err = strconv.Atoi(fields[1])
		}
	}
	if err != nil || p.PID == 0 {
		return fmt.Errorf("find its process in %q: %w", out, err)
	}
	if network == PlainCNI {
		p.IPv4, err = ipv4(p.PID, "eth0")
	}
	return err
}

// ipv4 returns an address of the interface that a process has.
func ipv4(pid int, iface string) (netip.Addr, error) {
	n, err := testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return netip.Addr{}, err
	}
	defer n.Close()
	link, err := n.LinkByName(iface)
	if err != nil {
		return netip.Addr{}, err
	}
	addresses, err := n.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, address := range addresses {
		if found, ok := netip.AddrFromSlice(address.IP); ok {
			return found.Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address", iface)
}

// Agent starts an agent in the container. It ends with the container, or with
// the test.
func (p *Plain) Agent() (*testnet.Agent, error) { return p.host.agent(plainNamespace, p.ID) }

// NetDev returns the kernel's counters of the container's interfaces, by name.
func (p *Plain) NetDev() (map[string]testnet.Counters, error) {
	return testnet.InterfaceCounters(p.PID)
}

// HostVeth returns the host's end of the container's eth0.
func (p *Plain) HostVeth() (netlink.Link, error) { return p.host.hostVeth(p.PID) }

// Remove kills and removes the container. `ctr` does not ask CNI to take the
// interface off: it goes with its namespace, some time later.
func (p *Plain) Remove() error {
	// There may be none, or no container, if it did not start.
	_ = p.host.ctr("tasks", "delete", "--force", p.ID).Run()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := ran(p.host.ctr("containers", "delete", p.ID))
		if err == nil || strings.Contains(err.Error(), "not found") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove container %s: %w", p.ID, err)
		}
	}
}
