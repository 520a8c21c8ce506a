// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"os"
	"os/exec"
)

// Client returns a call of Docker's command line client, which must not look at
// the user's configuration.
func (d *Docker) Client(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.Socket, "DOCKER_CONFIG="+d.enclosure.Dir,
		"DOCKER_CONTEXT=", "DOCKER_TLS_VERIFY=")
	return cmd
}

// Run starts a container with `docker run -d` and returns its full id. Options
// come first, then [Image], and then a command if it is not to wait for its end.
func (d *Docker) Run(args ...string) string {
	d.tb.Helper()
	// Busybox as process 1 takes no notice of SIGTERM, and Docker waits 10 s.
	return d.CLI(append([]string{"run", "-d", "--stop-signal", "SIGKILL"}, args...)...)
}

// Remove kills and removes a container.
func (d *Docker) Remove(id string) {
	d.tb.Helper()
	d.CLI("rm", "-f", "-v", id)
}
