// SPDX-License-Identifier: Apache-2.0

package podmanhost

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/nettally/nettally/internal/testnet/enclosure"
	"github.com/nettally/nettally/internal/testnet/need"
)

//go:embed rootless.sh
var rootlessScript string

// rootlessConfig has networks, cgroups and limits as podman itself chooses them for a user.
const rootlessConfig = `[engine]
cgroup_manager = "systemd"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
[containers]
log_driver = "k8s-file"
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

// A kernel before 6.6 has no overlay of a user's on a tmpfs.
const rootlessStorage = `[storage]
driver = "vfs"
`

// StartRootless makes a place where a user who has no account on the machine runs podman.
//
// It is what a session of a user is with systemd: podman runs in a cgroup that is the user's,
// beside a service manager of the user's (systemd --user), which makes the cgroups of
// containers and pods, below CgroupParent: libpod-<id>.scope. Cgroup v2 is alone there. With
// version 1, or both, podman leaves a user's containers in its own cgroup.
//
// A user's containers are no bridge's: slirp4netns carries their packets, and connects from
// the network namespace that is the host. Requires root.
func StartRootless(tb testing.TB, uid int) *Podman {
	tb.Helper()
	need.Commands(tb, "podman", "conmon", "runc", "slirp4netns", "newuidmap", "newgidmap", "setpriv",
		"/lib/systemd/systemd", "busctl", "dbus-daemon")
	need.Files(tb, "/usr/lib/systemd/user/dbus.socket")
	e := enclosure.New(tb, "rootless")
	e.Cgroup += ".slice" // or systemd does not see that what is below is a user's
	p := &Podman{uid: uid, tb: tb, enclosure: e}
	p.CgroupParent = p.userService() + "/user.slice"
	p.Engine = e.Engine(p.Client)
	p.configure(rootlessConfig, rootlessStorage)
	e.Start(rootlessScript, strconv.Itoa(uid))
	tb.Cleanup(p.stop)
	e.Await(func() error {
		_, err := os.Stat(p.file("ready"))
		return err
	})
	p.Import(Image)
	return p
}

// userService is the cgroup that is the user's.
func (p *Podman) userService() string {
	return fmt.Sprintf("%s/user.slice/user-%d.slice/user@%[2]d.service", p.enclosure.Cgroup, p.uid)
}

// userCommand returns a command of the user's, in the user's cgroup.
func (p *Podman) userCommand(name string, args ...string) *exec.Cmd {
	id := strconv.Itoa(p.uid)
	cmd := p.Command("sh", append([]string{
		"-c", `echo $$ >"$0"; exec "$@"`, "/sys/fs/cgroup" + p.userService() + "/init.scope/cgroup.procs",
		"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "--", name,
	}, args...)...)
	session := "/run/user/" + id
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/var/lib/user", "XDG_RUNTIME_DIR=" + session,
		"DBUS_SESSION_BUS_ADDRESS=unix:path=" + session + "/bus",
	}
	return cmd
}
