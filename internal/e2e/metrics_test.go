// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Addresses on the loopback of a test's host.
const (
	metricsAddress    = "127.0.0.1:9819"
	prometheusAddress = "127.0.0.1:9090"
)

const everyFamily = "\nmetrics: {families: [interface, protocol, family, tcp_flags], compat: cadvisor}"

// After traffic of every kind, JSON, metrics and a Prometheus that scrapes these have the
// same numbers, while the containers run and when one has ended.
func TestMetrics(t *testing.T) {
	t.Parallel()
	need.Root(t)
	need.Commands(t, "prometheus", "promtool")
	docker := dockerhost.Start(t, dockerhost.Options{})
	d := startListening(t, docker, metricsAddress, onlyDocker(docker)+everyFamily)
	p := startPair(t, docker, d)
	l := &life{t: t, docker: docker, d: d, sent: map[string]uint64{}}
	host := client(docker.Namespace)
	p.traffic(l)
	p.loses(t)

	scrapes := map[string]func() (string, error){
		"unix socket": func() (string, error) { return d.get("/metrics") },
		"TCP":         func() (string, error) { return fetch(host, metricsAddress, "/metrics") },
	}
	for name, scrape := range scrapes {
		t.Run("JSON and metrics over "+name, func(t *testing.T) { d.agree(t, scrape) })
	}
	t.Run("promtool", func(t *testing.T) { lint(t, nettest.Must(d.get("/metrics"))(t)) })
	t.Run("Prometheus", func(t *testing.T) { scraped(t, docker, d, host) })

	docker.CLI("stop", "--time", "0", p.server)
	d.poll("stopped", func() error {
		if c := nettest.Must(d.container(p.server))(t); c.State != "stopped" {
			return fmt.Errorf("server is %s", c.State)
		}
		return nil
	})
	d.leftWith(2) // the client's
	l.check(p.server)
	t.Run("an ended container stays", func(t *testing.T) { d.agree(t, scrapes["TCP"]) })
	last := nettest.Must(d.container(p.server))(t)
	t.Run("until retention.metrics is over", func(t *testing.T) {
		d.configure("\nmetrics: {", "\nretention: {metrics: 1s}\nmetrics: {")
		d.poll("dropped from the metrics", func() error {
			if strings.Contains(nettest.Must(d.get("/metrics"))(t), p.server) {
				return fmt.Errorf("container %s is there", p.server)
			}
			return nil
		})
		if diff := cmp.Diff(last, nettest.Must(d.container(p.server))(t)); diff != "" {
			t.Errorf("JSON of the ended container changed (-before +after):\n%s", diff)
		}
	})
}

// traffic sends TCP and UDP in both directions, over both families and, at the end, over
// a second interface.
func (p *pair) traffic(l *life) {
	l.t.Helper()
	const connected, refused, bytes = 20, 7, 5_000_000
	l.exchange(p.client, p.server, "eth0", 200)
	l.exchange(p.server, p.client, "eth0", 100)
	for _, address := range p.addresses() {
		sink := nettest.Must(p.serverAgent.Listen("tcp", address))(l.t)
		p.connect(l.t, p.clientAgent, sink.Addr, testnet.Connects{Connected: connected})
		p.connect(l.t, p.clientAgent, netip.AddrPortFrom(address, 9), testnet.Connects{Refused: refused})
		if err := p.clientAgent.SendTCP(sink.Addr, bytes, testnet.Write); err != nil {
			l.t.Fatal(err)
		}
	}
	back := nettest.Must(p.clientAgent.Listen("tcp", p.docker.IPv4(p.client, "eth0")))(l.t)
	if err := p.serverAgent.SendTCP(back.Addr, bytes, testnet.Write); err != nil {
		l.t.Fatal(err)
	}

	p.docker.NetworkCreate("second", "--subnet", "10.233.0.0/24")
	p.docker.NetworkConnect("second", p.client)
	p.docker.NetworkConnect("second", p.server)
	p.daemon.counted(p.client, 2)
	p.daemon.counted(p.server, 2)
	l.exchange(p.client, p.server, "eth1", 50)
	l.exchange(p.server, p.client, "eth1", 30)
	// Each family: connections, refused ones, and the one that carried the bytes.
	c := nettest.Must(p.daemon.container(p.client))(l.t)
	if want := uint64(2 * (connected + refused + 1)); c.Transmit.TCPSYN != want || c.Receive.TCPSYN != 1 {
		l.t.Errorf("client sent %d SYN and got %d, want %d and 1", c.Transmit.TCPSYN, c.Receive.TCPSYN, want)
	}
}

// loses has the server lose packets, as /proc/<pid>/net/dev says, where cAdvisor reads it.
func (p *pair) loses(t *testing.T) {
	t.Helper()
	veth := p.docker.HostVeth(p.server, "eth0")
	mac := nettest.Must(p.docker.ContainerNamespace(p.server).LinkByName("eth0"))(t).Attrs().HardwareAddr
	nettest.SendUnwanted(t, nettest.Agent(t, p.docker.Namespace), veth, mac, 40)
	pid := p.docker.PID(p.server)
	p.daemon.poll("said to have lost what the kernel says", func() error {
		kernel := nettest.Must(testnet.InterfaceLosses(pid))(t)
		text, err := p.daemon.get("/metrics")
		if err != nil {
			return err
		}
		all := nettest.Must(parse(text))(t)
		for name, of := range kernel {
			if name == "lo" {
				continue
			}
			for family, want := range map[string]uint64{
				"receive_packets_dropped": of.ReceiveDropped, "receive_errors": of.ReceiveErrors,
				"transmit_packets_dropped": of.TransmitDropped, "transmit_errors": of.TransmitErrors,
			} {
				got, ok := find(all, "container_network_"+family+"_total", "server", name)
				if !ok || got != float64(want) {
					return fmt.Errorf("%s of %s is %v (%t), in /proc %d", family, name, got, ok, want)
				}
			}
		}
		if kernel["eth0"].ReceiveDropped < 40 {
			return fmt.Errorf("the kernel has dropped %+v", kernel["eth0"])
		}
		return nil
	})
}

// find returns the sample of a container's interface.
func find(all samples, metric, container, iface string) (value float64, ok bool) {
	for key, value := range all {
		if strings.HasPrefix(key, metric+"{") && strings.Contains(key, `name="`+container+`"`) && strings.Contains(key, `interface="`+iface+`"`) {
			return value, true
		}
	}
	return 0, false
}

// agree expects the metrics to be what the JSON says, at a moment when nothing is counted.
func (d *daemon) agree(t *testing.T, scrape func() (string, error)) {
	t.Helper()
	var want, got samples
	d.poll("at rest", func() error {
		before := d.list()
		text, err := scrape()
		if err != nil {
			return err
		}
		after := d.list()
		before.TakenAt, before.BootMS = after.TakenAt, after.BootMS
		if diff := cmp.Diff(before, after); diff != "" {
			return fmt.Errorf("containers counted during the scrape (-before +after):\n%s", diff)
		}
		want, got = expected(after), ofContainers(nettest.Must(parse(text))(t))
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("samples (-JSON +metrics):\n%s", diff)
	}
}

// samples are values by name and labels, in Prometheus' notation.
type samples map[string]float64

// add adds a sample. A label without a value is none.
func (s samples) add(m model.Metric, value float64) {
	m = m.Clone()
	maps.DeleteFunc(m, func(_ model.LabelName, value model.LabelValue) bool { return value == "" })
	s[m.String()] += value // twice the same would show as a wrong sum
}

func samplesOf(vector model.Vector) samples {
	s := samples{}
	for _, v := range vector {
		s.add(v.Metric, float64(v.Value))
	}
	return s
}

// parse reads the text format.
func parse(text string) (samples, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	all := slices.Collect(maps.Values(families))
	all = slices.DeleteFunc(all, func(f *dto.MetricFamily) bool {
		return f.GetType() != dto.MetricType_COUNTER && f.GetType() != dto.MetricType_GAUGE
	})
	vector, err := expfmt.ExtractSamples(&expfmt.DecodeOptions{}, all...)
	return samplesOf(vector), err
}

// ofContainers returns the samples that belong to containers.
func ofContainers(s samples) samples {
	s = maps.Clone(s)
	maps.DeleteFunc(s, func(key string, _ float64) bool {
		return !strings.HasPrefix(key, "nettally_container_") && !strings.HasPrefix(key, "container_")
	})
	return s
}

// expected returns the samples of every family that JSON stands for.
func expected(found *exporter.Containers) samples {
	s := samples{}
	for _, c := range found.Containers {
		s.addContainer(c)
		if c.IP != nil {
			s.addIP("receive", c, c.IP.Receive)
			s.addIP("transmit", c, c.IP.Transmit)
		}
		if c.TCP != nil {
			s.addTCP(c, c.TCP)
		}
		for _, i := range c.Interfaces {
			s.addDirection("receive", c, i.Name, i.Receive)
			s.addDirection("transmit", c, i.Name, i.Transmit)
		}
	}
	return s
}

func (s samples) addContainer(c exporter.Container) {
	s.add(labels("nettally_container_info", "container_id", c.ID, "name", c.Name, "namespace", c.Namespace, "pod", c.Pod,
		"runtime", c.Runtime, "image", c.Image, "cgroup", c.Cgroup, "network_mode", c.NetworkMode, "parent_id", c.ParentID), 1)
	s.add(labels("nettally_container_accounted", "container_id", c.ID, "name", c.Name, "reason", c.Reason),
		map[bool]float64{true: 1}[c.Accounted])
}

func (s samples) addIP(direction string, c exporter.Container, n exporter.IPCounts) {
	for name, value := range map[string]uint64{"bytes": n.Bytes, "packets": n.Packets, "tcp_syn": n.TCPSYN} {
		s.add(labels("nettally_container_ip_"+direction+"_"+name+"_total",
			"container_id", c.ID, "name", c.Name, "namespace", c.Namespace, "pod", c.Pod), float64(value))
	}
}

func (s samples) addTCP(c exporter.Container, n *exporter.TCP) {
	for name, value := range map[string]*uint64{
		"connect_attempts_total": &n.ConnectAttempts, "connects_total": n.Connects, "accepts_total": &n.Accepts,
		"connect_failures_total": n.ConnectFailures, "resets_total": &n.Resets, "retransmitted_segments_total": n.RetransmittedSegments,
		"listen_drops_total": n.ListenDrops, "established": n.Established,
	} {
		if value != nil {
			s.add(labels("nettally_container_tcp_"+name, "container_id", c.ID, "name", c.Name, "namespace", c.Namespace, "pod", c.Pod), float64(*value))
		}
	}
}

func (s samples) addDirection(direction string, c exporter.Container, iface string, n exporter.Counts) {
	of := []string{"container_id", c.ID, "name", c.Name, "namespace", c.Namespace, "pod", c.Pod, "interface", iface}
	volume := func(prefix string, v exporter.Volume, of ...string) {
		s.add(labels(prefix+direction+"_bytes_total", of...), float64(v.Bytes))
		s.add(labels(prefix+direction+"_packets_total", of...), float64(v.Packets))
	}
	asKernel := exporter.Volume{Bytes: n.InterfaceBytes, Packets: n.InterfacePackets}
	volume("nettally_container_network_", n.Volume, of...)
	s.add(labels("nettally_container_network_"+direction+"_tcp_syn_total", of...), float64(n.TCPSYN))
	volume("nettally_container_interface_", asKernel, of...)
	asCAdvisor := []string{"id", c.Cgroup, "name", c.Name, "image", c.Image, "interface", iface, "namespace", c.Namespace, "pod", c.Pod}
	volume("container_network_", asKernel, asCAdvisor...)
	for name, lost := range map[string]*uint64{"dropped_packets": n.DroppedPackets, "error_packets": n.ErrorPackets, "undelivered_packets": n.UndeliveredPackets} {
		if lost != nil {
			s.add(labels("nettally_container_network_"+direction+"_"+name+"_total", of...), float64(*lost))
		}
	}
	if n.DroppedPackets != nil {
		s.add(labels("container_network_"+direction+"_packets_dropped_total", asCAdvisor...), float64(*n.DroppedPackets))
		s.add(labels("container_network_"+direction+"_errors_total", asCAdvisor...), float64(*n.ErrorPackets))
	}
	for protocol, v := range map[string]exporter.Volume{
		"tcp": n.Protocols.TCP, "udp": n.Protocols.UDP, "icmp": n.Protocols.ICMP, "other": n.Protocols.Other,
	} {
		volume("nettally_container_protocol_", v, append(of, "protocol", protocol)...)
	}
	for family, v := range map[string]exporter.Volume{"ipv4": n.Families.IPv4, "ipv6": n.Families.IPv6, "other": n.Families.Other} {
		volume("nettally_container_family_", v, append(of, "family", family)...)
	}
	for flag, packets := range map[string]uint64{"syn": n.TCPSYN, "synack": n.TCPSYNACK, "rst": n.TCPRST, "fin": n.TCPFIN} {
		s.add(labels("nettally_container_tcp_flags_"+direction+"_packets_total", append(of, "flag", flag)...), float64(packets))
	}
}

// labels makes a metric of names and values in turn.
func labels(name string, pairs ...string) model.Metric {
	m := model.Metric{model.MetricNameLabel: model.LabelValue(name)}
	for pair := range slices.Chunk(pairs, 2) {
		m[model.LabelName(pair[0])] = model.LabelValue(pair[1])
	}
	return m
}

// lint expects Prometheus' own tool to have nothing to say about a scrape.
func lint(t *testing.T, text string) {
	t.Helper()
	cmd := on{nettest.Host(t)}.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// scraped expects a real Prometheus to have the JSON's numbers and to join them.
func scraped(t *testing.T, docker *dockerhost.Docker, d *daemon, host *http.Client) {
	startPrometheus(t, docker)
	d.poll("scraped", func() error {
		up, err := query(host, `up{job="nettally"}`)
		if want := (samples{`up{instance="` + metricsAddress + `", job="nettally"}`: 1}); err == nil && !maps.Equal(up, want) {
			err = fmt.Errorf("up: %v", up)
		}
		return err
	})
	var names []string
	for _, direction := range []string{"receive", "transmit"} {
		for _, unit := range []string{"bytes", "packets", "tcp_syn"} {
			names = append(names, "nettally_container_network_"+direction+"_"+unit+"_total")
		}
	}
	for _, container := range []string{"client", "server"} {
		for _, name := range names {
			d.stored(host, name, container, fmt.Sprintf("%s{name=%q}", name, container), "")
			joined := fmt.Sprintf("%s{name=%q} * on(container_id) group_left(image) nettally_container_info", name, container)
			d.stored(host, name, container, joined, dockerhost.Image)
		}
	}
}

// stored waits until a query answers with the numbers that the JSON has for a container,
// one for each of its two interfaces. A query that joins drops the name of the metric and
// adds the image.
func (d *daemon) stored(host *http.Client, name, container, promQL, image string) {
	d.t.Helper()
	d.poll("the JSON's "+name+" in Prometheus", func() error {
		got, err := query(host, promQL)
		if err != nil {
			return err
		}
		want := samples{}
		for _, c := range d.list().Containers {
			if c.Name != container {
				continue
			}
			for _, i := range c.Interfaces {
				m := labels(name, "container_id", c.ID, "name", c.Name, "interface", i.Name,
					"instance", metricsAddress, "job", "nettally", "image", image)
				if image != "" {
					delete(m, model.MetricNameLabel)
				}
				want.add(m, primary(i)[name])
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || len(got) != 2 {
			return fmt.Errorf("%d samples (-JSON +Prometheus):\n%s", len(got), diff)
		}
		return nil
	})
}

// primary returns the values of an interface's six primary counters, by name.
func primary(i exporter.Interface) map[string]float64 {
	values := map[string]float64{}
	for direction, n := range map[string]exporter.Counts{"receive": i.Receive, "transmit": i.Transmit} {
		for unit, value := range map[string]uint64{"bytes": n.Bytes, "packets": n.Packets, "tcp_syn": n.TCPSYN} {
			values["nettally_container_network_"+direction+"_"+unit+"_total"] = float64(value)
		}
	}
	return values
}

// startPrometheus runs a Prometheus on the Docker host until the test ends.
func startPrometheus(t *testing.T, docker *dockerhost.Docker) {
	t.Helper()
	startPrometheusOf(t, docker, fmt.Sprintf("scrape_configs: [{job_name: nettally, scrape_interval: 250ms, scrape_timeout: 250ms, static_configs: [{targets: [%q]}]}]",
		metricsAddress))
}

// startPrometheusOf runs a Prometheus with a configuration until the test ends.
func startPrometheusOf(t *testing.T, at place, text string) {
	t.Helper()
	folder := t.TempDir()
	config := filepath.Join(folder, "prometheus.yml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := at.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(folder, "data"),
		"--web.listen-address="+prometheusAddress)
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// It may have ended by itself; Wait tells.
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("prometheus: %v", err)
		}
		if t.Failed() {
			t.Logf("log of prometheus:\n%s", log)
		}
	})
}

// query asks Prometheus for a value now.
func query(host *http.Client, promQL string) (samples, error) {
	body, err := fetch(host, prometheusAddress, "/api/v1/query?query="+url.QueryEscape(promQL))
	if err != nil {
		return nil, err
	}
	var answer struct{ Data struct{ Result model.Vector } }
	err = json.Unmarshal([]byte(body), &answer)
	return samplesOf(answer.Data.Result), err
}

// client returns a client that dials from a namespace.
func client(n *testnet.Namespace) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = n.Do(func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
}

// Saving the file, or SIGHUP, puts a new configuration in force without a restart. One
// with a mistake is refused as a whole, and the metrics say so.
func TestReload(t *testing.T) {
	t.Parallel()
	need.Root(t)
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	d := startDaemon(t, on{host}, fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {include: [%q]}\nmetrics: {families: []}", c.ID))
	d.counted(c.ID, 1)
	d.inForce("", 1)

	d.configure("families: []", "families: [interface, protocol]")
	d.inForce("interface, protocol", 1)
	d.configure("families: [interface, protocol]", "families: [interfaces]")
	d.inForce("interface, protocol", 0)
	d.configure("families: [interfaces]", "families: [tcp_flags]")
	d.inForce("tcp_flags", 1)
	// What needs a restart keeps all the rest from being taken in.
	d.configure("families: [tcp_flags]", "families: [family]}\nattach: {priority: 3")
	d.inForce("tcp_flags", 0)
	d.configure("families: [family]}\nattach: {priority: 3", "families: [family]")
	d.inForce("family", 1)

	d.hideChanges()
	for _, step := range []struct {
		old, new, shows string
		ok              float64
	}{
		{"families: [family]", "families: [protocol]", "protocol", 1},
		{"families: [protocol]", "families: protocol]", "protocol", 0},
		{"families: protocol]", "families: [interface]", "interface", 1},
	} {
		d.configure(step.old, step.new)
		if err := d.cmd.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		d.inForce(step.shows, step.ok)
	}
}

// hideChanges restarts the daemon with its file in another folder, behind a link: there
// only SIGHUP makes it look.
func (d *daemon) hideChanges() {
	d.t.Helper()
	d.stop()
	elsewhere := filepath.Join(d.t.TempDir(), "nettally.yaml")
	if err := os.Rename(d.config, elsewhere); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, d.config); err != nil {
		d.t.Fatal(err)
	}
	d.start()
}

// configure replaces something in the configuration, in place.
func (d *daemon) configure(old, new string) {
	d.t.Helper()
	text := string(nettest.Must(os.ReadFile(d.config))(d.t))
	if !strings.Contains(text, old) {
		d.t.Fatalf("no %q in the configuration:\n%s", old, text)
	}
	if err := os.WriteFile(d.config, []byte(strings.Replace(text, old, new, 1)), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// inForce waits until the metrics show exactly these of the families that are off by
// default, and whether the last reload was taken in.
func (d *daemon) inForce(families string, ok float64) {
	d.t.Helper()
	d.poll("in force", func() error {
		found := nettest.Must(parse(nettest.Must(d.get("/metrics"))(d.t)))(d.t)
		var shown []string
		for _, family := range []string{"interface", "protocol", "family", "tcp_flags"} {
			for key := range found {
				if strings.HasPrefix(key, "nettally_container_"+family+"_") {
					shown = append(shown, family)
					break
				}
			}
		}
		if got := strings.Join(shown, ", "); got != families || found["nettally_config_last_reload_successful"] != ok {
			return fmt.Errorf("families %q, last reload successful %v, want %q and %v",
				got, found["nettally_config_last_reload_successful"], families, ok)
		}
		return nil
	})
}
