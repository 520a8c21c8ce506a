// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestTellsSockets(t *testing.T) {
	const (
		header  = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t4\t1\n"
		mounted = header + "net_cls\t9\t4\t1\nnet_prio\t9\t4\t1\n"
		unused  = header + "net_cls\t0\t9\t1\nnet_prio\t0\t9\t1\n"
	)
	for _, test := range []struct {
		release, controllers string
		ok                   bool
	}{
		{"5.11.0-27-generic", mounted, false},
		{"5.10.0-30-amd64", mounted, false},
		{"5.10.0-30-amd64", unused, true},
		{"5.15.0-1-amd64", mounted, true},
		{"6.12.1", mounted, true},
		{"5.10.0", header, true},
		{"mine", mounted, true},
	} {
		err := tellsSockets(test.release, test.controllers)
		if (err == nil) != test.ok {
			t.Errorf("%s with %q: %v, want ok %v", test.release, test.controllers, err, test.ok)
		}
		if err != nil && !strings.Contains(err.Error(), "cgroup_no_v1=net_prio,net_cls") {
			t.Errorf("%v says nothing of what to do", err)
		}
	}
}
