// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

// lossy returns a snapshot of whose container web it is known what was lost.
func lossy() usage.Snapshot {
	snap := snapshot()
	web := &snap.Containers[1]
	web.Interfaces[0].AttachedAt = noon.Add(-30 * time.Minute)
	web.Lost = usage.Lost{
		Known: true, Receive: usage.Loss{Dropped: 11, Errors: 12}, Transmit: usage.Loss{Dropped: 13},
		Followed: true, Undelivered: 14,
	}
	web.Interfaces[0].Lost = web.Lost
	return snap
}

// The metrics have what the JSON has, and nothing of what is not known.
func TestLost(t *testing.T) {
	opts := options(lossy())
	opts.Settings = everything
	h := newExporter(t, opts).Handler()
	_, _, metrics := request(t, h, "GET", "/metrics", "Accept", "application/openmetrics-text; version=1.0.0")
	started, attached := float64(noon.Add(-time.Hour).Unix()), float64(noon.Add(-30*time.Minute).Unix())
	const ours = `{container_id="aaa111",interface="eth0",name="web",namespace="",pod=""} `
	const cadvisors = `{id="/docker/aaa111",image="nginx:1",interface="eth0",name="web",namespace="",pod=""} `
	for _, want := range []string{
		"nettally_container_network_receive_dropped_packets_total" + ours + "11.0",
		"nettally_container_network_receive_error_packets_total" + ours + "12.0",
		"nettally_container_network_receive_undelivered_packets_total" + ours + "14.0",
		"nettally_container_network_transmit_dropped_packets_total" + ours + "13.0",
		"nettally_container_network_transmit_error_packets_total" + ours + "0.0",
		fmt.Sprintf("nettally_container_network_transmit_dropped_packets_created%s%g", ours, started),
		fmt.Sprintf("nettally_container_network_receive_undelivered_packets_created%s%g", ours, attached),
		"container_network_receive_packets_dropped_total" + cadvisors + "11.0",
		"container_network_receive_errors_total" + cadvisors + "12.0",
		"container_network_transmit_packets_dropped_total" + cadvisors + "13.0",
		"container_network_transmit_errors_total" + cadvisors + "0.0",
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("no %q in the scrape", want)
		}
	}
	// Of the other containers nobody knows.
	if n := len(regexp.MustCompile(`(?m)^[a-z_]*container_network_[a-z_]*_(dropped_packets|error_packets|packets_dropped|errors|undelivered_packets)_total\{`).FindAllString(metrics, -1)); n != 9 {
		t.Errorf("%d samples of what was lost, want 9", n)
	}

	_, _, body := request(t, h, "GET", "/api/v1/containers/web")
	var web Container
	if err := json.Unmarshal([]byte(body), &web); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Counts{web.Receive, web.Interfaces[0].Receive} {
		if diff := cmp.Diff([]uint64{11, 12, 14}, []uint64{*c.DroppedPackets, *c.ErrorPackets, *c.UndeliveredPackets}); diff != "" {
			t.Errorf("receive (-want +got):\n%s", diff)
		}
	}
	for _, c := range []Counts{web.Transmit, web.Interfaces[0].Transmit} {
		if *c.DroppedPackets != 13 || *c.ErrorPackets != 0 || c.UndeliveredPackets != nil {
			t.Errorf("transmit %+v", c)
		}
	}
	_, _, body = request(t, h, "GET", "/api/v1/containers/bbb333")
	for _, null := range []string{`"dropped_packets": null`, `"error_packets": null`, `"undelivered_packets": null`} {
		if !strings.Contains(strings.ReplaceAll(body, `":null`, `": null`), null) {
			t.Errorf("no %q in %s", null, body)
		}
	}
}
