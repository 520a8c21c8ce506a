// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The table of keys and the shape of the file are written twice; here they meet.
func TestKeysAreTheShape(t *testing.T) {
	var table, shape []string
	for _, k := range keys {
		table = append(table, k.path)
	}
	for path := range flatten("", reflect.ValueOf(raw{})) {
		shape = append(shape, path)
	}
	slices.Sort(table)
	slices.Sort(shape)
	if diff := cmp.Diff(shape, table); diff != "" {
		t.Errorf("(-shape +table):\n%s", diff)
	}
}

func TestYAMLShowsEveryKey(t *testing.T) {
	base := mustLoad(t, "").raw()
	for _, k := range keys {
		c := mustLoad(t, changed[k.path])
		if cmp.Equal(base, c.raw()) {
			t.Errorf("%s is lost between the file and Config", k.path)
		}
		roundTrip(t, c)
	}
}

func TestYAML(t *testing.T) {
	text, err := mustLoad(t, "names: {docker: off}").YAML()
	if err != nil {
		t.Fatal(err)
	}
	want := `state_dir: /var/lib/nettally
log:
  level: info
  format: text
bpf:
  pin_path: /sys/fs/bpf/nettally
  max_interfaces: 65535
attach:
  mode: auto
  priority: 2
  cni_dirs:
    - /etc/cni/net.d
    - /etc/cni/multus/net.d
    - /etc/kubernetes/cni/net.d
    - /run/multus/cni/net.d
    - /var/lib/rancher/k3s/agent/etc/cni/net.d
    - /var/lib/rancher/rke2/agent/etc/cni/net.d
    - /var/snap/microk8s/current/args/cni-network
  interfaces:
    include: ['*']
    exclude: []
watch:
  cgroup_root: auto
  reconcile: 30s
  include: []
  exclude: []
  patterns: []
names:
  docker: "off"
  podman: auto
  cri: auto
  labels: [com.docker.compose.project, com.docker.compose.service]
accounting:
  source: auto
  cgroup: auto
  tcp: auto
  sockets: "off"
  conntrack: "off"
  nflog:
    group: 0
requests:
  http: "off"
  tls: "off"
  dns: "off"
  ports: []
limits:
  containers: 20000
  per_user: 256
  interfaces: 64
  ended: 5000
  slots_for_root: 0.5
  series_per_quota: 1000
  series_per_period: 1000
exporter:
  listen: 127.0.0.1:9819
  socket: /run/nettally/nettally.sock
  web_config: ""
  hosts: []
metrics:
  families: []
  compat: ""
  periods:
    every: month
    day: 1
    timezone: UTC
    by: []
    keep: 7d
retention:
  metrics: 5m
  api: 24h
  hours: 90d
  days: 5y
quotas: []
notifiers: []
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func roundTrip(t *testing.T, c *Config) {
	t.Helper()
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(write(t, string(text)), true, nil)
	if err != nil {
		t.Fatalf("own output is refused: %v\n%s", err, text)
	}
	if diff := cmp.Diff(c.raw(), again.raw()); diff != "" {
		t.Errorf("round trip (-before +after):\n%s\n%s", diff, text)
	}
}

// Whatever the file holds, it is either refused in lines of the usual form, or
// comes back the same from YAML.
func FuzzLoad(f *testing.F) {
	f.Add("")
	f.Add(everything)
	for _, text := range changed {
		f.Add(text)
	}
	for _, c := range refusals {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file := write(t, text)
		c, err := Load(file, true, nil)
		if err == nil {
			roundTrip(t, c)
			return
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.HasPrefix(line, file+":") {
				t.Errorf("line %q does not stand alone in: %v", line, err)
			}
		}
	})
}

// The environment can hold what a file cannot.
func FuzzLoadEnvironment(f *testing.F) {
	f.Add("/docker/*, 3f2a*", "com.docker.compose.service", "/sys/fs/bpf/x", "0.5")
	f.Add("a,,b", "\xff", "/\xff", "NaN")
	f.Add("[", "x,x", "/a\nb: c", "1e-320")
	f.Add("", "", "/a", "0x1p-2")
	f.Add("", "", "/a", "50%")
	f.Fuzz(func(t *testing.T, globs, labels, path, part string) {
		if strings.ContainsRune(globs+labels+path+part, 0) {
			return // no environment can hold NUL
		}
		t.Setenv("NETTALLY_WATCH_EXCLUDE", globs)
		t.Setenv("NETTALLY_NAMES_LABELS", labels)
		t.Setenv("NETTALLY_BPF_PIN_PATH", path)
		t.Setenv("NETTALLY_LIMITS_SLOTS_FOR_ROOT", part)
		c, err := Load("", false, nil)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "NETTALLY_") {
					t.Errorf("line %q does not stand alone in: %v", line, err)
				}
			}
			return
		}
		text, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.raw(), mustLoadAs(t, string(text))); diff != "" {
			t.Errorf("round trip (-before +after):\n%s\n%s", diff, text)
		}
	})
}
