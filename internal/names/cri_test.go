// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// newKubeResolver returns a resolver that asks over CRI alone.
func newKubeResolver(address string, labels ...string) (*Resolver, *records) {
	return newResolverOf(Options{Docker: "off", Podman: "off", CRI: address}, labels...)
}

// knows waits until all of them are told as they should be.
func knows(t *testing.T, r *Resolver, want map[string]Meta) {
	t.Helper()
	for id, meta := range want {
		eventually(t, meta.Name+" is known", func() bool { return name(r, id) != "" })
		got, _ := r.Lookup(id)
		if diff := cmp.Diff(meta, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", meta.Name, diff)
		}
	}
}

const hash = "sha256:d1c79225062206234c9e63ee138cedd337ce8bf30fce5c10ae6378a68d75fd10"

func TestPods(t *testing.T) {
	path := socketPath(t)
	k := startKube(t, path)
	k.pod(1, "web-0", map[string]string{"team": "a", "tier": "front", "other": "x"})
	k.container(2, 1, "app", map[string]string{"team": "b"})
	k.container(3, 1, "sidecar", nil).Image = &cri.ImageSpec{Image: hash, UserSpecifiedImage: "proxy:2"}
	k.pod(4, "agent", nil)
	k.hosts[id(4)] = true
	k.container(5, 4, "app", nil).Image = &cri.ImageSpec{Image: hash}
	k.images[id(5)] = "agent:3"
	k.container(6, 99, "orphan", map[string]string{ // its sandbox is gone
		"io.kubernetes.pod.namespace": "old", "io.kubernetes.pod.name": "gone"})

	want := map[string]Meta{
		id(1): {Name: "web-0", NetworkMode: "pod", Namespace: "prod", Pod: "web-0", Labels: map[string]string{"team": "a", "tier": "front"}},
		id(2): {Name: "app", Image: "bb:1", NetworkMode: "pod", Namespace: "prod", Pod: "web-0", Labels: map[string]string{"team": "b", "tier": "front"}},
		id(3): {Name: "sidecar", Image: "proxy:2", NetworkMode: "pod", Namespace: "prod", Pod: "web-0", Labels: map[string]string{"team": "a", "tier": "front"}},
		id(4): {Name: "agent", NetworkMode: "host", Namespace: "prod", Pod: "agent", Labels: map[string]string{}},
		id(5): {Name: "app", Image: "agent:3", NetworkMode: "host", Namespace: "prod", Pod: "agent", Labels: map[string]string{}},
		id(6): {Name: "orphan", Image: "bb:1", Namespace: "old", Pod: "gone", Labels: map[string]string{}},
	}
	for id, meta := range want {
		meta.Runtime = "containerd"
		want[id] = meta
	}
	for what, few := range map[string]bool{"all at once": false, "one by one": true} {
		t.Run(what, func(t *testing.T) {
			r, logged := newKubeResolver("unix://"+path, "team", "tier")
			r.refreshEvery = time.Hour
			k.mu.Lock()
			k.lists, k.statuses = 0, map[string]int{}
			k.mu.Unlock()
			if few {
				run(t, r)
			}
			for id := range want {
				r.Want(id)
				if few {
					eventually(t, "known", func() bool { return name(r, id) != "" })
				}
			}
			if !few {
				run(t, r)
			}
			knows(t, r, want)
			eventually(t, "it says so", func() bool { return len(logged.all()) > 0 })
			if lines := logged.all(); len(lines) != 1 || !strings.Contains(lines[0], "version=1.6.20") {
				t.Errorf("log: %q", lines)
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			if few != (k.lists == 0) {
				t.Errorf("%d lists of everything", k.lists)
			}
			if got, want := k.statuses, (map[string]int{id(1): 1, id(4): 1, id(5): 1, id(99): 1}); !cmp.Equal(got, want) {
				t.Errorf("statuses asked for: %v, want %v", got, want)
			}
		})
	}
}

// A pod's containers and labels are looked at again with every refresh, but not what
// never changes.
func TestPodsAreFollowed(t *testing.T) {
	path := socketPath(t)
	k := startKube(t, path)
	k.pod(1, "web-0", map[string]string{"team": "a"})
	k.container(2, 1, "app", nil)
	r, _ := newKubeResolver("unix://"+path, "team")
	r.Want(id(2))
	r.Want(id(3))
	run(t, r)
	team := func(want string) func() bool {
		return func() bool { meta, _ := r.Lookup(id(2)); return meta.Labels["team"] == want }
	}
	eventually(t, "known", team("a"))
	k.pod(1, "web-0", map[string]string{"team": "b"})
	eventually(t, "changed", team("b"))
	k.container(3, 1, "late", nil) // after it was asked for in vain
	r.Want(id(3))
	eventually(t, "late is known", func() bool { return name(r, id(3)) == "late" })
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.statuses[id(1)] != 1 {
		t.Errorf("asked for the sandbox's status %d times", k.statuses[id(1)])
	}
}

func TestOnePodIsTooLarge(t *testing.T) {
	path := socketPath(t)
	k := startKube(t, path)
	large := map[string]string{"x": strings.Repeat("x", 10<<20)}
	k.pod(0, "web", nil)
	k.pod(50, "large", large)
	for n := 1; n < 40; n++ {
		k.container(n, 0, "app", nil)
	}
	k.container(7, 0, "large", large)
	k.container(8, 50, "inlarge", map[string]string{"io.kubernetes.pod.name": "large"})
	r, logged := newKubeResolver("unix://" + path)
	r.refreshEvery = time.Hour
	for n := range 51 {
		r.Want(id(n))
	}
	run(t, r)
	eventually(t, "all others are known", func() bool {
		for n := range 40 {
			if n != 7 && name(r, id(n)) == "" {
				return false
			}
		}
		return true
	})
	if got, _ := r.Lookup(id(8)); got.Name != "inlarge" || got.Pod != "large" {
		t.Errorf("the container of the large pod: %+v", got)
	}
	eventually(t, "it says so", func() bool { return len(logged.all()) == 3 })
	for _, n := range []int{7, 50} {
		if got := name(r, id(n)); got != "" || !strings.Contains(strings.Join(logged.all(), ""), "container="+id(n)) {
			t.Errorf("the large %d is %q; log %.2000q", n, got, logged.all())
		}
	}
}

// badKubes are what a socket can have behind it that should be a runtime.
var badKubes = map[string]func(*testing.T, string){
	"silent":   func(t *testing.T, path string) { startPeer(t, path, badPeers["silent"]) },
	"closes":   func(t *testing.T, path string) { startPeer(t, path, badPeers["closes"]) },
	"HTTP/1":   func(t *testing.T, path string) { startPeer(t, path, badPeers["a web page"]) },
	"not HTTP": func(t *testing.T, path string) { startPeer(t, path, badPeers["not HTTP"]) },
	"talks first, without end": func(t *testing.T, path string) {
		startPeer(t, path, func(c net.Conn) { endless(c, "\x00\x00\x00\x04\x00\x00\x00\x00\x00") })
	},
	"a large version": func(t *testing.T, path string) {
		startKube(t, path, func(k *kubeRuntime) { k.version.RuntimeName = strings.Repeat("x", 10<<20) })
	},
	"lists never": func(t *testing.T, path string) {
		startKube(t, path, func(k *kubeRuntime) {
			k.onList = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		})
	},
	"a long error": func(t *testing.T, path string) {
		startKube(t, path, func(k *kubeRuntime) {
			k.onList = func(context.Context) error {
				return status.Error(codes.Internal, strings.Repeat("\x1b[31mno\n", 1000))
			}
		})
	},
	"headers without end": func(t *testing.T, path string) {
		startKube(t, path, func(k *kubeRuntime) {
			k.onList = func(context.Context) error {
				return status.Error(codes.Internal, strings.Repeat("x", 1<<20))
			}
		})
	},
	"no CRI": func(t *testing.T, path string) { serveGRPC(t, path, func(*grpc.Server) {}) },
	"garbage": func(t *testing.T, path string) {
		serveGRPC(t, path, func(s *grpc.Server) { s.RegisterService(&garbage, nil) })
	},
}

// garbage answers requests for the version with what is no message.
var garbage = grpc.ServiceDesc{
	ServiceName: "runtime.v1.RuntimeService",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Version", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		return s.SendMsg(&cri.ExecSyncResponse{Stdout: []byte{0xff}}) // where a text is expected
	}}},
}

// Whatever is behind the socket of CRI: it is tried again, said once, and Docker's names
// come all the same.
func TestBadKubes(t *testing.T) {
	for what, start := range badKubes {
		t.Run(what, func(t *testing.T) {
			docker, kube := socketPath(t), socketPath(t)
			d := startDaemon(t, docker, summary(1, "web"))
			start(t, kube)
			r, logged := newResolverOf(Options{Docker: "unix://" + docker, Podman: "off", CRI: "unix://" + kube})
			r.answerWithin = 2 * time.Second // for a machine with other things to do
			r.Want(id(1))
			r.Want(id(2))
			stop := run(t, r)
			eventually(t, "known", func() bool { return name(r, id(1)) == "web" })
			eventually(t, "it says so", func() bool { return strings.Contains(strings.Join(logged.all(), ""), "source=cri") })
			d.put(summary(1, "shop"))
			eventually(t, "renamed", func() bool { return name(r, id(1)) == "shop" })
			time.Sleep(50 * time.Millisecond)
			stop()
			if _, ok := r.Lookup(id(2)); ok {
				t.Error("it knows a container")
			}
			said := 0
			for _, line := range logged.all() {
				if len(line) > 3*textMax || strings.Contains(line, "\x1b") {
					t.Errorf("log: %.3000q", line)
				}
				if strings.Contains(line, "source=cri") {
					said++
					t.Logf("%.300s", line)
				}
			}
			if said != 1 {
				t.Errorf("said %d times", said)
			}
		})
	}
}

// Docker's containerd, without CRI, is nobody's fault where nobody said that it speaks
// it; and another runtime is found beside it.
func TestContainerdWithoutCRI(t *testing.T) {
	plain, k3s := socketPath(t), socketPath(t)
	serveGRPC(t, plain, func(*grpc.Server) {})
	r, logged := newKubeResolver("auto")
	places := []string{plain, "/nonexistent/sock", "/nonexistent/other", k3s}
	for i, s := range r.sources {
		s.paths = []string{places[i]}
	}
	r.Want(id(2))
	run(t, r)
	_, err := r.Probe(t.Context(), "cri")
	want := "connect to cri at unix://" + plain + ": no CRI v1 is spoken there"
	if !errors.Is(err, ErrAbsent) || err.Error() != want {
		t.Errorf("probe: %v, want %s", err, want)
	}
	k := startKube(t, k3s, func(k *kubeRuntime) { k.version.RuntimeName = "cri-o" })
	k.pod(1, "web", nil)
	k.container(2, 1, "app", nil)
	eventually(t, "known", func() bool { return name(r, id(2)) == "app" })
	if meta, _ := r.Lookup(id(2)); meta.Runtime != "crio" {
		t.Errorf("runtime %q", meta.Runtime)
	}
	found, err := r.Probe(t.Context(), "cri")
	if want := "crio 1.6.20 (API CRI v1) at unix://" + k3s; err != nil || found != want {
		t.Errorf("probe: %q, %v, want %q", found, err, want)
	}
	if lines := logged.all(); len(lines) != 1 || !strings.Contains(lines[0], "names come") {
		t.Errorf("log: %q", lines)
	}
}

func TestKubeComesAndGoes(t *testing.T) {
	path := socketPath(t)
	r, logged := newKubeResolver("unix://" + path)
	r.Want(id(2))
	run(t, r)
	eventually(t, "it says that there is none", func() bool { return len(logged.all()) == 1 })
	if line := logged.all()[0]; !strings.Contains(line, "WARN") || !strings.Contains(line, "no such file or directory") {
		t.Errorf("log: %q", line)
	}
	start := func(name string) *kubeRuntime {
		k := startKube(t, path)
		k.pod(1, "web", nil)
		k.container(2, 1, name, nil)
		return k
	}
	k := start("app")
	eventually(t, "known", func() bool { return name(r, id(2)) == "app" })
	k.server.Stop()
	eventually(t, "it says that it is gone", func() bool { return len(logged.all()) == 3 })
	if got := name(r, id(2)); got != "app" {
		t.Errorf("without a socket the name is %q", got)
	}
	start("app2")
	eventually(t, "up to date when it is back", func() bool { return name(r, id(2)) == "app2" })
}
