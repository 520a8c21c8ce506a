// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

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

// play plays a scenario on the loopback interface and prints what both sides say has been.
func play(name string) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	var played scenario
	if err == nil {
		played, err = scenarios[name]()
	}
	if b, err := os.ReadFile("/proc/net/netstat"); err == nil {
		lines := bytes.Split(b, []byte("\n"))
		keys, values := bytes.Fields(lines[0]), bytes.Fields(lines[1])
		for i := range keys {
			if k := string(keys[i]); k == "TCPOFOQueue" || k == "TCPOFOMerge" || k == "TcpExtTCPBacklogDrop" || k == "TCPSpuriousRtxHostQueues" {
				fmt.Fprintln(os.Stderr, k, string(values[i]))
			}
		}
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

// scenario is what has been said, as those know who said it: the client and the server.
type scenario struct{ Client, Server said }

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

// countRequests plays a scenario where requests are counted, and returns what was.
func countRequests(t *testing.T, o RequestOptions, name string) (played scenario, receive, transmit RequestCounters) {
	t.Helper()
	d := load(t, Options{})
	if err := d.LoadTCP(); err != nil {
		t.Fatal(err)
	}
	if err := HaveRequests(); err != nil {
		need.Kernel(t, "bpf_loop", err)
	}
	if err := d.LoadRequests(o); err != nil {
		t.Fatalf("%+v", err)
	}
	dir := requestCgroup(t)
	id := inodeOf(t, dir)
	for program, at := range map[*ebpf.Program]ebpf.AttachType{
		d.TCP: ebpf.AttachCGroupSockOps, d.RequestsIngress: ebpf.AttachCGroupInetIngress, d.RequestsEgress: ebpf.AttachCGroupInetEgress,
	} {
		l := nettest.Must(ebpflink.AttachCgroup(ebpflink.CgroupOptions{Path: dir, Attach: at, Program: program}))(t)
		t.Cleanup(func() { l.Close() })
	}
	slot := nettest.Must(d.Take(Target{Cgroup: id, Sockets: true}))(t)
	if err := d.BindCgroup(slot); err != nil {
		t.Fatal(err)
	}
	played = playIn(t, dir, name)
	receive, transmit, err := d.ReadRequests(slot)
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

func playIn(t *testing.T, dir, name string) (played scenario) {
	t.Helper()
	cgroup := nettest.Must(os.Open(dir))(t)
	defer cgroup.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), scenarioVariable+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Cloneflags: syscall.CLONE_NEWNET}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("play %s: %v: %s", name, err, stderr.String())
	}
	t.Log(stderr.String())
	if err := json.Unmarshal(out, &played); err != nil {
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

// TestRequests compares what is counted of HTTP/1 with what the servers and clients say.
func TestRequests(t *testing.T) {
	for _, name := range []string{"library", "pipelined", "bytewise", "raw"} {
		t.Run(name, func(t *testing.T) {
			played, receive, transmit := countRequests(t, RequestOptions{HTTP: true}, name)
			if len(played.Client.Requests) == 0 {
				t.Fatal("nothing was played")
			}
			if diff := cmp.Diff(played.Client, toldBy(transmit, receive)); diff != "" {
				t.Errorf("the client's side (-said +counted):\n%s", diff)
			}
			if diff := cmp.Diff(played.Server, toldBy(receive, transmit)); diff != "" {
				t.Errorf("the server's side (-said +counted):\n%s", diff)
			}
			if receive.Resyncs != [len(ResyncCauses)]uint64{} || transmit.Resyncs != receive.Resyncs {
				t.Errorf("resyncs %v and %v of what came in order", receive.Resyncs, transmit.Resyncs)
			}
		})
	}
}
