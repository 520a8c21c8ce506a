// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	idA = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	idB = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
	uid = "72f7f152-440c-66ac-9084-e0fc1d8a910c"

	uidSlice = "72f7f152_440c_66ac_9084_e0fc1d8a910c"
)

func TestIdentify(t *testing.T) {
	pod := func(cgroup, runtime string) Container {
		return Container{ID: idA, Runtime: runtime, PodUID: uid, Cgroup: cgroup}
	}
	tests := []struct {
		name string
		path string
		want Container // Cgroup "" stands for path
	}{
		{"docker cgroupfs", "/docker/" + idA, Container{ID: idA, Runtime: "docker"}},
		{"docker systemd", "/system.slice/docker-" + idA + ".scope", Container{ID: idA, Runtime: "docker"}},
		{"docker cgroup-parent", "/a/b/" + idA, Container{ID: idA}},
		{"docker in docker", "/docker/" + idA + "/docker/" + idB, Container{ID: idB, ParentID: idA, Runtime: "docker"}},
		{"docker in docker, systemd", "/system.slice/docker-" + idA + ".scope/docker/" + idB,
			Container{ID: idB, ParentID: idA, Runtime: "docker"}},
		{"docker in docker in docker", "/docker/" + idA + "/docker/" + idB + "/docker/" + idA,
			Container{ID: idA, ParentID: idB, Runtime: "docker"}},
		{"init of docker in docker", "/docker/" + idA + "/init",
			Container{ID: idA, Runtime: "docker", Cgroup: "/docker/" + idA}},
		{"kind", "/docker/" + idB + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" +
			uidSlice + ".slice/cri-containerd-" + idA + ".scope",
			Container{ID: idA, ParentID: idB, Runtime: "containerd", PodUID: uid}},
		{"docker in a pod", "/kubepods/pod" + uid + "/" + idA + "/docker/" + idB,
			Container{ID: idB, ParentID: idA, Runtime: "docker"}},

		{"pod cgroupfs burstable", "/kubepods/burstable/pod" + uid + "/" + idA, pod("", "containerd")},
		{"pod cgroupfs besteffort", "/kubepods/besteffort/pod" + uid + "/" + idA, pod("", "containerd")},
		{"pod cgroupfs guaranteed", "/kubepods/pod" + uid + "/" + idA, pod("", "containerd")},
		{"static pod", "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/" + idA,
			Container{ID: idA, Runtime: "containerd", PodUID: "0123456789abcdef0123456789abcdef"}},
		{"pod cgroupfs CRI-O", "/kubepods/burstable/pod" + uid + "/crio-" + idA, pod("", "crio")},
		{"pod systemd containerd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSlice +
			".slice/cri-containerd-" + idA + ".scope", pod("", "containerd")},
		{"pod systemd guaranteed", "/kubepods.slice/kubepods-pod" + uidSlice + ".slice/cri-containerd-" + idA + ".scope", pod("", "containerd")},
		{"pod systemd CRI-O", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uidSlice +
			".slice/crio-" + idA + ".scope", pod("", "crio")},
		{"pod systemd CRI-O crun", "/kubepods.slice/kubepods-pod" + uidSlice + ".slice/crio-" + idA + ".scope/container",
			pod("/kubepods.slice/kubepods-pod"+uidSlice+".slice/crio-"+idA+".scope", "crio")},
		{"pod systemd cri-dockerd", "/kubepods.slice/kubepods-pod" + uidSlice + ".slice/docker-" + idA + ".scope", pod("", "docker")},
		{"pod in one name", "/system.slice/containerd.service/kubepods-besteffort-pod" + uidSlice + ".slice:cri-containerd:" + idA,
			pod("", "containerd")},

		{"podman systemd", "/machine.slice/libpod-" + idA + ".scope", Container{ID: idA, Runtime: "podman"}},
		{"podman systemd crun", "/machine.slice/libpod-" + idA + ".scope/container",
			Container{ID: idA, Runtime: "podman", Cgroup: "/machine.slice/libpod-" + idA + ".scope"}},
		{"podman cgroupfs", "/libpod_parent/libpod-" + idA, Container{ID: idA, Runtime: "podman"}},
		{"podman pod cgroupfs", "/libpod_parent/" + idB + "/libpod-" + idA, Container{ID: idA, Runtime: "podman"}},
		{"podman pod below another parent", "/customers/" + idB + "/libpod-" + idA, Container{ID: idA, Runtime: "podman"}},
		{"podman in Docker", "/docker/" + idB + "/libpod_parent/libpod-" + idA, Container{ID: idA, ParentID: idB, Runtime: "podman"}},
		{"podman pod systemd", "/machine.slice/machine-libpod_pod_" + idB + ".slice/libpod-" + idA + ".scope",
			Container{ID: idA, Runtime: "podman"}},
		{"podman bare", "/libpod-" + idA, Container{ID: idA, Runtime: "podman"}},
		{"podman quadlet", "/system.slice/web.service/libpod-payload-" + idA, Container{ID: idA, Runtime: "podman"}},
		{"podman rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + idA + ".scope/container",
			Container{ID: idA, Runtime: "podman", Cgroup: "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + idA + ".scope"}},
		{"podman rootless pod", "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_" + idB + ".slice/libpod-" + idA + ".scope",
			Container{ID: idA, Runtime: "podman"}},
		{"podman rootless cgroupfs by runc", "/user.slice/user-1000.slice/user@1000.service/user.slice/" + idA, Container{ID: idA}},
		{"Docker rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + idA + ".scope",
			Container{ID: idA, Runtime: "docker"}},
		{"Docker rootless cgroupfs", "/user.slice/user-1000.slice/user@1000.service/app.slice/docker.service/docker/" + idA,
			Container{ID: idA, Runtime: "docker"}},
		{"podman rootless cgroupfs", "/user.slice/user-1000.slice/user@1000.service/user.slice/podman-77.scope/" + idA,
			Container{ID: idA, Runtime: "podman"}},
		{"in a service", "/system.slice/podman.service/" + idA, Container{ID: idA}},

		{"ECS", "/ecs/0123456789abcdef0123456789abcdef/fedcba9876543210fedcba9876543210-1234567890",
			Container{ID: "fedcba9876543210fedcba9876543210-1234567890", Runtime: "ecs"}},
		{"ECS on docker", "/ecs/0123456789abcdef0123456789abcdef/" + idA, Container{ID: idA, Runtime: "docker"}},
		{"ECS on docker systemd", "/ecstasks.slice/ecstasks-0123456789abcdef0123456789abcdef.slice/docker-" + idA + ".scope",
			Container{ID: idA, Runtime: "docker"}},

		{"nerdctl systemd", "/system.slice/nerdctl-" + idA + ".scope", Container{ID: idA, Runtime: "containerd"}},
		{"nerdctl cgroupfs", "/default/" + idA, Container{ID: idA, Runtime: "containerd"}},
		{"ctr", "/default/my-test.1", Container{ID: "my-test.1", Runtime: "containerd"}},
		{"ctr in k8s.io", "/k8s.io/debug", Container{ID: "k8s.io~debug", Runtime: "containerd"}},
		{"nerdctl in another namespace", "/build/" + idA, Container{ID: idA}},

		{"Kata of Rust", "/kubepods/burstable/pod" + uid + "/kata_" + idA, pod("", "")},
		{"Kata of Rust, in threads", "/k8s.io/kata_" + idA + "/sandbox", Container{ID: idA, Cgroup: "/k8s.io/kata_" + idA}},
		{"Kata of Rust, in one name", "/kata_kubepods-pod" + uidSlice + ".slice:cri-containerd:" + idA,
			pod("", "containerd")},
		{"Kata in one name, CRI-O", "/kubepods-pod" + uidSlice + ".slice:crio:" + idA, pod("", "crio")},
		{"Kata in one name, Docker", "/system.slice:docker:" + idA, Container{ID: idA, Runtime: "docker"}},

		{"LXC", "/lxc.payload.mail", Container{ID: "mail", Runtime: "lxc"}},
		{"inside LXC", "/lxc.payload.mail/system.slice/postfix.service", Container{ID: "mail", Runtime: "lxc", Cgroup: "/lxc.payload.mail"}},
		{"LXC 3", "/lxc/101", Container{ID: "101", Runtime: "lxc"}},
		{"Proxmox", "/lxc/101/ns/init.scope", Container{ID: "101", Runtime: "lxc", Cgroup: "/lxc/101"}},
		{"docker in LXC", "/lxc.payload.mail/docker/" + idA, Container{ID: idA, ParentID: "mail", Runtime: "docker"}},
		{"nspawn", `/machine.slice/machine-web\x2d1.scope/payload`,
			Container{ID: "web-1", Runtime: "nspawn", Cgroup: `/machine.slice/machine-web\x2d1.scope`}},
		{"newer nspawn", "/machine.slice/web-1.example.scope/payload",
			Container{ID: "web-1.example", Runtime: "nspawn", Cgroup: "/machine.slice/web-1.example.scope/payload"}},
		{"inside newer nspawn", "/machine.slice/web.scope/payload/system.slice/nginx.service",
			Container{ID: "web", Runtime: "nspawn", Cgroup: "/machine.slice/web.scope/payload"}},
		{"docker in newer nspawn", "/machine.slice/web.scope/payload/docker/" + idA,
			Container{ID: idA, ParentID: "web", Runtime: "docker"}},
		{"payload in podman", "/machine.slice/libpod-" + idA + ".scope/payload",
			Container{ID: idA, Runtime: "podman", Cgroup: "/machine.slice/libpod-" + idA + ".scope"}},
		{"nspawn unit", "/machine.slice/systemd-nspawn@web.service", Container{ID: "web", Runtime: "nspawn"}},
		{"nspawn unit with escapes", `/machine.slice/systemd-nspawn@web\x2d1.example.org.service`, Container{ID: "web-1.example.org", Runtime: "nspawn"}},
		{"a machine of more letters", `/machine.slice/machine-a\x3ab\x40C_9.scope`, Container{ID: "a:b@C_9", Runtime: "nspawn"}},
		{"Incus in a project", "/lxc.payload.customer_web-1", Container{ID: "customer_web-1", Runtime: "lxc"}},
		{"LXC without root", "/user.slice/user-1000.slice/user@1000.service/app.slice/lxc.payload.mail-1", Container{ID: "mail-1", Runtime: "lxc"}},
		{"the longest name", "/lxc/" + strings.Repeat("a", 253), Container{ID: strings.Repeat("a", 253), Runtime: "lxc"}},
		{"docker under Nomad", "/nomad.slice/share.slice/docker-" + idA + ".scope", Container{ID: idA, Runtime: "docker"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want.Cgroup == "" {
				tt.want.Cgroup = tt.path
			}
			got, ok := Identify(tt.path, nil)
			if !ok {
				t.Fatal("no container")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestIdentifyNot(t *testing.T) {
	for _, p := range []string{
		"", "/", "/docker", "/init.scope", "/user.slice/user-1000.slice/session-1.scope",
		"/system.slice/docker.service", "/system.slice/containerd.service",
		`/system.slice/var-lib-docker-overlay2-` + idA + `-merged.mount`,
		"/system.slice/docker-" + idA[:63] + ".scope", "/docker/" + idA[:12], "/docker/" + strings.ToUpper(idA),
		"/docker/buildkit/kz1ah6t2l8p2v0v8l2y4n7q0q", "/buildkit/abc",
		"/libpod_parent/" + idA, "/libpod_parent/conmon", "/libpod_parent/" + idA + "/conmon",
		"/machine.slice/libpod-conmon-" + idA + ".scope", "/machine.slice/machine-libpod_pod_" + idA + ".slice",
		"/system.slice/web.service/runtime",
		"/kata_overhead/" + idA, "/kata_overhead/kata_" + idA, "/kata_overhead", "/vc/kata_vc", "/kubepods/pod" + uid + "/kata_",
		"/system.slice/crio-conmon-" + idA + ".scope", "/kubepods/pod" + uid + "/crio-conmon-" + idA,
		"/kubepods/burstable/pod" + uid, "/kubepods.slice/kubepods-pod" + uidSlice + ".slice",
		"/ecs", "/ecs/0123456789abcdef0123456789abcdef",
		"/lxc", "/lxc.payload", "/lxc.payload.", "/lxc.monitor/101", "/lxc.monitor.mail",
		`/machine.slice/machine-qemu\x2d1\x2dvm.scope`, "/other.slice/machine-web.scope",
		"/machine.slice/web.scope", "/machine.slice/web.scope/supervisor", "/machine.slice/payload", "/machine.slice/.scope/payload",
		"/other.slice/web.scope/payload", "/system.slice/web.scope/payload", "/machine.slice/libpod-conmon-" + idA + ".scope/payload",
		"/default", "/default/bad..id", "/moby/some-name", "/process_api/0123456789abcdef0123456789abcdef",
	} {
		if c, ok := Identify(p, nil); ok {
			t.Errorf("%s is taken for %+v", p, c)
		}
	}
}

func TestIdentifyPatterns(t *testing.T) {
	patterns, err := compilePatterns([]string{
		`/jobs/(?P<id>[a-z]+)`,
		`/(?P<runtime>fire|ice)-(?P<id>\d+)$`,
		`/deep/(?P<id>[^/]+)/payload$`,
		`/docker/(?P<id>[0-9a-f]{12})`,
		`/nomad\.slice/share\.slice/(?P<id>[^/]+)\.scope$`,
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		path string
		want Container
	}{
		{"/jobs/abc", Container{ID: "abc", Cgroup: "/jobs/abc"}},
		{"/jobs/abc/x/y", Container{ID: "abc", Cgroup: "/jobs/abc"}},
		{"/jobs/abc/jobs/xyz", Container{ID: "xyz", ParentID: "abc", Cgroup: "/jobs/abc/jobs/xyz"}},
		{"/a/fire-7", Container{ID: "7", Runtime: "fire", Cgroup: "/a/fire-7"}},
		{"/a/fire-7/init", Container{ID: "7", Runtime: "fire", Cgroup: "/a/fire-7"}},
		{"/deep/x/payload", Container{ID: "x", Cgroup: "/deep/x/payload"}},
		{"/docker/" + idA, Container{ID: idA[:12], Cgroup: "/docker/" + idA}}, // before the known shapes
		{"/libpod-" + idA, Container{ID: idA, Runtime: "podman", Cgroup: "/libpod-" + idA}},
		{"/nomad.slice/share.slice/" + uid + ".redis.scope", Container{ID: uid + ".redis", Cgroup: "/nomad.slice/share.slice/" + uid + ".redis.scope"}},
	}
	for _, tt := range tests {
		got, _ := Identify(tt.path, patterns)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.path, diff)
		}
	}
	if c, ok := Identify("/deep/x", patterns); ok {
		t.Errorf("/deep/x is taken for %+v", c)
	}
}

// Anybody who has a cgroup makes directories of any name in it. What can't be an id is none:
// the directory is no container's, belongs to the one around it, and is reported.
func TestIdentifyNoID(t *testing.T) {
	patterns, err := compilePatterns([]string{`^/jobs/(?P<id>.+)`, `/(?P<runtime>[^/]+)/run-(?P<id>[^/]+)$`})
	check(t, err)
	for _, p := range []string{
		"/lxc.payload.a\x1b[31m", "/lxc.payload.a\n", "/lxc.payload.a b", "/lxc.payload.a~b", "/lxc.payload.ü", "/lxc.payload.a\xff", "/lxc.payload.\u202ea",
		`/lxc.payload.a\x1b`, `/lxc/a\x0a`, "/lxc/a%2f", "/lxc/a\x00", "/lxc/...", "/lxc.payload/a\"", "/lxc/" + strings.Repeat("a", 254),
		`/machine.slice/machine-a\x2fb.scope`, `/machine.slice/machine-\x1b\x5b31m.scope`, `/machine.slice/machine-\x2e\x2e.scope`,
		`/machine.slice/machine-\x00.scope`, `/machine.slice/machine-a\xzz.scope`, `/machine.slice/systemd-nspawn@a\x20b.service`, `/machine.slice/a\x20b.scope/payload`,
		"/jobs/a b", "/jobs/\x1b", "/jobs/a/b", "/x\x1b/run-a", "/x/run-a\u009b", "/x y/run-a",
	} {
		c, err := identify(p, patterns)
		if !errors.Is(err, ErrNoID) || c.Cgroup == p {
			t.Errorf("%q is taken for %+v, error %v", p, c, err)
		}
		below, err := identify(p+"/docker/"+idB, nil)
		if err != nil || below.ID != idB || below.ParentID != "" {
			t.Errorf("docker in %q is taken for %+v, error %v", p, below, err)
		}
		if inside, err := identify("/docker/"+idA+p, nil); inside.ID != idA || err != nil && !errors.Is(err, ErrNoID) {
			t.Errorf("%q in docker is taken for %+v, error %v", p, inside, err)
		}
	}
	for _, p := range []string{"/lxc.payload.a", "/lxc.payload.", "/some\x1bthing", "/docker/" + idA + "\n", "/"} {
		if _, err := identify(p, patterns); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestCompilePatterns(t *testing.T) {
	for _, tt := range []struct{ pattern, want string }{
		{`(`, "compile cgroup pattern 0: error parsing regexp: missing closing ): `(`"},
		{`/x/(.*)`, `compile cgroup pattern 0: "/x/(.*)" has no group named id, such as (?P<id>[^/]+)`},
	} {
		if _, err := compilePatterns([]string{tt.pattern}); err == nil || err.Error() != tt.want {
			t.Errorf("%s: error %v, want %s", tt.pattern, err, tt.want)
		}
	}
}

// FuzzIdentify holds Identify to what the walk relies on: a container's own
// directory is one above or at the path, identifies as the same container, and
// what is above it is its parent.
func FuzzIdentify(f *testing.F) {
	for _, p := range []string{"", "/", "//", "a", "/docker/" + idA + "/docker/" + idB, "/lxc/101/ns", `/machine.slice/machine-\x2.scope`,
		"/kubepods/burstable/pod" + uid + "/" + idA, "/x/kubepods-pod" + uidSlice + ".slice:cri-containerd:" + idA, "/default/a/../b",
		"/lxc.payload.\x1b[31m/docker/" + idA, "/lxc/a\u202e\n/x", `/machine.slice/machine-\x1b\x2f.scope`, "/jobs/a/b", "/jobs/\xff", "/x\u009b/run-a/run-b",
		"/k8s.io/one", "/k8s.io/" + idA, "/k8s.io/a~b", "/lxc/1000~" + idA, "/jobs/k8s.io~one", `/machine.slice/machine-1000\x7e101.scope`,
		"/lxc/" + strings.Repeat("a", maxID), "/lxc/" + strings.Repeat("a", maxID+1), "/x/" + idA + "/libpod-" + idB} {
		f.Add(p, uint32(1000))
	}
	f.Add("/default/one", uint32(0))
	f.Add("/k8s.io/one", ^uint32(0))
	patterns := []*regexp.Regexp{regexp.MustCompile(`/jobs/(?P<id>.+)`), regexp.MustCompile(`/(?P<runtime>[^/]*)/run-(?P<id>.*)$`)}
	shape := regexp.MustCompile(`^(k8s\.io~)?[A-Za-z0-9._:@-]{1,253}$`)
	f.Fuzz(func(t *testing.T, p string, uid uint32) {
		c, ok := Identify(p, patterns)
		if !ok {
			if c != (Container{}) {
				t.Errorf("no container, and %+v", c)
			}
			return
		}
		clean := path.Clean(p)
		if c.ID == "" || (clean != c.Cgroup && !strings.HasPrefix(clean, c.Cgroup+"/")) {
			t.Errorf("%q gives %+v", p, c)
		}
		for _, text := range []string{c.ID, c.ParentID, c.Runtime} {
			if text != "" && !shape.MatchString(text) {
				t.Errorf("%q gives %+v", p, c)
			}
		}
		if again, _ := Identify(c.Cgroup, patterns); again != c {
			t.Errorf("%q gives %+v, its own directory %+v", p, c, again)
		}
		above, _ := Identify(path.Dir(c.Cgroup), patterns)
		if above.ID != c.ParentID && !holdsPodmans(above.Cgroup, c.Cgroup) { // a pod, as long as nothing is known in it
			t.Errorf("%q has parent %q, its directory is in %q", p, c.ParentID, above.ID)
		}
		asUser(t, c, uid)
	})
}

// asUser holds the id of a user's container to what tells it from root's and other users'.
func asUser(t *testing.T, c Container, uid uint32) {
	t.Helper()
	if c.ofUser() {
		t.Errorf("%q claims to be of a user", c.ID)
	}
	theirs := c
	theirs.ID = scoped(strconv.FormatUint(uint64(uid), 10), c.ID)
	if user, rest, _ := strings.Cut(theirs.ID, "~"); !theirs.ofUser() || user != strconv.FormatUint(uint64(uid), 10) || rest != c.ID {
		t.Errorf("%q of user %d is %q", c.ID, uid, theirs.ID)
	}
	if unscoped(theirs.ID) != c.ID || unscoped(c.ID) != c.ID { // so that both can be compared
		t.Errorf("%q is %q, and without the user %q and %q", c.ID, theirs.ID, unscoped(theirs.ID), unscoped(c.ID))
	}
}

func BenchmarkIdentify(b *testing.B) {
	p := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSlice + ".slice/cri-containerd-" + idA + ".scope"
	for b.Loop() {
		Identify(p, nil)
	}
}
