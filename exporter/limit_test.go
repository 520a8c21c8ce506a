// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeListener accepts connections of peers that a test names.
type fakeListener struct {
	net.Listener
	next chan *fakeConn
}

type fakeConn struct {
	net.Conn
	name   string // of the peer, and what tells it from its other connections
	closed bool
}

func (l fakeListener) Accept() (net.Conn, error) { return <-l.next, nil }

func (c *fakeConn) Close() error {
	if c.closed {
		return errors.New("closed twice")
	}
	c.closed = true
	return nil
}

// flood is a limitListener with connections of a test.
type flood struct {
	*limitListener
	clock      time.Time
	identified int
	conns      map[string]*limitConn
	evictions  []string
}

func newFlood(most int, favoured peer) *flood {
	f := &flood{clock: noon, conns: map[string]*limitConn{}}
	f.limitListener = &limitListener{
		Listener: fakeListener{next: make(chan *fakeConn, 1)}, max: most, favoured: favoured,
		now: func() time.Time { f.clock = f.clock.Add(time.Second); return f.clock },
		identify: func(c net.Conn) peer {
			f.identified++
			who, _, _ := strings.Cut(c.(*fakeConn).name, "-")
			return peer(who)
		},
		evicted: func(was phase) { f.evictions = append(f.evictions, was.String()) },
	}
	return f
}

// connect accepts connections. A "+" behind a name is one that sends its request at once.
func (f *flood) connect(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		name, sends := strings.CutSuffix(name, "+")
		f.Listener.(fakeListener).next <- &fakeConn{name: name}
		c, err := f.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f.conns[name] = c.(*limitConn)
		if sends {
			f.conns[name].enter(serving)
		}
	}
}

func (f *flood) closed() (names []string) {
	for name, c := range f.conns {
		if c.Conn.(*fakeConn).closed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestEviction(t *testing.T) {
	tests := []struct {
		name     string
		favoured peer
		most     int
		connect  []string
		closed   []string
	}{
		{"room for all", "", 3, []string{"a-1", "a-2", "b-1"}, nil},
		{"longest idle", "", 2, []string{"a-1", "a-2", "a-3"}, []string{"a-1"}},
		{"of the peer with the most", "", 3, []string{"root-1", "a-1", "a-2", "b-1"}, []string{"a-1"}},
		{"also for one of that peer", "", 3, []string{"root-1", "a-1", "a-2", "a-3", "a-4"}, []string{"a-1", "a-2"}},
		{"idle before serving", "", 3, []string{"a-1+", "a-2", "a-3+", "root-1"}, []string{"a-2"}},
		{"longest serving", "", 3, []string{"a-1+", "a-2+", "a-3+", "root-1"}, []string{"a-1"}},
		{"many peers: longest idle of all", "", 3, []string{"a-1", "b-1+", "c-1", "d-1"}, []string{"a-1"}},
		{"many peers: a request is safe", "", 2, []string{"prometheus-1+", "b-1", "c-1", "d-1", "e-1"}, []string{"b-1", "c-1", "d-1"}},
		{"an idle one of another peer is safe", "", 3, []string{"prometheus-1", "a-1+", "a-2+", "a-3+", "a-4+"}, []string{"a-1", "a-2"}},
		{"favoured", "uid 0", 3, []string{"uid 0-1", "uid 0-2", "a-1+", "uid 0-3"}, []string{"a-1"}},
		{"favoured alone", "uid 0", 2, []string{"uid 0-1", "uid 0-2", "uid 0-3"}, []string{"uid 0-1"}},
		{"one", "", 1, []string{"a-1", "b-1"}, []string{"a-1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFlood(test.most, test.favoured)
			f.connect(t, test.connect...)
			if diff := cmp.Diff(test.closed, f.closed()); diff != "" {
				t.Errorf("closed (-want +got):\n%s", diff)
			}
			if want := len(test.connect) - len(test.closed); f.held() != want {
				t.Errorf("%d are held, want %d", f.held(), want)
			}
			if len(f.evictions) != len(test.closed) {
				t.Errorf("told of %q", f.evictions)
			}
		})
	}
}

// Whatever one peer opens, and whatever its connections do, no other peer loses one.
func TestFloodOfOnePeer(t *testing.T) {
	f := newFlood(20, "")
	f.connect(t, "prometheus-1", "grafana-1+", "grafana-2")
	for i := range 1000 {
		name := fmt.Sprintf("attacker-%d", i)
		if i%3 == 0 {
			name += "+"
		}
		f.connect(t, name)
	}
	for _, name := range f.closed() {
		if !strings.HasPrefix(name, "attacker-") {
			t.Errorf("%s is closed", name)
		}
	}
	if f.held() != 20 {
		t.Errorf("%d are held", f.held())
	}
	if diff := cmp.Diff(map[peer]int{"prometheus": 1, "grafana": 2, "attacker": 17}, f.peers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Nobody is looked up before the listener is half full, and nobody twice.
func TestIdentifiesLate(t *testing.T) {
	f := newFlood(10, "")
	f.connect(t, "a-1", "a-2", "a-3", "a-4", "a-5")
	if f.identified != 0 {
		t.Errorf("%d look-ups while half of the places are free", f.identified)
	}
	for i := range 100 {
		f.connect(t, fmt.Sprintf("b-%d", i))
	}
	if f.identified != 105 {
		t.Errorf("%d look-ups of 105 connections", f.identified)
	}
}

// Places of connections that their owners close are free.
func TestCloseMakesRoom(t *testing.T) {
	f := newFlood(2, "")
	f.connect(t, "a-1", "b-1")
	if err := f.conns["a-1"].Close(); err != nil {
		t.Fatal(err)
	}
	f.connect(t, "c-1")
	if diff := cmp.Diff([]string{"a-1"}, f.closed()); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
}

func TestConnectionLimits(t *testing.T) {
	for descriptors, want := range map[uint64][2]int{
		0: {1, 1}, 8: {1, 1}, 64: {13, 3}, 256: {52, 12}, 1024: {205, 51},
		2560: {512, 128}, 20_000: {512, 128}, math.MaxUint64: {512, 128},
	} {
		tcp, unix := connectionLimits(descriptors)
		if got := [2]int{tcp, unix}; got != want {
			t.Errorf("of %d descriptors: %d connections, want %d", descriptors, got, want)
		}
	}
}
