// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// TestConntrack counts connections of Docker's containers from the first on, and tells
// nothing of those that have no address of their own.
func TestConntrack(t *testing.T) {
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	p := startPair(t, docker, startDaemon(t, docker, "accounting: {conntrack: on}\n"+onlyDocker(docker)))
	onHost := docker.Run("--name", "agent", "--network", "host", dockerhost.Image)

	const received, sent = 40, 15
	p.connect(t, p.clientAgent, netip.MustParseAddrPort("10.232.0.1:9"), testnet.Connects{Refused: sent})
	to := nettest.Must(p.serverAgent.Listen("tcp", p.addresses()["IPv4"]))(t).Addr
	var held net.Conn // so that the server has an entry for as long as this takes
	err := docker.Namespace.Do(func() (err error) {
		if err = dialAll(to, received-1); err == nil {
			held, err = net.Dial("tcp", to.String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	// Docker's rules for its DNS server make a container of this network track by itself.
	const within = 7
	self := nettest.Must(p.clientAgent.Listen("tcp", netip.MustParseAddr("127.0.0.1")))(t).Addr
	p.connect(t, p.clientAgent, self, testnet.Connects{Connected: within})
	p.daemon.poll("all are counted", func() error {
		client, err := p.daemon.container(p.client)
		if err != nil {
			return err
		}
		server, err := p.daemon.container(p.server)
		if err != nil {
			return err
		}
		if client.Conntrack == nil || server.Conntrack == nil {
			return fmt.Errorf("not known: %v, %v", client.Conntrack, server.Conntrack)
		}
		if c := client.Conntrack.Transmit.TCP; c.Opened == nil || *c.Opened != sent+within {
			return fmt.Errorf("client %s", said(c))
		}
		if c := client.Conntrack.Receive.TCP; c.Opened == nil || *c.Opened != within {
			return fmt.Errorf("client within %s", said(c))
		}
		if c := server.Conntrack.Receive.TCP; c.Opened == nil || *c.Opened != received || c.Other == nil {
			return fmt.Errorf("server %s", said(c))
		}
		return nil
	})
	if c := nettest.Must(p.daemon.container(onHost))(t); c.Conntrack != nil {
		t.Errorf("a container on the host's network: %+v", c.Conntrack)
	}
	// The agent's namespace is the host's. The client's entries may have ended.
	says := regexp.MustCompile(`(?m)^ok +conntrack +\d+ entries, events on, .*; [12] of 2 network namespaces of containers have entries of their own$`)
	if out, err := p.daemon.run("check"); err != nil || !says.MatchString(out) {
		t.Errorf("check: %v\n%s", err, out)
	}
}

func dialAll(to netip.AddrPort, n int) error {
	for range n {
		c, err := net.Dial("tcp", to.String())
		if err != nil {
			return err
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

func said(c exporter.Connections) string {
	text := func(n *uint64) string {
		if n == nil {
			return "unknown"
		}
		return fmt.Sprint(*n)
	}
	return fmt.Sprintf("opened %s, closed %s, established %s, other %s", text(c.Opened), text(c.Closed), text(c.Established), text(c.Other))
}
