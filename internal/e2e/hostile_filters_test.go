// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A container that may change its own network takes our filters off, again and again, also
// while nettally is down. The totals are the kernel's, and its quota and the history have all
// of it but what was there before nettally came.
func TestEvadedQuota(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	t.Parallel()
	docker := dockerhost.Start(t, dockerhost.Options{})
	lan := docker.MacvlanNetwork("lan", netip.MustParsePrefix("10.235.0.0/24"))
	e := &evasion{docker: docker, id: docker.Run("--name", "web", "--network", "lan", dockerhost.Image)}
	talk := func() { e.talk(docker.Agent(e.id), nettest.Agent(t, lan.Peer), lan.Address) }
	e.kinds = kinds{t: t}
	talk()
	e.d = startDaemon(t, docker, onlyDocker(docker)+`
quotas:
  - {name: all, match: {name: web}, per: name, count: total_bytes, limit: 1GB, period: {every: month}}
`)
	before := e.exact(func(c exporter.Container) bool { return c.Interfaces[0].SeededBytes > 0 })
	e.used(before)

	for range 3 {
		mended := e.exact(func(exporter.Container) bool { return true }).Interfaces[0].MendedBytes
		e.remove()
		talk()
		e.exact(func(c exporter.Container) bool { return c.Interfaces[0].MendedBytes > mended })
	}
	e.d.kill()
	e.remove()
	talk()
	e.d.start()
	talk()
	after := e.exact(func(c exporter.Container) bool { return c.Transmit.MendedBytes > 4*kindUpload })
	if seeded := after.Interfaces[0].SeededBytes; seeded != before.Interfaces[0].SeededBytes {
		t.Errorf("%d bytes are seeded, and were %d when nettally came", seeded, before.Interfaces[0].SeededBytes)
	}
	e.used(after)
	e.d.inHistory(e.id)
}

// evasion is a container that takes our filters off.
type evasion struct {
	kinds
	docker *dockerhost.Docker
	id     string
}

// remove has the container take them off.
func (e *evasion) remove() {
	e.t.Helper()
	inside := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", e.docker.PID(e.id))))(e.t)
	defer inside.Close()
	nettest.Must(inside.Run("tc", "qdisc", "del", "dev", "eth0", "clsact"))(e.t)
}

// exact waits until the totals are the kernel's, and something is right.
func (e *evasion) exact(ok func(exporter.Container) bool) exporter.Container {
	e.t.Helper()
	e.is(e.id, "counted inside", func(c exporter.Container) bool { return c.Accounted && len(c.Interfaces) == 1 && c.Name == "web" })
	e.likeKernel(e.id, func() map[string]testnet.Counters { return e.docker.NetDev(e.id) })
	return e.is(e.id, "as expected", ok)
}

// used waits until the quota has all but what was seeded.
func (e *evasion) used(c exporter.Container) {
	e.t.Helper()
	e.d.poll("used", func() error {
		list, err := exporter.FetchQuotas(e.t.Context(), e.d.socket)
		if err != nil {
			return err
		}
		if len(list.Quotas) != 1 || list.Quotas[0].Used != float64(counted(c).Bytes) {
			return fmt.Errorf("expected %d bytes: %+v", counted(c).Bytes, list.Quotas)
		}
		return nil
	})
}
