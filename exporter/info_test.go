// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/usage"
)

func TestLabelNames(t *testing.T) {
	got := labelNames([]string{"com.docker.compose.project", "appTier", "app.kubernetes.io/name", "a-b", "a.b", "Team", "ü"})
	want := []string{"label_com_docker_compose_project", "label_app_tier", "label_app_kubernetes_io_name",
		"label_a_b_conflict1", "label_a_b_conflict2", "label_team", "label__"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The labels that are passed on are on the info metric, also on that of a container without
// them, and no others.
func TestLabelsInMetrics(t *testing.T) {
	settings := func() Settings {
		return Settings{MetricsRetention: time.Hour, Labels: []string{"com.docker.compose.project", "team"}}
	}
	snap := usage.Snapshot{Containers: []usage.Container{
		{ID: "a1", Name: "web", State: usage.Running, Labels: map[string]string{"team": "a\xff", "com.docker.compose.project": "shop", "other": "x"}},
		{ID: "b2", Name: "db", State: usage.Running},
	}}
	want := `
# HELP nettally_container_info 1, labelled by what is known of the container. Joins with the other metrics by container_id.
# TYPE nettally_container_info gauge
nettally_container_info{cgroup="",container_id="a1",image="",kernel="",label_com_docker_compose_project="shop",label_team="a�",name="web",namespace="",network_mode="",parent_id="",pod="",runtime="",user=""} 1
nettally_container_info{cgroup="",container_id="b2",image="",kernel="",label_com_docker_compose_project="",label_team="",name="db",namespace="",network_mode="",parent_id="",pod="",runtime="",user=""} 1
`
	c := newCollector(settings).of(snap, Periods{})
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "nettally_container_info"); err != nil {
		t.Error(err)
	}
}
