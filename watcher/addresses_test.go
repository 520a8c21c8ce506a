// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// The addresses of a namespace are those that `ip` has, without those of loopback and of a link
// alone.
func TestAddresses(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ip")
	host, inside := addressSpace(t), addressSpace(t)
	if err := testnet.Veth(host, "veth0", inside, "eth0"); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"10.1.2.3/24", "10.1.2.4/24", "192.0.2.7 peer 192.0.2.8/32", "fd00::5/64"} {
		if out, err := inside.Run("sh", "-c", "ip addr add "+addr+" dev eth0"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	file, err := os.Open(inside.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n := &Namespace{ns: namespace{file: file}}
	got, err := n.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	if want := byIP(t, inside); !slices.Equal(sorted(got), want) || len(want) != 4 {
		t.Errorf("got %v, ip has %v", got, want)
	}
	for i := range maxAddresses {
		if out, err := inside.Run("ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", i+1), "dev", "eth0"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if got, err := n.Addresses(); len(got) != maxAddresses || err == nil {
		t.Errorf("%d addresses, error %v", len(got), err)
	}
}

func addressSpace(t *testing.T) *testnet.Namespace {
	t.Helper()
	n, err := testnet.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func sorted(addrs []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
}

func byIP(t *testing.T, in *testnet.Namespace) (addrs []netip.Addr) {
	t.Helper()
	out, err := in.Run("ip", "-json", "addr")
	if err != nil {
		t.Fatal(err)
	}
	var links []struct {
		Info []struct {
			Local netip.Addr
			Scope string
		} `json:"addr_info"`
	}
	if err := json.Unmarshal(out, &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		for _, a := range l.Info {
			if a.Scope == "global" {
				addrs = append(addrs, a.Local)
			}
		}
	}
	return sorted(addrs)
}
