// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/trusted"
)

// folders returns an error if others can change a folder that we rely on: usage is in the
// first two, and who owns the third could answer for us. A folder that we can't look at is
// left to whoever needs it.
func folders(config *configs.Config) error {
	all := []struct{ key, path string }{{"state_dir", config.StateDir}, {"bpf.pin_path", config.BPF.PinPath}}
	if config.Exporter.Socket != "" {
		all = append(all, struct{ key, path string }{"exporter.socket", filepath.Dir(config.Exporter.Socket)})
	}
	for _, f := range all {
		if err := trusted.Check(f.path); errors.Is(err, trusted.ErrUntrusted) {
			return fmt.Errorf("use %s: %w", f.key, err)
		}
	}
	return nil
}

// exposed returns the files with secrets that every user can read.
func exposed(config *configs.Config) []string {
	var files []string
	for _, path := range config.Secrets() {
		if public, err := trusted.Public(path); err == nil && public {
			files = append(files, path)
		}
	}
	return files
}

// secrets is the check of the files with secrets.
func secrets(config *configs.Config) (string, error) {
	if files := exposed(config); len(files) > 0 {
		list := strings.Join(files, " ")
		return "", fmt.Errorf("every user can read %s: run `chmod o-rwx %s`", list, list)
	}
	return "no other user can read the configuration and its secrets", nil
}
