// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"time"
)

// agentName is the argv[0] that makes a program an agent. It shows in ps and,
// unlike a variable of the environment, is not inherited.
const agentName = "nettally-testnet-agent"

var mainCalled bool

// Main turns the process into an agent, and does not return, if it was started
// as one by [StartAgent] or [NewContainer]. These run the program's own file
// again, so the program calls Main first thing. Tests that import package
// nettest need not call it.
func Main() {
	mainCalled = true
	if os.Args[0] != agentName {
		return
	}
	if err := serve(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Agent is a process that makes and takes traffic on orders. Every order ends
// within a bounded time.
//
// It is safe for concurrent use; orders are carried out one after the other.
// The process ends with Close and with the program that started it.
type Agent struct {
	cmd    *exec.Cmd
	orders io.WriteCloser
	stderr fmt.Stringer

	mu      sync.Mutex
	encoder *json.Encoder
	decoder *json.Decoder
	close   func() error
}

// StartAgent starts an agent in a namespace.
func StartAgent(n *Namespace) (*Agent, error) {
	if !mainCalled {
		return nil, errors.New("start agent: the program does not call testnet.Main")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{agentName}
	return startAgent(cmd, n.Start)
}

// CommandAgent starts an agent with a command that ends up in [ServeAgent] and
// passes its standard input and output on.
func CommandAgent(cmd *exec.Cmd) (*Agent, error) { return startAgent(cmd, (*exec.Cmd).Start) }

func startAgent(cmd *exec.Cmd, start func(*exec.Cmd) error) (*Agent, error) {
	stderr := new(tail)
	cmd.Stderr = stderr
	orders, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	replies, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	a := &Agent{
		cmd: cmd, orders: orders, stderr: stderr,
		encoder: json.NewEncoder(orders), decoder: json.NewDecoder(replies),
	}
	a.close = sync.OnceValue(a.end)
	return a, nil
}

// PID returns the process id of the command that was started.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Close ends the agent and its connections. Closing again does nothing.
func (a *Agent) Close() error { return a.close() }

// end takes the orders away, which ends an agent wherever it runs: killing
// `docker exec` would leave the process in the container.
func (a *Agent) end() error {
	_ = a.orders.Close()
	stuck := time.AfterFunc(patience, func() { _ = a.cmd.Process.Kill() })
	defer stuck.Stop()
	if err := a.cmd.Wait(); err != nil {
		return fmt.Errorf("end agent: %w: %s", err, a.stderr)
	}
	return nil
}

// kill ends the agent as a runtime does: it has no say in it.
func (a *Agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.Close() // reports the kill, and does nothing if the agent has ended
}

func (a *Agent) do(o order) (reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var r reply
	err := a.encoder.Encode(o)
	if err == nil {
		err = a.decoder.Decode(&r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return r, fmt.Errorf("order agent %d to %s: %w", a.PID(), o.Verb, err)
	}
	return r, nil
}

// Sink is a socket of an agent that takes what comes and counts it.
type Sink struct {
	Addr  netip.AddrPort
	agent *Agent
	id    int
}

// Received is what a sink took: datagrams, or connections that have ended, and
// their payload.
type Received struct {
	Count int
	Bytes int64
}

// Listen opens a sink for "tcp" or "udp" on a free port. It lives as long as the
// agent.
func (a *Agent) Listen(network string, ip netip.Addr) (*Sink, error) {
	r, err := a.do(order{Verb: "listen", Network: network, Addr: netip.AddrPortFrom(ip, 0)})
	if err != nil {
		return nil, err
	}
	return &Sink{Addr: r.Addr, agent: a, id: r.Sink}, nil
}

// Received waits until the sink has taken at least so many datagrams or
// connections, and returns what it has. It fails if nothing comes for seconds.
func (s *Sink) Received(atLeast int) (Received, error) {
	r, err := s.agent.do(order{Verb: "await", Sink: s.id, Count: atLeast})
	return r.Received, err
}

// Connects counts connections by how they ended.
type Connects struct {
	Connected int
	Refused   int
	TimedOut  int // see [Agent.ConnectWithin]
}

// Connect opens so many TCP connections, one after the other, and closes each
// when the other side has closed it too. A connection that ends otherwise than
// accepted or refused is an error.
func (a *Agent) Connect(to netip.AddrPort, count int) (Connects, error) {
	r, err := a.do(order{Verb: "connect", Addr: to, Count: count})
	return r.Connects, err
}

// ConnectWithin is Connect, where a connection that is not there in time is given up, and
// counted.
func (a *Agent) ConnectWithin(to netip.AddrPort, count int, within time.Duration) (Connects, error) {
	r, err := a.do(order{Verb: "connect", Addr: to, Count: count, Within: within})
	return r.Connects, err
}

// Hold opens so many TCP connections and keeps them.
func (a *Agent) Hold(to netip.AddrPort, count int) error {
	_, err := a.do(order{Verb: "hold", Addr: to, Count: count})
	return err
}

// LetGo ends the oldest of the connections that are held: in order, when the other side has
// closed them too, or with a reset.
func (a *Agent) LetGo(count int, reset bool) error {
	_, err := a.do(order{Verb: "letgo", Count: count, Reset: reset})
	return err
}

// SendUDP sends so many datagrams of size bytes of payload. Nothing holds it up:
// a receiver may lose some where more than about a thousand are sent at once.
func (a *Agent) SendUDP(to netip.AddrPort, count, size int) error {
	return a.SendSegmentedUDP(to, count, size, 0)
}

// SendSegmentedUDP sends so many buffers of size bytes that the kernel cuts into
// datagrams of segment bytes each (UDP_SEGMENT, Linux 4.18): they pass a veth
// with segmentation offload in one piece.
func (a *Agent) SendSegmentedUDP(to netip.AddrPort, count, size, segment int) error {
	_, err := a.do(order{Verb: "sendudp", Addr: to, Count: count, Size: size, Segment: segment})
	return err
}

// Method is a way to hand data to the kernel.
type Method string

// The ways to send: with write, with sendfile from a file, and with
// MSG_ZEROCOPY (Linux 4.14).
const (
	Write    Method = "write"
	SendFile Method = "sendfile"
	ZeroCopy Method = "zerocopy"
)

// SendTCP sends so many bytes over a new connection and returns when the other
// side has read all of them and closed it, so that the traffic is over.
func (a *Agent) SendTCP(to netip.AddrPort, bytes int64, method Method) error {
	_, err := a.do(order{Verb: "sendtcp", Addr: to, Bytes: bytes, Method: method})
	return err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const limit = 4096
	t.data = append(t.data, p...)
	t.data = t.data[max(0, len(t.data)-limit):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
