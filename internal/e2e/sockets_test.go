// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

func needSockets(t *testing.T) {
	t.Helper()
	_, err := bpf.SocketsCountedBy()
	need.Kernel(t, "what counts at sockets", err)
}

// atSockets waits until just that is counted at a container's sockets. Of a file that was sent in
// pieces the calls are as many as there were pieces.
func (d *daemon) atSockets(id, what string, want *exporter.Sockets, files bool) {
	d.t.Helper()
	d.poll(what, func() error {
		c, err := d.container(id)
		switch {
		case err != nil:
			return err
		case c.Sockets == nil:
			return fmt.Errorf("%s has no sockets", id)
		}
		if files {
			want.Send.TCP.Calls = max(want.Send.TCP.Calls, c.Sockets.Send.TCP.Calls)
		}
		if diff := cmp.Diff(want, c.Sockets); diff != "" {
			return fmt.Errorf("(-want +counted):\n%s", diff)
		}
		return nil
	})
}

// What a container sends and receives is counted as it was done, whichever way to do so was
// taken, and stays over kill -9. What is done while nettally does not run is not in it.
func TestSockets(t *testing.T) {
	need.Root(t)
	needSockets(t)
	host := nettest.Host(t)
	d := startDaemon(t, on{host}, "accounting: {sockets: on}")
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	other := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	var want exporter.Sockets
	d.atSockets(c.ID, "nothing yet", &want, false)
	d.atSockets(other.ID, "nothing yet", &exporter.Sockets{}, false)

	out := nettest.Must(peer.Listen("udp", c.Interfaces[0].HostIPv4))(t)
	in := nettest.Must(c.Listen("udp", c.Interfaces[0].IPv4))(t)
	datagrams := func() {
		t.Helper()
		must(t, c.SendUDP(out.Addr, 500, 1000))
		must(t, peer.SendUDP(in.Addr, 300, 200))
		nettest.Must(in.Received(300))(t)
	}
	datagrams()
	want.Send.UDP = exporter.SocketCalls{Calls: 500, Bytes: 500_000}
	want.Receive.UDP = exporter.SocketCalls{Calls: 300, Bytes: 60_000}
	d.atSockets(c.ID, "datagrams", &want, false)

	d.kill()
	datagrams()
	d.start()
	d.atSockets(c.ID, "the same after a kill", &want, false)
	datagrams()
	want.Send.UDP = exporter.SocketCalls{Calls: 1000, Bytes: 1_000_000}
	want.Receive.UDP = exporter.SocketCalls{Calls: 600, Bytes: 120_000}
	d.atSockets(c.ID, "more datagrams", &want, false)
	must(t, c.SendSegmentedUDP(out.Addr, 20, 6000, 1000))
	want.Send.UDP = exporter.SocketCalls{Calls: 1020, Bytes: 1_120_000}
	d.atSockets(c.ID, "segmented datagrams", &want, false)
	d.atSockets(other.ID, "nothing of another's", &exporter.Sockets{}, false)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts a server on the host, and waits until it listens.
func serve(t *testing.T, host *testnet.Namespace, at string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	must(t, host.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var conn net.Conn
		err := host.Do(func() (err error) { conn, err = net.Dial("tcp", at); return err })
		if err == nil {
			must(t, conn.Close())
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%v does not listen: %v", args, err)
		}
	}
}

// inContainer runs a program in a container's cgroups and network namespace.
func inContainer(t *testing.T, c *testnet.Container, program string) {
	t.Helper()
	var join strings.Builder
	for _, root := range nettest.Must(testnet.CgroupRoots())(t) {
		fmt.Fprintf(&join, "echo $$ > %s/cgroup.procs; ", filepath.Join(root, c.Cgroup))
	}
	script := join.String() + "exec nsenter --net=/proc/" + strconv.Itoa(c.PID()) + "/ns/net -- " + program
	if text, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, text)
	}
}

// What counts as what, as docs/METRICS.md has it: several datagrams by one system call, MSG_PEEK,
// what is not there, splice from a socket, the end of a connection, io_uring.
func TestSocketCalls(t *testing.T) {
	need.Root(t)
	needSockets(t)
	need.Commands(t, "gcc", "nsenter")
	program := filepath.Join(t.TempDir(), "socketcalls")
	if text, err := exec.Command("gcc", "-o", program, "testdata/socketcalls.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, text)
	}
	host := nettest.Host(t)
	d := startDaemon(t, on{host}, "accounting: {sockets: on}")
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	d.atSockets(c.ID, "nothing yet", &exporter.Sockets{}, false)
	inContainer(t, c, program)
	var want exporter.Sockets
	want.Send.Unix = exporter.SocketCalls{Calls: 5 + 1 + 1, Bytes: 5*10 + 7 + 9}
	want.Receive.Unix = exporter.SocketCalls{Calls: 5 + 1 + 1, Bytes: 5*10 + 9} // 1 is the end
	d.atSockets(c.ID, "as it was called", &want, false)
}

// askNginx writes a script that has nginx send files by sendfile, some of them to nobody, and end.
func askNginx(t *testing.T, folder, address string) string {
	t.Helper()
	config, script := filepath.Join(folder, "nginx.conf"), filepath.Join(folder, "nginx.sh")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `daemon off; master_process off; user root; pid %[1]s/pid; error_log %[1]s/error; events {}
http { access_log off; sendfile on; server { listen %[2]s:80; root %[1]s; } }`, folder, address), 0o600))
	must(t, os.WriteFile(script, fmt.Appendf(nil, `nginx -c %[1]s &
nginx=$!
for try in $(seq 1000); do [ "$(ss -Hltn 'sport = :80')" ] && break; sleep 0.01; done
for try in $(seq 10); do curl -sS -o /dev/null http://%[2]s/file http://%[2]s/none; done
kill -QUIT $nginx
wait $nginx
`, config, address), 0o600))
	return script
}

// straced is what strace says of the calls of a program on sockets, but those that failed.
var straced = regexp.MustCompile(`(?m)^(send|sendto|sendmsg|write|writev|sendfile|recv|recvfrom|recvmsg|read|readv)\(\d+<(TCP|UDP|UNIX)[^ ]*[, ].* = (\d+)`)

// Programs that others wrote, in the container's cgroup and namespace: strace tells what they called.
func TestSocketsLikeStrace(t *testing.T) {
	need.Root(t)
	needSockets(t)
	need.Commands(t, "strace", "iperf3", "busybox", "nsenter", "nginx", "curl", "ss")
	host := nettest.Host(t)
	d := startDaemon(t, on{host}, "accounting: {sockets: on}")
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	d.atSockets(c.ID, "nothing yet", &exporter.Sockets{}, false)
	server := c.Interfaces[0].HostIPv4.String()
	folder := t.TempDir()
	must(t, os.WriteFile(filepath.Join(folder, "file"), make([]byte, 3_000_000), 0o600))
	serve(t, host, server+":5201", "iperf3", "-s")
	serve(t, host, server+":80", "busybox", "httpd", "-f", "-p", server+":80", "-h", folder)

	nginx := askNginx(t, folder, c.Interfaces[0].IPv4.String())
	var want exporter.Sockets
	for _, program := range []string{
		"iperf3 -c " + server + " -n 5M",
		"iperf3 -c " + server + " -n 5M -R",
		"iperf3 -c " + server + " -u -n 1M -b 0 -l 1000",
		"iperf3 -c " + server + " -Z -n 5M", // sendfile
		"sh " + nginx,
		"busybox wget -q -O /dev/null http://" + server + "/file",
	} {
		logs := t.TempDir() // with a file for each process, where no call is in two lines
		inContainer(t, c, "strace -ff -yy -o "+filepath.Join(logs, "strace")+" "+program)
		addStraced(t, &want, logs, program)
		d.atSockets(c.ID, program, &want, strings.Contains(program, " -Z ") || strings.Contains(program, "nginx"))
	}
}

// addStraced adds what strace says that a program has called.
func addStraced(t *testing.T, want *exporter.Sockets, logs, program string) {
	t.Helper()
	var calls [][]string
	for _, log := range nettest.Must(filepath.Glob(filepath.Join(logs, "strace.*")))(t) {
		calls = append(calls, straced.FindAllStringSubmatch(string(nettest.Must(os.ReadFile(log))(t)), -1)...)
	}
	if len(calls) < 5 {
		t.Fatalf("%s: strace tells of %d calls: is this a test of anything?", program, len(calls))
	}
	for _, call := range calls {
		of := &want.Send
		if strings.HasPrefix(call[1], "re") {
			of = &want.Receive
		}
		kind := map[string]*exporter.SocketCalls{"TCP": &of.TCP, "UDP": &of.UDP, "UNIX": &of.Unix}[call[2]]
		kind.Calls++
		kind.Bytes += nettest.Must(strconv.ParseUint(call[3], 10, 64))(t)
	}
}
