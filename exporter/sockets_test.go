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

func TestSockets(t *testing.T) {
	snap := snapshot()
	counted := &usage.Sockets{}
	counted.Send[usage.SocketTCP] = usage.SocketCalls{Calls: 1, Bytes: 2}
	counted.Receive[usage.SocketUDP] = usage.SocketCalls{Calls: 3, Bytes: 4}
	counted.Receive[usage.SocketUnix] = usage.SocketCalls{Calls: 5, Bytes: 6}
	for i := range snap.Containers {
		if snap.Containers[i].ID == "aaa111" {
			snap.Containers[i].Sockets = counted
		}
	}
	lines := scrapeText(t, collectorOf(snap, Settings{MetricsRetention: 5 * time.Minute}))
	all := 0
	lines = slices.DeleteFunc(lines, func(line string) bool {
		other := !strings.HasPrefix(line, "nettally_container_socket_")
		if !other {
			all++
		}
		return other || strings.HasSuffix(line, " 0")
	})
	const of = `{container_id="aaa111",name="web",namespace="",pod="",protocol=`
	want := []string{
		`nettally_container_socket_receive_bytes_total` + of + `"udp"} 4`,
		`nettally_container_socket_receive_bytes_total` + of + `"unix"} 6`,
		`nettally_container_socket_receive_calls_total` + of + `"udp"} 3`,
		`nettally_container_socket_receive_calls_total` + of + `"unix"} 5`,
		`nettally_container_socket_send_bytes_total` + of + `"tcp"} 2`,
		`nettally_container_socket_send_calls_total` + of + `"tcp"} 1`,
	}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(lines))); diff != "" || all != 12 {
		t.Errorf("%d series, want 12 (-want +got):\n%s", all, diff)
	}

	if got := socketsOf(nil); got != nil {
		t.Errorf("not counted: %+v", got)
	}
	json := Sockets{Send: SocketCallsByProtocol{TCP: SocketCalls{1, 2}}, Receive: SocketCallsByProtocol{UDP: SocketCalls{3, 4}, Unix: SocketCalls{5, 6}}}
	if diff := cmp.Diff(&json, socketsOf(counted)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
