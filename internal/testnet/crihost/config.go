// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// pluginDir is where Debian and Ubuntu have the CNI plugins.
const pluginDir = "/usr/lib/cni"

// plugins returns the programs behind the chain of a pod's network.
func plugins(options Options) []string {
	names := []string{"loopback", "bridge", "host-local"}
	if options.Bandwidth {
		names = append(names, "bandwidth")
	}
	for i, name := range names {
		names[i] = filepath.Join(pluginDir, name)
	}
	return names
}

// containerdConfig has the socket, the image, the runtime, CNI's plugins and its
// directory of configuration put in. What is not said there is where it always is, below
// /run and /var/lib.
//
// The plugin "opt" would make a directory /opt/containerd. A sandbox has a
// negative OOM score adjustment, for which a process needs CAP_SYS_RESOURCE; and
// a profile for AppArmor would stay loaded.
const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[debug]
level = "warn"
[grpc]
address = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %q
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = %q
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %q
conf_dir = %q
`

//go:embed runc.sh
var withoutLimits []byte

// runc returns the path of a runc that takes no limits, for which
// [Options.CgroupV2Only] may lack the controllers: there is always one of CPU.
func (h *Host) runc() string { return filepath.Join(h.enclosure.Dir, "runc") }

// configure writes what containerd and the CNI plugins read.
func (h *Host) configure() {
	h.tb.Helper()
	runtime := "runc"
	if h.options.CgroupV2Only {
		runtime = h.runc()
		if err := os.WriteFile(runtime, withoutLimits, 0o755); err != nil {
			h.tb.Fatal(err)
		}
	}
	if err := os.Mkdir(h.CNIConfigDir(), 0o755); err != nil {
		h.tb.Fatal(err)
	}
	for name, content := range map[string]string{
		"config.toml": fmt.Sprintf(containerdConfig, h.Socket, Image, runtime, pluginDir, h.CNIConfigDir()),
		filepath.Join("net.d", "10-nettally-test.conflist"): string(nettest.Must(h.network())(h.tb)),
	} {
		if err := os.WriteFile(filepath.Join(h.enclosure.Dir, name), []byte(content), 0o600); err != nil {
			h.tb.Fatal(err)
		}
	}
}

// CNIConfigDir returns the directory of the network's configuration, which is
// /etc/cni/net.d on other nodes. Its path is the same inside and outside of the
// mount namespace.
func (h *Host) CNIConfigDir() string { return filepath.Join(h.enclosure.Dir, "net.d") }

// network returns CNI's list of plugins.
func (h *Host) network() ([]byte, error) {
	type object = map[string]any
	chain := []object{{
		"type": "bridge", "bridge": h.Bridge, "isGateway": true,
		"ipam": object{
			"type":   "host-local",
			"ranges": [][]object{{{"subnet": h.subnet().Masked().String(), "gateway": h.Address}}},
			"routes": []object{{"dst": "0.0.0.0/0"}},
		},
	}}
	if h.options.Bandwidth {
		chain = append(chain, object{"type": "bandwidth", "capabilities": object{"bandwidth": true}})
	}
	return json.Marshal(object{"cniVersion": "0.4.0", "name": "nettally-test", "plugins": chain})
}

// subnet has room for 250 pods.
func (h *Host) subnet() netip.Prefix { return netip.PrefixFrom(h.Address, 24) }

// addBridge makes the bridge before the plugin would, with the first pod, so that
// a test can listen on its address. It gives it a MAC address, since the bridge
// would otherwise have that of a port, and another one when the port goes.
func (h *Host) addBridge() {
	h.tb.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{
		Name: h.Bridge, HardwareAddr: net.HardwareAddr{2, 0, 10, 240, 0, 1},
	}}
	address := nettest.Must(netlink.ParseAddr(h.subnet().String()))(h.tb)
	for _, step := range []func() error{
		func() error { return h.Namespace.LinkAdd(bridge) },
		func() error { return h.Namespace.AddrAdd(bridge, address) },
		func() error { return h.Namespace.LinkSetUp(bridge) },
	} {
		if err := step(); err != nil {
			h.tb.Fatalf("make bridge %s: %v", h.Bridge, err)
		}
	}
}
