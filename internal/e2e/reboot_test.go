// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
)

// rebooted is a place whose kernel says that it was booted another time.
type rebooted struct {
	place
	bootID string // a file
}

func (r rebooted) Command(name string, args ...string) *exec.Cmd {
	const script = `mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"`
	return r.place.Command("unshare", append([]string{
		"--mount", "--propagation", "private", "sh", "-c", script, "sh", r.bootID, name}, args...)...)
}

// boot returns a place on a host that was booted anew.
func boot(t *testing.T, at place, n int) rebooted {
	t.Helper()
	id := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(id, fmt.Appendf(nil, "00000000-0000-0000-0000-%012d\n", n), 0o600); err != nil {
		t.Fatal(err)
	}
	return rebooted{at, id}
}

// A container goes on from its totals after the host was started again: what the kernel
// knew is gone, and the container has its id. All of that but the kernel's own end is done
// here: the bpffs that nettally mounts goes with its mount namespace.
func TestReboot(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "unshare")
	docker := dockerhost.Start(t, dockerhost.Options{})
	a, b := docker.Run(dockerhost.Image), docker.Run(dockerhost.Image)
	d := startDaemon(t, boot(t, docker, 0), onlyDocker(docker))
	l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}
	for n := range 3 {
		d.counted(a, 1)
		d.counted(b, 1)
		l.exchange(a, b, "eth0", 100)
		l.exchange(b, a, "eth0", 30)

		docker.CLI("stop", "--time", "0", a, b)
		d.stop()
		d.at = boot(t, docker, n+1)
		d.start()
		l.check(a) // from the ledger alone
		l.check(b)
		docker.CLI("start", a, b)
	}
	d.counted(a, 1)
	d.counted(b, 1)
	l.exchange(a, b, "eth0", 10)
}
