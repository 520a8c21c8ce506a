// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// refusals are files and what is said of them; FILE is the file's path.
var refusals = []struct {
	name string
	text string
	want string
}{
	// Keys.
	{"typing error", "watch: {recncile: 30s}", "FILE: watch.recncile: unknown key; did you mean watch.reconcile?"},
	{"typing error in a section", "exporters: {}", "FILE: exporters: unknown key; did you mean exporter?"},
	{"typing error beside sections", "statedir: /x", "FILE: statedir: unknown key; did you mean state_dir?"},
	{"upper case", "Log: {level: info}", "FILE: Log: unknown key; did you mean log?"},
	{"upper case below", "log: {Level: info}", "FILE: log.Level: unknown key; did you mean log.level?"},
	{"in another section", "listen: :9819", "FILE: listen: unknown key; did you mean exporter.listen?"},
	{"unlike any", "banana: 1", "FILE: banana: unknown key"},
	{"dashes", "bpf: {pin-path: /x}", "FILE: bpf.pin-path: unknown key; did you mean bpf.pin_path?"},
	{"dotted", "log.level: info", `FILE: log.level: expected a plain key, with the keys below it indented, got "log.level"`},
	{"key over two lines", "\"a\\nb\": 1", `FILE: "a\nb": unknown key`},
	{"no name", `"": 1`, `FILE: "": unknown key`},
	{"number as a key", "5: 1", "FILE: 5: unknown key"},
	{"merge key", "log: &l {level: info}\nbpf: {<<: *l}", "FILE: bpf.<<: unknown key"},
	{"list as a key", "? [a]\n: 1", `FILE: "": expected a plain key, with the keys below it indented, got a list`},
	{"of a later release: accounting.classes", "accounting: {classes: []}", "FILE: accounting.classes: unknown key"},
	{"cgroup as a truth", "accounting: {cgroup: yes}", `FILE: accounting.cgroup: expected auto, all or off, got "yes"`},
	{"tcp for some", "accounting: {tcp: all}", `FILE: accounting.tcp: expected auto or off, got "all"`},
	{"sockets as a truth", "accounting: {sockets: yes}", `FILE: accounting.sockets: expected on or off, and off where accounting.tcp is, got "yes"`},
	{"sockets without connections", "accounting: {tcp: off, sockets: on}", `FILE: accounting.sockets: expected on or off, and off where accounting.tcp is, got "on" (accounting.tcp is off)`},
	{"requests as a truth", "requests: {http: yes}", `FILE: requests.http: expected on or off, and off where accounting.tcp is, got "yes"`},
	{"requests without connections", "accounting: {tcp: off}\nrequests: {dns: on}", `FILE: requests.dns: expected on or off, and off where accounting.tcp is, got "on" (accounting.tcp is off)`},
	{"port 0", "requests: {ports: [80, 0]}", `FILE: requests.ports[1]: expected a port from 1 to 65535, each only once, got "0"`},
	{"port twice", "requests: {ports: [80, 80]}", `FILE: requests.ports[1]: expected a port from 1 to 65535, each only once, got "80"`},
	{"conntrack as a truth", "accounting: {conntrack: yes}", `FILE: accounting.conntrack: expected on or off, got "yes"`},
	{"group beyond 16 bits", "accounting: {nflog: {group: 65536}}", `FILE: accounting.nflog.group: expected a number from 1 to 65535, or 0 for none, got "65536"`},
	{"group below 0", "accounting: {nflog: {group: -1}}", `FILE: accounting.nflog.group: expected a number from 1 to 65535, or 0 for none, got "-1"`},
	{"group as a word", "accounting: {nflog: {group: off}}", `FILE: accounting.nflog.group: expected a number from 1 to 65535, or 0 for none, got "off"`},
	{"nflog without keys", "accounting: {nflog: 5}", `FILE: accounting.nflog: expected keys below it, got "5"`},
	{"source", "accounting: {source: ebpf}", `FILE: accounting.source: expected auto, bpf or proc, got "ebpf"`},
	{"twice", "log:\n  level: info\n  format: text\n  level: warn\n", "FILE:4: log.level: already set in line 2"},
	{"section twice", "log: {}\nbpf: {}\nlog: {}\n", "FILE:3: log: already set in line 1"},

	// Shapes.
	{"list of all", "- log\n", "FILE: expected sections such as log and exporter, got a list"},
	{"text of all", "hello\n", `FILE: expected sections such as log and exporter, got "hello"`},
	{"section as text", "log: debug", `FILE: log: expected keys below it, got "debug"`},
	{"section as list", "attach: {interfaces: [veth*]}", "FILE: attach.interfaces: expected keys below it, got a list"},
	{"value as section", "log: {level: {is: info}}", "FILE: log.level: expected debug, info, warn or error, got keys below it"},
	{"value as list", "log: {level: [info]}", "FILE: log.level: expected debug, info, warn or error, got a list"},
	{"state_dir as a section", "state_dir: {path: /x}", "FILE: state_dir: expected an absolute path, got keys below it"},
	{"state_dir left out", "state_dir:", "FILE: state_dir: expected an absolute path, got nothing"},
	{"value left out", "exporter: {listen: }", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got nothing`},
	{"list as text", "names: {labels: team}", `FILE: names.labels: expected a list, got "team"`},
	{"list with commas", `attach: {interfaces: {include: "a,b"}}`, `FILE: attach.interfaces.include: expected a list, got "a,b"`},
	{"list left out", "names: {labels: }", "FILE: names.labels: expected a list, got nothing"},
	{"number in a list", "names: {labels: [team, 5]}", `FILE: names.labels[1]: expected a label key, each only once, got "5"`},
	{"list in a list", "names: {labels: [[team]]}", "FILE: names.labels[0]: expected a label key, each only once, got a list"},
	{"two documents", "log: {}\n---\nbpf: {}\n", "FILE: expected one YAML document, got several"},

	// Syntax.
	{"tab", "log:\n\tlevel: info\n", "FILE:2: found character that cannot start any token"},
	{"reserved character", "log: {}\nbpf: {}\nwatch: @x\n", "FILE:3: found character that cannot start any token"},
	{"indentation", "log:\n  level: info\n format: text\n", "FILE:3: did not find expected key"},
	{"bracket", "log: {}\nnames:\n  labels: [a\nbpf: {}\n", "FILE:3: did not find expected ',' or ']'"},
	{"bracket in line 1", "log: {level: info\nbpf: {}\n", "FILE:2: did not find expected ',' or '}'"},
	{"anchor", "log: *x\n", "FILE: unknown anchor 'x' referenced"},
	{"syntax of a second document", "log: {}\n---\n\tx: 1\n", "FILE:3: found character that cannot start any token"},
	{"not UTF-8", "log: {level: \xff}\n", "FILE: invalid leading UTF-8 octet"},

	// Values.
	{"level", "log: {level: loud}", `FILE: log.level: expected debug, info, warn or error, got "loud"`},
	{"level in capitals", "log: {level: INFO}", `FILE: log.level: expected debug, info, warn or error, got "INFO"`},
	{"format", "log: {format: xml}", `FILE: log.format: expected text or json, got "xml"`},
	{"relative state_dir", "state_dir: nettally", `FILE: state_dir: expected an absolute path, got "nettally"`},
	{"relative pin_path", "bpf: {pin_path: nettally}", `FILE: bpf.pin_path: expected an absolute path to a directory of its own, got "nettally"`},
	{"the bpffs itself", "bpf: {pin_path: /sys/fs/bpf/}", `FILE: bpf.pin_path: expected an absolute path to a directory of its own, got "/sys/fs/bpf/"`},
	{"number as a path", "bpf: {pin_path: 5}", `FILE: bpf.pin_path: expected an absolute path to a directory of its own, got "5"`},
	{"no interfaces", "bpf: {max_interfaces: 0}", `FILE: bpf.max_interfaces: expected a number from 1 to 65535, got "0"`},
	{"too many interfaces", "bpf: {max_interfaces: 65536}", `FILE: bpf.max_interfaces: expected a number from 1 to 65535, got "65536"`},
	{"far too many interfaces", "bpf: {max_interfaces: 18446744073709551615}", `FILE: bpf.max_interfaces: expected a number from 1 to 65535, got "18446744073709551615"`},
	{"no containers", "limits: {containers: 0}", `FILE: limits.containers: expected a number from 1 to 1000000, got "0"`},
	{"too many", "limits: {ended: 1000001}", `FILE: limits.ended: expected a number from 1 to 1000000, got "1000001"`},
	{"percent", "limits: {slots_for_root: 50%}", `FILE: limits.slots_for_root: expected a part of 1, such as 0.5, got "50%"`},
	{"more than all", "limits: {slots_for_root: 1.01}", `FILE: limits.slots_for_root: expected a part of 1, such as 0.5, got "1.01"`},
	{"not a number", "limits: {slots_for_root: .nan}", `FILE: limits.slots_for_root: expected a part of 1, such as 0.5, got "NaN"`},
	{"part as text", `limits: {slots_for_root: "0.5"}`, `FILE: limits.slots_for_root: expected a part of 1, such as 0.5, got "0.5"`},
	{"mode", "attach: {mode: xdp}", `FILE: attach.mode: expected auto, clsact or tcx, got "xdp"`},
	{"mode off", "attach: {mode: off}", `FILE: attach.mode: expected auto, clsact or tcx, got "off"`},
	{"word as a number", "attach: {priority: two}", `FILE: attach.priority: expected a number from 1 to 65535, got "two"`},
	{"text as a number", `attach: {priority: "2"}`, `FILE: attach.priority: expected a number from 1 to 65535, got "2"`},
	{"fraction", "attach: {priority: 2.7}", `FILE: attach.priority: expected a number from 1 to 65535, got "2.7"`},
	{"whole fraction", "attach: {priority: 2.0}", `FILE: attach.priority: expected a number from 1 to 65535, got "2.0"`},
	{"truth as a number", "attach: {priority: true}", `FILE: attach.priority: expected a number from 1 to 65535, got "true"`},
	{"below zero", "attach: {priority: -1}", `FILE: attach.priority: expected a number from 1 to 65535, got "-1"`},
	{"glob", "attach: {interfaces: {include: [a, 'veth[']}}", `FILE: attach.interfaces.include[1]: expected a glob such as veth*, got "veth["`},
	{"empty glob", `attach: {interfaces: {exclude: [""]}}`, `FILE: attach.interfaces.exclude[0]: expected a glob such as veth*, got ""`},
	{"relative CNI folder", "attach: {cni_dirs: [/etc/cni/net.d, cni]}", `FILE: attach.cni_dirs[1]: expected an absolute path, each only once, got "cni"`},
	{"CNI folder twice", "attach: {cni_dirs: [/a, /a]}", `FILE: attach.cni_dirs[1]: expected an absolute path, each only once, got "/a"`},
	{"CNI folder as a text", "attach: {cni_dirs: /etc/cni/net.d}", `FILE: attach.cni_dirs: expected a list, got "/etc/cni/net.d"`},
	{"cgroup_root", "watch: {cgroup_root: cgroup}", `FILE: watch.cgroup_root: expected auto or an absolute path, got "cgroup"`},
	{"reconcile too fast", "watch: {reconcile: 999ms}", `FILE: watch.reconcile: expected a duration such as 5m, 24h or 90d, at least 1s, got "999ms"`},
	{"watch.include", `watch: {include: ['\']}`, `FILE: watch.include[0]: expected a glob such as /docker/*, got "\\"`},
	{"watch.exclude", `watch: {exclude: ['a[b']}`, `FILE: watch.exclude[0]: expected a glob such as /docker/*, got "a[b"`},
	{"pattern", "watch: {patterns: ['(?P<id>x']}", `FILE: watch.patterns[0]: expected a regular expression with a group named id, such as /jobs/(?P<id>[a-z0-9-]+)$, got "(?P<id>x" (missing closing ))`},
	{"pattern without id", "watch: {patterns: ['/(x)']}", `FILE: watch.patterns[0]: expected a regular expression with a group named id, such as /jobs/(?P<id>[a-z0-9-]+)$, got "/(x)"`},
	{"docker by TCP", "names: {docker: 'tcp://127.0.0.1:2375'}", `FILE: names.docker: expected auto, off or a socket such as unix:///var/run/docker.sock, got "tcp://127.0.0.1:2375"`},
	{"docker as truth", "names: {docker: false}", `FILE: names.docker: expected auto, off or a socket such as unix:///var/run/docker.sock, got "false"`},
	{"docker relative", "names: {docker: 'unix://docker.sock'}", `FILE: names.docker: expected auto, off or a socket such as unix:///var/run/docker.sock, got "unix://docker.sock"`},
	{"podman by SSH", "names: {podman: 'ssh://core@host/run/podman.sock'}", `FILE: names.podman: expected auto, off or a socket such as unix:///run/podman/podman.sock, got "ssh://core@host/run/podman.sock"`},
	{"podman as a path", "names: {podman: /run/podman/podman.sock}", `FILE: names.podman: expected auto, off or a socket such as unix:///run/podman/podman.sock, got "/run/podman/podman.sock"`},
	{"cri by name", "names: {cri: containerd}", `FILE: names.cri: expected auto, off or a socket such as unix:///run/containerd/containerd.sock, got "containerd"`},
	{"cri relative", "names: {cri: 'unix://crio.sock'}", `FILE: names.cri: expected auto, off or a socket such as unix:///run/containerd/containerd.sock, got "unix://crio.sock"`},
	{"cri left out", "names: {cri: }", "FILE: names.cri: expected auto, off or a socket such as unix:///run/containerd/containerd.sock, got nothing"},
	{"sources misspelt", "names: {pod: auto}", "FILE: names.pod: unknown key"},
	{"empty label", `names: {labels: [" "]}`, `FILE: names.labels[0]: expected a label key, each only once, got " "`},
	{"label twice", "names: {labels: [team, a, team]}", `FILE: names.labels[2]: expected a label key, each only once, got "team"`},
	{"port alone", "exporter: {listen: 9819}", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got "9819"`},
	{"host alone", "exporter: {listen: localhost}", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got "localhost"`},
	{"port too big", "exporter: {listen: ':65536'}", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got ":65536"`},
	{"named port", "exporter: {listen: ':http'}", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got ":http"`},
	{"not quite an address", "exporter: {listen: '127.0.0.256:1'}", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got "127.0.0.256:1"`},
	{"URL", "exporter: {listen: 'http://localhost:1'}", `FILE: exporter.listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got "http://localhost:1"`},
	{"relative socket", "exporter: {socket: nettally.sock}", `FILE: exporter.socket: expected an absolute path of at most 107 bytes, or "" for none, got "nettally.sock"`},
	{"relative web_config", "exporter: {web_config: web.yaml}", `FILE: exporter.web_config: expected an absolute path, or "" for none, got "web.yaml"`},
	{"host with port", "exporter: {hosts: [a, 'b:9819']}", `FILE: exporter.hosts[1]: expected a host name such as metrics.example.org, without a port, each only once, got "b:9819"`},
	{"address as host", "exporter: {hosts: [127.0.0.1]}", `FILE: exporter.hosts[0]: expected a host name such as metrics.example.org, without a port, each only once, got "127.0.0.1"`},
	{"host twice", "exporter: {hosts: [a, a]}", `FILE: exporter.hosts[1]: expected a host name such as metrics.example.org, without a port, each only once, got "a"`},
	{"hosts as text", "exporter: {hosts: a}", `FILE: exporter.hosts: expected a list, got "a"`},
	{"family", "metrics: {families: [protocols]}", `FILE: metrics.families[0]: expected interface, protocol, family or tcp_flags, each only once, got "protocols"`},
	{"family twice", "metrics: {families: [family, family]}", `FILE: metrics.families[1]: expected interface, protocol, family or tcp_flags, each only once, got "family"`},
	{"compat", "metrics: {compat: docker}", `FILE: metrics.compat: expected cadvisor, or "" for none, got "docker"`},
	{"period", "metrics: {periods: {every: hour}}", `FILE: metrics.periods.every: expected day, week or month, got "hour"`},
	{"day of a week", "metrics: {periods: {every: week, day: 2}}", `FILE: metrics.periods.day: expected a day of the month from 1 to 31, and 1 unless metrics.periods.every is month, got "2"`},
	{"day of no month", "metrics: {periods: {day: 32}}", `FILE: metrics.periods.day: expected a day of the month from 1 to 31, and 1 unless metrics.periods.every is month, got "32"`},
	{"zone of periods", "metrics: {periods: {timezone: Mars}}", `FILE: metrics.periods.timezone: expected a time zone such as UTC or Europe/Berlin, got "Mars"`},
	{"host's zone of periods", "metrics: {periods: {timezone: Local}}", `FILE: metrics.periods.timezone: expected a time zone such as UTC or Europe/Berlin, got "Local"`},
	{"periods by id", "metrics: {periods: {by: [namespace, container]}}", `FILE: metrics.periods.by[1]: expected namespace, name, pod, or label:KEY with a key that names.labels has, each only once, got "container"`},
	{"periods by unknown label", "metrics: {periods: {by: ['label:team']}}", `FILE: metrics.periods.by[0]: expected namespace, name, pod, or label:KEY with a key that names.labels has, each only once, got "label:team"`},
	{"periods by a thing twice", "metrics: {periods: {by: [pod, pod]}}", `FILE: metrics.periods.by[1]: expected namespace, name, pod, or label:KEY with a key that names.labels has, each only once, got "pod"`},
	{"too many days kept", "metrics: {periods: {every: day, keep: 32d}}", `FILE: metrics.periods.keep: expected a duration such as 5m, 24h or 90d, at most 31 periods, got "32d" (metrics.periods.every is day)`},
	{"no unit", "retention: {metrics: 5}", `FILE: retention.metrics: expected a duration such as 5m, 24h or 90d, got "5"`},
	{"no unit in text", `retention: {metrics: "5"}`, `FILE: retention.metrics: expected a duration such as 5m, 24h or 90d, got "5"`},
	{"zero without unit", `retention: {metrics: "0"}`, `FILE: retention.metrics: expected a duration such as 5m, 24h or 90d, got "0"`},
	{"unit of weeks", "retention: {api: 1w}", `FILE: retention.api: expected a duration such as 5m, 24h or 90d, got "1w"`},
	{"past", "retention: {api: -1h}", `FILE: retention.api: expected a duration such as 5m, 24h or 90d, got "-1h"`},
	{"hours for less than a day", "retention: {hours: 23h}", `FILE: retention.hours: expected a duration such as 5m, 24h or 90d, at least 1d and at most retention.days, got "23h"`},
	{"hours longer than days", "retention: {hours: 6y}", `FILE: retention.hours: expected a duration such as 5m, 24h or 90d, at least 1d and at most retention.days, got "6y" (retention.days is 5y)`},
	{"days shorter than hours", "retention: {days: 89d}", `FILE: retention.days: expected a duration such as 5m, 24h or 90d, at least retention.hours, got "89d" (retention.hours is 90d)`},
	{"days shorter than hours, both set", "retention: {days: 4d, hours: 5d}", `FILE: retention.days: expected a duration such as 5m, 24h or 90d, at least retention.hours, got "4d" (retention.hours is 5d)`},
	{"days as a word", "retention: {days: ever, hours: 6y}", `FILE: retention.days: expected a duration such as 5m, 24h or 90d, at least retention.hours, got "ever"`},
}

func TestLoadRefuses(t *testing.T) {
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			file := write(t, c.text)
			config, err := Load(file, true, nil)
			if err == nil || config != nil {
				t.Fatalf("accepted: %+v, %v", config, err)
			}
			if diff := cmp.Diff(c.want, strings.ReplaceAll(err.Error(), file, "FILE")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadRefusesAllAtOnce(t *testing.T) {
	file := write(t, "log: {level: loud}\nbanana: 1\nattach: {priority: two}\nlog: {}\nretention: {api: 1w}\n")
	t.Setenv("NETTALLY_METRICS_COMPAT", "none")
	_, err := Load(file, true, nil)
	want := `FILE: banana: unknown key
FILE: attach.priority: expected a number from 1 to 65535, got "two"
FILE:4: log: already set in line 1
FILE: log.level: expected debug, info, warn or error, got "loud"
NETTALLY_METRICS_COMPAT: expected cadvisor, or "" for none, got "none"
FILE: retention.api: expected a duration such as 5m, 24h or 90d, got "1w"`
	if diff := cmp.Diff(want, strings.ReplaceAll(err.Error(), file, "FILE")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadRefusesEnvironment(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"NETTALLY_ATTACH_PRIORITY", "two", `expected a number from 1 to 65535, got "two"`},
		{"NETTALLY_ATTACH_PRIORITY", "", `expected a number from 1 to 65535, got ""`},
		{"NETTALLY_ATTACH_PRIORITY", "65536", `expected a number from 1 to 65535, got "65536"`},
		{"NETTALLY_LOG_LEVEL", "", `expected debug, info, warn or error, got ""`},
		{"NETTALLY_WATCH_INCLUDE", "a,[", `expected a glob such as /docker/*, got "["`},
		{"NETTALLY_WATCH_INCLUDE", "a,", `expected a glob such as /docker/*, got ""`},
		{"NETTALLY_NAMES_LABELS", "\xff", `expected a label key, each only once, got "\xff"`},
		{"NETTALLY_RETENTION_API", "5", `expected a duration such as 5m, 24h or 90d, got "5"`},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			t.Setenv(c.name, c.value)
			// The file is right, and must not be blamed.
			_, err := Load(write(t, "attach: {priority: 3}"), true, nil)
			if err == nil || err.Error() != c.name+": "+c.want {
				t.Errorf("got %v, want %s: %s", err, c.name, c.want)
			}
		})
	}
}

func TestLoadRefusesFlag(t *testing.T) {
	t.Setenv("NETTALLY_EXPORTER_LISTEN", "127.0.0.1:1")
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	BindFlags(flags)
	if err := flags.Parse([]string{"--listen=here"}); err != nil {
		t.Fatal(err)
	}
	_, err := Load("", false, flags)
	want := `--listen: expected an address such as 127.0.0.1:9819 or :9819, or "" for none, got "here"`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestLoadRefusesLongSocket(t *testing.T) {
	long := "/" + strings.Repeat("s", 107)
	if _, err := Load(write(t, "exporter: {socket: "+long+"}"), true, nil); err == nil {
		t.Error("a socket of 108 bytes was accepted")
	}
	if _, err := Load(write(t, "exporter: {socket: "+long[:107]+"}"), true, nil); err != nil {
		t.Errorf("a socket of 107 bytes: %v", err)
	}
}

func TestLoadUnreadable(t *testing.T) {
	dir := t.TempDir()
	file := write(t, "")
	for _, c := range []struct {
		path     string
		required bool
		want     string
	}{
		{filepath.Join(dir, "none"), true, "no such file or directory"},
		{dir, false, "is a directory"},
		{filepath.Join(file, "below"), false, "not a directory"},
	} {
		_, err := Load(c.path, c.required, nil)
		want := "read config " + c.path + ": " + c.want
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
