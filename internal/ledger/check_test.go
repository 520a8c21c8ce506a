// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	tests := map[string]struct {
		prepare func(b *bench)
		want    string // "" for no error
	}{
		"no ledger yet":   {func(*bench) {}, ""},
		"while it is run": {func(b *bench) { b.onHost(); b.flush(record("a1", "web", 100)) }, ""},
		"after a stop":    {func(b *bench) { b.onHost(); b.flush(record("a1", "web", 100)); b.stop() }, ""},
		"clock": {
			func(b *bench) { b.now = time.Now().Add(time.Hour); b.flush(); b.stop() },
			"set the clock",
		},
		"damage": {
			func(b *bench) { crowd(b, 10); p := pagesOf(b, "hours")[1]; b.stop(); garble(b.t, b.path, p) },
			"`nettally run` sets it aside and takes over what can be read",
		},
		"no ledger": {
			func(b *bench) { write(b, strings.Repeat("not a ledger\n", 1000)) },
			"`nettally run` sets it aside and takes over what can be read",
		},
		"no folder": {
			func(b *bench) {
				if err := os.WriteFile(filepath.Dir(b.path), nil, 0o600); err != nil {
					b.t.Fatal(err)
				}
			},
			"state is no folder; set state_dir to a folder",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			test.prepare(b)
			err := Check(b.path)
			if test.want == "" && err != nil {
				t.Errorf("check: %v", err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("check: %v, want %s", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
			if found, _ := filepath.Glob(b.path + ".damaged*"); len(found) > 0 {
				t.Errorf("it set %v aside", found)
			}
		})
	}
}

func write(b *bench, text string) {
	if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}
