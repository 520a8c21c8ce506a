// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// attacker is a local user without privileges, with a uid that nobody else has.
type attacker struct {
	t   testing.TB
	at  place
	uid int
}

// The uids of attackers. No Debian or Ubuntu account is in this range.
const firstAttacker = 61_300

var attackers atomic.Int32

func newAttacker(t testing.TB, at place) *attacker {
	t.Helper()
	need.Root(t)
	need.Commands(t, "setpriv", "find")
	return &attacker{t: t, at: at, uid: firstAttacker + int(attackers.Add(1))}
}

// Command is a command of the attacker: without a group, a capability, or a way to get one.
func (a *attacker) Command(name string, args ...string) *exec.Cmd {
	id := strconv.Itoa(a.uid)
	return a.at.Command("setpriv", append([]string{"--reuid", id, "--regid", id, "--clear-groups",
		"--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--", name}, args...)...)
}

// run runs a command of the attacker, which must succeed, and returns its output.
func (a *attacker) run(name string, args ...string) string {
	a.t.Helper()
	out, err := a.Command(name, args...).CombinedOutput()
	if err != nil {
		a.t.Fatalf("%s: %v: %s", name, err, out)
	}
	return strings.TrimSpace(string(out))
}

// delegate gives the attacker a cgroup, as systemd does for every user session. It
// returns its directory in each hierarchy.
func (a *attacker) delegate(parent string) (dirs []string) {
	a.t.Helper()
	cgroup := filepath.Join(parent, fmt.Sprintf("delegated-%d", a.uid))
	for _, root := range nettest.Must(testnet.CgroupRoots())(a.t) {
		dir := filepath.Join(root, cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			a.t.Fatal(err)
		}
		a.t.Cleanup(func() { removeTree(a.t, dir) })
		for _, name := range []string{"", "cgroup.procs"} {
			if err := os.Chown(filepath.Join(dir, name), a.uid, a.uid); err != nil {
				a.t.Fatal(err)
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// removeTree removes a cgroup and all below it, however deep: its path may be longer than
// the kernel takes in one piece.
func removeTree(t testing.TB, dir string) {
	t.Helper()
	if out, err := exec.Command("find", dir, "-depth", "-type", "d", "-delete").CombinedOutput(); err != nil {
		t.Errorf("remove %s: %v: %s", dir, err, out)
	}
}

// weight is how heavy a daemon is.
type weight struct {
	resident    int // bytes
	descriptors int
	scrape      time.Duration // for a report; how fast a machine is, no test may say
}

// weigh measures the daemon, and says so in the log of the test.
func (d *daemon) weigh(when string) weight {
	d.t.Helper()
	began := time.Now()
	if _, err := d.get("/metrics"); err != nil {
		d.t.Errorf("scrape %s: %v", when, err)
	}
	w := weight{scrape: time.Since(began)}
	proc := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	w.descriptors = len(nettest.Must(os.ReadDir(proc + "fd"))(d.t))
	status := nettest.Must(os.ReadFile(proc + "status"))(d.t)
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	w.resident = nettest.Must(strconv.Atoi(strings.Fields(after)[0]))(d.t) << 10
	d.t.Logf("%s: %.1f MiB resident, %d descriptors, a scrape in %.1f ms",
		when, float64(w.resident)/(1<<20), w.descriptors, w.scrape.Seconds()*1e3)
	return w
}

// grewBy expects the daemon to have become no heavier than by so much.
func (w weight) grewBy(t testing.TB, before weight, resident, descriptors int) {
	t.Helper()
	if grown := w.resident - before.resident; grown > resident {
		t.Errorf("%d bytes more are resident, and %d are allowed", grown, resident)
	}
	if grown := w.descriptors - before.descriptors; grown > descriptors {
		t.Errorf("%d descriptors more are open, and %d are allowed", grown, descriptors)
	}
}
