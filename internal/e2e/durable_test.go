// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Two containers stream while nettally is killed again and again, at any moment of its
// start or its life, upgraded to another layout of the counters, and stopped. Nobody who
// scrapes sees a total go down or away, and in the end the totals are the kernel's.
func TestStreamOverRestarts(t *testing.T) {
	need.Root(t)
	t.Parallel()
	for hook, kills := range map[string]int{"clsact": 10, "tcx": 6} {
		t.Run(hook, func(t *testing.T) {
			t.Parallel()
			docker := dockerhost.Start(t, dockerhost.Options{})
			d := startDaemon(t, docker, onlyDocker(docker)+everyFamily+fmt.Sprintf("\nattach: {mode: %s}", hook))
			p := startPair(t, docker, d)
			d.remember(p.client, p.server)
			scraper := startScraper(d)
			endStream := p.stream(t)

			d.killOften(kills/2, scraper)
			d.binary = nextBinary // the next start upgrades
			if hook == "tcx" {
				d.ready()
				d.kill()
				d.start()
			} // else it is killed in the middle of it
			d.killOften(kills-kills/2, scraper)
			d.ready()
			d.stop()
			p.refusesToGoBack(t)
			d.start()

			endStream()
			for _, id := range []string{p.client, p.server} {
				p.likeKernel(t, id, asInterface)
				if got := nettest.Must(d.container(id))(t).Interfaces[0].Hook; got != hook {
					t.Errorf("counted by %s", got)
				}
			}
			d.agree(t, func() (string, error) { return d.get("/metrics") })
			scraper.stop(kills / 2)
		})
	}
}

// killOften kills the daemon so many times and leaves it starting. Every other kill comes
// within the time that a start takes on this machine, the others after a scrape.
func (d *daemon) killOften(times int, s *scraper) {
	d.t.Helper()
	seed := rand.Uint64()
	d.t.Logf("kills at random moments: seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for n := range times {
		if n%2 == 1 {
			s.another()
		}
		time.Sleep(time.Duration(random.Int64N(int64(d.starting))))
		d.alive()
		d.kill()
		d.launch()
	}
}

// refusesToGoBack runs the older binary on the counters of the newer one, while these
// count.
func (p *pair) refusesToGoBack(t *testing.T) {
	t.Helper()
	before := p.docker.NetDev(p.client)["eth0"]
	p.daemon.binary = binary
	out, err := p.daemon.run("run")
	p.daemon.binary = nextBinary
	const says = "made by a newer nettally"
	if exitCode(err) != 1 || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "nettally: ") || !strings.Contains(out, says) {
		t.Errorf("an older nettally ends with %d and says %q, want 1 and one line with %q", exitCode(err), out, says)
	}
	if after := p.docker.NetDev(p.client)["eth0"]; after.TransmitBytes == before.TransmitBytes || after.ReceiveBytes == before.ReceiveBytes {
		t.Error("no traffic while nettally is down: is this a test of anything?")
	}
}

// stream begins TCP in both directions and UDP in one, as fast as it goes, and returns
// what ends it.
func (p *pair) stream(t *testing.T) (end func()) {
	t.Helper()
	const bytes, datagrams, size = 16_000_000, 200, 1000
	forward := nettest.Must(p.serverAgent.Listen("tcp", p.docker.IPv4(p.server, "eth0")))(t)
	back := nettest.Must(p.clientAgent.Listen("tcp", p.docker.IPv4(p.client, "eth0")))(t)
	aside := nettest.Must(p.serverAgent.Listen("udp", p.docker.IPv4(p.server, "eth0")))(t)
	third := p.docker.Agent(p.client)
	var stopped atomic.Bool
	var group errgroup.Group
	for _, send := range []func() error{
		func() error { return p.clientAgent.SendTCP(forward.Addr, bytes, testnet.Write) },
		func() error { return p.serverAgent.SendTCP(back.Addr, bytes, testnet.Write) },
		func() error { return third.SendUDP(aside.Addr, datagrams, size) },
	} {
		group.Go(func() error {
			for !stopped.Load() {
				if err := send(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	end = sync.OnceFunc(func() {
		stopped.Store(true)
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

// scraper reads the metrics all the time, as long as somebody answers.
type scraper struct {
	d *daemon
	// gaps says that a series may be missing for a while.
	gaps    bool
	highest samples
	scrapes atomic.Int64
	end     chan struct{}
	ended   chan struct{}
}

func startScraper(d *daemon) *scraper {
	s := &scraper{d: d, highest: samples{}, end: make(chan struct{}), ended: make(chan struct{})}
	go s.run()
	return s
}

func (s *scraper) run() {
	defer close(s.ended)
	for {
		select {
		case <-s.end:
			return
		case <-time.After(30 * time.Millisecond):
		}
		if text, err := s.d.get("/metrics"); err == nil {
			s.compare(text)
		}
	}
}

// compare expects every total of a container that was there to be there, and not to be
// lower.
func (s *scraper) compare(text string) {
	s.d.t.Helper()
	scrape := s.scrapes.Load() + 1
	defer s.scrapes.Store(scrape)
	all, err := parse(text)
	if err != nil {
		s.d.t.Errorf("parse scrape %d: %v", scrape, err)
		return
	}
	now := ofContainers(all)
	maps.DeleteFunc(now, func(key string, _ float64) bool { return !strings.Contains(key, "_total") })
	var wrong []string
	for key, before := range s.highest {
		value, there := now[key]
		switch {
		case there && value < before:
			wrong = append(wrong, fmt.Sprintf("%s was %.0f and is %.0f", key, before, value))
		case !there && !s.gaps:
			wrong = append(wrong, key+" is gone")
			delete(s.highest, key)
		}
	}
	maps.Copy(s.highest, now) // a mistake is told once
	if len(wrong) > 0 {
		slices.Sort(wrong)
		s.d.t.Errorf("scrape %d: %d totals went wrong: %s", scrape, len(wrong), strings.Join(wrong[:min(3, len(wrong))], ", "))
	}
}

// another waits for one more scrape, of the daemon as it runs now.
func (s *scraper) another() {
	s.d.t.Helper()
	before := s.scrapes.Load()
	s.d.poll("scraped", func() error {
		s.d.alive()
		if s.scrapes.Load() == before {
			return fmt.Errorf("still %d scrapes", before)
		}
		return nil
	})
}

// stop ends the scraping, which must have worked so many times.
func (s *scraper) stop(atLeast int) {
	s.d.t.Helper()
	close(s.end)
	<-s.ended
	scrapes := s.scrapes.Load()
	s.d.t.Logf("%d scrapes of %d totals", scrapes, len(s.highest))
	if scrapes < int64(atLeast) || len(s.highest) == 0 {
		s.d.t.Errorf("%d scrapes worked, with %d totals: is this a test of anything?", scrapes, len(s.highest))
	}
}

// What a container sends after nettally was killed or stopped, and before it ends itself
// and is removed, is counted all the same, and is in the history once.
func TestEndedWhileDown(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startDaemon(t, docker, onlyDocker(docker))
	l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}
	onlyIPv4(t, docker)
	other := docker.Run(dockerhost.Image)
	ended := map[string]ending{}
	for how, end := range map[string]func(){"killed": d.kill, "stopped": d.stop} {
		id := docker.Run("--name", how, dockerhost.Image)
		d.counted(id, 1)
		d.remember(id)
		d.counted(other, 1)
		l.exchange(id, other, "eth0", 200)
		end()
		l.send(other, id, "eth0", 30)
		l.send(id, other, "eth0", 300)
		ended[id] = ending{name: how, kernel: lastCounters(t, docker, id)}
		docker.CLI("stop", "--time", "0", id)
		docker.CLI("rm", id)
		d.start()
		l.check(other)
	}
	for range 2 { // the second time it is from the ledger
		for id, e := range ended {
			l.check(id)
			e.check(t, d, id)
		}
		d.stop()
		d.start()
	}
}

// remember has the ledger know a container by its name.
func (d *daemon) remember(ids ...string) {
	d.t.Helper()
	d.poll("named", func() error {
		for _, id := range ids {
			if c, err := d.container(id); err != nil || c.Name == id {
				return fmt.Errorf("container %s has no name: %w", id, err)
			}
		}
		return nil
	})
	d.stop()
	d.start()
}

// ending is what is to be known of a container that has ended.
type ending struct {
	name   string
	kernel testnet.Counters
}

// onlyIPv4 keeps the host from sending by itself, over IPv6, to containers whose
// interface is down: that passes the host veth, and the container's counters have it not.
func onlyIPv4(t *testing.T, docker *dockerhost.Docker) {
	t.Helper()
	nettest.Must(docker.Namespace.Run("sh", "-c",
		"cd /proc/sys/net/ipv6/conf && echo 1 >default/disable_ipv6 && echo 1 >all/disable_ipv6"))(t)
}

// lastCounters takes a container's interface down, so that its counters are final.
func lastCounters(t *testing.T, docker *dockerhost.Docker, id string) testnet.Counters {
	t.Helper()
	nettest.Must(docker.ContainerNamespace(id).Run("ip", "link", "set", "eth0", "down"))(t)
	return docker.NetDev(id)["eth0"]
}

func (e ending) check(t *testing.T, d *daemon, id string) {
	t.Helper()
	c := nettest.Must(d.container(id))(t)
	if c.Name != e.name || c.State != "stopped" || c.StoppedAt == nil || !c.Accounted {
		t.Errorf("%s is %s, %s since %v, accounted %v (%s)", e.name, c.Name, c.State, c.StoppedAt, c.Accounted, c.Reason)
	}
	if diff := cmp.Diff(e.kernel, interfaceCounters(c)); diff != "" {
		t.Errorf("%s (-kernel +ours):\n%s", e.name, diff)
	}
	d.inHistory(id)
}

func interfaceCounters(c exporter.Container) testnet.Counters {
	rx, tx := asInterface(c.Receive), asInterface(c.Transmit)
	return testnet.Counters{
		ReceiveBytes: rx.Bytes, ReceivePackets: rx.Packets,
		TransmitBytes: tx.Bytes, TransmitPackets: tx.Packets,
	}
}

// inHistory waits until the history has what was counted for a container, without what
// was seeded, and expects it never to have more.
func (d *daemon) inHistory(id string) {
	d.t.Helper()
	d.poll("in the history", func() error {
		got := d.history(id)
		c := nettest.Must(d.container(id))(d.t)
		want := counted(c)
		if got.Bytes > want.Bytes || got.Packets > want.Packets {
			d.t.Fatalf("the history has %+v of %s, of which %+v was counted", got, c.Name, want)
		}
		if got != want {
			return fmt.Errorf("%s: %+v, want %+v", c.Name, got, want)
		}
		return nil
	})
}

// counted is what was counted of a container in both directions.
func counted(c exporter.Container) exporter.Volume {
	return exporter.Volume{
		Bytes:   c.Receive.Bytes + c.Transmit.Bytes - c.Receive.SeededBytes - c.Transmit.SeededBytes,
		Packets: c.Receive.Packets + c.Transmit.Packets - c.Receive.SeededPackets - c.Transmit.SeededPackets,
	}
}

// history returns the sum of what `nettally history` has of a container.
func (d *daemon) history(id string) (sum exporter.Volume) {
	d.t.Helper()
	out, err := d.run("history", "--step", "hour", "--by", "container", "--container", id, "-o", "json")
	var h exporter.History
	if err := errors.Join(err, json.Unmarshal([]byte(out), &h)); err != nil {
		d.t.Fatalf("history: %v: %s", err, out)
	}
	for _, row := range h.History {
		sum.Bytes += row.Receive.Bytes + row.Transmit.Bytes
		sum.Packets += row.Receive.Packets + row.Transmit.Packets
	}
	return sum
}

// What passed before nettally's first start, and between a detach and the next start, is
// in the totals, which are the kernel's, and in no hour of the history.
func TestRanBefore(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	a, b := docker.Run(dockerhost.Image), docker.Run(dockerhost.Image)
	r := &ranBefore{
		pair:   &pair{docker: docker},
		life:   life{t: t, docker: docker, sent: map[string]uint64{}},
		unseen: map[string]uint64{},
		seeded: map[string]uint64{},
	}
	r.miss(a, b, 400)
	r.daemon = startDaemon(t, docker, onlyDocker(docker))
	r.d = r.daemon
	r.see(a, b, 300)

	r.d.stop()
	nettest.Must(r.d.run("detach"))(t)
	r.miss(b, a, 500)
	r.d.start()
	r.see(a, b, 100)
	r.d.kill()
	r.d.start()
	r.see(b, a, 100)
	r.d.stop() // which writes it down
	r.d.start()
	for _, id := range []string{a, b} {
		r.d.inHistory(id)
	}
}

// ranBefore keeps account of traffic that nobody counts, beside that which is counted.
type ranBefore struct {
	*pair
	life
	unseen map[string]uint64 // bytes since nettally ran last, by container
	seeded map[string]uint64 // bytes, as nettally had them then
}

// miss sends datagrams while nothing is counted.
func (r *ranBefore) miss(from, to string, count int) {
	r.t.Helper()
	sent := maps.Clone(r.sent)
	r.send(from, to, "eth0", count)
	for _, id := range []string{from, to} {
		r.unseen[id] += uint64(count) * (14 + 20 + 8 + 100)
	}
	r.sent = sent
}

// see expects the totals to be the kernel's, and what was missed to be in them and in no
// protocol, before and after datagrams that are counted.
func (r *ranBefore) see(from, to string, count int) {
	r.t.Helper()
	for _, id := range []string{from, to} {
		r.d.counted(id, 1)
		r.likeKernel(r.t, id, asInterface)
		c := nettest.Must(r.d.container(id))(r.t)
		got := c.Receive.SeededBytes + c.Transmit.SeededBytes
		if grown := got - r.seeded[id]; grown < r.unseen[id] || r.unseen[id] == 0 && grown > 0 || got != c.Interfaces[0].SeededBytes {
			r.t.Errorf("%s: %d bytes more seeded (%d, %d on eth0), %d were not seen", c.Name, grown, got, c.Interfaces[0].SeededBytes, r.unseen[id])
		}
		r.seeded[id], r.unseen[id] = got, 0
	}
	r.exchange(from, to, "eth0", count)
	for _, id := range []string{from, to} {
		r.likeKernel(r.t, id, asInterface)
		r.likeKernel(r.t, id, wire)
	}
}

// A container that is stopped, forgotten, and started again goes on from its totals.
func TestSameContainerLater(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startDaemon(t, docker, fmt.Sprintf(`watch: {include: [%q], reconcile: 1s}
names: {docker: %q, podman: "off", cri: "off"}
retention: {metrics: 1s, api: 1s}`, docker.CgroupParent+"/*", "unix://"+docker.Socket)+everyFamily)
	l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}
	onlyIPv4(t, docker)
	other, id := docker.Run("--name", "other", dockerhost.Image), docker.Run("--name", "again", dockerhost.Image)
	d.counted(other, 1)
	d.counted(id, 1)
	l.exchange(id, other, "eth0", 200)
	scraper := startScraper(d)
	scraper.gaps = true
	l.exchange(other, id, "eth0", 100)
	before := lastCounters(t, docker, id)
	docker.CLI("stop", "--time", "0", id)
	d.poll("forgotten", func() error {
		if c, err := d.container(id); err == nil {
			return fmt.Errorf("container %s is %s", c.Name, c.State)
		}
		return nil
	})

	docker.CLI("start", id)
	d.counted(id, 1)
	l.check(id)
	l.exchange(id, other, "eth0", 100)
	scraper.stop(10)
	kernel := sum(before, lastCounters(t, docker, id))
	c := nettest.Must(d.container(id))(t)
	if diff := cmp.Diff(kernel, interfaceCounters(c)); diff != "" || c.Name != "again" {
		t.Errorf("%s, over two lives (-kernel +ours):\n%s", c.Name, diff)
	}
}

func sum(a, b testnet.Counters) testnet.Counters {
	return testnet.Counters{
		ReceiveBytes: a.ReceiveBytes + b.ReceiveBytes, ReceivePackets: a.ReceivePackets + b.ReceivePackets,
		TransmitBytes: a.TransmitBytes + b.TransmitBytes, TransmitPackets: a.TransmitPackets + b.TransmitPackets,
	}
}
