// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

func needRequests(t *testing.T) {
	t.Helper()
	need.Root(t)
	need.Kernel(t, "bpf_loop", bpf.HaveRequests())
}

// web is a container with servers and one with clients, which run programs of the machine, and the
// daemon.
type web struct {
	t              *testing.T
	docker         *dockerhost.Docker
	d              *daemon
	server, client string
	address        string // the server's
	folder         string // of both, and of the machine
	logs           []string
}

// messages are requests by method and responses by class of status.
type messages struct{ Requests, Responses map[string]uint64 }

func newWeb(t *testing.T, config string) *web {
	t.Helper()
	needRequests(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	docker.NetworkCreate("plain", "--subnet", "10.234.0.0/24", "--gateway", "10.234.0.1")
	w := &web{t: t, docker: docker, folder: t.TempDir(), d: startListening(t, docker, metricsAddress, onlyDocker(docker)+"\n"+config)}
	for _, dir := range []string{w.folder, filepath.Dir(w.folder)} { // those of this test; nginx's workers are another user
		must(t, os.Chmod(dir, 0o755))
	}
	run := func(name string) string {
		return docker.Run("--name", name, "--network", "plain", "--cap-add", "NET_ADMIN", "-v", "/:/machine:ro", "-v", w.folder+":/machine"+w.folder, dockerhost.Image)
	}
	w.server, w.client = run("server"), run("client")
	w.address = docker.IPv4(w.server, "eth0").String()
	d := w.d
	for _, id := range []string{w.server, w.client} {
		d.poll("counted", func() error {
			if c, err := d.container(id); err != nil || c.Requests == nil {
				return fmt.Errorf("no requests of %s: %v", id, err)
			}
			return nil
		})
	}
	return w
}

// in runs a program of the machine in a container.
func (w *web) in(id string, program ...string) string {
	w.t.Helper()
	out, err := w.docker.Client(w.exec("exec", id, program...)...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %v: %s", program, err, out)
	}
	return string(out)
}

// exec returns the arguments of docker that run a program of the machine in a container.
func (w *web) exec(how, id string, program ...string) []string {
	w.t.Helper()
	path := nettest.Must(exec.LookPath(program[0]))(w.t)
	return slices.Concat(strings.Fields(how), []string{id, "chroot", "/machine", path}, program[1:])
}

// serve starts a server of the machine in a container, and waits until it listens.
func (w *web) serve(port int, program ...string) {
	w.t.Helper()
	w.docker.CLI(w.exec("exec -d", w.server, program...)...)
	w.d.poll("listens", func() error {
		if w.in(w.server, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port)) == "" {
			return fmt.Errorf("%v does not listen", program)
		}
		return nil
	})
}

// nginx serves files by sendfile, and passes on what begins with /go.
func (w *web) nginx() {
	w.t.Helper()
	need.Commands(w.t, "nginx")
	www := filepath.Join(w.folder, "www")
	must(w.t, os.Mkdir(www, 0o755))
	must(w.t, os.WriteFile(filepath.Join(www, "small"), []byte("hello"), 0o644))
	must(w.t, os.WriteFile(filepath.Join(www, "large"), []byte(strings.Repeat("GET / HTTP/1.1\r\n\r\n", 200_000)), 0o644))
	log := filepath.Join(w.folder, "access.log")
	w.logs = append(w.logs, log)
	config := filepath.Join(w.folder, "nginx.conf")
	must(w.t, os.WriteFile(config, fmt.Appendf(nil, `
worker_processes 2;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events {}
http {
	log_format short '$request_method $status $server_protocol';
	access_log %[1]s/access.log short;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	sendfile on;
	server {
		listen 80;
		keepalive_requests 1000000;
		client_max_body_size 0;
		root %[1]s/www;
		location /go/ {
			proxy_pass http://%[2]s:8080/;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
		}
	}
}
`, w.folder, w.address), 0o644))
	w.in(w.server, "nginx", "-c", config) // which goes on in the background
}

// logged returns what the servers have logged since the last call.
func (w *web) logged() messages {
	w.t.Helper()
	now := messages{map[string]uint64{}, map[string]uint64{}}
	for _, log := range w.logs {
		for line := range strings.Lines(string(nettest.Must(os.ReadFile(log))(w.t))) {
			var method, protocol string
			var status int
			if _, err := fmt.Sscan(line, &method, &status, &protocol); err != nil {
				w.t.Fatalf("%s: %q: %v", log, line, err)
			}
			if !slices.Contains(bpf.HTTPMethods[:], method) {
				method = "_OTHER"
			}
			if protocol != "HTTP/2.0" {
				now.Requests[method]++
				now.Responses[fmt.Sprintf("%dxx", status/100)]++
			}
		}
	}
	return now
}

// counts returns what is counted of a direction, without what is 0.
func counts(m exporter.HTTPMessages) messages {
	got := messages{maps.Clone(m.Requests), maps.Clone(m.Responses)}
	for _, of := range []map[string]uint64{got.Requests, got.Responses} {
		maps.DeleteFunc(of, func(_ string, n uint64) bool { return n == 0 })
	}
	return got
}

// containers returns the two as they are told now.
func (w *web) containers() (client, server exporter.Container, err error) {
	if client, err = w.d.container(w.client); err == nil {
		server, err = w.d.container(w.server)
	}
	return client, server, err
}

// both returns what the client has sent and the server received, of requests, and of responses the
// other way round.
func (w *web) both() (client, server messages, resyncs uint64, err error) {
	for id, to := range map[string]*messages{w.client: &client, w.server: &server} {
		c, err := w.d.container(id)
		if err != nil {
			return client, server, 0, err
		}
		in, out := counts(c.Requests.HTTP.Receive), counts(c.Requests.HTTP.Transmit)
		if id == w.client {
			in, out = out, in
		}
		*to = messages{in.Requests, out.Responses}
		for _, n := range c.Requests.HTTP.Resyncs {
			resyncs += n
		}
	}
	return client, server, resyncs, nil
}

// agree waits until both sides have counted just what the logs have, and 100 Continue as often as
// said.
func (w *web) agree(what string, continues uint64) {
	w.t.Helper()
	w.d.poll(what, func() error {
		want := w.logged()
		if continues > 0 {
			want.Responses["1xx"] += continues
		}
		client, server, resyncs, err := w.both()
		if err != nil {
			return err
		}
		if diff := cmp.Diff([]messages{want, want}, []messages{client, server}); diff != "" {
			return fmt.Errorf("(-logged +counted by client and server, %d resyncs):\n%s", resyncs, diff)
		}
		return nil
	})
}

// httppeer builds the program in testdata.
func (w *web) httppeer() string {
	w.t.Helper()
	program := filepath.Join(w.folder, "httppeer")
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/httppeer").CombinedOutput(); err != nil {
		w.t.Fatalf("go build: %v: %s", err, out)
	}
	return program
}

// What nginx and a server of Go's log is what is counted, on both sides, for every kind of message:
// with super-packets and without, over kill -9.
func TestRequests(t *testing.T) {
	t.Parallel()
	need.Commands(t, "curl", "wrk", "ethtool")
	w := newWeb(t, "requests: {http: on}")
	w.nginx()
	peer := w.httppeer()
	w.logs = append(w.logs, filepath.Join(w.folder, "peer.log"))
	w.serve(8080, peer, "serve", ":8080", w.logs[1])
	body := filepath.Join(w.folder, "www", "large")
	nginx, served := "http://"+w.address, "http://"+w.address+":8080"
	continues := uint64(0)
	ask := func() {
		t.Helper()
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", nginx+"/small", "-o", "/dev/null", nginx+"/large", "-o", "/dev/null", nginx+"/none")
		w.in(w.client, "curl", "-sSI", nginx+"/large", nginx+"/small", nginx+"/none")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-z", "tomorrow", nginx+"/large", "-o", "/dev/null", nginx+"/small")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "--http1.0", nginx+"/large")
		w.agree("files", continues)
		for _, path := range []string{"/200?chunks", "/200?length", "/404?length", "/204", "/304", "/500?chunks"} {
			w.in(w.client, "curl", "-sS", "-o", "/dev/null", served+path, "-o", "/dev/null", served+path, "-o", "/dev/null", served+path)
			w.in(w.client, "curl", "-sSI", served+path)
		}
		w.agree("responses", continues)
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-T", body, "-H", "Expect:", served+"/201")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-T", body, "-H", "Expect:", "-H", "Transfer-Encoding: chunked", served+"/201?chunks")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-X", "PROPFIND", "-d", "a=b", served+"/207")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-X", "PATCH", "--data-binary", "@"+body, "-H", "Expect:", served+"/200")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-T", body, "-H", "Expect: 100-continue", served+"/201")
		continues++
		w.agree("bodies", continues)
		w.in(w.client, peer, "pipeline", w.address+":8080", "300")
		w.in(w.client, peer, "upgrade", w.address+":8080")
		w.in(w.client, peer, "streams", w.address+":8080", "50")
		w.agree("pipelines and tunnels", continues)
	}
	ask()
	w.d.kill()
	w.in(w.client, "curl", "-sS", "-o", "/dev/null", nginx+"/small")
	w.d.start()
	w.agree("what passed while it was dead", continues)
	for _, id := range []string{w.server, w.client} {
		w.in(id, "ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off")
	}
	ask()
	w.streams(100)
	w.witnessed(func() {
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", nginx+"/small", "-o", "/dev/null", nginx+"/none", "-o", "/dev/null", served+"/200?chunks")
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-X", "DELETE", served+"/204", "-o", "/dev/null", served+"/500")
		w.in(w.client, peer, "pipeline", w.address+":8080", "50")
		w.in(w.client, peer, "upgrade", w.address+":8080")
	})
	w.busy(nginx + "/small")
}

// streams waits until so many streams of HTTP/2 are counted on both sides.
func (w *web) streams(want uint64) {
	w.t.Helper()
	w.d.poll("streams", func() error {
		client, server, err := w.containers()
		if err != nil {
			return err
		}
		sent, received := client.Requests.HTTP2.Transmit.Streams, server.Requests.HTTP2.Receive.Streams
		if sent != want || received != want {
			return fmt.Errorf("%d sent and %d received, want %d", sent, received, want)
		}
		return nil
	})
}

// witnessed expects tshark to find in a capture what is counted of something.
func (w *web) witnessed(do func()) {
	w.t.Helper()
	before, _, _, err := w.both()
	must(w.t, err)
	capture := nettest.StartFullCapture(w.t, w.docker.Namespace, w.docker.HostVeth(w.server, "eth0"))
	do()
	want := messages{capture.Fields("http.request.method"), map[string]uint64{}}
	for status, n := range capture.Fields("http.response.code") {
		want.Responses[status[:1]+"xx"] += n
	}
	w.d.poll("as tshark has it", func() error {
		client, server, _, err := w.both()
		if err != nil {
			return err
		}
		for of, now := range map[string]messages{"client": client, "server": server} {
			got := messages{added(now.Requests, before.Requests), added(now.Responses, before.Responses)}
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("%s (-tshark +counted):\n%s", of, diff)
			}
		}
		return nil
	})
}

// added returns what has been added to some numbers.
func added(now, before map[string]uint64) map[string]uint64 {
	more := map[string]uint64{}
	for key, n := range now {
		if n > before[key] {
			more[key] = n - before[key]
		}
	}
	return more
}

// busy has wrk ask for a while. When it ends, one request of each of its connections may be on its
// way, and is not logged.
func (w *web) busy(url string) {
	w.t.Helper()
	const connections = 8
	before := w.logged().Requests["GET"]
	out := w.in(w.client, "wrk", "-c", fmt.Sprint(connections), "-t", "2", "-d", "2s", url)
	told := regexp.MustCompile(`(\d+) requests in`).FindStringSubmatch(out)
	if told == nil {
		w.t.Fatal(out)
	}
	w.d.poll("as many as wrk has sent", func() error {
		logged := w.logged().Requests["GET"]
		client, server, _, err := w.both()
		if err != nil {
			return err
		}
		for _, got := range []uint64{client.Requests["GET"], server.Requests["GET"]} {
			if got < logged || got > logged+connections {
				return fmt.Errorf("%d, logged %d", got, logged)
			}
		}
		if logged-before < 100 {
			return fmt.Errorf("%d requests: is this a test of anything?", logged-before)
		}
		return nil
	})
	w.t.Logf("wrk: %s requests, logged %d", told[1], w.logged().Requests["GET"]-before)
}

// One packet of a hundred is lost on the way in, so that others come out of order. Requests that are
// sent are counted exactly all the same; of the rest the resyncs say how much may be missing.
func TestRequestsLost(t *testing.T) {
	t.Parallel()
	need.Commands(t, "curl", "wrk", "nft")
	w := newWeb(t, "requests: {http: on}")
	peer := w.httppeer()
	w.logs = append(w.logs, filepath.Join(w.folder, "peer.log"))
	w.serve(8080, peer, "serve", ":8080", w.logs[0])
	for _, id := range []string{w.server, w.client} {
		w.in(id, "nft", "add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; add rule ip lossy in numgen random mod 100 == 0 drop")
	}
	w.upload()
	w.missing()
	w.others(peer)
}

// The same where a relay brings what the client sends out of order.
func TestRequestsOutOfOrder(t *testing.T) {
	t.Parallel()
	need.Commands(t, "curl", "wrk", "ip", "sysctl", "nsenter")
	w := newWeb(t, "requests: {http: on}")
	peer := w.httppeer()
	w.logs = append(w.logs, filepath.Join(w.folder, "peer.log"))
	w.serve(8080, peer, "serve", ":8080", w.logs[0])
	inside := []string{"--net=" + fmt.Sprintf("/proc/%d/ns/net", w.docker.PID(w.client)), "--"}
	relay := exec.Command("nsenter", append(inside, peer, "relay", "before", "behind")...)
	must(t, relay.Start())
	t.Cleanup(func() {
		_ = relay.Process.Kill()
		_ = relay.Wait()
	})
	// What the container itself sends to the server goes through the relay; what comes out of that
	// is forwarded.
	script := `set -e
for try in $(seq 1000); do [ -e /proc/sys/net/ipv4/conf/behind ] && break; sleep 0.01; done
for device in before behind; do ip link set $device up; done
for device in all behind eth0; do sysctl -qw net.ipv4.conf.$device.rp_filter=0; done
sysctl -qw net.ipv4.conf.behind.accept_local=1 net.ipv4.ip_forward=1
ip route add ` + w.address + ` dev before table 100 src ` + w.docker.IPv4(w.client, "eth0").String() + `
ip rule add iif lo to ` + w.address + ` lookup 100
`
	if out, err := exec.Command("nsenter", append(inside, "sh", "-c", script)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.upload()
	w.missing()
	w.others(peer)
}

// upload asks for bodies of some size, and sends some in chunks.
func (w *web) upload() {
	w.t.Helper()
	body := filepath.Join(w.folder, "body")
	must(w.t, os.WriteFile(body, []byte(strings.Repeat("GET / HTTP/1.1\r\n\r\n", 20_000)), 0o644))
	served := "http://" + w.address + ":8080"
	w.in(w.client, "curl", "-sS", "-o", "/dev/null", served+"/200?[1-100]")
	w.in(w.client, "curl", "-sS", "-o", "/dev/null", "-T", body, "-H", "Expect:", "-H", "Transfer-Encoding: chunked", served+"/404?[1-50]")
}

// missing expects all requests that were sent to be counted. Of what was received no more is missing
// than the resyncs say, of which there are some, and of the responses that were sent no more than
// of the requests that they answer.
func (w *web) missing() {
	w.t.Helper()
	w.d.poll("as much as the resyncs say", func() error {
		want := w.logged()
		client, server, err := w.containers()
		if err != nil {
			return err
		}
		sent := counts(exporter.HTTPMessages{Requests: client.Requests.HTTP.Transmit.Requests, Responses: server.Requests.HTTP.Transmit.Responses})
		if diff := cmp.Diff(want.Requests, sent.Requests); diff != "" {
			return fmt.Errorf("requests sent (-logged +counted):\n%s", diff)
		}
		// The response to a request that was missed is counted once another request has come.
		unseen := int64(total(want.Requests)) - int64(total(server.Requests.HTTP.Receive.Requests))
		if lacks := int64(total(want.Responses)) - int64(total(sent.Responses)); lacks < 0 || lacks > unseen {
			return fmt.Errorf("responses sent: %v, logged %v, and %d requests were not seen", sent.Responses, want.Responses, unseen)
		}
		gaps := uint64(0)
		for side, of := range map[string]struct {
			got, want map[string]uint64
			http      *exporter.HTTP
		}{
			"requests":  {server.Requests.HTTP.Receive.Requests, want.Requests, server.Requests.HTTP},
			"responses": {client.Requests.HTTP.Receive.Responses, want.Responses, client.Requests.HTTP},
		} {
			missing := int64(total(of.want)) - int64(total(of.got))
			if gaps += of.http.Resyncs["gap"]; missing < 0 || missing > int64(total(of.http.Resyncs)) {
				return fmt.Errorf("received %s: %v, logged %v, and resyncs %v", side, of.got, of.want, of.http.Resyncs)
			}
			w.t.Logf("received %s: %v of %v, resyncs %v", side, of.got, of.want, of.http.Resyncs)
		}
		if gaps == 0 {
			w.t.Fatal("no gap: is this a test of anything?")
		}
		return nil
	})
}

// others has clients ask that keep their connections, and one that does not wait for responses.
func (w *web) others(peer string) {
	w.t.Helper()
	served := w.address + ":8080"
	const connections, pipelined = 8, 300
	wrk := func(path string) func() {
		return func() {
			w.in(w.client, "wrk", "-c", fmt.Sprint(connections), "-t", "2", "-d", "1s", "http://"+served+path)
		}
	}
	// Messages that are a packet each, and wait for one another, don't come too early. Of others
	// one of a hundred that follow one that was lost is lost, too, and is no other resync.
	w.explained("wrk", wrk("/200"), connections, 2)
	w.explained("wrk, with bodies", wrk("/200?length"), connections, 2)
	// After a gap, the next message would come after one of the other side's, which has sent all. The
	// first bytes of a connection come alone: where they are missing nobody knows that it is HTTP.
	w.explained("pipelines", func() {
		w.in(w.client, "sh", "-ec", fmt.Sprintf("for i in 1 2 3 4 5; do %s later %s %d; done", peer, served, pipelined))
	}, 0, pipelined)
}

// explained does something, and expects that all requests are counted that were sent meanwhile, and
// that of all else no more is missing than each of the resyncs may have cost: a request that was
// missed may hide its response, too. So many requests may be unfinished in the end, and the server
// may have logged them or not.
func (w *web) explained(what string, do func(), unfinished, each int64) {
	w.t.Helper()
	earlier := w.logged()
	earlierClient, earlierServer, err := w.containers()
	must(w.t, err)
	since := func(now, before map[string]uint64) int64 { return int64(total(now)) - int64(total(before)) }
	const enough, most = 100, 100 // requests, and times that it takes a slow machine
	times := int64(0)
	for ; times < most && since(w.logged().Requests, earlier.Requests) < enough; times++ {
		do()
	}
	unfinished *= times
	w.d.poll(what, func() error {
		logged := w.logged()
		client, server, err := w.containers()
		if err != nil {
			return err
		}
		c, s, bc, bs := client.Requests.HTTP, server.Requests.HTTP, earlierClient.Requests.HTTP, earlierServer.Requests.HTTP
		byServer, byClient := since(s.Resyncs, bs.Resyncs), since(c.Resyncs, bc.Resyncs)
		all := since(logged.Requests, earlier.Requests)
		if all < enough {
			w.t.Fatalf("%d requests: is this a test of anything?", all)
		}
		says := ""
		for _, of := range []struct {
			name     string
			got      int64
			low, top int64
		}{
			{"requests sent", since(c.Transmit.Requests, bc.Transmit.Requests), all, all + unfinished},
			{"requests received", since(s.Receive.Requests, bs.Receive.Requests), all - each*byServer, all + unfinished},
			{"responses sent", since(s.Transmit.Responses, bs.Transmit.Responses), all - unfinished - each*byServer, all},
			{"responses received", since(c.Receive.Responses, bc.Receive.Responses), all - unfinished - each*byClient, all},
		} {
			if says += fmt.Sprintf(", %d %s", of.got, of.name); of.got < of.low || of.got > of.top {
				return fmt.Errorf("%d %s, want %d to %d", of.got, of.name, of.low, of.top)
			}
		}
		w.t.Logf("%s: %d logged%s; %d resyncs of the client, %d of the server", what, all, says, byClient, byServer)
		return nil
	})
}

func total(of map[string]uint64) (all uint64) {
	for _, n := range of {
		all += n
	}
	return all
}

// A client that breaks off what it has begun, sends headers without end, and packets of no
// connection: the requests that it made are counted, no others, and each byte and packet as ever.
func TestRequestsHostile(t *testing.T) {
	t.Parallel()
	w := newWeb(t, "requests: {http: on, tls: on, dns: on}")
	peer := w.httppeer()
	w.serve(8080, peer, "serve", ":8080", filepath.Join(w.folder, "peer.log"))
	server := netip.AddrPortFrom(w.docker.IPv4(w.server, "eth0"), 8080)
	w.in(w.client, peer, "hostile", server.String(), "100")
	mac := nettest.Must(net.ParseMAC(w.docker.CLI("inspect", "--format", "{{.NetworkSettings.Networks.plain.MacAddress}}", w.server)))(t)
	frames := tcpFrames(mac, w.docker.IPv4(w.client, "eth0"), server, 500, 0x18, "GET / HTTP/1.1\r\nHost: a\r\n\r\nx")
	agent := w.docker.Agent(w.client)
	sent := nettest.Must(agent.Barrage(testnet.Barrage{Interface: "eth0", Frames: frames, For: 2 * time.Second}))(t)
	t.Logf("%d packets of no connection", sent)
	for last := range byte(200) { // nobody's addresses, which leave 100,000 connections half open
		half := tcpFrames(mac, netip.AddrFrom4([4]byte{10, 234, 0, 50 + last}), server, 500, 0x02, "")
		for long := 10 * time.Millisecond; ; long *= 2 {
			if nettest.Must(agent.Barrage(testnet.Barrage{Interface: "eth0", Frames: half, For: long}))(t) >= len(half) {
				break
			}
		}
	}
	w.in(w.client, peer, "pipeline", server.String(), "20")
	want := map[string]uint64{"POST": 100, "GET": 100 + 20}
	w.d.poll("what was asked", func() error {
		client, received, _, err := w.both()
		if err != nil {
			return err
		}
		if diff := cmp.Diff([]map[string]uint64{want, want}, []map[string]uint64{client.Requests, received.Requests}); diff != "" {
			return fmt.Errorf("(-made +counted by client and server):\n%s", diff)
		}
		return nil
	})
	both := &pair{docker: w.docker, daemon: w.d}
	both.likeKernel(t, w.server, asInterface)
}

// Connections of openssl, and what dnsmasq logs of the questions to it.
func TestRequestsOfOthers(t *testing.T) {
	t.Parallel()
	need.Commands(t, "openssl", "dnsmasq")
	w := newWeb(t, "requests: {tls: on, dns: on}")
	key, certificate := filepath.Join(w.folder, "key"), filepath.Join(w.folder, "certificate")
	w.in(w.server, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", "-keyout", key, "-out", certificate)
	w.serve(443, "openssl", "s_server", "-accept", "443", "-key", key, "-cert", certificate, "-quiet")
	log := filepath.Join(w.folder, "dnsmasq.log")
	w.in(w.server, "dnsmasq", "-C", "/dev/null", "--pid-file="+filepath.Join(w.folder, "dnsmasq.pid"), "--user=root", "--no-resolv", "--no-hosts",
		"--host-record=example.org,192.0.2.1,2001:db8::1", "--mx-host=example.org,mail.example.org", "--txt-record=example.org,text", "--local=/test/",
		"--log-queries", "--log-facility="+log)
	const hellos = 10
	for range hellos {
		w.in(w.client, "sh", "-c", "echo | openssl s_client -connect "+w.address+":443 -quiet 2>&1 | cat")
	}
	for _, kind := range []string{"a", "aaaa", "mx", "txt", "ptr", "ns"} {
		for _, name := range []string{"example.org", "nobody.test", "1.2.0.192.in-addr.arpa"} {
			// It ends with 1 where there is no answer.
			_ = w.docker.Client("exec", w.client, "nslookup", "-type="+kind, name, w.address).Run()
		}
	}
	w.d.poll("as the servers say", func() error {
		client, server, err := w.containers()
		if err != nil {
			return err
		}
		if sent, received := client.Requests.TLS.Transmit.ClientHellos, server.Requests.TLS.Receive.ClientHellos; sent != hellos || received != hellos {
			return fmt.Errorf("%d and %d first messages of TLS, want %d", sent, received, hellos)
		}
		asked := map[string]uint64{"A": 0}
		for _, line := range regexp.MustCompile(`query\[(\w+)\]`).FindAllStringSubmatch(string(nettest.Must(os.ReadFile(log))(t)), -1) {
			asked[line[1]]++
		}
		if total(asked) < 18 {
			return fmt.Errorf("dnsmasq has logged %v", asked)
		}
		if diff := cmp.Diff([]map[string]uint64{asked, asked}, []map[string]uint64{client.Requests.DNS.Transmit.Queries, server.Requests.DNS.Receive.Queries}); diff != "" {
			return fmt.Errorf("questions (-logged +counted by client and server):\n%s", diff)
		}
		answers := client.Requests.DNS.Receive.Responses
		if diff := cmp.Diff(answers, server.Requests.DNS.Transmit.Responses); diff != "" {
			return fmt.Errorf("answers (-client +server):\n%s", diff)
		}
		if total(answers) != total(asked) || answers["NXDomain"] == 0 || answers["NoError"] == 0 {
			return fmt.Errorf("answers %v to %v", answers, asked)
		}
		if client.Requests.HTTP != nil {
			return fmt.Errorf("HTTP is off, and told as %+v", client.Requests.HTTP)
		}
		return nil
	})
}

// Containers of pods are told apart, also those of one pod, whose network they share: over its
// loopback, and from another pod. busybox' server logs each request.
func TestRequestsOfPods(t *testing.T) {
	t.Parallel()
	needRequests(t)
	node := crihost.Start(t, crihost.Options{})
	d := startDaemon(t, node, onlyPods(node)+"\nrequests: {http: on}")
	shop := nettest.Must(node.RunPod("shop", crihost.PodOptions{},
		crihost.Container{Name: "server", Command: []string{"sh", "-c", "mkdir /www && echo hello >/www/index.html && exec httpd -f -vv -p 80 -h /www"}},
		crihost.Container{Name: "beside"}))(t)
	away := nettest.Must(node.RunPod("away", crihost.PodOptions{}, crihost.Container{Name: "client"}))(t)
	ids := map[string]string{"server": shop.Containers["server"], "beside": shop.Containers["beside"], "client": away.Containers["client"]}
	requests := func(name string) (received, sent uint64, err error) {
		c, err := d.container(ids[name])
		if err != nil || c.Requests == nil {
			return 0, 0, fmt.Errorf("no requests of %s: %v", name, err)
		}
		return c.Requests.HTTP.Receive.Requests["GET"], c.Requests.HTTP.Transmit.Requests["GET"], nil
	}
	d.poll("counted", func() (err error) {
		for name := range ids {
			_, _, missing := requests(name)
			err = errors.Join(err, missing)
		}
		return err
	})
	ask := func(pod *crihost.Pod, container, url string, times int) {
		t.Helper()
		get := fmt.Sprintf("for i in $(seq %d); do wget -q -O /dev/null %s || exit 1; done", times, url)
		if out, err := pod.Exec(container, "sh", "-c", get); err != nil {
			t.Fatalf("%s asks %s: %v: %s", container, url, err, out)
		}
	}
	d.poll("serves", func() error {
		_, err := shop.Exec("beside", "sh", "-c", "wget -q -O /dev/null http://127.0.0.1/ 2>/dev/null")
		return err
	})
	received, sent, err := requests("server")
	must(t, err)
	_, first, err := requests("beside")
	must(t, err)
	if received != first || sent != 0 {
		t.Errorf("at first %d received by the server and %d sent beside it", received, first)
	}
	ask(shop, "beside", "http://127.0.0.1/", 7)
	ask(away, "client", "http://"+shop.IPv4.String()+"/", 11)
	d.poll("each has its own", func() error {
		for name, want := range map[string][2]uint64{"server": {first + 18, 0}, "beside": {0, first + 7}, "client": {0, 11}} {
			received, sent, err := requests(name)
			if err != nil {
				return err
			}
			if got := [2]uint64{received, sent}; got != want {
				return fmt.Errorf("%s received and sent %v, want %v", name, got, want)
			}
		}
		return nil
	})
}

// A limit of HTTP requests fires when as many have come as the server has logged, and keeps what
// was used over a kill -9.
func TestQuotaOfRequests(t *testing.T) {
	t.Parallel()
	need.Commands(t, "curl")
	w := newWeb(t, "requests: {http: on}\nquotas: [{name: asked, match: {name: server}, per: name, count: receive_http_requests, "+
		"limit: 10, period: {every: month}, alert_at: [100], notify: []}]")
	w.nginx()
	ask := func(times int) {
		t.Helper()
		for range times {
			w.in(w.client, "curl", "-sS", "-o", "/dev/null", "http://"+w.address+"/small")
		}
	}
	logged := func() float64 { return float64(w.logged().Requests["GET"]) }
	quota := func() exporter.Quota {
		t.Helper()
		for _, q := range nettest.Must(exporter.FetchQuotas(t.Context(), w.d.socket))(t).Quotas {
			if q.Key == "server" {
				return q
			}
		}
		return exporter.Quota{}
	}
	used := func(firing bool) {
		t.Helper()
		w.d.poll("the quota has what was logged", func() error {
			q := quota()
			if q.Used != logged() || len(q.Levels) != 1 || q.Levels[0].Firing != firing {
				return fmt.Errorf("used %v of %v, levels %v; logged %v", q.Used, q.Limit, q.Levels, logged())
			}
			return nil
		})
	}
	w.d.keyed("asked", "server")
	ask(9)
	used(false)
	w.d.kill()
	ask(1)
	w.d.start()
	used(true)
	ask(3)
	used(true)
}
