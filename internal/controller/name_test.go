// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// Docker makes a veth, moves its end into the container under a name of its own, and
// renames it there. On a busy host much time may pass before it is moved: it is the name
// that it has at last that counts.
func TestNameAfterMove(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)
	for _, command := range [][]string{
		{"ip", "link", "add", "br0", "type", "bridge"},
		{"ip", "link", "add", "port", "type", "veth", "peer", "name", "vethtemporary"},
		{"ip", "link", "set", "port", "master", "br0"},
	} {
		nettest.Must(host.Run(command[0], command[1:]...))(t)
	}
	time.Sleep(nameAfter)
	nettest.Must(host.Run("ip", "link", "set", "vethtemporary", "netns", fmt.Sprint(c.PID())))(t)
	inside := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", c.PID())))(t)
	defer inside.Close()
	time.Sleep(100 * time.Millisecond) // in which its event brings us to look
	nettest.Must(inside.Run("ip", "link", "set", "vethtemporary", "name", "eth1"))(t)
	nettest.Must(inside.Run("ip", "link", "set", "eth1", "up"))(t)

	got := r.wait(c.ID, "counted on two interfaces", func(c usage.Container) bool { return len(c.Interfaces) == 2 })
	if name := got.Interfaces[1].Name; name != "eth1" {
		t.Errorf("the second interface is %s, want eth1", name)
	}
}
