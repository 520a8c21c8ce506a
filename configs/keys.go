// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"slices"
	"strings"
)

// key is one setting.
type key struct {
	path  string
	value any    // the default, whose type is the setting's: string, int, float64, []string, numbers or items
	want  string // what is expected, of one element where it is a list
}

const (
	wantDuration = "a duration such as 5m, 24h or 90d"
	wantGlob     = "a glob such as veth*"
	wantRequests = "on or off, and off where accounting.tcp is"
	wantPath     = "an absolute path"
	wantPositive = "a number from 1 to 1000000"
)

var keys = []key{
	{"state_dir", "/var/lib/nettally", wantPath},
	{"log.level", "info", "debug, info, warn or error"},
	{"log.format", "text", "text or json"},
	{"bpf.pin_path", "/sys/fs/bpf/nettally", wantPath + " to a directory of its own"},
	{"bpf.max_interfaces", 65535, "a number from 1 to 65535"},
	{"attach.mode", "auto", "auto, clsact or tcx"},
	{"attach.priority", 2, "a number from 1 to 65535"},
	{"attach.cni_dirs", cniDirs, wantPath + ", each only once"},
	{"attach.interfaces.include", []string{"*"}, wantGlob},
	{"attach.interfaces.exclude", []string{}, wantGlob},
	{"watch.cgroup_root", "auto", "auto or " + wantPath},
	{"watch.reconcile", "30s", wantDuration + ", at least 1s"},
	{"watch.include", []string{}, "a glob such as /docker/*"},
	{"watch.exclude", []string{}, "a glob such as /docker/*"},
	{"watch.patterns", []string{}, "a regular expression with a group named id, such as /jobs/(?P<id>[a-z0-9-]+)$"},
	{"names.docker", "auto", "auto, off or a socket such as unix:///var/run/docker.sock"},
	{"names.podman", "auto", "auto, off or a socket such as unix:///run/podman/podman.sock"},
	{"names.cri", "auto", "auto, off or a socket such as unix:///run/containerd/containerd.sock"},
	{"names.labels", []string{"com.docker.compose.project", "com.docker.compose.service"}, "a label key, each only once"},
	{"accounting.source", "auto", "auto, bpf or proc"},
	{"accounting.cgroup", "auto", "auto, all or off"},
	{"accounting.tcp", "auto", "auto or off"},
	{"accounting.sockets", "off", "on or off, and off where accounting.tcp is"},
	{"accounting.conntrack", "off", "on or off"},
	{"accounting.nflog.group", 0, "a number from 1 to 65535, or 0 for none"},
	{"requests.http", "off", wantRequests},
	{"requests.tls", "off", wantRequests},
	{"requests.dns", "off", wantRequests},
	{"requests.ports", numbers{}, "a port from 1 to 65535, each only once"},
	{"limits.containers", 20000, wantPositive},
	{"limits.per_user", 256, wantPositive},
	{"limits.interfaces", 64, wantPositive},
	{"limits.ended", 5000, wantPositive},
	{"limits.slots_for_root", 0.5, "a part of 1, such as 0.5"},
	{"limits.series_per_quota", 1000, wantPositive},
	{"limits.series_per_period", 1000, wantPositive},
	{"exporter.listen", "127.0.0.1:9819", `an address such as 127.0.0.1:9819 or :9819, or "" for none`},
	{"exporter.socket", "/run/nettally/nettally.sock", wantPath + ` of at most 107 bytes, or "" for none`},
	{"exporter.web_config", "", wantPath + `, or "" for none`},
	{"exporter.hosts", []string{}, "a host name such as metrics.example.org, without a port, each only once"},
	{"metrics.families", []string{}, "interface, protocol, family or tcp_flags, each only once"},
	{"metrics.compat", "", `cadvisor, or "" for none`},
	{"metrics.periods.every", "month", "day, week or month"},
	{"metrics.periods.day", 1, "a day of the month from 1 to 31, and 1 unless metrics.periods.every is month"},
	{"metrics.periods.timezone", "UTC", "a time zone such as UTC or Europe/Berlin"},
	{"metrics.periods.by", []string{}, "namespace, name, pod, or label:KEY with a key that names.labels has, each only once"},
	{"metrics.periods.keep", "7d", wantDuration + ", at most 31 periods"},
	{"retention.metrics", "5m", wantDuration},
	{"retention.api", "24h", wantDuration},
	{"retention.hours", "90d", wantDuration + ", at least 1d and at most retention.days"},
	{"retention.days", "5y", wantDuration + ", at least retention.hours"},
	{"quotas", items{}, "quotas"},
	{"notifiers", items{}, "notifiers"},
}

// cniDirs are where the usual distributions of Kubernetes keep the configuration of container
// networks: the CNI project's folder, that of networks that only multus knows, and those of
// OpenShift, k3s, RKE2 and MicroK8s.
var cniDirs = []string{
	"/etc/cni/net.d",
	"/etc/cni/multus/net.d",
	"/etc/kubernetes/cni/net.d",
	"/run/multus/cni/net.d",
	"/var/lib/rancher/k3s/agent/etc/cni/net.d",
	"/var/lib/rancher/rke2/agent/etc/cni/net.d",
	"/var/snap/microk8s/current/args/cni-network",
}

// keyAt returns the key at a path; in a list of sections it is the same for all.
func keyAt(path string) (key, bool) {
	path = general(path)
	for _, k := range slices.Concat(keys, itemKeys) {
		if k.path == path {
			return k, true
		}
	}
	return key{}, false
}

// isSection says whether keys lie below path.
func isSection(path string) bool {
	path = general(path)
	for _, k := range slices.Concat(keys, itemKeys) {
		if strings.HasPrefix(k.path, path+".") {
			return true
		}
	}
	return false
}

// envName returns the environment variable that sets a key.
func envName(path string) string {
	return "NETTALLY_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// suggest finds the key or section that was probably meant by an unknown path: a
// neighbour with nearly the same name, or the same name in another section.
func suggest(path string) string {
	section, name := split(path)
	best, bestDistance := "", max(1, len(name)/3)+1
	for _, known := range paths() {
		knownSection, knownName := split(known)
		if knownSection != section {
			continue
		}
		if d := distance(strings.ToLower(name), knownName); d < bestDistance {
			best, bestDistance = known, d
		}
	}
	if best != "" {
		return best
	}
	for _, known := range paths() {
		// A key of an item has no place of its own.
		if _, knownName := split(known); knownName == name && !strings.Contains(known, "[]") {
			return known
		}
	}
	return ""
}

// paths returns the keys, each after the sections it lies in.
func paths() []string {
	var all []string
	seen := map[string]bool{}
	for _, k := range slices.Concat(keys, itemKeys) {
		for i := range len(k.path) + 1 {
			if i != len(k.path) && k.path[i] != '.' || seen[k.path[:i]] {
				continue
			}
			seen[k.path[:i]] = true
			all = append(all, k.path[:i])
		}
	}
	return all
}

func split(path string) (section, name string) {
	i := strings.LastIndexByte(path, '.')
	return path[:max(i, 0)], path[i+1:]
}

// distance is the number of letters to insert, drop or change to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
