// SPDX-License-Identifier: Apache-2.0

// Package enclosure runs a container runtime where nothing else sees it, for
// packages dockerhost, crihost and podmanhost.
//
// A script runs in a network namespace and a mount namespace that nobody else is
// in, starts what the runtime needs, and waits. It ends the rest of the
// enclosure, and removes its cgroups, when the test ends or dies: the test holds
// the other end of its standard input.
package enclosure

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Patience bounds what should happen within a second or two, on a machine that
// has other things to do.
const Patience = 2 * time.Minute

// Enclosure is the namespaces, the script that runs in them, and a cgroup for
// all of its containers. Its methods fail the test if they do not succeed.
type Enclosure struct {
	// Namespace is the host of the containers.
	Namespace *testnet.Namespace
	// Dir is a directory that is the same inside and outside. Its path is short
	// enough for a socket in it.
	Dir string
	// Cgroup is a path in the hierarchies that no other enclosure has. What is
	// below it is killed and removed at the end.
	Cgroup string

	tb    testing.TB
	name  string
	cmd   *exec.Cmd
	alive *os.File // the script ends when it is closed
	ended chan struct{}
	err   error // after ended
}

var made atomic.Uint32

// New makes an enclosure in which nothing runs yet. Its name says what is to
// run there, in messages and in its cgroup. Requires root.
func New(tb testing.TB, name string) *Enclosure {
	tb.Helper()
	need.Root(tb)
	need.Commands(tb, "busybox", "nsenter", "go")
	return &Enclosure{
		Namespace: nettest.Host(tb),
		Dir:       shortDir(tb),
		Cgroup:    fmt.Sprintf("/nettally-test-%s-%d-%d", name, os.Getpid(), made.Add(1)),
		tb:        tb, name: name, ended: make(chan struct{}),
	}
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

//go:embed enclosure.sh
var functions string

// Start starts the script. It finds the directory in $dir, the cgroup in
// $parent, the arguments in $1 and so on, and the functions of enclosure.sh,
// with which it ends.
func (e *Enclosure) Start(script string, args ...string) {
	e.tb.Helper()
	// A pipe by hand: exec.Cmd would close its own at Wait.
	stdin, alive, err := os.Pipe()
	if err != nil {
		e.tb.Fatal(err)
	}
	defer stdin.Close()
	log := nettest.Must(os.Create(filepath.Join(e.Dir, "log")))(e.tb)
	defer log.Close()
	e.cmd = exec.Command("sh", append([]string{"-c", functions + script, e.name, e.Dir, e.Cgroup}, args...)...)
	e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = stdin, log, log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS, // made private by package syscall
		Setsid:       true,                // ^C is for the test, which ends the script
	}
	if err := e.Namespace.Start(e.cmd); err != nil {
		_ = alive.Close()
		e.tb.Fatalf("start %s: %v", e.name, err)
	}
	e.alive = alive
	go func() { // End waits for it
		e.err = e.cmd.Wait()
		close(e.ended)
	}()
}

// Await waits until ready returns nil.
func (e *Enclosure) Await(ready func() error) {
	e.tb.Helper()
	for deadline := time.Now().Add(Patience); ; time.Sleep(20 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-e.ended:
			e.tb.Fatalf("%s ended: %v:\n%s", e.name, e.err, e.log())
		default:
		}
		if time.Now().After(deadline) {
			e.tb.Fatalf("%s is not ready: %v\n%s", e.name, err, e.log())
		}
	}
}

// End has the script take everything away, and waits for it.
func (e *Enclosure) End() {
	e.tb.Helper()
	_ = e.alive.Close()
	select {
	case <-e.ended:
	case <-time.After(Patience):
		_ = e.cmd.Process.Kill()
		e.tb.Errorf("%s does not end", e.name)
		<-e.ended
	}
	if e.err != nil {
		e.tb.Errorf("end %s: %v", e.name, e.err)
	}
	if e.tb.Failed() {
		e.tb.Logf("the end of %s's log:\n%s", e.name, e.log())
	}
}

// Orphan has the script believe that the test has died, and waits until it has
// taken everything away. For tests of that.
func (e *Enclosure) Orphan() {
	_ = e.alive.Close()
	<-e.ended
}

// Crash kills a process that the script waits for, and waits until the script
// has taken the rest away. For tests of that.
func (e *Enclosure) Crash(pid int) {
	_ = syscall.Kill(pid, syscall.SIGKILL)
	<-e.ended
	var exit *exec.ExitError
	if errors.As(e.err, &exit) && exit.ExitCode() == 128+int(syscall.SIGKILL) {
		e.err = nil // it says how its process ended
	}
}

// PID returns the process id of the script.
func (e *Enclosure) PID() int { return e.cmd.Process.Pid }

// log returns the end of what the script and its processes print.
func (e *Enclosure) log() string { return Tail(filepath.Join(e.Dir, "log")) }

// Tail returns the end of a file, or why there is none.
func Tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const limit = 4000
	return string(data[max(0, len(data)-limit):])
}

// Command returns a command that runs in the enclosure's network and mount
// namespaces. It has the process id of the command itself, and / as its working
// directory. What still runs there when the test ends is killed.
func (e *Enclosure) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{
		fmt.Sprintf("--mount=/proc/%d/ns/mnt", e.PID()), "--net=" + e.Namespace.Path(), "--", name,
	}, args...)...)
}
