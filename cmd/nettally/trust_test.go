// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/trusted"
)

// configured returns a configuration whose folders are below top.
func configured(t *testing.T, top, more string) *configs.Config {
	t.Helper()
	file := filepath.Join(top, "nettally.yaml")
	text := fmt.Sprintf("state_dir: %q\nbpf: {pin_path: %q}\nexporter: {socket: %q}\n%s",
		filepath.Join(top, "state"), filepath.Join(top, "pins"), filepath.Join(top, "run", "socket"), more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := configs.Load(file, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestFolders(t *testing.T) {
	need.Root(t)
	const stranger = 1000
	top := t.TempDir()
	config := configured(t, top, "")
	if err := folders(config); err != nil { // none is there yet
		t.Fatal(err)
	}
	for name, key := range map[string]string{"state": "state_dir", "pins": "bpf.pin_path", "run": "exporter.socket"} {
		path := filepath.Join(top, name)
		if err := errors.Join(os.Mkdir(path, 0o755), folders(config), os.Chown(path, stranger, stranger)); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("use %s: %s belongs to uid 1000 and has mode 0755: others can change it: run `chown root: %[2]s; chmod 755 %[2]s`", key, path)
		err := folders(config)
		if !errors.Is(err, trusted.ErrUntrusted) || err.Error() != want {
			t.Errorf("%s: error is %v, want %s", name, err, want)
		}
		var out bytes.Buffer
		err = report(&out, []check{named(t, config, "folders")})
		if err == nil || !strings.HasPrefix(out.String(), "FAILED   folders      "+want) {
			t.Errorf("check says %q, %v", out.String(), err)
		}
		if _, err := newDaemon(config); err == nil || err.Error() != want {
			t.Errorf("the daemon says %v, want %s", err, want)
		}
		if err := os.Chown(path, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// named returns one of the checks.
func named(t *testing.T, config *configs.Config, name string) check {
	t.Helper()
	for _, c := range checks(t.Context(), config) {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no check %s", name)
	return check{}
}

// Secrets that everyone can read are warned of, and those that a folder hides are not.
func TestExposed(t *testing.T) {
	hidden := t.TempDir() // below a folder that is ours alone
	top := filepath.Dir(hidden)
	secret := filepath.Join(hidden, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	config := configured(t, hidden, fmt.Sprintf("notifiers: [{name: a, webhook: {url: 'http://x', secret_file: %q}}]", secret))
	says := func(want string) {
		t.Helper()
		var out bytes.Buffer
		if err := report(&out, []check{named(t, config, "secrets")}); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("check says %q, %v, want %q", out.String(), err, want)
		}
	}
	const ok = "ok       secrets      no other user can read"
	says(ok)
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	says("warning  secrets      every user can read " + secret + ": run `chmod o-rwx " + secret + "`\n")
	if err := os.Chmod(filepath.Join(hidden, "nettally.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	says("warning  secrets      every user can read " + filepath.Join(hidden, "nettally.yaml") + " " + secret)
	for _, file := range config.Secrets() {
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	says(ok)
}
