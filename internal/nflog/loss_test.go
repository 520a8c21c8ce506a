// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

// A full queue is said, and what it lost is counted: with that, all is there that the rules
// have counted.
func TestFullQueue(t *testing.T) {
	w := newWorld(t, true)
	w.load("nft")
	w.start(4096)
	w.ask([2]string{"a", "outside"}, 0, 3)
	w.until("a request came", func(s usage.Snapshot) bool { return s.Log.Logged > 0 })

	w.counter.mu.Lock() // who reads has to wait
	taken := nettest.Must(w.nodes["outside"].Listen("tcp", w.nodes["outside"].ip[0]))(t)
	nettest.Must(w.nodes["a"].Connect(taken.Addr, 1000))(t)
	w.counter.mu.Unlock()

	w.until("the queue was full", func(s usage.Snapshot) bool { return s.Log.Overruns > 0 })
	w.until("the loss is known", func(s usage.Snapshot) bool {
		w.ask([2]string{"a", "outside"}, 0, 1) // what follows tells
		return s.Log.Lost > 0
	})
	s := w.until("all is there", func(s usage.Snapshot) bool { return s.Log.Logged+s.Log.Lost == w.counted("nft") })
	if got := loggedOf(s, "a").Transmit.Connections; got != s.Log.Logged {
		t.Errorf("%d requests of a, %d came", got, s.Log.Logged)
	}
	if n := strings.Count(w.logged.String(), "queue of NFLOG was full"); n != 1 {
		t.Errorf("said %d times:\n%s", n, w.logged)
	}
}

// A group of another's is told in one line, once, and is counted when it is free.
func TestGroupOfAnother(t *testing.T) {
	w := newWorld(t, true)
	w.load("nft")
	w.start(0)
	log := &logBuffer{}
	second := New(Options{
		Group: group, NetNS: w.host.FD(), Net: w.counter.Net, Owner: w.counter.Owner, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	stop := run(second)
	defer stop()
	first := w.counter
	w.counter = second
	w.until("the second is refused", func(s usage.Snapshot) bool { return strings.Contains(log.String(), "belongs to another process") })
	if w.snapshot().Log.Bound {
		t.Error("both have the group")
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("%d lines:\n%s", lines, log)
	}
	w.stop()
	w.until("the second has the group", func(s usage.Snapshot) bool { return s.Log.Bound })
	w.ask([2]string{"a", "outside"}, 1, 7)
	_, count := w.came(8)
	w.until("the second counts", func(s usage.Snapshot) bool { return loggedOf(s, "a").Transmit.Connections == count })
	w.counter = first
	if s := w.snapshot(); s.Log.Bound || s.Log.Logged != 0 {
		t.Errorf("the first: %+v", *s.Log)
	}
	if strings.Count(log.String(), "level=ERROR") != 1 {
		t.Errorf("errors:\n%s", log)
	}
}
