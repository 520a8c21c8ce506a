// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/nettally/nettally/internal/testnet/need"
)

// unread is a pipe that nobody reads.
func unread(t *testing.T) *os.File {
	t.Helper()
	out, in, err := os.Pipe()
	must(t, err)
	must(t, out.Close())
	t.Cleanup(func() { in.Close() })
	return in
}

// TestNobodyReadsOutput: `nettally list | head -1`, started by who ignores SIGPIPE.
func TestNobodyReadsOutput(t *testing.T) {
	flags := daemonWith(t, listed(), nil)
	for _, args := range [][]string{{"list"}, {"list", "-o", "json"}, {"version"}} {
		var errs bytes.Buffer
		if code := execute(t.Context(), append(args, flags...), unread(t), &errs); code != exitPipe || errs.Len() > 0 {
			t.Errorf("%v: exit code %d, want %d and no word: %s", args, code, exitPipe, &errs)
		}
	}
	if code := execute(t.Context(), append([]string{"list", "--frob"}, flags...), unread(t), unread(t)); code != exitUsage {
		t.Errorf("no reader of errors: exit code %d, want %d", code, exitUsage)
	}
}

// TestNobodyReadsStandardOutput: the kernel ends it, as any other program.
func TestNobodyReadsStandardOutput(t *testing.T) {
	const helper = "NETTALLY_TEST_VERSION"
	if os.Getenv(helper) != "" {
		os.Args = []string{"nettally", "version"}
		main()
	}
	need.Native(t) // it starts itself
	var errs bytes.Buffer
	nettally := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	nettally.Env = append(os.Environ(), helper+"=1")
	nettally.Stdout, nettally.Stderr = unread(t), &errs
	_ = nettally.Run()
	if status := nettally.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGPIPE || errs.Len() > 0 {
		t.Errorf("it ended by %v: %s", nettally.ProcessState, &errs)
	}
}
