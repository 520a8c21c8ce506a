// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The page that is embedded is made of the source that is here.
func TestBundleMatchesItsSource(t *testing.T) {
	files, err := build("../../src")
	if err != nil {
		t.Fatal(err)
	}
	there, err := filepath.Glob("../../dist/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(there) != len(files) {
		t.Errorf("dist has %q, want %q", there, slices.Sorted(maps.Keys(files)))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../../dist", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("dist/%s is not made of the source (err %v): run `make generate`", name, err)
		}
	}
}

func TestVerifyFindsWhatWasChanged(t *testing.T) {
	tests := map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"changed": {func(t *testing.T, dir string) { put(t, dir+"/uplot/dist/uPlot.esm.js", "alert(1)") }, "it is not the file that SHA256SUMS says"},
		"added":   {func(t *testing.T, dir string) { put(t, dir+"/uplot/more.js", "alert(1)") }, "it is not the file that SHA256SUMS says"},
		"removed": {func(t *testing.T, dir string) { remove(t, dir+"/preact/LICENSE") }, "it is not there"},
		"list":    {func(t *testing.T, dir string) { put(t, dir+"/SHA256SUMS", "x\n") }, "is not a sum and a name"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS("../../src/third_party")); err != nil {
				t.Fatal(err)
			}
			if err := verify(dir); err != nil {
				t.Fatal(err)
			}
			test.change(t, dir)
			if err := verify(dir); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
