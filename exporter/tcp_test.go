// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

// What the counters of a network namespace do not tell has no sample, and is null in the JSON.
func TestTCPInPart(t *testing.T) {
	snap := snapshot()
	for i := range snap.Containers {
		c := &snap.Containers[i]
		c.TCP, c.Established = nil, nil
		if c.ID == "aaa111" {
			c.TCP = &usage.TCP{ConnectAttempts: 5, Accepts: 0, Resets: 7, ListenDrops: 8, ListenDropsKnown: 1, InPart: true}
			c.TCPSince = noon
			text, err := json.Marshal(tcpOf(c))
			const want = `{"connect_attempts":5,"connects":null,"accepts":0,"connect_failures":null,"closes":null,"resets":7,` +
				`"retransmitted_segments":null,"listen_drops":8,"established":null,"rtt":null}`
			if err != nil || string(text) != want {
				t.Errorf("JSON %s, %v, want %s", text, err, want)
			}
		}
	}
	lines := slices.DeleteFunc(scrapeText(t, collectorOf(snap, Settings{MetricsRetention: 5 * time.Minute})), func(line string) bool {
		return !strings.HasPrefix(line, "nettally_container_tcp_") || strings.HasPrefix(line, "nettally_container_tcp_flags_")
	})
	const of = `{container_id="aaa111",name="web",namespace="",pod=""}`
	want := []string{
		"nettally_container_tcp_accepts_total" + of + " 0", "nettally_container_tcp_connect_attempts_total" + of + " 5",
		"nettally_container_tcp_listen_drops_total" + of + " 8", "nettally_container_tcp_resets_total" + of + " 7",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// Of the history, too, what is not known is empty.
func TestHistoryInPart(t *testing.T) {
	if diff := cmp.Diff([]string{"5", "", "0", ""}, (&HistoryTCP{ConnectAttempts: 5}).cells()); diff != "" {
		t.Errorf("CSV (-want +got):\n%s", diff)
	}
	text, err := json.Marshal(&HistoryTCP{ConnectAttempts: 5})
	if want := `{"connect_attempts":5,"connects":null,"accepts":0,"connect_failures":null}`; err != nil || string(text) != want {
		t.Errorf("JSON %s, %v, want %s", text, err, want)
	}
}
