// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/trusted"
)

const (
	outputMax = 4 << 10     // bytes of a program's output that are kept
	pipesFor  = time.Second // is waited for output after the program has ended
)

// environment is all that a program gets of nettally's.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}

// program runs a program for each alert. It has nettally's user and capabilities, and
// none of its descriptors.
type program struct {
	command []string
	options Options
	log     *slog.Logger
}

func (p *program) deliver(ctx context.Context, alerts []quota.Alert) error {
	for _, a := range alerts {
		if err := p.one(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) one(ctx context.Context, a quota.Alert) error {
	_, body, err := payloadOf(a, p.options.Instance)
	if err != nil {
		return err
	}
	if err := mayRun(p.command[0]); err != nil {
		return &failure{cause: err, everyone: true}
	}
	output := &head{most: outputMax}
	cmd := exec.CommandContext(ctx, p.command[0], p.command[1:]...)
	cmd.Dir, cmd.Env = "/", environment
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), output, output
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = pipesFor
	err = cmd.Run()
	p.log.Debug("program ran", "command", p.command[0], "alert", a.ID, "output", output.String(), "err", err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("run %s: it took too long and was killed%s", p.command[0], quote(output.Bytes()))
	case errors.Is(err, exec.ErrWaitDelay): // it succeeded, and left something running that holds its output
		return nil
	}
	return fmt.Errorf("run %s: %w%s", p.command[0], err, quote(output.Bytes()))
}

// killGroup ends a program and what it has started, but for what has left its group.
func killGroup(pid int) error {
	err := unix.Kill(-pid, unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// mayRun refuses a program that others could have put there: it runs as we do. It is asked
// before each run, since the configuration may have been read long before.
func mayRun(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("run program: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("run %s: it is not a file", path)
	}
	if err := trusted.Check(path); err != nil {
		return fmt.Errorf("run program: %w", err)
	}
	return nil
}

func (*program) close() {}

// head keeps the beginning of what is written to it. A program's two outputs are one
// writer, which exec writes to from one goroutine.
type head struct {
	bytes.Buffer
	most int
}

// Write takes everything, so that the program goes on.
func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), h.most-h.Len())])
	return len(p), nil
}

// String returns it as part of a line.
func (h *head) String() string { return oneLine(h.Buffer.String()) }
