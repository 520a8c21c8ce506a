// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
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

// From outside the addresses are those that are found inside, by the interface, and no more than
// the bound, however many a container gives itself.
func TestAddressesIn(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ip")
	host, inside := addressSpace(t), addressSpace(t)
	check(t, testnet.Veth(host, "veth0", inside, "eth0"))
	check(t, testnet.Veth(host, "veth1", inside, "eth1"))
	for _, args := range []string{"10.1.2.3/24 dev eth0", "fd00::5/64 dev eth0", "10.2.0.1/24 dev eth1"} {
		if out, err := inside.Run("sh", "-c", "ip addr add "+args); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	nsid := linkIn(t, host, "veth0").Attrs().NetNsID
	got, err := AddressesIn(host.FD(), nsid)
	check(t, err)
	for name, want := range map[string]string{"eth0": "10.1.2.3 fd00::5", "eth1": "10.2.0.1"} {
		var global []string
		for _, addr := range sorted(got[linkIn(t, inside, name).Attrs().Index]) {
			if !addr.IsLinkLocalUnicast() {
				global = append(global, addr.String())
			}
		}
		if strings.Join(global, " ") != want {
			t.Errorf("%s has %v, want %s", name, global, want)
		}
	}
	for i := range maxAddresses {
		if out, err := inside.Run("ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", i+1), "dev", "eth0"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	got, err = AddressesIn(host.FD(), nsid)
	if listed := len(slices.Concat(slices.Collect(maps.Values(got))...)); listed != maxAddresses || !errors.Is(err, ErrPartial) {
		t.Errorf("%d addresses, error %v", listed, err)
	}
	if _, err := AddressesIn(host.FD(), nsid+1000); !errors.Is(err, ErrGone) {
		t.Errorf("of no namespace: %v", err)
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
