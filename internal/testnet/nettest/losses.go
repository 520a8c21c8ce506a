// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"encoding/json"
	"net"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// SendUnwanted sends frames of a protocol that no kernel knows: whoever receives them drops them
// behind its interface, and says so in its rx_dropped.
func SendUnwanted(tb testing.TB, from *testnet.Agent, iface string, to net.HardwareAddr, count int) {
	tb.Helper()
	data := append(append(append([]byte{}, to...), 2, 0, 0, 0, 0, 1), 0x88, 0xb5)
	fatal(tb, from.SendFrame(testnet.Frame{Interface: iface, Data: data, Size: 64}, count))
}

// QdiscDropped returns what tc says that the root qdisc of an interface has dropped. Requires tc.
func QdiscDropped(tb testing.TB, n *testnet.Namespace, iface string) uint64 {
	tb.Helper()
	need.Commands(tb, "tc")
	out := Must(n.Run("tc", "-s", "-j", "qdisc", "show", "dev", iface))(tb)
	var all []struct {
		Root  bool   `json:"root"`
		Drops uint64 `json:"drops"`
	}
	fatal(tb, json.Unmarshal(out, &all))
	for _, q := range all {
		if q.Root {
			return q.Drops
		}
	}
	tb.Fatalf("%s has no root qdisc: %s", iface, out)
	return 0
}
