// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// These are the shapes of configurations that projects ship: k3s' and antrea's lists, and
// those of multus' documentation.
func TestShapes(t *testing.T) {
	for name, test := range map[string]struct {
		file, text string
		want       bool
	}{
		"list":          {"10-pods.conflist", `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`, true},
		"one plugin":    {"10-pods.conf", `{"cniVersion":"0.4.0","name":"pods","type":"bandwidth"}`, true},
		"json":          {"10-pods.json", `{"type":"bandwidth"}`, true},
		"other plugins": {"10-pods.conflist", `{"name":"bandwidth","plugins":[{"type":"bridge"},{"type":"portmap"}]}`, false},
		"no JSON":       {"10-pods.conf", `bandwidth`, false},
		"not loaded":    {"10-pods.conflist.bak", `{"type":"bandwidth"}`, false},
		"a folder":      {"bandwidth.conf/10-pods.conf", `{"type":"bandwidth"}`, false},
		"k3s": {"10-flannel.conflist", `{"name":"cbr0","cniVersion":"1.0.0","plugins":[
			{"type":"flannel","delegate":{"hairpinMode":true,"forceAddress":true,"isDefaultGateway":true}},
			{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`, true},
		"multus": {"00-multus.conf", `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig",
			"delegates":[{"cniVersion":"0.3.1","name":"default","plugins":[{"type":"calico"},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}]}`, true},
		"multus, one plugin": {"00-multus.conf", `{"type":"multus","delegates":[{"type":"weave-net"},{"type":"bandwidth"}]}`, true},
		"multus without":     {"00-multus.conf", `{"type":"multus","capabilities":{"bandwidth":true},"delegates":[{"type":"flannel","name":"bandwidth"}]}`, false},
		"capital letters":    {"10-pods.conf", `{"Type":"bandwidth"}`, true},
		"no text":            {"10-pods.conf", `{"type":["bandwidth"]}`, false},
		"nested deep":        {"10-pods.conf", strings.Repeat(`{"delegate":[`, 4000) + `{"type":"bandwidth"}` + strings.Repeat(`]}`, 4000), true},
		"too deep":           {"10-pods.conf", strings.Repeat(`[`, 100_000) + strings.Repeat(`]`, 100_000), false},
		"too large":          {"10-pods.conf", `{"type":"bandwidth","x":"` + strings.Repeat("x", maxCNIFile) + `"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			writeIn(t, folder, test.file, test.text)
			c := cni{log: slog.New(slog.DiscardHandler)}
			if got := c.shapes([]string{filepath.Join(folder, "none"), folder}); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

func writeIn(t *testing.T, folder, name, text string) {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What can't be read is logged once, holds nothing up, and is logged again after it could be
// read in between.
func TestShapesUnreadable(t *testing.T) {
	var log bytes.Buffer
	c := cni{log: slog.New(slog.NewTextHandler(&log, nil))}
	folder := t.TempDir()
	look := func(want int) {
		t.Helper()
		log.Reset()
		if c.shapes([]string{folder}) {
			t.Error("a network is found")
		}
		if got := strings.Count(log.String(), "level=WARN"); got != want {
			t.Errorf("%d warnings, want %d:\n%s", got, want, log.String())
		}
	}
	look(0)
	writeIn(t, folder, "half.conf", `{"type":"bandw`)
	if err := unix.Mkfifo(filepath.Join(folder, "fifo.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	look(2)
	look(0)
	writeIn(t, folder, "half.conf", `{"type":"bridge"}`)
	look(0)
	writeIn(t, folder, "half.conf", `{"type":"bandw`)
	look(1)
}

// Only so many files are read.
func TestShapesMany(t *testing.T) {
	var log bytes.Buffer
	c := cni{log: slog.New(slog.NewTextHandler(&log, nil))}
	folder := t.TempDir()
	for i := range maxCNIFiles + 20 {
		writeIn(t, folder, fmt.Sprintf("%03d.conf", i), `{"type":"bridge"}`)
	}
	names, err := networkFiles(folder)
	if len(names) != maxCNIFiles || err == nil {
		t.Errorf("%d files, %v", len(names), err)
	}
	if c.shapes([]string{folder}); strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("log: %s", log.String())
	}
}
