// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Every mistake gets one line that names the thing and the fix, and an exit code; and
// nothing is left behind.
func TestRefusals(t *testing.T) {
	need.Root(t)
	need.Commands(t, "unshare", "setpriv")
	host := nettest.Host(t)
	folder := t.TempDir()
	if err := os.Chmod(filepath.Dir(folder), 0o755); err != nil {
		t.Fatal(err)
	}
	pins := filepath.Join(folder, "bpf")
	good := fmt.Sprintf("state_dir: %q\nbpf: {pin_path: %q}\nexporter: {listen: \"\", socket: %q}\n", folder, pins, filepath.Join(folder, "socket"))
	busy := "127.0.0.1:9819"
	var listener net.Listener
	if err := host.Do(func() (err error) { listener, err = net.Listen("tcp", busy); return err }); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	tests := map[string]struct {
		config string
		around []string // a command that runs nettally
		args   []string
		code   int
		says   string
	}{
		"unknown command":    {args: []string{"count"}, code: 2, says: `wrong use: unknown command "count" for "nettally"`},
		"unknown flag":       {args: []string{"list", "--frob"}, code: 2, says: "wrong use: unknown flag: --frob: see `nettally list --help`"},
		"superfluous word":   {args: []string{"run", "now"}, code: 2, says: "wrong use: unknown command \"now\" for \"nettally run\""},
		"unknown output":     {args: []string{"list", "-o", "xml"}, code: 2, says: `wrong use: --output: expected table, wide or json, got "xml"`},
		"unknown key":        {config: "watch: {recncile: 3s}", code: 1, says: "watch.recncile: unknown key; did you mean watch.reconcile?"},
		"later key":          {config: "accounting: {classes: []}", code: 1, says: "accounting.classes: unknown key"},
		"wrong type":         {config: `attach: {priority: "two"}`, code: 1, says: "attach.priority: expected"},
		"bad duration":       {config: "retention: {metrics: 5}", code: 1, says: "retention.metrics: expected a duration"},
		"missing file":       {args: []string{"run", "--config", folder + "/none.yaml"}, code: 1, says: "none.yaml"},
		"port in use":        {config: strings.Replace(good, `listen: ""`, "listen: "+busy, 1), code: 1, says: "listen on 127.0.0.1:9819: address already in use"},
		"not root":           {config: good + "accounting: {source: bpf}\n", around: []string{"setpriv", "--reuid=65534", "--clear-groups"}, code: 1, says: "privileges: no CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE: run nettally as root"},
		"private cgroups":    {config: good, around: []string{"unshare", "--cgroup"}, code: 1, says: "--cgroupns=host"},
		"pin path is a file": {config: strings.Replace(good, pins, folder+"/file", 1), code: 1, says: "file"},
		"no daemon":          {config: good, args: []string{"list"}, code: 1, says: "nobody answers (is nettally running?"},
	}
	if err := os.WriteFile(folder+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			args := test.args
			if args == nil {
				args = []string{"run"}
			}
			if test.config != "" {
				path := filepath.Join(t.TempDir(), "nettally.yaml")
				if err := os.WriteFile(path, []byte(test.config), 0o644); err != nil {
					t.Fatal(err)
				}
				makeReadable(t, path)
				args = append(args, "--config", path)
			}
			scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"host": host}, Paths: []string{pins, "/run/nettally"}}
			before := nettest.TakeSnapshot(t, scope)

			out, err := runAround(t, on{host}, test.around, args...)
			if code := exitCode(err); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if lines := strings.Count(out, "\n"); lines != 1 || !strings.HasPrefix(out, "nettally: ") || !strings.Contains(out, test.says) {
				t.Errorf("printed:\n%swant one line that says: %s", out, test.says)
			}
			unpin(t, pins)
			if diff := cmp.Diff(before, nettest.TakeSnapshot(t, scope)); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

// A start that failed after the maps were pinned leaves them for the next one, as a
// stopped daemon does: detach takes them away.
func unpin(t *testing.T, pins string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "detach.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, "state_dir: %q\nbpf: {pin_path: %q}", t.TempDir(), pins), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runIn(t, on{nettest.Host(t)}, "detach", "--config", path); err != nil {
		t.Errorf("detach: %v: %s", err, out)
	}
}

// makeReadable lets other users come as far as a file below t.TempDir.
func makeReadable(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// runAround runs nettally within a command that takes one.
func runAround(t *testing.T, at place, around []string, args ...string) (string, error) {
	t.Helper()
	command := append(append(around[:len(around):len(around)], nettest.Must(binary())(t)), args...)
	out, err := at.Command(command[0], command[1:]...).CombinedOutput()
	return string(out), err
}

// A configuration that every user can read is taken, and warned of.
func TestReadableConfig(t *testing.T) {
	need.Root(t)
	d := startDaemon(t, on{nettest.Host(t)}, "")
	const warning = "every user can read files that may hold secrets"
	if strings.Contains(d.log.String(), warning) {
		t.Error("warned of a configuration that is hidden")
	}
	d.stop()
	makeReadable(t, d.config)
	if err := os.Chmod(d.config, 0o644); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.poll("warned", func() error {
		if n := strings.Count(d.log.String(), warning); n != 1 {
			return fmt.Errorf("warned %d times", n)
		}
		return nil
	})
}

// Where no bpffs is mounted, one is, and detach takes it off again.
func TestNoBPFFS(t *testing.T) {
	need.Root(t)
	need.Commands(t, "unshare", "sh")
	folder := t.TempDir()
	script := fmt.Sprintf(`set -e
while umount /sys/fs/bpf 2>/dev/null; do :; done
export NETTALLY_STATE_DIR=%[1]s NETTALLY_WATCH_INCLUDE=/none
"$0" run --listen '' --socket %[1]s/socket >%[1]s/log 2>&1 &
daemon=$!
for i in $(seq 500); do [ -S %[1]s/socket ] && break; sleep 0.02; done
grep -c ' /sys/fs/bpf .* bpf nettally ' /proc/self/mountinfo
ls /sys/fs/bpf/nettally/`+bpf.Layout+`
kill $daemon; wait $daemon
"$0" detach
grep -c ' /sys/fs/bpf ' /proc/self/mountinfo || true`, folder)
	at := on{nettest.Host(t)}
	out, err := at.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, nettest.Must(binary())(t)).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(folder + "/log")
		t.Fatalf("%v: %s\n%s", err, out, log)
	}
	want := "1\nchunks\nroutes\nslots\ntroubles\ntook filters off 0 interfaces\n0\n"
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
}
