// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/bpf"
)

// requested returns so many requests, and others.
func requested(n uint64) (c RequestCounters) {
	c.HTTPRequests[2], c.HTTP2Streams, c.DNSResponses[3], c.Resyncs[4] = n, 2*n, 3*n, 4*n
	return c
}

// What is said at layer 7 is on the slot of a container's connections, adds up over its lives and
// restarts, and is told where it is counted.
func TestRequests(t *testing.T) {
	kernel, now := newSlots(), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	begin := func() *Accounts {
		return New(Options{
			Datapath: kernel, Boot: "b", Kept: true, Now: func() time.Time { return now }, Retention: func() time.Duration { return time.Hour },
		})
	}
	a := begin()
	told := func() (*Requests, Layer7) {
		t.Helper()
		for _, c := range a.Snapshot().Containers {
			if c.ID == "web" {
				return c.Requests, c.Layer7
			}
		}
		t.Fatal("no container")
		return nil, Layer7{}
	}
	want := func(n uint64) {
		t.Helper()
		got, read := told()
		if diff := cmp.Diff(&Requests{Receive: requested(n), Transmit: requested(2 * n)}, got); diff != "" || read != (Layer7{HTTP: true, DNS: true}) {
			t.Errorf("of %+v (-want +told):\n%s", read, diff)
		}
	}
	a.Start(Container{ID: "web"})
	a.Recall("web", nil)
	slot := countSockets(t, a, kernel, 9, "web", 5)
	if got, read := told(); got != nil || read != (Layer7{}) {
		t.Errorf("not counted, and told: %+v, %+v", got, read)
	}
	kernel.read = bpf.RequestOptions{HTTP: true, DNS: true}
	want(0)
	kernel.said = map[uint16]bpf.RequestCounters{slot: requested(3)}
	want(3)
	if err := a.Close(Target{Cgroup: 9, Sockets: true}); err != nil {
		t.Fatal(err)
	}
	kernel.said[countSockets(t, a, kernel, 10, "web", 1)] = requested(4)
	want(7)

	now = now.Add(time.Minute)
	records := a.Pending(true)
	text, err := json.Marshal(records[0].Tallies)
	if err == nil {
		records[0].Tallies = nil
		err = json.Unmarshal(text, &records[0].Tallies)
	}
	if err != nil {
		t.Fatal(err)
	}
	records[0].Total()
	if diff := cmp.Diff(&Requests{Receive: requested(7), Transmit: requested(14)}, records[0].Requests); diff != "" {
		t.Errorf("kept as %s (-want +kept):\n%s", text, diff)
	}
	a = begin()
	a.Restore(records)
	for _, left := range a.Leftovers() {
		if left.Cgroup == 10 {
			a.Adopt(left, "", "sock_ops")
		} else if err := a.Retire(left); err != nil {
			t.Fatal(err)
		}
	}
	a.Start(Container{ID: "web"})
	want(7)
}

// A record has the numbers up to the last one that is not 0, and sums stop at the highest one.
func TestRequestsKept(t *testing.T) {
	var r Requests
	r.Receive.HTTPRequests[0], r.Transmit.HTTPRequests[1] = 1, math.MaxUint64
	text, err := json.Marshal(Traffic{Requests: &r})
	if err != nil || !strings.Contains(string(text), `"Requests":[1,0,0,18446744073709551615]`) {
		t.Errorf("%s, %v", text, err)
	}
	if text, err = json.Marshal(Traffic{}); err != nil || strings.Contains(string(text), "Requests") {
		t.Errorf("%s, %v", text, err)
	}
	full := Requests{Transmit: RequestCounters{Resyncs: [5]uint64{4: 7}}}
	var kept Requests
	if text, err = json.Marshal(full); err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil || kept != full {
		t.Errorf("kept as %s: %+v, %v", text, kept, err)
	}
	if err := json.Unmarshal([]byte(strings.Replace(string(text), "]", ",0]", 1)), &kept); err == nil {
		t.Error("read more numbers than there are")
	}

	sum := r.Plus(&r)
	if sum.Receive.HTTPRequests[0] != 2 || sum.Transmit.HTTPRequests[1] != math.MaxUint64 || r.Receive.HTTPRequests[0] != 1 {
		t.Errorf("%+v and itself is %+v", r, sum)
	}
	if none := (*Requests)(nil); none.Plus(&r) != &r || r.Plus(nil) != &r || none.Plus(none) != nil {
		t.Error("with nothing it is another one")
	}
	c := Container{Requests: &r}
	if receive, transmit := c.HTTPRequests(); receive != 1 || transmit != math.MaxUint64 {
		t.Errorf("%d and %d requests", receive, transmit)
	}
	if receive, transmit := new(Container).HTTPRequests(); receive+transmit != 0 {
		t.Errorf("%d and %d requests of nobody", receive, transmit)
	}
}
