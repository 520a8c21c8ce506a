// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds everything that should happen at once.
const patience = 30 * time.Second

// order is one line to an agent, reply the line it answers with.
type order struct {
	Verb    string         `json:"verb"`
	Network string         `json:"network,omitempty"`
	Addr    netip.AddrPort `json:"addr,omitzero"`
	Sink    int            `json:"sink,omitempty"`
	Count   int            `json:"count,omitempty"`
	Size    int            `json:"size,omitempty"`
	Segment int            `json:"segment,omitempty"`
	Bytes   int64          `json:"bytes,omitempty"`
	Method  Method         `json:"method,omitempty"`
	Path    string         `json:"path,omitempty"`
	Frame   *Frame         `json:"frame,omitempty"`
	Barrage *Barrage       `json:"barrage,omitempty"`
	Within  time.Duration  `json:"within,omitempty"`
	Reset   bool           `json:"reset,omitempty"`
}

type reply struct {
	Error    string         `json:"error,omitempty"`
	Addr     netip.AddrPort `json:"addr,omitzero"`
	Sink     int            `json:"sink,omitempty"`
	Received Received       `json:"received,omitzero"`
	Connects Connects       `json:"connects,omitzero"`
	Sent     int            `json:"sent,omitempty"`
}

// server carries out orders.
type server struct {
	sinks []*sink
	held  []*net.TCPConn
}

// ServeAgent carries out orders, one JSON value per line, until they end. For
// programs whose only purpose it is; see [Main] for the others.
func ServeAgent(orders io.Reader, replies io.Writer) error { return serve(nil, orders, replies) }

func serve(args []string, orders io.Reader, replies io.Writer) error {
	encoder := json.NewEncoder(replies)
	if len(args) == 1 && args[0] == entered {
		if err := encoder.Encode(reply{}); err != nil {
			return fmt.Errorf("answer order: %w", err)
		}
	}
	s := new(server)
	for line := range lines(orders) {
		var o order
		r, err := reply{}, json.Unmarshal(line, &o)
		if err == nil {
			r, err = s.do(o)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := encoder.Encode(r); err != nil {
			return fmt.Errorf("answer order: %w", err)
		}
	}
	return nil
}

// lines reads ahead and ends the process at the end of its orders: also in the
// middle of one, since whoever gave it is gone. So nobody waits for its goroutine, nor
// for those of sinks: the process is theirs.
func lines(r io.Reader) <-chan []byte {
	out := make(chan []byte)
	go func() {
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			out <- []byte(scanner.Text())
		}
		os.Exit(0)
	}()
	return out
}

func (s *server) do(o order) (reply, error) {
	switch o.Verb {
	case "listen":
		return s.listen(o)
	case "await":
		return s.await(o)
	case "connect":
		return connect(o)
	case "hold":
		return reply{}, s.hold(o)
	case "letgo":
		return reply{}, s.letGo(o)
	case "sendudp":
		return reply{}, sendUDP(o)
	case "sendtcp":
		return reply{}, sendTCP(o)
	case "sendframe":
		return reply{}, sendFrame(o)
	case "barrage":
		return sendBarrage(o.Barrage)
	case "enter":
		return reply{}, enter(o.Path)
	}
	return reply{}, errors.New("unknown order")
}

// entered tells a program that it has come through enter.
const entered = "entered"

// enter moves the whole process into a network namespace: the thread that is in
// there runs the program anew, which ends the other threads. The process id
// stays, and whoever reads /proc/<pid>/ns/net sees the new namespace.
func enter(path string) error {
	runtime.LockOSThread() // for good: a thread that failed halfway is of no use
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return syscall.Exec("/proc/self/exe", []string{agentName, entered}, os.Environ())
}

// sink counts what a socket takes, for as long as the process lives.
type sink struct {
	mu sync.Mutex
	Received
}

func (s *sink) add(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Count++
	s.Bytes += bytes
}

func (s *sink) received() Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Received
}

func (s *server) listen(o order) (reply, error) {
	var k sink
	var addr net.Addr
	switch o.Network {
	case "tcp":
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(o.Addr))
		if err != nil {
			return reply{}, err
		}
		addr = l.Addr()
		go k.accept(l)
	case "udp":
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(o.Addr))
		if err != nil {
			return reply{}, err
		}
		addr = c.LocalAddr()
		enlarge(c)
		go k.read(c)
	default:
		return reply{}, fmt.Errorf("listen on network %q: not tcp or udp", o.Network)
	}
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return reply{}, err
	}
	s.sinks = append(s.sinks, &k)
	return reply{Addr: at, Sink: len(s.sinks) - 1}, nil
}

// enlarge makes room for bursts. Without CAP_NET_ADMIN the socket keeps what
// net.core.rmem_max allows.
func enlarge(c *net.UDPConn) {
	const room = 64 << 20
	_ = c.SetReadBuffer(room)
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room)
		})
	}
}

func (s *sink) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			n, _ := io.Copy(io.Discard, c)
			// Counted before the close tells the sender that it is over.
			s.add(n)
			_ = c.Close()
		}()
	}
}

func (s *sink) read(c *net.UDPConn) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		s.add(int64(n))
	}
}

func (s *server) await(o order) (reply, error) {
	if o.Sink < 0 || o.Sink >= len(s.sinks) {
		return reply{}, fmt.Errorf("no sink %d", o.Sink)
	}
	got := s.sinks[o.Sink].received()
	for moved := time.Now(); got.Count < o.Count; {
		if time.Since(moved) > patience/2 {
			return reply{}, fmt.Errorf("only %d of %d came", got.Count, o.Count)
		}
		time.Sleep(time.Millisecond)
		if now := s.sinks[o.Sink].received(); now != got {
			got, moved = now, time.Now()
		}
	}
	return reply{Received: got}, nil
}
