// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// write makes a configuration file and returns its path.
func write(tb testing.TB, text string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "nettally.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	return file
}

func mustLoad(tb testing.TB, text string) *Config {
	tb.Helper()
	config, err := Load(write(tb, text), true, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return config
}

func TestLoadDefaults(t *testing.T) {
	config, err := Load(filepath.Join(t.TempDir(), "none.yaml"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		StateDir:   "/var/lib/nettally",
		Log:        Log{Level: slog.LevelInfo, Format: FormatText},
		BPF:        BPF{PinPath: "/sys/fs/bpf/nettally", MaxInterfaces: 65535},
		Attach:     Attach{Mode: Auto, Priority: 2, CNIDirs: cniDirs, Interfaces: Selection{Include: []string{"*"}, Exclude: []string{}}},
		Watch:      Watch{CgroupRoot: Auto, Reconcile: 30 * time.Second},
		Names:      Names{Docker: Auto, Podman: Auto, CRI: Auto, Labels: []string{"com.docker.compose.project", "com.docker.compose.service"}},
		Accounting: Accounting{Source: Auto, Cgroup: Auto, TCP: Auto},
		Limits:     Limits{Containers: 20000, PerUser: 256, Interfaces: 64, Ended: 5000, SlotsForRoot: 0.5, SeriesPerQuota: 1000, SeriesPerPeriod: 1000},
		Exporter:   Exporter{Listen: "127.0.0.1:9819", Socket: "/run/nettally/nettally.sock"},
		Metrics:    Metrics{Families: []string{}, Periods: MetricPeriods{Every: "month", Day: 1, Location: time.UTC, By: []string{}, Keep: 7 * day}},
		Retention:  Retention{Metrics: 5 * time.Minute, API: 24 * time.Hour, Hours: 90 * day, Days: 5 * year},
	}
	if diff := cmp.Diff(want.raw(), config.raw()); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestLoadNothing(t *testing.T) {
	want := mustLoad(t, "").raw()
	for name, text := range map[string]string{
		"comments":       "# nothing\n",
		"empty section":  "log:\nattach:\n  interfaces:\n",
		"null":           "~\n",
		"end marker":     "log: {}\n...\n",
		"start marker":   "---\nlog: {}\n",
		"byte order":     "\ufefflog: {}\n",
		"carriage":       "log:\r\n  level: info\r\n",
		"default values": "attach: {priority: 2}\n",
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(want, mustLoad(t, text).raw()); diff != "" {
				t.Errorf("not the defaults (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := Load("", false, nil); err != nil {
		t.Errorf("no file: %v", err)
	}
}

const everything = `
state_dir: /srv/nettally/
log: {level: debug, format: json}
bpf: {pin_path: /sys/fs/bpf/other/, max_interfaces: 100}
attach: {mode: tcx, priority: 65535, cni_dirs: [/opt/cni/conf/], interfaces: {include: [veth*, "lxc[0-9]?"], exclude: [vethX]}}
watch: {cgroup_root: /host/cgroup, reconcile: 1m30s, include: [/docker/*], exclude: [3f2a*], patterns: ['/jobs/(?P<id>\w{2,3})$']}
names: {docker: unix:///run/docker.sock, podman: unix:///run/user/1000/podman/podman.sock, cri: off, labels: [com.docker.compose.service, Team]}
accounting: {source: proc, cgroup: all, tcp: off, conntrack: on, nflog: {group: 65535}}
requests: {ports: [80, 65535]}
limits: {containers: 1, per_user: 2, interfaces: 3, ended: 4, slots_for_root: 1, series_per_quota: 1000000, series_per_period: 5}
exporter: {listen: "[::1]:1", socket: "", web_config: /etc/nettally/web.yaml, hosts: [metrics.example.org, Box]}
metrics: {families: [tcp_flags, interface], compat: cadvisor, periods: {every: month, day: 31, timezone: Europe/Berlin, by: [namespace, "label:Team"], keep: 868d}}
retention: {metrics: 0s, api: 1h0.5s, hours: 1d, days: 1y400d12h}
`

func TestLoadEverything(t *testing.T) {
	c := mustLoad(t, everything)
	var want raw
	want.StateDir = "/srv/nettally"
	want.Log.Level, want.Log.Format = "debug", "json"
	want.Accounting.Source = "proc"
	want.BPF.PinPath, want.BPF.MaxInterfaces = "/sys/fs/bpf/other", 100
	want.Attach.Mode, want.Attach.Priority = "tcx", 65535
	want.Attach.CNIDirs = []string{"/opt/cni/conf"}
	want.Attach.Interfaces.Include = []string{"veth*", "lxc[0-9]?"}
	want.Attach.Interfaces.Exclude = []string{"vethX"}
	want.Watch.CgroupRoot, want.Watch.Reconcile = "/host/cgroup", "1m30s"
	want.Watch.Include, want.Watch.Exclude = []string{"/docker/*"}, []string{"3f2a*"}
	want.Watch.Patterns = []string{`/jobs/(?P<id>\w{2,3})$`}
	want.Names.Docker = "unix:///run/docker.sock"
	want.Names.Podman, want.Names.CRI = "unix:///run/user/1000/podman/podman.sock", "off"
	want.Names.Labels = []string{"com.docker.compose.service", "Team"}
	want.Accounting.Cgroup = "all"
	want.Accounting.TCP = "off"
	want.Accounting.Sockets = "off"
	want.Accounting.Conntrack = "on"
	want.Accounting.NFLOG.Group = 65535
	want.Requests.HTTP, want.Requests.TLS, want.Requests.DNS = "off", "off", "off"
	want.Requests.Ports = numbers{"80", "65535"}
	want.Limits.Containers, want.Limits.PerUser, want.Limits.Interfaces = 1, 2, 3
	want.Limits.Ended, want.Limits.SlotsForRoot, want.Limits.SeriesPerQuota = 4, 1, 1000000
	want.Limits.SeriesPerPeriod = 5
	want.Exporter.Listen, want.Exporter.WebConfig = "[::1]:1", "/etc/nettally/web.yaml"
	want.Exporter.Hosts = []string{"metrics.example.org", "Box"}
	want.Metrics.Families, want.Metrics.Compat = []string{"tcp_flags", "interface"}, "cadvisor"
	want.Metrics.Periods.Every, want.Metrics.Periods.Day, want.Metrics.Periods.Timezone = "month", 31, "Europe/Berlin"
	want.Metrics.Periods.By, want.Metrics.Periods.Keep = []string{"namespace", "label:Team"}, "868d"
	want.Retention.Metrics, want.Retention.API = "0s", "1h0m0.5s"
	want.Retention.Hours, want.Retention.Days = "24h", "18372h"
	want.Quotas, want.Notifiers = []rawQuota{}, []rawNotifier{}
	if diff := cmp.Diff(want, c.raw()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if c.Log.Level != slog.LevelDebug || c.Watch.Reconcile != 90*time.Second {
		t.Errorf("level %v, reconcile %v", c.Log.Level, c.Watch.Reconcile)
	}
}

func TestLoadAccepts(t *testing.T) {
	for _, text := range []string{
		`exporter: {listen: ":9819"}`,
		`exporter: {listen: "localhost:0"}`,
		`exporter: {listen: "[fe80::1%eth0]:9819"}`,
		`exporter: {listen: "host-1.example.org:9819"}`,
		`exporter: {listen: ""}`,
		`names: {docker: off}`, // no boolean, as it was in YAML 1.1
		`bpf: {max_interfaces: 0x10}`,
		"log: &l {level: warn}\nretention: {}\n",
		"retention: {metrics: &d 1h, api: *d}\n",
		`metrics: {families: [interface, protocol, family, tcp_flags]}`,
		`watch: {reconcile: 1s}`,
		`state_dir: /`,
		`attach: {mode: auto}`,
		`attach: {mode: clsact}`,
		`attach: {cni_dirs: [/a, /b/../a]}`,
		`retention: {hours: 1d, days: 24h}`,
		`retention: {hours: 5y, days: 1825d}`,
	} {
		if _, err := Load(write(t, text), true, nil); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "exporter: {listen: 127.0.0.1:1, socket: /file}\nlog: {level: warn}\n")
	t.Setenv("NETTALLY_EXPORTER_LISTEN", "127.0.0.1:2")
	t.Setenv("NETTALLY_EXPORTER_SOCKET", "/env")
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	BindFlags(flags)
	if err := flags.Parse([]string{"--listen=127.0.0.1:3"}); err != nil {
		t.Fatal(err)
	}

	c, err := Load(file, true, flags)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Log.Format, c.Log.Level.String(), c.Exporter.Socket, c.Exporter.Listen}
	want := []string{"text", "WARN", "/env", "127.0.0.1:3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("default, file, environment, flag (-want +got):\n%s", diff)
	}
}

func TestEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"NETTALLY_STATE_DIR":                 "/x",
		"NETTALLY_LOG_LEVEL":                 "error",
		"NETTALLY_ATTACH_PRIORITY":           "08",
		"NETTALLY_ATTACH_INTERFACES_INCLUDE": "",
		"NETTALLY_WATCH_INCLUDE":             "/docker/*, 3f2a*",
		"NETTALLY_WATCH_PATTERNS":            "/(?P<id>[a-z]+)$",
		"NETTALLY_EXPORTER_LISTEN":           "",
		"NETTALLY_RETENTION_API":             "1h",
		"NETTALLY_SERVICE_HOST":              "10.0.0.1", // Kubernetes makes these
		"NETTALLY_PORT_9819_TCP":             "tcp://10.0.0.1:9819",
	} {
		t.Setenv(name, value)
	}
	want := mustLoadAs(t, "state_dir: /x\nlog: {level: error}\nattach: {priority: 8, interfaces: {include: []}}\n"+
		"watch: {include: [/docker/*, 3f2a*], patterns: ['/(?P<id>[a-z]+)$']}\nexporter: {listen: \"\"}\nretention: {api: 1h}\n")
	c, err := Load("", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, c.raw()); diff != "" {
		t.Errorf("environment against file (-file +environment):\n%s", diff)
	}
}

// mustLoadAs loads a file as if no variable was set.
func mustLoadAs(t *testing.T, text string) raw {
	t.Helper()
	for _, k := range keys {
		name := envName(k.path)
		if value, set := os.LookupEnv(name); set {
			os.Unsetenv(name)
			defer os.Setenv(name, value)
		}
	}
	return mustLoad(t, text).raw()
}

func TestFlags(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	BindFlags(flags)
	err := flags.Parse([]string{"--listen=", "--socket=/s", "--log-level=debug", "--log-format=json", "--pin-path=/p"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load("", false, flags)
	if err != nil {
		t.Fatal(err)
	}
	want := mustLoad(t, "exporter: {listen: \"\", socket: /s}\nlog: {level: debug, format: json}\nbpf: {pin_path: /p}\n")
	if diff := cmp.Diff(want.raw(), c.raw()); diff != "" {
		t.Errorf("flags against file (-file +flags):\n%s", diff)
	}

	// A command may have none of them.
	if _, err := Load("", false, pflag.NewFlagSet("", pflag.ContinueOnError)); err != nil {
		t.Error(err)
	}
}

func TestReference(t *testing.T) {
	text, err := os.ReadFile("reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	reference, err := Load("reference.yaml", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mustLoad(t, "").raw(), reference.raw()); diff != "" {
		t.Errorf("reference.yaml differs from the defaults (-default +reference):\n%s", diff)
	}

	values, _ := parse("reference.yaml", text, func(string) bool { return true })
	for _, k := range keys {
		if !has(values, k.path) {
			t.Errorf("reference.yaml does not mention %s", k.path)
		}
	}
}

func has(values map[string]any, path string) bool {
	section, rest, nested := strings.Cut(path, ".")
	value, ok := values[section]
	if !nested || !ok {
		return ok
	}
	return has(value.(map[string]any), rest)
}

// The reference marks what needs a restart; NeedsRestart decides it.
func TestReferenceMarksRestart(t *testing.T) {
	text, err := os.ReadFile("reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	marked := map[string]bool{}
	var section []string // names by depth
	comment := ""
	for line := range strings.Lines(string(text)) {
		trimmed := strings.TrimSpace(line)
		name, isKey := "", false
		if !strings.HasPrefix(trimmed, "#") {
			name, _, isKey = strings.Cut(trimmed, ":")
		}
		if !isKey {
			comment += trimmed
			continue
		}
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		section = append(section[:depth], name)
		marked[strings.Join(section, ".")] = strings.HasSuffix(comment, "[restart]")
		comment = ""
	}
	base := mustLoad(t, "")
	for _, k := range keys {
		needs := len(base.NeedsRestart(mustLoad(t, changed[k.path]))) > 0
		if marked[k.path] != needs {
			t.Errorf("%s: marked [restart]: %v, needs it: %v", k.path, marked[k.path], needs)
		}
	}
}

// changed has a file for every key that sets it to other than its default.
var changed = map[string]string{
	"state_dir":                 `state_dir: /x`,
	"log.level":                 `log: {level: warn}`,
	"log.format":                `log: {format: json}`,
	"accounting.source":         `accounting: {source: bpf}`,
	"accounting.tcp":            `accounting: {tcp: off}`,
	"bpf.pin_path":              `bpf: {pin_path: /x}`,
	"bpf.max_interfaces":        `bpf: {max_interfaces: 1}`,
	"attach.mode":               `attach: {mode: tcx}`,
	"attach.priority":           `attach: {priority: 1}`,
	"attach.cni_dirs":           `attach: {cni_dirs: []}`,
	"attach.interfaces.include": `attach: {interfaces: {include: [veth*]}}`,
	"attach.interfaces.exclude": `attach: {interfaces: {exclude: [veth*]}}`,
	"watch.cgroup_root":         `watch: {cgroup_root: /x}`,
	"watch.reconcile":           `watch: {reconcile: 1s}`,
	"watch.include":             `watch: {include: [/x]}`,
	"watch.exclude":             `watch: {exclude: [/x]}`,
	"watch.patterns":            `watch: {patterns: ["(?P<id>x)"]}`,
	"names.docker":              `names: {docker: off}`,
	"names.podman":              `names: {podman: off}`,
	"names.cri":                 `names: {cri: unix:///run/crio/crio.sock}`,
	"names.labels":              `names: {labels: [a]}`,
	"accounting.cgroup":         `accounting: {cgroup: off}`,
	"accounting.sockets":        `accounting: {sockets: on}`,
	"accounting.conntrack":      `accounting: {conntrack: on}`,
	"accounting.nflog.group":    `accounting: {nflog: {group: 5}}`,
	"requests.http":             `requests: {http: on}`,
	"requests.tls":              `requests: {tls: on}`,
	"requests.dns":              `requests: {dns: on}`,
	"requests.ports":            `requests: {ports: [80]}`,
	"limits.containers":         `limits: {containers: 1}`,
	"limits.per_user":           `limits: {per_user: 1}`,
	"limits.interfaces":         `limits: {interfaces: 1}`,
	"limits.ended":              `limits: {ended: 1}`,
	"limits.slots_for_root":     `limits: {slots_for_root: 0.25}`,
	"limits.series_per_quota":   `limits: {series_per_quota: 1}`,
	"limits.series_per_period":  `limits: {series_per_period: 1}`,
	"metrics.periods.every":     `metrics: {periods: {every: day}}`,
	"metrics.periods.day":       `metrics: {periods: {day: 15}}`,
	"metrics.periods.timezone":  `metrics: {periods: {timezone: Europe/Berlin}}`,
	"metrics.periods.by":        `metrics: {periods: {by: [name]}}`,
	"metrics.periods.keep":      `metrics: {periods: {keep: 1d}}`,
	"exporter.listen":           `exporter: {listen: ""}`,
	"exporter.socket":           `exporter: {socket: ""}`,
	"exporter.web_config":       `exporter: {web_config: /x}`,
	"exporter.hosts":            `exporter: {hosts: [a]}`,
	"metrics.families":          `metrics: {families: [family]}`,
	"metrics.compat":            `metrics: {compat: cadvisor}`,
	"retention.metrics":         `retention: {metrics: 1s}`,
	"retention.api":             `retention: {api: 1s}`,
	"retention.hours":           `retention: {hours: 1d}`,
	"retention.days":            `retention: {days: 90d}`,
	"quotas":                    `quotas: [{name: a, count: total_bytes, limit: 1GB, period: {every: day}}]`,
	"notifiers":                 `notifiers: [{name: a, log: {}}]`,
}

func TestNeedsRestart(t *testing.T) {
	base := mustLoad(t, "")
	next := mustLoad(t, everything)
	want := []string{
		"state_dir", "bpf.pin_path", "bpf.max_interfaces", "attach.priority", "watch.cgroup_root", "watch.patterns",
		"names.docker", "names.podman", "names.cri", "accounting.source", "accounting.tcp", "accounting.conntrack", "accounting.nflog.group", "requests.ports", "exporter.listen", "exporter.socket", "exporter.web_config", "exporter.hosts",
	}
	if diff := cmp.Diff(want, base.NeedsRestart(next)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := next.NeedsRestart(mustLoad(t, everything)); got != nil {
		t.Errorf("equal configurations: %q", got)
	}
}
