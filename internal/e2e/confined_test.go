// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// The systemd unit confines nettally. Machines that run the tests may have no systemd as
// process 1, so the test applies the unit's words itself, more strictly than systemd: the
// capabilities; SystemCallFilter, where what is not allowed kills (in the unit it is EPERM,
// which could go unnoticed); and a mount namespace in which everything is read-only, also
// /proc and /sys with the cgroups, but for the folder of state, socket and pins. The test's
// own program, run again, does that and then becomes nettally.

// confinement is in the environment of the program that confines itself, as JSON.
const confinement = "NETTALLY_TEST_CONFINEMENT"

// confines is what the unit says.
type confines struct {
	Capabilities []uintptr // that are kept
	Calls        []uint32  // system calls that are allowed, by number
	Writable     string    // folder
}

// confined is a host on which nettally's daemon is confined as by the unit.
type confined struct {
	on
	t     *testing.T
	rules confines
	bpffs string // that is mounted for the daemon, which may not
}

func newConfined(t *testing.T, host *testnet.Namespace) *confined {
	t.Helper()
	unit := string(nettest.Must(os.ReadFile("../../configs/nettally.service"))(t))
	c := &confined{on: on{host}, t: t, rules: confines{Capabilities: keptCapabilities(t, unit), Calls: allowedCalls(t, unit)}}
	t.Cleanup(func() { // after detach, which comes before
		if c.bpffs == "" {
			return
		}
		if err := unix.Unmount(c.bpffs, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return c
}

// Command confines `nettally run`, and nothing else.
func (c *confined) Command(name string, args ...string) *exec.Cmd {
	if args[0] != "run" {
		return c.on.Command(name, args...)
	}
	folder := filepath.Dir(args[len(args)-1]) // that of --config
	if c.bpffs == "" {
		pins := filepath.Join(folder, "bpf")
		if err := errors.Join(os.Mkdir(pins, 0o700), unix.Mount("bpf", pins, "bpf", 0, "mode=0700")); err != nil {
			c.t.Fatalf("mount bpffs: %v", err)
		}
		c.bpffs = pins
	}
	rules := c.rules
	rules.Writable = folder
	text := nettest.Must(json.Marshal(rules))(c.t)
	cmd := c.on.Command(nettest.Must(os.Executable())(c.t), append([]string{name}, args...)...)
	cmd.Env = append(os.Environ(), confinement+"="+string(text))
	return cmd
}

// words returns the values of a key of a unit, line by line.
func words(unit, key string) (lines [][]string) {
	for line := range strings.Lines(unit) {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			lines = append(lines, strings.Fields(value))
		}
	}
	return lines
}

func keptCapabilities(t *testing.T, unit string) (kept []uintptr) {
	t.Helper()
	numbers := map[string]uintptr{
		"CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN,
		"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	}
	for _, name := range words(unit, "CapabilityBoundingSet")[0] {
		number, known := numbers[name]
		if !known {
			t.Fatalf("the test does not know %s", name)
		}
		kept = append(kept, number)
	}
	return kept
}

// allowedCalls returns the system calls that the unit allows, as systemd expands its groups.
func allowedCalls(t *testing.T, unit string) (numbers []uint32) {
	t.Helper()
	allowed := map[string]bool{}
	expand(t, "@default", func(call string) { allowed[call] = true })
	for _, line := range words(unit, "SystemCallFilter") {
		first, deny := strings.CutPrefix(line[0], "~")
		for _, word := range append([]string{first}, line[1:]...) {
			expand(t, word, func(call string) {
				allowed[call] = !deny
			})
		}
	}
	known := callNumbers(t)
	for call, is := range allowed {
		if number, has := known[call]; is && has { // other architectures have others
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// expand calls f for each system call of a group, or for the one.
func expand(t *testing.T, word string, f func(call string)) {
	t.Helper()
	if !strings.HasPrefix(word, "@") {
		f(word)
		return
	}
	out := nettest.Must(exec.Command("systemd-analyze", "syscall-filter", word).Output())(t)
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line != "" && line != word && !strings.HasPrefix(line, "#") {
			expand(t, line, f)
		}
	}
}

// callNumbers returns this architecture's numbers of system calls.
func callNumbers(t *testing.T) map[string]uint32 {
	t.Helper()
	gcc := exec.Command("gcc", "-E", "-dM", "-x", "c", "-")
	gcc.Stdin = strings.NewReader("#include <asm/unistd.h>\n")
	numbers := map[string]uint32{}
	for line := range strings.Lines(string(nettest.Must(gcc.Output())(t))) {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "#define __NR_"), " ")
		if number, err := strconv.ParseUint(value, 10, 32); err == nil {
			numbers[name] = uint32(number)
		}
	}
	return numbers
}

// confine confines this process and has it become the program that its arguments name. It
// returns only where it is not told to.
func confine() {
	text, told := os.LookupEnv(confinement)
	if !told {
		return
	}
	runtime.LockOSThread() // all of it is a thread's, and stays with the one that calls exec
	var rules confines
	err := json.Unmarshal([]byte(text), &rules)
	for _, step := range []func() error{rules.mounts, rules.capabilities, rules.calls} {
		if err == nil {
			err = step()
		}
	}
	if err == nil {
		environment := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, confinement+"=") })
		err = syscall.Exec(os.Args[1], os.Args[1:], environment)
	}
	fmt.Fprintln(os.Stderr, "confine:", err)
	os.Exit(1)
}

// mounts makes everything read-only but the folder.
func (c *confines) mounts() error {
	readOnly, writable := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	return errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""),
		unix.Mount(c.Writable, c.Writable, "", unix.MS_BIND|unix.MS_REC, ""),
		unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, readOnly),
		unix.MountSetattr(unix.AT_FDCWD, c.Writable, unix.AT_RECURSIVE, writable),
	)
}

// capabilities leaves those that are kept to the next program of this thread.
func (c *confines) capabilities() error {
	for number := range uintptr(64) {
		err := error(nil)
		if !slices.Contains(c.Capabilities, number) {
			err = unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0)
		}
		if errors.Is(err, unix.EINVAL) { // beyond the last one
			break
		}
		if err != nil {
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// calls has every system call kill that is not allowed.
func (c *confines) calls() error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number
	for _, number := range c.Calls {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: number},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}

// Confined as by its unit, nettally does all that it does, over a restart, too: it counts
// on a host veth, on tcx and by cgroup, and tells a program, which is confined as well.
func TestConfinedByUnit(t *testing.T) {
	need.Root(t)
	need.Commands(t, "systemd-analyze", "gcc")
	t.Parallel()
	for _, mode := range []string{"clsact", "tcx"} {
		t.Run(mode, func(t *testing.T) {
			host := nettest.Host(t)
			veth := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
			onHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
			hook := filepath.Join(t.TempDir(), "hook")
			script := "#!/bin/sh\ngrep -q '^Seccomp:.2$' /proc/self/status && ! touch \"$0.written\"\n"
			if err := os.WriteFile(hook, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			d := startListening(t, newConfined(t, host), "127.0.0.1:9819", fmt.Sprintf(`attach: {mode: %s}
accounting: {source: bpf, cgroup: all}
watch: {include: [%q, %q]}
names: {docker: "off", podman: "off", cri: "off"}
notifiers: [{name: run, exec: {command: [%q]}}]
`, mode, veth.ID, onHost.ID, hook))
			sent := uint64(0)
			send := func() {
				t.Helper()
				d.counted(veth.ID, 1)
				d.poll("on its hook", func() error { // until then what it sends may be lost
					c, err := d.container(veth.ID)
					if err == nil && c.Interfaces[0].Hook != mode {
						err = fmt.Errorf("it is on %s", c.Interfaces[0].Hook)
					}
					return err
				})
				sink := nettest.Must(veth.Listen("udp", veth.Interfaces[0].IPv4))(t)
				back := nettest.Must(onHost.Listen("udp", veth.Interfaces[0].HostIPv4))(t)
				err := errors.Join(onHost.SendUDP(sink.Addr, 50, 100), veth.SendUDP(back.Addr, 50, 100))
				if err != nil {
					t.Fatal(err)
				}
				nettest.Must(sink.Received(50))(t)
				nettest.Must(back.Received(50))(t)
				sent += 50
				d.poll("counted", func() error { return sentBy(d, sent, veth, onHost) })
			}
			send()
			if out, err := d.run("quota", "test", "run"); err != nil {
				t.Errorf("quota test: %v: %s", err, out)
			}
			checksAgree(t, d)
			d.stop()
			d.start()
			send()
		})
	}
}

// checksAgree expects the daemon's verdicts to be those of the command, which is not confined. What
// they found may differ: others' containers come and go.
func checksAgree(t *testing.T, d *daemon) {
	t.Helper()
	var found exporter.Checks
	must(t, json.Unmarshal([]byte(nettest.Must(d.get("/api/v1/checks"))(t)), &found))
	var daemon, command []string
	for _, c := range found.Checks {
		daemon = append(daemon, string(c.Verdict)+" "+c.Name)
	}
	out, err := d.run("check")
	must(t, err)
	for line := range strings.Lines(out) {
		command = append(command, strings.Join(strings.Fields(line)[:2], " "))
	}
	if diff := cmp.Diff(command, daemon); diff != "" {
		t.Errorf("checks (-command +daemon):\n%s\n%s\n%+v", diff, out, found)
	}
}

// sentBy compares what two containers have sent to each other: one by its interface, the
// other, which is on the host's network, by its cgroup.
func sentBy(d *daemon, datagrams uint64, veth, onHost *testnet.Container) error {
	a, err := d.container(veth.ID)
	if err != nil {
		return err
	}
	b, err := d.container(onHost.ID)
	if err != nil {
		return err
	}
	if b.IP == nil || a.Transmit.Packets < datagrams || a.IP == nil || a.IP.Transmit.Packets != datagrams || b.IP.Transmit.Packets != datagrams {
		return fmt.Errorf("sent are %d packets, %+v and %+v, want %d", a.Transmit.Packets, a.IP, b.IP, datagrams)
	}
	return nil
}
