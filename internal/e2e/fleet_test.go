// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// shiftedBinary is nettally with a clock that a test can set.
var shiftedBinary = sync.OnceValues(func() (string, error) {
	return buildAs("nettally-shifted", "-tags", "nettally_clock_shift")
})

// shiftedClock is the clock of a fleet.
type shiftedClock struct {
	t     *testing.T
	path  string
	shift time.Duration
}

// set moves the clock on. A step must be below wallclock.Tolerance for the clock to stay trusted.
func (c *shiftedClock) set(shift time.Duration) {
	c.t.Helper()
	c.shift = shift
	if err := os.WriteFile(c.path+".new", []byte(shift.String()), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(c.path+".new", c.path); err != nil {
		c.t.Fatal(err)
	}
}

func (c *shiftedClock) now() time.Time { return time.Now().Add(c.shift) }

// shifted is a host with such a clock, in UTC.
type shifted struct {
	on
	clock *shiftedClock
}

func (s shifted) Command(name string, args ...string) *exec.Cmd {
	cmd := s.on.Command(name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "CLOCK_SHIFT="+s.clock.path)
	return cmd
}

// fleet is hosts with a container each, and a Prometheus for all.
type fleet struct {
	t      *testing.T
	clock  *shiftedClock
	site   *testnet.Namespace // Prometheus is there, and the addresses of the hosts
	docker string             // a socket where names are asked for
	hosts  []*fleetHost

	mu         sync.Mutex
	containers map[string]container.Summary
}

type fleetHost struct {
	*daemon
	fleet *fleet
	c     *testnet.Container
	peer  *testnet.Agent
	cut   atomic.Bool // Prometheus does not reach it
}

// pause is between two looks at what takes seconds, to leave the processor to others.
const pause = 200 * time.Millisecond

// fleetSums are bytes by period, namespace and direction.
type fleetSums map[string]uint64

// The fleet's sums are to the byte what the ledgers of all hosts say, also of one that is lost for
// good, one that is killed and started again, and one that is installed anew, over the end of a
// period.
func TestFleet(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "prometheus")
	f := newFleet(t)
	lost, restarted, anew := f.host("prod"), f.host("prod"), f.host("dev")
	f.prometheus()
	want := fleetSums{}

	f.send(10)
	f.shown(lost, restarted, anew)
	f.await(want, lost, restarted, anew) // the last scrape has it all: the containers are silent now
	lost.cut.Store(true)
	lost.kill()
	want.add(f.ledgers(lost))

	restarted.send(5)
	restarted.kill()
	restarted.send(5) // while nobody is there but the kernel
	restarted.start()
	f.shown(anew)
	f.await(want, restarted, anew)
	anew.reinstall(want)

	f.sendOn(7, restarted, anew)
	f.shown(restarted, anew)
	f.rollOver(restarted, anew)
	f.sendOn(3, restarted, anew)
	f.shown(restarted, anew)

	f.await(want, restarted, anew)
	want.add(f.ledgers(restarted, anew))
	for _, key := range []string{"2026-11 dev receive", "2026-11 prod transmit", "2026-12 dev transmit", "2026-12 prod receive"} {
		if want[key] == 0 {
			t.Errorf("the ledgers have nothing for %s: %v", key, want)
		}
	}
	host := client(f.site)
	ledgers := nettest.Must(query(host, "period:nettally_ledgers:count"))(t)
	// Four in November, and the two that were there in December.
	if diff := cmp.Diff(samples{`period:nettally_ledgers:count{period="2026-11"}`: 4, `period:nettally_ledgers:count{period="2026-12"}`: 2}, ledgers); diff != "" {
		t.Errorf("ledgers (-want +got):\n%s", diff)
	}
}

func newFleet(t *testing.T) *fleet {
	folder := t.TempDir()
	f := &fleet{
		t: t, site: nettest.Host(t), docker: filepath.Join(folder, "docker"),
		clock:      &shiftedClock{t: t, path: filepath.Join(folder, "clock")},
		containers: map[string]container.Summary{},
	}
	f.clock.set(time.Until(time.Date(2026, time.November, 30, 23, 30, 0, 0, time.UTC)).Round(time.Second))
	listener, err := net.Listen("unix", f.docker)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(listener, http.HandlerFunc(f.names))
	return f
}

// serve answers until the test ends.
func (f *fleet) serve(listener net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	f.t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// names answers as Docker does about names and labels.
func (f *fleet) names(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	switch strings.TrimPrefix(r.URL.Path, "/v1.41") {
	case "/_ping":
	case "/version":
		_, _ = io.WriteString(w, `{"Version":"20.10.24","ApiVersion":"1.41"}`)
	case "/containers/json":
		found := []container.Summary{}
		f.mu.Lock()
		for id, c := range f.containers {
			if strings.Contains(r.URL.Query().Get("filters"), id) {
				found = append(found, c)
			}
		}
		f.mu.Unlock()
		_ = json.NewEncoder(w).Encode(found)
	case "/events":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		http.NotFound(w, r)
	}
}

// host adds a host with a container in a namespace of Kubernetes.
func (f *fleet) host(namespace string) *fleetHost {
	f.t.Helper()
	at := nettest.Host(f.t)
	h := &fleetHost{fleet: f, c: nettest.Container(f.t, at, testnet.ContainerOptions{LikeDocker: true}), peer: nettest.Agent(f.t, at)}
	f.mu.Lock()
	f.containers[h.c.ID] = container.Summary{
		ID: h.c.ID, Names: []string{fmt.Sprintf("/app-%d", len(f.hosts))}, Image: "app",
		Labels: map[string]string{"io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.name": "app"},
	}
	f.mu.Unlock()
	config := fmt.Sprintf("watch: {include: [%q]}\nnames: {docker: %q, podman: \"off\", cri: \"off\"}\nmetrics: {periods: {by: [namespace, name]}}",
		h.c.ID, "unix://"+f.docker)
	h.daemon = startBinary(f.t, shiftedBinary, shifted{on{at}, f.clock}, "", config)
	h.counted(h.c.ID, 1)
	var listener net.Listener
	if err := f.site.Do(func() (err error) {
		listener, err = net.Listen("tcp", h.address(len(f.hosts)))
		return err
	}); err != nil {
		f.t.Fatal(err)
	}
	f.serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text, err := h.get("/metrics")
		if err != nil || h.cut.Load() {
			http.Error(w, "gone", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = io.WriteString(w, text)
	}))
	f.hosts = append(f.hosts, h)
	return h
}

func (h *fleetHost) address(n int) string { return fmt.Sprintf("127.0.0.1:%d", 9101+n) }

// prometheus starts one with our rules, which it evaluates more often.
func (f *fleet) prometheus() {
	f.t.Helper()
	const path = "../../configs/prometheus/fleet-rules.yaml"
	text := string(nettest.Must(os.ReadFile(path))(f.t))
	if !strings.Contains(text, "interval: 2m\n") {
		f.t.Fatalf("%s has no interval of 2m", path)
	}
	rules := filepath.Join(f.t.TempDir(), "fleet-rules.yaml")
	if err := os.WriteFile(rules, []byte(strings.ReplaceAll(text, "interval: 2m\n", "interval: 1s\n")), 0o600); err != nil {
		f.t.Fatal(err)
	}
	var targets []string
	for i, h := range f.hosts {
		targets = append(targets, fmt.Sprintf("%q", h.address(i)))
	}
	startPrometheusOf(f.t, on{f.site}, fmt.Sprintf("rule_files: [%q]\nscrape_configs: [{job_name: nettally, honor_labels: true, "+
		"scrape_interval: 1s, static_configs: [{targets: [%s]}]}]", rules, strings.Join(targets, ", ")))
}

// send has each host's container send and receive as many datagrams, times the number of the host.
func (f *fleet) send(count int) { f.sendOn(count, f.hosts...) }

func (f *fleet) sendOn(count int, hosts ...*fleetHost) {
	f.t.Helper()
	for i, h := range hosts {
		h.send(count * (i + 1))
	}
}

func (h *fleetHost) send(count int) {
	h.fleet.t.Helper()
	iface := h.c.Interfaces[0]
	for size, way := range map[int]struct{ from, to *testnet.Agent }{100: {h.c.Agent, h.peer}, 1000: {h.peer, h.c.Agent}} {
		ip := iface.IPv4
		if way.to == h.peer {
			ip = iface.HostIPv4
		}
		sink := nettest.Must(way.to.Listen("udp", ip))(h.fleet.t)
		if err := way.from.SendUDP(sink.Addr, count, size); err != nil {
			h.fleet.t.Fatal(err)
		}
		nettest.Must(sink.Received(count))(h.fleet.t)
	}
}

// shown waits until each host shows in its metrics what its containers have used by now. No period
// ends meanwhile.
func (f *fleet) shown(hosts ...*fleetHost) {
	f.t.Helper()
	for _, h := range hosts {
		h.poll("flushed", func() error {
			c, err := h.container(h.c.ID)
			if err != nil {
				return err
			}
			seeded := uint64(0)
			for _, i := range c.Interfaces {
				seeded += i.SeededBytes
			}
			shown := h.periods()
			if all := c.Receive.Bytes + c.Transmit.Bytes - seeded; shown != all {
				time.Sleep(pause)
				return fmt.Errorf("%d bytes are counted, and %d in periods", all, shown)
			}
			return nil
		})
	}
}

// periods returns how many bytes a host exports in all.
func (h *fleetHost) periods() (sum uint64) {
	h.fleet.t.Helper()
	for name, value := range nettest.Must(parse(nettest.Must(h.get("/metrics"))(h.fleet.t)))(h.fleet.t) {
		if strings.HasPrefix(name, "nettally_period_bytes_total{") {
			sum += uint64(value)
		}
	}
	return sum
}

// ledgers adds up what the ledgers of hosts say, by `nettally history`.
func (f *fleet) ledgers(hosts ...*fleetHost) fleetSums {
	f.t.Helper()
	sums := fleetSums{}
	for _, h := range hosts {
		command := h.at.Command(nettest.Must(h.binary())(f.t), "history", "--config", h.config, "-o", "json",
			"--by", "namespace", "--step", "month", "--from", "2026-11-01", "--to", "2027-01-01")
		out := nettest.Must(command.Output())(f.t) // where no daemon answers, stderr says so
		var found exporter.History
		if err := json.Unmarshal(out, &found); err != nil {
			f.t.Fatalf("%v: %s", err, out)
		}
		for _, row := range found.History {
			key := row.Start.UTC().Format("2006-01") + " " + row.Key
			sums[key+" receive"] += row.Receive.Bytes
			sums[key+" transmit"] += row.Transmit.Bytes
		}
	}
	return sums
}

func (s fleetSums) add(more fleetSums) {
	for key, n := range more {
		s[key] += n
	}
}

func sumOf(a, b fleetSums) fleetSums {
	sum := maps.Clone(a)
	sum.add(b)
	return sum
}

// await waits until Prometheus has these sums, and what hosts that still flush say by then.
func (f *fleet) await(want fleetSums, flushing ...*fleetHost) {
	f.t.Helper()
	host := client(f.site)
	f.hosts[0].poll("what Prometheus has", func() error {
		all := sumOf(want, f.ledgers(flushing...))
		got := samples{}
		found, err := query(host, "namespace:nettally_period_bytes:sum")
		maps.Copy(got, found)
		expected := samples{}
		for key, n := range all {
			part := strings.Fields(key)
			expected[fmt.Sprintf(`namespace:nettally_period_bytes:sum{direction=%q, namespace=%q, period=%q}`, part[2], part[1], part[0])] = float64(n)
		}
		if diff := cmp.Diff(expected, got); err == nil && diff != "" {
			time.Sleep(pause)
			err = fmt.Errorf("sums (-ledgers +Prometheus):\n%s", diff)
		}
		return err
	})
}

// reinstall takes nettally and its state off the host, and begins anew. What the old ledger had is
// added to want.
func (h *fleetHost) reinstall(want fleetSums) {
	h.fleet.t.Helper()
	h.stop()
	want.add(h.fleet.ledgers(h))
	if out, err := h.run("detach"); err != nil {
		h.fleet.t.Fatalf("detach: %v: %s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(filepath.Dir(h.socket), "state")); err != nil {
		h.fleet.t.Fatal(err)
	}
	h.start()
	h.counted(h.c.ID, 1)
}

// rollOver lets time go by, in steps that no clock is distrusted for, until the month is over.
func (f *fleet) rollOver(hosts ...*fleetHost) {
	f.t.Helper()
	for f.clock.now().Before(time.Date(2026, time.December, 1, 0, 0, 30, 0, time.UTC)) {
		f.clock.set(f.clock.shift + 45*time.Second)
		for _, h := range hosts {
			// History until now looks at the clock.
			nettest.Must(h.get("/api/v1/history?step=month"))(f.t)
		}
	}
	for _, h := range hosts {
		if n := h.metric("nettally_clock_trusted"); n != 1 {
			f.t.Fatalf("the clock is not trusted\n%s", h.log)
		}
	}
}
