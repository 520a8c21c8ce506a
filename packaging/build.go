// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// goCommand returns a call of Go in the product's folder, on which nothing in the caller's
// environment has a say but where Go, its modules and its cache are.
func (r *release) goCommand(arch string, args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = r.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off", "GOFLAGS=-mod=readonly", "GOEXPERIMENT=",
		"GOAMD64=v1", "GOARM64=v8.0", "GODEBUG=", "TZ=UTC", "SOURCE_DATE_EPOCH="+strconv.FormatInt(r.date.Unix(), 10))
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// flags are those of every build: neither paths nor git's state get into the binary.
func (r *release) flags() []string {
	return []string{"-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=" + r.version + " -X main.revision=" + r.revision}
}

func (r *release) binary(arch string) string {
	return r.path("nettally_" + r.version + "_linux_" + arch)
}

func (r *release) build(arch string) error {
	out, err := filepath.Abs(r.binary(arch))
	if err != nil {
		return err
	}
	args := append(append([]string{"build"}, r.flags()...), "-o", out, "./cmd/nettally")
	if err := r.goCommand(arch, args...).Run(); err != nil {
		return fmt.Errorf("build for %s: %w", arch, err)
	}
	return nil
}

// shells are those that have completions, with the files of these.
var shells = map[string]string{"bash": "nettally.bash", "zsh": "_nettally", "fish": "nettally.fish"}

// manual stages the manual pages and the completions. A build for this machine writes them.
func (r *release) manual() error {
	program := r.staged("nettally-man")
	args := append(append([]string{"build", "-tags", "man"}, r.flags()...), "-o", program, "./cmd/nettally")
	if err := r.goCommand("", args...).Run(); err != nil {
		return fmt.Errorf("build what writes the manual: %w", err)
	}
	pages := r.staged("man")
	if err := os.Mkdir(pages, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(program, "man", pages)
	cmd.Env = r.goCommand("").Env // the date
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write the manual: %w: %s", err, out)
	}
	for shell, file := range shells {
		text, err := exec.Command(program, "completion", shell).Output()
		if err != nil {
			return fmt.Errorf("write the completions of %s: %w", shell, err)
		}
		if err := os.WriteFile(r.staged(file), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
