// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Containers whose first act is to send 1,000 datagrams, and who end then: each one is
// reported with exactly what the kernel's counters said at its end, one after another and
// ten at a time. (With ten at a time the kernel drops some before the interface, which
// has to learn the gateway's address first.)
func TestShortLived(t *testing.T) {
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	docker.NetworkCreate("plain", "--subnet", "10.233.0.0/24", "--gateway", "10.233.0.1")
	d := startDaemon(t, docker, onlyDocker(docker))
	sink := nettest.Must(nettest.Agent(t, docker.Namespace).Listen("udp", netip.MustParseAddr("10.233.0.1")))(t)
	order := fmt.Sprintf(`{"verb":"sendudp","addr":"%s","count":1000,"size":100}`, sink.Addr)
	act := fmt.Sprintf("{ echo '%s'; sleep 0.05; } | /agent >/dev/null; grep eth0: /proc/net/dev", order)

	sent := map[string]exporter.Volume{} // by the container's name, as the kernel says
	var mu sync.Mutex
	for _, atOnce := range []int{1, 10} {
		var group errgroup.Group
		group.SetLimit(atOnce)
		for n := range 30 {
			name := fmt.Sprintf("short-%d-%d", atOnce, n)
			group.Go(func() error {
				said, err := docker.Client("run", "--name", name, "--network", "plain", dockerhost.Image, "sh", "-c", act).Output()
				if err != nil {
					return whatItSaid(err)
				}
				mu.Lock()
				defer mu.Unlock()
				sent[name], err = transmitted(string(said))
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
	}

	d.poll("all stopped", func() error {
		stopped := 0
		for _, c := range d.list().Containers {
			if c.State == "stopped" {
				stopped++
			}
		}
		if stopped != len(sent) {
			return fmt.Errorf("%d of %d", stopped, len(sent))
		}
		return nil
	})
	whole := 0
	for _, c := range d.list().Containers {
		got := exporter.Volume{Bytes: c.Transmit.InterfaceBytes, Packets: c.Transmit.InterfacePackets}
		if !c.Accounted || got != sent[c.Name] {
			t.Errorf("%s (accounted %v %s): transmitted %+v, the kernel says %+v", c.Name, c.Accounted, c.Reason, got, sent[c.Name])
		}
		if c.Transmit.Protocols.UDP.Packets == 1000 {
			whole++
		}
	}
	if whole < 30 {
		t.Errorf("%d of %d containers got all their datagrams out: is this a test of anything?", whole, len(sent))
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
