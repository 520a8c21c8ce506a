// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// read is a reading of packets received, of 100 bytes: by the kernel, by us one per
// socket buffer, and by us on the wire.
func read(kernel, ours, wire uint64) reading {
	var r reading
	r.kernel = watcher.LinkCounters{ReceiveBytes: 100 * kernel, ReceivePackets: kernel}
	r.ours.Receive.Interface = usage.Volume{Bytes: 100 * ours, Packets: ours}
	r.ours.Receive.Cells[0][0] = usage.Volume{Bytes: 100 * wire, Packets: wire}
	return r
}

func TestBlind(t *testing.T) {
	since := read(1000, 900, 950)
	for name, test := range map[string]struct {
		kernel, ours, wire uint64 // since then
		blind              bool
	}{
		"nothing passed":                         {0, 0, 0, false},
		"all were seen":                          {10, 10, 10, false},
		"more by now than the kernel had":        {10, 12, 12, false},
		"super-packets, counted as one":          {10, 10, 70, false},
		"super-packets, cut up behind our hook":  {70, 10, 70, false},
		"dropped behind our hook":                {0, 10, 10, false},
		"none was seen":                          {1, 0, 0, true},
		"many passed and few were seen":          {10_000, 100, 100, true},
		"a few more than we saw, of many":        {10_000, 9_990, 9_990, false},
		"a few more than we saw, as in a moment": {90, 50, 50, false},
	} {
		now := read(1000+test.kernel, 900+test.ours, 950+test.wire)
		if got := now.blind(since); got != test.blind {
			t.Errorf("%s: blind %v", name, got)
		}
	}
}

func TestMissing(t *testing.T) {
	since := read(1000, 900, 900)
	got := read(1030, 910, 950).missing(since)
	want := missing{receive: usage.Volume{Bytes: 2000, Packets: 20}}
	if got != want {
		t.Errorf("missing %+v, want %+v", got, want)
	}
	if got := read(1010, 930, 930).missing(since); got != (missing{}) {
		t.Errorf("missing %+v where we have more", got)
	}
}

func TestCompleteness(t *testing.T) {
	var s completeness
	if s.ratio() != 1 {
		t.Errorf("%v before anything passed", s.ratio())
	}
	s.add(read(100, 100, 150), reading{}) // all, and the wire has more
	s.add(read(200, 50, 50), read(100, 0, 0))
	if want := 150.0 / 200; s.ratio() != want {
		t.Errorf("%v, want %v", s.ratio(), want)
	}
}

func TestUsesBandwidth(t *testing.T) {
	for name, test := range map[string]struct {
		file, text string
		want       bool
	}{
		"list":          {"10-pods.conflist", `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`, true},
		"one plugin":    {"10-pods.conf", `{"cniVersion":"0.4.0","name":"pods","type":"bandwidth"}`, true},
		"other plugins": {"10-pods.conflist", `{"name":"bandwidth","plugins":[{"type":"bridge"},{"type":"portmap"}]}`, false},
		"no JSON":       {"10-pods.conf", `bandwidth`, false},
		"a folder":      {"bandwidth/10-pods.conf", `{"type":"bandwidth"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, test.file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := usesBandwidth(folder); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
	if usesBandwidth(filepath.Join(t.TempDir(), "none")) {
		t.Error("a folder that is not there uses bandwidth")
	}
}
