// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

// A client that leaves in the middle of a scrape, as `curl … | head` does, is no warning, and
// no error in the metrics, for which there is an alert.
func TestClientLeaves(t *testing.T) {
	var snap usage.Snapshot
	for i := range 5000 {
		snap.Containers = append(snap.Containers, usage.Container{
			ID: fmt.Sprint("c", i), State: usage.Running, Interfaces: []usage.Interface{{Name: "eth0", Traffic: traffic(1)}},
		})
	}
	var log bytes.Buffer // written before answered is told
	opts := options(snap)
	opts.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h := newExporter(t, opts).Handler()
	answered := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		answered <- struct{}{}
	}))
	defer server.Close()

	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	<-answered
	text := log.String()
	if strings.Contains(text, "level=WARN") || strings.Contains(text, "level=ERROR") {
		t.Errorf("logged:\n%s", text)
	}
	if n := strings.Count(text, "a scrape was not read to the end"); n != 1 {
		t.Errorf("said %d times:\n%s", n, text)
	}
	_, _, body := request(t, h, "GET", "/metrics")
	if want := `promhttp_metric_handler_errors_total{cause="encoding"} 0` + "\n"; !strings.Contains(body, want) {
		t.Errorf("no %s", want)
	}
}
