// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// has says what the kernel counts of TCP in a namespace: so many attempts, twice as many accepts,
// and so on.
func (w *world) has(namespace string, n int) {
	w.t.Helper()
	dir := filepath.Join(w.proc, "namespaces", namespace, "net")
	w.file(filepath.Join(dir, "snmp"), fmt.Sprintf(
		"Tcp: ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab RetransSegs\nTcp: %d %d 1000 %d 1000 1000\n", n, 2*n, 3*n))
	w.file(filepath.Join(dir, "netstat"), fmt.Sprintf("TcpExt: ListenOverflows ListenDrops\nTcpExt: 1000 %d\n", 4*n))
}

// tells expects what is told of a container's connections, nothing for -1.
func (w *world) tells(what, id string, n int) {
	w.t.Helper()
	w.pass(pollEvery)
	var got *usage.TCP
	for _, c := range w.backend.Snapshot().Containers {
		if c.ID == id {
			if got = c.TCP; c.Established != nil || c.Sockets != nil {
				w.t.Errorf("%s: %v established, sockets %v", what, c.Established, c.Sockets)
			}
		}
	}
	var want *usage.TCP
	if m := uint64(n); n >= 0 {
		want = &usage.TCP{ConnectAttempts: m, Accepts: 2 * m, Resets: 3 * m, ListenDrops: 4 * m, InPart: true}
		if got != nil && got.ListenDropsKnown > 0 {
			want.ListenDropsKnown = got.ListenDropsKnown // a number above 0
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// begins starts a container in a namespace that has an interface.
func (w *world) begins(id, namespace string) {
	w.t.Helper()
	w.write(namespace, eth0(2, traffic(1, 1)))
	w.has(namespace, 0)
	w.start(id, namespace)
}

// Connections are told of a container that has its namespace to itself, from its first one on or
// from ours, and never counted twice.
func TestTCP(t *testing.T) {
	inBubble(t, "from the first one on", func(w *world) {
		w.begins("a", "a")
		w.has("a", 5)
		w.tells("first", "a", 5)
		w.has("a", 8)
		w.tells("then", "a", 8)
		w.stop()
		w.has("a", 10)
		w.run()
		w.tells("in the next process", "a", 10)
		w.end("a")
		w.tells("ended", "a", 10)
	})
	inBubble(t, "from ours on", func(w *world) {
		w.stop()
		w.begins("a", "a")
		w.has("a", 100)
		w.run()
		w.tells("first", "a", 0)
		w.has("a", 103)
		w.tells("then", "a", 3)
	})
	inBubble(t, "a short life", func(w *world) {
		w.begins("a", "a")
		w.has("a", 5)
		w.yield(func() { w.backend.Refresh(w.t.Context()) })
		w.pass(3 * time.Second) // as an interface without an end in the host waits
		w.end("a")
		w.tells("ended", "a", 5)
	})
	inBubble(t, "no network", func(w *world) {
		w.write("a", nil)
		w.has("a", 0)
		w.start("a", "a")
		w.pass(time.Minute)
		w.has("a", 4)
		w.tells("over loopback", "a", 4)
	})
	inBubble(t, "others come and go", func(w *world) {
		w.begins("a", "pod")
		w.has("pod", 5)
		w.tells("alone", "a", 5)
		w.start("b", "pod")
		w.has("pod", 50)
		w.tells("while another is there", "a", -1)
		w.tells("nor is it the other's", "b", -1)
		w.end("b")
		w.has("pod", 60)
		w.tells("since nobody knows whose they are", "a", -1)
		w.stop()
		w.run()
		w.tells("alone again", "a", 5)
		w.has("pod", 61)
		w.tells("since", "a", 6)
	})
	inBubble(t, "the one that is left", func(w *world) {
		w.begins("a", "pod")
		w.has("pod", 5)
		w.start("b", "pod")
		w.pass(time.Minute)
		w.end("a")
		w.has("pod", 50)
		w.pass(time.Minute)
		w.tells("it was not alone", "b", -1)
		w.stop()
		w.run()
		w.pass(time.Minute)
		w.tells("in the next process", "b", 0)
		w.has("pod", 52)
		w.tells("since", "b", 2)
	})
	inBubble(t, "others inside", func(w *world) {
		w.begins("a", "a")
		w.has("a", 5)
		w.tells("alone", "a", 5)
		w.write("b", eth0(2, traffic(1, 1)))
		w.has("b", 3)
		inner := watcher.Container{ID: "b", ParentID: "a", Cgroup: "/docker/a/docker/b", CreatedAt: time.Now()}
		w.containers = append(w.containers, inner)
		w.enter("b", "b")
		w.send(watcher.ContainerStarted{Container: inner})
		w.tells("one inside has connections elsewhere", "a", -1)
		w.tells("it", "b", -1)
	})
	inBubble(t, "files that lack something", func(w *world) {
		w.begins("a", "a")
		w.file(filepath.Join(w.proc, "namespaces", "a", "net/netstat"), "TcpExt: Other\nTcpExt: 1\n")
		w.tells("unknown", "a", -1)
		w.want("a", traffic(1, 1))
		w.has("a", 7)
		w.tells("known", "a", 7)
	})
	inBubble(t, "a namespace that was there before", func(w *world) {
		w.begins("a", "kept")
		w.has("kept", 5)
		w.tells("first", "a", 5)
		w.end("a")
		w.pass(time.Minute)
		// The files are of the present, which is long over then, and not in the bubble's time.
		next := watcher.Container{ID: "b", Cgroup: "/docker/b", CreatedAt: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
		w.containers = append(w.containers, next)
		w.enter("b", "kept")
		w.send(watcher.ContainerStarted{Container: next})
		w.tells("another's are left out", "b", 0)
		w.has("kept", 9)
		w.tells("its own", "b", 4)
	})
}
