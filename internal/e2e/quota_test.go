// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
)

// A datagram of this payload is 1000 bytes on the wire.
const kilobyte = 1000 - 14 - 20 - 8

// quotas are a limit of 1000 such datagrams by name.
const quotas = `
quotas:
  - {name: egress, match: {name: web}, per: name, count: transmit_bytes, limit: 1MB, period: {every: month}, alert_at: [50, 80, 100], notify: [ops, hook]}
`

// quotaRun is a container called web that sends to another one.
type quotaRun struct {
	t      *testing.T
	docker *dockerhost.Docker
	d      *daemon
	web    string // its id
	to     netip.AddrPort
}

// Levels fire in order and once: not again after kill -9, a restart of nettally or the
// container, a reload, or with a new container of the same name. What passes while
// nettally is down is counted. A real Alertmanager and a webhook are told of each.
func TestQuotaLevels(t *testing.T) {
	need.Root(t)
	t.Parallel()
	docker := dockerhost.Start(t, dockerhost.Options{})
	told := startNotified(t, docker.Namespace)
	q := &quotaRun{t: t, docker: docker, d: startDaemon(t, docker, onlyDocker(docker)+"\n"+told.config()+quotas)}
	onlyIPv4(t, docker)
	server := docker.Run("--name", "server", dockerhost.Image)
	q.to = netip.AddrPortFrom(docker.IPv4(server, "eth0"), 9)
	q.run()
	q.send(450)
	q.fired()
	began := time.Now()
	q.send(60)
	q.fired("50")
	told.told(q.d, "50")
	t.Logf("told %v after the datagrams that crossed the level were sent", time.Since(began).Round(time.Millisecond))

	q.d.kill()
	q.send(100) // while nettally is down
	q.d.start()
	q.used(610)
	q.fired("50")

	docker.Remove(q.web)
	q.run()
	q.send(200)
	q.fired("50", "80")

	q.reload("{name: other, count: total_bytes, limit: 1TB, period: {every: day}}")
	docker.Restart(q.web)
	q.d.counted(q.web, 1)
	q.send(50)
	q.used(860)
	q.d.stop()
	q.d.start()
	q.fired("50", "80")

	q.send(150)
	q.fired("50", "80", "100")
	q.d.kill()
	q.d.start()
	q.send(100)
	q.used(1110)
	q.fired("50", "80", "100")
	told.told(q.d, "50", "80", "100")
	// The log has one again where the kill came before the note that it was said.
	if said := strings.Count(q.d.log.String(), "quota alert"); said < 3 || said > 4 {
		t.Errorf("alerts were said %d times, expected 3", said)
	}
	q.corrected()
}

// run starts the container, anew maybe.
func (q *quotaRun) run() {
	q.t.Helper()
	q.web = q.docker.Run("--name", "web", dockerhost.Image)
	q.d.counted(q.web, 1)
	q.d.poll("named", func() error {
		c, err := q.d.container(q.web)
		if err == nil && c.Name != "web" {
			err = errors.New(c.Name)
		}
		return err
	})
	q.d.keyed("egress", "web")
}

func (q *quotaRun) send(datagrams int) {
	q.t.Helper()
	if err := q.docker.Agent(q.web).SendUDP(q.to, datagrams, kilobyte); err != nil {
		q.t.Fatal(err)
	}
}

// used waits until so many datagrams were used, and what else a container sends.
func (q *quotaRun) used(datagrams float64) {
	q.t.Helper()
	q.d.poll("used", func() error {
		for _, s := range q.status() {
			if s.Quota == "egress" && s.Key == "web" && s.Used >= 1000*datagrams && s.Used < 1000*(datagrams+9) {
				return nil
			}
		}
		return fmt.Errorf("expected %g kB: %+v", datagrams, q.status())
	})
}

func (q *quotaRun) status() []exporter.Quota {
	list, err := exporter.FetchQuotas(q.t.Context(), q.d.socket)
	if err != nil {
		return nil // it may be starting
	}
	return list.Quotas
}

// fired waits until these levels have fired, in this order, and checks that there are no
// others.
func (q *quotaRun) fired(levels ...string) {
	q.t.Helper()
	q.d.poll("fired", func() error {
		body, err := q.d.get("/api/v1/alerts")
		if err != nil {
			return err
		}
		var list exporter.AlertList
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			return err
		}
		var got []string
		for _, a := range list.Alerts {
			got = append(got, a.Level)
		}
		if !slices.Equal(got, levels) {
			return fmt.Errorf("fired %q, expected %q", got, levels)
		}
		return nil
	})
}

// reload adds a quota, and then one that is refused.
func (q *quotaRun) reload(quota string) {
	q.t.Helper()
	text, err := os.ReadFile(q.d.config)
	if err != nil {
		q.t.Fatal(err)
	}
	write := func(more string) {
		if err := os.WriteFile(q.d.config, []byte(string(text)+"  - "+more+"\n"), 0o600); err != nil {
			q.t.Fatal(err)
		}
	}
	write(quota)
	named := func(name string) bool {
		return slices.ContainsFunc(q.status(), func(s exporter.Quota) bool { return s.Quota == name })
	}
	q.d.poll("taken in", func() error {
		if !named("other") {
			return fmt.Errorf("no quota other: %+v", q.status())
		}
		return nil
	})
	write("{name: bad, count: total_bytes, limit: 1, period: {every: day}}")
	q.d.poll("refused", func() error {
		if !strings.Contains(q.d.log.String(), "quotas[1].limit: expected an amount above 0") {
			return fmt.Errorf("not in the log")
		}
		return nil
	})
	if out, err := q.d.run("config", "check"); exitCode(err) != 1 || !strings.Contains(out, "quotas[1].limit: expected an amount above 0") {
		q.t.Errorf("config check: %v: %s", err, out)
	}
	if !named("other") || !named("egress") {
		q.t.Errorf("the old quotas are not in force: %+v", q.status())
	}
	write(quota)
}

// corrected sets and resets what was used from the command line.
func (q *quotaRun) corrected() {
	q.t.Helper()
	for _, args := range [][]string{{"quota", "set", "egress", "600kB", "--key", "web"}, {"quota", "reset", "other", "--all"}} {
		if out, err := q.d.run(args...); err != nil {
			q.t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	q.used(600)
	q.d.poll("resolved", func() error {
		out, err := q.d.run("quota", "list")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); f[0] == "egress" && f[len(f)-1] == "50" {
				return nil
			}
		}
		return fmt.Errorf("%w: %s", err, out)
	})
}
