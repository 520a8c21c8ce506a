// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How many connections the listeners hold at most. Each costs a descriptor and, with the
// largest header there may be, some 50 KiB. Scrapers, dashboards and commands together have
// tens of them.
const (
	mostTCP  = 512
	mostUnix = 128
	// All connections together take at most one in descriptorShare descriptors. The others
	// are for counting.
	descriptorShare = 4
)

// connectionLimits divides the descriptors that a process may have. Each listener gets one
// connection at least.
func connectionLimits(descriptors uint64) (tcp, unix int) {
	share := int(min(descriptors/descriptorShare, mostTCP+mostUnix))
	unix = max(1, share*mostUnix/(mostTCP+mostUnix))
	return max(1, share-unix), unix
}

// descriptorLimit returns how many descriptors this process may open.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0 // cannot happen; then each listener has one connection
	}
	return limit.Cur
}

// phase is what a connection is doing.
type phase int

const (
	idle    phase = iota // no whole request was read: a new one, or one between requests
	serving              // a request is being answered
)

func (p phase) String() string {
	if p == serving {
		return "serving"
	}
	return "idle"
}

// limitListener accepts every connection. When it holds more than max, it closes another
// one for it: see victim. So one peer can keep nobody out, whatever it opens.
type limitListener struct {
	net.Listener
	max      int
	identify func(net.Conn) peer // slow: it may ask the kernel
	favoured peer                // its connections are closed last; "" for nobody's
	now      func() time.Time
	evicted  func(phase) // is told about each connection that was closed for another

	mu    sync.Mutex
	conns map[*limitConn]struct{}
	peers map[peer]int // how many connections those hold that are identified
}

// limitConn is a connection of a limitListener.
type limitConn struct {
	net.Conn
	listener *limitListener
	peer     func() peer // asks once, and may be called concurrently

	// Guarded by listener.mu.
	who   peer // "" until it is identified
	phase phase
	since time.Time // when the phase began
}

// Accept implements [net.Listener]. Nobody is identified before the listener is half full,
// and each connection at most once.
func (l *limitListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &limitConn{Conn: conn, listener: l, since: l.now()}
	c.peer = sync.OnceValue(func() peer { return l.identify(conn) })
	held := l.add(c)
	if held > l.max/2 {
		l.learn(c) // now: a peer that has gone can no longer be identified
	}
	if held > l.max {
		l.evict(c)
	}
	return c, nil
}

func (l *limitListener) add(c *limitConn) (held int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns, l.peers = map[*limitConn]struct{}{}, map[peer]int{}
	}
	l.conns[c] = struct{}{}
	return len(l.conns)
}

// held returns how many connections there are.
func (l *limitListener) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// evict closes a connection other than the new one, if there is one.
func (l *limitListener) evict(fresh *limitConn) {
	for _, c := range l.strangers() {
		l.learn(c)
	}
	if c, was := l.victim(fresh); c != nil {
		l.evicted(was)
		_ = c.Close() // only fails if it is closed
	}
}

// strangers returns the connections that are not identified yet.
func (l *limitListener) strangers() (all []*limitConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if c.who == "" {
			all = append(all, c)
		}
	}
	return all
}

// learn identifies a connection, outside of the lock, which requests need.
func (l *limitListener) learn(c *limitConn) {
	who := c.peer()
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, open := l.conns[c]; open && c.who == "" {
		c.who = who
		l.peers[who]++
	}
}

// victim chooses the connection to close for a new one: one of the peer that holds the
// most, there an idle one first, there the one that has been idle for longest. An idle one
// of another peer would come first if only idleness counted, and a flood of half requests,
// which are never idle for long, would close those of Prometheus between two scrapes.
func (l *limitListener) victim(fresh *limitConn) (*limitConn, phase) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var worst *limitConn
	for c := range l.conns {
		if c != fresh && (worst == nil || l.compare(c, worst) < 0) {
			worst = c
		}
	}
	if worst == nil {
		return nil, idle
	}
	return worst, worst.phase
}

// compare returns a negative number if a is to be closed before b.
func (l *limitListener) compare(a, b *limitConn) int {
	return cmp.Or(
		cmp.Compare(l.favour(a), l.favour(b)),
		cmp.Compare(l.peers[b.who], l.peers[a.who]),
		cmp.Compare(a.phase, b.phase),
		a.since.Compare(b.since),
	)
}

func (l *limitListener) favour(c *limitConn) int {
	if l.favoured != "" && c.who == l.favoured {
		return 1
	}
	return 0
}

// enter says what a connection is doing from now on. A nil connection is none of ours.
func (c *limitConn) enter(p phase) {
	if c == nil {
		return
	}
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.phase, c.since = p, c.listener.now()
}

// Close implements [net.Conn].
func (c *limitConn) Close() error {
	c.listener.mu.Lock()
	c.listener.forget(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

func (l *limitListener) forget(c *limitConn) {
	if _, open := l.conns[c]; !open {
		return
	}
	delete(l.conns, c)
	if c.who == "" {
		return
	}
	if l.peers[c.who]--; l.peers[c.who] == 0 {
		delete(l.peers, c.who)
	}
}

// CloseWrite is what net/http ends a connection with on which more may come, so that the
// client can read the answer.
func (c *limitConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// limited returns the connection of a limitListener that lies below one of net/http, or
// nil.
func limited(c net.Conn) *limitConn {
	if secure, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = secure.NetConn()
	}
	l, _ := c.(*limitConn)
	return l
}
