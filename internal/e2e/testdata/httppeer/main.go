// SPDX-License-Identifier: Apache-2.0

// Command httppeer is a server and a client of HTTP that say what they were asked and have said, a
// line each.
//
//	httppeer serve ADDRESS LOG   serves HTTP/1 and h2c; LOG gets "METHOD STATUS PROTOCOL" lines
//	httppeer pipeline ADDRESS N  sends N requests before it reads the first response
//	httppeer later ADDRESS N     asks once, and then as pipeline does, on the same connection
//	httppeer upgrade ADDRESS     asks for a websocket, and sends lines like requests through it
//	httppeer hostile ADDRESS N   sends N times a POST and noise, and a GET without end
//	httppeer relay IN OUT        passes packets from one TUN device to another, many out of order
//	httppeer streams ADDRESS N   asks N times by HTTP/2, on one connection
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	log.SetFlags(0)
	verbs := map[string]func(address, last string) error{
		"serve": serve, "pipeline": pipeline, "later": later, "streams": streams, "hostile": hostile, "relay": relay,
		"upgrade": func(address, _ string) error { return upgrade(address) },
	}
	if len(os.Args) < 3 || verbs[os.Args[1]] == nil {
		log.Fatal("usage: httppeer serve|pipeline|later|upgrade|streams ADDRESS …")
	}
	if err := verbs[os.Args[1]](os.Args[2], os.Args[len(os.Args)-1]); err != nil {
		log.Fatal(err)
	}
}

var likeRequests = strings.Repeat("GET / HTTP/1.1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 3000)

func serve(address, name string) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	note := func(r *http.Request, status int) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(file, r.Method, status, r.Proto)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/chat", func(w http.ResponseWriter, r *http.Request) {
		note(r, http.StatusSwitchingProtocols)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, conn)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		status, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			status = http.StatusOK
		}
		note(r, status)
		if r.URL.RawQuery == "length" {
			w.Header().Set("Content-Length", strconv.Itoa(len(likeRequests)))
		}
		w.WriteHeader(status)
		if r.URL.RawQuery != "" {
			_, _ = io.WriteString(w, likeRequests)
		}
	})
	server := &http.Server{Addr: address, Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server.ListenAndServe()
}

func pipeline(address, number string) error { return pipelines(address, number) }

func later(address, number string) error { return pipelines(address, "1", number) }

// pipelines sends so many requests and reads their responses, and then as many as comes next.
func pipelines(address string, numbers ...string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	responses := bufio.NewReader(conn)
	for _, number := range numbers {
		if err := ask(conn, responses, number); err != nil {
			return err
		}
	}
	return nil
}

func ask(conn net.Conn, responses *bufio.Reader, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(conn, strings.Repeat("GET /200 HTTP/1.1\r\nHost: a\r\n\r\n", n)); err != nil {
		return err
	}
	for range n {
		response, err := http.ReadResponse(responses, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return err
		}
	}
	return nil
}

func hostile(address, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	noise := rand.New(rand.NewPCG(1, 2))
	for range n {
		post := []byte("POST /200 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
		for range 64 << 10 {
			post = append(post, byte(noise.Uint32()))
		}
		get := append([]byte("GET /200 HTTP/1.1\r\nHost: a\r\nLong: "), bytes.Repeat([]byte{'x'}, 1<<20)...)
		for _, text := range [][]byte{post, get} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return err
			}
			_, _ = conn.Write(text) // the server may hang up
			_ = conn.Close()
		}
	}
	return nil
}

// relay runs until it is killed, and its reader with it. It keeps back one packet of ten until some others have passed it, or none has come for a
// while.
func relay(from, to string) error {
	in, err := tun(from)
	if err != nil {
		return err
	}
	out, err := tun(to)
	if err != nil {
		return err
	}
	packets := make(chan []byte)
	go func() {
		for buffer := make([]byte, 1<<16); ; {
			n, err := in.Read(buffer)
			if err != nil {
				log.Fatal(err)
			}
			packets <- bytes.Clone(buffer[:n])
		}
	}()
	var late []byte
	left := 0
	for number := 0; ; number++ {
		var packet []byte
		select {
		case packet = <-packets:
		case <-time.After(5 * time.Millisecond):
		}
		if number%10 == 0 && late == nil {
			late, left = packet, 3
			continue
		}
		if packet != nil {
			if _, err := out.Write(packet); err != nil {
				return err
			}
			left--
		}
		if late != nil && (left <= 0 || packet == nil) {
			if _, err := out.Write(late); err != nil {
				return err
			}
			late = nil
		}
	}
}

// tun makes a TUN device, which is there as long as the process.
func tun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	return os.NewFile(uintptr(fd), name), err
}

func upgrade(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		return err
	}
	responses := bufio.NewReader(conn)
	if _, err := http.ReadResponse(responses, nil); err != nil {
		return err
	}
	sent := "\x81\x7e" + likeRequests
	go io.WriteString(conn, sent)
	_, err = io.CopyN(io.Discard, responses, int64(len(sent)))
	return err
}

func streams(address, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	for range n {
		response, err := (&http.Client{Transport: transport}).Post("http://"+address+"/200?length", "text/plain", strings.NewReader(likeRequests))
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return err
		}
		if err := response.Body.Close(); err != nil {
			return err
		}
	}
	return nil
}
