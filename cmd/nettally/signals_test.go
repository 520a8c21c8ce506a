// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

const runHelper = "NETTALLY_TEST_RUN"

// starting is `nettally run` while it reads its configuration: a pipe that nothing was written to.
type starting struct {
	*exec.Cmd
	config *os.File
}

// start starts this test as `nettally run`.
func start(t *testing.T, stderr *os.File) *starting {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nettally.yaml")
	must(t, unix.Mkfifo(path, 0o600))
	s := &starting{Cmd: exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")}
	s.Env = append(os.Environ(), runHelper+"="+path)
	s.Stderr = stderr
	must(t, s.Start())
	t.Cleanup(func() {
		_ = s.Process.Kill()
		_ = s.Wait()
	})
	for s.config == nil {
		// ENXIO while nobody reads it.
		config, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENXIO) {
			if err := unix.Kill(s.Process.Pid, 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			continue
		}
		must(t, err)
		s.config = config
	}
	return s
}

// goOn gives it a configuration that it refuses, and returns how it ends.
func (s *starting) goOn(t *testing.T) syscall.WaitStatus {
	t.Helper()
	_, err := io.WriteString(s.config, "log: {level: loud}\n")
	must(t, errors.Join(err, s.config.Close()))
	_ = s.Wait()
	return s.ProcessState.Sys().(syscall.WaitStatus)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// asRun says whether this process is to be nettally, and then is.
func asRun() {
	if path := os.Getenv(runHelper); path != "" {
		os.Args = []string{"nettally", "run", "--config", path}
		main()
	}
}

// TestHangupAtTheStart: `systemctl reload` comes before nettally has read anything.
func TestHangupAtTheStart(t *testing.T) {
	asRun()
	need.Native(t) // it starts itself
	out, in, err := os.Pipe()
	must(t, err)
	defer out.Close()
	s := start(t, in)
	must(t, in.Close())
	must(t, s.Process.Signal(syscall.SIGHUP))
	if status := s.goOn(t); status.ExitStatus() != exitFailed {
		t.Errorf("it ended by %v (%d), want exit %d", status.Signal(), status.ExitStatus(), exitFailed)
	}
	said, err := io.ReadAll(out)
	must(t, err)
	if !strings.Contains(string(said), "log.level: expected") {
		t.Errorf("it said %q", said)
	}
}

// TestNobodyReadsTheLog: journald, or whatever read the standard error, has ended.
func TestNobodyReadsTheLog(t *testing.T) {
	asRun()
	need.Native(t) // it starts itself
	out, in, err := os.Pipe()
	must(t, err)
	s := start(t, in)
	must(t, errors.Join(in.Close(), out.Close()))
	if status := s.goOn(t); status.ExitStatus() != exitFailed {
		t.Errorf("it ended by %v (%d), want exit %d", status.Signal(), status.ExitStatus(), exitFailed)
	}
}
