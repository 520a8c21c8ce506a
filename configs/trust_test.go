// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// A program that others can change is refused by the daemon, which would run it, and is
// nothing to a command that asks the daemon.
func TestProgramOfOthers(t *testing.T) {
	need.Root(t)
	const stranger = 1000
	program := filepath.Join(t.TempDir(), "hook")
	must(t, os.WriteFile(program, nil, 0o755))
	text := fmt.Sprintf("notifiers:\n- {name: a, log: {}}\n- {name: b, log: {}}\n- {name: c, exec: {command: [%q]}}\n", program)
	mustLoad(t, text)
	mustLoad(t, strings.ReplaceAll(text, program, program+"-to-come"))
	must(t, os.Chown(program, stranger, stranger))
	file := write(t, text)
	_, err := Load(file, true, nil)
	want := file + ": notifiers[2].exec.command: " + program + " belongs to uid 1000 and has mode 0755: " +
		"others can change it: run `chown root: " + program + "; chmod 755 " + program + "`"
	if err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if _, err := LoadForClient(file, true, nil, "exporter.socket"); err != nil {
		t.Errorf("for a client: %v", err)
	}
}

// Where the configuration is only root's to read, others go by the defaults, but not by
// those of a file that they named.
func TestUnreadable(t *testing.T) {
	need.Root(t)
	file := write(t, "exporter: {socket: /elsewhere}")
	var c *Config
	var client, named, daemon error
	asStranger(t, func() {
		c, client = LoadForClient(file, false, nil, "exporter.socket")
		_, named = LoadForClient(file, true, nil, "exporter.socket")
		_, daemon = Load(file, false, nil)
	})
	must(t, client)
	if got, want := c.Exporter.Socket, mustLoad(t, "").Exporter.Socket; got != want {
		t.Errorf("socket %s, want %s", got, want)
	}
	for what, err := range map[string]error{"a file that was named": named, "for the daemon": daemon} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v, want fs.ErrPermission", what, err)
		}
	}
}

// asStranger calls f on a thread that opens files as another user, and ends with it.
func asStranger(t *testing.T, f func()) {
	t.Helper()
	const stranger = 1000
	var group sync.WaitGroup
	group.Go(func() {
		runtime.LockOSThread()
		if _, err := unix.SetfsuidRetUid(stranger); err != nil {
			t.Error(err)
		}
		f()
	})
	group.Wait()
}

func TestSecrets(t *testing.T) {
	text := `notifiers:
- {name: a, webhook: {url: "http://x", secret_file: /s, http_config_file: /h}}
- {name: b, webhook: {url: "http://x", secret_file: /s}}
- {name: c, alertmanager: {url: "http://x", http_config_file: /am}}
- {name: d, log: {}}
`
	file := write(t, text)
	c, err := Load(file, true, nil)
	must(t, err)
	if diff := cmp.Diff([]string{file, "/s", "/h", "/am"}, c.Secrets()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	none, err := Load(filepath.Join(t.TempDir(), "none.yaml"), false, nil)
	must(t, err)
	if got := none.Secrets(); len(got) > 0 {
		t.Errorf("without a file: %v", got)
	}
}
