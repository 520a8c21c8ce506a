// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/testnet/podmanhost"
)

// rootless is a user who runs podman, and a nettally of root's that counts.
type rootless struct {
	*kinds
	podman *podmanhost.Podman
	uid    string

	outside netip.Addr     // an address that slirp4netns reaches
	peer    *testnet.Agent // there
	page    string         // what there is to load
}

const (
	rootlessRounds = 5
	rootlessRound  = 100       // datagrams: slirp4netns reads one by one
	rootlessPage   = 1_000_000 // bytes to load
)

// Podman without root: the user's containers are the user's, counted on the device that
// slirp4netns carries the packets of, and have names where root says which socket to ask.
func TestRootlessPodman(t *testing.T) {
	need.Root(t)
	t.Parallel()
	uid := firstAttacker + int(attackers.Add(1))
	r := &rootless{podman: podmanhost.StartRootless(t, uid), uid: fmt.Sprint(uid)}
	r.kinds = &kinds{t, startDaemon(t, r.podman, fmt.Sprintf(`
names: {docker: "off", podman: auto, cri: "off"}
watch: {include: [%q]}
quotas:
  - {name: users, match: {user: %q}, per: container, count: total_packets, limit: 1G, period: {every: month}}
  - {name: roots, per: container, count: total_packets, limit: 1G, period: {every: month}}
`, path.Dir(r.podman.CgroupParent)+"/*", r.uid))}
	r.serve()

	web := r.run("web")
	r.talks(web)
	r.quotas(web)
	if c := nettest.Must(r.d.container(r.id(web)))(t); c.Name != r.id(web) {
		t.Errorf("name %q, and nobody was asked", c.Name)
	}
	r.named(web)
	r.shared()
	r.withoutManager()
	r.published()
	r.ends(web)
}

// id is what a container of the user's is known by.
func (r *rootless) id(id string) string { return r.uid + "~" + id }

// serve makes what the containers talk to, in the host's network namespace.
func (r *rootless) serve() {
	r.t.Helper()
	r.outside = netip.MustParseAddr("10.238.0.1") // slirp4netns keeps the loopback addresses out
	nettest.Must(r.podman.Namespace.Run("ip", "address", "add", r.outside.String()+"/32", "dev", "lo"))(r.t)
	r.peer = nettest.Agent(r.t, r.podman.Namespace)
	var listener net.Listener
	err := r.podman.Namespace.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(r.outside, 0).String())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, rootlessPage)) // the client complains
	})}
	go func() { _ = server.Serve(listener) }() // until it is closed
	r.t.Cleanup(func() { _ = server.Close() })
	r.page = "http://" + listener.Addr().String()
}

// run runs a container with the network that podman gives to users, and waits for it.
func (r *rootless) run(name string, options ...string) string {
	r.t.Helper()
	id := r.podman.Run(append(append([]string{"--name", name}, options...), podmanhost.Image)...)
	r.is(r.id(id), "counted", func(c exporter.Container) bool {
		return c.Accounted && c.User == r.uid && c.Runtime == "podman" && c.State == "running" && c.IP == nil && onTap(c)
	})
	return id
}

// onTap says whether a container is counted on slirp4netns' device.
func onTap(c exporter.Container) bool {
	return len(c.Interfaces) == 1 && c.Interfaces[0].Name == "tap0" && c.Interfaces[0].At == "container"
}

// sends has a container send datagrams out.
func (r *rootless) sends(id string) {
	r.t.Helper()
	udp := nettest.Must(r.peer.Listen("udp", r.outside))(r.t)
	agent := r.podman.Agent(id)
	for round := 1; round <= rootlessRounds; round++ {
		if err := agent.SendUDP(udp.Addr, rootlessRound, 100); err != nil {
			r.t.Fatal(err)
		}
		nettest.Must(udp.Received(round * rootlessRound))(r.t)
	}
}

// sentUDP is what [rootless.sends] is, with headers.
func sentUDP(headers uint64) exporter.Volume {
	const datagrams = rootlessRounds * rootlessRound
	return exporter.Volume{Packets: datagrams, Bytes: datagrams * (headers + 100)}
}

// talks has a container send and load, and expects the kernel's numbers.
func (r *rootless) talks(id string) {
	r.t.Helper()
	r.sends(id)
	r.podman.Exec(id, "wget", "-q", "-O", "/dev/null", r.page)
	r.likeKernelBy(wire, r.id(id), func() map[string]testnet.Counters { return r.podman.NetDev(id) })
	r.is(r.id(id), "counted exactly", func(c exporter.Container) bool {
		return c.Transmit.Protocols.UDP == sentUDP(14+20+8) && c.Transmit.TCPSYN == 1 && c.Receive.Protocols.TCP.Bytes > rootlessPage
	})
}

// quotas expects the packets in the user's quota, and none in that of root's containers.
func (r *rootless) quotas(id string) {
	r.t.Helper()
	r.d.poll("used", func() error {
		var found exporter.QuotaList
		if err := json.Unmarshal([]byte(nettest.Must(r.d.get("/api/v1/quotas"))(r.t)), &found); err != nil {
			return err
		}
		tap, c := r.podman.NetDev(id)["tap0"], nettest.Must(r.d.container(r.id(id)))(r.t)
		// The device's own first packets are before nettally knew of it, and in no period.
		got, want := map[string]float64{}, float64(tap.ReceivePackets+tap.TransmitPackets-c.Receive.SeededPackets-c.Transmit.SeededPackets)
		for _, q := range found.Quotas {
			if q.Used != 0 {
				got[q.Quota+" "+q.Key] += q.Used
			}
		}
		if len(got) != 1 || got["users "+r.id(id)] != want {
			return fmt.Errorf("used %v, want %v of %s", got, want, id)
		}
		return nil
	})
}

// named starts the user's service of podman, and tells nettally to ask it.
func (r *rootless) named(web string) {
	r.t.Helper()
	before := r.volumes(web)
	config := string(nettest.Must(os.ReadFile(r.d.config))(r.t))
	config = strings.Replace(config, "podman: auto", fmt.Sprintf("podman: %q", "unix://"+r.podman.Service()), 1)
	r.d.stop()
	if err := os.WriteFile(r.d.config, []byte(config), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.d.start()
	r.is(r.id(web), "named", func(c exporter.Container) bool { return c.Name == r.uid+"~web" && c.Accounted })
	if after := r.volumes(web); after != before {
		r.t.Errorf("%+v before a restart and %+v after", before, after)
	}
}

// volumes is what a container has received and sent.
func (r *rootless) volumes(id string) [2]exporter.Volume {
	r.t.Helper()
	c := nettest.Must(r.d.container(r.id(id)))(r.t)
	return [2]exporter.Volume{wire(c.Receive), wire(c.Transmit)}
}

// shared has containers that share one device: it is its owner's, and they are told apart.
func (r *rootless) shared() {
	r.t.Helper()
	pod := r.podman.PodCreate("shop")
	app := r.podman.Run("--pod", pod, "--name", "app", podmanhost.Image)
	idle := r.podman.Run("--pod", pod, "--name", "idle", podmanhost.Image)
	infra := r.podman.Infra(pod)
	udp := func(c exporter.Container) exporter.Volume { return c.IP.Transmit.Protocols.UDP }
	for _, id := range []string{app, idle} {
		r.is(r.id(id), "counted by its cgroup", func(c exporter.Container) bool {
			return c.Accounted && c.User == r.uid && c.IP != nil && len(c.Interfaces) == 0 && strings.HasSuffix(c.Pod, "shop")
		})
	}
	r.is(r.id(infra), "the device's owner", func(c exporter.Container) bool { return c.Accounted && onTap(c) })
	r.sends(app)
	r.likeKernelBy(wire, r.id(infra), func() map[string]testnet.Counters { return r.podman.NetDev(infra) })
	r.is(r.id(app), "told apart", func(c exporter.Container) bool { return udp(c) == sentUDP(20+8) })
	r.is(r.id(idle), "told apart", func(c exporter.Container) bool { return udp(c).Packets == 0 })
	r.podman.RemovePod(pod)
}

// withoutManager has a container whose cgroup podman does not ask systemd for: the runtime makes
// one beside podman's own, whose name says only that it is a container's.
func (r *rootless) withoutManager() {
	r.t.Helper()
	id := r.podman.CLI("--cgroup-manager=cgroupfs", "run", "-d", "--name", "plain", podmanhost.Image)
	r.is(r.id(id), "counted", func(c exporter.Container) bool {
		return c.Accounted && c.User == r.uid && onTap(c) && c.Name == r.uid+"~plain"
	})
	r.talks(id)
}

// published loads from a container by a published port. Podman's own forwarder passes on within
// the container, over lo, and the device has none of it; slirp4netns passes on over the device.
func (r *rootless) published() {
	r.t.Helper()
	for name, test := range map[string]struct {
		port    string
		options []string
		by      string
	}{
		"forwarder": {"18080", nil, "lo"},
		"slirp":     {"18081", []string{"--network", "slirp4netns:port_handler=slirp4netns"}, "tap0"},
	} {
		id := r.run(name, append(test.options, "-p", test.port+":80")...)
		page := fmt.Sprintf("mkdir /www; head -c %d /dev/zero >/www/page; httpd -h /www", rootlessPage)
		r.podman.Exec(id, "sh", "-c", page)
		url := "http://127.0.0.1:" + test.port + "/page"
		nettest.Must(r.podman.Namespace.Run("busybox", "wget", "-q", "-O", "/dev/null", url))(r.t)
		for device, kernel := range r.podman.NetDev(id) {
			if sent := kernel.TransmitBytes >= rootlessPage; sent != (device == test.by) {
				r.t.Errorf("%s: %s has sent %d bytes", name, device, kernel.TransmitBytes)
			}
		}
		r.likeKernelBy(wire, r.id(id), func() map[string]testnet.Counters { return r.podman.NetDev(id) })
	}
}

// ends removes a container, whose numbers stay.
func (r *rootless) ends(id string) {
	r.t.Helper()
	before := r.volumes(id)
	r.podman.Remove(id)
	r.is(r.id(id), "stopped", func(c exporter.Container) bool { return c.State == "stopped" && c.User == r.uid })
	if after := r.volumes(id); after != before {
		r.t.Errorf("%+v before the end and %+v after", before, after)
	}
}
