// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"
)

const (
	copied    = 128 // bytes of each packet: IP and TCP with some headers between them
	threshold = 64  // packets, after which the kernel sends a batch
	timeout   = 2   // in 10 ms, the same
)

// socket is a group that is being read. go-nflog reads it in goroutines of its own, which
// [socket.close] waits for.
type socket struct {
	*nflog.Nflog
	cancel context.CancelFunc
	failed chan error    // gets the error that ends the reading
	closed chan struct{} // no system call of go-nflog blocks any more
	ended  chan struct{} // the goroutine that reads has nothing more to do
	end    sync.Once
}

// listen binds the group and reads it until the context ends, or the socket fails.
func (c *Counter) listen(ctx context.Context) (bound bool, err error) {
	s := &socket{failed: make(chan error, 1), closed: make(chan struct{}), ended: make(chan struct{})}
	s.Nflog, err = nflog.Open(&nflog.Config{
		NetNS: c.NetNS, Group: c.Group, Logger: s,
		Copymode: nflog.CopyPacket, Bufsize: copied, Flags: nflog.FlagSeq,
		QThresh: threshold, Timeout: timeout,
	})
	if err != nil {
		return false, fmt.Errorf("open socket of NFLOG: %w", err)
	}
	if err := s.Con.SetReadBuffer(c.Buffer); err != nil {
		return false, errors.Join(fmt.Errorf("set buffer of NFLOG: %w", err), s.Con.Close())
	}
	reading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	defer cancel()
	var next uint32 // the number of the next packet
	err = s.RegisterWithErrorFunc(reading, func(a nflog.Attribute) int {
		c.take(a, &next)
		return 0
	}, func(err error) int { return s.trouble(c, err) })
	if err != nil {
		return false, errors.Join(c.explain(err), s.Con.Close())
	}
	c.began(true)
	defer c.began(false)
	defer s.close()
	c.Log.Info("counting connection requests", "group", c.Group)
	select {
	case <-ctx.Done():
		return true, nil
	case err := <-s.failed:
		return true, fmt.Errorf("read NFLOG: %w", err)
	}
}

// trouble judges an error of reading, on go-nflog's goroutine. A full buffer is the only
// one after which there is more to read.
func (s *socket) trouble(c *Counter, err error) int {
	if errors.Is(err, unix.ENOBUFS) {
		c.mu.Lock()
		c.totals.overruns++
		c.mu.Unlock()
		c.said.Do(func() {
			c.Log.Warn("the queue of NFLOG was full: connection requests are missing, nettally_nflog_lost_total says how many", "group", c.Group)
		})
		return 0
	}
	select {
	case <-s.closed:
	case s.failed <- err:
		<-s.closed
	}
	return 1
}

// close ends both goroutines of go-nflog v2.1.0 and waits for them. The one that reads ends
// by giving up the group, which fails on a socket that is closed, and tells its logger so;
// nothing else tells of its end. The other one waits for its context and is in Close's group.
func (s *socket) close() {
	_ = s.Con.Close()
	close(s.closed)
	s.cancel()
	<-s.ended
	_ = s.Nflog.Close()
}

// Debugf implements [nflog.Logger].
func (s *socket) Debugf(string, ...any) {}

// Errorf implements [nflog.Logger].
func (s *socket) Errorf(format string, _ ...any) {
	if strings.HasPrefix(format, "Could not unbind socket") {
		s.end.Do(func() { close(s.ended) })
	}
}

// explain says who has the group, if that is why it can't be bound: the kernel says EPERM.
func (c *Counter) explain(err error) error {
	switch port := holder(c.Net, c.Group); {
	case port != 0:
		return fmt.Errorf("bind group %d: it belongs to another process, with netlink port %d (as a rule its pid): set another accounting.nflog.group", c.Group, port)
	case strings.Contains(err.Error(), unix.EPERM.Error()): // go-nflog gives texts only
		return fmt.Errorf("bind group %d: no CAP_NET_ADMIN: run nettally as root", c.Group)
	}
	return fmt.Errorf("bind group %d: %w", c.Group, err)
}

// holder returns the netlink port that a group is bound to, 0 for none.
func holder(dir string, group uint16) int {
	text, err := os.ReadFile(filepath.Join(dir, "netfilter/nfnetlink_log"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == strconv.Itoa(int(group)) {
			port, _ := strconv.ParseUint(fields[1], 10, 32)
			return int(port)
		}
	}
	return 0
}
