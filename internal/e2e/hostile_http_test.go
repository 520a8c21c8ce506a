// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// floodVariable makes this program open connections instead of running tests: see flood.
const floodVariable = "NETTALLY_E2E_FLOOD"

func init() {
	if os.Getenv(floodVariable) == "" {
		return
	}
	if err := flood(os.Args[1], os.Args[2], os.Getenv(floodVariable)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// What a flood sends on each of its connections.
var payloads = map[string]string{
	"idle":   "",
	"half":   "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half: ",
	"slow":   "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", // and the answer is not read
	"body":   "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
	"unsent": "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", // opened again
	"header": "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Huge: " + strings.Repeat("x", 1<<20),
}

// flood opens so many connections and says when it has. Bodies and headers are sent once,
// and it ends when the server has closed all; of the others, each that is closed is opened
// again, until standard input ends.
func flood(address, count, kind string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	once := kind == "body" || kind == "header"
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			hold(address, kind)
			for !once {
				time.Sleep(time.Second)
				hold(address, kind)
			}
		})
		time.Sleep(100 * time.Microsecond) // longer than a backlog needs
	}
	fmt.Println("begun")
	if once {
		all.Wait()
		return nil
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// hold opens a connection and keeps it until the server closes it. An error is the end of
// one, too.
func hold(address, kind string) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, payloads[kind])
	if kind == "slow" {
		time.Sleep(time.Hour)
	}
	_, _ = io.Copy(io.Discard, c)
}

// flood starts a flood by the attacker. It ends with the test, and the function returned
// waits for one that ends by itself.
func (a *attacker) flood(kind string, count int) (wait func() error) {
	a.t.Helper()
	wait, _ = a.startFlood(kind, count)
	return wait
}

// startFlood is flood, and returns a function that ends it, too.
func (a *attacker) startFlood(kind string, count int) (wait func() error, end func()) {
	a.t.Helper()
	cmd := a.Command(nettest.Must(flooder())(a.t), metricsAddress, strconv.Itoa(count))
	cmd.Env = append(os.Environ(), floodVariable+"="+kind)
	cmd.Stderr = os.Stderr
	stdin := nettest.Must(cmd.StdinPipe())(a.t)
	stdout := nettest.Must(cmd.StdoutPipe())(a.t)
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	wait = sync.OnceValue(cmd.Wait)
	end = func() {
		stdin.Close()
		_ = cmd.Process.Kill() // it may have ended
		_ = wait()             // by a signal, maybe
	}
	a.t.Cleanup(end)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "begun\n" {
		a.t.Fatalf("flood of %s: %q, %v", kind, line, err)
	}
	return wait, end
}

// flooder is this program where others than root can run it.
var flooder = sync.OnceValues(func() (string, error) {
	folder, err := binaries()
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, "flooder")
	return path, os.WriteFile(path, own, 0o755)
})

// fewDescriptors is a place whose programs may open so many files.
type fewDescriptors struct {
	place
	most int
}

func (f fewDescriptors) Command(name string, args ...string) *exec.Cmd {
	return f.place.Command("prlimit", append([]string{fmt.Sprintf("--nofile=%d", f.most), "--", name}, args...)...)
}

// besieged is a daemon with a container whose numbers have to stay right, and an attacker.
type besieged struct {
	*overflowing
	client   *http.Client
	attacker *attacker
	victim   *testnet.Container
}

// besiege starts a daemon that may open so many files; 0 for as many as there are.
func besiege(t *testing.T, descriptors int) *besieged {
	t.Helper()
	need.Commands(t, "prlimit")
	b := &besieged{overflowing: &overflowing{
		t: t, host: nettest.Host(t), parent: fmt.Sprintf("/nettally-besieged-%d-%d", os.Getpid(), lives.Add(1)),
	}}
	var at place = on{b.host}
	b.attacker, b.client = newAttacker(t, at), client(b.host)
	if descriptors > 0 {
		at = fewDescriptors{at, descriptors}
	}
	b.d = startListening(t, at, metricsAddress, fmt.Sprintf(
		"names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {include: [%q], reconcile: 1s}", b.parent+"/*"))
	b.peer = nettest.Agent(t, b.host)
	b.victim = b.start()
	b.d.counted(b.victim.ID, 1)
	return b
}

// serves expects root to be answered over TCP and over the unix socket, also by list.
func (b *besieged) serves(when string) {
	b.t.Helper()
	if text, err := fetch(b.client, metricsAddress, "/metrics"); err != nil || !strings.Contains(text, b.victim.ID) {
		b.t.Errorf("%s: scrape: %v", when, err)
	}
	if _, err := b.d.get("/metrics"); err != nil {
		b.t.Errorf("%s: scrape over the unix socket: %v", when, err)
	}
	if out, err := b.d.run("list"); err != nil {
		b.t.Errorf("%s: list: %v: %s", when, err, out)
	}
}

// counts expects the victim's numbers to be the kernel's, and new containers to be found.
func (b *besieged) counts() {
	b.t.Helper()
	b.exchange(b.victim, 200)
	b.likeKernel(b.victim)
	fresh := b.start()
	b.d.counted(fresh.ID, 1)
	b.exchange(fresh, 100)
	b.likeKernel(fresh)
	if err := fresh.Close(); err != nil {
		b.t.Fatal(err)
	}
}

// Thousands of connections of another user, of all kinds at a time: root's scrapes and lists
// are answered, and counting goes on.
func TestHostileConnections(t *testing.T) {
	t.Parallel()
	need.Root(t)
	b := besiege(t, 0)
	b.serves("before")
	before := b.d.weigh("before")
	b.attacker.flood("idle", 2000)
	b.attacker.flood("half", 500)
	b.attacker.flood("slow", 500)
	for range 5 {
		b.serves("during")
		b.counts()
	}
	b.d.weigh("during").grewBy(t, before, 64<<20, 700)
	if n := b.d.metric(`nettally_http_evicted_connections_total{listener="tcp", state="idle"}`); n == 0 {
		t.Error("no connection was closed for another")
	}
}

// The same where few descriptors are to be had: enough of them are left for counting.
func TestHostileConnectionsFewDescriptors(t *testing.T) {
	t.Parallel()
	need.Root(t)
	const descriptors = 200
	b := besiege(t, descriptors)
	before := b.d.weigh("before")
	b.attacker.flood("idle", 1000)
	b.attacker.flood("half", 500)
	for range 3 {
		b.serves("during")
		b.counts()
	}
	b.d.weigh("during").grewBy(t, before, 64<<20, descriptors/4+10) // with what a container takes while it starts
}

// Bodies that are announced and not sent, and headers without an end: their connections
// go, and with them what they took.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	need.Root(t)
	b := besiege(t, 0)
	before := b.d.weigh("before")
	bodies := b.attacker.flood("body", 300)
	headers := b.attacker.flood("header", 500)
	b.serves("during")
	b.d.weigh("during").grewBy(t, before, 64<<20, 700)
	for _, wait := range []func() error{bodies, headers} {
		if err := wait(); err != nil { // until the server has closed the last one
			t.Error(err)
		}
	}
	b.serves("after")
	b.counts()
	b.d.poll("rid of the connections", func() error {
		open := nettest.Must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.d.cmd.Process.Pid)))(t)
		if len(open) > before.descriptors+20 {
			return fmt.Errorf("%d descriptors are open, and %d were", len(open), before.descriptors)
		}
		return nil
	})
	b.d.weigh("after")
}

// A page of another site, whose name has become a loopback address, reads nothing.
func TestHostileHost(t *testing.T) {
	t.Parallel()
	need.Root(t)
	b := besiege(t, 0)
	request := nettest.Must(http.NewRequest("GET", "http://"+metricsAddress+"/api/v1/containers", nil))(t)
	request.Host = "evil.example"
	answer := nettest.Must(b.client.Do(request))(t)
	defer answer.Body.Close()
	body := nettest.Must(io.ReadAll(answer.Body))(t)
	if answer.StatusCode != http.StatusMisdirectedRequest || !strings.Contains(string(body), "exporter.hosts") || strings.Contains(string(body), b.victim.ID) {
		t.Errorf("%s: %s", answer.Status, body)
	}
	port := netip.MustParseAddrPort(metricsAddress).Port()
	request.Host = fmt.Sprintf("localhost:%d", port)
	known := nettest.Must(b.client.Do(request))(t)
	known.Body.Close()
	if known.StatusCode != http.StatusOK {
		t.Errorf("localhost: %s", known.Status)
	}
}
