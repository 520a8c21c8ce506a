// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// podmanService answers on a socket as podman 4 does.
type podmanService struct {
	minAPI string

	mu         sync.Mutex
	containers map[string]podmanContainer
	modes      map[string]string // by the container's id
	pods       map[string]podmanPod
	inspected  map[string]int
}

func startPodman(t *testing.T, path string) *podmanService {
	t.Helper()
	p := &podmanService{
		minAPI:     "4.0.0",
		containers: make(map[string]podmanContainer),
		modes:      make(map[string]string),
		pods:       make(map[string]podmanPod),
		inspected:  make(map[string]int),
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: p}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return p
}

func (p *podmanService) put(c podmanContainer, mode string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.containers[c.ID], p.modes[c.ID] = c, mode
}

func (p *podmanService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	filters := r.URL.Query().Get("filters")
	switch r.URL.Path {
	case "/_ping":
	case "/v1.41/version":
		_ = json.NewEncoder(w).Encode(map[string]any{"Version": "4.3.1", "Components": []any{
			map[string]any{"Name": "Podman Engine", "Details": map[string]string{"MinAPIVersion": p.minAPI}}}})
	case "/v1.41/events":
	case "/v4.0.0/libpod/containers/json":
		_ = json.NewEncoder(w).Encode(those(p.containers, filters))
	case "/v4.0.0/libpod/pods/json":
		_ = json.NewEncoder(w).Encode(those(p.pods, filters))
	default:
		p.inspect(w, strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v1.41/containers/"), "/json"))
	}
}

func (p *podmanService) inspect(w http.ResponseWriter, id string) {
	p.inspected[id]++
	if _, ok := p.containers[id]; !ok {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"message":"no such container"}`)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"Id": id, "HostConfig": map[string]string{"NetworkMode": p.modes[id]}})
}

// those returns the things whose ids a filter has.
func those[T any](all map[string]T, filter string) []T {
	found := []T{}
	for id, thing := range all {
		if strings.Contains(filter, id) {
			found = append(found, thing)
		}
	}
	return found
}

func TestPodman(t *testing.T) {
	path := socketPath(t)
	p := startPodman(t, path)
	p.pods[id(90)] = podmanPod{ID: id(90), Labels: map[string]string{"team": "a", "tier": "front"}}
	for _, c := range []podmanContainer{
		{ID: id(1), Names: []string{"shop-infra"}, Pod: id(90), PodName: "shop", Networks: []string{"podman"}, Labels: p.pods[id(90)].Labels},
		{ID: id(2), Names: []string{"app"}, Image: "localhost/bb:latest", Pod: id(90), PodName: "shop", Labels: map[string]string{"team": "b"}},
		{ID: id(3), Names: []string{"web"}, Networks: []string{"backend"}, Labels: map[string]string{"com.docker.compose.service": "web"}},
		{ID: id(4), Names: []string{"agent"}},
		{ID: id(5), Names: []string{"web"}, Networks: []string{"podman"}}, // named alike
	} {
		p.put(c, map[string]string{id(2): "container:" + id(1), id(4): "host"}[c.ID])
	}
	r, _ := newResolverOf(Options{Docker: "off", Podman: "unix://" + path, CRI: "off"},
		"team", "tier", "com.docker.compose.service")
	for n := range 7 {
		r.Want(id(n))
	}
	run(t, r)
	none := map[string]string{}
	knows(t, r, map[string]Meta{
		id(1): {Name: "shop-infra", NetworkMode: "bridge", Runtime: "podman", Pod: "shop", Labels: map[string]string{"team": "a", "tier": "front"}},
		id(2): {Name: "app", Image: "localhost/bb:latest", NetworkMode: "container", Runtime: "podman", Pod: "shop", Labels: map[string]string{"team": "b", "tier": "front"}},
		id(3): {Name: "web", NetworkMode: "backend", Runtime: "podman", Labels: map[string]string{"com.docker.compose.service": "web"}},
		id(4): {Name: "agent", NetworkMode: "host", Runtime: "podman", Labels: none},
		id(5): {Name: "web", NetworkMode: "bridge", Runtime: "podman", Labels: none},
	})
	p.put(podmanContainer{ID: id(4), Names: []string{"agent2"}}, "host")
	eventually(t, "renamed", func() bool { return name(r, id(4)) == "agent2" })
	p.mu.Lock()
	defer p.mu.Unlock()
	if want := (map[string]int{id(2): 1, id(4): 1}); !cmp.Equal(want, p.inspected) {
		t.Errorf("inspected: %v, want %v", p.inspected, want)
	}
}

func TestOnePodmanContainerIsTooLarge(t *testing.T) {
	path := socketPath(t)
	p := startPodman(t, path)
	for n := range 40 {
		p.put(podmanContainer{ID: id(n), Names: []string{"web"}}, "bridge")
	}
	p.put(podmanContainer{ID: id(7), Labels: map[string]string{"x": strings.Repeat("x", 10<<20)}}, "bridge")
	r, logged := newResolverOf(Options{Docker: "off", Podman: "unix://" + path, CRI: "off"})
	r.refreshEvery = time.Hour
	for n := range 40 {
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
	eventually(t, "it says so", func() bool { return len(logged.all()) == 2 })
	if lines := logged.all(); name(r, id(7)) != "" || !strings.Contains(lines[0], id(7)) {
		t.Errorf("%q; log: %q", name(r, id(7)), lines)
	}
}

// What podman says of its API is part of a path.
func TestBadPodmanVersions(t *testing.T) {
	for what, version := range map[string]string{
		"none": "", "a path": "4/../../x", "not there": "9.9.9", "control characters": "\x1b",
	} {
		t.Run(what, func(t *testing.T) {
			path := socketPath(t)
			startPodman(t, path).minAPI = version
			r, logged := newResolverOf(Options{Docker: "off", Podman: "unix://" + path, CRI: "off"})
			r.Want(id(1))
			run(t, r)
			eventually(t, "it says so", func() bool { return len(logged.all()) == 1 })
			if line := logged.all()[0]; !strings.Contains(line, "WARN") || !strings.Contains(line, "list containers of podman at unix://") {
				t.Errorf("log: %q", line)
			}
		})
	}
}
