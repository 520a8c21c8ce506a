// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// within is a place where commands run with some capabilities at most.
type within struct {
	place
	bounding string // as setpriv has it
}

func (w within) Command(name string, args ...string) *exec.Cmd {
	return w.place.Command("setpriv", append([]string{"--bounding-set=" + w.bounding, "--", name}, args...)...)
}

// unitCapabilities returns those of the systemd unit that users copy, as setpriv has them.
func unitCapabilities(t testing.TB) string {
	t.Helper()
	unit := string(nettest.Must(os.ReadFile("../../configs/nettally.service"))(t))
	_, list, _ := strings.Cut(unit, "\nCapabilityBoundingSet=")
	list, _, _ = strings.Cut(list, "\n")
	bounding := "-all"
	for name := range strings.FieldsSeq(list) {
		bounding += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	if !strings.Contains(bounding, "+sys_ptrace") {
		t.Fatalf("capabilities of the unit: %s", bounding)
	}
	return bounding
}

// A user makes cgroup directories that nobody can look at: too deep, with names that make a
// path too long, closed to others. It costs nobody else anything, whatever the daemon may do.
func TestHostileCgroups(t *testing.T) {
	need.Root(t)
	need.Commands(t, "setpriv", "find")
	unit := unitCapabilities(t)
	const opens = ",+dac_read_search"
	for name, bounding := range map[string]string{
		"as root": "+all", "as the unit": unit, "without CAP_DAC_READ_SEARCH": strings.Replace(unit, opens, "", 1),
		"by /proc": "-all",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSiege(t, bounding)
			s.sees = bounding == "+all" || strings.Contains(bounding, opens)
			s.proc = bounding == "-all"
			s.run()
		})
	}
}

// siege is a daemon, a victim, and an attacker with a cgroup of his own.
type siege struct {
	t        *testing.T
	host     *testnet.Namespace
	peer     *testnet.Agent
	attacker *attacker
	d        *daemon
	sees     bool     // the daemon may read every directory
	proc     bool     // it may load no programs
	cgroup   string   // the attacker's, in each hierarchy
	dirs     []string // its directories
	watched  string   // the one in the hierarchy that is watched
	begin    func() *daemon

	victim, hidden *testnet.Container
}

func newSiege(t *testing.T, bounding string) *siege {
	t.Helper()
	host := nettest.Host(t)
	s := &siege{t: t, host: host, peer: nettest.Agent(t, host), attacker: newAttacker(t, on{host})}
	parent := fmt.Sprintf("/nettally-hostile-%d", os.Getpid())
	t.Cleanup(func() {
		for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
			_ = unix.Rmdir(filepath.Join(root, parent))
		}
	})
	s.dirs = s.attacker.delegate(parent)
	s.cgroup = fmt.Sprintf("%s/delegated-%d", parent, s.attacker.uid)
	s.watched = nettest.Must(watchedRoot())(t) + s.cgroup
	include := fmt.Sprintf("/nettally-testnet-%d/*", os.Getpid())
	s.begin = func() *daemon {
		d := startDaemon(t, within{on{host}, bounding}, fmt.Sprintf("watch: {reconcile: 1s, include: [%q, %q]}", include, s.cgroup+"/*"))
		t.Cleanup(func() { d.at = on{host} }) // detach needs all capabilities
		return d
	}
	return s
}

// container makes a container, in a cgroup of the attacker's if that is not "".
func (s *siege) container(below string) *testnet.Container {
	s.t.Helper()
	return s.containerWith(testnet.ContainerOptions{LikeDocker: true}, below)
}

func (s *siege) containerWith(o testnet.ContainerOptions, below string) *testnet.Container {
	s.t.Helper()
	if below != "" {
		o.ID = fmt.Sprintf("%064x", lives.Add(1))
		o.Cgroup = s.cgroup + "/" + below + "/" + o.ID
	}
	return nettest.Container(s.t, s.host, o)
}

// attack makes the directories, with a prefix to their names.
func (s *siege) attack(prefix string) {
	s.t.Helper()
	const script = `
		nest() { # name, levels
			i=0; while [ $i -lt $2 ]; do mkdir "$1" && cd -P "./$1" || exit 1; i=$((i+1)); done
		}
		for dir in "$@"; do
			(cd "$dir" && nest $PREFIX$(printf %240s | tr ' ' n) 18) || exit 1
			(cd "$dir" && nest ${PREFIX}d 60) || exit 1
			mkdir -p "$dir/${PREFIX}private/sub" && chmod 700 "$dir/${PREFIX}private" || exit 1
		done
		cd "$WATCHED" && i=0
		while [ $i -lt 300 ]; do mkdir -m 700 ${PREFIX}closed$i ${PREFIX}closed$i/sub || exit 1; i=$((i+1)); done`
	s.attacker.run("env", append([]string{"PREFIX=" + prefix, "WATCHED=" + s.watched, "sh", "-c", script, "sh"}, s.dirs...)...)
}

func (s *siege) run() {
	s.victim = s.container("")
	s.d = s.begin()
	s.d.counted(s.id(s.victim), 1)
	before := s.d.weigh("before")
	s.d.stop()

	s.attack("early")
	s.hidden = s.container("earlyprivate/sub")
	s.d.start()
	s.d.counted(s.id(s.victim), 1)
	s.exact(s.victim)
	s.sight(s.hidden)
	s.told("early")
	s.d.weigh("beside the first attack").grewBy(s.t, before, 32<<20, 32)

	s.attack("late")
	s.exact(s.victim)
	later := s.container("")
	s.d.counted(s.id(later), 1)
	s.exact(later)
	s.sight(s.container("lateprivate"))
	own := s.container("open")
	s.d.counted(s.id(own), 1)
	if err := own.Close(); err != nil {
		s.t.Error(err)
	}
	s.stopped(s.id(own))
	s.told("late")
	s.d.weigh("beside both").grewBy(s.t, before, 32<<20, 32)

	if !s.proc { // what can't be read can't be counted by /proc
		s.survives("700")
		s.survives("711")
	}
	s.heals()
	s.exact(s.victim)
	s.exact(later)
	s.d.weigh("afterwards").grewBy(s.t, before, 32<<20, 32)
}

// id is what the daemon calls a container: those in the attacker's cgroup are the attacker's.
func (s *siege) id(c *testnet.Container) string {
	if strings.HasPrefix(c.Cgroup, s.cgroup+"/") {
		return fmt.Sprintf("%d~%s", s.attacker.uid, c.ID)
	}
	return c.ID
}

// exact has a container and the host send to each other, and compares what is told with
// the kernel's own counters.
func (s *siege) exact(c *testnet.Container) {
	s.t.Helper()
	nic := c.Interfaces[0]
	for from, to := range map[*testnet.Agent]*testnet.Agent{c.Agent: s.peer, s.peer: c.Agent} {
		ip := nic.HostIPv4
		if to == c.Agent {
			ip = nic.IPv4
		}
		sink := nettest.Must(to.Listen("udp", ip))(s.t)
		if err := from.SendUDP(sink.Addr, 200, 100); err != nil {
			s.t.Fatal(err)
		}
		nettest.Must(sink.Received(200))(s.t)
	}
	s.d.poll("equal to the kernel", func() error {
		_, err := s.d.get("/readyz")
		found, missing := s.d.container(s.id(c))
		if err := errors.Join(err, missing); err != nil {
			return err
		}
		kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(s.t)["eth0"]
		if diff := cmp.Diff(kernel, interfaceCounters(found)); diff != "" {
			return fmt.Errorf("(-kernel +nettally):\n%s", diff)
		}
		return nil
	})
}

// sight expects a container in a closed directory to be counted as any other, or to be out
// of sight and its veth nobody's.
func (s *siege) sight(c *testnet.Container) {
	s.t.Helper()
	if s.sees {
		s.d.counted(s.id(c), 1)
		s.exact(c)
		return
	}
	if _, err := s.d.container(s.id(c)); err == nil {
		s.t.Errorf("container %s is in sight", c.Cgroup)
	}
	if s.proc {
		return // there every interface that is counted is a container's
	}
	s.d.poll("nobody's", func() error {
		var all exporter.Containers
		if err := json.Unmarshal([]byte(nettest.Must(s.d.get("/api/v1/containers?all=true"))(s.t)), &all); err != nil {
			return err
		}
		for _, i := range all.Unowned {
			if i.HostInterface == c.Interfaces[0].HostName {
				return nil
			}
		}
		return fmt.Errorf("%d interfaces of nobody's, and not %s", len(all.Unowned), c.Interfaces[0].HostName)
	})
}

// told expects the log, the metrics and `check` to say what can't be read.
func (s *siege) told(prefix string) {
	s.t.Helper()
	want := 2.0 // in the hierarchy that is watched: too deep, and too long
	if !s.sees {
		want += 301
	}
	s.d.poll("told", func() error {
		if n := s.d.metric("nettally_watch_skipped_directories"); n < want || s.d.metric("nettally_watch_errors_total") < n {
			return fmt.Errorf("%v directories are skipped, want %v", n, want)
		}
		return nil
	})
	if n := s.d.metric("nettally_watch_degraded"); n != 0 {
		s.t.Error("events count as missing")
	}
	out, err := s.d.run("check")
	says := "more than 32 levels deep"
	if !s.sees {
		says = "no CAP_DAC_READ_SEARCH"
	}
	if err != nil || !strings.Contains(out, "warning  cgroups.read") || !strings.Contains(out, says) {
		s.t.Errorf("check beside the %s attack: %v:\n%s", prefix, err, out)
	}
	if n := strings.Count(s.d.log.String(), "cannot be read"); n == 0 || n > 70 {
		s.t.Errorf("%d lines in the log about what can't be read", n)
	}
}

// survives closes a directory with a container that is known, and starts the daemon again:
// the container stays, with its numbers, until its directory has gone.
func (s *siege) survives(mode string) {
	s.t.Helper()
	s.attacker.run("mkdir", append([]string{"-p"}, s.in("closing/other")...)...)
	known, onHost := s.container("closing"), s.containerWith(testnet.ContainerOptions{Join: s.host}, "closing")
	s.d.counted(s.id(known), 1)
	s.sends(onHost, 200)
	s.attacker.run("chmod", append([]string{mode}, s.in("closing")...)...)
	s.exact(known)
	s.d.stop()
	s.d.start()
	s.exact(known)
	s.d.counted(s.id(known), 1)
	s.sends(onHost, 400)
	s.exact(s.victim)
	if err := onHost.Close(); err != nil {
		s.t.Error(err)
	}
	if err := known.Close(); err != nil {
		s.t.Error(err)
	}
	if c := nettest.Must(s.d.container(s.id(known)))(s.t); !s.sees && mode == "700" && c.State != "running" {
		s.t.Errorf("the kernel says nothing, and the container is %s", c.State)
	}
	s.attacker.run("find", append(s.in("closing"), "-depth", "-type", "d", "-delete")...)
	s.stopped(s.id(known))
}

// sends has a container on the host's network send 200 datagrams to the victim, and expects
// its cgroup to have sent so many in all.
func (s *siege) sends(c *testnet.Container, total uint64) {
	s.t.Helper()
	sink := nettest.Must(s.victim.Listen("udp", s.victim.Interfaces[0].IPv4))(s.t)
	s.d.poll("counted by its cgroup", func() error {
		found, err := s.d.container(s.id(c))
		if err == nil && (found.IP == nil || found.NetworkMode != "host" && found.Reason != "host_network") {
			err = fmt.Errorf("container is %s, by its cgroup %v", found.Reason, found.IP)
		}
		return err
	})
	if err := c.SendUDP(sink.Addr, 200, 100); err != nil {
		s.t.Fatal(err)
	}
	nettest.Must(sink.Received(200))(s.t)
	s.d.poll("exact by its cgroup", func() error {
		found, err := s.d.container(s.id(c))
		if err == nil && found.IP.Transmit.Packets != total {
			err = fmt.Errorf("%d packets of %d", found.IP.Transmit.Packets, total)
		}
		return err
	})
}

// heals opens what was closed and removes the rest: all is seen again.
func (s *siege) heals() {
	s.t.Helper()
	s.attacker.run("chmod", append([]string{"755"}, s.in("earlyprivate")...)...)
	s.d.counted(s.id(s.hidden), 1)
	s.exact(s.hidden)
	for _, dir := range s.dirs {
		for _, name := range []string{"earlyn", "earlyd", "earlyc", "laten", "lated", "latec"} {
			s.attacker.run("find", dir, "-depth", "-path", dir+"/"+name+"*", "-type", "d", "-delete")
		}
		s.attacker.run("chmod", "755", dir+"/lateprivate")
	}
	s.d.poll("in sight again", func() error {
		out, err := s.d.run("check")
		if err != nil || strings.Contains(out, s.cgroup) {
			return fmt.Errorf("check: %w:\n%s", err, out)
		}
		return nil
	})
}

func (s *siege) in(name string) (all []string) {
	for _, dir := range s.dirs {
		all = append(all, dir+"/"+name)
	}
	return all
}

func (s *siege) stopped(id string) {
	s.t.Helper()
	s.d.poll("stopped", func() error {
		c, err := s.d.container(id)
		if err == nil && c.State != "stopped" {
			err = fmt.Errorf("container is %s", c.State)
		}
		return err
	})
}
