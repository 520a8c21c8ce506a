// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"strings"
	"testing"
)

func TestNameKey(t *testing.T) {
	id := "249662c60a09" + strings.Repeat("5", 52)
	compose := map[string]string{"com.docker.compose.service": "web"}
	for _, test := range []struct {
		c    Container
		want string
	}{
		{Container{}, "ID"},
		{Container{Name: "web", Runtime: "docker"}, "web"},
		{Container{Name: "web", Runtime: "podman"}, "web"},
		{Container{Name: "web", Runtime: "podman", Pod: "shop"}, "web"},
		{Container{Name: "redis-0", Runtime: "containerd", Namespace: "dev", Pod: "redis-0"}, "dev/redis-0"},
		{Container{Name: "app", Runtime: "cri-o", Namespace: "dev", Pod: "redis-0"}, "dev/redis-0/app"},
		{Container{Name: "k8s_app_redis-0_dev_1_0", Runtime: "docker", Namespace: "dev", Pod: "redis-0"}, "k8s_app_redis-0_dev_1_0"},
		{Container{Pod: "5f0e"}, "ID"}, // its names are not known yet
		{Container{ID: "7~ID", Name: "7~app", Runtime: "cri-o", Namespace: "7~dev", Pod: "7~r-0"}, "7~dev/7~r-0/app"},

		// While compose replaces a container, and after it has failed to.
		{Container{ID: id, Name: "249662c60a09_web"}, "web"},
		{Container{Name: "249662c60a09_web", Labels: compose}, "web"},
		{Container{Name: "249662c60a09_web"}, "249662c60a09_web"},
		{Container{ID: "7~" + id, Name: "7~249662c60a09_web"}, "7~web"},
		{Container{ID: id, Name: "249662c60a09_"}, "249662c60a09_"},
		{Container{ID: id, Name: "249662c60a0_web", Labels: compose}, "249662c60a0_web"},
		{Container{Name: "release_2026_web", Labels: compose}, "release_2026_web"},
	} {
		if test.c.ID == "" {
			test.c.ID = "ID"
		}
		if got := test.c.NameKey(); got != test.want {
			t.Errorf("%+v: %q, want %q", test.c, got, test.want)
		}
	}
}

func TestOfRuntime(t *testing.T) {
	for _, test := range [][3]string{
		{"web", "docker", "web"}, {"web", "", "web"}, {"web", "podman", "podman~web"},
		{"1000~web", "podman", "1000~podman~web"}, {"1000~web", "docker", "1000~web"},
	} {
		if got := OfRuntime(test[0], test[1]); got != test[2] {
			t.Errorf("%s of %s: %q, want %q", test[0], test[1], got, test[2])
		}
	}
	for _, test := range [][3]string{
		{"docker", "podman", "docker"}, {"podman", "docker", "docker"}, {"", "podman", "podman"},
		{"podman", "", "podman"}, {"", "docker", "docker"}, {"crio", "podman", "crio"}, {"podman", "crio", "crio"}, {"", "", ""},
	} {
		if got := FirstRuntime(test[0], test[1]); got != test[2] {
			t.Errorf("of %q and %q the first is %q, want %q", test[0], test[1], got, test[2])
		}
	}
}
