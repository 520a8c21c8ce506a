// SPDX-License-Identifier: Apache-2.0

package names

import (
	"strings"
	"testing"
	"time"
)

// Whom several claim goes by what the first of them says, whoever answers first, from
// then on.
func TestFirstSourceIsBelieved(t *testing.T) {
	docker, pods, kube := socketPath(t), socketPath(t), socketPath(t)
	k := startKube(t, kube)
	k.pod(9, "pod", nil)
	for n := range 3 {
		k.container(n, 9, "kube", nil)
	}
	r, _ := newResolverOf(Options{Docker: "unix://" + docker, Podman: "unix://" + pods, CRI: "unix://" + kube})
	for n := range 3 {
		r.Want(id(n))
	}
	run(t, r)
	are := func(names ...string) func() bool {
		return func() bool {
			for n, want := range names {
				if name(r, id(n)) != want {
					return false
				}
			}
			return true
		}
	}
	eventually(t, "CRI alone answers", are("kube", "kube", "kube"))
	p := startPodman(t, pods)
	p.put(podmanContainer{ID: id(0), Names: []string{"podman"}}, "bridge")
	p.put(podmanContainer{ID: id(1), Names: []string{"podman"}}, "bridge")
	eventually(t, "podman answers, too", are("podman", "podman", "kube"))
	d := startDaemon(t, docker, summary(0, "docker"))
	eventually(t, "all answer", are("docker", "podman", "kube"))

	k.container(0, 9, "other", nil)
	k.container(1, 9, "other", nil)
	d.put(summary(0, "renamed"))
	eventually(t, "renamed", are("renamed", "podman", "kube"))
	d.stop()
	for range 50 {
		if !are("renamed", "podman", "kube")() {
			t.Fatalf("without docker: %q, %q, %q", name(r, id(0)), name(r, id(1)), name(r, id(2)))
		}
		time.Sleep(time.Millisecond)
	}
}

// While one source hangs, the others answer; and nobody who asks for a name waits.
func TestSlowSourceHoldsNobodyUp(t *testing.T) {
	for _, slow := range []string{"docker", "podman", "cri"} {
		t.Run(slow, func(t *testing.T) {
			paths := map[string]string{"docker": socketPath(t), "podman": socketPath(t), "cri": socketPath(t)}
			accepted := startPeer(t, paths[slow], badPeers["silent"])
			want := 0
			if slow != "docker" {
				startDaemon(t, paths["docker"], summary(want, "good"))
				want++
			}
			if slow != "podman" {
				startPodman(t, paths["podman"]).put(podmanContainer{ID: id(want), Names: []string{"good"}}, "bridge")
				want++
			}
			if slow != "cri" {
				k := startKube(t, paths["cri"])
				k.pod(want, "good", nil)
				want++
			}
			r, _ := newResolverOf(Options{
				Docker: "unix://" + paths["docker"], Podman: "unix://" + paths["podman"], CRI: "unix://" + paths["cri"],
			})
			r.answerWithin = time.Hour
			r.Want(id(99))
			run(t, r)
			eventually(t, "it hangs", func() bool { return accepted() > 0 })
			for n := range want {
				r.Want(id(n))
				eventually(t, "known", func() bool { return name(r, id(n)) == "good" })
			}
			// A call that waited for the slow socket would not return within the test.
			for n := range 10_000 {
				r.Want(id(n))
				r.Lookup(id(n))
				r.Forget(id(n))
			}
		})
	}
}

func TestProbeOfKinds(t *testing.T) {
	path := socketPath(t)
	startPodman(t, path)
	r, _ := newResolverOf(Options{Docker: "unix://" + path + "-missing", Podman: "unix://" + path, CRI: "off"})
	for kind, want := range map[string]string{
		"docker": "no such file or directory",
		"podman": "podman 4.3.1 (API 1.41) at unix://" + path,
		"cri":    "off",
	} {
		got, err := r.Probe(t.Context(), kind)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasSuffix(got, want) {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
	if got := strings.Join(Kinds(), " "); got != "docker podman cri" {
		t.Errorf("kinds: %s", got)
	}
}
