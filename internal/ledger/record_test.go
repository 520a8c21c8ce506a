// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// What a runtime says of a container's network does not decide which numbers its history
// is made of: members of a pod on the host's network are in "container" mode.
func TestHistoryOnHost(t *testing.T) {
	r := record("a1", "web", 100)
	ip := r.Traffic.Plus(r.Traffic)
	r.IP = &ip
	for _, mode := range []string{"host", "container", "bridge"} {
		for _, onHost := range []bool{false, true} {
			r.NetworkMode, r.OnHost = mode, onHost
			if got, want := counted(r)[0], counted(record("a1", "web", 100))[0]; onHost && got != 2*want || !onHost && got != want {
				t.Errorf("mode %s, found on the host %v: %d bytes received, of an interface %d", mode, onHost, got, want)
			}
		}
	}
}

// Of a container that only its network namespace counts, connects and failures are unknown, not 0,
// until a program counts it. A sum knows them as soon as one of its containers does.
func TestHistoryOfConnectionsInPart(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{day, 365 * day}
	counted := func(id string, attempts, connects uint64, inPart bool) usage.Record {
		r := record(id, "n", attempts)
		r.TCP = &usage.TCP{ConnectAttempts: attempts, Connects: connects, Accepts: 2 * attempts, InPart: inPart}
		return r
	}
	b.flush(counted("a1", 100, 0, true))
	q := Query{Step: Hour, From: noon.Add(-day), To: noon.Add(day)}
	same(t, b.connections(q), []string{"n 100 {100 ? 200 ?}"})
	b.pass(time.Hour)
	b.restart()
	b.flush(counted("a1", 110, 7, false))
	same(t, b.connections(q), []string{"n 100 {100 ? 200 ?}", "n 10 {10 7 20 0}"})
	b.pass(time.Hour)
	b.flush(counted("a1", 115, 7, true))
	same(t, b.connections(q), []string{"n 100 {100 ? 200 ?}", "n 10 {10 7 20 0}", "n 5 {5 ? 10 ?}"})
	b.flush(counted("b2", 3, 2, false))
	same(t, b.connections(q), []string{"n 100 {100 ? 200 ?}", "n 10 {10 7 20 0}", "n 8 {8 2 16 0}"})
	b.pass(3 * day)
	b.tidyAll()
	q.Step, q.To = Day, b.now
	same(t, b.connections(q), []string{"n 118 {118 9 236 0}"})
}

// Connections are in the history from where they are counted, also of a container that shares a
// network, and not a second time of a nested one. They go along from hours to days.
func TestHistoryOfConnections(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{day, 365 * day}
	connected := func(id string, n uint64) usage.Record {
		r := record(id, "n"+id, n)
		r.TCP = &usage.TCP{ConnectAttempts: 4 * n, Connects: 3 * n, Accepts: 2 * n, ConnectFailures: n}
		return r
	}
	nested := connected("c3", 100)
	nested.ParentID = "b2"
	b.flush(record("a1", "na1", 100), connected("b2", 100), nested)
	b.pass(time.Hour)
	b.restart()
	b.flush(connected("a1", 110), connected("b2", 150), nested)
	q := Query{Step: Hour, From: noon.Add(-day), To: noon.Add(day)}
	want := []string{
		"na1 100 unknown", "nb2 100 {400 300 200 100}", "nc3 100 unknown",
		"na1 10 {440 330 220 110}", "nb2 50 {200 150 100 50}",
	}
	same(t, b.connections(q), want)
	b.flush(record("a1", "na1", 120)) // they are not counted any more
	b.flush(connected("a1", 120))
	want[3] = "na1 20 {480 360 240 120}"
	same(t, b.connections(q), want)

	b.pass(3 * day)
	b.tidyAll()
	q.Step, q.To = Day, b.now
	same(t, b.connections(q), []string{"na1 120 {480 360 240 120}", "nb2 150 {600 450 300 150}", "nc3 100 unknown"})
}

// HTTP requests are in the history from where they are counted, of all methods, and not a second
// time of a nested container. They go along from hours to days.
func TestHistoryOfHTTPRequests(t *testing.T) {
	b := newBench(t)
	b.keep = [2]time.Duration{day, 365 * day}
	requested := func(id string, n uint64) usage.Record {
		r := record(id, "n"+id, n)
		r.Requests, r.Layer7 = &usage.Requests{}, usage.Layer7{HTTP: true}
		r.Requests.Receive.HTTPRequests[0], r.Requests.Receive.HTTPRequests[2], r.Requests.Transmit.HTTPRequests[1] = n, 2*n, n
		return r
	}
	nested, other := requested("c3", 100), record("d4", "nd4", 100)
	nested.ParentID = "b2"
	other.Requests, other.Layer7 = &usage.Requests{}, usage.Layer7{DNS: true}
	idle := record("e5", "ne5", 100)
	idle.Layer7 = usage.Layer7{HTTP: true}
	b.flush(record("a1", "na1", 100), requested("b2", 100), nested, other, idle)
	b.pass(time.Hour)
	b.restart()
	b.flush(requested("a1", 110), requested("b2", 150), nested, other, idle)
	q := Query{Step: Hour, From: noon.Add(-day), To: noon.Add(day)}
	want := []string{
		"na1 100 unknown", "nb2 100 {300 100}", "nc3 100 unknown", "nd4 100 unknown", "ne5 100 {0 0}",
		"na1 10 {330 110}", "nb2 50 {150 50}",
	}
	same(t, b.requests(q), want)
	b.flush(record("a1", "na1", 120)) // they are not counted any more
	b.flush(requested("a1", 120))
	want[5] = "na1 20 {360 120}"
	same(t, b.requests(q), want)

	b.pass(3 * day)
	b.tidyAll()
	q.Step, q.To = Day, b.now
	same(t, b.requests(q), []string{"na1 120 {360 120}", "nb2 150 {450 150}", "nc3 100 unknown", "nd4 100 unknown", "ne5 100 {0 0}"})
}
