// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// script returns an executable shell script, and the folder it is in.
func script(t *testing.T, text string) (path, folder string) {
	t.Helper()
	path = write(t, "hook", "#!/bin/sh\n"+text, 0o700)
	return path, filepath.Dir(path)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A program gets its arguments as they are, the alert on its standard input, and
// nothing else of ours.
func TestProgram(t *testing.T) {
	path, folder := script(t, `cd "$(dirname "$0")" || exit 1
printf '%s\n' "$@" >arguments
cat >alert
env | sed 's/=.*//' | sort >environment
pwd -P >folder
ls -l /proc/$$/fd >descriptors
ps -o pgid= -p $$ | tr -d ' ' >group; echo $$ >pid
`)
	t.Setenv("NETTALLY_SECRET", "x")
	// A descriptor that is open here must not be open there.
	held, err := os.Create(filepath.Join(folder, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	b := newBench(t, Config{Name: "run", Exec: &Exec{Command: []string{path, "$HOME; id", "a b"}}})
	if err := b.deliverTo("run", firing("80", "run")); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, filepath.Join(folder, "arguments")), "$HOME; id\na b\n"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	var got payload
	if err := json.Unmarshal([]byte(read(t, filepath.Join(folder, "alert"))), &got); err != nil {
		t.Fatal(err)
	}
	want := payload{Version: 1, Instance: "host-1", Delivery: deliveryKey(firing("80"), "host-1"), Alert: firing("80", "run")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("alert (-want +got):\n%s", diff)
	}
	// The shell adds some variables.
	for _, name := range strings.Fields(read(t, filepath.Join(folder, "environment"))) {
		if !strings.Contains(" PATH LANG PWD OLDPWD SHLVL _ ", " "+name+" ") {
			t.Errorf("it has %s in its environment", name)
		}
	}
	if got := read(t, filepath.Join(folder, "descriptors")); strings.Contains(got, held.Name()) || !strings.Contains(got, "pipe:") {
		t.Errorf("it has these descriptors, want pipes and not %s:\n%s", held.Name(), got)
	}
	if read(t, filepath.Join(folder, "group")) != read(t, filepath.Join(folder, "pid")) {
		t.Error("it is not in a process group of its own")
	}
}

func TestProgramFails(t *testing.T) {
	exits, _ := script(t, "echo 'no such\nrecipient' >&2; exit 3\n")
	loud, _ := script(t, "yes | head -c 1000000; exit 1\n")
	open := write(t, "open", "#!/bin/sh\n", 0o777)
	for _, test := range []struct{ path, want string }{
		{exits, "run " + exits + ": exit status 3: no such recipient"},
		{loud, "run " + loud + ": exit status 1: y y y y"},
		{open, "run program: " + open + " belongs to uid " + strconv.Itoa(os.Getuid()) + " and has mode 0777: others can change it: run `chown root: " + open + "; chmod 755 " + open + "`"},
		{"/nonexistent/hook", "run program: stat /nonexistent/hook: no such file or directory"},
		{t.TempDir(), "it is not a file"},
		{write(t, "text", "echo\n", 0o600), "permission denied"},
	} {
		b := newBench(t, Config{Name: "run", Exec: &Exec{Command: []string{test.path}}})
		err := b.Test(t.Context(), "run")
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
			t.Errorf("error is %v, want one short line with %q", err, test.want)
		}
		if f := (*failure)(nil); errors.As(err, &f) && f.permanent {
			t.Errorf("%v is for good, want it to be tried again", err)
		}
	}
}

// A program that was fine when the configuration was read may have been replaced since.
func TestProgramReplaced(t *testing.T) {
	need.Root(t)
	const stranger = 1000
	path, folder := script(t, `echo ran >>"$(dirname "$0")/runs"`)
	b := newBench(t, Config{Name: "run", Exec: &Exec{Command: []string{path}}})
	if err := b.Test(t.Context(), "run"); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"the program": func() error { return os.Chown(path, stranger, stranger) },
		"its folder":  func() error { return errors.Join(os.Chown(path, 0, 0), os.Chown(folder, stranger, stranger)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		err := b.Test(t.Context(), "run")
		if err == nil || !strings.Contains(err.Error(), " belongs to uid 1000 and has mode ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s is another's: error is %v, want a line that says so", name, err)
		}
		if f := (*failure)(nil); !errors.As(err, &f) || f.permanent {
			t.Errorf("%s is another's: %v is for good, want it to be tried again", name, err)
		}
		if err := errors.Join(os.Chown(path, 0, 0), os.Chown(folder, 0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, filepath.Join(folder, "runs")); got != "ran\n" {
		t.Errorf("it ran again: %q", got)
	}
}

// A program that hangs is killed with what it has started.
func TestProgramHangs(t *testing.T) {
	path, folder := script(t, `cd "$(dirname "$0")"; sleep 1000 & echo $! >child; echo $$ >parent; wait`)
	b := newBench(t, Config{Name: "run", Timeout: 3 * time.Second, Exec: &Exec{Command: []string{path}}})
	err := b.Test(t.Context(), "run")
	if err == nil || !strings.Contains(err.Error(), "it took too long and was killed") {
		t.Errorf("error is %v, want that it was killed", err)
	}
	for _, name := range []string{"parent", "child"} {
		pid, err := strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(folder, name))))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the "+name+" is gone", func() bool { return !runs(pid) })
	}
}

// runs says whether a process is there and not only waits for its parent to know.
func runs(pid int) bool {
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// What a program leaves running holds nothing up.
func TestProgramLeavesSomethingRunning(t *testing.T) {
	path, folder := script(t, `cd "$(dirname "$0")"; sleep 1000 & echo $! >child`)
	b := newBench(t, Config{Name: "run", Exec: &Exec{Command: []string{path}}})
	err := b.Test(t.Context(), "run") // fails if it waits for the sleep
	pid, convErr := strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(folder, "child"))))
	if convErr != nil {
		t.Fatal(convErr)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	if err != nil {
		t.Errorf("error is %v, want success while the sleep goes on", err)
	}
	if !runs(pid) {
		t.Error("it was killed, want it to go on")
	}
}
