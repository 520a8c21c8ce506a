// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

// tracked is the fixture with connections of one container.
func tracked(listed, told bool) usage.Snapshot {
	snap := snapshot()
	c := &usage.Conntrack{Since: noon, Listed: listed, Told: told}
	c.Receive[usage.ProtocolTCP] = usage.Connections{Established: 1, Other: 2, Opened: 3, Closed: 4}
	c.Transmit[usage.ProtocolUDP] = usage.Connections{Other: 5, Opened: 6, Closed: 7}
	for i := range snap.Containers {
		if snap.Containers[i].ID == "aaa111" {
			snap.Containers[i].Conntrack = c
		}
	}
	return snap
}

func connectionLines(t *testing.T, snap usage.Snapshot) []string {
	t.Helper()
	lines := scrapeText(t, collectorOf(snap, Settings{MetricsRetention: 5 * time.Minute}))
	return slices.DeleteFunc(lines, func(line string) bool {
		return !strings.HasPrefix(line, "nettally_container_conntrack") || strings.HasSuffix(line, " 0")
	})
}

func TestConnections(t *testing.T) {
	const tcp = `{container_id="aaa111",direction="receive",name="web",namespace="",pod="",protocol="tcp"`
	const udp = `{container_id="aaa111",direction="transmit",name="web",namespace="",pod="",protocol="udp"`
	entries := []string{
		`nettally_container_conntrack_entries` + tcp + `,state="established"} 1`,
		`nettally_container_conntrack_entries` + tcp + `,state="other"} 2`,
		`nettally_container_conntrack_entries` + udp + `,state="other"} 5`,
	}
	changes := []string{
		`nettally_container_conntrack_closed_total` + tcp + `} 4`,
		`nettally_container_conntrack_closed_total` + udp + `} 7`,
		`nettally_container_conntrack_opened_total` + tcp + `} 3`,
		`nettally_container_conntrack_opened_total` + udp + `} 6`,
	}
	for _, c := range []struct {
		name         string
		listed, told bool
		want         []string
	}{
		{"all", true, true, slices.Sorted(slices.Values(slices.Concat(entries, changes)))},
		{"no events", true, false, entries},
		{"no dump", false, true, changes},
		{"nothing", false, false, nil},
	} {
		if diff := cmp.Diff(c.want, slices.Sorted(slices.Values(connectionLines(t, tracked(c.listed, c.told))))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	lines := scrapeText(t, collectorOf(snapshot(), Settings{}))
	if slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "conntrack") }) {
		t.Errorf("off, and there are series: %q", lines)
	}
}

// What is not known is null, and not 0.
func TestUnknownConnections(t *testing.T) {
	got := conntrackOf(&usage.Conntrack{Since: noon, Listed: true})
	if c := got.Transmit.TCP; c.Established == nil || c.Other == nil || c.Opened != nil || c.Closed != nil {
		t.Errorf("without events: %+v", c)
	}
	if got := conntrackOf(nil); got != nil {
		t.Errorf("off: %+v", got)
	}
}
