// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

// What a container's numbers are, and whose they are a part of.
func TestPartOf(t *testing.T) {
	ip, eth0 := new(usage.Traffic), []usage.Interface{{Name: "eth0"}}
	type answer struct {
		countedBy, sharesWith, partOf string
		recalled                      bool
	}
	for name, test := range map[string]struct {
		c    usage.Container
		want answer
	}{
		"its own interface":          {usage.Container{Interfaces: eth0, IP: ip}, answer{"interfaces", "", "", true}},
		"nothing":                    {usage.Container{Unrecalled: true}, answer{"", "", "", false}},
		"another's interface":        {usage.Container{IP: ip, Shares: true, SharesWith: "web"}, answer{"cgroup", "web", "web", true}},
		"an interface beside that":   {usage.Container{IP: ip, Interfaces: eth0, SharesWith: "web"}, answer{"interfaces", "web", "", true}},
		"the host's":                 {usage.Container{IP: ip, OnHost: true, Interfaces: eth0}, answer{"cgroup", "", "", true}},
		"nested on the host":         {usage.Container{IP: ip, OnHost: true, ParentID: "kind"}, answer{"cgroup", "", "kind", true}},
		"of another user":            {usage.Container{ID: "1000~a", IP: ip, ParentID: "kind"}, answer{"cgroup", "", "", true}},
		"nested, with its interface": {usage.Container{IP: ip, Interfaces: eth0, ParentID: "kind"}, answer{"interfaces", "", "", true}},
	} {
		got := containerOf(&test.c)
		if diff := cmp.Diff(test.want, answer{got.CountedBy, got.SharesWith, got.PartOf, got.Recalled}, cmp.AllowUnexported(answer{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// The time of a reading is that of the counters, which the kernel's files are read for now and then.
func TestBootTime(t *testing.T) {
	snap := snapshot()
	for age, want := range map[time.Duration]int64{0: 1234, 200 * time.Millisecond: 1034, -time.Hour: 1234} {
		snap.ReadAt = snap.TakenAt.Add(-age)
		_, _, body := request(t, newExporter(t, options(snap)).Handler(), "GET", "/api/v1/containers")
		var got Containers
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.BootMS != want {
			t.Errorf("read %s ago: %d, %v, want %d", age, got.BootMS, err, want)
		}
	}
	opts := options(snapshot())
	opts.Boot = nil
	if e := newExporter(t, opts); e.boot() <= 0 {
		t.Error("the host has no time since it booted")
	}
}
