// SPDX-License-Identifier: Apache-2.0

package names

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// A real containerd tells what the imitation in this package's other tests does.
func TestContainerd(t *testing.T) {
	need.Root(t)
	node := crihost.Start(t, crihost.Options{})
	r, _ := newKubeResolver("unix://"+node.Socket, "team", "com.docker.compose.service")
	r.refreshEvery = time.Hour // what starts later is asked for at once
	run(t, r)

	web := nettest.Must(node.RunPod("web-0", crihost.PodOptions{
		Namespace: "prod", Labels: map[string]string{"team": "a", "other": "x"},
	}, crihost.Container{Name: "app", Labels: map[string]string{"team": "b", "com.docker.compose.service": "web"}},
		crihost.Container{Name: "sidecar"}))(t)
	agent := nettest.Must(node.RunPod("agent", crihost.PodOptions{HostNetwork: true}, crihost.Container{Name: "app"}))(t)
	want := map[string]Meta{
		web.ID:                    {Name: "web-0", NetworkMode: "pod", Namespace: "prod", Pod: "web-0", Labels: map[string]string{"team": "a"}},
		web.Containers["app"]:     {Name: "app", Image: crihost.Image, NetworkMode: "pod", Namespace: "prod", Pod: "web-0", Labels: map[string]string{"team": "b", "com.docker.compose.service": "web"}},
		web.Containers["sidecar"]: {Name: "sidecar", Image: crihost.Image, NetworkMode: "pod", Namespace: "prod", Pod: "web-0", Labels: map[string]string{"team": "a"}},
		agent.ID:                  {Name: "agent", NetworkMode: "host", Namespace: "default", Pod: "agent", Labels: map[string]string{}},
		agent.Containers["app"]:   {Name: "app", Image: crihost.Image, NetworkMode: "host", Namespace: "default", Pod: "agent", Labels: map[string]string{}},
	}
	for id, meta := range want {
		meta.Runtime = "containerd"
		want[id] = meta
		r.Want(id)
	}
	knows(t, r, want)

	// A list of everything says the same.
	again, _ := newKubeResolver("unix://"+node.Socket, "team", "com.docker.compose.service")
	for id := range want {
		again.Want(id) // before Run, so that all are asked for together
	}
	run(t, again)
	knows(t, again, want)

	if err := web.Remove(); err != nil {
		t.Fatal(err)
	}
	r.Want(web.ID)
	eventually(t, "containerd has said that it knows it no more", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.wanted[web.ID].replies[0].misses > 0
	})
	if got := name(r, web.ID); got != "web-0" {
		t.Errorf("the removed pod is called %q, want its last name", got)
	}
}
