// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A container of Docker on the host's network makes a user and a network namespace of its
// own, which gets a veth. Its host traffic is counted all the same, look after look.
func TestDockerUnshare(t *testing.T) {
	need.Root(t)
	t.Parallel()
	docker := dockerhost.Start(t, dockerhost.Options{})
	config := strings.Replace(onlyDocker(docker), "watch: {", "watch: {reconcile: 1s, ", 1)
	d := startDaemon(t, docker, config)
	peer := docker.Run("--name", "peer", dockerhost.Image)
	// Docker's own rules forbid user namespaces; those of others do not.
	id := docker.Run("--name", "tenant", "--network", "host", "--security-opt", "seccomp=unconfined",
		"--security-opt", "apparmor=unconfined", dockerhost.Image)
	sent := func(packets uint64) {
		t.Helper()
		d.poll(fmt.Sprintf("seen to send %d datagrams", packets), func() error {
			c, err := d.container(id)
			if err == nil && (!c.Accounted || !c.OnHost || c.IP == nil || c.IP.Transmit.Protocols.UDP.Packets != packets) {
				err = fmt.Errorf("accounted %t (%s), on the host %t, ip %+v", c.Accounted, c.Reason, c.OnHost, c.IP)
			}
			return err
		})
	}
	sent(0)
	sink := nettest.Must(docker.Agent(peer).Listen("udp", docker.IPv4(peer, "eth0")))(t)
	agent := docker.Agent(id)
	send := func(count int) {
		t.Helper()
		if err := agent.SendUDP(sink.Addr, count, 100); err != nil {
			t.Fatal(err)
		}
	}
	send(10)
	sent(10)

	docker.CLI("exec", "-d", id, "unshare", "-U", "-r", "-n", "sleep", "601")
	own := namespaceOf(t, docker, id, "sleep 601")
	if err := docker.Namespace.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "mine"}, PeerName: "own0", PeerNamespace: netlink.NsFd(own.FD()),
	}); err != nil {
		t.Fatal(err)
	}
	d.poll("counted in its own namespace, too", func() error {
		c, err := d.container(id)
		has := func(i exporter.Interface) bool { return i.Name == "own0" }
		if err == nil && (len(c.Interfaces) != 1 || !has(c.Interfaces[0])) {
			err = fmt.Errorf("interfaces %+v", c.Interfaces)
		}
		return err
	})
	for n := range uint64(3) {
		send(100)
		sent(10 + 100*(n+1))
	}
}

// namespaceOf opens the network namespace of a container's process, once it has one.
func namespaceOf(t *testing.T, docker *dockerhost.Docker, id, command string) *testnet.Namespace {
	t.Helper()
	for range 1000 {
		for line := range strings.Lines(docker.CLI("top", id, "-eo", "pid,args")) {
			pid, args, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.TrimSpace(args) != command {
				continue
			}
			own := nettest.Must(testnet.OpenNamespace("/proc/" + pid + "/ns/net"))(t)
			t.Cleanup(func() { _ = own.Close() })
			return own
		}
	}
	t.Fatalf("no process %q", command)
	return nil
}
