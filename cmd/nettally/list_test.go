// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
)

// received is what an interface received: seeded, mended, and counted as UDP.
func received(seeded, mended, counted uint64) usage.Traffic {
	var t usage.Traffic
	t.Receive.Seeded = usage.Volume{Bytes: seeded, Packets: seeded / 100}
	t.Receive.Mended = usage.Volume{Bytes: mended, Packets: mended / 100}
	t.Receive.Cells[usage.FamilyIPv4][usage.ProtocolUDP] = usage.Volume{Bytes: counted, Packets: counted / 100}
	t.Receive.SYN = 3
	return t
}

func listed() usage.Snapshot {
	web := usage.Container{
		ID: "aaa1", Name: "web", Runtime: "docker", NetworkMode: "bridge", Cgroup: "/docker/aaa1", State: usage.Running, Reason: usage.Shadowed,
		Interfaces: []usage.Interface{
			{Name: "eth0", HostInterface: "veth1", Hook: "tcx", Attached: true, Traffic: received(1000, 0, 200)},
			{Name: "eth1", HostInterface: "veth2", Hook: "clsact", Attached: true, Shadowed: true, Traffic: received(0, 100, 200)},
		},
		Traffic: received(1000, 100, 400),
	}
	return usage.Snapshot{
		TakenAt: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Containers: []usage.Container{
			web,
			{ID: "bbb2", Name: "agent", Cgroup: "/docker/bbb2", State: usage.Running, Reason: usage.HostNetwork, NetworkMode: "host"},
			{ID: "ccc3", Name: "old", Cgroup: "/docker/ccc3", State: usage.Stopped},
		},
		Unowned: []usage.Interface{{HostInterface: "veth9", Hook: "clsact", Shadowed: true, Traffic: received(0, 0, 100)}},
	}
}

// ticking serves snapshots, each a second after the one before by the host's clock; the last one
// again and again.
func ticking(t *testing.T, snaps ...usage.Snapshot) []string {
	t.Helper()
	var mu sync.Mutex
	n := 0
	return serving(t, exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) {
			mu.Lock()
			defer mu.Unlock()
			s := snaps[min(n, len(snaps)-1)]
			n++
			s.Containers = slices.Clone(s.Containers)
			return s, nil
		},
		Boot: func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return time.Duration(n) * time.Second
		},
	})
}

// quick is the shortest time between two readings. Rates go by what the daemon says.
var quick = []string{"list", "--interval", shortestInterval.String()}

func TestList(t *testing.T) {
	t.Parallel()
	later := listed()
	later.Containers[0].Traffic = received(2000, 1124, 400) // 1,024 more, and what is of no time
	later.Containers = append(later.Containers, usage.Container{ID: "ddd4", Name: "new", State: usage.Running, Interfaces: later.Containers[0].Interfaces[:1]})
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, `CONTAINER ID  NAME   NETWORK  RECEIVED  RATE    PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN  STATE
aaa1          web    bridge   3.441KiB  1KiB/s  35       3    0B           0B/s  0        0    counted in part: shadowed
bbb2          agent  host     -         -       -        -    -            -     -        -    not counted: host network
ddd4          new    -        0B        -       0        0    0B           -     0        0    running`},
		{[]string{"--all"}, `CONTAINER ID  NAME   NETWORK  RECEIVED  RATE    PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN  STATE
aaa1          web    bridge   3.441KiB  1KiB/s  35       3    0B           0B/s  0        0    counted in part: shadowed
bbb2          agent  host     -         -       -        -    -            -     -        -    not counted: host network
ccc3          old    -        -         -       -        -    -            -     -        -    stopped
ddd4          new    -        0B        -       0        0    0B           -     0        0    running
-             veth9  -        100B      -       1        3    0B           -     0        0    no container known, shadowed`},
		{[]string{"--sort", "name", "--reverse", "-q"}, "aaa1\nbbb2"},
		{[]string{"--sort", "transmit-rate", "--no-trunc", "-q"}, "aaa1\nbbb2\nddd4"},
		{[]string{"--sort", "receive-rate", "-qa"}, "aaa1\nbbb2\nddd4\nccc3"},
		{[]string{"--reverse", "-q"}, "bbb2\naaa1"},
	} {
		got := trimmed(mustOutput(t, append(append(slices.Clone(quick), ticking(t, listed(), later)...), test.args...)...))
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", test.args, diff)
		}
	}
	want := `CONTAINER ID  NAME   RUNTIME  NETWORK  INTERFACE  HOST INTERFACE  HOOK    RECEIVED BYTES  PACKETS  SYN  TRANSMITTED BYTES  PACKETS  SYN  SEEDED BYTES  MENDED BYTES  STATE                         CGROUP
aaa1          web    docker   bridge   eth0       veth1           tcx     1200            12       3    0                  0        0    1000          0             running                       /docker/aaa1
aaa1          web    docker   bridge   eth1       veth2           clsact  300             3        3    0                  0        0    0             100           counted in part: shadowed     /docker/aaa1
bbb2          agent  -        host     -          -               -       -               -        -    -                  -        -    -             -             not counted: host network     /docker/bbb2
ccc3          old    -        -        -          -               -       -               -        -    -                  -        -    -             -             stopped                       /docker/ccc3
-             -      -        -        -          veth9           clsact  100             1        3    0                  0        0    0             0             no container known, shadowed  -`
	if diff := cmp.Diff(want, trimmed(mustOutput(t, append([]string{"list", "-a", "-o", "wide"}, daemonWith(t, listed(), nil)...)...))); diff != "" {
		t.Errorf("wide (-want +got):\n%s", diff)
	}
}

// sharing is a compose project, and others.
func sharing(bytes uint64) usage.Snapshot {
	eth0 := func(n uint64) ([]usage.Interface, usage.Traffic) {
		return []usage.Interface{{Name: "eth0", Hook: "tcx", Attached: true, Traffic: received(0, 0, n)}}, received(0, 0, n)
	}
	byCgroup := func(n uint64) *usage.Traffic {
		ip := received(0, 0, n)
		return &ip
	}
	project := func(name string) map[string]string {
		return map[string]string{"com.docker.compose.project": name, "team": "red"}
	}
	web := usage.Container{ID: strings.Repeat("ab", 32), Name: "web", Labels: project("shop"), NetworkMode: "bridge"}
	web.Interfaces, web.Traffic = eth0(10 * bytes)
	db := usage.Container{ID: "db", Name: "db", Labels: project("shop"), NetworkMode: "shop_default"}
	db.Interfaces, db.Traffic = eth0(bytes)
	vpn := usage.Container{ID: "vpn", Name: "vpn", Namespace: "prod", Pod: "p"}
	vpn.Interfaces, vpn.Traffic = eth0(3 * bytes)
	all := []usage.Container{
		web, db,
		{ID: "side", Name: "side", Labels: project("shop"), Shares: true, SharesWith: web.ID, NetworkMode: "container:" + web.ID, IP: byCgroup(5 * bytes)},
		{ID: "app", Name: "app", Shares: true, SharesWith: "vpn", IP: byCgroup(2 * bytes), Namespace: "prod", Pod: "q"},
		{ID: "node", Name: "node", OnHost: true, IP: byCgroup(7 * bytes), Labels: map[string]string{"team": "red"}},
		{ID: "lone", Name: "lone", IP: byCgroup(bytes), NoInterface: true, NetworkMode: "none"},
		vpn,
	}
	for i := range all {
		all[i].State = usage.Running
	}
	return usage.Snapshot{Containers: all}
}

// The network is said in words.
func TestListOfNetworks(t *testing.T) {
	t.Parallel()
	flags := append(slices.Clone(quick), ticking(t, sharing(1024), sharing(2048))...)
	want := `CONTAINER ID  NAME        NETWORK        RECEIVED  RATE     PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN  STATE
abababababab  web         bridge         20KiB     10KiB/s  204      3    0B           0B/s  0        0    running
db            db          shop_default   2KiB      1KiB/s   20       3    0B           0B/s  0        0    running
side          side        container:web  10KiB     5KiB/s   102      3    0B           0B/s  0        0    running
app           prod/q/app  container:vpn  4KiB      2KiB/s   40       3    0B           0B/s  0        0    running
node          node        host           14KiB     7KiB/s   143      3    0B           0B/s  0        0    running
lone          lone        none           2KiB      1KiB/s   20       3    0B           0B/s  0        0    running, no interface known
vpn           prod/p/vpn  -              6KiB      3KiB/s   61       3    0B           0B/s  0        0    running`
	if diff := cmp.Diff(want, trimmed(mustOutput(t, flags...))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := mustOutput(t, append(flags, "--no-trunc")...); !strings.HasPrefix(strings.Split(got, "\n")[1], strings.Repeat("ab", 32)+"  web") {
		t.Errorf("--no-trunc: %s", got)
	}
}

// A sum has nothing twice: what side receives is what web's interface receives. Where the owner is
// in another sum, as vpn in that of another pod, it is all the same in this one.
func TestListSums(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ by, want string }{
		{"project", `PROJECT  CONTAINERS  RECEIVED  RATE     PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN
-        4           22KiB     11KiB/s  224      9    0B           0B/s  0        0
shop     3           22KiB     11KiB/s  224      6    0B           0B/s  0        0`},
		{"namespace", `NAMESPACE  CONTAINERS  RECEIVED  RATE     PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN
-          5           38KiB     19KiB/s  387      12   0B           0B/s  0        0
prod       2           6KiB      3KiB/s   61       3    0B           0B/s  0        0`},
		{"pod", `POD     CONTAINERS  RECEIVED  RATE     PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN
-       5           38KiB     19KiB/s  387      12   0B           0B/s  0        0
prod/p  1           6KiB      3KiB/s   61       3    0B           0B/s  0        0
prod/q  1           4KiB      2KiB/s   40       3    0B           0B/s  0        0`},
		{"label:team", `team  CONTAINERS  RECEIVED  RATE     PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN
red   4           36KiB     18KiB/s  367      9    0B           0B/s  0        0
-     3           8KiB      4KiB/s   81       6    0B           0B/s  0        0`},
	} {
		args := []string{"--by", test.by}
		if test.by == "label:team" {
			args = append(args, "--sort", "received")
		}
		got := trimmed(mustOutput(t, append(append(slices.Clone(quick), ticking(t, sharing(1024), sharing(2048))...), args...)...))
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("by %s (-want +got):\n%s", test.by, diff)
		}
	}
	got := mustOutput(t, append([]string{"list", "db", "side", "--by", "project", "--format", "{{.Name}} {{.Containers}} {{.ReceivedBytes}}"}, ticking(t, sharing(1024))...)...)
	if want := "shop 2 6144\n"; got != want {
		t.Errorf("a part without its owner: %q, want %q", got, want)
	}
}

func TestListOfSome(t *testing.T) {
	snap := sharing(100)
	snap.Containers = append(snap.Containers,
		usage.Container{ID: "ab1", Name: "old", State: usage.Stopped}, usage.Container{ID: "ab2", Name: "web", State: usage.Stopped},
		usage.Container{ID: "ab3", Name: "db*", State: usage.Running})
	flags := append([]string{"list", "-q", "--no-trunc"}, daemonWith(t, snap, nil)...)
	web := strings.Repeat("ab", 32)
	for _, test := range []struct{ args, want []string }{
		{[]string{"web"}, []string{web}},
		{[]string{"node", "db"}, []string{"db", "node"}},
		{[]string{"abab"}, []string{web}},
		{[]string{"ab"}, []string{web, "ab3"}},
		{[]string{"ab", "-a"}, []string{web, "ab1", "ab2", "ab3"}},
		{[]string{"ab2"}, []string{"ab2"}},
		{[]string{"old"}, []string{"ab1"}},
		{[]string{"*o*"}, []string{"app", "node", "lone", "vpn"}},
		{[]string{"o*", "-a"}, []string{"ab1"}},
		{[]string{"prod/*"}, []string{"app", "vpn"}},
		{[]string{"prod/q/app"}, []string{"app"}},
		{[]string{"db*"}, []string{"ab3"}}, // somebody may have that name
		{[]string{"[vw]*"}, []string{web, "vpn"}},
	} {
		if got := strings.Fields(mustOutput(t, append(slices.Clone(flags), test.args...)...)); !slices.Equal(got, test.want) {
			t.Errorf("%v: %v, want %v", test.args, got, test.want)
		}
	}
	var found exporter.Containers
	text := mustOutput(t, append([]string{"list", "-o", "json", "old", "db"}, flags[3:]...)...)
	if err := json.Unmarshal([]byte(text), &found); err != nil || len(found.Containers) != 2 {
		t.Errorf("JSON: %v, %d containers, want 2", err, len(found.Containers))
	}
	for _, name := range []string{"nobody", "nobody*", "o*", "[", ""} {
		_, err := output(t, append(slices.Clone(flags), "web", name)...)
		if want := fmt.Sprintf("find container %q: ", name); err == nil || !strings.HasPrefix(err.Error(), want) || errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want %s…", name, err, want)
		}
	}
}

func TestListFormat(t *testing.T) {
	t.Parallel()
	hostile := usage.Snapshot{Containers: []usage.Container{{
		ID: "a1", Name: "we\nb\x1b[2J\u202e", State: usage.Running, Labels: map[string]string{"a": "b\t", "c": "d"}, Runtime: "podman",
	}}}
	for _, test := range []struct {
		snap         usage.Snapshot
		format, want string
	}{
		{sharing(1024), "{{.Name}}: {{.Received}} {{.ReceivedBytes}}", "web: 10KiB 10240\ndb: 1KiB 1024\nside: 5KiB 5120\nprod/q/app: 2KiB 2048\n" +
			"node: 7KiB 7168\nlone: 1KiB 1024\nprod/p/vpn: 3KiB 3072\n"},
		{hostile, `{{.ID}}\t{{.Name}}\n{{.Labels}} {{.Label "c"}} {{upper .Runtime}} {{truncate .Runtime 3}}{{pad .State 1 2}}{{join (split .Runtime "m") "-"}}`,
			"a1\twe�b�[2J�\na=b�,c=d d PODMAN pod running  pod-an\n"},
		{hostile, "{{.Received}} {{.ReceivedBytes}} {{.ReceiveRate}} {{.ReceivedBytesPerSecond}} {{.TransmittedSYN}}", "- - - - -\n"},
		{hostile, `{{if ne .Received "-"}}{{gt .ReceivedBytes 5}}{{else}}unknown{{end}}`, "unknown\n"},
		{hostile, `{{json .Name}}`, "\"we�b�[2J�\"\n"},
		{hostile, `table {{.ID}}\t{{.Name}}\t{{upper .Runtime}}\t{{.Label "c"}}\t{{truncate .State 3}}`,
			"CONTAINER ID  NAME       RUNTIME  c  STATE\na1            we�b�[2J�  PODMAN   d  run\n"},
		{usage.Snapshot{}, `table {{.ID}}`, "CONTAINER ID\n"},
		{usage.Snapshot{}, `{{.ID}}`, ""},
		{hostile, "table", `CONTAINER ID  NAME       NETWORK  RECEIVED  RATE  PACKETS  SYN  TRANSMITTED  RATE  PACKETS  SYN  STATE
a1            we�b�[2J�  -        -         -     -        -    -            -     -        -    running
`},
	} {
		got := mustOutput(t, append(append(slices.Clone(quick), "--format", test.format), daemonWith(t, test.snap, nil)...)...)
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.format, diff)
		}
	}
}

// A line of JSON has all there is, exactly, and null for what is not known.
func TestListFormatJSON(t *testing.T) {
	t.Parallel()
	before, after := sharing(1<<53), sharing(1<<53+1)
	after.Containers = append(after.Containers, usage.Container{ID: "x\x1b", Name: "n\n", State: usage.Running, Reason: usage.NoHostVeth})
	text := mustOutput(t, append(append(slices.Clone(quick), "--format", "json"), ticking(t, before, after)...)...)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 8 || strings.Contains(text, "\x1b") {
		t.Fatalf("%d lines, want 8: %q", len(lines), text)
	}
	for _, want := range []string{`"Name":"web"`, `"Network":"bridge"`, `"ReceivedBytes":90071992547409930,`, `"ReceivedBytesPerSecond":10,`, `"Labels":{"com.docker.compose.project":"shop"`} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("no %s in %s", want, lines[0])
		}
	}
	var last map[string]any
	if err := json.Unmarshal([]byte(lines[7]), &last); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"ID": "x\x1b", "Name": "n\n", "State": "not counted: no host veth", "ReceivedBytes": nil, "ReceivedBytesPerSecond": nil} {
		if got, ok := last[key]; !ok || got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

func TestListRefuses(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--output xml", `--output: expected table, wide or json, got "xml"`},
		{"--sort quota", `--sort: expected name, receive-rate, transmit-rate, received, transmitted, packets, syn or state, got "quota"`},
		{"--by image", `--by: expected project, namespace, pod or label:KEY, got "image"`},
		{"--by label:", `--by: expected project, namespace, pod or label:KEY, got "label:"`},
		{"--interval 10ms", `--interval: expected 500ms to 1h0m0s, got 10ms`},
		{"--interval -1s", `--interval: expected 500ms to 1h0m0s, got -1s`},
		{"--format {{.Nope}}", `--format: template: format:1:2: executing "format" at <.Nope>: can't evaluate field Nope in type main.formatted`},
		{"--format {{", `--format: template: format:1: unclosed action`},
		{"-q --by pod", `--quiet and --by: give one of both`},
		{"-o wide -q", `--output wide and --quiet: give one of both`},
		{"-o json --format json", `--output json and --format: give one of both`},
		{"-o json -w", `--output json has everything once, by start: leave out --watch, --sort and --reverse, or try --format json`},
	} {
		_, err := output(t, append([]string{"list", "--socket", "/nobody"}, strings.Fields(test.args)...)...)
		if want := "wrong use: " + test.want; err == nil || err.Error() != want || !errors.Is(err, errUsage) {
			t.Errorf("%s: %v, want %s", test.args, err, want)
		}
	}
}

// A name that is an id is told from others by its end, too.
func TestListOfNames(t *testing.T) {
	hex := strings.Repeat("3f", 32)
	ids := []string{"field-production-web-01", "field-production-web-02", hex, "1000~" + hex}
	var snap usage.Snapshot
	for _, id := range ids {
		snap.Containers = append(snap.Containers, usage.Container{ID: id, Name: id, State: usage.Running})
	}
	got := strings.Fields(mustOutput(t, append([]string{"list"}, daemonWith(t, snap, nil)...)...))
	for _, want := range append(ids[:2], "3f3f3f3f3f3f", "1000~3f3f3f3f3f3f") {
		if n := len(slices.DeleteFunc(slices.Clone(got), func(word string) bool { return word != want })); n != 2 {
			t.Errorf("%s: %d times, want it as id and name, in %v", want, n, got)
		}
	}
}

func TestState(t *testing.T) {
	for reason, want := range map[usage.Reason]string{
		usage.Accounted: "running", usage.Excluded: "excluded", usage.InterfaceExcluded: "running, an interface is excluded",
		usage.HostNetwork: "not counted: host network", usage.Shadowed: "counted in part: shadowed",
	} {
		c := exporter.Container{State: "running", Reason: string(reason), Accounted: reason == usage.Accounted}
		if got := state(&c); got != want {
			t.Errorf("%q: %s, want %s", reason, got, want)
		}
	}
}

func TestStateOfKernel(t *testing.T) {
	for kernel, want := range map[string]string{"": "running", "gvisor": "running, on gvisor", "kata": "running, on kata"} {
		if got := state(&exporter.Container{State: "running", Accounted: true, Kernel: kernel}); got != want {
			t.Errorf("%q: %s, want %s", kernel, got, want)
		}
	}
}
