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
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Image is the image that Run is given: busybox, and an agent. Its containers
// run until they are stopped, and stop at once.
const Image = "nettally-test"

// patience bounds what should happen within a second or two, on a machine that
// has other things to do.
const patience = 60 * time.Second

// Options say how the daemon is run.
type Options struct {
	// CgroupV2Only mounts the v2 hierarchy alone at /sys/fs/cgroup, as a newer
	// host does, whatever the machine has. Controllers that the machine has bound
	// to v1 are missing, so containers can have no limits.
	CgroupV2Only bool
}

// Docker is a running daemon. Its methods fail the test if they do not succeed.
type Docker struct {
	// Namespace is the host of the containers.
	Namespace *testnet.Namespace
	// CgroupParent is the path of the containers' cgroups in the hierarchies:
	// each is at CgroupParent/<id>.
	CgroupParent string
	// Socket is the path of the daemon's API socket.
	Socket string

	tb     testing.TB
	dir    string
	daemon *daemon
}

var started atomic.Uint32

// Start starts a daemon. Requires root, cgroups, and Docker's programs.
func Start(tb testing.TB, options Options) *Docker {
	tb.Helper()
	need.Root(tb)
	need.Commands(tb, "dockerd", "containerd", "runc", "docker", "iptables", "busybox", "nsenter", "go")
	host := nettest.Host(tb)
	dir := shortDir(tb)
	d := &Docker{
		Namespace:    host,
		CgroupParent: fmt.Sprintf("/nettally-test-%d-%d", os.Getpid(), started.Add(1)),
		Socket:       filepath.Join(dir, "sock"),
		tb:           tb, dir: dir,
	}
	d.daemon = startDaemon(tb, d, options)
	tb.Cleanup(d.stop)
	d.await()
	d.importImage()
	return d
}

// shortDir is a directory whose path leaves room for a socket's name, which
// tb.TempDir's does not: 108 bytes are all there is.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir := nettest.Must(os.MkdirTemp("", "nettally-"))(tb)
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// daemon is the script with the daemon below it.
type daemon struct {
	cmd   *exec.Cmd
	alive *os.File // the script ends when it is closed
	ended chan struct{}
	err   error // after ended
}

//go:embed daemon.sh
var script string

func startDaemon(tb testing.TB, d *Docker, options Options) *daemon {
	tb.Helper()
	// A pipe by hand: exec.Cmd would close its own at Wait.
	stdin, alive := pipe(tb)
	defer stdin.Close()
	log := nettest.Must(os.Create(filepath.Join(d.dir, "log")))(tb)
	defer log.Close()
	cmd := exec.Command("sh", "-c", script, "dockerd", d.dir, d.CgroupParent, fmt.Sprint(options.CgroupV2Only))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS, // made private by package syscall
		Setsid:       true,                // ^C is for the test, which ends the script
	}
	if err := d.Namespace.Start(cmd); err != nil {
		tb.Fatalf("start dockerd: %v", err)
	}
	run := &daemon{cmd: cmd, alive: alive, ended: make(chan struct{})}
	go func() {
		run.err = cmd.Wait()
		close(run.ended)
	}()
	return run
}

func pipe(tb testing.TB) (r, w *os.File) {
	tb.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	return r, w
}

// await waits until the daemon answers.
func (d *Docker) await() {
	d.tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := d.Client("version").CombinedOutput()
		if err == nil {
			return
		}
		select {
		case <-d.daemon.ended:
			d.tb.Fatalf("dockerd ended: %v:\n%s", d.daemon.err, d.log())
		default:
		}
		if time.Now().After(deadline) {
			d.tb.Fatalf("dockerd does not answer: %v: %s\n%s", err, out, d.log())
		}
	}
}

// log returns the end of the daemon's log.
func (d *Docker) log() string {
	data, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil {
		return err.Error()
	}
	const limit = 4000
	return string(data[max(0, len(data)-limit):])
}

// stop removes the containers, which takes their veths and cgroups off in good
// order, and has the script end the rest.
func (d *Docker) stop() {
	d.tb.Helper()
	if out, err := d.Client("ps", "-aq").Output(); err == nil && len(out) > 0 {
		args := append([]string{"rm", "-f", "-v"}, strings.Fields(string(out))...)
		if out, err := d.Client(args...).CombinedOutput(); err != nil {
			d.tb.Errorf("remove containers: %v: %s", err, out)
		}
	}
	_ = d.daemon.alive.Close()
	select {
	case <-d.daemon.ended:
	case <-time.After(patience):
		_ = d.daemon.cmd.Process.Kill()
		d.tb.Error("dockerd does not end")
		<-d.daemon.ended
	}
	if d.daemon.err != nil {
		d.tb.Errorf("end dockerd: %v", d.daemon.err)
	}
	if d.tb.Failed() {
		d.tb.Logf("the end of dockerd's log:\n%s", d.log())
	}
}

// Command returns a command that runs in the daemon's network and mount
// namespaces, and so sees the cgroups that the daemon sees. It has the process
// id of the command itself, and / as its working directory.
//
// The /run there is empty and its own. What still runs there when the test ends
// is killed.
func (d *Docker) Command(name string, args ...string) *exec.Cmd {
	pid := d.daemon.cmd.Process.Pid
	return exec.Command("nsenter", append([]string{
		fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid), "--net=" + d.Namespace.Path(), "--", name,
	}, args...)...)
}
