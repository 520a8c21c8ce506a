// SPDX-License-Identifier: Apache-2.0

package names

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

func TestMeta(t *testing.T) {
	d := &moby{runtime: "docker"}
	rows := map[string]struct {
		give   string // mode
		names  []string
		labels map[string]string
		want   Meta
	}{
		"plain": {
			give: "default", names: []string{"/web"},
			want: Meta{Name: "web", NetworkMode: "bridge", Labels: map[string]string{}},
		},
		"linked: the aliases come first": {
			give: "bridge", names: []string{"/app/db", "/db", "/other/db"},
			want: Meta{Name: "db", NetworkMode: "bridge", Labels: map[string]string{}},
		},
		"shares a namespace, on its way out": {
			give: "container:" + id(7), names: nil,
			want: Meta{NetworkMode: "container", Labels: map[string]string{}},
		},
		"user network and labels": {
			give: "shop_default", names: []string{"/shop-web-1"},
			labels: map[string]string{"team": "a", "secret": "b", "empty": ""},
			want: Meta{Name: "shop-web-1", NetworkMode: "shop_default",
				Labels: map[string]string{"team": "a", "empty": ""}},
		},
		"pod": {
			give: "host", names: []string{"/k8s_app_web-0_prod_uid_1"},
			labels: map[string]string{"io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.name": "web-0"},
			want: Meta{Name: "k8s_app_web-0_prod_uid_1", NetworkMode: "host",
				Namespace: "prod", Pod: "web-0", Labels: map[string]string{}},
		},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			summary := container.Summary{Names: row.names, Labels: row.labels}
			summary.HostConfig.NetworkMode = row.give
			row.want.Runtime = "docker"
			got := d.meta(summary, []string{"team", "empty", "absent"})
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("meta (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClean(t *testing.T) {
	rows := map[string]struct{ give, want string }{
		"empty":          {"", ""},
		"plain":          {"größe-1", "größe-1"},
		"not UTF-8":      {"a\xff\xfeb", "a\uFFFD\uFFFDb"},
		"terminal codes": {"a\x1b[31m\nb\x00", "a\uFFFD[31m\uFFFDb\uFFFD"},
		"long":           {strings.Repeat("x", 600), strings.Repeat("x", textMax)},
		"cut in a rune":  {"x" + strings.Repeat("é", 600), "x" + strings.Repeat("é", textMax/2-1)},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, clean(row.give)); diff != "" {
				t.Errorf("clean (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	f.Add("web")
	f.Add("x" + strings.Repeat("\xf0\x9f\x92", 300))
	f.Fuzz(func(t *testing.T, text string) {
		got := clean(text)
		if !utf8.ValidString(got) || len(got) > textMax || clean(got) != got {
			t.Errorf("clean(%q) = %q", text, got)
		}
	})
}

func TestIsID(t *testing.T) {
	for give, want := range map[string]bool{
		id(1):                         true,
		"":                            false,
		id(1)[:63]:                    false,
		id(1) + "0":                   false,
		strings.ToUpper(id(0xab)):     false,
		strings.Repeat(".*", 32):      false, // Docker takes an id in a filter for a pattern
		strings.Repeat("é", 32):       false,
		"0123456789abcdef-1234567890": false, // Amazon ECS
	} {
		if got := isID(give); got != want {
			t.Errorf("isID(%q) = %v", give, got)
		}
	}
}

func TestMerge(t *testing.T) {
	old := Meta{Name: "web", Image: "nginx:1", NetworkMode: "bridge"}
	got := merge(old, Meta{Image: "sha256:1234", NetworkMode: "bridge"})
	if diff := cmp.Diff(old, got); diff != "" {
		t.Errorf("name taken away, tag moved (-want +got):\n%s", diff)
	}
	got = merge(old, Meta{Name: "web2", Image: "nginx:1", NetworkMode: "bridge"})
	if got.Name != "web2" {
		t.Errorf("renamed: name is %q", got.Name)
	}
}
