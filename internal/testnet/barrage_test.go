// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// What the kernel took is what its counters say.
func TestBarrage(t *testing.T) {
	need.Root(t)
	c := nettest.Container(t, nettest.Host(t), testnet.ContainerOptions{})
	frames := [][]byte{make([]byte, 14), make([]byte, 60), make([]byte, 1000)}
	sent := nettest.Must(c.Barrage(testnet.Barrage{Interface: "eth0", Frames: frames, For: 100 * time.Millisecond}))(t)
	kernel := nettest.Must(testnet.InterfaceCounters(c.PID()))(t)["eth0"]
	if sent < 1000 || kernel.TransmitPackets != uint64(sent) {
		t.Errorf("%d frames were sent, and the kernel counted %d", sent, kernel.TransmitPackets)
	}
}
