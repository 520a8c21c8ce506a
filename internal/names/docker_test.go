// SPDX-License-Identifier: Apache-2.0

package names

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
)

// A real Docker tells what the imitation in this package's other tests does.
func TestDocker(t *testing.T) {
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	docker.NetworkCreate("backend")
	r, _ := newResolver("unix://"+docker.Socket, "team", "com.docker.compose.project", "com.docker.compose.service")
	r.refreshEvery = time.Hour // only an event can tell of a rename
	run(t, r)

	web := docker.Run("--name", "web", "--label", "team=a", "--label", "other=b", dockerhost.Image)
	compose := docker.Run("--name", "shop-db-1", "--network", "backend", "--label", "com.docker.compose.project=shop",
		"--label", "com.docker.compose.service=db", dockerhost.Image)
	for id, want := range map[string]Meta{
		compose: {Name: "shop-db-1", NetworkMode: "backend", Labels: map[string]string{
			"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}},
		web: {Name: "web", NetworkMode: "bridge", Labels: map[string]string{"team": "a"}},
		docker.Run("--name", "db", "--network", "backend", dockerhost.Image): {Name: "db", NetworkMode: "backend"},
		docker.Run("--name", "agent", "--network", "host", dockerhost.Image): {Name: "agent", NetworkMode: "host"},
		docker.Run("--name", "batch", "--network", "none", dockerhost.Image): {Name: "batch", NetworkMode: "none"},
		// Linked to it, web is also "/shop/backend", and the first of its names to some daemons.
		docker.Run("--name", "shop", "--link", "web:backend", dockerhost.Image):         {Name: "shop", NetworkMode: "bridge"},
		docker.Run("--name", "sidecar", "--network", "container:web", dockerhost.Image): {Name: "sidecar", NetworkMode: "container"},
	} {
		r.Want(id)
		eventually(t, want.Name+" is known", func() bool { return name(r, id) != "" })
		want.Image, want.Runtime = dockerhost.Image, "docker"
		if want.Labels == nil {
			want.Labels = map[string]string{}
		}
		got, _ := r.Lookup(id)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.Name, diff)
		}
	}

	if all := docker.CLI("ps", "--no-trunc", "--format", "{{.Names}}"); !strings.Contains(all, "shop/backend") {
		t.Errorf("the names are %q: is web linked?", all)
	}

	docker.CLI("rename", "web", "site")
	eventually(t, "the new name is known", func() bool { return name(r, web) == "site" })

	docker.Remove(web)
	r.Want(web)
	eventually(t, "docker has said that it knows it no more", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.wanted[web].replies[0].misses > 0
	})
	if got := name(r, web); got != "site" {
		t.Errorf("the removed container is called %q, want its last name", got)
	}
}
