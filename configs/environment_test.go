// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A variable that was meant for a key is a mistake, and one of Kubernetes, or of anybody
// else, is not.
func TestUnknownVariables(t *testing.T) {
	for name, want := range map[string]string{
		"NETTALLY_LOG_LEVEL":                         "",
		"NETTALLY_LOG_LVL":                           "unknown variable; did you mean NETTALLY_LOG_LEVEL?",
		"NETTALLY_STATEDIR":                          "unknown variable; did you mean NETTALLY_STATE_DIR?",
		"NETTALLY_EXPORTR_LISTEN":                    "unknown variable; did you mean NETTALLY_EXPORTER_LISTEN?",
		"NETTALLY_EXPORTER_ADDRESS":                  "unknown variable; no key of the configuration is called that",
		"NETTALLY_QUOTAS":                            "unknown variable; no key of the configuration is called that",
		"NETTALLY_QUOTAS_0_LIMIT":                    "unknown variable; no key of the configuration is called that",
		"NETTALLY_IMAGE":                             "",
		"NETTALLY":                                   "",
		"nettally_log_lvl":                           "",
		"LOG_LVL":                                    "",
		"NETTALLY_PORT":                              "",
		"NETTALLY_SERVICE_HOST":                      "",
		"NETTALLY_PORT_9819_TCP":                     "",
		"NETTALLY_SERVICE_PORT_HTTP":                 "",
		"NETTALLY_METRICS_SERVICE_HOST":              "",
		"NETTALLY_METRICS_SERVICE_PORT":              "",
		"NETTALLY_METRICS_PORT":                      "",
		"NETTALLY_EXPORTER_PORT_9819_TCP_PROTO":      "",
		"NETTALLY_EXPORTER_SERVICE_PORT_WEB_METRICS": "",
	} {
		got := ""
		for _, problem := range unknownVariables([]string{"PATH=/bin", name + "=x=y"}) {
			got += strings.TrimPrefix(problem.Error(), name+": ")
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	t.Setenv("NETTALLY_LOG_LVL", "debug")
	_, err := Load("", false, nil)
	if want := "NETTALLY_LOG_LVL: unknown variable; did you mean NETTALLY_LOG_LEVEL?"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Commands that ask the daemon need its socket, and detach what it has put on the host.
func TestMistakesThatMatter(t *testing.T) {
	const mistakes = `
log: {level: loud}
names: {labels: [a, a]}
quotas: [{name: egress, limit: 100}, 5]
quotas: []
notifiers: {}
metrics: {familys: [x]}
`
	const others = "retention: 5\nwidth: 3\nbpf: {max_interfaces: many}\n"
	client := func(text string) (string, error) {
		c, err := LoadForClient(write(t, text), true, nil, "exporter.socket")
		if err != nil {
			return "", err
		}
		return c.Exporter.Socket, nil
	}
	const right = "exporter: {socket: /run/x.sock, listen: nowhere}\n"
	if got, err := client(mistakes + others + right); err != nil || got != "/run/x.sock" {
		t.Errorf("for a client: %q, %v", got, err)
	}
	if _, err := client(mistakes + "exporter: {socket: x}"); err == nil || !strings.Contains(err.Error(), ": exporter.socket: expected an absolute path") ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("a socket that is none: %v", err)
	}
	if _, err := client("a: [\n"); err == nil {
		t.Error("a file without a socket is taken")
	}
	c, err := LoadForDetach(write(t, mistakes+"state_dir: /x\nexporter: {socket: /run/x.sock}\n"), true, nil)
	must(t, err)
	if diff := cmp.Diff([]string{"/x", "/run/x.sock"}, []string{c.StateDir, c.Exporter.Socket}); diff != "" {
		t.Errorf("for detach (-want +got):\n%s", diff)
	}
	if _, err := LoadForDetach(write(t, "bpf: {pin_path: x}"), true, nil); err == nil {
		t.Error("detach takes a pin path that is none")
	}
	t.Setenv("NETTALLY_EXPORTER_SOCKET", "/run/y.sock")
	t.Setenv("NETTALLY_LOG_LEVEL", "loud")
	if got, err := client("a: [\n"); err != nil || got != "/run/y.sock" {
		t.Errorf("with a variable: %q, %v", got, err)
	}
}
