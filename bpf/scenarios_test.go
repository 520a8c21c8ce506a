// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

var scenarios = map[string]func() (scenario, error){
	"library":   playLibrary,
	"pipelined": func() (scenario, error) { return playExchanges(exchanges, 5, 64<<10) },
	"bytewise":  func() (scenario, error) { return playExchanges(exchanges, 1, 1) },
	"raw":       func() (scenario, error) { return playExchanges(exchanges, 3, 100) },
}

// likeRequests is a body of lines that look like requests and responses.
var likeRequests = strings.Repeat("GET / HTTP/1.1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 3000)

// counting counts what a server of package net/http is asked and says.
type counting struct {
	mu   sync.Mutex
	said said
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	status := http.StatusOK
	_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
	method := r.Method
	if !slices.Contains(HTTPMethods[:], method) {
		method = "_OTHER"
	}
	c.mu.Lock()
	c.said.request(method, 1)
	c.said.response(status, 1)
	c.mu.Unlock()
	switch r.URL.RawQuery {
	case "length":
		w.Header().Set("Content-Length", fmt.Sprint(len(likeRequests)))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, likeRequests)
	case "chunks":
		w.WriteHeader(status)
		for part := range 7 {
			_, _ = io.WriteString(w, likeRequests[part*100:])
			w.(http.Flusher).Flush()
		}
	default:
		w.WriteHeader(status)
	}
}

// playLibrary plays requests of many kinds between a server and a client of package net/http.
func playLibrary() (s scenario, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return s, err
	}
	counted := &counting{}
	server := &http.Server{Handler: counted}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	var clients errgroup.Group
	for number := range 4 {
		clients.Go(func() error { return ask("http://"+listener.Addr().String(), number) })
	}
	err = clients.Wait()
	if closed := server.Close(); err == nil {
		err = closed
	}
	if closed := <-done; !errors.Is(closed, http.ErrServerClosed) && err == nil {
		err = closed
	}
	return scenario{Client: counted.said, Server: counted.said}, err
}

// ask asks a server for all that it has, on connections that are kept.
func ask(base string, number int) error {
	transport := &http.Transport{ExpectContinueTimeout: time.Minute}
	defer transport.CloseIdleConnections()
	for round := range 10 {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"} {
			for _, path := range []string{"/200?length", "/200?chunks", "/404", "/204", "/304", "/500?length", "/301"} {
				request, err := http.NewRequest(method, base+path, nil)
				if err != nil {
					return err
				}
				switch text := likeRequests[:1+round*1000]; {
				case method == "POST" && round%2 == 0: // in chunks, since its length is not known
					request.Body = io.NopCloser(struct{ io.Reader }{strings.NewReader(likeRequests)})
				case method == "POST" || method == "PUT":
					request.Body, request.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
				}
				response, err := transport.RoundTrip(request)
				if err != nil {
					return fmt.Errorf("%d: %s %s: %w", number, method, path, err)
				}
				if _, err := io.Copy(io.Discard, response.Body); err != nil {
					return err
				}
				if err := response.Body.Close(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// exchange is a request and what answers it, and what that is to be counted as.
type exchange struct {
	request, response string
	method            string
	statuses          []int
}

func body(of string) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(of), of) }

// chunked is a body in chunks of some bytes each.
func chunked(of string, size int) string {
	var b strings.Builder
	b.WriteString("Transfer-Encoding: gzip, Chunked \r\n\r\n")
	for chunk := range slices.Chunk([]byte(of), size) {
		fmt.Fprintf(&b, "%X;name=\"value\"\r\n%s\r\n", len(chunk), chunk)
	}
	return b.String() + "0\r\nTrailer: GET / HTTP/1.1\r\n\r\n"
}

// exchanges are all that a connection may have, one after the other.
var exchanges = []exchange{
	{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n" + body("hello"), "GET", []int{200}},
	{"GET /" + strings.Repeat("x", 5000) + " HTTP/1.0\nHost: a\n\n", "HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n", "GET", []int{204}},
	{"HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "HEAD", []int{200}},
	{"POST / HTTP/1.1\r\ncontent-LENGTH:\t 21 \r\n\r\nGET / HTTP/1.1\r\n\r\nabc", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", "POST", []int{304}},
	{"PUT / HTTP/1.1\r\n" + chunked(likeRequests[:5000], 333), "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 201\r\n" + chunked(likeRequests[:3000], 1000), "PUT", []int{100, 103, 201}},
	{"\r\nDELETE * HTTP/1.1\r\nContent-Length-Not: 5\r\nX-Transfer-Encoding: chunked\r\nContent-Lengt: 6\r\nA:b\r\n\r\n", "HTTP/1.0 404 \xff\xfe\r\n" + body(likeRequests[:100]), "DELETE", []int{404}},
	{"M-SEARCH * HTTP/1.1\r\n\r\n", "HTTP/1.1 599 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", "_OTHER", []int{599}},
	{"PATCH / HTTP/1.1\r\nLong: " + strings.Repeat("y", 20000) + "\r\n\r\n", "HTTP/1.1 302 Found\r\nSet-Cookie: " + strings.Repeat("z", 9000) + "\r\n" + body(""), "PATCH", []int{302}},
	{"OPTIONS / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n" + chunked("", 1), "OPTIONS", []int{200}},
	{"TRACE / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad\r\nContent-Length: 00005\r\n\r\nHTTP/", "TRACE", []int{400}},
	{"CONNECT a:1 HTTP/1.1\r\n\r\n", "HTTP/1.1 502 Bad Gateway\r\n" + body("no"), "CONNECT", []int{502}},
}

// playExchanges plays exchanges so many times on one connection, so many requests of which are
// sent before the first response, in writes of at most so many bytes.
func playExchanges(all []exchange, times, size int) (s scenario, err error) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv6loopback})
	if err != nil {
		return s, err
	}
	defer listener.Close()
	client, err := net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
	if err != nil {
		return s, err
	}
	defer client.Close()
	server, err := listener.AcceptTCP()
	if err != nil {
		return s, err
	}
	defer server.Close()
	for round := 0; round < 3; round++ {
		var requests, responses strings.Builder
		for range times {
			for _, e := range all {
				requests.WriteString(e.request)
				responses.WriteString(e.response)
				s.Client.request(e.method, 1)
				for _, status := range e.statuses {
					s.Client.response(status, 1)
				}
			}
		}
		for _, way := range []struct {
			from, to *net.TCPConn
			text     string
		}{{client, server, requests.String()}, {server, client, responses.String()}} {
			if err := transfer(way.from, way.to, way.text, size); err != nil {
				return s, err
			}
		}
	}
	s.Server = s.Client
	return s, nil
}

// transfer sends a text in writes of at most so many bytes, and reads all of it.
func transfer(from, to *net.TCPConn, text string, size int) error {
	var group errgroup.Group
	group.Go(func() error {
		for part := range slices.Chunk([]byte(text), size) {
			if _, err := from.Write(part); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() error {
		_, err := io.CopyN(io.Discard, bufio.NewReader(to), int64(len(text)))
		return err
	})
	return group.Wait()
}
