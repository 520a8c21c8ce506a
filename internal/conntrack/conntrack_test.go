// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

// heard is what `conntrack -E` was told.
type heard struct {
	mu     sync.Mutex
	opened map[string]*[directions]uint64 // by address
	said   strings.Builder                // as an error
}

// Write implements [io.Writer], for its errors.
func (h *heard) Write(text []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.said.Write(text)
}

// lost says whether it has missed events, which it does on a busy machine and says: then the
// connections that were made are the only witness.
func (h *heard) lost() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Contains(h.said.String(), "ENOBUFS")
}

// hear runs `conntrack -E` until the test ends, and returns when it has told of a first event,
// which the caller makes.
func (s *site) hear(first func()) *heard {
	s.tb.Helper()
	h := &heard{opened: map[string]*[directions]uint64{}}
	cmd := exec.Command("conntrack", "-E", "-e", "NEW", "-p", "tcp", "-b", "33554432")
	out, err := cmd.StdoutPipe()
	must(s.tb, err)
	cmd.Stderr = io.MultiWriter(s.tb.Output(), h)
	must(s.tb, s.host.Start(cmd))
	began := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		var once sync.Once
		for lines := bufio.NewScanner(out); lines.Scan(); {
			h.note(lines.Text())
			once.Do(func() { close(began) })
		}
	})
	s.tb.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		reading.Wait()
		_ = cmd.Wait()
	})
	s.poll("conntrack -E listens", func() bool {
		first()
		select {
		case <-began:
			return true
		default:
			return false
		}
	}, func() any { return nil })
	return h
}

func (h *heard) note(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	direction := transmit
	for word := range strings.FieldsSeq(line) {
		if source, ok := strings.CutPrefix(word, "src="); ok {
			if h.opened[source] == nil {
				h.opened[source] = &[directions]uint64{}
			}
			h.opened[source][direction]++
			direction = receive
		}
	}
}

func (h *heard) of(address string) [directions]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.opened[address]; n != nil {
		return *n
	}
	return [directions]uint64{}
}

// changes are what a tracker has of a container.
func changes(c usage.Conntrack, p usage.Protocol) (opened, closed [directions]uint64) {
	return [directions]uint64{receive: c.Receive[p].Opened, transmit: c.Transmit[p].Opened},
		[directions]uint64{receive: c.Receive[p].Closed, transmit: c.Transmit[p].Closed}
}

// TestNAT compares with Debian's conntrack what is counted of connections to a published port,
// of masqueraded ones, and of such to a service address.
func TestNAT(t *testing.T) {
	s := newSite(t)
	s.serve(s.web, 80)
	s.serve(s.outside, 80)
	s.connect(s.outside, hostAddress+":8080", 1, false) // so that something is tracked
	tracker := s.track(Options{})
	s.found(tracker)
	s.poll("both are known", func() bool {
		all := tracker.Counted()
		return all["client"].Listed && all["web"].Listed
	}, func() any { return tracker.Counted() })
	first := uint64(0)
	h := s.hear(func() { s.connect(s.outside, hostAddress+":8080", 1, false); first++ })

	const many = 700
	s.connect(s.outside, hostAddress+":8080", many, false)
	s.connect(s.client, outsideAddress+":80", many, false)
	s.connect(s.client, serviceAddress+":80", many, false)
	s.connect(s.client, outsideAddress+":80", 3, true)
	s.connect(s.outside, hostAddress+":8080", 5, true)
	s.connect(s.client, serviceAddress+":80", 7, true)

	s.poll("opened is what conntrack -E heard", func() bool {
		all := tracker.Counted()
		client, _ := changes(all["client"], usage.ProtocolTCP)
		web, _ := changes(all["web"], usage.ProtocolTCP)
		return client == [directions]uint64{transmit: 2*many + 10} && (client == h.of(clientAddress) || h.lost()) &&
			web == [directions]uint64{receive: first + 2*many + 12}
	}, func() any { return tracker.Counted() })
	s.poll("entries are what conntrack -L has", func() bool {
		all := tracker.Counted()
		client, web := s.list(clientAddress, "tcp"), s.list(webAddress, "tcp")
		return client.established[transmit] == 10 && web.established[receive] == 12 && web.other[receive] >= many &&
			client == shownList(all["client"], usage.ProtocolTCP) && web == shownList(all["web"], usage.ProtocolTCP)
	}, func() any { return []any{tracker.Counted(), s.list(clientAddress, "tcp"), s.list(webAddress, "tcp")} })

	// A packet of a connection that is open still, or closing, makes a new entry.
	s.run("conntrack", "-F")
	s.poll("what is closed is not in conntrack -L", func() bool {
		all := tracker.Counted()
		opened, closed := changes(all["client"], usage.ProtocolTCP)
		webOpened, webClosed := changes(all["web"], usage.ProtocolTCP)
		client, web := s.list(clientAddress, "tcp"), s.list(webAddress, "tcp")
		for d := range directions {
			if closed[d] != opened[d]-client.established[d]-client.other[d] {
				return false
			}
		}
		return closed[transmit] >= 2*many && webClosed[receive] == webOpened[receive]+1-web.established[receive]-web.other[receive]
	}, func() any { return []any{tracker.Counted(), s.list(clientAddress, "tcp"), s.list(webAddress, "tcp")} })
	if n := tracker.overflown(t); n != 0 {
		t.Errorf("%d overflows", n)
	}
}

// TestOverflow has the kernel drop events, and expects the numbers to be right all the same.
func TestOverflow(t *testing.T) {
	s := newSite(t)
	s.serve(s.web, 80)
	s.connect(s.outside, hostAddress+":8080", 1, true)
	tracker := s.track(Options{buffer: 4096})
	s.found(tracker)
	s.poll("both are known", func() bool {
		all := tracker.Counted()
		return all["client"].Listed && all["web"].Listed
	}, func() any { return tracker.Counted() })
	sent := 0
	for range 20 {
		s.send(s.client, outsideAddress+":9", 500)
		if sent += 500; tracker.overflown(t) > 0 {
			break
		}
	}
	if tracker.overflown(t) == 0 {
		t.Fatalf("%d events fit a buffer of 4 KiB", sent)
	}
	s.poll("all are counted", func() bool {
		c := tracker.Counted()["client"]
		return c.Listed && c.Transmit[usage.ProtocolUDP] == usage.Connections{Other: uint64(sent), Opened: uint64(sent)}
	}, func() any { return tracker.Counted() })
}
