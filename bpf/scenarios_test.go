// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

var scenarios = map[string]func() (scenario, error){
	"library":            playLibrary,
	"pipelined":          func() (scenario, error) { return onConnection(5, 64<<10, exchanges) },
	"deep":               func() (scenario, error) { return onConnection(300, 64<<10, exchanges[:1]) },
	"bytewise":           func() (scenario, error) { return onConnection(1, 1, exchanges) },
	"random":             playRandom,
	"with the handshake": playWithHandshake,
	"tunnels":            playTunnels,
	"tls":                playTLS,
	"http2":              playHTTP2,
	"other":              playOther,
	"joined":             playJoined,
	"ports":              playPorts,
	"malformed":          playMalformed,
	"dns":                playDNS,
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

// pair is a connection with itself.
type pair struct {
	listener       *net.TCPListener
	client, server *net.TCPConn
	said           said
}

// connect makes a connection. first, if there is any, is sent with the last packet of its
// handshake.
func connect(address string, first string) (*pair, error) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	p := &pair{}
	if p.listener, err = net.ListenTCP("tcp", at); err != nil {
		return nil, err
	}
	dialer := net.Dialer{}
	if first != "" {
		dialer.Control = func(_, _ string, c syscall.RawConn) (err error) {
			return errors.Join(c.Control(func(fd uintptr) {
				// The client keeps back the packet until it has data
				// (tcp_rcv_synsent_state_process).
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
			}), err)
		}
	}
	client, err := dialer.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	p.client = client.(*net.TCPConn)
	if _, err := p.client.Write([]byte(first)); err != nil {
		return nil, err
	}
	if p.server, err = p.listener.AcceptTCP(); err != nil {
		return nil, err
	}
	_, err = io.CopyN(io.Discard, p.server, int64(len(first)))
	return p, err
}

func (p *pair) close() {
	p.client.Close()
	p.server.Close()
	p.listener.Close()
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

// exchange plays exchanges, all of whose requests are sent before the first response.
func (p *pair) exchange(size int, all ...exchange) error {
	var requests, responses strings.Builder
	for _, e := range all {
		requests.WriteString(e.request)
		responses.WriteString(e.response)
		p.said.count(e)
	}
	if err := transfer(p.client, p.server, requests.String(), size); err != nil {
		return err
	}
	return transfer(p.server, p.client, responses.String(), size)
}

func (s *said) count(e exchange) {
	if e.method != "" {
		s.request(e.method, 1)
	}
	for _, status := range e.statuses {
		s.response(status, 1)
	}
}

// onConnection plays exchanges so many times in a row on one connection, and all that three times.
func onConnection(times, size int, all []exchange) (s scenario, err error) {
	p, err := connect("[::1]:0", "")
	if err != nil {
		return s, err
	}
	defer p.close()
	for range 3 {
		if err := p.exchange(size, slices.Repeat(all, times)...); err != nil {
			return s, err
		}
	}
	return scenario{Client: p.said, Server: p.said}, nil
}

// playRandom plays exchanges in any order, in writes of any size.
func playRandom() (s scenario, err error) {
	seed := uint64(time.Now().UnixNano())
	fmt.Fprintln(os.Stderr, "seed", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		p, err := connect("127.0.0.1:0", "")
		if err != nil {
			return s, err
		}
		defer p.close()
		p.said = s.Client
		for range 5 {
			var some []exchange
			for range 1 + dice.IntN(60) {
				some = append(some, exchanges[dice.IntN(len(exchanges))])
			}
			if err := p.exchange(1+dice.IntN([]int{10, 1000, 100000}[dice.IntN(3)]), some...); err != nil {
				return s, err
			}
		}
		s.Client = p.said
	}
	s.Server = s.Client
	return s, nil
}

// playWithHandshake sends requests with the packet that ends the handshake: one, several, and the
// beginning of one.
func playWithHandshake() (s scenario, err error) {
	get, head := exchanges[0], exchanges[2]
	for _, first := range [][]exchange{
		{get}, {head}, {get, get, head}, slices.Repeat([]exchange{get}, 20),
		{{get.request[:5], "", "", nil}, {get.request[5:], get.response, "GET", []int{200}}},
	} {
		p, err := connect("127.0.0.1:0", first[0].request)
		if err != nil {
			return s, err
		}
		defer p.close()
		p.said = s.Client
		first[0].request = "" // is counted below
		if err := p.exchange(1000, append(first, exchanges...)...); err != nil {
			return s, err
		}
		s.Client = p.said
	}
	s.Server = s.Client
	return s, nil
}

// playTunnels turns connections into others: a websocket, whose messages look like requests, HTTP/1
// and HTTP/2.
func playTunnels() (s scenario, err error) {
	upgrade := func(to string) exchange {
		return exchange{
			"GET /chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: " + to + "\r\n\r\n",
			"HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + to + "\r\n\r\n", "GET", []int{101},
		}
	}
	frame := exchange{"\x81\x7e" + likeRequests[:500], "\x81\x7e" + likeRequests[:500], "", nil}
	through := exchange{"CONNECT a:80 HTTP/1.1\r\n\r\n", "HTTP/1.1 200 Connected\r\n\r\n", "CONNECT", []int{200}}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	streams := exchange{preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + headers(3) + headers(5) + headers(5) + headers(4), "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "", nil}
	for _, all := range [][]exchange{
		{exchanges[0], upgrade("websocket"), frame, frame},
		append([]exchange{through}, exchanges...),
		{upgrade("h2c"), streams},
	} {
		p, err := connect("127.0.0.1:0", "")
		if err != nil {
			return s, err
		}
		defer p.close()
		p.said = s.Client
		for _, e := range all {
			if err := p.exchange(100, e); err != nil {
				return s, err
			}
		}
		s.Client = p.said
	}
	s.Client.Streams = 2
	s.Server = s.Client
	return s, nil
}

// headers is a frame that opens a stream: RFC 9113 section 6.2.
func headers(stream byte) string {
	return "\x00\x00\x03\x01\x04\x00\x00\x00" + string(rune(stream)) + "abc"
}

// playTLS makes connections that begin with TLS, and asks on each.
func playTLS() (s scenario, err error) {
	server := httptest.NewTLSServer(&counting{})
	defer server.Close()
	for range 20 {
		client := server.Client().Transport.(*http.Transport).Clone()
		response, err := (&http.Client{Transport: client}).Get(server.URL + "/200?length")
		if err != nil {
			return s, err
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err = errors.Join(err, response.Body.Close()); err != nil {
			return s, err
		}
		client.CloseIdleConnections()
		s.Client.Hellos++
	}
	s.Server = s.Client
	return s, nil
}

// playHTTP2 asks in clear text by HTTP/2, on one connection.
func playHTTP2() (s scenario, err error) {
	counted := &counting{}
	server := httptest.NewUnstartedServer(counted)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	var clients errgroup.Group
	for range 4 {
		clients.Go(func() error {
			for range 100 {
				response, err := (&http.Client{Transport: transport}).Post(server.URL+"/200?length", "text/plain", strings.NewReader(likeRequests))
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, response.Body)
				if err = errors.Join(err, response.Body.Close()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = clients.Wait()
	for _, n := range counted.said.Requests {
		s.Client.Streams += n
	}
	s.Server = s.Client
	return s, err
}

// playOther plays what is neither HTTP nor TLS, or begins like that and is not.
func playOther() (s scenario, err error) {
	for _, first := range []string{
		"\x00\x00", "get foo\r\n", "GET /\r\n\r\n", "GET / HTTP/0.9\r\n\r\n", "GET / HTTP/3.0\r\n\r\n", " GET / HTTP/1.1\r\n\r\n",
		"EHLO example.org\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 999 OK\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nxx\r\n\r\n",
		"\x16\x03\x01\x00\x05\x02hello", "\x16\x00\x01\x00\x05\x01hello", "\x16",
		strings.Repeat("A", 200) + " / HTTP/1.1\r\n\r\n", "GET", "",
	} {
		p, err := connect("127.0.0.1:0", "")
		if err != nil {
			return s, err
		}
		defer p.close()
		if err := p.exchange(7, exchange{first + likeRequests[5:], "\x01" + likeRequests, "", nil}, exchanges[0]); err != nil {
			return s, err
		}
	}
	return s, nil
}

// playJoined has two connections in the midst of what they say when it is joined: idle, and in a
// body.
func playJoined() (s scenario, err error) {
	idle, err := connect("127.0.0.1:0", "")
	if err != nil {
		return s, err
	}
	defer idle.close()
	within, err := connect("127.0.0.1:0", "")
	if err != nil {
		return s, err
	}
	defer within.close()
	long := exchange{"POST / HTTP/1.1\r\n" + body(strings.Repeat("x", 1000)), "HTTP/1.1 200 OK\r\n" + body(strings.Repeat("y", 1000)), "", nil}
	half := exchange{long.request[:500], long.response[:500], "", nil}
	if err := errors.Join(idle.exchange(1000, exchanges...), within.exchange(1000, half)); err != nil {
		return s, err
	}
	idle.said = said{}
	if err := pause(); err != nil {
		return s, err
	}
	if err := errors.Join(idle.exchange(10000, exchanges...), within.exchange(1000, exchange{long.request[500:], long.response[500:], "", nil})); err != nil {
		return s, err
	}
	within.said = idle.said
	if err := within.exchange(10000, exchanges...); err != nil {
		return s, err
	}
	return scenario{Client: within.said, Server: within.said}, nil
}

func playPorts() (s scenario, err error) {
	for _, address := range []string{"127.0.0.1:8080", "127.0.0.1:8081", "[::1]:65535", "[::1]:80"} {
		p, err := connect(address, "")
		if err != nil {
			return s, err
		}
		defer p.close()
		if err := p.exchange(1000, exchanges...); err != nil {
			return s, err
		}
		if !strings.HasSuffix(address, "1") && !strings.HasSuffix(address, "80") || address == "127.0.0.1:8080" {
			for _, e := range exchanges {
				s.Client.count(e)
			}
		}
	}
	s.Server = s.Client
	return s, nil
}

// playMalformed breaks off what has begun as HTTP, and goes on with that.
func playMalformed() (s scenario, err error) {
	good := exchanges[0]
	for _, bad := range []exchange{
		{"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "", "POST", nil},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "", "POST", nil},
		{"\x00\x01\x02", "", "", nil},
		{"GET / HTTP/1.1\r\nLong: " + strings.Repeat("x", 70000), "", "GET", nil},
	} {
		p, err := connect("127.0.0.1:0", "")
		if err != nil {
			return s, err
		}
		defer p.close()
		p.said = s.Client
		for _, e := range []exchange{good, bad, {"", "HTTP/1.1 400 Bad\r\n" + body("no"), "", []int{400}}, good} {
			if err := p.exchange(100000, e); err != nil {
				return s, err
			}
		}
		s.Client = p.said
	}
	s.Server = s.Client
	return s, nil
}

// questions are asked with these names, and answered with these codes.
var questions = []struct {
	kind dnsmessage.Type
	name string
	code dnsmessage.RCode
}{
	{dnsmessage.TypeA, "example.org.", dnsmessage.RCodeSuccess},
	{dnsmessage.TypeA, strings.Repeat(strings.Repeat("x", 63)+".", 3), dnsmessage.RCodeNameError},
	{dnsmessage.TypeAAAA, "a.b.c.d.e.f.g.h.example.org.", dnsmessage.RCodeServerFailure},
	{dnsmessage.TypeMX, ".", dnsmessage.RCodeRefused},
	{dnsmessage.TypePTR, "1.0.0.127.in-addr.arpa.", dnsmessage.RCodeSuccess},
	{dnsmessage.TypeTXT, "example.org.", dnsmessage.RCodeFormatError},
	{dnsmessage.TypeNS, "example.org.", dnsmessage.RCodeNotImplemented},
	{dnsmessage.TypeSOA, "example.org.", dnsmessage.RCode(10)},
	{dnsmessage.TypeCNAME, "example.org.", dnsmessage.RCodeSuccess},
	{dnsmessage.TypeSRV, "_http._tcp.example.org.", dnsmessage.RCodeSuccess},
	{65, "example.org.", dnsmessage.RCodeSuccess},
	{dnsmessage.TypeALL, "example.org.", dnsmessage.RCodeSuccess},
}

// playDNS asks and answers by UDP over IPv4 and IPv6, and by TCP with a length before each message.
func playDNS() (s scenario, err error) {
	tcp, err := connect("127.0.0.1:53", "")
	if err != nil {
		return s, err
	}
	defer tcp.close()
	var asked, answered string
	for i, q := range questions {
		message := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: uint16(i)},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(q.name), Type: q.kind, Class: dnsmessage.ClassINET}},
		}
		question, err := message.Pack()
		if err != nil {
			return s, err
		}
		message.Response, message.RCode = true, q.code
		answer, err := message.Pack()
		if err != nil {
			return s, err
		}
		for _, address := range []string{"127.0.0.1:53", "[::1]:53"} {
			if err := exchangeDatagrams(address, question, answer); err != nil {
				return s, err
			}
		}
		asked += string(binary.BigEndian.AppendUint16(nil, uint16(len(question)))) + string(question)
		answered += string(binary.BigEndian.AppendUint16(nil, uint16(len(answer)))) + string(answer)
	}
	for _, size := range []int{1, 10, 1000} {
		if err := tcp.exchange(size, exchange{asked, answered, "", nil}); err != nil {
			return s, err
		}
	}
	return s, nil
}

// exchangeDatagrams sends a question and its answer.
func exchangeDatagrams(address string, question, answer []byte) error {
	server, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write(question); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	_, from, err := server.ReadFrom(buffer)
	if err != nil {
		return err
	}
	if _, err := server.WriteTo(answer, from); err != nil {
		return err
	}
	_, err = client.Read(buffer)
	return err
}
