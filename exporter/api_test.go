// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

func TestContainers(t *testing.T) {
	const unfiltered = "bbb333 aaa111 aaa222 ccc444"
	tests := []struct {
		query, want string
	}{
		{"", unfiltered},
		{"?name=&state=&all=", unfiltered},
		{"?name=web", "bbb333 aaa111"},
		{"?name=w*", "bbb333 aaa111"},
		{"?name=we", ""},
		{"?name=agen%5Ba-z%5D", "aaa222"},
		{"?namespace=kube-*", "aaa222"},
		{"?runtime=docker", "bbb333 aaa111"},
		{"?runtime=dock*", ""},
		{"?state=stopped", "bbb333"},
		{"?state=running&name=web", "aaa111"},
	}
	h := newExporter(t, options(snapshot())).Handler()
	for _, test := range tests {
		t.Run(test.query, func(t *testing.T) {
			code, _, body := request(t, h, "GET", "/api/v1/containers"+test.query)
			if code != 200 {
				t.Fatalf("status %d: %s", code, body)
			}
			var answer Containers
			if err := json.Unmarshal([]byte(body), &answer); err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, c := range answer.Containers {
				ids = append(ids, c.ID)
			}
			if got := strings.Join(ids, " "); got != test.want {
				t.Errorf("containers %q, want %q", got, test.want)
			}
			if answer.Unowned != nil {
				t.Errorf("unowned was not asked for: %v", answer.Unowned)
			}
		})
	}
}

func TestContainer(t *testing.T) {
	tests := []struct {
		wanted, want string
		code         int
		error        string
	}{
		{"aaa111", "aaa111", 200, ""},
		{"web", "aaa111", 200, ""}, // the running one
		{"bb", "bbb333", 200, ""},
		{"a%2Fb", "ccc/444", 200, ""},
		{"twin", "", 409, `find container "twin": 2 match, use the id: eee1 (twin, running), eee2 (twin, running)`},
		{"eee", "", 409, `find container "eee": 2 match, use the id: eee1 (twin, running), eee2 (twin, running)`},
		{"we", "", 404, `find container "we": no id, name or start of an id matches`},
		{"", "", 404, `find page "/api/v1/containers/": there is none`},
		{"web/x", "", 404, `find page "/api/v1/containers/web/x": there is none`},
		{"web?state=running", "", 400, `query parameter "state": unknown; there are none here`},
	}
	snap := snapshot()
	snap.Containers = append(snap.Containers,
		usage.Container{ID: "ccc/444", Name: "a/b", State: usage.Stopped},
		usage.Container{ID: "eee1", Name: "twin", State: usage.Running},
		usage.Container{ID: "eee2", Name: "twin", State: usage.Running},
	)
	h := newExporter(t, options(snap)).Handler()
	for _, test := range tests {
		t.Run(test.wanted, func(t *testing.T) {
			code, _, body := request(t, h, "GET", "/api/v1/containers/"+test.wanted)
			var got struct{ ID, Error string }
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if code != test.code || got.ID != test.want || got.Error != test.error {
				t.Errorf("got %d %q %q, want %d %q %q", code, got.ID, got.Error, test.code, test.want, test.error)
			}
		})
	}
}

// The list of a long answer ends.
func TestAmbiguousIsBounded(t *testing.T) {
	_, _, body := request(t, newExporter(t, options(many(1000))).Handler(), "GET", "/api/v1/containers/0")
	if !strings.Contains(body, `match, use the id: `) || !strings.Contains(body, `, …"`) || len(body) > 2000 {
		t.Errorf("%d bytes: %.300s", len(body), body)
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		method, target string
		code           int
		want           string
	}{
		{"GET", "/api/v1/containers?nam=x", 400, `query parameter "nam": unknown; there are name, namespace, runtime, state, all`},
		{"GET", "/api/v1/containers?name=a&name=b", 400, `query parameter name: given 2 times`},
		{"GET", "/api/v1/containers?name=%5B", 400, `query parameter name: "[" is not a glob: syntax error in pattern`},
		{"GET", "/api/v1/containers?namespace=a%5B", 400, `query parameter namespace: "a[" is not a glob: syntax error in pattern`},
		{"GET", "/api/v1/containers?state=up", 400, `query parameter state: "up" is neither running nor stopped`},
		{"GET", "/api/v1/containers?all=1", 400, `query parameter all: "1" is neither true nor false`},
		{"GET", "/api/v1/containers?name=%zz", 400, `parse query: invalid URL escape "%zz"`},
		{"GET", "/api/v1/nothing", 404, `find page "/api/v1/nothing": there is none`},
		{"POST", "/nothing", 404, `find page "/nothing": there is none`},
		{"POST", "/api/v1/containers", 405, `POST is not allowed here; use GET`},
		{"DELETE", "/metrics", 405, `DELETE is not allowed here; use GET`},
		{"OPTIONS", "*", 400, `find page "*": not a path`},
		{"CONNECT", "box:1", 400, `find page "box:1": not a path`},
	}
	h := newExporter(t, options(snapshot())).Handler()
	for _, test := range tests {
		t.Run(test.method+test.target, func(t *testing.T) {
			code, header, body := request(t, h, test.method, test.target)
			want, err := json.Marshal(failure{test.want})
			if err != nil {
				t.Fatal(err)
			}
			if code != test.code || strings.TrimSpace(body) != string(want) {
				t.Errorf("got %d %s, want %d %s", code, body, test.code, want)
			}
			if got := header.Get("Content-Type"); got != "application/json" {
				t.Errorf("content type %q", got)
			}
			if allow := header.Get("Allow"); (allow == "GET, HEAD") != (code == 405) {
				t.Errorf("allow %q", allow)
			}
		})
	}
}

// HTTP/2 carries any method, and JSON any character beyond ASCII: a terminal gets none that it
// would obey.
func TestReasonsAreEscaped(t *testing.T) {
	h := newExporter(t, options(snapshot())).Handler()
	for method, want := range map[string]string{
		"B\u009bREW":       `B\u009bREW is not allowed here; use GET`,
		"A\x1b\x00\x7f\nB": `A\x1b\x00\x7f` + "\nB is not allowed here; use GET",
		"\u202eü…\xff":     `\u202eü…` + "\ufffd is not allowed here; use GET",
	} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Method = method
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var got failure
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Error != want {
			t.Errorf("%q: %q, %v", method, got.Error, err)
		}
	}
}

// Paths that are not clean lead to those that are, without a page that repeats the query.
func TestRedirects(t *testing.T) {
	code, header, body := request(t, newExporter(t, options(snapshot())).Handler(), "GET", "//api/../metrics?\u009b<b>")
	if code != 307 || header.Get("Location") != "/metrics?%c2%9b<b>" || body != "" {
		t.Errorf("%d %v: %q", code, header, body)
	}
}

// Integers stay integers, however large.
func TestLargeNumbers(t *testing.T) {
	snap := snapshot()
	snap.Containers[1].Receive.SYN = math.MaxUint64
	_, _, body := request(t, newExporter(t, options(snap)).Handler(), "GET", "/api/v1/containers/aaa111")
	if want := `"tcp_syn":18446744073709551615`; !strings.Contains(body, want) {
		t.Errorf("no %s in %s", want, body)
	}
}

// Metrics and JSON say the same of the same snapshot, which each request takes
// once.
func TestOneSnapshot(t *testing.T) {
	opts := options(snapshot())
	taken := 0
	take := opts.Snapshot
	opts.Snapshot = func(ctx context.Context) (usage.Snapshot, error) { taken++; return take(ctx) }
	h := newExporter(t, opts).Handler()

	_, _, body := request(t, h, "GET", "/api/v1/containers/aaa111")
	var c Container
	if err := json.Unmarshal([]byte(body), &c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(containerOf(&snapshot().Containers[1]), c); diff != "" {
		t.Errorf("container (-want +got):\n%s", diff)
	}
	_, _, metrics := request(t, h, "GET", "/metrics")
	want := fmt.Sprintf(`receive_bytes_total{container_id="aaa111",interface="eth0",name="web",namespace="",pod=""} %d`+"\n", c.Receive.Bytes)
	if !strings.Contains(metrics, want) {
		t.Errorf("no %s in the metrics", want)
	}
	if taken != 2 {
		t.Errorf("%d snapshots for two requests", taken)
	}
}
