// SPDX-License-Identifier: Apache-2.0

// Package dockerhost gives a test a Docker daemon of its own.
//
// The daemon, its containerd and its shims run in a network namespace and a
// mount namespace that nobody else is in. To its containers that network
// namespace is the host: their veths, bridges and rules are there. Everything
// the daemon stores is on a tmpfs in the mount namespace, so it needs no
// cleaning. A script that started the daemon ends it, and removes its cgroups,
// when the test ends or dies.
//
//	func TestUpload(t *testing.T) {
//		need.Root(t)
//		docker := dockerhost.Start(t, dockerhost.Options{})
//		server, client := docker.Run(dockerhost.Image), docker.Run(dockerhost.Image)
//		sink := nettest.Must(docker.Agent(server).Listen("tcp", docker.IPv4(server, "eth0")))(t)
//		veth := docker.HostVeth(client, "eth0")
//		capture := nettest.StartCapture(t, docker.Namespace, veth)
//		if err := docker.Agent(client).SendTCP(sink.Addr, 1<<20, testnet.Write); err != nil {
//			t.Fatal(err)
//		}
//		got := capture.Count("tcp")
//	}
package dockerhost

import (
	_ "embed"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/enclosure"
	"github.com/nettally/nettally/internal/testnet/need"
)

// Image is the image that Run is given: busybox, and an agent. Its containers
// run until they are stopped, and stop at once.
const Image = "nettally-test"

const patience = enclosure.Patience

// Options say how the daemon is run.
type Options struct {
	// CgroupV2Only mounts the v2 hierarchy alone at /sys/fs/cgroup, as a newer
	// host does, whatever the machine has. Controllers that the machine has bound
	// to v1 are missing, so containers can have no limits.
	CgroupV2Only bool
}

// Docker is a running daemon. Its methods fail the test if they do not succeed.
type Docker struct {
	*enclosure.Engine
	// CgroupParent is the path of the containers' cgroups in the hierarchies:
	// each is at CgroupParent/<id>.
	CgroupParent string
	// Socket is the path of the daemon's API socket.
	Socket string

	tb        testing.TB
	enclosure *enclosure.Enclosure
}

//go:embed daemon.sh
var script string

// Start starts a daemon. Requires root, cgroups, and Docker's programs.
func Start(tb testing.TB, options Options) *Docker {
	tb.Helper()
	need.Commands(tb, "dockerd", "containerd", "runc", "docker", "iptables")
	e := enclosure.New(tb, "docker")
	d := &Docker{CgroupParent: e.Cgroup, Socket: filepath.Join(e.Dir, "sock"), tb: tb, enclosure: e}
	d.Engine = e.Engine(d.Client)
	e.Start(script, fmt.Sprint(options.CgroupV2Only))
	tb.Cleanup(d.stop)
	e.Await(func() error {
		if out, err := d.Client("version").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	d.Import(Image)
	return d
}

// stop removes the containers that run, which takes their veths and cgroups off in good
// order, and ends the rest.
func (d *Docker) stop() {
	d.tb.Helper()
	if out, err := d.Client("ps", "-q").Output(); err == nil && len(out) > 0 {
		args := append([]string{"rm", "-f", "-v"}, strings.Fields(string(out))...)
		if out, err := d.Client(args...).CombinedOutput(); err != nil {
			d.tb.Errorf("remove containers: %v: %s", err, out)
		}
	}
	d.enclosure.End()
}

// Command returns a command that runs in the daemon's network and mount
// namespaces, and so sees the cgroups that the daemon sees. It has the process
// id of the command itself, and / as its working directory.
//
// The /run there is empty and its own. What still runs there when the test ends
// is killed.
func (d *Docker) Command(name string, args ...string) *exec.Cmd {
	return d.enclosure.Command(name, args...)
}
