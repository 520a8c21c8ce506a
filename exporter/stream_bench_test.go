// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/usage"
)

// BenchmarkStream is one second of a host all of whose containers are busy, with viewers at the
// unix socket: the CPU time of the whole process, in which the viewers read as well. An hour has
// 3,600 of them: run it with -benchtime 3600x, and the heap in use at the end is beside it.
func BenchmarkStream(b *testing.B) {
	for _, containers := range []int{150, 1000} {
		for _, viewers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("containers=%d/viewers=%d", containers, viewers), func(b *testing.B) {
				benchmarkStream(b, containers, viewers)
			})
		}
	}
}

func benchmarkStream(b *testing.B, containers, viewers int) {
	s, opts := newScene(b, many(containers))
	_, socket, _ := serve(b, opts, "")
	var readers errgroup.Group
	samples := make(chan struct{}, viewers)
	var streams []io.Closer
	for range viewers {
		stream := openStream(b, socket)
		streams = append(streams, stream)
		readers.Go(func() error { return countSamples(stream, samples) })
	}
	defer func() {
		for _, stream := range streams {
			stream.Close()
		}
		if err := readers.Wait(); err != nil {
			b.Error(err)
		}
	}()
	second := func() {
		s.change(func(snap *usage.Snapshot) {
			for i := range snap.Containers {
				snap.Containers[i].Receive.Cells[0][0].Bytes += 1500
			}
		})
		for range viewers {
			<-samples
		}
	}
	second()
	before := cpuTime(b)
	for b.Loop() {
		second()
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/s")
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	b.ReportMetric(float64(memory.HeapInuse)/(1<<20), "heap-MB")
}

// openStream opens a stream and returns its body.
func openStream(b *testing.B, socket string) io.ReadCloser {
	b.Helper()
	transport := &http.Transport{DialContext: dialer(socket)}
	b.Cleanup(transport.CloseIdleConnections)
	response, err := (&http.Client{Transport: transport}).Get("http://nettally/api/v1/stream")
	if err != nil {
		b.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		b.Fatalf("a stream: %s", response.Status)
	}
	return response.Body
}

// countSamples reads a stream to its end, and tells of each sample.
func countSamples(stream io.Reader, samples chan<- struct{}) error {
	buffer := make([]byte, 64<<10)
	var rest []byte
	for {
		n, err := stream.Read(buffer)
		text := append(rest, buffer[:n]...)
		for range bytes.Count(text, []byte("event: sample\n")) {
			samples <- struct{}{}
		}
		last := bytes.LastIndexByte(text, '\n')
		rest = bytes.Clone(text[last+1:])
		if err != nil {
			return nil // closed by the test
		}
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
