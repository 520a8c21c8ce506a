// SPDX-License-Identifier: Apache-2.0

package configs

import "testing"

func TestSelectionMatch(t *testing.T) {
	const id = "3f2a77"
	for _, c := range []struct {
		name             string
		include, exclude []string
		names            []string
		want             bool
	}{
		{"zero value", nil, nil, []string{"veth1"}, true},
		{"included", []string{"veth*"}, nil, []string{"veth1"}, true},
		{"not included", []string{"veth*"}, nil, []string{"lxc1"}, false},
		{"whole name", []string{"veth"}, nil, []string{"veth1"}, false},
		{"excluded", []string{"*"}, []string{"veth?"}, []string{"veth1"}, false},
		{"classes", []string{"veth[0-4]", "veth[^0-8]"}, nil, []string{"veth9"}, true},
		{"escaped star", []string{`veth\*`}, nil, []string{"veth1"}, false},
		{"star over slashes", []string{"/kubepods*"}, nil, []string{"/kubepods/burstable/pod1/" + id, id}, true},
		{"star within", []string{"/kubepods/*/" + id}, nil, []string{"/kubepods/burstable/pod1/" + id, id}, true},
		{"question mark over a slash", []string{"/docker?" + id}, nil, []string{"/docker/" + id, id}, true},
		{"by path", []string{"/docker/*"}, nil, []string{"/docker/" + id, id}, true},
		{"by id", []string{"3f2a*"}, nil, []string{"/docker/" + id, id}, true},
		{"by neither", []string{"/podman/*", "77*"}, nil, []string{"/docker/" + id, id}, false},
		{"excluded by id", []string{"/docker/*"}, []string{id}, []string{"/docker/" + id, id}, false},
		{"excluded by path only", nil, []string{"/user.slice/*"}, []string{"/user.slice/a/b/" + id, id}, false},
		{"not below, but itself", []string{"/docker/*"}, nil, []string{"/docker"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := (Selection{Include: c.include, Exclude: c.exclude}).Match(c.names...); got != c.want {
				t.Errorf("Match(%q) = %v, want %v", c.names, got, c.want)
			}
		})
	}
}
