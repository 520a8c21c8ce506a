// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// earlier is the last commit before the roster, the backends and the documents of quotas as
// they are now.
const earlier = "b3def76c2038c7e6069af691a69614c52babd411"

// earlierBinary is nettally as of that commit.
var earlierBinary = sync.OnceValues(func() (string, error) {
	folder, err := binaries()
	if err != nil {
		return "", err
	}
	source := filepath.Join(folder, "earlier")
	if err := os.Mkdir(source, 0o700); err != nil {
		return "", err
	}
	const unpack = `cd "$(git -c safe.directory='*' rev-parse --show-toplevel)" && git -c safe.directory='*' archive "$1" | tar -x -C "$2"`
	if out, err := exec.Command("sh", "-c", unpack, "sh", earlier, source).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack commit %s: %w: %s", earlier, err, out)
	}
	path := filepath.Join(folder, "nettally-earlier")
	build := exec.Command("go", "build", "-o", path, "./cmd/nettally")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nettally of commit %s: %w: %s", earlier, err, out)
	}
	return path, nil
})

// A nettally that was installed earlier is replaced by this one while containers of every
// kind are at work: on clsact or tcx, inside of their namespaces, and by their cgroups. No
// total goes back, in the end they are the kernel's, and of its quotas nothing is said twice
// or not at all.
func TestUpgradeFromEarlier(t *testing.T) {
	need.Root(t)
	need.Commit(t, earlier)
	t.Parallel()
	for _, hook := range []string{"clsact", "tcx"} {
		t.Run(hook, func(t *testing.T) {
			t.Parallel()
			testUpgrade(t, hook)
		})
	}
}

func testUpgrade(t *testing.T, hook string) {
	docker := dockerhost.Start(t, dockerhost.Options{})
	told := startNotified(t, docker.Namespace)
	d := startBinary(t, earlierBinary, docker, "", onlyDocker(docker)+everyFamily+
		fmt.Sprintf("\nattach: {mode: %s}\n", hook)+told.config()+quotas)
	p := startPair(t, docker, d)
	lan := docker.MacvlanNetwork("lan", netip.MustParsePrefix("10.235.0.0/24"))
	inside := docker.Run("--name", "inside", "--network", "lan", dockerhost.Image)
	host := docker.Run("--name", "host", "--network", "host", dockerhost.Image)
	q := &quotaRun{t: t, docker: docker, d: d, to: netip.AddrPortFrom(docker.IPv4(p.server, "eth0"), 9)}
	q.run()
	u := &upgrade{kinds: kinds{t, d}, docker: docker, inside: inside, host: host, lan: lan, sink: docker.IPv4(p.server, "eth0")}
	u.settled()
	u.talkAll()
	q.send(600)
	q.fired("50")
	told.told(d, "50")
	d.remember(p.client, p.server)
	scraper := startScraper(d)
	endStream := p.stream(t)

	d.kill()
	d.binary = binary
	d.launch()
	d.killOften(4, scraper)
	q.send(250) // while it starts
	d.ready()
	q.fired("50", "80")
	told.told(d, "50", "80")

	endStream()
	u.settled()
	u.talkAll()
	for _, id := range []string{p.client, p.server} {
		p.likeKernel(t, id, asInterface)
		if got := nettest.Must(d.container(id))(t).Interfaces[0].Hook; got != hook {
			t.Errorf("counted by %s", got)
		}
		d.inHistory(id)
	}
	u.exact()
	d.agree(t, func() (string, error) { return d.get("/metrics") })
	scraper.stop(2)
	if strings.Contains(d.log.String(), "level=ERROR") {
		t.Error("the log has errors")
	}
}

// upgrade is the containers that are counted inside and by their cgroup.
type upgrade struct {
	kinds
	docker       *dockerhost.Docker
	inside, host string // ids
	lan          dockerhost.Macvlan
	sink         netip.Addr
	talks        uint64
}

// settled waits until it is known how they are counted.
func (u *upgrade) settled() {
	u.t.Helper()
	u.is(u.inside, "counted inside", func(c exporter.Container) bool {
		return c.Accounted && len(c.Interfaces) == 1 && c.Interfaces[0].At == "container"
	})
	u.is(u.host, "counted by its cgroup", func(c exporter.Container) bool { return c.Accounted && c.NetworkMode == "host" && c.IP != nil })
}

func (u *upgrade) talkAll() {
	u.t.Helper()
	u.talk(u.docker.Agent(u.inside), nettest.Agent(u.t, u.lan.Peer), u.lan.Address)
	u.talk(u.docker.Agent(u.host), u.docker.Agent("server"), u.sink)
	u.talks++
}

// exact expects all that they have sent to be counted, once.
func (u *upgrade) exact() {
	u.t.Helper()
	u.likeKernel(u.inside, func() map[string]testnet.Counters { return u.docker.NetDev(u.inside) })
	datagrams := u.talks * kindDatagrams
	u.is(u.inside, "exact", func(c exporter.Container) bool {
		return c.Transmit.Protocols.UDP == exporter.Volume{Packets: datagrams, Bytes: datagrams * (14 + 20 + 8 + 100)} && c.Transmit.TCPSYN == u.talks
	})
	u.is(u.host, "exact", func(c exporter.Container) bool {
		return c.IP.Transmit.Protocols.UDP == exporter.Volume{Packets: datagrams, Bytes: datagrams * (20 + 8 + 100)} && c.IP.Transmit.TCPSYN == u.talks
	})
}
