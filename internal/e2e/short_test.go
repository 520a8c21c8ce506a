// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Containers whose first act is to send 1,000 datagrams, and who end when these are out:
// each one is reported with exactly those, one after another and ten at a time, though
// nettally is killed between them.
func TestShortLived(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	docker.NetworkCreate("plain", "--subnet", "10.233.0.0/24", "--gateway", "10.233.0.1")
	d := startDaemon(t, docker, onlyDocker(docker))
	sink := nettest.Must(nettest.Agent(t, docker.Namespace).Listen("udp", netip.MustParseAddr("10.233.0.1")))(t)
	s := &shortLives{t: t, docker: docker, d: d, sink: sink.Addr, ids: t.TempDir(), sent: map[string]exporter.Volume{}}
	for i, atOnce := range []int{1, 1, 10, 10} {
		s.run(fmt.Sprintf("batch%d", i), 50, atOnce)
		s.check()
		d.kill()
		d.start()
		s.check()
	}
}

const (
	datagrams    = 1000
	datagramSize = 100
)

// firstAct sends as its first act. The agent ends with its orders, even in the middle of
// one, so they stay open until it has answered. The container stays until the interface
// has what was sent: the rest may wait for the gateway's address.
const firstAct = `mkfifo /tmp/orders && /agent </tmp/orders | {
	exec 3>/tmp/orders
	echo "$0" >&3
	read -r reply
	[ "$reply" = "{}" ]
} && for try in $(seq 60000); do
	[ "$(cat /sys/class/net/eth0/statistics/tx_packets)" -gt "$1" ] && break # and a question for the address
	usleep 1000
done
grep eth0: /proc/net/dev`

// shortLives are containers that end as soon as they have sent.
type shortLives struct {
	t      *testing.T
	docker *dockerhost.Docker
	d      *daemon
	sink   netip.AddrPort
	ids    string // a folder with a file per container

	mu   sync.Mutex
	sent map[string]exporter.Volume // by the container's id, as the kernel says
}

// run runs so many containers, some at once.
func (s *shortLives) run(name string, count, atOnce int) {
	s.t.Helper()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for n := range count {
		group.Go(func() error { return s.live(fmt.Sprint(name, "-", n)) })
	}
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shortLives) live(name string) error {
	order := fmt.Sprintf(`{"verb":"sendudp","addr":"%s","count":%d,"size":%d}`, s.sink, datagrams, datagramSize)
	// The kernel drops what waits for the gateway's address beyond this room, or after so many
	// questions, one a second; and Docker's bridge may be slow to pass the question on.
	file := filepath.Join(s.ids, name)
	said, err := s.docker.Client("run", "--cidfile", file, "--name", name, "--network", "plain", "--sysctl", "net.ipv4.neigh.eth0.unres_qlen_bytes=67108864",
		"--sysctl", "net.ipv4.neigh.eth0.mcast_solicit=100",
		dockerhost.Image, "sh", "-c", firstAct, order, fmt.Sprint(datagrams)).Output()
	if err != nil {
		return whatItSaid(err)
	}
	id, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	sent, err := transmitted(string(said))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[strings.TrimSpace(string(id))] = sent
	return err
}

// check expects all that ended to be listed once, with what they sent.
func (s *shortLives) check() {
	s.t.Helper()
	s.d.poll("all stopped", func() error {
		stopped := 0
		for _, c := range s.d.list().Containers {
			if c.State == "stopped" {
				stopped++
			}
		}
		if stopped != len(s.sent) {
			return fmt.Errorf("%d of %d", stopped, len(s.sent))
		}
		return nil
	})
	want := exporter.Volume{Packets: datagrams, Bytes: datagrams * (14 + 20 + 8 + datagramSize)}
	for _, c := range s.d.list().Containers {
		kernel, there := s.sent[c.ID]
		if !there || !c.Accounted || asInterface(c.Transmit) != kernel || c.Transmit.Protocols.UDP != want {
			s.t.Errorf("%s, %s (accounted %v %s): transmitted %+v, the kernel says %+v; UDP %+v, sent %+v; %+v",
				c.Name, c.ID, c.Accounted, c.Reason, asInterface(c.Transmit), kernel, c.Transmit.Protocols.UDP, want, c.Interfaces)
		}
	}
}

// transmitted reads a line of /proc/net/dev, proc_pid_net(5): eight numbers of what was
// received, then bytes and packets transmitted.
func transmitted(line string) (v exporter.Volume, err error) {
	fields := strings.Fields(line)
	if len(fields) < 11 {
		return v, fmt.Errorf("read /proc/net/dev: %q", line)
	}
	_, err = fmt.Sscan(fields[9]+" "+fields[10], &v.Bytes, &v.Packets)
	return v, err
}

// whatItSaid adds to the error of a command what it printed on standard error.
func whatItSaid(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return err
}
