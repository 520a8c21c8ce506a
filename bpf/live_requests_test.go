// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// scenarioVariable names the scenario that this program plays, in a cgroup and a network namespace
// of its own.
const scenarioVariable = "NETTALLY_TEST_SCENARIO"

func init() {
	if name := os.Getenv(scenarioVariable); name != "" {
		play(name)
	}
}

// play plays a scenario on the loopback interface and prints what both sides say has been. All of
// it is on one CPU: on several, loopback brings packets out of order.
func play(name string) {
	err := stayOnOneCPU()
	var lo netlink.Link
	if err == nil {
		lo, err = netlink.LinkByName("lo")
	}
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	var played scenario
	if err == nil {
		played, err = scenarios[name]()
	}
	if err == nil {
		played.OutOfOrder, err = outOfOrder()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(played)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// stayOnOneCPU begins the program anew where it may run on several CPUs: threads inherit that.
func stayOnOneCPU() error {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil || may.Count() == 1 {
		return err
	}
	var one unix.CPUSet
	for cpu := range len(may) * 64 {
		if may.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// outOfOrder returns how many packets the kernel had to sort in this network namespace.
func outOfOrder() (uint64, error) {
	text, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(text), "\n")
	for i, name := range strings.Fields(lines[0]) {
		if name == "TCPOFOQueue" {
			return strconv.ParseUint(strings.Fields(lines[1])[i], 10, 64)
		}
	}
	return 0, errors.New("/proc/net/netstat has no TCPOFOQueue")
}

// scenario is what has been said, as those know who said it: the client and the server.
type scenario struct {
	Client, Server said
	OutOfOrder     uint64 // packets that the kernel had to sort
}

// said is what one side has sent and received. What it has not is left out.
type said struct {
	Requests  map[string]uint64 // by method
	Responses map[string]uint64 // by class of status
	Streams   uint64
	Hellos    uint64
}

func (s *said) request(method string, n uint64) { add(&s.Requests, method, n) }
func (s *said) response(status int, n uint64) {
	add(&s.Responses, fmt.Sprintf("%dxx", status/100), n)
}

func add(to *map[string]uint64, key string, n uint64) {
	if n == 0 {
		return
	}
	if *to == nil {
		*to = map[string]uint64{}
	}
	(*to)[key] += n
}

// readers are the programs that count requests, of a cgroup of their own.
type readers struct {
	*Datapath
	t    *testing.T
	dir  string
	slot Slot
}

func newReaders(t *testing.T, o RequestOptions) *readers {
	t.Helper()
	d := load(t, Options{})
	if err := HaveRequests(); err != nil {
		need.Kernel(t, "bpf_loop", err)
	}
	if err := errors.Join(d.LoadTCP(), d.LoadRequests(o)); err != nil {
		t.Fatal(err)
	}
	return &readers{Datapath: d, t: t, dir: requestCgroup(t)}
}

// attach counts the cgroup from now on.
func (r *readers) attach() {
	r.t.Helper()
	for program, at := range map[*ebpf.Program]ebpf.AttachType{
		r.TCP: ebpf.AttachCGroupSockOps, r.RequestsIngress: ebpf.AttachCGroupInetIngress, r.RequestsEgress: ebpf.AttachCGroupInetEgress,
	} {
		l := nettest.Must(ebpflink.AttachCgroup(ebpflink.CgroupOptions{Path: r.dir, Attach: at, Program: program}))(r.t)
		r.t.Cleanup(func() { l.Close() })
	}
	r.slot = nettest.Must(r.Take(Target{Cgroup: inodeOf(r.t, r.dir), Sockets: true}))(r.t)
	if err := r.BindCgroup(r.slot); err != nil {
		r.t.Fatal(err)
	}
}

// countRequests plays a scenario where requests are counted, and returns what was. What is joined
// is counted from the scenario's pause on.
func countRequests(t *testing.T, o RequestOptions, name string, joined bool) (played scenario, receive, transmit RequestCounters) {
	t.Helper()
	r := newReaders(t, o)
	if !joined {
		r.attach()
	}
	played = playIn(t, r.dir, name, r.attach)
	receive, transmit, err := r.ReadRequests(r.slot)
	if err != nil {
		t.Fatal(err)
	}
	return played, receive, transmit
}

// requestCgroup makes a cgroup of the cgroup2 hierarchy.
func requestCgroup(t *testing.T) string {
	t.Helper()
	for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(root, &fs); err != nil || fs.Type != 0x63677270 {
			continue
		}
		dir := nettest.Must(os.MkdirTemp(root, "nettally-requests-"))(t)
		t.Cleanup(func() {
			for try := 0; os.Remove(dir) != nil && try < 100; try++ {
				time.Sleep(10 * time.Millisecond)
			}
		})
		return dir
	}
	need.Kernel(t, "cgroup2", fmt.Errorf("none is mounted"))
	return ""
}

func inodeOf(t *testing.T, dir string) uint64 {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// pausing is what a scenario prints when it waits for a line to go on.
const pausing = "pausing"

// pause lets the test do something in the midst of a scenario.
func pause() error {
	fmt.Println(pausing)
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

// playIn plays a scenario in a cgroup. paused is called whenever it pauses.
func playIn(t *testing.T, dir, name string, paused func()) (played scenario) {
	t.Helper()
	cgroup := nettest.Must(os.Open(dir))(t)
	defer cgroup.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), scenarioVariable+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Cloneflags: syscall.CLONE_NEWNET}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	orders, words := nettest.Must(cmd.StdinPipe())(t), nettest.Must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said string
	for lines := bufio.NewScanner(words); lines.Scan(); {
		if said = lines.Text(); said == pausing {
			paused()
			fmt.Fprintln(orders)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("play %s: %v: %s", name, err, stderr.String())
	}
	if err := json.Unmarshal([]byte(said), &played); err != nil {
		t.Fatal(err)
	}
	return played
}

// toldBy puts what was counted into a scenario's words.
func toldBy(requests, responses RequestCounters) (s said) {
	for i, n := range requests.HTTPRequests {
		add(&s.Requests, HTTPMethods[i], n)
	}
	for i, n := range responses.HTTPResponses {
		add(&s.Responses, StatusClasses[i], n)
	}
	s.Streams, s.Hellos = requests.HTTP2Streams, requests.TLSClientHellos
	return s
}

// TestRequestsOfNested counts what a container in another one says once for each, though the
// programs of both run for its packets.
func TestRequestsOfNested(t *testing.T) {
	outer := newReaders(t, RequestOptions{HTTP: true, DNS: true})
	outer.attach()
	inner := *outer
	inner.dir = nettest.Must(os.MkdirTemp(outer.dir, "inner-"))(t)
	t.Cleanup(func() { os.Remove(inner.dir) })
	inner.attach()
	for _, name := range []string{"dns", "pipelined"} {
		playIn(t, inner.dir, name, nil)
	}
	in, out, err := inner.ReadRequests(inner.slot)
	if err != nil {
		t.Fatal(err)
	}
	outerIn, outerOut, err := outer.ReadRequests(outer.slot)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]RequestCounters{in, out}, []RequestCounters{outerIn, outerOut}); diff != "" {
		t.Errorf("(-inner +outer):\n%s", diff)
	}
	if in.DNSQueries[1] != dnsTimes || in.HTTPRequests[2] != 15 {
		t.Errorf("%d questions for NS and %d POSTs, want %d and 15", in.DNSQueries[1], in.HTTPRequests[2], dnsTimes)
	}
}

// compare compares what is counted with what was said. A packet out of order may hide a message,
// and is told as a resync.
func compare(t *testing.T, played scenario, receive, transmit RequestCounters, want [len(ResyncCauses)]uint64) {
	t.Helper()
	got := receive.Resyncs
	for cause, n := range transmit.Resyncs {
		got[cause] += n
	}
	if got[resyncGap] > 0 && got[resyncGap] <= played.OutOfOrder {
		t.Logf("%d packets out of order, %d of which were resyncs", played.OutOfOrder, got[resyncGap])
		got[resyncGap] = 0
	}
	if got != want {
		t.Errorf("resyncs %v by %v, want %v", got, ResyncCauses, want)
	}
	if diff := cmp.Diff(played.Client, toldBy(transmit, receive)); diff != "" {
		t.Errorf("the client's side (-said +counted):\n%s", diff)
	}
	if diff := cmp.Diff(played.Server, toldBy(receive, transmit)); diff != "" {
		t.Errorf("the server's side (-said +counted):\n%s", diff)
	}
}

// resyncGap is the place of a gap among the causes.
const resyncGap = 1

// TestRequests compares what is counted with what the servers and clients say.
func TestRequests(t *testing.T) {
	for name, o := range map[string]RequestOptions{
		"library": {HTTP: true}, "pipelined": {HTTP: true}, "deep": {HTTP: true}, "bytewise": {HTTP: true}, "random": {HTTP: true, TLS: true},
		"with the handshake": {HTTP: true}, "tunnels": {HTTP: true},
		"tls": {HTTP: true, TLS: true}, "http2": {HTTP: true}, "other": {HTTP: true, TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			played, receive, transmit := countRequests(t, o, name, false)
			compare(t, played, receive, transmit, [len(ResyncCauses)]uint64{})
		})
	}
}

// TestRequestsJoined counts a connection that was there before from its next message on, and says
// so.
func TestRequestsJoined(t *testing.T) {
	played, receive, transmit := countRequests(t, RequestOptions{HTTP: true}, "joined", true)
	compare(t, played, receive, transmit, [len(ResyncCauses)]uint64{8}) // two connections, two directions, two ends
}

// TestRequestsOnPorts reads the connections of the ports that are asked for.
func TestRequestsOnPorts(t *testing.T) {
	played, receive, transmit := countRequests(t, RequestOptions{HTTP: true, Ports: []uint16{8080, 65535}}, "ports", false)
	compare(t, played, receive, transmit, [len(ResyncCauses)]uint64{})
}

// TestMalformed loses a connection whose messages are none, and finds it again.
func TestMalformed(t *testing.T) {
	played, receive, transmit := countRequests(t, RequestOptions{HTTP: true}, "malformed", false)
	compare(t, played, receive, transmit, [len(ResyncCauses)]uint64{0, 0, 6, 2}) // at both ends
}

// dnsTimes is how often each question is asked: by UDP twice, and by TCP three times.
const dnsTimes = 5

// TestDNS counts questions by type and answers by code, of UDP and TCP.
func TestDNS(t *testing.T) {
	_, receive, transmit := countRequests(t, RequestOptions{DNS: true}, "dns", false)
	var want RequestCounters
	for _, q := range questions {
		kind := slices.Index(DNSTypes[:], strings.TrimPrefix(q.kind.String(), "Type"))
		switch {
		case q.kind == 65:
			kind = slices.Index(DNSTypes[:], "HTTPS")
		case kind < 0:
			kind = len(DNSTypes) - 1
		}
		want.DNSQueries[kind] += dnsTimes
		want.DNSResponses[min(int(q.code), len(DNSCodes)-1)] += dnsTimes
	}
	// Both ends are in the cgroup, so that all goes both ways.
	for direction, got := range map[string]RequestCounters{"received": receive, "transmitted": transmit} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", direction, diff)
		}
	}
}
