// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// HoldNamespaces returns the names of the mount and the network namespace of a
// process, such as "mnt:[4026532200]". It keeps them alive for the test, since
// the kernel would give their numbers to others.
func HoldNamespaces(tb testing.TB, pid int) []string {
	tb.Helper()
	var names []string
	for _, kind := range []string{"mnt", "net"} {
		f := Must(os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)))(tb)
		tb.Cleanup(func() { _ = f.Close() })
		names = append(names, Must(os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())))(tb))
	}
	return names
}

// NamespaceUsers returns the processes that are in a namespace, as links in
// /proc.
func NamespaceUsers(tb testing.TB, namespace string) []string {
	tb.Helper()
	kind, _, _ := strings.Cut(namespace, ":")
	var found []string
	for _, l := range Must(filepath.Glob("/proc/[0-9]*/ns/" + kind))(tb) {
		if target, err := os.Readlink(l); err == nil && target == namespace {
			found = append(found, l)
		}
	}
	return found
}

// AwaitNobody waits until no process is in a namespace: killed ones have to be
// reaped by whoever inherited them.
func AwaitNobody(tb testing.TB, namespace string) {
	tb.Helper()
	const patience = 2 * time.Minute
	var left []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = NamespaceUsers(tb, namespace); len(left) == 0 {
			return
		}
	}
	tb.Errorf("processes left in %s: %v", namespace, left)
}

// victim is set in the environment of a test binary that is to be killed.
const victim = "NETTALLY_TEST_VICTIM"

// IsVictim reports whether the test is one that [KillTest] has started. If not,
// a test to be killed has nothing to do.
func IsVictim() bool { return os.Getenv(victim) != "" }

// Victim says that the test is ready to be killed, in so many words without
// spaces, and waits for it.
func Victim(words ...any) {
	fmt.Println(append([]any{victim}, words...)...)
	select {}
}

// KillTest starts a test of the same binary, and kills it with SIGKILL when it
// calls [Victim]. Before that, it calls alive with what the test said.
func KillTest(tb testing.TB, name string, alive func(words []string)) {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+name+"$", "-test.v")
	cmd.Env = append(os.Environ(), victim+"=1")
	stdout := Must(cmd.StdoutPipe())(tb)
	fatal(tb, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: expected
	}()
	var said []string
	for lines := bufio.NewScanner(stdout); lines.Scan(); said = append(said, lines.Text()) {
		if words := strings.Fields(lines.Text()); len(words) > 0 && words[0] == victim {
			alive(words[1:])
			return
		}
	}
	tb.Fatalf("%s is not ready to be killed:\n%s", name, strings.Join(said, "\n"))
}
