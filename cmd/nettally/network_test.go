// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestNetwork(t *testing.T) {
	for name, test := range map[string]struct {
		own, host string
		want      error
	}{
		"the host's":                   {"a", "a", nil},
		"another":                      {"a", "b", errOtherNetwork},
		"process 1 can't be looked at": {"a", "", nil},
		"no procfs":                    {"", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			proc := t.TempDir()
			for process, namespace := range map[string]string{"self": test.own, "1": test.host} {
				if namespace == "" {
					continue
				}
				folder, file := filepath.Join(proc, process, "ns"), filepath.Join(proc, namespace)
				if err := os.MkdirAll(folder, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, nil, 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(file, filepath.Join(folder, "net")); err != nil {
					t.Fatal(err)
				}
			}
			if err := network(proc); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}
