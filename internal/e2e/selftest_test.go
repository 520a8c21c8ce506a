// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// trial is a selftest that runs.
type trial struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer // once it has ended
	ended          chan error
	scope          nettest.Scope
	before         nettest.Snapshot
}

// startTrial starts a selftest in a process group of its own, as a shell would, with
// more variables in its environment.
func startTrial(t *testing.T, host *testnet.Namespace, environment ...string) *trial {
	t.Helper()
	program := nettest.Must(binary())(t)
	// Not t.TempDir: with the test's name in it a socket's path becomes too long.
	folder := nettest.Must(os.MkdirTemp("", "trial-"))(t)
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	r := &trial{t: t, cmd: on{host}.Command(program, "selftest"), ended: make(chan error, 1)}
	r.scope = nettest.Scope{
		Namespaces: map[string]*testnet.Namespace{"host": host},
		Paths:      []string{folder},
		Executable: program,
	}
	r.before = nettest.TakeSnapshot(t, r.scope)
	r.cmd.Env = append(append(os.Environ(), "TMPDIR="+folder), environment...)
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.scope.Cgroups = []string{r.cgroup()}
	go func() { r.ended <- r.cmd.Wait() }()
	return r
}

// cgroup is where the selftest's container is.
func (r *trial) cgroup() string { return fmt.Sprintf("/nettally-selftest-%d", r.cmd.Process.Pid) }

// end waits for the selftest, which must leave nothing behind, and returns its exit
// code. If that is not 0, it must have said why in one line.
func (r *trial) end() int {
	r.t.Helper()
	var code int
	select {
	case err := <-r.ended:
		code = exitCode(err)
	case <-time.After(patience):
		// With all that it started, which holds its standard output open.
		_ = unix.Kill(-r.cmd.Process.Pid, unix.SIGKILL)
		<-r.ended
		r.t.Fatalf("the selftest does not end; it printed:\n%s%s", &r.stdout, &r.stderr)
	}
	if diff := cmp.Diff(r.before, nettest.TakeSnapshot(r.t, r.scope)); diff != "" {
		r.t.Errorf("left behind (-before +after):\n%s", diff)
	}
	said := r.stderr.String()
	if code == 0 && said != "" || code != 0 && (strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "nettally: ")) {
		r.t.Errorf("exit code %d, and on standard error:\n%s", code, said)
	}
	return code
}

// await tries until it works, while the selftest runs.
func (r *trial) await(what string, try func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !try(); time.Sleep(200 * time.Microsecond) {
		select {
		case err := <-r.ended:
			r.t.Fatalf("ended (%v) before %s:\n%s%s", err, what, &r.stdout, &r.stderr)
		default:
		}
		if time.Now().After(deadline) {
			_ = unix.Kill(-r.cmd.Process.Pid, unix.SIGKILL)
			<-r.ended
			r.t.Fatalf("never: %s", what)
		}
	}
}

// child returns the id of the nettally under test: the selftest's first child. 0 means
// none yet.
func (r *trial) child() int {
	r.t.Helper()
	for _, path := range nettest.Must(filepath.Glob("/proc/[0-9]*/stat"))(r.t) {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		// pid (name) state ppid …
		var state string
		var parent, pid int
		fmt.Sscan(filepath.Base(filepath.Dir(path)), &pid)
		fmt.Sscan(string(text[bytes.LastIndexByte(text, ')')+1:]), &state, &parent)
		if parent == r.cmd.Process.Pid {
			return pid
		}
	}
	return 0
}

// host opens the selftest's own host as soon as there is one.
func (r *trial) host() *testnet.Namespace {
	r.t.Helper()
	var pid int
	r.await("the nettally under test runs", func() bool { pid = r.child(); return pid != 0 })
	host := nettest.Must(testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", pid)))(r.t)
	r.t.Cleanup(func() { host.Close() })
	return host
}

// veth waits for the host veth whose peer is in the container.
func (r *trial) veth(host *testnet.Namespace) netlink.Link {
	r.t.Helper()
	var veth netlink.Link
	r.await("the container has its interface", func() bool {
		for _, l := range nettest.Must(host.LinkList())(r.t) {
			if l.Attrs().NetNsID >= 0 {
				veth = l
			}
		}
		return veth != nil
	})
	return veth
}

// The selftest proves the numbers and leaves nothing behind, also beside a nettally that
// runs, whatever configuration they share: to that its container is none.
func TestSelftest(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	d := startDaemon(t, on{host}, "names: {docker: \"off\", podman: \"off\", cri: \"off\"}")
	r := startTrial(t, host, "NETTALLY_BPF_PIN_PATH="+d.pins, "NETTALLY_EXPORTER_SOCKET="+d.socket)
	if code := r.end(); code != 0 || !strings.HasSuffix(r.stdout.String(), "\nexact\n") || strings.Contains(r.stdout.String(), "OFF") {
		t.Errorf("exit code %d, printed:\n%s", code, &r.stdout)
	}
	// A container that came later: what came before it is listed by now.
	d.counted(nettest.Container(t, host, testnet.ContainerOptions{}).ID, 1)
	for _, c := range d.list().Containers {
		if strings.HasPrefix(c.Cgroup, r.cgroup()) {
			t.Errorf("the running nettally lists the selftest's container: %+v", c)
		}
	}
}

// A selftest fails where the numbers are wrong: here a filter before ours ends the chain
// of one hook, so that ours does not see the packets. On clsact nothing can be done about
// that, where on tcx it would be mended in the midst of the traffic.
func TestSelftestFails(t *testing.T) {
	need.Root(t)
	for direction, hook := range map[string]uint32{
		"receive":  netlink.HANDLE_MIN_EGRESS,
		"transmit": netlink.HANDLE_MIN_INGRESS,
	} {
		t.Run(direction, func(t *testing.T) {
			r := startTrial(t, nettest.Host(t), "NETTALLY_ATTACH_MODE=clsact")
			host := r.host()
			veth := r.veth(host)
			r.signal(unix.SIGSTOP) // it sends nothing before we are done
			blind(t, host, veth, hook)
			r.signal(unix.SIGCONT)
			if code := r.end(); code != 1 || !strings.Contains(r.stderr.String(), "the numbers are off on this kernel") {
				t.Errorf("exit code %d: %s", code, &r.stderr)
			}
			checkOff(t, r.stdout.String(), direction)
		})
	}
}

func (r *trial) signal(s unix.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// checkOff expects the numbers of one direction to be off, and all others to be right.
func checkOff(t *testing.T, out, direction string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 15 {
		t.Errorf("printed %d lines, want 5 for each direction and 5 for connections", len(lines))
	}
	for _, line := range lines {
		verdict, rest, _ := strings.Cut(line, " ")
		off := strings.HasPrefix(strings.TrimSpace(rest), direction+" ")
		if want := map[bool]string{true: "OFF", false: "ok"}[off]; verdict != want {
			t.Errorf("want %s: %s", want, line)
		}
	}
}

// blind puts a filter that ends the chain with TC_ACT_OK before ours.
func blind(t *testing.T, host *testnet.Namespace, link netlink.Link, hook uint32) {
	t.Helper()
	program := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		License:      "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}))(t)
	defer program.Close()
	err := host.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	err = host.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: hook, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: "blind", DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Whenever it is interrupted, the selftest says so and leaves nothing behind.
func TestSelftestInterrupted(t *testing.T) {
	need.Root(t)
	tests := map[string]func(*trial){
		"the daemon starts":      func(r *trial) { r.host() },
		"the maps are pinned":    func(r *trial) { r.awaitFile(filepath.Join(r.scope.Paths[0], "*/bpf", bpf.Layout, "*")) },
		"the daemon answers":     func(r *trial) { r.awaitFile(filepath.Join(r.scope.Paths[0], "*/socket")) },
		"the container's cgroup": func(r *trial) { r.awaitFile(filepath.Join("/sys/fs/cgroup/*", r.cgroup(), "*")) },
		"the container's veth":   func(r *trial) { r.veth(r.host()) },
		"packets are sent":       (*trial).awaitPackets,
	}
	for name, await := range tests {
		for _, whom := range []string{"alone", "with its group"} { // as kill does, and ^C
			t.Run(name+" "+whom, func(t *testing.T) {
				r := startTrial(t, nettest.Host(t))
				await(r)
				pid := r.cmd.Process.Pid
				if whom != "alone" {
					pid = -pid
				}
				if err := unix.Kill(pid, unix.SIGINT); err != nil {
					t.Fatal(err)
				}
				if code := r.end(); code != 1 {
					t.Errorf("exit code %d, want 1", code)
				}
				if got, want := r.stderr.String(), "nettally: interrupt signal received\n"; got != want || r.stdout.Len() > 0 {
					t.Errorf("printed %q and %q, want nothing and %q", &r.stdout, got, want)
				}
			})
		}
	}
}

func (r *trial) awaitFile(pattern string) {
	r.t.Helper()
	r.await(pattern, func() bool { return len(nettest.Must(filepath.Glob(pattern))(r.t)) > 0 })
}

func (r *trial) awaitPackets() {
	r.t.Helper()
	host := r.host()
	index := r.veth(host).Attrs().Index
	r.await("packets are sent", func() bool {
		return nettest.Must(host.LinkByIndex(index))(r.t).Attrs().Statistics.RxPackets > 50
	})
}
