// SPDX-License-Identifier: Apache-2.0

// Package podmanhost gives a test a podman of its own, with runc and netavark.
//
// Podman runs in a network namespace and a mount namespace that nobody else is
// in. To its containers that network namespace is the host: their veths, bridges
// and rules are there. Everything it stores is on a tmpfs in the mount
// namespace, so it needs no cleaning. Podman has no daemon; a script that waits
// ends the containers, and removes their cgroups, when the test ends or dies.
//
//	func TestUpload(t *testing.T) {
//		need.Root(t)
//		podman := podmanhost.Start(t, podmanhost.Options{})
//		pod := podman.PodCreate("web")
//		app, sidecar := podman.Run("--pod", pod, podmanhost.Image), podman.Run("--pod", pod, podmanhost.Image)
//		server := podman.Run(podmanhost.Image)
//		sink := nettest.Must(podman.Agent(server).Listen("udp", podman.IPv4(server, "eth0")))(t)
//		if err := podman.Agent(app).SendUDP(sink.Addr, 1000, 100); err != nil {
//			t.Fatal(err)
//		}
//		got := podman.NetDev(sidecar)["eth0"] // 1000 packets, and some ARP
//	}
package podmanhost

import (
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/enclosure"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Image is the image that Run is given: busybox, and an agent. Its containers
// run until they are stopped, and stop at once.
const Image = "localhost/nettally-test"

// netavark is where Debian and Ubuntu have the program that makes the networks.
const netavark = "/usr/lib/podman/netavark"

// Options say how podman runs.
type Options struct {
	// CgroupV2Only mounts the v2 hierarchy alone at /sys/fs/cgroup, as a newer
	// host does, whatever the machine has. Controllers that the machine has bound
	// to v1 are missing, so containers can have no limits.
	CgroupV2Only bool
}

// Podman is a place where podman runs containers. Its methods fail the test if
// they do not succeed.
type Podman struct {
	*enclosure.Engine
	// CgroupParent is the path of the containers' cgroups in the hierarchies:
	// CgroupParent/libpod-<id>, and CgroupParent/<pod's id>/libpod-<id> in a pod.
	// Beside them there is one named conmon, which is no container's.
	CgroupParent string

	uid       int // of who runs podman
	tb        testing.TB
	enclosure *enclosure.Enclosure
}

//go:embed podman.sh
var script string

// Start makes a place for podman. Requires root, cgroups, podman with conmon,
// netavark, slirp4netns and iptables, and runc: crun refuses machines that have both versions
// of cgroups.
func Start(tb testing.TB, options Options) *Podman {
	tb.Helper()
	need.Commands(tb, "podman", "conmon", "runc", "iptables", "slirp4netns", netavark)
	e := enclosure.New(tb, "podman")
	// Named as podman's own: it tells that a bare id below is a pod.
	p := &Podman{CgroupParent: e.Cgroup + "/libpod_parent", tb: tb, enclosure: e}
	p.Engine = e.Engine(p.Client)
	p.configure(fmt.Sprintf(config, p.file("networks")), storage)
	e.Start(script, fmt.Sprint(options.CgroupV2Only))
	tb.Cleanup(p.stop)
	e.Await(func() error {
		_, err := os.Stat(filepath.Join(e.Dir, "ready"))
		return err
	})
	p.Import(Image)
	return p
}

// config says what a machine may have otherwise, with the directory of the
// networks put in. A limit of processes needs a
// controller that [Options.CgroupV2Only] lacks, and raised limits of files and
// processes need CAP_SYS_RESOURCE.
const config = `[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
network_config_dir = %q
[containers]
log_driver = "k8s-file"
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

const storage = `[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
`

// policy is of signatures, without which podman imports nothing.
const policy = `{"default":[{"type":"insecureAcceptAnything"}]}`

// configure writes what podman reads in place of the machine's files.
func (p *Podman) configure(containers, storage string) {
	p.tb.Helper()
	if err := os.MkdirAll(p.file(".config/containers"), 0o755); err != nil {
		p.tb.Fatal(err)
	}
	for name, content := range map[string]string{
		"containers.conf": containers, "storage.conf": storage, ".config/containers/policy.json": policy,
	} {
		if err := os.WriteFile(p.file(name), []byte(content), 0o600); err != nil {
			p.tb.Fatal(err)
		}
	}
}

func (p *Podman) file(name string) string { return filepath.Join(p.enclosure.Dir, name) }

// stop removes the pods and containers, which takes their veths and cgroups off
// in good order, and ends the rest.
func (p *Podman) stop() {
	p.tb.Helper()
	for _, args := range [][]string{{"pod", "rm", "-f", "-a", "-t", "0"}, {"rm", "-f", "-a", "-t", "0"}} {
		if out, err := p.Client(args...).CombinedOutput(); err != nil {
			p.tb.Errorf("podman %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	p.enclosure.End()
}

// Client returns a call of podman, which does not look at the user's
// configuration.
func (p *Podman) Client(args ...string) *exec.Cmd {
	if p.uid != 0 {
		return p.userCommand("podman", args...)
	}
	cmd := p.Command("podman", args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.enclosure.Dir,
		"CONTAINERS_CONF=" + p.file("containers.conf"), "CONTAINERS_STORAGE_CONF=" + p.file("storage.conf"),
	}
	return cmd
}

// Command returns a command that runs in podman's network and mount namespaces,
// and so sees the cgroups that podman sees. It has the process id of the command
// itself, and / as its working directory.
//
// /run, /var/lib, /var/tmp and /dev/shm are empty there but for what podman and
// the command itself put into them. What still runs there when the test ends is
// killed.
func (p *Podman) Command(name string, args ...string) *exec.Cmd {
	return p.enclosure.Command(name, args...)
}

// Service starts podman's API service, which is off unless somebody asks for it,
// and returns the path of its socket, which is where [Podman.Command] runs. It speaks Docker's API and its own.
func (p *Podman) Service() string {
	p.tb.Helper()
	socket := p.file("sock")
	if p.uid != 0 {
		socket = fmt.Sprintf("/run/user/%d/podman/podman.sock", p.uid)
	}
	service := p.Client("system", "service", "--time", "0", "unix://"+socket)
	log := nettest.Must(os.Create(p.file("service.log")))(p.tb)
	defer log.Close()
	service.Stdout, service.Stderr = log, log
	if err := service.Start(); err != nil {
		p.tb.Fatalf("start podman's service: %v", err)
	}
	p.tb.Cleanup(func() {
		_ = service.Process.Kill()
		_ = service.Wait() // killed: expected
	})
	p.enclosure.Await(func() error {
		c, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root%s", p.enclosure.PID(), socket))
		if err != nil {
			return fmt.Errorf("%w: %s", err, enclosure.Tail(log.Name()))
		}
		return c.Close()
	})
	return socket
}
